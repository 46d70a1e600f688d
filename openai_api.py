"""OpenAI's transcription endpoint, for clients that were written for it: docs/openai.md.

What cannot be honoured is refused by name with a 400. The router is handed the function that transcribes.
Source: https://platform.openai.com/docs/api-reference/audio and the ``openai`` package.
"""

import asyncio
import json
import logging
import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from custom_logger import request_id
from openai_errors import PATHS, error_of, openai_error
from responses import documented_errors, error_response, speech_error_response
from service import ClientGone
from speech.beam import Weights
from speech.ctc import Word
from speech.errors import SpeechError
from speech.hot_words import MAX_HOT_WORDS
from speech.segments import Segment, segments
from speech.subtitles import to_srt, to_vtt

ALIASES = ("whisper-1", "default")  # names that stand for the served model
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("segment", "word")
MAX_FIELDS = MAX_HOT_WORDS + 30  # a hot word each, and the others
HOT_FIELDS = ("keywords[]", "hotwords")  # as OpenAI's clients and those of faster-whisper's servers say it
LANGUAGES = ("en", "english")

FIELDS: dict[str, dict[str, Any]] = {  # of the form, as OpenAPI says it
    "file": {"type": "string", "format": "binary", "description": "the sound"},
    "model": {"type": "string", "description": f"the served model; {' and '.join(ALIASES)} stand for it"},
    "language": {"type": "string", "enum": list(LANGUAGES)},
    "prompt": {"type": "string", "description": "taken without effect: the network hears no context"},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "description": "taken without effect: no sampling"},
    "timestamp_granularities[]": {"type": "array", "items": {"enum": list(GRANULARITIES)}, "default": ["segment"]},
    "keywords[]": {"type": "array", "items": {"type": "string"}, "description": "words or phrases to prefer"},
    "hotwords": {"type": "string", "description": "words or phrases to prefer: Kubernetes, ice cream:6"},
    "stream": {"type": "boolean", "default": False, "description": "server-sent events, with json and text only"},
}
UNSUPPORTED = {  # what OpenAI's clients can send besides
    "include": "log-probabilities of tokens are not given; verbose_json has avg_logprob and probability",
    "chunking_strategy": "long sound is cut at its pauses in one way",
    "languages": "the model hears English only",
    **dict.fromkeys(("known_speaker_names", "known_speaker_references"), "speakers are not told apart"),
}


@dataclass(frozen=True, slots=True)
class Transcription:
    """What the router makes its answers of; ``duration`` of the sound in seconds."""

    text: str
    words: Sequence[Word]
    segments: Sequence[Segment]
    duration: float


@dataclass(frozen=True, slots=True)
class Part:
    """What was said in one piece of the sound, in order: words with times of the whole; it ends after ``end`` s."""

    words: Sequence[Word]
    end: float


UNKNOWN_MODEL = (404, "UnknownModel", "expected one of model1, whisper-1, default, found 'large'")
INVALID = (400, "InvalidParameter", "expected language to be one of en, english, found 'de'")
ANSWERS: dict[str, Any] = {kind: {} for kind in ("application/json", "text/plain", "text/vtt", "text/event-stream")}

Transcribe = Callable[[BinaryIO, Request, Weights], AsyncGenerator[Part, None]]
ReadHotWords = Callable[[Sequence[str]], Weights]  # raises ValueError

log = logging.getLogger("api")


class RefusedParameter(Exception):
    """A field of the form that cannot be honoured."""

    def __init__(self, param: str, detail: str, status: int = 400, code: str = "InvalidParameter") -> None:
        super().__init__(detail)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, slots=True)
class Options:
    """What the form asks for, checked."""

    response_format: str
    granularities: frozenset[str]
    stream: bool
    hot_words: Weights


