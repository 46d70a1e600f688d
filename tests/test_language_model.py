"""The language model against probabilities worked out by hand, sums of probabilities, and damaged files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.errors import ModelMismatch, ModelNotFound
from speech.language_model import BEGIN, END, FIRST_WORD, UNKNOWN, LanguageModel, read_language_model
from training.language_model import discounts, main, perplexity, read_texts, train, without, write

ROUNDED = 0.005  # nats: the file stores steps of 1 / 256, and a score adds up two or three

TEXTS = [
    "the cat sat on the mat", "the cat ate the rat", "a bat sat on the cat", "the dog sat", "a dog ate a bone",
    "the bat and the rat ate", "can't the dog sit", "the cat and the dog sat on the mat", "the mat", "a rat sat",
]  # fmt: skip


def build(
    file: Path, texts: Sequence[str], order: int = 3, prune: Sequence[int] = (0, 0, 0), least: int = 1
) -> LanguageModel:
    """A model trained on the texts, by way of its file."""
    write(train(texts, order, prune, least), file)
    return read_language_model(file)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Pruned trigrams of TEXTS."""
    return build(tmp_path_factory.mktemp("model") / "lm.npz", TEXTS, prune=(0, 0, 1))


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    """Trigrams of TEXTS."""
    return build(tmp_path / "lm.npz", TEXTS)


def test_two_sentences_by_hand(tmp_path: Path) -> None:
    """So little text that every discount is KenLM's fallback: 0.5 of a count of 1, 1 of a count of 2."""
    model = build(tmp_path / "lm.npz", ["a b", "a c"], order=2, prune=(0, 0))
    a, b, c = (FIRST_WORD + i for i in range(3))
    # Followers of BEGIN: a, a. Different tokens before a: 1, b: 1, c: 1, END: 2, of 5 in all.
    expected = {
        ((), a): 0.5 / 5, ((), END): 1 / 5, ((), UNKNOWN): 0.5,
        ((BEGIN,), a): 1 / 2 + 1 / 2 * 0.1, ((a,), b): 0.5 / 2 + 0.5 * 0.1, ((a,), c): 0.5 / 2 + 0.5 * 0.1,
        ((b,), END): 0.5 + 0.5 * 0.2, ((a,), UNKNOWN): 0.5 * 0.5, ((UNKNOWN,), a): 0.1, ((b,), b): 0.5 * 0.1,
    }  # fmt: skip
    for (state, token), probability in expected.items():
        assert model.token(state, token) == pytest.approx(math.log(probability), abs=ROUNDED), (state, token)


def test_discounts_by_hand() -> None:
    """Chen & Goodman's equation for 4, 3, 2 and 1 n-grams counted once, twice, thrice and four times: Y = 0.4."""
    counts = np.repeat([1, 2, 3, 4], [4, 3, 2, 1])
    assert discounts(counts) == pytest.approx([0, 1 - 2 * 0.4 * 3 / 4, 2 - 3 * 0.4 * 2 / 3, 3 - 4 * 0.4 * 1 / 2])


@pytest.mark.parametrize("prune", [(0, 0, 0), (0, 0, 1), (0, 1, 2)])
@pytest.mark.parametrize("least", [1, 2])
def test_probabilities_sum_to_one(tmp_path: Path, prune: Sequence[int], least: int) -> None:
    model = build(tmp_path / "lm.npz", TEXTS * 2 + ["one odd word"], prune=prune, least=least)
    tokens = [END, UNKNOWN, *range(FIRST_WORD, FIRST_WORD + len(model.words))]
    for state in [(), (BEGIN,), *((first, second) for first in [BEGIN, *tokens] for second in tokens)]:
        assert sum(math.exp(model.token(state, token)) for token in tokens) == pytest.approx(1, abs=0.005), state


def test_letters_sum_to_one(model: LanguageModel) -> None:
    for start in ("", "q", "ca", "zzz", "bone"):
        after = [model.spell(start + letter) for letter in model.letters] + [model.spell(start, whole=True)]
        assert sum(math.exp(score - model.spell(start)) for score in after) == pytest.approx(1, abs=0.02)


def test_states_remember_what_matters(model: LanguageModel) -> None:
    the, cat = (FIRST_WORD + model.words.index(word) for word in ("the", "cat"))
    _, state = model.word(model.start, "the")
    assert state == (BEGIN, the)
    known, state = model.word(state, "cat")
    assert state == (the, cat)
    unknown, after = model.word(state, "gnu")
    assert after == (UNKNOWN,)  # no trigram begins with "cat gnu"
    assert known > unknown


@given(st.lists(st.sampled_from(["the", "cat", "sat", "dog", "on", "mat", "a", "gnu"]), max_size=6))
def test_states_forget_nothing_that_matters(shared: LanguageModel, words: list[str]) -> None:
    state, tokens = shared.start, list(shared.start)
    for word in words:
        score, state = shared.word(state, word)
        known = word in shared.words
        token = FIRST_WORD + shared.words.index(word) if known else UNKNOWN
        expected = shared.token(tuple(tokens[-2:]), token) + (0 if known else shared.spell(word, whole=True))
        assert score == pytest.approx(expected)
        tokens.append(token)


def test_perplexity_knows_order(model: LanguageModel, tmp_path: Path) -> None:
    right, wrong = ["the cat sat on the mat"], ["mat the on sat cat the"]
    assert perplexity(model, right)["perplexity"] < 0.5 * perplexity(model, wrong)["perplexity"]
    single = build(tmp_path / "single.npz", TEXTS, order=1, prune=(0,))
    assert perplexity(model, TEXTS)["perplexity"] < perplexity(single, TEXTS)["perplexity"]
    assert perplexity(model, ["the gnu sat on"])["unknown_percent"] == 25


