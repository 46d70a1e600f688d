"""The beam search against an exhaustive one, hand-made answers and properties."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from speech.alphabet import CHARACTERS, Alphabet
from speech.beam import BeamDecoder, read_options
from speech.ctc import LogProbs, Transcript, decode_greedy
from speech.errors import ModelMismatch, ModelNotFound
from speech.language_model import UNKNOWN, LanguageModel, read_language_model
from speech.search import CODE, BeamOptions, _Machine
from training.language_model import train, write

SMALL = Alphabet("ab ")
EXACT = BeamOptions(
    width=100_000,
    recombine=False,
    labels=32,
    label_floor=0.0,
    beam_floor=0.0,
    blank_skip=1.0,
    lm_weight=0.0,
    word_bonus=0.0,
)  # no limit leaves anything out


def exact(**changes: float) -> BeamOptions:
    """EXACT with other weights."""
    return dataclasses.replace(EXACT, **changes)  # type: ignore[arg-type]


def spoken(text: str, alphabet: Alphabet = SMALL, sure: float = 0.97) -> LogProbs:
    """A network that hears each character for one step, with a blank behind it."""
    rows = np.full((2 * len(text), alphabet.size), (1 - sure) / (alphabet.size - 1))
    for i, label in enumerate(alphabet.encode(text)):
        rows[2 * i, label] = rows[2 * i + 1, alphabet.blank] = sure
    return LogProbs(np.log(rows).astype(np.float32))


def mixed(*texts: str) -> LogProbs:
    """A network that cannot tell texts of the same length apart, the first a little likelier."""
    heard = [np.exp(spoken(text, Alphabet()).values) for text in texts]
    return LogProbs(np.log(np.average(heard, axis=0, weights=[1.2] + [1.0] * (len(texts) - 1))))


def every_text(log_probs: LogProbs, alphabet: Alphabet) -> dict[str, float]:
    """Probability of each text: the sum over all paths that read so. Takes n_labels ** n_steps."""
    found: dict[str, float] = defaultdict(float)
    values = np.exp(log_probs.values.astype(np.float64))
    for path in itertools.product(range(alphabet.size), repeat=len(values)):
        merged = [alphabet.blank if label == 0 else label for label in path]
        text = alphabet.decode(label for label, _ in itertools.groupby(merged))
        found[" ".join(text.split())] += math.prod(row[label] for row, label in zip(values, path, strict=True))
    return found


def random_log_probs(seed: int, n_steps: int, alphabet: Alphabet = SMALL, sharp: float = 2.0) -> LogProbs:
    """Softmax of normal noise."""
    values = np.random.default_rng(seed).normal(0, sharp, (n_steps, alphabet.size))
    return LogProbs((values - np.logaddexp.reduce(values, axis=1, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A language model of a few sentences."""
    texts = ["the cat sat on the mat", "the cat ate a bat", "a bat sat on the cat", "ab ab a", "b ab a b"] * 2
    file = tmp_path_factory.mktemp("model") / "lm.npz"
    write(train([*texts, "the rat sat"], 3, [0, 0, 0], 1), file)
    return read_language_model(file)


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_sums_up_all_paths(seed: int) -> None:
    log_probs = random_log_probs(seed, 5)
    found = {h.text: score for h, score in BeamDecoder(SMALL, None, EXACT).hypotheses(log_probs)}
    expected = every_text(log_probs, SMALL)
    assert found.keys() == expected.keys()
    for text, probability in expected.items():
        assert found[text] == pytest.approx(math.log(probability), abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_language_is_weighed_by_whole_words(seed: int, model: LanguageModel) -> None:
    options = exact(lm_weight=0.7, word_bonus=0.9, unknown_penalty=0.4)
    log_probs = random_log_probs(seed, 5)
    found = {
        h.text: score for h, score in BeamDecoder(SMALL, model, options).hypotheses(log_probs, {"ab": 1.3, "b a": 0.6})
    }
    for text, probability in every_text(log_probs, SMALL).items():
        expected, state = math.log(probability), model.start
        for word in text.split():
            score, state = model.word(state, word)
            expected += 0.7 * score + 0.9 - 0.4 * (state[-1] == UNKNOWN) + 1.3 * (word == "ab")
        expected += 0.6 * (" b a " in f" {text} ")
        assert found[text] == pytest.approx(expected, abs=1e-4), text


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=40)
def test_the_best_text_is_at_least_as_probable_as_the_greedy_one(seed: int, n_steps: int) -> None:
    log_probs = random_log_probs(seed, n_steps)
    score = {h.text: score for h, score in BeamDecoder(SMALL, None, EXACT).hypotheses(log_probs)}
    best, greedy = BeamDecoder(SMALL, None, EXACT).decode(log_probs), decode_greedy(log_probs, SMALL)
    assert score[best.text] >= score[greedy.text]


