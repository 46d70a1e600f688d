"""What the commands of this folder share: an input that cannot be used costs a line, not a traceback."""

import argparse
import csv
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from speech.errors import SpeechError

UNUSABLE = (SpeechError, OSError, ValueError, csv.Error, pickle.UnpicklingError)


@contextmanager
def one_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the process with 1 and one line on standard error if what is read inside cannot be used."""
    try:
        yield
    except UNUSABLE as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
