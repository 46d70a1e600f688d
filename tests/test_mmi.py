"""Training for the search: the loss against all paths written out, what has a gradient, and where it leads."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from speech.alphabet import Alphabet
from speech.beam import BeamDecoder
from speech.ctc import LogProbs
from speech.language_model import LanguageModel, read_language_model
from speech.search import BeamOptions
from training.language_model import main as train_language_model
from training.language_model import train, write
from training.mmi import NBestMMI, errors
from training.train import main as run

ROOT = Path(__file__).resolve().parent.parent
SMALL = Alphabet("ab ")
PLAIN = Alphabet("abcdehmnorst ")
TEXTS = ["the cat sat on the mat", "the cat ate a bat", "a bat sat on the cat", "the cat sat", "a rat"] * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A language model that expects cats where they may be rats."""
    file = tmp_path_factory.mktemp("model") / "lm.npz"
    write(train([*TEXTS, "ab ab a", "b ab a b"], 3, [0, 0, 0], 1), file)
    return read_language_model(file)


def made(alphabet: Alphabet, model: LanguageModel, options: BeamOptions, **others: float) -> NBestMMI:
    return NBestMMI(model, BeamDecoder(alphabet, model, options), **others)  # type: ignore[arg-type]


def heard(*texts: str, sure: float = 0.9) -> Tensor:
    """Logits (steps, 1, labels) of a network that cannot tell two texts of one length apart: two steps a letter."""
    rows = np.full((2 * len(texts[0]), PLAIN.size), (1 - sure) / PLAIN.size)
    for text in texts:
        for i, label in enumerate(PLAIN.encode(text)):
            rows[2 * i, label] += sure / len(texts)
            rows[2 * i + 1, PLAIN.blank] += sure / len(texts)
    return torch.tensor(np.log(rows), dtype=torch.float32).unsqueeze(1)


def spelt(probabilities: np.ndarray, text: str, alphabet: Alphabet) -> float:
    """Logarithm of the sum over all paths that spell the text. Takes n_labels ** n_steps."""
    total = 0.0
    for path in itertools.product(range(alphabet.size), repeat=len(probabilities)):
        merged = [alphabet.blank if label == 0 else label for label in path]
        if alphabet.decode(label for label, _ in itertools.groupby(merged)) == text:
            total += math.prod(row[label] for row, label in zip(probabilities, path, strict=True))
    return math.log(total)


@pytest.mark.parametrize("said", ["ab", "ba"])  # a word that the model knows, one that it does not
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_truth_among_the_best_texts_of_the_search(said: str, seed: int, model: LanguageModel):
    priors = (0.3, 0.1, 0.2, 0.1, 0.3)
    options = BeamOptions(lm_weight=0.7, word_bonus=0.3, unknown_penalty=0.4, blank_skip=1.0,
                          acoustic_scale=0.8, prior_scale=0.4, priors=priors)  # fmt: skip
    loss = made(SMALL, model, options, rivals=3, scale=0.5, margin=0.6)
    log_probs = torch.randn(5, 1, SMALL.size, generator=torch.manual_seed(seed)).log_softmax(-1)

    clear = log_probs[:, 0].double().exp().numpy()
    clear[:, -1] += clear[:, 0]
    weighed = clear**0.8 / np.array([1, 0.1, 0.2, 0.1, 0.6]) ** 0.4  # label 0 is a blank, too
    weighed[:, 0] = 0
    scores = {}
    found = [t.text for t, _ in loss.decoder.hypotheses(LogProbs(log_probs[:, 0].numpy())) if t.text not in ("", said)]
    for text in (said, *found[:3]):
        score, state = spelt(weighed, text, SMALL), model.start
        for word in text.split():
            nats, state = model.word(state, word)
            score += 0.7 * nats + 0.3 - 0.4 * (word not in model.words)
        scores[text] = 0.5 * score + 0.6 * errors(said, text)
    expected = (np.logaddexp.reduce(list(scores.values())) - scores[said]) / 0.5
    (got,) = loss.losses(log_probs, torch.tensor([5]), [said])
    assert len(scores) == 4
    assert got.item() == pytest.approx(expected, abs=1e-4)


def test_errors_count_words():
    assert [errors("the rat sat", text) for text in ("the rat sat", "the cat sat", "rat sat down", "")] == [0, 1, 2, 3]