def test_label_0_is_a_blank() -> None:
    one_step = np.log(
        [[0.3, 0.4, 0.0, 0.0, 0.3]], where=[[True, True, False, False, True]], out=np.full((1, 5), -np.inf)
    )
    assert BeamDecoder(SMALL, None, EXACT).decode(LogProbs(one_step.astype(np.float32))).text == ""
    parted = np.full((3, 5), -30, np.float32)
    parted[[0, 1, 2], [1, 0, 1]] = 0
    assert BeamDecoder(SMALL, None, EXACT).decode(LogProbs(parted)).text == "aa"


def test_repeats_collapse_and_blanks_part() -> None:
    values = np.full((6, 5), -20, np.float32)
    values[range(6), [1, 1, 4, 1, 2, 2]] = 0
    found = BeamDecoder(SMALL).decode(LogProbs(values))
    assert found.text == "aab"
    assert found.confidence == pytest.approx(1, abs=1e-6)


def test_language_decides_what_the_network_cannot(model: LanguageModel) -> None:
    log_probs = mixed("the gat sat", "the cat sat")
    assert decode_greedy(log_probs, Alphabet()).text == "the gat sat"
    assert BeamDecoder(Alphabet(), model).decode(log_probs).text == "the cat sat"


def test_unknown_words_stay_possible(model: LanguageModel) -> None:
    assert BeamDecoder(Alphabet(), model).decode(spoken("the zebra sat", Alphabet(), 0.999)).text == "the zebra sat"


def test_hot_words_win(model: LanguageModel) -> None:
    decoder, log_probs = BeamDecoder(Alphabet(), model), mixed("the cat sat", "the kat sat")
    assert decoder.decode(log_probs).text == "the cat sat"
    assert decoder.decode(log_probs, {"Kat": 12.0}).text == "the kat sat"
    assert decoder.decode(log_probs, {"the kat": 12.0}).text == "the kat sat"
    assert decoder.decode(log_probs, {"cat": -12.0}).text == "the kat sat"
    assert decoder.decode(log_probs, {"kats": 12.0, "a kat": 12.0, "": 12.0}).text == "the cat sat"


@pytest.mark.parametrize("weight", [math.nan, math.inf, 101.0, -1e9])
def test_absurd_hot_words_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        BeamDecoder(SMALL).decode(random_log_probs(0, 3), {"ab": weight})


@given(
    arrays(np.float32, st.tuples(st.integers(0, 12), st.just(32)), elements=st.floats(width=32)),
    st.dictionaries(st.text(max_size=6), st.floats(-100, 100), max_size=3),
)
@settings(max_examples=60)
def test_any_numbers_give_a_text(model: LanguageModel, values: np.ndarray, hot_words: dict[str, float]) -> None:
    found = BeamDecoder(Alphabet(), model).decode(LogProbs(values), hot_words)
    assert set(found.text) <= set(CHARACTERS)
    assert found.text == " ".join(found.text.split())
    assert 0 <= found.confidence <= 1
    assert " ".join(word.text for word in found.words) == found.text
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)


