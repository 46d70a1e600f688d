"""Training: the PyTorch twin computes what Keras computes, and a run on made-up sound learns, stops and goes on."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from predictor import SpeechPredictor
from speech.alphabet import Alphabet
from speech.engine import computes_bfloat16
from speech.errors import ModelMismatch
from speech.formats import decode_audio
from speech.model_card import ModelCard, read_card, write_card
from training import ray_train
from training.augment import Augmentation
from training.average import main as average
from training.dataset import Clip, Utterance, batches, load_audio, load_clips, read_lines, read_utterances, repeat
from training.evaluate import main as evaluate
from training.history import more, of_model
from training.muon import Muon
from training.publish import _commit, write_weights
from training.publish import main as publish
from training.spectral import STEP
from training.torch_model import BiGru, Network, SpectralConv
from training.train import Recipe, Trainer, ctc_loss, load_splits, main
from training.workers import Workers

RATE = 22050
TONES = dict(zip("abcdefgh", np.geomspace(300, 5000, 8), strict=True))


def speak(text: str, rng: np.random.Generator) -> np.ndarray:
    """float32 (n,): one tone for each letter, a pause for a space."""
    parts = []
    for letter in text:
        time = np.arange(round(RATE * rng.uniform(0.1, 0.14))) / RATE
        parts.append(0.3 * np.sin(2 * np.pi * TONES[letter] * time) if letter != " " else 0 * time)
    return (np.concatenate(parts) + rng.normal(0, 0.001, sum(map(len, parts)))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 60 + 6 clips of tones."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = [["id", "path", "corpus", "speaker", "split", "text"]]
    for i in range(66):
        text = str(rng.choice(list(TONES)))
        soundfile.write(folder / f"{i}.flac", speak(text, rng), RATE)
        rows.append([str(i), f"{i}.flac", "tones", "nobody", "dev" if i >= 60 else "train", text.upper() + "."])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_the_twin_computes_what_keras_computes(tmp_path: Path):
    from speech.engine import load_keras
    from speech.model_card import WEIGHTS, ModelCard, sha256

    torch.manual_seed(0)
    network = Network(32, 2, 12, 0.0).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
        for layer in network.rnn:  # what is kept is rounded to float16
            for part in (layer.kernel, layer.recurrent):
                part.copy_(part.half().float())
        for layer in (network.dense_1, network.dense_2):
            layer.weight.copy_(layer.weight.half().float())
    write_weights(network.keras_weights(), 2, 12, tmp_path)
    alphabet = Alphabet()
    card = ModelCard("x", alphabet.characters, alphabet.blank, 2, 12, {WEIGHTS: sha256(tmp_path / WEIGHTS)})
    engine = load_keras(card, tmp_path, 0)
    lengths = np.array([90, 71, 8], np.int32)
    frames = np.zeros((3, 90, 193), np.float32)
    for row, n in zip(frames, lengths, strict=True):
        row[:n] = np.random.default_rng(n).standard_normal((n, 193))
    expected = engine(frames, lengths)
    with torch.no_grad():
        found = network(torch.from_numpy(frames), torch.from_numpy(lengths)).transpose(0, 1).numpy()
    for want, have, n in zip(expected, found, lengths, strict=True):
        np.testing.assert_allclose(have[: (n + 1) // 2], want[: (n + 1) // 2], atol=1e-4)


def test_a_run_needs_no_clips_to_score(corpus: Path, tmp_path: Path):
    train, _ = load_splits([corpus], tmp_path / "cache")
    trainer = Trainer(Recipe(rnn_layers=1, rnn_units=4, epochs=1), train[:4], [], tmp_path)
    trainer.run()
    assert (trainer.step, trainer.checkpoint.exists()) == (1, True)


def test_a_run_can_start_from_a_model(tiny_model: Path, corpus: Path, tmp_path: Path):
    train, dev = load_splits([corpus], tmp_path / "cache")
    trainer = Trainer(Recipe(rnn_layers=2, rnn_units=16), train, dev, tmp_path)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "decoder.json").write_text("{}")
    trainer.start_from(tmp_path / "model")
    assert (tmp_path / "decoder.json").exists()
    network = trainer.averaged.eval()
    network.dtype = torch.float32
    frames = np.random.default_rng(0).standard_normal((1, 60, 193), np.float32)
    expected = SpeechPredictor.load(tiny_model).make_prediction(frames)
    with torch.no_grad():
        found = network(torch.from_numpy(frames), torch.tensor([60])).transpose(0, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(ModelMismatch, match="expected a network of"):
        Trainer(Recipe(rnn_layers=2, rnn_units=8), train, dev, tmp_path).start_from(tiny_model)


@pytest.mark.parametrize("n_steps", [1, 30, STEP, 2 * STEP + 1])
def test_the_convolution_and_its_gradients_are_pytorchs(n_steps: int):
    torch.manual_seed(0)
    layer = SpectralConv(32)
    x = torch.randn(2, n_steps, 97, 32, requires_grad=True)
    direct = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), layer.weight, stride=(1, 2), padding=(5, 10))
    grad = torch.randn(2, n_steps, 49, 32)
    pairs = []
    for y in (direct.permute(0, 2, 3, 1), layer(x)):
        pairs.append((y, *torch.autograd.grad(y, (x, layer.weight), grad)))
    for expected, found in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_gradients_of_the_gru_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    layer = BiGru(5, 4)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(7, 2, 5)
    lengths = torch.tensor([7, 4])
    steps = torch.arange(7)
    reverse = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps).t()

    def plain() -> torch.Tensor:
        rows = []
        for b, n in enumerate(lengths.tolist()):
            directions = []
            for d in range(2):
                h, states = torch.zeros(4), []
                for t in range(n) if d == 0 else reversed(range(n)):
                    xz, xr, xh = (x[t, b] @ layer.kernel[d] + layer.bias[d, 0]).split(4)
                    hz, hr, hh = (h @ layer.recurrent[d] + layer.bias[d, 1]).split(4)
                    z, r = torch.sigmoid(xz + hz), torch.sigmoid(xr + hr)
                    h = z * h + (1 - z) * torch.tanh(xh + r * hh)
                    states.append(h)
                directions.append(torch.stack(states if d == 0 else states[::-1]))
            rows.append(torch.cat(directions, -1))
        return torch.cat(rows)

    expected = plain()
    out = layer(x, reverse, torch.float32)
    found = torch.cat([out[:n, b] for b, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(expected)
    for want, have in zip(
        torch.autograd.grad((expected * weights).sum(), list(layer.parameters())),
        torch.autograd.grad((found * weights).sum(), list(layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-3)


def test_a_step_stays_on_the_device_of_the_weights():
    network = Network(32, 2, 16, 0.1).to("meta")  # computes shapes only, but refuses tensors of other devices, as a GPU
    network.dtype = torch.bfloat16
    hidden = list(network.hidden_matrices())
    others = [p for p in network.parameters() if not any(p is matrix for matrix in hidden)]
    log_probs = network(torch.empty(2, 60, 193, device="meta"), torch.tensor([60, 40]).to("meta"))
    log_probs.sum().backward()
    Muon(hidden, 1e-3, 1e-2, dtype=torch.bfloat16).step()
    torch.optim.Adam(others).step()
    assert log_probs.device == network.device == hidden[0].grad.device == torch.device("meta")


def test_a_loss_does_not_depend_on_padding():
    torch.manual_seed(0)
    network = Network(32, 1, 8, 0.0).eval()
    frames, n_frames = torch.randn(1, 40, 193), torch.tensor([40])
    padded = torch.cat([frames, torch.zeros(1, 20, 193)], 1)
    with torch.no_grad():
        losses = [ctc_loss(network, f, n_frames, ["ab"], Alphabet()).item() for f in (frames, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_text_is_learnt_as_blanks_alone_and_weighs_no_more_than_a_text():
    torch.manual_seed(0)
    network = Network(32, 1, 8, 0.0)
    frames, n_frames = torch.randn(2, 680, 193), torch.tensor([680, 680])
    loss = ctc_loss(network, frames, n_frames, ["", ""], Alphabet())
    blanks = -network(frames, n_frames)[:, :, Alphabet().blank].sum(0)
    assert loss.item() == pytest.approx((blanks / (340 / 17)).mean().item(), rel=1e-4)
    text = "a" + 19 * "b"
    assert loss.item() < 2 * ctc_loss(network, frames, n_frames, [text, text], Alphabet()).item()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_run_learns_stops_goes_on_and_is_published(corpus: Path, tmp_path: Path, capsys):
    arguments = ["--data", str(corpus), "--out", str(tmp_path / "tones"), "--cache", str(tmp_path / "cache"),
                 "--rnn-layers", "1", "--rnn-units", "32", "--dropout", "0", "--batch-seconds", "0.6",
                 "--warmup-steps", "10", "--learning-rate", "0.003", "--average", "0.9", "--mask-from-epoch", "99"]  # fmt: skip
    main([*arguments, "--epochs", "2", "--no-publish"])
    assert not (tmp_path / "tones" / "model.keras").exists()
    main([*arguments, "--epochs", "30"])
    with (tmp_path / "tones" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["value"]) for row in rows if row["name"] == "loss"]
    assert np.mean(losses[-5:]) < 2.0 < losses[0]  # telling eight tones apart by chance would be log 8 = 2.08
    assert {int(row["epoch"]) for row in rows} >= {1, 29}  # the second call went on where the first one stopped
    assert "greedily decoded\n| corpus" in (printed := capsys.readouterr().out)
    assert "| tones | 6 |" in printed
    predictor = SpeechPredictor.load(tmp_path / "tones")
    _, dev = load_splits([corpus], tmp_path / "cache")
    heard = predictor.transcribe(dev[0].samples.astype(np.float32) / 32768).text
    assert set(heard) <= set("abcdefgh ")
    for name in ("card.json", "README.md", "curves.png", "model.onnx"):
        assert (tmp_path / "tones" / name).stat().st_size > 100
    card = read_card(tmp_path / "tones")
    assert card.reduced_precision.get("clips", 0) == (len(dev) if computes_bfloat16() else 0)
    recipe = tmp_path / "tones" / "recipe.json"
    longest = sorted(clip.seconds for clip in load_splits([corpus], tmp_path / "cache")[0])[-3]
    recipe.write_text(
        json.dumps({**json.loads(recipe.read_text()), "max_seconds": longest, "data": {}})
    )  # an older one
    publish([str(tmp_path / "tones"), "--data", str(corpus), "--cache", str(tmp_path / "cache")])
    again = read_card(tmp_path / "tones").training
    assert again["command"] == card.training["command"]
    assert again["data"]["tones"]["clips"] < card.training["data"]["tones"]["clips"]  # the longest were left out


def test_a_card_tells_of_all_runs_that_led_to_the_model(corpus: Path, tmp_path: Path):
    """The first is stopped and goes on otherwise; another begins with its model, on other data without a dev split."""
    first, tuned, both = (tmp_path / name for name in ("first", "tuned", "both"))
    small = ["--rnn-layers", "1", "--rnn-units", "8", "--batch-seconds", "9", "--cache", str(tmp_path / "cache")]
    main(["--data", str(corpus), "--out", str(first), *small, "--epochs", "1", "--no-publish"])
    main(["--data", str(corpus), "--out", str(first), *small, "--epochs", "2", "--no-publish"])
    publish([str(first), "--data", str(corpus), "--cache", str(tmp_path / "cache")])
    rows = [["path", "corpus", "text", "source", "licence"]]
    rows += [[str(corpus / f"{i}.flac"), "mine", "a", f"mine.example/{i % 2}", "CC BY 4.0"] for i in range(6)]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    mine = ["--data", str(tmp_path / "mine.csv")]
    main([*mine, "--init", str(first), "--out", str(tuned), *small, "--epochs", "1"])
    known, found = read_card(first).training, read_card(tuned).training
    assert found["data"]["tones"] == known["data"]["tones"]
    assert found["data"]["mine"]["source"] == "mine.example/0; CC BY 4.0 / mine.example/1; CC BY 4.0"
    commands = found["command"].splitlines()
    assert ["--epochs 1" in commands[0], "--epochs 2" in commands[1], f"--init {first}" in commands[2]] == 3 * [True]
    assert commands[:2] == known["command"].splitlines() and len(commands) == 3
    assert found["steps"] > known["steps"] and found["hours_heard"] >= known["hours_heard"]
    text = (tuned / "README.md").read_text()
    assert (
        "- tones: 60 clips" in text
        and "- mine: 6 clips" in text
        and "Not measured: " in text
        and "](" not in text.split("![")[0]
    )
    average([str(first / "checkpoint.pt"), str(tuned / "checkpoint.pt"), "--weights", "0.5", "0.5", "--out", str(both)])
    publish([str(both), *mine, "--cache", str(tmp_path / "cache")])
    mean = read_card(both).training
    assert mean["command"].splitlines()[:3] == commands and "training.average" in mean["command"].splitlines()[3]
    assert (mean["data"], mean["steps"]) == (found["data"], found["steps"])


def test_a_corpus_of_two_sources_is_credited_to_both():
    heard = {"source": "Alice; CC BY", "clips": 3, "hours": 1.0}
    both = more({"mine": heard, "a": heard}, {"mine": {"source": "Bob; CC0", "clips": 2, "hours": 0.5}})
    assert both == {"a": heard, "mine": {**heard, "source": "Bob; CC0 / Alice; CC BY"}}
    assert more(both, both) == both


def test_a_converted_model_is_named_where_it_came_from(tmp_path: Path):
    origin = {"file": "old.h5", "sha256": "abc"}
    write_card(
        ModelCard("x", Alphabet().characters, Alphabet().blank, 1, 8, {}, training={"converted_from": origin}), tmp_path
    )
    assert of_model(tmp_path) == {"command": "python -m training.convert    # old.h5, SHA-256 abc"}


def test_resuming_restores_everything(corpus: Path, tmp_path: Path):
    train, dev = load_splits([corpus], tmp_path / "cache")
    recipe = Recipe(rnn_layers=1, rnn_units=8, epochs=1, batch_seconds=20, seed=3)
    first = Trainer(recipe, train, dev, tmp_path)
    first.run()
    second = Trainer(recipe, train, dev, tmp_path)
    assert (second.step, second.epoch, second.heard) == (first.step, first.epoch, first.heard)
    for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for again, before in zip(second.optimizers, first.optimizers, strict=True):
        assert again.state_dict()["state"].keys() == before.state_dict()["state"].keys() != set()


def test_the_convolutions_can_learn_less_often(corpus: Path, tmp_path: Path):
    train, dev = load_splits([corpus], tmp_path / "cache")
    trainer = Trainer(Recipe(rnn_layers=1, rnn_units=8, batch_seconds=5, conv_every=3), train, dev, tmp_path)
    moved = []
    for _ in range(6):
        before = [p.detach().clone() for p in trainer.network.front_parameters()]
        rest = trainer.network.dense_2.weight.detach().clone()
        trainer.learn(train[:2], np.random.default_rng(0))
        assert not torch.equal(rest, trainer.network.dense_2.weight)
        moved.append(not all(map(torch.equal, before, trainer.network.front_parameters())))
    assert moved == [True, False, False, True, False, False]


def test_a_run_that_is_stopped_within_an_epoch_hears_the_rest_of_it(corpus: Path, tmp_path: Path):
    train, dev = load_splits([corpus], tmp_path / "cache")
    whole = Recipe(rnn_layers=1, rnn_units=8, epochs=1, batch_seconds=2)
    cut = Trainer(replace(whole, hours=1e-9), train, dev, tmp_path)  # out of time after the first batch
    cut.run()
    assert (cut.step, cut.epoch, cut.position) == (1, 0, 1)
    rest = Trainer(whole, train, dev, tmp_path)
    rest.run()
    assert (rest.step, rest.epoch, rest.position) == (cut.length, 1, 0)
    assert rest.heard == pytest.approx(sum(clip.seconds for clip in train))


def test_a_run_stops_when_dev_gets_no_better_and_keeps_the_best(corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("training.train.SAVE_SECONDS", 0)
    scored: list[list[torch.Tensor]] = []

    def error_rates(network: Network, *_: object) -> dict[str, tuple[float, float]]:
        scored.append([value.clone() for value in network.state_dict().values()])
        return {"tones": ([90.0, 70.0, 80.0, 70.0, 75.0, 70.0][len(scored) - 1], 50.0)}

    monkeypatch.setattr("training.train.error_rates", error_rates)
    train, dev = load_splits([corpus], tmp_path / "cache")
    trainer = Trainer(Recipe(rnn_layers=1, rnn_units=8, batch_seconds=2, patience=3), train, dev, tmp_path)
    trainer.run()
    assert trainer.step == 5
    assert not all(map(torch.equal, scored[1], scored[4]))
    again = Trainer(Recipe(rnn_layers=1, rnn_units=8, patience=3), train, dev, tmp_path)
    assert all(map(torch.equal, again.averaged.state_dict().values(), scored[1]))


def test_the_best_weights_are_kept_when_the_epochs_end(corpus: Path, tmp_path: Path, monkeypatch, caplog):
    scores = iter([10.0, 50.0, 50.0])
    monkeypatch.setattr("training.train.error_rates", lambda *_: {"tones": (next(scores), 0.0)})
    monkeypatch.setattr("training.train.SAVE_SECONDS", 0)
    monkeypatch.setattr(Trainer, "progress", lambda trainer: trainer.step / 2)
    train, dev = load_splits([corpus], tmp_path / "cache")
    with caplog.at_level(logging.INFO):
        trainer = Trainer(
            Recipe(rnn_layers=1, rnn_units=8, batch_seconds=2, patience=9, epochs=9), train, dev, tmp_path
        )
        trainer.run()
    assert trainer.best[0] == 10.0
    assert "kept the best weights, of 10.0 % WER" in caplog.text
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["averaged"]
    assert all(torch.equal(saved[name], value) for name, value in trainer.best[1].items())


def test_what_patience_ended_does_not_go_on(corpus: Path, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr("training.train.error_rates", lambda *_: {"tones": (50.0, 0.0)})
    train, dev = load_splits([corpus], tmp_path / "cache")
    recipe = Recipe(rnn_layers=1, rnn_units=8, batch_seconds=2, patience=2)
    before = Trainer(recipe, train, dev, tmp_path)
    before.stale = 2
    before.write()
    trainer = Trainer(recipe, train, dev, tmp_path)
    trainer.run()
    assert trainer.step == 0
    assert "a higher --patience goes on with it" in caplog.text
    more = Trainer(replace(recipe, patience=3, epochs=1), train, dev, tmp_path)
    more.run()
    assert more.step > 0


def test_a_checkpoint_is_there_before_scoring(corpus: Path, tmp_path: Path, monkeypatch):
    def fails(*_: object) -> None:
        assert (tmp_path / "checkpoint.pt").exists()
        raise MemoryError

    monkeypatch.setattr("training.train.error_rates", fails)
    trainer = Trainer(Recipe(rnn_layers=1, rnn_units=8), *load_splits([corpus], tmp_path / "cache"), tmp_path)
    with pytest.raises(MemoryError):
        trainer.save()


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(corpus: Path, tmp_path: Path, monkeypatch):
    train, dev = load_splits([corpus], tmp_path / "cache")
    recipe = Recipe(rnn_layers=2, rnn_units=8, batch_seconds=2, epochs=1)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, stopped = (Trainer(recipe, train, dev, tmp_path / name) for name in ("whole", "stopped"))
    whole.run()
    learn, batches_left = stopped.learn, iter([True, True])

    def interrupted(*batch: Any) -> float:
        if not next(batches_left, False):
            raise KeyboardInterrupt
        return learn(*batch)

    monkeypatch.setattr(stopped, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    stopped.write()
    rest = Trainer(recipe, train, dev, tmp_path / "stopped")
    rest.run()
    assert rest.step == whole.step > 2
    assert all(map(torch.equal, rest.averaged.state_dict().values(), whole.averaged.state_dict().values()))


def test_a_run_that_goes_on_decays_as_asked(corpus: Path, tmp_path: Path):
    train, dev = load_splits([corpus], tmp_path / "cache")
    recipe = Recipe(rnn_layers=1, rnn_units=8)
    Trainer(recipe, train, dev, tmp_path).write()
    again = Trainer(replace(recipe, weight_decay=0.5), train, dev, tmp_path)
    assert {group["weight_decay"] for group in again.optimizers[0].param_groups} == {0.5}


def test_what_augmentation_leaves_too_short_is_padded_and_vocal_tracts_change_from_the_first_epoch(tmp_path: Path):
    short = Clip(Utterance("a", tmp_path, "a", "short", "", "train"), np.full(260, 1000, np.int16), "a")
    heard: list[float] = []

    class Faster(Augmentation):
        def sound(self, samples: np.ndarray, rng: np.random.Generator, speech: bool = True) -> np.ndarray:
            return samples[:200]

        def vocal_tract(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            heard.append(len(frames))
            return frames

    recipe = Recipe(rnn_layers=1, rnn_units=8, mask_from_epoch=1)
    trainer = Trainer(recipe, [short], [], tmp_path, augmentation=Faster())
    assert np.isfinite(trainer.learn([short], np.random.default_rng(0)))
    assert heard == [1]


def test_two_workers_share_an_epoch_and_agree_on_the_weights(corpus: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from training import train\n"
        "class Workers(train.Workers):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        state = {'a': torch.full((2, 3), 1.0 + self.rank), 'b': torch.tensor([10.0]), 'n': torch.tensor(self.rank)}\n"
        "        self.merge(state, 1 + 2 * self.rank)\n"
        "        assert torch.equal(state['a'], torch.full((2, 3), (1 * 1.0 + 3 * 2.0) / 4)), state\n"
        "        assert (state['b'].item(), state['n'].item()) == (10.0, 0), state\n"
        "        assert self.sum(1, self.rank) == [2, 1]\n"
        "train.Workers = Workers\n"
        "train.main()\n"
        "assert not torch.distributed.is_initialized()\n"  # left open, it may abort the process as that ends
    )  # fmt: skip
    arguments = ["--data", str(corpus), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--epochs", "1",
                 "--rnn-layers", "1", "--rnn-units", "8", "--batch-seconds", "0.6", "--no-publish"]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*launch, str(script), *arguments], check=True, timeout=300, env=environment)
    train, _ = load_splits([corpus], tmp_path / "cache")
    progress = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]
    plan = list(batches(train, 0.6, np.random.default_rng((1, 0)), by_length=True))
    assert progress[:2] == (len(plan), 1)
    assert progress[3] == pytest.approx(sum(clip.seconds for clip in train))  # every clip once, by one of the two


def test_workers_of_one_machine_share_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch):
    assert Workers().device(0) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [Workers().device(gpus) for gpus in (1, 2, 8)] == [torch.device("cuda", i) for i in (0, 1, 3)]


def test_a_worker_of_ray_trains_in_the_folder_of_the_command(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # and back again
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data").symlink_to(corpus)
    arguments = ["--data", "data", "--out", "run", "--cache", "cache", "--epochs", "1", "--rnn-layers", "1", "--rnn-units", "8",
                 "--no-publish"]  # fmt: skip
    ray_train.work({"folder": str(folder), "arguments": arguments})
    assert (folder / "run" / "checkpoint.pt").exists()
    with (folder / "run" / "log.csv").open() as lines:  # however short the run: its curves are drawn from it
        assert next(csv.DictReader(lines))["name"] == "loss"


def test_without_ray_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'pip install "ray\[default,train\]"'):
        ray_train.main(["--out", str(tmp_path)])


def test_workers_wait_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}

    def taken(*_: object, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(fit=lambda: None)

    ray = SimpleNamespace(RunConfig=taken, ScalingConfig=taken, TorchConfig=taken, TorchTrainer=taken)
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, ray)
    ray_train.main(["--out", str(tmp_path)])
    assert given["timeout_s"] == 86400
    monkeypatch.setattr(torch.distributed, "init_process_group", taken)
    monkeypatch.setenv("WORLD_SIZE", "2")
    Workers()
    assert given["timeout"].total_seconds() == 86400


def test_a_broken_recording_is_named_counted_and_skipped(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "fork")  # of a process with threads, as here, it may hang for ever
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "broken.flac").write_bytes(b"no sound")
    soundfile.write(folder / "good.wav", np.zeros(5000), 16000)
    (folder / "manifest.csv").write_text("path,text\nbroken.flac,one\nmissing.flac,two\ngood.wav,three\ngood.wav,42\n")
    with caplog.at_level(logging.WARNING):
        clips = load_clips(read_utterances(folder), tmp_path / "cache")
    assert [clip.text for clip in clips] == ["three"]
    assert "broken.flac" in caplog.text
    assert "missing.flac" in caplog.text
    assert "3 of 4 recordings skipped" in caplog.text


def test_recordings_without_a_split_for_scoring_are_trained_on(tmp_path: Path):
    soundfile.write(tmp_path / "good.wav", np.zeros(5000), RATE)
    (tmp_path / "manifest.csv").write_text("path,text\ngood.wav,three\n")
    train, dev = load_splits([tmp_path], tmp_path / "cache")
    assert [clip.text for clip in train] == ["three"]
    assert dev == []


def test_the_layouts_of_ljspeech_and_librispeech_are_read(tmp_path: Path):
    lj = tmp_path / "LJSpeech-1.1"
    lj.mkdir()
    (lj / "metadata.csv").write_text('LJ001-0001|In 1455 "he" said|In fourteen fifty-five "he" said\n')
    (utterance,) = read_utterances(lj)
    assert (utterance.text, utterance.path) == ('In fourteen fifty-five "he" said', lj / "wavs" / "LJ001-0001.wav")
    libri = tmp_path / "LibriSpeech" / "84" / "121"
    libri.mkdir(parents=True)
    (libri / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT\n")
    (tmp_path / "x").mkdir()
    first, second = read_utterances(tmp_path / "LibriSpeech")
    assert (first.text, first.speaker, first.path) == ("GO DO YOU HEAR", "84", libri / "84-121-0000.flac")
    assert second.id == "84-121-0001"
    assert (first.corpus, utterance.corpus) == ("librispeech", "LJSpeech-1.1")
    assert {u.corpus for u in read_utterances(libri.parents[1].rename(tmp_path / "x" / "LibriSpeech").parent)} == {
        "librispeech"
    }
    (tmp_path / "x" / "LibriSpeech").rename(tmp_path / "our voices")
    assert {u.corpus for u in read_utterances(tmp_path / "our voices")} == {"our voices"}  # only laid out like it
    with pytest.raises(FileNotFoundError, match="manifest"):
        read_utterances(tmp_path / "wherever")


def test_a_corpus_is_named_by_its_folder_from_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "voices"
    folder.mkdir()
    (folder / "manifest.csv").write_text("path,text\na.wav,one\n")
    monkeypatch.chdir(folder)
    assert {u.corpus for given in (".", "manifest.csv", folder) for u in read_utterances(Path(given))} == {"voices"}


def test_an_epoch_has_a_clip_however_seldom_its_corpus_is_drawn(tmp_path: Path):
    clip = Clip(Utterance("a", tmp_path, "a", "one", "", ""), np.zeros(22050, np.int16), "a")
    assert repeat([clip], {"one": 1e-9}, np.random.default_rng(0)) == [clip]


def test_samples_without_a_header_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.raw").write_bytes(bytes(9999))
    assert load_clips([Utterance("a", tmp_path / "a.raw", "a", "one", "", "")], tmp_path / "cache") == []
    assert "a.raw" in caplog.text


def test_a_manifest_as_excel_saves_it_is_read_and_one_without_its_columns_refused(tmp_path: Path):
    file = tmp_path / "manifest.csv"
    file.write_text("path,text\r\na.wav,Één\r\n", encoding="utf-8-sig")
    (utterance,) = read_utterances(file)
    assert (utterance.path, utterance.text, utterance.id) == (tmp_path / "a.wav", "Één", "a")
    file.write_text("file;text\na.wav;one\n", encoding="utf-8-sig")
    with pytest.raises(FileNotFoundError, match=r"columns 'path' and 'text' in .*manifest.csv, found 'file;text'$"):
        read_utterances(tmp_path)
    file.write_text("")
    with pytest.raises(FileNotFoundError, match="found none"):
        read_utterances(file)
    (tmp_path / "lj").mkdir()
    (tmp_path / "lj" / "metadata.csv").write_text("a|One|one\n", encoding="utf-8-sig")
    assert [u.id for u in read_utterances(tmp_path / "lj")] == ["a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data", "none"], "expected none to be a manifest"),
        (["--init", "none"], "expected a model's folder with model.keras as --init, found none in none"),
        (
            ["--init", "Models/model1", "--rnn-layers", "2"],
            "expected a network of 2 × 256 in Models/model1, found another",
        ),
        (["--out", "Models/model1"], "found a model alone in Models/model1, which would be overwritten"),
        (["--epochs", "-1"], "--epochs: expected 1e-09 to inf, found -1.0"),
        (["--hours", "nan"], "--hours: expected"),
        (["--warmup-steps", "0"], "--warmup-steps: expected 1 to inf, found 0"),
        (["--dropout", "2"], "--dropout: expected 0 to 0.99, found 2.0"),
        (["--repeat", "tones"], "--repeat: expected CORPUS=TIMES, found tones"),
        (["--repeat", "tones=-1"], "--repeat tones: expected 0 or more, found -1.0"),
        (["--repeat", "bells=2"], "--repeat: expected corpora of the data, found bells"),
        (["--repeat", "tones=0"], "expected clips to train on"),
        (["--max-seconds", "0.01"], "expected clips to train on"),
        (["--noise-probability", "2"], "noise_probability: expected 0 to 1, found 2.0"),
        (["--frequency-mask-bins", "500"], "frequency_mask_bins: expected 0 to 193, found 500"),
        (["--time-masks", "-1"], "time_masks: expected 0 to 100, found -1"),
        (
            ["--init", "Models/model1", "--rnn-units", "8"],
            "expected a network of 3 × 8 in Models/model1, found another",
        ),
        (["--init", "Models/model1", "--mmi", "1", "--mmi-lm", "none"], "expected a language model in 'none'"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    given: list[str], said: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main(["--data", str(corpus), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *given])
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("python")]
    assert stopped.value.code == 1
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,text\na.wav,one, two\n", "2 columns in line 2 of .*more; a text with a comma needs quotes"),
        ("path,text,split\na.wav,one,train\nb.wav\n", "3 columns in line 3 of .*fewer"),
        ('path,text\na.wav,"one\nb.wav,two\n', "unexpected end of data"),
        ("path,text\na.wav,Één\n".encode("latin-1"), "in UTF-8"),
        ("path,text\n".encode("utf-16"), "in UTF-8"),
    ],
)
def test_a_manifest_that_loses_its_columns_is_refused(text: str | bytes, said: str, tmp_path: Path):
    (tmp_path / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ValueError, csv.Error), match=said):
        read_utterances(tmp_path)


def test_splits_that_are_not_used_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    soundfile.write(tmp_path / "a.wav", np.zeros(5000), RATE)
    (tmp_path / "manifest.csv").write_text("path,split,text\na.wav, Train ,one\na.wav,DEV,two\na.wav,valid,three\n")
    train, dev = load_splits([tmp_path], tmp_path / "cache")
    assert [[clip.text for clip in clips] for clips in (train, dev)] == [["one"], ["two"]]
    assert "left out 1 utterances of the splits valid" in caplog.text


def test_texts_of_other_splits_are_not_learnt(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = ["path,text,split", *(f"{name}.wav,text of {name},{name}" for name in ("train", "dev", "test", "valid"))]
    (tmp_path / "manifest.csv").write_text("\n".join([*rows, "x.wav,text of none,"]))
    for source in (tmp_path, tmp_path / "manifest.csv"):
        assert read_lines(source) == ["text of train", "text of none"]
        assert "left out the texts of the splits test, valid" in caplog.text
        caplog.clear()
        assert read_lines(source, dev=True) == ["text of dev"]
        assert not caplog.text


def test_training_hears_what_the_service_hears(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rng, whole = np.random.default_rng(0), tmp_path / "whole.mp3"
    soundfile.write(whole, speak("abcdefgh", rng), RATE, format="MP3")
    (tmp_path / "joined.mp3").write_bytes(2 * whole.read_bytes())
    soundfile.write(tmp_path / "cut.flac", speak("abcdefgh" * 4, rng), RATE)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    (tmp_path / "manifest.csv").write_text("path,text\nwhole.mp3,a\njoined.mp3,b 2 you\ncut.flac,c\n")
    one, two = load_clips(read_utterances(tmp_path), tmp_path / "cache")
    assert np.array_equal(two.samples, (decode_audio((tmp_path / "joined.mp3").read_bytes()).samples * 32768))
    assert len(two.samples) > 1.9 * len(one.samples)
    assert "cut.flac: expected a file that can be decoded" in caplog.text
    assert "1 texts hold digits or letters that are not written, so spell them out: joined: b 2 you" in caplog.text


def test_half_a_recording_is_not_learnt_with_its_whole_text(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sound, rows = speak("abcdefgh" * 4, np.random.default_rng(0)), ["path,text"]
    for kind in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"whole.{kind}", sound, RATE)
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"tagged.{kind}").write_bytes(data + b"TAG" + bytes(125))  # ID3v1
        rows += [f"{name}.{kind},a" for name in ("half", "whole", "tagged")]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    clips = load_clips(read_utterances(tmp_path), tmp_path / "cache")
    assert [clip.utterance.id for clip in clips] == ["whole", "tagged"] * 4
    assert all(len(clip.samples) == pytest.approx(len(sound), abs=2000) for clip in clips)  # MP3 pads
    assert all(f"half.{kind}: expected" in caplog.text for kind in ("wav", "flac", "ogg", "mp3"))
    assert "4 of 12 recordings skipped" in caplog.text


def test_a_cache_is_seen_when_it_is_whole(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def seen(path: Path) -> np.ndarray:
        assert not list(tmp_path.glob("*.int16"))
        return load_audio(path)

    monkeypatch.setattr("training.dataset.load_audio", seen)
    assert load_clips(read_utterances(corpus), tmp_path)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".int16", ".json"]


def test_what_is_interrupted_leaves_nothing_in_the_cache(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(path: Path) -> np.ndarray:
        if path.name == "30.flac":
            raise KeyboardInterrupt
        return load_audio(path)

    monkeypatch.setattr("training.dataset.load_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_clips(read_utterances(corpus), tmp_path)
    assert not list(tmp_path.iterdir())


def noises(folder: Path, *names: str) -> list[Utterance]:
    """Recordings of half a second of noise, other noise for other names."""
    for name in names:
        sound = np.random.default_rng(int(name)).integers(-9999, 9999, 11025, np.int16)
        if not (folder / f"{name}.wav").exists():
            soundfile.write(folder / f"{name}.wav", sound, RATE)
    return [Utterance(name, folder / f"{name}.wav", "a", "noises", "", "") for name in names]


def heard(clips: list[Clip]) -> list[str]:
    """Names of the clips, each checked to be its own noise."""
    for clip in clips:
        sound = np.random.default_rng(int(clip.utterance.id)).integers(-9999, 9999, 11025, np.int16)
        assert np.array_equal(clip.samples, sound)
    return [clip.utterance.id for clip in clips]


def test_only_what_is_new_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []

    def seen(path: Path) -> np.ndarray:
        decoded.append(path.stem)
        return load_audio(path)

    monkeypatch.setattr("training.dataset.load_audio", seen)
    cache = tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    for recordings, expected in [
        (noises(tmp_path, "1", "2", "3", "2"), ["1", "2", "3"]),
        (noises(Path(), "3", "1", "4"), ["4"]),  # another order, and the folder by another name
        (noises(tmp_path, "4", "2"), []),
    ]:
        assert heard(load_clips(recordings, cache)) == [u.id for u in recordings]
        assert sorted(decoded) == expected
        decoded.clear()
    os.utime(tmp_path / "2.wav", (0, 0))
    assert heard(load_clips(noises(tmp_path, "1", "2"), cache)) == ["1", "2"]
    assert decoded == ["2"]
    assert sum(file.stat().st_size for file in cache.glob("*.int16")) == 5 * 2 * 11025


def test_what_could_not_be_read_is_tried_again_and_named_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    recordings = noises(tmp_path, "1", "2")
    (tmp_path / "2.wav").write_bytes(b"RIFF")
    for _ in range(2):
        assert heard(load_clips(recordings, tmp_path / "cache")) == ["1"]
        assert "2.wav: expected" in caplog.text
        caplog.clear()


def test_several_that_start_at_once_share_a_cache(tmp_path: Path):
    sets = [noises(tmp_path, *map(str, range(first, first + 40))) for first in (0, 0, 20, 40)]
    with ThreadPoolExecutor(len(sets)) as pool:
        found = list(pool.map(lambda recordings: heard(load_clips(recordings, tmp_path / "cache")), sets))
    assert found == [[u.id for u in recordings] for recordings in sets]
    assert heard(load_clips(sets[1] + sets[3], tmp_path / "cache")) == [u.id for u in sets[1] + sets[3]]
    assert not list((tmp_path / "cache").glob("new-*"))


def test_what_a_killed_process_left_is_neither_heard_nor_kept(tmp_path: Path):
    recordings, cache = noises(tmp_path, "1", "2"), tmp_path / "cache"
    code = (
        "import sys, time; from pathlib import Path; from training import dataset\n"
        "def slow(path, load=dataset.load_audio): return load(path) if path.stem == '1' else time.sleep(99)\n"
        "dataset.load_audio = slow\n"
        "dataset.load_clips(dataset.read_utterances(Path(sys.argv[1])), Path(sys.argv[1], 'cache'))"
    )
    (tmp_path / "manifest.csv").write_text("path,text\n1.wav,a\n2.wav,a\n")
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (left := list(cache.glob("new-*/samples"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.kill()
    running.wait()
    assert heard(load_clips(recordings, cache)) == ["1", "2"]
    assert left[0].exists()  # for all that is known it is being written
    for file in (left[0], left[0].parent):
        os.utime(file, (0, 0))
    assert heard(load_clips(noises(tmp_path, "1", "3"), cache)) == ["1", "3"]
    assert not list(cache.glob("new-*"))


@pytest.mark.parametrize("command", ["training.evaluate", "training.train"])
def test_a_cache_that_cannot_be_written_is_named(
    command: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Data").write_text("in the way")
    evaluated = command == "training.evaluate"
    with pytest.raises(SystemExit, match="1"):
        evaluate(["model", str(corpus)]) if evaluated else main(["--data", str(corpus), "--out", "out"])
    assert capsys.readouterr().err.endswith(
        f"{command}: expected a folder that can be written as --cache, found Data/cache: Not a directory\n"
    )


def test_a_slow_recording_holds_up_the_rest(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun: list[int] = []

    def slow(path: Path) -> np.ndarray:
        begun.append(int(path.stem))
        if path.stem == "0":
            time.sleep(0.2)
            assert len(begun) <= 4
        return load_audio(path)

    monkeypatch.setattr("training.dataset.AHEAD", 4)
    monkeypatch.setattr("training.dataset.load_audio", slow)
    assert len(load_clips(read_utterances(corpus), tmp_path)) == 66


def test_a_text_with_more_letters_than_steps_is_named_and_not_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    soundfile.write(tmp_path / "a.wav", np.zeros(256 + 160 * 19), RATE)  # 20 frames, 10 steps
    texts = ["abcdefghij", "abcdefghijk", "aabcdefgh", "aabbcdefgh"]
    (tmp_path / "manifest.csv").write_text("path,text\n" + "".join(f"a.wav,{text}\n" for text in texts))
    train, _ = load_splits([tmp_path], tmp_path / "cache")
    assert [clip.text for clip in train] == ["abcdefghij", "aabcdefgh"]
    assert "0.1 s are too short for 'abcdefghijk'" in caplog.text


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("a|One.|anna\nb|Two and more.|anna\n", ["One.", "Two and more."]),  # a speaker
        ("a|It's 5.|It's five.\n\nb|Two.|\n", ["It's five.", "Two."]),
        ("a.wav | One. \r\nb.wav | Two. \r\n", ["One.", "Two."]),
    ],
)
def test_lines_nearly_as_ljspeechs_are_read(lines: str, texts: list[str], tmp_path: Path):
    (tmp_path / "metadata.csv").write_text(lines)
    found = read_utterances(tmp_path)
    assert [u.text for u in found] == texts
    assert [u.path for u in found] == [tmp_path / "wavs" / "a.wav", tmp_path / "wavs" / "b.wav"]


@pytest.mark.parametrize("damage", ["short", "no lengths"])
def test_a_cache_that_was_not_written_to_its_end_is_made_again(damage: str, tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.full(5000, 0.5), RATE)
    (tmp_path / "manifest.csv").write_text("path,text\na.wav,one\n")
    cache = tmp_path / "cache"
    for _ in range(2):
        (clip,) = load_clips(read_utterances(tmp_path), cache)
        assert len(clip.samples) == 5000
        assert (np.asarray(clip.samples) == 16384).all()
        (file,) = cache.glob("*.int16" if damage == "short" else "*.json")
        os.truncate(file, 100 if damage == "short" else 0)


def tiny(corpus: Path, out: Path, *more: str) -> list[str]:
    small = ["--rnn-layers", "1", "--rnn-units", "8", "--batch-seconds", "2", "--no-publish"]
    return ["--data", str(corpus), "--out", str(out), "--cache", str(out.parent / "cache"), *small, *more]


def test_a_run_goes_on_with_fewer_batches_than_it_had_behind_it(corpus: Path, tmp_path: Path):
    main(tiny(corpus, tmp_path / "run", "--hours", "1e-5", "--epochs", "1"))
    before = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]
    assert before[4] < before[5]
    main(tiny(corpus, tmp_path / "run", "--epochs", "1", "--batch-seconds", "1000"))
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"][1] >= 1


def test_a_checkpoint_of_another_size_is_refused_and_its_recipe_kept(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(tiny(corpus, tmp_path / "run", "--hours", "1e-5"))
    kept = (tmp_path / "run" / "recipe.json").read_text()
    with pytest.raises(SystemExit, match="1"):
        main(tiny(corpus, tmp_path / "run", "--rnn-units", "9"))
    assert "expected a checkpoint of a network of 1 × 9" in capsys.readouterr().err
    assert (tmp_path / "run" / "recipe.json").read_text() == kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_learnt(number: signal.Signals, corpus: Path, tmp_path: Path):
    command = [sys.executable, "-m", "training.train", *tiny(corpus, tmp_path / "run", "--epochs", "1000")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log_file = tmp_path / "run" / "log.csv"
    deadline = time.monotonic() + 120
    while not (log_file.exists() and ",loss," in log_file.read_text()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.endswith("stopped; the same command goes on from here\n")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"][0] >= 1


def test_any_rate_and_channels_become_the_service_format(tmp_path: Path):
    time = np.arange(48000) / 48000
    soundfile.write(tmp_path / "tone.wav", np.stack([0.5 * np.sin(2 * np.pi * 1000 * time), 0 * time], 1), 48000)
    samples = load_audio(tmp_path / "tone.wav")
    assert samples.dtype == np.int16
    assert len(samples) == RATE
    expected = 0.25 * 32768 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert np.abs(samples[500:-500] - expected[500:-500]).max() < 5


def test_batches_hold_every_clip_once_and_keep_to_their_size(corpus: Path, tmp_path: Path):
    train, _ = load_splits([corpus], tmp_path / "cache")
    rng = np.random.default_rng(0)
    groups = list(batches(train, 3.0, rng))
    assert sorted(clip.utterance.id for g in groups for clip in g) == sorted(clip.utterance.id for clip in train)
    assert all(len(g) * max(clip.seconds for clip in g) <= 3.0 or len(g) == 1 for g in groups)
    lengths = [max(clip.seconds for clip in g) for g in batches(train, 3.0, rng, by_length=True)]
    assert lengths[0] < lengths[-1]
    assert len(repeat(train, {"tones": 2.5}, rng)) == pytest.approx(2.5 * len(train), rel=0.15)


def test_augmentation_keeps_shapes_and_can_be_switched_off(corpus: Path):
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, RATE).astype(np.float32)
    off = Augmentation(speed_probability=0, noise_probability=0, time_masks=0, frequency_masks=0)
    assert np.array_equal(off.sound(sound, rng), sound)
    frames = rng.normal(0, 1, (100, 193)).astype(np.float32)
    assert np.array_equal(off.masked(frames, rng), frames)
    on = Augmentation(speed_probability=1, noise_probability=1)
    assert 0.88 * RATE < len(on.sound(sound, rng)) < 1.13 * RATE
    masked = on.masked(frames, rng)
    assert masked.shape == frames.shape
    assert (masked == 0).any()


def test_a_model_is_published_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert _commit() == "unknown"


def test_tensorflow_reports_no_errors_that_are_none(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "model")
    unset = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "training.export", str(tmp_path / "model")]
    said = subprocess.run(command, env=unset, capture_output=True, text=True, check=True).stderr
    assert "largest difference from Keras" in said
    assert not [line for line in said.splitlines() if line.startswith("E0000") or "cpu_feature_guard" in line]
    command = [sys.executable, "-c", "import os, training; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"]
    assert subprocess.check_output(command, env={**unset, "TF_CPP_MIN_LOG_LEVEL": "0"}, text=True) == "0\n"
