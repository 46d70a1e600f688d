"""Live sound, spoken to the real process over real WebSockets."""

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api import create_app
from config import Settings
from live_api import STREAM, VOSK, OurConnection
from predictor import SpeechPredictor
from service import Service
from speech.audio import decode_wav
from speech.ctc import Transcript
from speech.errors import QueueFull
from speech.formats import resample
from speech.streaming import Utterance
from tests.conftest import FakeEngine, upload
from tests.test_server import ROOT, Process

HELLO = decode_wav((ROOT / "samples" / "hello.wav").read_bytes()).samples
PAUSE = np.zeros(33075, np.float32)  # 1.5 s


def pcm(*parts: np.ndarray) -> bytes:
    return (np.concatenate(parts) * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    started = Process(tmp_path_factory.mktemp("live"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Takes two streams, and waits a second for a message."""
    started = Process(tmp_path_factory.mktemp("hasty"), STT_MAX_STREAMS="2", STT_TIMEOUT="1")
    yield started
    started.stop()


def open_stream(server: Process, path: str = "/v1/audio/stream") -> ClientConnection:
    return connect(server.url.replace("http", "ws") + path, open_timeout=20, close_timeout=20)


def rest(socket: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """All that comes until the end, and the code of the close."""
    found = []
    try:
        while True:
            found.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed as closed:
        return found, closed.rcvd.code if closed.rcvd else None


def speak(
    server: Process, sound: bytes, rate: int = 22050, size: int = 3001
) -> tuple[list[dict[str, Any]], int | None]:
    with open_stream(server) as socket:
        socket.send(json.dumps({"sample_rate": rate}))
        for start in range(0, len(sound), size):
            socket.send(sound[start : start + size])
        socket.send('{"eof": true}')
        return rest(socket)


def in_flight(server: Process) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=20).text.splitlines()
    return float(next(line for line in lines if line.startswith("stt_in_flight ")).split()[1])


@pytest.mark.parametrize("size", [1, 3001, 2**20])
def test_finals_words_and_done(server: Process, size: int):
    """Whatever the chunks, odd ones too: two utterances, times in the stream, then the length, then 1000."""
    parts = (HELLO, PAUSE, HELLO) if size > 1 else (HELLO[: 2 * 22050],)
    messages, code = speak(server, pcm(*parts), size=size)
    finals = [m for m in messages if m["type"] == "final"]
    assert code == 1000
    assert len(finals) == (2 if size > 1 else 1)
    assert messages[-1] == {"type": "done", "duration": round(sum(len(p) for p in parts) / 22050, 3)}
    assert {m["type"] for m in messages[:-1]} <= {"partial", "final"}
    words = [word for final in finals for word in final["words"]]
    assert all(final["text"] == " ".join(w["word"] for w in final["words"]) for final in finals)
    assert all(a["start"] < a["end"] <= b["start"] for a, b in pairwise(words))
    assert all(0 < w["probability"] <= 1 for w in words)
    assert [(f["start"], f["end"]) for f in finals] == [(f["words"][0]["start"], f["words"][-1]["end"]) for f in finals]
    if size > 1:
        begins = (len(HELLO) + len(PAUSE)) / 22050
        assert finals[0]["end"] < begins < finals[1]["start"] < begins + 1


def test_partial_texts_come_while_the_sound_does(server: Process):
    """The utterance has not ended and the client waits: the text so far comes all the same."""
    with open_stream(server) as socket:
        socket.send('{"sample_rate": 22050}')
        socket.send(pcm(HELLO[: 2 * 22050]))
        partial = json.loads(socket.recv(timeout=60))
        assert partial["type"] == "partial"
        assert partial["text"]
        socket.send('{"eof": true}')
        assert [m["type"] for m in rest(socket)[0]] == ["final", "done"]


@pytest.mark.parametrize("rate", [8000, 48000, 44100])
def test_any_rate(server: Process, rate: int):
    other = np.interp(np.arange(len(HELLO) * rate // 22050) * 22050 / rate, np.arange(len(HELLO)), HELLO)
    messages, code = speak(server, pcm(other), rate=rate)
    assert code == 1000
    assert [m["type"] for m in messages if m["type"] != "partial"] == ["final", "done"]
    assert messages[-1]["duration"] == pytest.approx(len(HELLO) / 22050, abs=0.01)
    assert messages[-2]["end"] < len(HELLO) / 22050


def test_silence_and_nothing(server: Process):
    assert speak(server, pcm(PAUSE, PAUSE)) == ([{"type": "done", "duration": 3.0}], 1000)
    assert speak(server, b"") == ([{"type": "done", "duration": 0.0}], 1000)


START = '{"sample_rate": 16000}'
VOSK_START = f'{{"config": {START}}}'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("messages", "close", "words"),
    [
        ([b"\0\0"], 1003, ["text", "binary"]),
        (["hello"], 1007, ["JSON", "hello"]),
        ([DEEP], 1007, ["JSON"]),
        (["[1]"], 1007, ["object", "[1]"]),
        (["{}"], 1007, ["sample_rate"]),
        (['{"sample_rate": 16000, "language": "de"}'], 1007, ["language"]),
        (['{"sample_rate": "16000"}'], 1007, ["4000", "'16000'"]),
        (['{"sample_rate": 100}'], 1007, ["4000", "100"]),
        (['{"sample_rate": 1e99}'], 1007, ["384000"]),
        (['{"sample_rate": NaN}'], 1007, ["nan"]),
        ([f'{{"sample_rate": {"9" * 10000}}}'], 1007, ["JSON"]),
        ([START, START], 1007, ["eof or sound"]),
        ([START, bytes(100), '{"stop": 1}'], 1007, ["eof", "stop"]),
        ([START, bytes(101), '{"eof": true}'], 1007, ["16-bit", "odd"]),
    ],
)
def test_a_bad_message_is_answered_by_an_error_and_a_close_code(server: Process, messages, close, words):
    with open_stream(server) as socket:
        for message in messages:
            socket.send(message)
        found, code = rest(socket)
    assert code == close
    assert found[-1]["type"] == "error"
    error = found[-1]["error"]
    assert sorted(error) == ["code", "message", "type"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_message")
    assert all(word in error["message"] for word in words), error
    assert len(error["message"]) < 300


def test_a_message_that_is_too_large(server: Process):
    with open_stream(server) as socket:
        socket.send(START)
        with suppress(ConnectionClosed):  # already while it writes
            socket.send(bytes(2**20 + 2))
        assert rest(socket) == ([], 1009)


def vosk(server: Process, config: str, sound: bytes, size: int) -> list[dict[str, Any]]:
    """What Vosk's test.py does: one answer is awaited after each message, and one after the end."""
    found = []
    with open_stream(server, "/vosk") as socket:
        socket.send(config)
        for start in range(0, len(sound), size):
            socket.send(sound[start : start + size])
            found.append(json.loads(socket.recv(timeout=60)))
        socket.send('{"eof" : 1}')
        found.append(json.loads(socket.recv(timeout=60)))
        assert rest(socket) == ([], 1000)
    return found


def test_vosks_test_client(server: Process):
    """Its messages, to the blank: https://github.com/alphacep/vosk-server/blob/master/websocket/test.py"""
    config = '{ "config" : { "sample_rate" : %d } }' % 22050  # noqa: UP031
    answers = vosk(server, config, pcm(HELLO, PAUSE, HELLO), 2 * int(22050 * 0.2))
    assert all(list(a) == ["partial"] or {"text"} <= set(a) <= {"result", "text"} for a in answers)
    results = [a for a in answers if a.get("text")]
    assert len(results) == 2
    for result in results:
        assert result["text"] == " ".join(w["word"] for w in result["result"])
        assert all(sorted(w) == ["conf", "end", "start", "word"] for w in result["result"])
        assert all(0 < w["conf"] <= 1 and w["start"] < w["end"] for w in result["result"])
    assert results[0]["result"][-1]["end"] < results[1]["result"][0]["start"]
    assert any("text" in a for a in answers[:-1])  # the pause ends an utterance


def test_vosks_other_configurations(server: Process):
    """As test_words.py sends it: a phrase list, a float, and no words."""
    config = """{"config" :
                    { "phrase_list" : ["zero one two three four five six seven eight nine oh"],
                      "sample_rate" : 16000.0,
                      "words" : 0}}"""
    sound = pcm(resample(HELLO, 22050)[: 2 * 16000])
    answers = vosk(server, config, sound, 8000)
    assert list(answers[-1]) == ["text"]
    whole = vosk(server, '{"config": {"sample_rate": 22050}}', pcm(HELLO, PAUSE, HELLO, PAUSE), 2**20)
    assert len(whole) == 2  # two utterances in one message are one answer
    assert len(whole[0]["result"]) > 2
    assert whole[1] == {"text": ""}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (['{"config": {"model": "/etc/passwd"}}'], ["sample_rate", "model"]),
        (['{"config": 3}'], ["config"]),
        (['{"config": {"max_alternatives": 3}}'], ["max_alternatives", "3"]),
        (['{"reset": 1}'], ["config", "reset"]),
        ([VOSK_START, bytes(100), VOSK_START], ["eof after sound", "16000"]),
    ],
)
def test_what_vosk_has_and_we_lack_is_refused(server: Process, messages: list[str | bytes], words: list[str]):
    with open_stream(server, "/vosk") as socket:
        for message in messages:
            socket.send(message)
        if len(messages) > 1:
            assert json.loads(socket.recv(timeout=20)) == {"partial": ""}
        (found,), code = rest(socket)
    assert code == 1007
    assert all(word in found["error"]["message"] for word in words)


def test_an_error_of_a_stream_is_counted(server: Process):
    def counted() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(map(float, re.findall(r'^stt_errors_total{code="InvalidMessage"} (.+)$', text, re.MULTILINE)))

    before = counted()
    with open_stream(server) as stream:
        stream.send("{}")
        rest(stream)
    assert counted() == before + 1


class Socket:
    """One end that keeps what is sent, or takes nothing."""

    def __init__(self, stalled: bool = False) -> None:
        self.stalled, self.sent = stalled, list[dict[str, Any]]()

    async def send_text(self, text: str) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        self.sent.append(json.loads(text))


def test_who_reads_nothing_is_given_up(settings: Settings):
    service = Service(settings.model_copy(update={"timeout": 0.05}), SpeechPredictor(FakeEngine()))
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(OurConnection(Socket(stalled=True), service).show("a"), 20))
    assert time.perf_counter() - started < 10


