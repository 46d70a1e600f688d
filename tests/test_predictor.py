"""The pipeline, on the tiny and on the shipped model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest

from predictor import SpeechPredictor, main
from speech.alphabet import normalise_text
from speech.audio import decode_wav
from speech.errors import AudioTooShort, InferenceFailed, ModelNotFound, NotAWav
from tests.conftest import FakeEngine, make_sound, make_wav

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "hello.wav"


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> SpeechPredictor:
    return SpeechPredictor.load(tiny_model)


def test_a_path_bytes_a_waveform_and_samples_are_the_same_sound(tiny: SpeechPredictor):
    data = SAMPLE.read_bytes()
    waveform = decode_wav(data)
    first, *others = [
        tiny.encode_single_sample(audio) for audio in (SAMPLE, str(SAMPLE), data, waveform, waveform.samples)
    ]
    assert first.dtype == np.float32
    assert first.shape[1] == 193
    assert all(np.array_equal(first, other) for other in others)


def test_the_three_steps_are_transcribe(tiny: SpeechPredictor):
    predictions = tiny.make_prediction(tiny.encode_single_sample(SAMPLE))
    assert predictions.shape[2] == tiny.alphabet.size
    np.testing.assert_allclose(np.exp(predictions).sum(axis=2), 1, atol=1e-4)
    assert tiny.decode_batch_predictions(predictions) == [tiny.transcribe(SAMPLE).text]
    assert tiny.decode_batch_predictions(np.exp(predictions)) == [tiny.transcribe(SAMPLE).text]


def test_a_batch_of_spectrograms_is_predicted_at_once(tiny: SpeechPredictor):
    frames = np.stack([tiny.encode_single_sample(make_wav(make_sound(0.5, seed))) for seed in range(3)])
    assert tiny.make_prediction(frames).shape == (3, (frames.shape[1] + 1) // 2, 32)


def test_a_batch_of_recordings_is_each_of_them_alone(shipped: SpeechPredictor):
    recordings = [make_wav(make_sound(seconds, seed)) for seed, seconds in enumerate((0.5, 0.733, 1.2))]
    recordings.append(SAMPLE.read_bytes())
    assert [t.text for t in shipped.transcribe_batch(recordings)] == [shipped.transcribe(r).text for r in recordings]


def test_errors_come_through():
    with pytest.raises(NotAWav):
        SpeechPredictor(FakeEngine()).transcribe(b"no sound at all")
    with pytest.raises(AudioTooShort):
        SpeechPredictor(FakeEngine()).transcribe(make_wav(make_sound(0.01)))
    with pytest.raises(InferenceFailed, match="engine broke"):
        SpeechPredictor(FakeEngine(fail=lambda frames: True)).transcribe(make_wav(make_sound(1)))


def test_the_shipped_model_hears_the_sample(shipped: SpeechPredictor):
    """The golden clip: what the README says of it is what comes out, and it is near what was said."""
    text = shipped.transcribe(SAMPLE).text
    assert text in (ROOT / "README.md").read_text(encoding="utf-8")
    said = normalise_text((ROOT / "samples" / "hello.txt").read_text(encoding="utf-8"))
    assert jiwer.cer(said, text) < 0.5


def test_beam_search_is_what_a_model_with_a_language_model_does(
    shipped_folder: Path, shipped: SpeechPredictor, tmp_path: Path
):
    beam = SpeechPredictor.load(shipped_folder, decoder="beam").transcribe(SAMPLE)
    said = normalise_text((ROOT / "samples" / "hello.txt").read_text(encoding="utf-8"))
    assert jiwer.cer(said, beam.text) < 0.6
    assert beam.text == " ".join(word.text for word in beam.words)
    copy = shutil.copytree(shipped_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint*"))
    (copy / "lm.npz").unlink()
    with pytest.raises(ModelNotFound, match="lm.npz"):
        SpeechPredictor.load(copy, decoder="beam")
    greedy = SpeechPredictor.load(shipped_folder, decoder="greedy").transcribe(SAMPLE).text
    assert SpeechPredictor.load(copy, decoder="greedy").transcribe(SAMPLE).text == greedy != beam.text
    card = json.loads((copy / "card.json").read_text(encoding="utf-8"))
    del card["sha256"]["lm.npz"]
    (copy / "card.json").write_text(json.dumps(card), encoding="utf-8")
    assert SpeechPredictor.load(copy).transcribe(SAMPLE).text == greedy  # auto: there is no language model
    assert shipped.transcribe(SAMPLE).text == beam.text


def test_the_shipped_model_hears_no_words_in_silence(shipped: SpeechPredictor):
    assert shipped.transcribe(np.zeros(5 * 22050, np.float32)).text == ""


def test_the_command_line_prints_texts_and_says_what_failed(shipped, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    text = shipped.transcribe(SAMPLE).text
    assert main([str(SAMPLE)]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert main([str(SAMPLE), str(tmp_path / "bad.wav"), str(tmp_path / "none.wav")]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{SAMPLE}: {text}\n"
    assert "NotAWav" in captured.err
    assert "FileNotFoundError" in captured.err


def test_the_command_line_takes_no_longer_files_than_an_upload(shipped, tmp_path, capsys, monkeypatch):
    (tmp_path / "long.wav").write_bytes(make_wav(make_sound(3.6)))
    monkeypatch.setenv("STT_MAX_SECONDS", "3.5")
    assert main([str(tmp_path / "long.wav"), str(SAMPLE)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{SAMPLE}: {shipped.transcribe(SAMPLE).text}\n"
    assert captured.err == f"{tmp_path / 'long.wav'}: AudioTooLong: expected at most 3.5 s of sound, found 3.6 s\n"


def test_the_command_line_says_which_model_is_missing(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "predictor.py", str(SAMPLE)],
        cwd=ROOT, env={"STT_MODEL": str(tmp_path / "none")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "card.json" in run.stderr
    assert "Traceback" not in run.stderr


def test_serving_needs_no_tensorflow():
    code = (
        "import sys; from predictor import SpeechPredictor; from config import Settings\n"
        "print(SpeechPredictor.load(Settings().model_folder).transcribe(sys.argv[1]).text)\n"
        "sys.exit(bool({'tensorflow', 'keras', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(SAMPLE)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
