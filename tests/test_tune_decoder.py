"""The weights of the search are tuned on what the network heard, and written for the service to read."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import pytest

from speech.alphabet import Alphabet
from speech.beam import BeamDecoder, read_options
from speech.ctc import LogProbs, decode_greedy
from speech.language_model import read_language_model
from speech.model_card import read_card, write_card
from tests.conftest import make_sound, make_wav
from training.language_model import train, write
from training.tune_decoder import BABBLE, START, Heard, listen, load, main, priors, save, score

TEXTS = ["the cat sat", "a zebra sat", "the cat ran", "a cat", "the zebra ran"]


def mumbled(text: str, seed: int) -> LogProbs:
    """A network that often takes one letter for another."""
    rng, alphabet = np.random.default_rng(seed), Alphabet()
    rows = rng.dirichlet(np.full(alphabet.size, 0.05), 2 * len(text)) * 0.6
    for i, label in enumerate(alphabet.encode(text)):
        rows[2 * i, label] += 0.4
        rows[2 * i + 1, alphabet.blank] += 0.4
    return LogProbs(np.log(np.maximum(rows, 1e-9)).astype(np.float32))


@pytest.fixture
def heard() -> list[Heard]:
    return [Heard(mumbled(text, n), text, ("one", "two")[n % 2]) for n, text in enumerate(TEXTS * 3)]


def test_what_was_heard_is_kept(heard: list[Heard], tmp_path: Path):
    save(heard, tmp_path / "heard.npz")
    again = load(tmp_path / "heard.npz")
    assert [(h.text, h.corpus) for h in again] == [(h.text, h.corpus) for h in heard]
    assert all(np.array_equal(a.log_probs.values, b.log_probs.values) for a, b in zip(again, heard, strict=True))


def test_priors_are_shares(heard: list[Heard]):
    found = np.array(priors(heard))
    assert found.sum() == pytest.approx(1, abs=1e-4)
    assert found.argmax() == Alphabet().blank


def test_words_in_babble_cost_something(heard: list[Heard]):
    plain = score(heard, Alphabet(), None)
    babble = [Heard(LogProbs(mumbled("ab cd", 0).values.repeat(2, axis=0)[:22]), "", BABBLE)]
    found = score(heard + babble, Alphabet(), None)
    words = len(decode_greedy(babble[0].log_probs, Alphabet()).text.split())
    assert words and plain.invented == 0
    assert found.invented == pytest.approx(60 * words / babble[0].seconds)
    assert found.rates == plain.rates
    assert found.loss == pytest.approx(plain.loss + found.invented / 10)
    assert priors(heard + babble) == priors(heard)


def test_babble_is_listened_to(tiny_model: Path, tmp_path: Path):
    names = [f"{n}.wav" for n in range(3)]
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(make_wav(make_sound(1.0, n)))
    lines = ["path,text,split", *(f"{name},a cat,dev" for name in names)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    found = listen(tiny_model, [tmp_path / "manifest.csv"], tmp_path / "cache")
    assert [h.text for h in found] == ["a cat"] * 3 + [""] * 3
    assert [h.corpus == BABBLE for h in found] == [False] * 3 + [True] * 3


def test_tuning_finds_weights_at_least_as_good_and_writes_them(
    heard: list[Heard], tiny_model: Path, tmp_path: Path, capsys
):
    save(heard, tmp_path / "heard.npz")
    copy(tiny_model / "card.json", tmp_path)
    write(train(TEXTS * 2, 3, [0, 0, 0], 1), tmp_path / "lm.npz")
    out = tmp_path / "new" / "decoder.json"
    main(
        [str(tmp_path), "--log-probs", str(tmp_path / "heard.npz"), "--trials", "6", "--width", "16", "--out", str(out)]
    )
    start = replace(START, width=16, priors=priors(heard))
    options, model = read_options(out), read_language_model(tmp_path / "lm.npz")
    assert (options.width, options.priors) == (16, priors(heard))
    tuned, plain = (score(heard, Alphabet(), BeamDecoder(Alphabet(), model, tried)) for tried in (options, start))
    assert tuned.loss <= plain.loss
    sure = [BeamDecoder(Alphabet(), model, options).decode(h.log_probs).confidence for h in heard]
    assert 0.6 * min(sure) < options.least_confidence < 0.7 * np.median(sure)
    written = json.loads(out.read_text())["measured"]
    assert written["wer_cer_percent"]["beam"]["one"][0] < written["wer_cer_percent"]["greedy"]["one"][0]
    assert "greedy" in capsys.readouterr().out


def test_the_models_own_labels_count(heard: list[Heard], tiny_model: Path, tmp_path: Path):
    """Of a converted model, whose characters are in another order: the same rates as with ours."""
    ours, theirs = Alphabet(), Alphabet(" '?!abcdefghijklmnopqrstuvwxyz")
    order = [0, *(ours.encode(character)[0] for character in theirs.characters), ours.blank]
    turned = [Heard(LogProbs(h.log_probs.values[:, order]), h.text, h.corpus) for h in heard]
    write(train(TEXTS * 2, 3, [0, 0, 0], 1), tmp_path / "lm.npz")
    found = []
    for name, characters, said in (("ours", ours.characters, heard), ("theirs", theirs.characters, turned)):
        (tmp_path / name).mkdir()
        write_card(replace(read_card(tiny_model), characters=characters), tmp_path / name)
        save(said, tmp_path / name / "heard.npz")
        given = ["--lm", tmp_path / "lm.npz", "--out", tmp_path / f"{name}.json", "--width", 16, "--trials", 2]
        main([*map(str, [tmp_path / name, "--log-probs", tmp_path / name / "heard.npz", *given])])
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["measured"]["wer_cer_percent"])
    assert found[0] == found[1]


def test_weights_for_another_language_model_have_a_file_of_their_own(tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--lm", str(tmp_path / "other.npz")])
    assert "--out" in capsys.readouterr().err


def test_what_cannot_be_tuned_is_said_in_a_line(tmp_path: Path, tiny_model: Path, capsys):
    (tmp_path / "manifest.csv").write_text("path,text,split\nx.wav,a,train\n")
    write(train(TEXTS * 2, 3, [0, 0, 0], 1), tmp_path / "lm.npz")
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "manifest.csv").write_text("path,text,split\nx.wav,a,dev\n")
    ours = ["--lm", str(tmp_path / "lm.npz"), "--out", str(tmp_path / "out.json")]
    for given in (
        [str(tmp_path / "none"), str(tmp_path)],
        [str(tiny_model), str(tmp_path), *ours],  # no split dev
        [str(tiny_model), str(tmp_path / "dev"), *ours, "--cache", str(tmp_path / "cache")],  # no such recordings
        [str(tiny_model), "--log-probs", str(tmp_path / "junk"), *ours],
    ):
        with pytest.raises(SystemExit, match="1"):
            main(given)
        assert capsys.readouterr().err.splitlines()[-1].startswith("python -m training.tune_decoder: ")


def test_what_was_heard_is_kept_under_the_very_name(heard: list[Heard], tmp_path: Path):
    save(heard, tmp_path / "heard")
    assert [h.text for h in load(tmp_path / "heard")] == [h.text for h in heard]
