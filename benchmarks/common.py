"""What the benchmarks share: the clips, the path that the service replaces, and where a number was measured."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.alphabet import Alphabet
from speech.audio import SAMPLE_RATE, Waveform, decode_wav
from speech.engine import available_cores
from speech.features import FFT_LENGTH, FRAME_LENGTH, FRAME_STEP
from speech.model import load_weights_file
from speech.model_card import WEIGHTS, check_file, read_card

SAMPLE = Path(__file__).parents[1] / "samples" / "hello.wav"
Transcribe = Callable[[Waveform], str]


def made_clip(seconds: float, seed: int = 0) -> Waveform:
    """A clip of any length: the sample again and again, from a place that the seed chooses."""
    spoken = decode_wav(SAMPLE.read_bytes()).samples
    at = int(np.random.default_rng(seed).integers(len(spoken)))
    return Waveform(np.resize(np.roll(spoken, at), round(seconds * SAMPLE_RATE)))


def load_stock(folder: Path) -> Transcribe:
    """The path of the keras.io example: TensorFlow features, ``predict`` on one clip, TensorFlow's greedy decoder.

    Source: https://keras.io/examples/audio/ctc_asr/
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    card = read_card(folder)
    file = check_file(card, folder, WEIGHTS)
    model = load_weights_file(file, card.rnn_layers, card.rnn_units, card.alphabet.size)
    alphabet = Alphabet()

    def transcribe(waveform: Waveform) -> str:
        stft = tf.signal.stft(waveform.samples, frame_length=FRAME_LENGTH, frame_step=FRAME_STEP, fft_length=FFT_LENGTH)
        frames = tf.math.pow(tf.abs(stft), 0.5)
        frames -= tf.math.reduce_mean(frames, 1, keepdims=True)
        frames /= tf.math.reduce_std(frames, 1, keepdims=True) + 1e-10
        probabilities = model.predict(frames[None], verbose=0)
        log_probs = np.log(probabilities.transpose(1, 0, 2) + 1e-10)
        (decoded,), _ = tf.nn.ctc_greedy_decoder(log_probs, [len(log_probs)], blank_index=alphabet.blank)
        return alphabet.decode(decoded.values.numpy())

    return transcribe


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def where() -> dict[str, Any]:
    """The machine, its load and the commit, to stand beside every number."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=SAMPLE.parent, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "cores": available_cores(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip() or "unknown",
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    made.add_argument("--model", type=Path, default=SAMPLE.parents[1] / "Models" / "model1", help="its folder")
    made.add_argument("--json", type=Path, help="write the result there as well")
    return made


def report(result: dict[str, Any], rows: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Print where and what; write both as JSON if asked to."""
    print(", ".join(f"{key} {value}" for key, value in result["where"].items()))
    print(table(rows))
    if file:
        file.write_text(json.dumps({**result, "rows": list(rows)}, indent=2) + "\n", encoding="utf-8")
