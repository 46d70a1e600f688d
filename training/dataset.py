"""Recordings and their texts: read, decoded once, cached, and dealt out in batches of similar length."""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import numpy as np
from tqdm import tqdm

from speech.alphabet import lost_characters, normalise_text
from speech.audio import FULL_SCALE, SAMPLE_RATE
from speech.errors import AudioError
from speech.features import FRAME_LENGTH, FRAME_STEP
from speech.formats import decode_audio

CACHE = 3  # its version: what is decoded otherwise is decoded anew
FORSAKEN = 86400  # seconds after which nobody writes on
AHEAD = 64  # recordings that are decoded or waiting for it, and not yet written
LIBRISPEECH = re.compile(r"LibriSpeech|(train|dev|test)-(clean|other)(-\d+)?")  # folders that it comes in

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording and what is said in it; ``text`` as published, ``split`` is train, dev or empty; ``credit``
    says whose it is."""

    id: str
    path: Path
    text: str
    corpus: str
    speaker: str
    split: str
    credit: str = ""


def read_utterances(data: Path) -> list[Utterance]:
    """Utterances of a manifest (CSV: path, text and perhaps id, corpus, speaker, split, source, licence) or
    of a corpus folder.

    A folder holds ``manifest.csv``, or has LJSpeech's layout (``metadata.csv``, ``wavs/``) or LibriSpeech's
    (``*.trans.txt`` beside ``*.flac``).

    Raises:
        FileNotFoundError: none of these is there, or the manifest lacks the column path or text.
        ValueError: a line has too few or too many columns, or the file is not in UTF-8.
        csv.Error: a quote that is not closed.
    """
    if data.is_file():
        return _from_manifest(data)
    if (data / "manifest.csv").is_file():
        return _from_manifest(data / "manifest.csv")
    if (data / "metadata.csv").is_file():
        return _from_ljspeech(data)
    transcripts = sorted(data.rglob("*.trans.txt"))
    if transcripts:
        name = data.resolve().name
        corpora = ["librispeech" if any(map(LIBRISPEECH.fullmatch, t.resolve().parts)) else name for t in transcripts]
        return [u for file, corpus in zip(transcripts, corpora, strict=True) for u in _from_librispeech(file, corpus)]
    raise FileNotFoundError(
        f"expected {data} to be a manifest, or a folder with manifest.csv, metadata.csv or *.trans.txt"
    )


def read_lines(source: Path, dev: bool = False) -> list[str]:
    """Texts as published: of plain text, of ``id|text`` lines, of a CSV with a column ``text``, or of recordings.

    What names splits gives ``train``, or ``dev`` alone: what is scored is not to be learnt.
    """
    if source.is_dir():
        return _of_split(((u.split, u.text) for u in read_utterances(source)), source, dev)
    with _lines(source) as file:
        first = next(file, "")
        if "text" in next(csv.reader([first[:9999]]), []):
            return _of_split(((_split(row), row["text"]) for row in _rows(file, first, source)), source, dev)
        for mark in ";\t":
            if "text" in first.strip().split(mark):
                raise ValueError(f"expected commas between the columns of {source}, found {mark!r}")
        rows = _columns(chain([first], file))
    return _texts(rows) if all(len(row) > 1 for row in rows) else ["|".join(row) for row in rows]


def _of_split(texts: Iterable[tuple[str, str]], source: Path, dev: bool) -> list[str]:
    found = list(texts)
    if not dev and (others := sorted({split for split, _ in found} - {"train", "dev", ""})):
        log.warning("left out the texts of the splits %s of %s", ", ".join(others), source)
    return [text for split, text in found if text and (split == "dev" if dev else split in ("train", ""))]


@contextmanager
def _lines(file: Path) -> Iterator[TextIO]:
    """The lines of a file in UTF-8, perhaps with the byte order mark that Excel writes."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            yield lines
        except UnicodeDecodeError as error:
            raise ValueError(f"expected {file} in UTF-8, found {error.reason} in it") from None


def _rows(lines: Iterable[str], header: str, file: Path) -> Iterator[dict[str, str]]:
    """The rows behind the header of a CSV file, each with all of its columns."""
    rows = csv.DictReader(lines, next(csv.reader([header]), []), strict=True)
    for row in rows:
        if None in row or None in row.values():
            n = len(rows.fieldnames or [])
            raise ValueError(
                f"expected {n} columns in line {rows.line_num + 1} of {file}, found "
                + ("more; a text with a comma needs quotes around it" if None in row else "fewer")
            )
        yield row


def _split(row: Mapping[str, str]) -> str:
    return row.get("split", "").strip().lower()