def test_a_partial_text_that_was_shown_has_a_final_even_if_it_is_empty(settings: Settings):
    async def utterances(*texts: str) -> AsyncIterator[Utterance]:
        for text in texts:
            yield Utterance(Transcript(text, 0.0), 1.0, 2.0)

    async def scenario() -> None:
        await connection.answer(utterances("", "a"))
        await connection.show("b")
        await connection.answer(utterances("", ""))

    connection = OurConnection(socket := Socket(), Service(settings, SpeechPredictor(FakeEngine())))
    asyncio.run(scenario())
    assert [(message["type"], message["text"]) for message in socket.sent] == [
        ("final", "a"), ("partial", "b"), ("final", ""),
    ]  # fmt: skip


def test_too_many_streams_are_refused_at_the_handshake(hasty: Process):
    with open_stream(hasty), open_stream(hasty, "/vosk"):
        with pytest.raises(InvalidStatus) as caught:
            open_stream(hasty)
        response = caught.value.response
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        body = json.loads(response.body)
        assert (body["code"], body["detail"]) == ("QueueFull", "expected at most 2 live streams, found 2")
    hasty.wait_for("WS /vosk 1006")
    hasty.wait_for("WS /v1/audio/stream 1006")
    assert speak(hasty, b"")[1] == 1000


