"""Live sound over WebSockets, in our own protocol and in Vosk's: docs/streaming.md.

A connection is one `LiveTranscriber`. What it is sent is read as fast as it can be heard, no faster: a client that
sends more is slowed down by its own connection. Vosk's: https://alphacephei.com/vosk/server
"""

import asyncio
import itertools
import json
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from custom_logger import request_id
from openai_errors import error_of
from responses import error_response, speech_error_response
from service import Service
from speech.audio import from_pcm16
from speech.beam import NONE_HOT, Weights
from speech.ctc import Word
from speech.errors import NotReady, SpeechError
from speech.formats import MAX_RATE, MIN_RATE, Resampler
from speech.hot_words import MAX_HOT_WORDS
from speech.streaming import LiveTranscriber, Utterance

STREAM, VOSK = "/v1/audio/stream", "/vosk"
MAX_MESSAGE = 2**20  # bytes; the server closes with 1009 at more
SLICE = 2**16  # bytes of a message heard at once, so that others get their turn
TICK = 0.5  # seconds in which a waiting connection sees that the service is stopping

# Why a connection is closed: RFC 6455, 7.4.1, and https://www.iana.org/assignments/websocket
DONE, WRONG_TYPE, INVALID, BROKEN, RESTART, OVERLOADED, TIMED_OUT = 1000, 1003, 1007, 1011, 1012, 1013, 3008
CLOSE = {500: BROKEN, 503: OVERLOADED, 504: OVERLOADED}  # by the HTTP status of the error

MAX_PHRASE_WORDS = 10 * MAX_HOT_WORDS  # of Vosk's phrase list, that are looked at

Utterances = AsyncGenerator[Utterance, None]

log = logging.getLogger("api")


class Refused(Exception):
    """A message that cannot be honoured, or a connection that has ended otherwise; why, and the close code."""

    def __init__(self, close: int, detail: str, code: str = "InvalidMessage") -> None:
        super().__init__(detail)
        self.close, self.code = close, code


def create_live_router(service: Service) -> APIRouter:
    """The routes of live sound."""
    router = APIRouter()

    @router.websocket(STREAM)
    async def stream(socket: WebSocket) -> None:
        await _serve(OurConnection(socket, service))

    @router.websocket(VOSK)
    async def vosk(socket: WebSocket) -> None:
        await _serve(VoskConnection(socket, service))

    @router.websocket("/{path:path}")
    async def nowhere(socket: WebSocket) -> None:
        with _logged(socket) as values:
            values["status"] = 404
            await _deny(socket, error_response(404, "NotFound", "Not Found"))

    return router


@contextmanager
def _logged(socket: WebSocket) -> Iterator[dict[str, Any]]:
    """One line in the log for a connection, of these values as they are at its end."""
    host, port = socket.client or ("-", 0)
    values = {"path": quote(socket.scope["path"]), "status": DONE, "audio_seconds": 0.0, "utterances": 0}
    token = request_id.set(uuid.uuid4().hex)
    try:
        yield values
    finally:
        values |= {"client": f"{host}:{port}"}
        log.info("WS %(path)s %(status)d %(audio_seconds).1f s, %(utterances)d utterances from %(client)s", values)
        request_id.reset(token)


async def _serve(connection: "Connection") -> None:
    """Refuse the connection at its handshake, or serve it until it ends; one line in the log."""
    socket = connection.socket
    with _logged(socket) as values, ExitStack() as stack:
        try:
            stack.enter_context(connection.service.stream())
        except SpeechError as error:
            values["status"] = speech_error_response(error).status_code
            return await _deny(socket, speech_error_response(error))
        try:
            await socket.accept()
            values["status"] = await _converse(connection)
        finally:
            values |= {"audio_seconds": connection.seconds, "utterances": connection.utterances}


async def _deny(socket: WebSocket, response: Response) -> None:
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(response)
    else:  # a server that cannot say more than 403
        await socket.close(OVERLOADED)


async def _converse(connection: "Connection") -> int:
    """Serve an accepted connection; the code that it was closed with, 1006 if the client left."""
    try:
        try:
            await connection.run()
            code = DONE
        except (Refused, SpeechError) as error:
            close, response = _answer(error)
            await connection.send_error(response)
            code = close
        except (WebSocketDisconnect, TimeoutError):
            raise
        except Exception:
            log.exception("%s crashed", connection.socket.scope["path"])
            await connection.send_error(error_response(500, "InternalError", "internal error"))
            code = BROKEN
        finally:
            await connection.live.close()
        await connection.socket.close(code)
    except (WebSocketDisconnect, TimeoutError):  # gone, or it reads nothing any more
        return 1006
    return code


def _answer(error: Refused | SpeechError) -> tuple[int, Response]:
    if isinstance(error, Refused):
        return error.close, error_response(400, error.code, str(error))
    response = speech_error_response(error)
    close = RESTART if isinstance(error, NotReady) else CLOSE.get(response.status_code, INVALID)
    return close, response