def test_a_text_of_one_word_is_a_die_with_two_sides(tmp_path: Path) -> None:
    """With 1 word forever, only word and END are probable, each after every word half the time."""
    model = build(tmp_path / "lm.npz", ["no no"] * 500, order=2, prune=(0, 0))
    assert perplexity(model, ["no no"])["perplexity"] == pytest.approx(2 ** (2 / 3), rel=0.02)


def test_what_was_spoken_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with numbers in words, and as a sentence of a paragraph; common words alone are no reason."""
    spoken = "in nineteen eighty four the boy bought a rose for his mother"
    (tmp_path / "manifest.csv").write_text(f"path,text,split\na.wav,{spoken},train\nb.wav,Good morning,train\n")
    kept = ["The boy bought a house", "good morning to you"]
    lines = ["In 1984 the boy bought a rose for his mother!", "good morning", f"He said: {spoken}. And left.", *kept]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    assert without(lines, [spoken, "good morning"]) == kept
    main([f"{tmp_path}/text.txt", "--out", f"{tmp_path}/lm.npz", "--without", f"{tmp_path}/manifest.csv"])
    assert "3 of 5 texts left out" in capsys.readouterr().out
    assert "rose" not in read_language_model(tmp_path / "lm.npz").words


def test_what_is_held_out_is_not_learnt_from_other_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.csv").write_text("path,text,split\na.wav,Zebra crossings!,dev\n")
    (tmp_path / "text.txt").write_text("\n".join([*TEXTS, "zebra crossings"]))
    main([f"{tmp_path}/text.txt", "--out", f"{tmp_path}/lm.npz", "--dev", f"{tmp_path}/manifest.csv"])
    assert "1 of 11 texts left out" in capsys.readouterr().out
    assert "zebra" not in read_language_model(tmp_path / "lm.npz").words


@pytest.mark.parametrize("options", [["--dev"], ["--without"], ["--dev", "--without"]])
def test_where_all_is_left_out_it_is_said_for_what(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.csv").write_text("path,text,split\na.wav,The cat,dev\n")
    (tmp_path / "text.txt").write_text("the cat\nThe cat!\n")
    given = [part for option in options for part in (option, f"{tmp_path}/manifest.csv")]
    with pytest.raises(SystemExit, match="1"):
        main([f"{tmp_path}/text.txt", "--out", f"{tmp_path}/lm.npz", *given])
    expected = f"expected texts that are not in {' or '.join(options)}, found all 2 of them there\n"
    assert capsys.readouterr().err.endswith(expected)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.csv").write_text("".join(f"id|{text.upper()}!\n" for text in TEXTS), encoding="utf-8")
    (tmp_path / "manifest.csv").write_text("path,text,split\na.wav,The cat?,dev\nb.wav,Other words,train\n")
    main([f"{tmp_path}/text.csv", "--out", f"{tmp_path}/new/lm.npz", "--dev", f"{tmp_path}/manifest.csv"])
    assert "10 texts, 14 words" in (printed := capsys.readouterr().out)
    assert "unknown_percent 0.00" in printed
    assert read_texts(tmp_path / "manifest.csv", dev=True) == read_texts(tmp_path, dev=True) == ["the cat"]
    assert read_texts(tmp_path / "manifest.csv") == read_texts(tmp_path) == ["other words"]
    (tmp_path / "metadata.csv").write_text("LJ001-0001|In 1455|In fourteen fifty-five\n", encoding="utf-8")
    assert read_texts(tmp_path / "metadata.csv") == ["in fourteen fifty five"]
    assert read_texts(tmp_path / "text.csv") == TEXTS


def test_files_that_are_no_model(tmp_path: Path) -> None:
    file, good = tmp_path / "lm.npz", train(TEXTS, 2, [0, 0], 1)
    with pytest.raises(ModelNotFound):
        read_language_model(file)
    for damaged in (b"", b"no archive", b"PK\x03\x04 cut off"):
        file.write_bytes(damaged)
        with pytest.raises(ModelMismatch):
            read_language_model(file)
    for wrong in (
        {"format": np.array(99)},
        {"words": np.array([{"pickled": "object"}], object)},
        {"words": np.frombuffer(b"too few", np.uint8)},
        {"letters": np.frombuffer(bytes(good["letters"]).replace(b"t", b"+"), np.uint8)},
        {"spelling": good["spelling"][:-1]},
        {"tokens_2": good["tokens_2"][:-1]},
        {"costs_2": good["costs_2"][:-1]},
        {"backoffs_2": good["backoffs_2"][:-1]},
    ):
        write(good | wrong, file)
        with pytest.raises(ModelMismatch):
            read_language_model(file)


def test_what_no_model_can_be_learnt_from_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, digits, out = (tmp_path / name for name in ("text.txt", "digits.txt", "lm.npz"))
    text.write_text("".join(f"{'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}x and\n" for i in range(100)))
    digits.write_text("1 2 3\n")
    (tmp_path / "latin.txt").write_bytes("Één\n".encode("latin-1"))
    for arguments in (
        [digits],
        [tmp_path / "none.txt"],
        [tmp_path / "latin.txt"],
        [text, "--min-count", 1000],
        [text, "--order", 0],
        [text, "--order", 10],  # 105 tokens to the tenth are more than fit into 63 bits
        [text, "--dev", digits],
    ):
        with pytest.raises(SystemExit, match="1"):
            main([*map(str, arguments), "--out", str(out)])
        assert capsys.readouterr().err.splitlines()[-1].startswith("python -m training.language_model: ")
        assert not out.exists()
    main([str(text), "--order", "9", "--out", str(out)])
    assert out.exists()
