"""Milliseconds of processor time that each augmentation takes for a second of sound; a training step takes some 35."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np

from benchmarks.common import made_clip, report, where
from speech.audio import Waveform
from speech.features import spectrogram
from training.augment import BACKGROUNDS, CODECS, Augmentation

OFF = Augmentation(speed_probability=0, noise_probability=0, time_masks=0, frequency_masks=0)
KINDS = {
    "nothing": OFF,
    "trim": replace(OFF, trim_probability=1),
    "speed": replace(OFF, speed_probability=1),
    "pitch": replace(OFF, pitch_probability=1),
    "reverb": replace(OFF, reverb_probability=1),
    **{kind: replace(OFF, background_probability=1, background_kinds=(kind,)) for kind in BACKGROUNDS},
    "tilt": replace(OFF, tilt_probability=1),
    "noise": replace(OFF, noise_probability=1),
    "gain": replace(OFF, gain_probability=1),
    "telephone": replace(OFF, telephone_probability=1),
    **{kind: replace(OFF, codec_probability=1, codec_kinds=(kind,)) for kind in CODECS},
    "vocal tract": replace(OFF, vocal_tract_probability=1),
    "SpecAugment": replace(OFF, time_masks=2, frequency_masks=2),
}


def processor_seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def augment(kind: Augmentation, clip: Waveform, frames: np.ndarray, rng: np.random.Generator) -> None:
    """All that a training step does to a clip and its spectrogram."""
    kind.sound(clip.samples, rng)
    kind.masked(kind.vocal_tract(frames, rng), rng)


def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.augment", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of the clip")
    arguments.add_argument("--rounds", type=int, default=9)
    given = arguments.parse_args()
    clip = made_clip(given.seconds)
    frames, rng = spectrogram(clip).frames, np.random.default_rng(0)
    calls: dict[str, Callable[[], object]] = {"features, for comparison": lambda: spectrogram(clip)}
    for name, kind in KINDS.items():
        calls[name] = partial(augment, kind, clip, frames, rng)
    times = {name: [processor_seconds(call) for _ in range(given.rounds)] for name, call in calls.items()}
    rows = [{"kind": name, "ms per s of sound": 1000 * median(t) / given.seconds} for name, t in times.items()]
    report({"where": where()}, rows, None)


if __name__ == "__main__":
    main()