def create_router(
    transcribe: Transcribe,
    read_hot_words: ReadHotWords,
    model: str,
    errors: Sequence[tuple[int, str, str]] = (),
    count: Callable[[str], None] = lambda code: None,
) -> APIRouter:
    """Routes that answer as OpenAI's do.

    ``transcribe(file, request, hot_words)`` gives the parts of each upload; what it raises is left to the app's
    handlers, or is the last event of a stream that has begun. ``read_hot_words`` makes hot words of what a client
    wrote, or raises ValueError.
    ``model`` is the name of the served model; ``errors``, as `documented_errors` takes them, are shown in the OpenAPI
    document. ``count`` is told the code of each error that ends a stream.
    """
    router = APIRouter(tags=["OpenAI"])
    names = (model, *ALIASES)
    card = {"id": model, "object": "model", "created": 0, "owned_by": "local"}

    async def transcriptions(request: Request) -> Response:
        try:
            async with AsyncExitStack() as stack:
                try:
                    form = await stack.enter_async_context(request.form(max_files=1, max_fields=MAX_FIELDS))
                except UnicodeError:
                    raise HTTPException(400, "expected a form in UTF-8, found what its charset cannot hold") from None
                options = read_options(form, names, read_hot_words)
                file = form["file"]
                assert isinstance(file, UploadFile)
                parts = await stack.enter_async_context(aclosing(transcribe(file.file, request, options.hot_words)))
                first = await anext(parts)
                if options.stream:
                    return Events(_events(first, parts, count), stack.pop_all())
                heard = [first, *[part async for part in parts]]
                return await asyncio.to_thread(lambda: answer(_joined(heard), options))  # of hours: a second's work
        except ClientDisconnect:
            raise HTTPException(400, "expected the whole body, found the connection closed before") from None
        except RefusedParameter as refusal:
            return _refused(refusal)

    schema = {"type": "object", "required": ["file"], "properties": FIELDS}
    body = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
    responses = {200: {"content": ANSWERS}, **documented_errors(INVALID, UNKNOWN_MODEL, *errors)}
    for path in PATHS:
        router.post(path, summary="Transcribe as OpenAI does", openapi_extra=body, responses=responses)(transcriptions)

    @router.get("/v1/models", summary="The served model, as OpenAI lists them")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get(
        "/v1/models/{name:path}", summary="One model", response_model=None, responses=documented_errors(UNKNOWN_MODEL)
    )
    async def one_model(name: str) -> dict[str, Any] | Response:
        return card if name in names else _refused(_unknown_model(name, names))

    return router


def read_options(form: FormData, models: Sequence[str], read_hot_words: ReadHotWords) -> Options:
    """What the form asks for; a field that is left empty counts as not given.

    Raises:
        RefusedParameter: an unknown field or one that is not supported, a missing file, a value out of range.
    """
    for name in form:
        if (reason := UNSUPPORTED.get(name.partition("[")[0])) is not None:
            raise RefusedParameter(name, f"{name} is not supported: {reason}")
        if name not in FIELDS:
            raise RefusedParameter(name, f"expected the fields {', '.join(FIELDS)}, found {name!r:.99}")
        if len(form.getlist(name)) > 1 and not name.endswith("[]") and name not in HOT_FIELDS:
            raise RefusedParameter(name, f"expected {name} once, found it {len(form.getlist(name))} times")
        if name != "file" and any(isinstance(value, UploadFile) for value in form.getlist(name)):
            raise RefusedParameter(name, f"expected text in {name}, found a file")
    if not isinstance(form.get("file"), UploadFile):
        raise RefusedParameter("file", "expected a file with a file name in the field file, found none")
    if (model := str(form.get("model") or models[0])) not in models:
        raise _unknown_model(model, models)
    _one_of("language", str(form.get("language") or "en").lower(), LANGUAGES)
    _check_temperature(str(form.get("temperature") or 0))
    chosen = _one_of("response_format", str(form.get("response_format") or "json"), FORMATS)
    stream = _one_of("stream", str(form.get("stream") or "false").lower(), ("true", "false")) == "true"
    if stream and chosen not in ("json", "text"):
        raise RefusedParameter("stream", f"expected response_format json or text with stream, found {chosen}")
    key = "timestamp_granularities[]"
    asked = frozenset(_one_of(key, str(value), GRANULARITIES) for value in form.getlist(key) if value)
    if asked and chosen != "verbose_json":
        raise RefusedParameter(key, f"expected response_format verbose_json with {key}, found {chosen}")
    given = [name for name in HOT_FIELDS if name in form]
    try:
        hot_words = read_hot_words([str(value) for name in given for value in form.getlist(name)])
    except ValueError as error:
        raise RefusedParameter(given[-1], f"{', '.join(given)}: {error}") from None
    return Options(chosen, asked or frozenset({"segment"}), stream, hot_words)


