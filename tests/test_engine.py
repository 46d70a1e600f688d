"""Engines agree with Keras' ``predict``, and a clip's answer does not depend on its neighbours."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from speech.audio import Waveform, decode_wav, from_pcm16
from speech.ctc import LogProbs, decode_greedy
from speech.engine import (
    LOADERS,
    ONE_AT_A_TIME,
    Engine,
    bfloat16_allowed,
    computes_bfloat16,
    load_engine,
    load_openvino,
)
from speech.errors import ModelMismatch, ModelNotFound
from speech.features import spectrogram
from speech.model import load_weights_file
from speech.model_card import ONNX, WEIGHTS, read_card, sha256
from tests.conftest import make_sound
from training.export import measure

CPU = Path("/proc/cpuinfo")
AMX = CPU.exists() and "amx_bf16" in CPU.read_text()
HELLO = Path(__file__).parents[1] / "samples" / "hello.wav"


@pytest.fixture(scope="session", params=["onnx", "keras", "openvino"])
def engine(request: pytest.FixtureRequest, shipped_folder: Path) -> Engine:
    """Each engine on the shipped weights, in float32."""
    card = read_card(shipped_folder)
    if request.param == "openvino":
        return load_openvino(card, shipped_folder, 1, "f32")
    return load_engine(card, shipped_folder, request.param)[1]


def clip(n_frames: int, seed: int = 0) -> np.ndarray:
    """Spectrogram of exactly so many frames of sound."""
    return spectrogram(from_pcm16(make_sound((n_frames * 160 + 200) / 22050, seed))).frames[:n_frames]


def alone(engine: Engine, frames: np.ndarray) -> np.ndarray:
    return engine(frames[None], np.array([len(frames)], np.int32))[0]


@pytest.mark.parametrize("n_frames", [2, 300, 1378, 3000])
def test_equals_keras_predict(engine: Engine, shipped_folder: Path, n_frames: int):
    """On speech, to 1e-4: but for one value in two hundred, of improbable labels, which may move a little further."""
    card = read_card(shipped_folder)
    model = load_weights_file(shipped_folder / WEIGHTS, card.rnn_layers, card.rnn_units, card.alphabet.size)
    spoken = np.resize(decode_wav(HELLO.read_bytes()).samples, n_frames * 160 + 200)
    frames = spectrogram(Waveform(spoken)).frames[:n_frames]
    found, expected = np.exp(alone(engine, frames)), model.predict(frames[None], verbose=0)[0]
    differences = np.abs(np.log(np.maximum(found, 1e-30)) - np.log(np.maximum(expected, 1e-30)))
    assert np.quantile(differences, 0.995) < 1e-4
    assert differences.max() < 1e-3


@pytest.mark.parametrize("lengths", [[100, 99, 1, 37], [251, 251], [3, 2, 400], [1700, 3, 1409]])
def test_padding_changes_nothing(engine: Engine, shipped_folder: Path, lengths: list[int]):
    alphabet = read_card(shipped_folder).alphabet
    clips = [clip(n, seed) for seed, n in enumerate(lengths)]
    batch = np.zeros((len(clips), max(lengths) + 11, 193), np.float32)
    for row, frames in zip(batch, clips, strict=True):
        row[: len(frames)] = frames
    together = engine(batch, np.array(lengths, np.int32))
    for values, frames in zip(together, clips, strict=True):
        single = alone(engine, frames)
        assert len(single) == (len(frames) + 1) // 2
        np.testing.assert_allclose(values[: len(single)], single, atol=1e-4)
        texts = [decode_greedy(LogProbs(v), alphabet).text for v in (values[: len(single)], single)]
        assert texts[0] == texts[1]


def test_bfloat16_hears_nearly_the_same(shipped_folder: Path):
    card = read_card(shipped_folder)
    exact, fast = (load_openvino(card, shipped_folder, 1, precision) for precision in ("f32", "bf16"))
    for seed, n in enumerate((900, 333, 1378, 34)):
        frames = clip(n, seed)
        assert np.abs(np.exp(alone(fast, frames)) - np.exp(alone(exact, frames))).mean() < 0.005


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_changes_nothing_in_bfloat16(shipped_folder: Path, threads: int):
    """Of very short clips, OpenVINO rounded one otherwise than several: log-probabilities moved by 0.1. With AMX, which
    was not at hand, they may still move a little."""
    fast = load_openvino(read_card(shipped_folder), shipped_folder, threads, "bf16")
    clips = [clip(n, seed) for seed, n in enumerate((900, 25, 10, 1378, 34, 16, 700, 1, 61))]
    for size in (2, 5, 9):
        batch = np.zeros((size, max(map(len, clips[:size])), 193), np.float32)
        for row, frames in zip(batch, clips, strict=False):
            row[: len(frames)] = frames
        together = fast(batch, np.array([len(frames) for frames in clips[:size]], np.int32))
        for values, frames in zip(together, clips, strict=False):
            single = alone(fast, frames)
            if AMX:
                assert np.abs(np.exp(values[: len(single)]) - np.exp(single)).mean() < 0.005
            else:
                np.testing.assert_allclose(values[: len(single)], single, atol=1e-3)


@pytest.mark.parametrize(
    "first",
    [
        "from predictor import SpeechPredictor as P; P.load(sys.argv[1], 'openvino').warm_up()",
        "from predictor import SpeechPredictor as P; P.load(sys.argv[1], 'auto').warm_up()",
        "from pathlib import Path; from speech.engine import computes_bfloat16; computes_bfloat16(Path('no file'))",
    ],
)
def test_openvino_tells_nobody_that_it_is_used(first: str, shipped_folder: Path, tmp_path: Path):
    """Its import alone sends an event to Google Analytics, and leaves a number for the user in the home directory."""
    code = f"import sys; {first}; print(*[m for m in sys.modules if 'openvino_telemetry.' in m])"
    environment = {**os.environ, "HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "CI": ""}
    found = subprocess.run(
        [sys.executable, "-c", code, shipped_folder.resolve()],
        env=environment, cwd=HELLO.parents[1], capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert found.stdout.strip() == ""
    assert not [*tmp_path.iterdir()]


def test_one_thread_at_a_time_is_in_openvino(shipped_folder: Path):
    """Two whose first clips came at once could wait for each other for ever, once in some dozen starts."""
    engine, frames = load_openvino(read_card(shipped_folder), shipped_folder, 1, "f32"), clip(300)
    with ThreadPoolExecutor(2) as pool:
        with ONE_AT_A_TIME:
            waiting = [pool.submit(alone, engine, frames) for _ in range(2)]
            assert not wait(waiting, timeout=0.5).done
        first, second = (done.result(timeout=60) for done in waiting)
    assert np.array_equal(first, second)


def test_openvino_refuses_layers_that_it_computes_wrongly(shipped_folder: Path, tmp_path: Path):
    """OpenVINO 2026.4 ignores the lengths of the clips in an ONNX GRU of both directions, as old exports had them."""
    parts = [("frames", (8, 2, 193)), ("weights", (2, 30, 193)), ("recurrent", (2, 30, 10)), ("bias", (2, 60))]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in parts]
    inputs.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, (2,)))
    outputs = [onnx.helper.make_tensor_value_info("log_probs", onnx.TensorProto.FLOAT, (8, 2, 2, 10))]
    names = [value.name for value in inputs]
    gru = onnx.helper.make_node("GRU", names, ["log_probs"], direction="bidirectional", hidden_size=10)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([gru], "old", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    card = read_card(shipped_folder)
    onnx.helper.set_model_props(model, {"weights_sha256": card.sha256[WEIGHTS]})
    onnx.save(model, tmp_path / ONNX)
    old = replace(card, sha256={**card.sha256, ONNX: sha256(tmp_path / ONNX)})
    with pytest.raises(ModelMismatch, match=r"python -m training\.export"):
        load_openvino(old, tmp_path, 1)


def test_bfloat16_must_have_been_measured_on_this_very_export(shipped_folder: Path):
    card = read_card(shipped_folder)
    capable = computes_bfloat16()
    measured = {"onnx": card.sha256[ONNX], "wer_change": -0.2}
    assert bfloat16_allowed(replace(card, reduced_precision=measured)) == capable
    for refused in ({}, {**measured, "wer_change": 0.21}, {**measured, "onnx": "0" * 64}):
        assert not bfloat16_allowed(replace(card, reduced_precision=refused))


def test_the_fastest_engine_that_may_be_used_is_taken(shipped_folder: Path, caplog: pytest.LogCaptureFixture):
    """OpenVINO where it may compute in bfloat16; where it then fails, the next one, with a line."""
    card = read_card(shipped_folder)
    measured = replace(card, reduced_precision={"onnx": card.sha256[ONNX], "wer_change": 0.0})
    assert load_engine(replace(card, reduced_precision={}), shipped_folder)[0] == "onnx"
    assert load_engine(measured, shipped_folder)[0] == ("openvino" if computes_bfloat16() else "onnx")
    assert not caplog.text


@pytest.mark.parametrize(("engine", "threads"), [("openvino", [3, 3, 2]), ("onnx", [3, 1, 2])])
def test_callers_share_the_cores_where_they_run_side_by_side(
    shipped_folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str, threads: list[int]
):
    given: list[int] = []
    monkeypatch.setattr("speech.engine.available_cores", lambda: 3)
    monkeypatch.setitem(LOADERS, engine, lambda card, folder, threads: given.append(threads))
    for number, callers in ((0, 1), (0, 2), (2, 2)):
        load_engine(read_card(shipped_folder), shipped_folder, engine, number, callers)
    assert given == threads


def test_a_cpu_without_bfloat16_measures_nothing(shipped_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """It would take float32 for it, without a word."""
    monkeypatch.setattr("training.export.computes_bfloat16", lambda: False)
    with pytest.raises(ModelMismatch, match="bfloat16"):
        measure(shipped_folder, [])


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6), padding=st.integers(0, 9))
def test_any_batch_gives_each_clip_its_own_answer(shipped, lengths: list[int], padding: int):
    clips = [clip(n, seed) for seed, n in enumerate(lengths)]
    batch = np.zeros((len(clips), max(lengths) + padding, 193), np.float32)
    for row, frames in zip(batch, clips, strict=True):
        row[: len(frames)] = frames
    together = shipped.engine(batch, np.array(lengths, np.int32))
    for values, frames in zip(together, clips, strict=True):
        single = alone(shipped.engine, frames)
        np.testing.assert_allclose(values[: len(single)], single, atol=1e-4)


def changed(folder: Path, to: Path, **card: object) -> Path:
    """A copy of a model's folder whose card says something else."""
    shutil.copytree(folder, to)
    written = json.loads((to / "card.json").read_text())
    (to / "card.json").write_text(json.dumps({**written, **card}))
    return to


def test_a_missing_export_falls_back_to_keras_with_a_line(tiny_model, tmp_path, caplog):
    folder = changed(tiny_model, tmp_path / "copy")
    (folder / ONNX).unlink()
    with pytest.raises(ModelNotFound, match="model.onnx"):
        load_engine(read_card(folder), folder, "onnx")
    name, engine = load_engine(read_card(folder), folder, "auto")
    assert name == "keras"
    assert "falling back" in caplog.text
    reference = load_engine(read_card(tiny_model), tiny_model, "onnx")[1]
    np.testing.assert_allclose(alone(engine, clip(50)), alone(reference, clip(50)), atol=1e-4)


def test_a_stale_export_is_refused(tiny_model, tmp_path):
    sums = {**json.loads((tiny_model / "card.json").read_text())["sha256"], WEIGHTS: "0" * 64}
    folder = changed(tiny_model, tmp_path / "copy", sha256=sums)
    with pytest.raises(ModelMismatch, match=r"stale.*training\.export"):
        load_engine(read_card(folder), folder, "onnx")
    with pytest.raises(ModelMismatch, match="SHA-256 of model.keras"):
        load_engine(read_card(folder), folder, "auto")