def _from_manifest(file: Path) -> list[Utterance]:
    with _lines(file) as lines:
        header = next(lines, "")
        columns = next(csv.reader([header]), [])
        if not {"path", "text"} <= set(columns):
            found = ", ".join(map(repr, columns)) or "none"
            raise FileNotFoundError(f"expected a manifest with the columns 'path' and 'text' in {file}, found {found}")
        return [
            Utterance(
                id=row.get("id") or Path(row["path"]).stem,
                path=file.parent / row["path"],
                text=row["text"],
                corpus=row.get("corpus") or file.resolve().parent.name,
                speaker=row.get("speaker") or "",
                split=_split(row),
                credit="; ".join(filter(None, (row.get("source"), row.get("licence") or row.get("license")))),
            )
            for row in _rows(lines, header, file)
        ]


def _from_ljspeech(folder: Path) -> list[Utterance]:
    with _lines(folder / "metadata.csv") as lines:
        rows = _columns(lines)
    for number, row in enumerate(rows, start=1):
        if len(row) < 2:
            raise ValueError(f"expected id|text in {folder / 'metadata.csv'}, found {row[0]!r:.50} as row {number}")
    names = [row[0].removesuffix(".wav") for row in rows]
    return [
        Utterance(name, folder / "wavs" / f"{name}.wav", text, folder.resolve().name, "", "")
        for name, text in zip(names, _texts(rows), strict=True)
    ]


def _columns(lines: Iterable[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.rstrip("\r\n").split("|")] for line in lines if line.strip()]


def _texts(rows: Sequence[Sequence[str]]) -> list[str]:
    """The texts of LJSpeech's rows, ``id|text|text in words``; a third column that is much shorter than the second is
    something else, such as a speaker."""
    second, third = (sum(len(row[column]) for row in rows if len(row) > column) for column in (1, 2))
    return [row[2] if len(row) > 2 and row[2] and third > second / 2 else row[1] for row in rows]


def _from_librispeech(transcript: Path, corpus: str) -> Iterator[Utterance]:
    with _lines(transcript) as lines:
        for line in filter(str.strip, lines):
            name, *text = line.strip().split(None, 1)
            path = transcript.parent / f"{name}.flac"
            yield Utterance(name, path, "".join(text), corpus, name.split("-")[0], "")


def load_audio(path: Path) -> np.ndarray:
    """Any recording that the service reads, as it hears it: int16 (n,) at 22050 Hz, channels averaged.

    Raises:
        AudioError: it is none, or not all of it is there and can be read; OSError.
    """
    return (decode_audio(path.read_bytes(), whole=True).samples * FULL_SCALE).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """An utterance that is ready to train on: int16 (n,) samples (on disk) and the normalised text."""

    utterance: Utterance
    samples: np.ndarray
    text: str

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def fits(self) -> bool:
        """Whether there are steps enough for the letters: one each, and a blank between two that are the same."""
        n_steps = (1 + (len(self.samples) - FRAME_LENGTH) // FRAME_STEP + 1) // 2
        return n_steps >= len(self.text) + sum(one == other for one, other in pairwise(self.text))


def _try_load(path: Path) -> np.ndarray | str:
    if not path.is_file():
        return f"{path}: no such file"
    try:
        samples = load_audio(path)
    except (AudioError, OSError) as error:
        return f"{path}: {error}"
    return samples if len(samples) >= FRAME_LENGTH else f"{path}: {len(samples)} samples"


def _identity(path: Path) -> str:
    """What changes when the recording does."""
    facts = path.stat() if path.exists() else None
    return f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}" if facts else f"{path.resolve()} missing"


def load_clips(utterances: Sequence[Utterance], cache: Path) -> list[Clip]:
    """Decode the recordings that are not under ``cache`` yet, once, and give the clips, memory-mapped.

    A recording that cannot be read, is too short or has no text left is named in the log, counted and skipped.

    Raises:
        OSError: nothing can be written under ``cache``.
    """
    names = [_identity(u.path) for u in utterances]
    known = _stored(cache)
    if new := {name: u.path for name, u in zip(names, utterances, strict=True) if name not in known}:
        try:
            known |= _decode(new, cache)
        except OSError as error:
            said = f"expected a folder that can be written as --cache, found {cache}: {error.strerror or error}"
            raise OSError(said) from error
    nothing = np.empty(0, np.int16)
    clips = [
        Clip(utterance, known.get(name, nothing), normalise_text(utterance.text))
        for name, utterance in zip(names, utterances, strict=True)
    ]
    lost = [clip for clip in clips if lost_characters(clip.utterance.text)]
    if lost:
        examples = "; ".join(f"{clip.utterance.id}: {clip.utterance.text:.50}" for clip in lost[:3])
        log.warning("%d texts hold digits or letters that are not written, so spell them out: %s", len(lost), examples)
    for clip in clips:
        if len(clip.samples) and not clip.text:
            log.warning("skipped %s: no letters in its text %r", clip.utterance.path, clip.utterance.text[:50])
    good = [clip for clip in clips if len(clip.samples) and clip.text]
    if len(good) < len(clips):
        log.warning("%d of %d recordings skipped", len(clips) - len(good), len(clips))
    return good