class Connection(ABC):
    """One live stream, from its first message to its last answer."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self.socket, self.service = socket, service
        self.hot_words: Weights = NONE_HOT
        self.live = LiveTranscriber(
            lambda waveform: service.hear(waveform, self.hot_words),
            lambda waveform: service.preview(waveform, self.hot_words),
            self.show,
        )
        self.seconds = 0.0  # of sound received
        self.utterances = 0
        self._rate = 0.0
        self._resampler: Resampler | None = None
        self._odd = b""  # half a sample

    @abstractmethod
    def configure(self, message: dict[str, Any]) -> bool:
        """Take a text message that came before any sound; False if it ends the stream. Raises Refused."""

    @abstractmethod
    async def show(self, partial: str) -> None:
        """A new partial text."""

    @abstractmethod
    async def answer(self, ended: Utterances) -> None:
        """What is said to a message of sound, in which these utterances end. What had ended is said as well if the
        next one cannot be heard."""

    @abstractmethod
    async def end(self, ended: Utterances) -> None:
        """The last words, after the end of the sound."""

    async def run(self) -> None:
        """Read messages until the end. Raises Refused, SpeechError or WebSocketDisconnect."""
        while True:
            message = await self._receive()
            if isinstance(message, bytes):
                async with aclosing(self._hear(message)) as ended:
                    await self.answer(ended)
            elif message is None:
                async with aclosing(self._last()) as ended:
                    await self.answer(ended)
                raise NotReady("expected a running service, found one that is stopping")
            elif not self._take(_parsed(message)):
                break
        async with aclosing(self._last()) as ended:
            await self.end(ended)
        if self._odd:
            raise Refused(INVALID, "expected whole 16-bit samples, found an odd number of bytes")

    async def send(self, message: dict[str, Any]) -> None:
        """Send JSON; TimeoutError if the client does not read."""
        async with asyncio.timeout(self.service.settings.timeout):
            await self.socket.send_text(json.dumps(message))

    async def send_error(self, response: Response) -> None:
        """Send what a response with an error says."""
        error = error_of(response)
        self.service.metrics.error(json.loads(bytes(response.body))["code"])
        await self.send({"type": "error", "error": {key: error[key] for key in ("message", "type", "code")}})

    def set_rate(self, rate: object) -> None:
        """Take the sample rate of what will come. Raises Refused."""
        if not isinstance(rate, int | float) or not MIN_RATE <= rate <= MAX_RATE:
            raise Refused(INVALID, f"sample_rate: expected {MIN_RATE} to {MAX_RATE} Hz, found {rate!r:.99}")
        self._rate, self._resampler = rate, Resampler(rate)

    def set_hot_words(self, name: str, words: Sequence[str]) -> None:
        """Take the words to prefer in what will come. Raises Refused."""
        try:
            self.hot_words = self.service.read_hot_words(words)
        except ValueError as error:
            raise Refused(INVALID, f"{name}: {error}") from None

    def _take(self, message: dict[str, Any]) -> bool:
        """False if the message ends the stream."""
        if message == {"eof": True}:  # 1 is as good
            return False
        if self.seconds:
            raise Refused(INVALID, f"expected sound or eof after sound, found {message!r:.99}")
        return self.configure(message)

    async def _hear(self, data: bytes) -> Utterances:
        if self._resampler is None:
            raise Refused(WRONG_TYPE, "expected a text message with the sample_rate first, found a binary one")
        for start in range(0, len(data), SLICE):
            part = self._odd + data[start : start + SLICE]
            whole = len(part) // 2 * 2
            self._odd = part[whole:]
            samples = from_pcm16(np.frombuffer(part, "<i2", whole // 2)).samples
            self.seconds += len(samples) / self._rate
            async for utterance in self.live.accept(self._resampler.push(samples)):
                self.utterances += 1
                yield utterance
            await asyncio.sleep(0)

    async def _last(self) -> Utterances:
        tail = self._resampler.end() if self._resampler else np.empty(0, np.float32)
        for ended in (self.live.accept(tail), self.live.end()):
            async for utterance in ended:
                self.utterances += 1
                yield utterance

    async def _receive(self) -> str | bytes | None:
        """The next message, or None if the service is stopping. Raises Refused if none comes for too long."""
        clock, timeout = asyncio.get_running_loop().time, self.service.settings.timeout
        latest = clock() + timeout
        await asyncio.sleep(0)  # messages that have come already would keep all others waiting
        while not self.service.draining:
            try:
                async with asyncio.timeout(min(TICK, timeout)):
                    message = await self.socket.receive()
            except TimeoutError:
                if clock() >= latest:
                    raise Refused(
                        TIMED_OUT, f"expected a message within {timeout:g} s, found none", "StreamIdle"
                    ) from None
                continue
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006))
            text: str | None = message.get("text")
            return message["bytes"] if text is None else text
        return None


class OurConnection(Connection):
    """``WS /v1/audio/stream``: partial, final, done and error messages, as they come."""

    _shown = False  # a partial text of the running utterance

    def configure(self, message: dict[str, Any]) -> bool:
        """``{"sample_rate": Hz}``, once; ``hotwords`` may stand beside it."""
        if self._resampler or not {"sample_rate"} <= set(message) <= {"sample_rate", "hotwords"}:
            expected = "eof or sound" if self._resampler else "sample_rate, perhaps hotwords, and nothing else"
            raise Refused(INVALID, f"expected {expected}, found {message!r:.99}")
        self.set_rate(message["sample_rate"])
        self.set_hot_words("hotwords", _strings(message, "hotwords"))
        return True

    async def show(self, partial: str) -> None:
        """Send it."""
        self._shown = True
        await self.send({"type": "partial", "text": partial})

    async def answer(self, ended: Utterances) -> None:
        """A final message for each utterance in which something was said, or seemed to be."""
        async for utterance in ended:
            said = utterance.transcript
            if not said.text and not self._shown:
                continue
            self._shown = False
            words = [{"word": w.text, **_times(w), "probability": round(w.confidence, 4)} for w in said.words]
            await self.send({"type": "final", "text": said.text, **_times(utterance), "words": words})

    async def end(self, ended: Utterances) -> None:
        """The last final messages, and how many seconds were heard."""
        await self.answer(ended)
        await self.send({"type": "done", "duration": round(self.seconds, 3)})


class VoskConnection(Connection):
    """``WS /vosk``: one answer to each message of sound, as Vosk's clients wait for."""

    _with_words = True

    def configure(self, message: dict[str, Any]) -> bool:
        """``{"config": {"sample_rate": Hz, "words": …}}``; the words of a phrase list are preferred."""
        config = message.get("config")
        known = {"sample_rate", "words", "phrase_list", "max_alternatives"}
        if set(message) != {"config"} or not isinstance(config, dict) or not set(config) <= known:
            raise Refused(INVALID, f"expected config with {', '.join(sorted(known))}, or eof, found {message!r:.99}")
        if config.get("max_alternatives"):
            raise Refused(INVALID, f"expected max_alternatives 0, found {config['max_alternatives']!r:.99}")
        self._with_words = bool(config.get("words", self._with_words))
        phrases = _strings(config, "phrase_list")
        if self.service.takes_hot_words:
            self.hot_words = self._preferred(phrases)
        if "sample_rate" in config:
            self.set_rate(config["sample_rate"])
        return True

    async def show(self, partial: str) -> None:
        """It goes with the next answer."""

    async def answer(self, ended: Utterances) -> None:
        """The utterances that ended as one result, or the partial text."""
        found = await self._together(ended)
        await self.send(self._result(found) if found else {"partial": self.live.partial})

    async def end(self, ended: Utterances) -> None:
        """The last result."""
        await self.send(self._result(await self._together(ended)))

    def _preferred(self, phrases: Sequence[str]) -> Weights:
        """The words of a phrase list: as Vosk does, those that cannot be heard are left out."""
        words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
        words.pop("[unk]", None)
        found: dict[str, float] = {}
        for word in itertools.islice(words, MAX_PHRASE_WORDS):
            with suppress(ValueError):
                found |= self.service.read_hot_words([word])
        if len(found) < len(words) or len(found) > MAX_HOT_WORDS:
            kept = min(len(found), MAX_HOT_WORDS)
            log.info("%s: %d of the %d words of the phrase list are preferred", VOSK, kept, len(words))
        return dict(itertools.islice(found.items(), MAX_HOT_WORDS))

    async def _together(self, ended: Utterances) -> list[Utterance]:
        found: list[Utterance] = []
        try:
            async for utterance in ended:
                found.append(utterance)
        except SpeechError:
            if found:
                await self.send(self._result(found))
            raise
        return found

    def _result(self, ended: Sequence[Utterance]) -> dict[str, Any]:
        words: list[Word] = [word for utterance in ended for word in utterance.transcript.words]
        text = " ".join(word.text for word in words)
        if not words or not self._with_words:
            return {"text": text}
        result = [{"conf": round(w.confidence, 6), **_times(w), "word": w.text} for w in words]
        return {"result": result, "text": text}


def _parsed(message: str) -> dict[str, Any]:
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(INVALID, f"expected a JSON object, found {message!r:.99}")
    return found


def _strings(message: dict[str, Any], name: str) -> list[str]:
    found = message.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise Refused(INVALID, f"{name}: expected a list of words or phrases, found {found!r:.99}")
    return found


def _times(said: Word | Utterance) -> dict[str, float]:
    return {"start": round(said.start, 3), "end": round(said.end, 3)}