def test_only_where_the_texts_differ_there_is_a_gradient(model: LanguageModel):
    logits = heard("the cat sat", "the rat sat").requires_grad_()
    loss = made(PLAIN, model, BeamOptions(), rivals=1)
    loss.losses(logits.log_softmax(-1), torch.tensor([len(logits)]), ["the rat sat"]).sum().backward()
    steps = logits.grad.abs().sum(dim=(1, 2))
    place = 2 * "the rat sat".index("r")
    assert steps.argmax() == place
    assert steps.sum() - steps[place - 1 : place + 2].sum() < 0.02 * steps[place]
    gradient = logits.grad[place, 0]
    assert gradient.argmin() == PLAIN.encode("r")[0]  # becomes likelier
    assert gradient.argmax() == PLAIN.encode("c")[0]


def test_it_teaches_the_search_what_language_would_not_believe(model: LanguageModel):
    logits = heard("the cat sat", "the rat sat").requires_grad_()
    loss, n_steps = made(PLAIN, model, BeamOptions(lm_weight=1.5)), torch.tensor([len(logits)])

    def written() -> str:
        return loss.decoder.decode(LogProbs(logits.detach()[:, 0].log_softmax(-1).numpy())).text

    assert written() == "the cat sat"
    optimizer = torch.optim.SGD([logits], 0.2)
    for _ in range(40):
        optimizer.zero_grad()
        loss.losses(logits.log_softmax(-1), n_steps, ["the rat sat"]).sum().backward()
        optimizer.step()
    assert written() == "the rat sat"


def test_no_text_and_too_much_of_it_have_no_loss(model: LanguageModel):
    logits = torch.randn(6, 4, PLAIN.size, generator=torch.manual_seed(0)).requires_grad_()
    texts = ["", "a rat sat", "tttt", "a rat"]  # "tttt" takes seven steps, with the blanks between
    losses = made(PLAIN, model, BeamOptions()).losses(logits.log_softmax(-1), torch.full((4,), 6), texts)
    assert losses[:3].tolist() == [0, 0, 0]
    assert losses[3] > 0
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, :3].any()
    none = made(PLAIN, model, BeamOptions()).losses(logits.log_softmax(-1), torch.full((4,), 6), [""] * 4)
    assert none.tolist() == [0, 0, 0, 0]


def test_what_stands_behind_an_utterance_does_not_matter(model: LanguageModel):
    loss, texts = made(PLAIN, model, BeamOptions()), ["the rat sat", "a cat"]
    log_probs = torch.randn(30, 2, PLAIN.size, generator=torch.manual_seed(1)).log_softmax(-1)
    together = loss.losses(log_probs, torch.tensor([30, 20]), texts)
    alone = loss.losses(log_probs[:20, 1:], torch.tensor([20]), texts[1:])
    assert together[1].item() == pytest.approx(alone.item(), abs=1e-4)


def test_a_language_model_can_leave_out_the_texts_of_recordings(tmp_path: Path):
    (tmp_path / "texts.csv").write_text("1|the cat sat\n2|Is it a rat?\n3|the cat ate\n")
    (tmp_path / "manifest.csv").write_text("path,text\na.wav,is it a rat\nb.wav,The cat sat!\n")
    out = tmp_path / "lm.npz"
    train_language_model([str(tmp_path / "texts.csv"), "--without", str(tmp_path), "--out", str(out)])
    assert list(read_language_model(out).words) == ["ate", "cat", "the"]


@pytest.mark.parametrize("given", [[], ["--init", "Models/model1"], ["--mmi-lm", "lm.npz"]])
def test_a_run_says_what_it_needs(given: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(["--data", "none", "--out", "none", "--mmi", "0.5", *given])
    assert "--mmi: expected --init and --mmi-lm" in capsys.readouterr().err


def test_a_run_learns_by_it(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 22050), 22050)
    (tmp_path / "manifest.csv").write_text("path,text\na.wav,hello there\n")
    first = {}
    for share in ("0", "0.5", "1"):
        out = tmp_path / share
        run([
            "--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--out", str(out), "--no-publish", "--epochs", "1",
            "--init", str(ROOT / "Models" / "model1"), "--mmi", share, "--mmi-lm", str(ROOT / "Models/model1/lm.npz"),
        ])  # fmt: skip
        with (out / "log.csv").open() as lines:
            first[share] = next(float(row["value"]) for row in csv.DictReader(lines) if row["name"] == "loss")
    assert first["0.5"] == pytest.approx((first["0"] + first["1"]) / 2, abs=2e-3)
    assert first["0"] > 1.1 * first["1"] > 0