def _stored(cache: Path) -> dict[str, np.ndarray]:
    """The samples of all recordings under ``cache``, by their identities; what was not written to its end is none."""
    known: dict[str, np.ndarray] = {}
    for index in cache.glob(f"*.v{CACHE}.json"):
        with suppress(OSError, ValueError, LookupError, AttributeError):
            known |= _read(index)
    return known


def _read(index: Path) -> dict[str, np.ndarray]:
    """The samples of the recordings that one pair of files holds: their lengths, and all samples in the same order."""
    lengths = json.loads(index.read_bytes())
    audio, ends = np.asarray(np.memmap(index.with_suffix(".int16"), np.int16, "r")), np.cumsum([*lengths.values()])
    if len(audio) != ends[-1]:
        raise ValueError(f"expected {ends[-1]} samples beside {index}, found {len(audio)}")
    return {name: audio[end - n : end] for (name, n), end in zip(lengths.items(), ends, strict=True)}


def _decode(recordings: Mapping[str, Path], cache: Path) -> dict[str, np.ndarray]:
    """Write what can be read of the recordings into a pair of files of its own, each in one move, the lengths last.

    It is called by a sum of the lengths: another process that does the same at the same time writes the same.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("new-*"):  # by a process that was killed
        with suppress(OSError):  # or by one that is ready just now
            if max(file.stat().st_mtime for file in (left, *left.iterdir())) < time.time() - FORSAKEN:
                shutil.rmtree(left, ignore_errors=True)
    lengths: dict[str, int] = {}
    with TemporaryDirectory(prefix="new-", dir=cache) as folder:
        data, index = Path(folder, "samples"), Path(folder, "lengths")
        with data.open("wb") as out:
            decoded = zip(recordings, _load_all([*recordings.values()]), strict=True)
            for name, samples in tqdm(decoded, total=len(recordings), desc="decoding", unit="clip"):
                if isinstance(samples, str):
                    log.warning("skipped %s", samples)
                else:
                    out.write(samples.tobytes())
                    lengths[name] = len(samples)
            out.flush()
            os.fsync(out.fileno())  # before there are lengths: a machine that stops leaves no zeros for sound
        if not lengths:
            return {}
        written = json.dumps(lengths).encode()
        index.write_bytes(written)
        kept = cache / f"{hashlib.sha256(written).hexdigest()[:16]}.v{CACHE}.json"
        data.replace(kept.with_suffix(".int16"))
        index.replace(kept)
    return _read(kept)


def _load_all(paths: Sequence[Path]) -> Iterator[np.ndarray | str]:
    """What `_try_load` gives for each, in order; a slow one holds up the rest before they fill the memory."""
    waiting: deque[Future[np.ndarray | str]] = deque()
    with ThreadPoolExecutor() as pool:
        for path in paths:
            waiting.append(pool.submit(_try_load, path))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def repeat(clips: Sequence[Clip], times: Mapping[str, float], rng: np.random.Generator) -> list[Clip]:
    """The clips of one epoch, at least one: each corpus as often as ``times`` says (once if it does not), fractions
    drawn by lot."""
    chosen = []
    for clip in clips:
        n = times.get(clip.utterance.corpus, 1.0)
        chosen += [clip] * (int(n) + int(rng.random() < n % 1))
    return chosen or [clips[int(rng.integers(len(clips)))]]


def batches(
    clips: Sequence[Clip], seconds: float, rng: np.random.Generator, by_length: bool = False
) -> Iterator[list[Clip]]:
    """Batches of clips of similar length, each of about so many seconds, padding included.

    In random order, or shortest first (``by_length``), which is how a first epoch learns soonest (SortaGrad,
    https://arxiv.org/abs/1512.02595).
    """
    jittered = sorted(clips, key=lambda clip: clip.seconds * rng.uniform(0.95, 1.05))
    groups: list[list[Clip]] = []
    for clip in jittered:
        group = groups[-1] if groups else []
        longest = max([clip.seconds, *(c.seconds for c in group)])
        if not group or longest * (len(group) + 1) > seconds:
            groups.append([clip])
        else:
            group.append(clip)
    order = np.arange(len(groups)) if by_length else rng.permutation(len(groups))
    for i in order:
        yield groups[i]