def test_an_idle_stream_is_closed(hasty: Process):
    with open_stream(hasty) as socket:
        socket.send(START)
        (error,), code = rest(socket)
    assert (error["error"]["code"], code) == ("stream_idle", 3008)


def test_without_a_model_a_stream_is_refused(tmp_path: Path):
    process = Process(tmp_path, "no model", STT_MODEL=str(tmp_path / "none"))
    try:
        with pytest.raises(InvalidStatus) as caught:
            open_stream(process)
        assert caught.value.response.status_code == 503
        assert json.loads(caught.value.response.body)["code"] == "ModelNotFound"
    finally:
        process.stop()


def broken(frames: np.ndarray) -> bool:
    """Fails on all but the warm-up's silence."""
    return bool(frames.any())


def slow(frames: np.ndarray) -> bool:
    """Takes longer than it may."""
    time.sleep(2.0 if frames.any() else 0.0)
    return False


@pytest.mark.parametrize(
    ("fail", "timeout", "close", "error"),
    [(broken, 30.0, 1011, "inference_failed"), (slow, 0.5, 1013, "deadline_exceeded")],
)
def test_a_network_that_fails_or_is_late(
    settings: Settings, fail: Callable[[np.ndarray], bool], timeout: float, close: int, error: str
):
    settings = settings.model_copy(update={"timeout": timeout})
    with TestClient(create_app(settings, SpeechPredictor(FakeEngine(fail)))) as client:
        upload(client, b"")  # waits for the model; live sound does not
        with client.websocket_connect(STREAM) as socket:
            socket.send_text('{"sample_rate": 22050}')
            socket.send_bytes(pcm(HELLO[:22050]))
            socket.send_text('{"eof": true}')
            assert socket.receive_json()["error"]["code"] == error
            with pytest.raises(WebSocketDisconnect) as caught:
                socket.receive_text()
    assert caught.value.code == close


