"""Words that are preferred: how they are written, and that they count at every door, with the shipped model."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import SpeechPredictor
from speech.audio import decode_wav
from speech.hot_words import (
    HOT_WEIGHT,
    MAX_HOT_LENGTH,
    MAX_HOT_TEXT,
    MAX_HOT_WEIGHT,
    MAX_HOT_WORDS,
    HotWords,
    read_hot_words,
)
from tests.test_live import open_stream, pcm, rest, vosk
from tests.test_server import ROOT, Process

HELLO = ROOT / "samples" / "hello.wav"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["", " , ,"], {}),
        (["Kubernetes"], {"kubernetes": HOT_WEIGHT}),
        (["ice  cream:6, Dr. No : -2.5", "naïve"], {"ice cream": 6.0, "dr no": -2.5, "naive": HOT_WEIGHT}),
        (["O’Hara-Smith, really?"], {"o'hara smith": HOT_WEIGHT, "really": HOT_WEIGHT}),
        (["a:1,A:2"], {"a": 2.0}),
    ],
)
def test_how_they_are_written(texts: list[str], expected: dict[str, float]):
    assert read_hot_words(texts) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GPT4", ["letters", "GPT4"]),
        ("日本", ["letters"]),
        ("?!", ["letters"]),
        (":3", ["letters", ":3"]),
        ("word:many", ["WORD:NUMBER", "word:many"]),
        ("word:nan", ["at most 100", "nan"]),
        ("word:101", ["at most 100"]),
        ("x" * (MAX_HOT_LENGTH + 1), [f"at most {MAX_HOT_LENGTH} characters"]),
        (
            ",".join(chr(97 + i // 26) + chr(97 + i % 26) for i in range(MAX_HOT_WORDS + 1)),
            [f"at most {MAX_HOT_WORDS}"],
        ),
        ("a," * MAX_HOT_TEXT, ["characters", str(2 * MAX_HOT_TEXT)]),  # at once, however many of them are the same
    ],
)
def test_what_cannot_be_taken_is_said(text: str, words: list[str]):
    with pytest.raises(ValueError, match="expected") as caught:
        read_hot_words([text])
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value)) < 250


@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_text_is_hot_words_or_an_error_of_ours(texts: list[str]):
    try:
        found = read_hot_words(texts)
    except ValueError as error:
        assert "found" in str(error)
    else:
        assert all(word and abs(weight) <= MAX_HOT_WEIGHT for word, weight in found.items())


def score(weights: dict[str, float], text: str) -> float:
    """What a text gets, letter by letter."""
    hot, heard, total, begins = HotWords(weights, "abcdefghijklmnopqrstuvwxyz "), "", 0.0, True
    for character in text + " ":
        heard, bonus = hot.after(heard, character, begins)
        total, begins = total + bonus, character == " "
    return total + hot.unfinished(heard)


def test_hot_words_are_earned_and_given_back() -> None:
    phrases = {"new york": 4.0, "new": 1.0, "Yorkshire!": 9.0}
    answers = {"new": 1, "news": 0, "new york": 5, "new yorkshire": 10, "york": 0, "a new york new": 6, "anew york": 0,
               "new new york": 6, "new yor": 1, "yorkshire new": 10}  # fmt: skip
    assert {text: score(phrases, text) for text in answers} == pytest.approx(answers)
    hot = HotWords(phrases, "abcdefghijklmnopqrstuvwxyz ")
    assert hot.after("", "y", begins=True)[1] > 0.8  # a share of the bonus before the word is whole


@pytest.mark.parametrize(
    ("phrases", "answers"),
    [
        ({"york": 8.0, "new york times": 6.0}, {"new york city": 8, "new york ti": 8, "new york times": 6}),
        ({"york": 8.0, "of york": -2.0}, {"of york": -2, "of new york": 8}),
        ({"doctor": 8.0, "smith": 8.0, "doctor smith clinic": 4.0}, {"doctor smith": 16, "doctor smith clinic": 12}),
        ({"new york": 6.0, "york": 8.0, "york times": 1.0}, {"new york city": 6, "new york tango": 6}),
        ({"x a b c": 1.0, "a b": 4.0, "b d": 2.0}, {"x a b d": 6, "a b d": 6, "x a b e": 4}),
    ],
)
def test_a_phrase_counts_also_where_another_around_it_fails(phrases: dict[str, float], answers: dict[str, float]):
    assert {text: score(phrases, text) for text in answers} == pytest.approx(answers)


PHRASES = st.lists(st.sampled_from(["a", "b", "c", "ab"]), min_size=1, max_size=4).map(" ".join)


@given(st.dictionaries(PHRASES, st.sampled_from([1.0, 4.0, 7.5, -3.0]), max_size=6), PHRASES.map(lambda t: t + " c a"))
def test_a_text_gets_the_sum_of_the_phrases_in_it(weights: dict[str, float], text: str) -> None:
    """But for those wholly within one that began before them."""
    said, words = [], text.split()
    for begin, end in itertools.combinations(range(len(words) + 1), 2):
        if (phrase := " ".join(words[begin:end])) in weights:
            said.append((begin, end, weights[phrase]))
    outer = [(b, e, w) for b, e, w in said if not any(before < b and e <= behind for before, behind, _ in said)]
    assert score(weights, text) == pytest.approx(sum(weight for _, _, weight in outer))


@given(st.dictionaries(st.text("ab !?", max_size=5), st.floats(-100, 100), max_size=4), st.text("ab ", max_size=12))
def test_hot_words_never_leave_a_rest(weights: dict[str, float], text: str) -> None:
    hot, (heard, total) = HotWords(weights, "ab ?!"), ("", 0.0)
    words = " ".join(text.split())
    for before, character in zip(" " + words, words, strict=False):
        heard, bonus = hot.after(heard, character, begins=before == " ")
        total += bonus
    assert abs(total + hot.unfinished(heard)) <= sum(abs(weight) for weight in weights.values()) * len(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    started = Process(tmp_path_factory.mktemp("hot"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def word(shipped: SpeechPredictor) -> str:
    """The word of the sample that the model is least sure of."""
    return min(shipped.transcribe(HELLO).words, key=lambda word: word.confidence).text


@pytest.fixture(scope="module")
def unwanted(word: str) -> str:
    """That word as a hot word that is hardly ever said: without it, whatever the model, the text is another."""
    return f"{word}:-60"


def ask(server: Process, **form: str | list[str]) -> httpx.Response:
    url = f"{server.url}/v1/audio/transcriptions"
    return httpx.post(url, data=form, files={"file": HELLO.read_bytes()}, timeout=60)


def test_openais_client_and_those_of_others_send_them(server: Process, word: str, unwanted: str):
    assert word in ask(server).json()["text"].split()
    for form in ({"hotwords": unwanted}, {"hotwords": ["one", unwanted]}, {"keywords[]": ["one", unwanted]}):
        assert word not in ask(server, **form).json()["text"].split()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.audio.transcriptions.create(model="default", file=HELLO, keywords=["one", unwanted])
    assert word not in found.text.split()
    assert word in ask(server).json()["text"].split()  # they count for their request alone


def test_as_many_as_are_promised_may_come(server: Process):
    words = ["".join(pair) for pair in itertools.product("abcdefghij", repeat=2)]
    assert len(words) == MAX_HOT_WORDS
    assert ask(server, model="default", response_format="text", **{"keywords[]": words}).status_code == 200
    refused = ask(server, hotwords=",".join(words), **{"keywords[]": ["one"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "hotwords")
    assert f"at most {MAX_HOT_WORDS}" in refused.json()["error"]["message"]


def test_live_sound_takes_them(server: Process):
    def speak(hotwords: list[str]) -> list[dict[str, Any]]:
        with open_stream(server) as socket:
            socket.send(json.dumps({"sample_rate": 22050, "hotwords": hotwords}))
            socket.send(pcm(decode_wav(HELLO.read_bytes()).samples))
            socket.send('{"eof": true}')
            return [word for message in rest(socket)[0] if message["type"] == "final" for word in message["words"]]

    unsure = min(speak([]), key=lambda word: word["probability"])["word"]
    assert unsure not in [word["word"] for word in speak(["one", f"{unsure}:-60"])]


@pytest.mark.parametrize(("hotwords", "words"), [(["7"], ["7"]), ("a", ["list"]), ([3], ["list"]), ({}, ["list"])])
def test_live_sound_refuses_others(server: Process, hotwords: object, words: list[str]):
    with open_stream(server) as socket:
        socket.send(json.dumps({"sample_rate": 22050, "hotwords": hotwords}))
        (error,), code = rest(socket)
    assert (code, error["error"]["code"]) == (1007, "invalid_message")
    assert all(word in error["error"]["message"] for word in ["hotwords", *words])


def test_vosks_phrase_list_prefers_its_words(server: Process):
    def speak(phrases: list[str]) -> list[dict[str, Any]]:
        config = json.dumps({"config": {"sample_rate": 22050, "phrase_list": phrases}})
        return vosk(server, config, pcm(decode_wav(HELLO.read_bytes()).samples), 2**20)[-1]["result"]

    unsure = min(speak([]), key=lambda word: word["conf"])["word"]
    assert unsure not in [word["word"] for word in speak([f"one two {unsure}:-60", "[unk]"])]
    assert unsure not in [word["word"] for word in speak([f"one two {unsure}:-60"] * 2000)]  # words may come again


def test_the_command_line_takes_them_here_and_there(server: Process, word: str, unwanted: str):
    for where in ([], ["--server", server.url]):
        command = [sys.executable, "-m", "speech", str(HELLO), "--hot-words", "one", "--hot-words", unwanted, *where]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split()
        assert word not in done.stdout.split()


def test_a_model_that_decodes_greedily_refuses_them(tmp_path: Path):
    server = Process(tmp_path, STT_DECODER="greedy")
    try:
        refused = ask(server, hotwords="one")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "hotwords")
        assert "decodes with language" in refused.json()["detail"]
        assert ask(server, hotwords="").is_success
        with open_stream(server) as socket:
            socket.send('{"sample_rate": 22050, "hotwords": ["one"]}')
            assert rest(socket)[1] == 1007
        config = '{"config": {"sample_rate": 22050, "phrase_list": ["one two"]}}'
        assert vosk(server, config, b"", 1) == [{"text": ""}]  # as Vosk's models that take none
    finally:
        server.stop()
    command = [sys.executable, "-m", "speech", str(HELLO), "--decoder", "greedy", "--hot-words", "one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "decodes with language" in done.stderr