@pytest.mark.parametrize("width", [1, 3, 10])
def test_the_width_holds(width: int, model: LanguageModel) -> None:
    decoder = BeamDecoder(Alphabet(), model, BeamOptions(width=width, beam_floor=0.0, label_floor=0.0))
    assert len(decoder.hypotheses(random_log_probs(1, 40, Alphabet()))) <= width


@pytest.mark.parametrize("wrong", [{"width": 0}, {"width": 100_001}, {"labels": 0}, {"lm_weight": math.nan}])
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        exact(**wrong)


def test_silence_may_be_skipped(model: LanguageModel) -> None:
    silence = np.full((50, 32), np.log(1e-5), np.float32)
    silence[:, -1] = np.log(1 - 31e-5)
    values = np.concatenate([silence, spoken("aa cat", Alphabet()).values, silence])
    skipping, listening = (BeamDecoder(Alphabet(), model, BeamOptions(blank_skip=skip)) for skip in (0.99, 1.0))
    (first, score), (second, other) = (decoder.hypotheses(LogProbs(values))[0] for decoder in (skipping, listening))
    assert first.text == second.text == "aa cat"
    assert score == pytest.approx(other, abs=0.02)
    assert [(w.start, w.end) for w in first.words] == [(w.start, w.end) for w in second.words]


