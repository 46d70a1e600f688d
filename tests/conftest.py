"""Sound that the project makes itself, a tiny model, and the shipped one."""

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch._dynamo  # noqa: F401  first: Triton, of PyTorch's CUDA build, crashes the process if TensorFlow came before
from hypothesis import settings as hypothesis_settings
from starlette.testclient import TestClient

from api import create_app
from config import Settings
from predictor import SpeechPredictor
from speech.alphabet import Alphabet
from speech.model_card import WEIGHTS, ModelCard, sha256, write_card

hypothesis_settings.register_profile("untimed", deadline=None)  # how fast a busy machine is, is no property
hypothesis_settings.load_profile("untimed")

RATE = 22050


def make_wav(
    samples: np.ndarray, rate: int = RATE, channels: int = 1, bits: int = 16, tag: int = 1, extensible: bool = False
) -> bytes:
    """A WAV file written by hand: int16 samples (n,) as they are, whatever the header says of them."""
    body = samples.astype("<i2").tobytes()
    block = channels * bits // 8
    header = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * block, block, bits)
    if extensible:
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        header += struct.pack("<HHI", 22, bits, 4) + guid
    chunks = b"fmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def make_sound(seconds: float, seed: int = 0) -> np.ndarray:
    """int16 (n,): tones that come and go over a little noise, different for each seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(
        np.sin(2 * np.pi * rng.uniform(100, 4000) * time) * (np.sin(rng.uniform(1, 9) * time) > 0) for _ in range(5)
    )
    return (2000 * tones + rng.normal(0, 30, len(time))).astype(np.int16)


class FakeEngine:
    """An engine that writes one label for all steps of a clip, chosen by the sum of its frames; never a model."""

    def __init__(self, fail: Callable[[np.ndarray], bool] = lambda frames: False) -> None:
        self.fail, self.batches = fail, []

    def __call__(self, frames: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        self.batches.append(len(frames))
        if self.fail(frames):
            raise RuntimeError("secret: the engine broke")
        log_probs = np.full((len(frames), (frames.shape[1] + 1) // 2, Alphabet().size), -20.0, np.float32)
        for row, clip, n in zip(log_probs, frames, n_frames, strict=True):
            row[:, 1 + int(np.abs(clip[:n]).sum()) % 26] = 0.0
        return log_probs


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Defaults, but logs in a temporary folder; no variable of this machine counts."""
    return Settings(log_folder=tmp_path / "logs")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The app with a fake engine behind it, started and stopped."""
    with TestClient(create_app(settings, SpeechPredictor(FakeEngine()))) as started:
        yield started


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real, untrained 2 × 16 network in the shipped layout, exported."""
    from speech.model import build_model
    from training.export import export

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    model = build_model(2, 16)
    rng = np.random.default_rng(1)
    for weight in model.weights:  # nothing is left at its neutral start, and sums stay of the order of one
        name = weight.path.rpartition("/")[2]
        start = 1.0 if name in ("gamma", "moving_variance") else 0.0
        size = 3 / np.sqrt(np.prod(weight.shape[:-1])) if name.endswith("kernel") else 0.2
        weight.assign(start + size * rng.uniform(-1, 1, weight.shape))
    model.save(folder / WEIGHTS)
    alphabet = Alphabet()
    write_card(
        ModelCard("tiny", alphabet.characters, alphabet.blank, 2, 16, {WEIGHTS: sha256(folder / WEIGHTS)}), folder
    )
    export(folder)
    return folder


@pytest.fixture(scope="session")
def shipped_folder() -> Path:
    """Folder of the model that the service serves by default."""
    return Settings().model_folder


@pytest.fixture(scope="session")
def shipped(shipped_folder: Path) -> SpeechPredictor:
    """The model that the service serves by default."""
    return SpeechPredictor.load(shipped_folder, "onnx")


def upload(client: TestClient, data: bytes, **kwargs: object):
    """POST the bytes as the file of an upload."""
    return client.post("/upload/", files={"file": ("clip.wav", io.BytesIO(data), "audio/wav")}, **kwargs)