def _one_of(param: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise RefusedParameter(param, f"expected {param} to be one of {', '.join(allowed)}, found {value!r:.99}")
    return value


def _check_temperature(value: str) -> None:
    try:
        ok = 0 <= float(value) <= 1
    except ValueError:
        ok = False
    if not ok:
        raise RefusedParameter("temperature", f"expected a temperature from 0 to 1, found {value!r:.99}")


def _unknown_model(name: str, names: Sequence[str]) -> RefusedParameter:
    return RefusedParameter("model", f"expected one of {', '.join(names)}, found {name!r:.99}", 404, "UnknownModel")


def answer(said: Transcription, options: Options) -> Response:
    """The transcription in the form that was asked for."""
    match options.response_format:
        case "text":
            return PlainTextResponse(said.text + "\n")
        case "srt":
            return PlainTextResponse(to_srt(said.segments))
        case "vtt":
            return PlainTextResponse(to_vtt(said.segments), media_type="text/vtt")
        case "verbose_json":
            return JSONResponse(verbose(said, options.granularities))
        case _:
            return JSONResponse({"text": said.text})


def verbose(said: Transcription, granularities: frozenset[str]) -> dict[str, Any]:
    """The body of ``verbose_json``: seconds, rounded to milliseconds."""
    body: dict[str, Any] = {"task": "transcribe", "language": "english", "text": said.text}
    body["duration"] = round(said.duration, 3)
    if "segment" in granularities:
        body["segments"] = [_segment(number, segment) for number, segment in enumerate(said.segments)]
    if "word" in granularities:
        body["words"] = [
            {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "probability": round(w.confidence, 4)}
            for w in said.words
        ]
    return body


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    """A segment as Whisper's; docs/openai.md says which of the fields mean nothing here."""
    text = segment.text.encode()
    return {
        "id": number, "seek": 0, "start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text,
        "tokens": [], "temperature": 0.0, "avg_logprob": round(math.log(max(segment.confidence, 1e-30)), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4), "no_speech_prob": 0.0,
    }  # fmt: skip


class Events(StreamingResponse):
    """Server-sent events; what they are made of is closed with them, however they end."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], resources: AsyncExitStack) -> None:
        lines = (f"data: {json.dumps(event)}\n\n" async for event in events)
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.resources:
            await super().__call__(scope, receive, send)


async def _events(
    first: Part, rest: AsyncIterator[Part], count: Callable[[str], None]
) -> AsyncIterator[dict[str, Any]]:
    """A delta for each part in which something is said, then the whole text, or what went wrong."""
    text = ""
    part: Part | None = first
    try:
        while part:
            if part.words:
                delta = " " * bool(text) + " ".join(word.text for word in part.words)
                text += delta
                yield {"type": "transcript.text.delta", "delta": delta}
            part = await anext(rest, None)
    except ClientGone:
        return
    except SpeechError as error:
        count(type(error).__name__)
        yield {"type": "error", "error": error_of(speech_error_response(error))}
    except Exception:
        log.exception("a stream of events crashed")
        count("InternalError")
        yield {"type": "error", "error": error_of(error_response(500, "InternalError", "internal error"))}
    else:
        yield {"type": "transcript.text.done", "text": text}


def _joined(parts: Sequence[Part]) -> Transcription:
    words = [replace(w, start=round(w.start, 3), end=round(w.end, 3)) for part in parts for w in part.words]
    return Transcription(" ".join(word.text for word in words), words, segments(words), parts[-1].end)


def _refused(refusal: RefusedParameter) -> JSONResponse:
    detail, param = (
        text and text.encode("utf-8", "backslashreplace").decode() for text in (str(refusal), refusal.param)
    )
    body = {"detail": detail, "code": refusal.code, "request_id": request_id.get()}
    return JSONResponse(openai_error(body, refusal.status, param), refusal.status)