@given(st.integers(0, 10**6), st.floats(0.3, 1.2), st.floats(0, 0.6))
@settings(max_examples=30)
def test_what_is_heard_is_weighed(model: LanguageModel, seed: int, scale: float, prior_scale: float) -> None:
    """As if the network itself had said p ** scale / prior ** prior_scale; but words are as sure as it really was."""
    log_probs = random_log_probs(seed, 6)
    priors = np.random.default_rng(seed).dirichlet(np.ones(SMALL.size)).astype(np.float64)
    heard = np.exp(log_probs.values.astype(np.float64))
    heard[:, -1] += heard[:, 0]
    merged = np.array(priors)
    merged[-1] += merged[0]
    weighed = heard**scale / np.maximum(merged, 1e-3) ** prior_scale
    weighed[:, 0] = 1e-30
    weighed /= weighed.sum(axis=1, keepdims=True)
    options = exact(lm_weight=0.5, acoustic_scale=scale, prior_scale=prior_scale, priors=tuple(priors.tolist()))
    found = BeamDecoder(SMALL, model, options).hypotheses(log_probs)
    expected = BeamDecoder(SMALL, model, exact(lm_weight=0.5)).hypotheses(LogProbs(np.log(weighed)))
    scores = [{transcript.text: score for transcript, score in texts} for texts in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    letters = [np.exp(log_probs.values[:, 1:-1]).max()]
    assert all(0 <= transcript.confidence <= max(letters) + 1e-6 for transcript, _ in found)


def test_there_is_a_prior_for_each_label(model: LanguageModel) -> None:
    with pytest.raises(ModelMismatch, match="expected 32 priors, found 3"):
        BeamDecoder(Alphabet(), model, BeamOptions(priors=(0.2, 0.3, 0.5)))


@given(st.lists(st.sampled_from(["a", "cat", "sat", "zebra"]), max_size=4).map(" ".join), st.floats(0, 1))
def test_words_have_the_times_of_greedy_decoding(model: LanguageModel, text: str, duration: float) -> None:
    log_probs = spoken(text, Alphabet(), 0.999)
    found, greedy = (
        BeamDecoder(Alphabet(), model).decode(log_probs, {}, duration),
        decode_greedy(log_probs, Alphabet(), duration),
    )
    assert found.text == greedy.text
    assert found.confidence == pytest.approx(greedy.confidence, abs=1e-5)
    for word, expected in zip(found.words, greedy.words, strict=True):
        assert (word.text, word.start, word.end) == (expected.text, expected.start, expected.end)
        assert word.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_a_text_less_sure_than_asked_for_is_not_written(model: LanguageModel) -> None:
    log_probs = spoken("a cat", Alphabet(), 0.5)
    plain, strict, lax = (
        BeamDecoder(Alphabet(), model, BeamOptions(least_confidence=least)) for least in (0.0, 0.51, 0.49)
    )
    assert plain.decode(log_probs) == lax.decode(log_probs) == strict.decode(log_probs, {"dog": 1.0})
    assert (plain.decode(log_probs).text, strict.decode(log_probs)) == ("a cat", Transcript("", 0.0))
    assert strict.decode(spoken("a cat", Alphabet())).text == "a cat"


@given(st.integers(0, 10**6), st.integers(2, 40))
def test_every_word_lasts(model: LanguageModel, seed: int, n_steps: int) -> None:
    words = BeamDecoder(Alphabet(), model).decode(random_log_probs(seed, n_steps, Alphabet())).words
    assert all(word.start < word.end for word in words)


@pytest.mark.parametrize("at_once", [1, 3])
def test_threads_share_a_decoder(model: LanguageModel, at_once: int) -> None:
    """As many copies of its tables are made as are needed at once, and no more than allowed."""
    decoder, machines = BeamDecoder(Alphabet(), model, at_once=at_once), set()
    clips = [random_log_probs(seed, 60, Alphabet()) for seed in range(8)]
    alone = [decoder.hypotheses(clip) for clip in clips]
    search = _Machine.search

    def seen(machine: _Machine, *arguments: Any) -> Any:
        machines.add(id(machine))
        return search(machine, *arguments)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setattr(_Machine, "search", seen)
        assert list(pool.map(decoder.hypotheses, clips * 9)) == alone * 9
    assert len(machines) == at_once


def test_a_copy_that_fails_costs_nothing_and_is_tried_again(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(machine: _Machine) -> _Machine:
        if tries.append(0) or len(tries) < 3:
            raise MemoryError("no room for another one")
        return copy(machine)

    decoder, clip = BeamDecoder(Alphabet(), model, at_once=2), random_log_probs(0, 60, Alphabet())
    expected, copy, tries = decoder.decode(clip), _Machine.copy, list[int]()
    monkeypatch.setattr(_Machine, "copy", no_room)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(decoder.decode, [clip] * 60)) == {expected}
    assert len(tries) == 3


def test_a_search_that_takes_too_much_memory_ends(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech.search.LARGEST", 16 << 20)
    decoder, short, long = BeamDecoder(Alphabet(), model), spoken("a cat", Alphabet()), np.full((20_000, 32), -1, "f4")
    before = decoder.hypotheses(short)
    with pytest.raises(MemoryError):
        decoder.decode(LogProbs(long))
    assert decoder.hypotheses(short) == before


def test_the_compiled_search_is_that_of_its_source(tmp_path: Path) -> None:
    """Built again by the command at the top of search.c."""
    source = CODE.with_suffix(".c").read_text()
    command = re.sub(r"[ *\\\n]+", " ", source[source.index("python -m ziglang") : source.index("speech/search.c\n")])
    built = tmp_path / "search.wasm"
    words = [*command.replace("speech/search.wasm", str(built)).split()[1:], "speech/search.c"]
    subprocess.run([sys.executable, *words], cwd=CODE.parents[1], check=True, timeout=120)
    assert built.read_bytes() == CODE.read_bytes()


def test_a_language_model_must_spell_the_alphabet(model: LanguageModel) -> None:
    with pytest.raises(ModelMismatch, match="language model"):
        BeamDecoder(Alphabet("abß "), model)


def test_options_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "decoder.json"
    with pytest.raises(ModelNotFound):
        read_options(file)
    file.write_text('{"width": 7, "lm_weight": 0.25, "priors": [0.5, 0.5], "measured": {"wer": 12.5}}')
    assert read_options(file) == BeamOptions(width=7, lm_weight=0.25, priors=(0.5, 0.5))
    for damaged in (
        "{",
        "[]",
        '{"width": 0}',
        '{"width": "wide"}',
        '{"priors": [2]}',
        '{"priors": 1}',
        '{"priors": ["a"]}',
        "\ud800".encode("utf-8", "replace").decode(),
    ):
        file.write_text(damaged)
        with pytest.raises(ModelMismatch):
            read_options(file)