class FailsLater:
    """Fails once it has been given so many clips with sound."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, frames: np.ndarray) -> bool:
        self.left -= bool(frames.any())
        return self.left < 0


@pytest.mark.parametrize("size", [8192, 2**20])
def test_what_was_heard_is_sent_though_the_next_cannot_be(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, size: int
):
    """Three utterances in one message or in many; the network fails at the third."""

    async def no_preview(*_: object) -> Transcript:
        raise QueueFull("no partial texts: they would count as well")

    monkeypatch.setattr(Service, "preview", no_preview)
    sound = pcm(HELLO[:22050], PAUSE, HELLO[:22050], PAUSE, HELLO[:22050], PAUSE)
    for path, first in ((STREAM, '{"sample_rate": 22050}'), (VOSK, '{"config": {"sample_rate": 22050}}')):
        with TestClient(create_app(settings, SpeechPredictor(FakeEngine(FailsLater(2))))) as client:
            upload(client, b"")  # waits for the model
            with client.websocket_connect(path) as socket:
                socket.send_text(first)
                for start in range(0, len(sound), size):
                    socket.send_bytes(sound[start : start + size])
                found: list[dict[str, Any]] = []
                with pytest.raises(WebSocketDisconnect) as caught:
                    found.extend(iter(socket.receive_json, None))
        assert caught.value.code == 1011
        found = [message for message in found if "partial" not in (*message, message.get("type"))]
        *finals, error = found
        assert error["error"]["code"] == "inference_failed"
        if path == VOSK and size == 2**20:
            assert [bool(message["text"]) for message in finals] == [True]  # both as one result
        else:
            assert [bool(message["text"]) for message in finals] == [True, True]


@pytest.mark.parametrize("path", ["/", "/nope%0A", "/vosk/", "/v1/realtime", "/ui"])
def test_there_is_no_such_path(server: Process, path: str):
    with pytest.raises(InvalidStatus) as caught:
        open_stream(server, path)
    response = caught.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (404, "NotFound")
    server.wait_for(f"WS {path} 404")


def test_vosks_phrase_list_is_taken_as_far_as_it_can_be(server: Process):
    """Programs send what they have: digits, dashes, hundreds of words."""
    phrases = [
        "turn left 90 degrees - now",
        "[unk]",
        *("w" + "abcdefghijklmno"[n // 10] * (n % 10 + 1) for n in range(150)),
    ]
    config = json.dumps({"config": {"sample_rate": 22050, "phrase_list": phrases}})
    assert vosk(server, config, pcm(HELLO), 2**20)[-1]["text"]
    server.wait_for("/vosk: 100 of the 156 words of the phrase list are preferred")


def test_sigterm_sends_the_last_final_and_closes_with_1012(tmp_path: Path):
    process = Process(tmp_path)
    try:
        with open_stream(process) as socket:
            socket.send('{"sample_rate": 22050}')
            socket.send(pcm(HELLO))
            assert json.loads(socket.recv(timeout=60))["type"] == "partial"
            process.process.send_signal(signal.SIGTERM)
            messages, code = rest(socket)
        assert [m["type"] for m in messages if m["type"] != "partial"] == ["final", "error"]
        assert (messages[-1]["error"]["code"], code) == ("not_ready", 1012)
        assert process.process.wait(20) in (0, -signal.SIGTERM)
        assert not any("Traceback" in line for line in process.lines)
    finally:
        process.stop()


def test_connections_leave_nothing_behind(server: Process):
    """Ended, broken off and refused ones: afterwards as many files and threads are open as before."""

    def connection(number: int) -> None:
        if number % 3 == 0:
            speak(server, pcm(HELLO[:22050]))
        elif number % 3 == 1:
            with open_stream(server) as socket:
                socket.send("{}")
                rest(socket)
        else:
            with open_stream(server) as socket:
                socket.send('{"sample_rate": 22050}')
                socket.send(pcm(HELLO))
                socket.socket.shutdown(SHUT_RDWR)  # no goodbye

    process = psutil.Process(server.process.pid)
    for number in range(9):
        connection(number)
    files, threads = process.num_fds(), process.num_threads()
    for number in range(60):
        connection(number)
    for _ in range(100):
        if not in_flight(server) and process.num_fds() <= files:
            break
    assert in_flight(server) == 0
    assert process.num_fds() <= files + 2  # that of the last request may still be closing
    assert process.num_threads() <= threads
    assert not any("Traceback" in line for line in server.lines)


def test_a_thousand_connections_cost_no_memory(server: Process):
    """Eight at a time: ended, refused, broken off, and Vosk's."""
    url = server.url.replace("http", "ws")
    messages = [
        (STREAM, ['{"sample_rate": 22050}', bytes(2000), '{"eof": true}']),
        (STREAM, ["{}"]),
        (STREAM, ['{"sample_rate": 22050}', bytes(2000)]),
        (VOSK, ['{"config": {"sample_rate": 22050}}', bytes(2000), '{"eof": 1}']),
    ]
    codes: Counter[int] = Counter()

    async def connection(number: int, turn: asyncio.Semaphore) -> None:
        path, sent = messages[number % 4]
        async with turn, async_connect(url + path, open_timeout=60, close_timeout=60) as socket:
            for message in sent:
                await socket.send(message)
            if number % 4 == 2:
                socket.transport.abort()
            with suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            codes[socket.close_code] += 1

    async def connections(count: int) -> None:
        turn = asyncio.Semaphore(8)
        async with asyncio.timeout(300):
            await asyncio.gather(*(connection(number, turn) for number in range(count)))

    process = psutil.Process(server.process.pid)
    asyncio.run(connections(200))
    before = process.memory_info().rss
    asyncio.run(connections(1000))
    assert codes == {1000: 600, 1007: 300, 1006: 300}
    assert process.memory_info().rss < before + 2**24
    for _ in range(100):
        if not in_flight(server):
            break
    assert in_flight(server) == 0
