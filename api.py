"""The HTTP service: routes, limits, error bodies. ``python api.py`` serves on 127.0.0.1:8000."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import Settings, read_settings, unknown_settings
from custom_logger import RequestLogMiddleware, configure_logging, request_id
from predictor import SpeechPredictor
from service import ClientGone, Service
from speech import errors
from speech.audio import BIT_DEPTH, CHANNELS, SAMPLE_RATE
from speech.errors import SpeechError, Unavailable

log = logging.getLogger("api")

VERSION = "1.0.0"
UPLOAD = "/upload/"

STATUS: dict[type[SpeechError], int] = {  # the nearest ancestor counts
    errors.SpeechError: 500,
    errors.AudioError: 422,
    errors.NotAWav: 415,
    errors.DamagedWav: 400,
    errors.AudioTooLong: 413,
    errors.ModelError: 503,
    errors.InferenceFailed: 500,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}


class Transcription(BaseModel):
    """What is said in the upload."""

    transcryption: str = Field(examples=["the birch canoe slid on the smooth planks"])
    duration: float = Field(description="seconds of sound", examples=[2.41])
    confidence: float = Field(description="0 … 1: geometric mean over the characters' steps", examples=[0.87])
    processing_time: float = Field(description="seconds from the complete upload to the text", examples=[0.064])


class ErrorBody(BaseModel):
    """The one shape of everything that goes wrong."""

    detail: str = Field(description="a sentence: what was expected, what was found")
    code: str = Field(description="name of the error, stable between versions")
    request_id: str = Field(description="the X-Request-ID of the answer and of the log lines")


class Health(BaseModel):
    """Whether the process lives, or is ready."""

    status: str = Field(examples=["ok"])


def error_response(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in its one shape; a 5xx that trying again will not cure says so (``x-should-retry``)."""
    body = ErrorBody(detail=detail, code=code, request_id=request_id.get())
    headers = dict(headers or {})
    if status in (500, 504):
        headers["x-should-retry"] = "false"
    return JSONResponse(body.model_dump(), status, headers)


def speech_error_response(error: SpeechError) -> JSONResponse:
    """The answer to an error of the tree; what a 500 hides is in the log."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    wait = {"Retry-After": f"{error.retry_after:.0f}"} if isinstance(error, Unavailable) and status == 503 else {}
    return error_response(status, type(error).__name__, "internal error" if status == 500 else str(error), wait)


async def _speech_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SpeechError)
    return speech_error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.title().replace(" ", "").replace("-", "")
    return error_response(error.status_code, code, str(error.detail), dict(error.headers or {}))


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    parts = [f"{'.'.join(str(place) for place in e['loc'])}: {e['msg']}" for e in error.errors()]
    return error_response(422, "InvalidRequest", "; ".join(parts))


async def _client_gone(request: Request, error: Exception) -> Response:
    return error_response(499, "ClientGone", "the client hung up")  # seen by the log alone


async def _crashed(scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(500, "InternalError", "internal error")(scope, receive, send)


class UploadGate:
    """Stops an upload as early as it can be known to be in vain. Plain ASGI, in front of the body's parser.

    Not ready or no room: before a byte is read. Too large: by Content-Length, or as soon as the bytes received say
    so. Too slow: when none come for the time that a request may take.
    """

    LINGER = 2.0  # seconds in which a refused body is still read, so that the client gets to see the answer

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != UPLOAD:
            return await self.app(scope, receive, send)
        limit = self.service.settings.max_upload_bytes
        promised = dict(scope["headers"]).get(b"content-length", b"0").decode("latin-1")
        try:
            await self.service.check_room()
        except SpeechError as error:
            return await self._refuse(speech_error_response(error), receive, send)
        if promised.isdigit() and int(promised) > limit:
            return await self._refuse(_too_large(limit, promised), receive, send)
        self.service.in_flight += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.service.in_flight -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, received, complete = self.service.settings, 0, False
        limit, refusal = settings.max_upload_bytes, None

        async def counting_receive() -> Message:
            nonlocal refusal, received, complete
            if complete:  # the parser is done: what is left to come is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout(settings.timeout):
                    message = await receive()
            except TimeoutError:
                refusal = error_response(
                    408, "UploadTooSlow", f"expected more of the body within {settings.timeout:g} s"
                )
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                refusal = _too_large(limit, f"{received} or more")
                return {"type": "http.disconnect"}
            return message

        async def silenced_send(message: Message) -> None:
            if refusal is None:
                await send(message)

        try:
            await self.app(scope, counting_receive, silenced_send)
        except Exception:
            if refusal is None:
                raise
        if refusal is not None:
            await self._refuse(refusal, receive, send)

    async def _refuse(self, response: JSONResponse, receive: Receive, send: Send) -> None:
        """Answer at once, then read on for a moment: a client that still writes would see a reset, not the answer."""
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(self.LINGER):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(limit: int, found: str) -> JSONResponse:
    return error_response(413, "UploadTooLarge", f"expected a body of at most {limit} bytes, found {found}")


def _documented(*codes: tuple[int, str, str]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for errors: (status, code, example of the detail)."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status, code, detail in codes:
        entry = documented.setdefault(status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        entry["description"] = ", ".join(filter(None, [entry.get("description", ""), code]))
        example = {"detail": detail, "code": code, "request_id": "3f1c0b4e"}
        entry["content"]["application/json"]["examples"][code] = {"value": example}
    return documented


NOT_READY = [
    (503, "NotReady", "expected a loaded model, found one that is still loading"),
    (503, "ModelNotFound", "expected a model in 'model1', found no card.json there"),
    (503, "ModelMismatch", "SHA-256 of model.keras: the card says 01ab…, the file has 9f3c…"),
]
UPLOAD_ERRORS = [
    (400, "DamagedWav", "expected 96000 bytes of sound as the header says, found 512"),
    (400, "BadRequest", "There was an error parsing the body"),
    (408, "UploadTooSlow", "expected more of the body within 60 s"),
    (413, "UploadTooLarge", "expected a body of at most 26214400 bytes, found 52428800"),
    (413, "AudioTooLong", "expected at most 120 s of sound, found 300.0 s"),
    (415, "NotAWav", "expected a RIFF WAVE file, found one that begins with b'ID3\\x04'"),
    (422, "UnsupportedWav", "sample rate: expected 22050 Hz, found 44100 Hz"),
    (422, "AudioTooShort", "expected at least 256 samples, found 100"),
    (422, "InvalidRequest", "body.file: Field required"),
    (500, "InferenceFailed", "internal error"),
    (503, "QueueFull", "expected at most 600 s of audio in the queue, found 598 s"),
    *NOT_READY,
    (504, "DeadlineExceeded", "expected an answer within 60 s, found none"),
]


def create_app(settings: Settings, predictor: SpeechPredictor | None = None) -> FastAPI:
    """The application; without a predictor it loads the one that the settings name."""
    service = Service(settings, predictor)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings)
        for name in unknown_settings():
            log.warning("%s is no setting", name)
        async with service.running():
            yield

    app = FastAPI(
        title="WAV to text",
        version=VERSION,
        description="Transcribes 22050 Hz mono 16-bit PCM WAV files. Nothing leaves this machine.",
        lifespan=lifespan,
        exception_handlers={
            SpeechError: _speech_error,
            HTTPException: _http_error,
            RequestValidationError: _invalid_request,
            ClientGone: _client_gone,
        },
    )
    app.state.service = service
    app.add_middleware(UploadGate, service=service)
    app.add_middleware(RequestLogMiddleware, crashed=_crashed)  # the outermost

    @app.get("/", summary="Health check")
    async def root() -> dict[str, Any]:
        return {
            "status": "ok",
            "message": "WAV to Tensor Processor API is running",
            "audio_specs": {"sample_rate": SAMPLE_RATE, "format": f"{BIT_DEPTH}-bit PCM WAV", "channels": "mono"},
        }

    @app.get("/audio_specs/", summary="What an upload must be")
    async def audio_specs() -> dict[str, Any]:
        return {
            "sample_rate": SAMPLE_RATE,
            "channels": CHANNELS,
            "bit_depth": BIT_DEPTH,
            "format": "PCM WAV",
            "dtype": "float32",
        }

    @app.get("/healthz", summary="The process lives")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz", summary="The model is loaded and warm", responses=_documented(*NOT_READY))
    async def readyz() -> Health:
        service.check_ready()
        return Health(status="ready")

    @app.post(UPLOAD, summary="Transcribe a WAV file", responses=_documented(*UPLOAD_ERRORS))
    async def upload(request: Request, file: UploadFile) -> Transcription:
        answer = await service.transcribe(await file.read(), request)
        return Transcription(
            transcryption=answer.transcript.text,
            duration=round(answer.duration, 3),
            confidence=round(answer.transcript.confidence, 4),
            processing_time=round(answer.processing_time, 4),
        )

    return app


class Server(uvicorn.Server):
    """uvicorn, but a first SIGTERM or SIGINT lets what was accepted be answered while /readyz already says 503."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining; a second signal ends at once."""
        if self.service.draining:
            super().handle_exit(sig, frame)
        self.service.draining, self._signal = True, sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for address in (listener.getsockname() for server in self.servers for listener in server.sockets):
            log.info("serving on http://%s:%d, model %s", *address[:2], self.service.settings.model)

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: leave once nothing is in flight."""
        if self._signal is not None and not self.service.in_flight:
            super().handle_exit(self._signal, None)
        return await super().on_tick(counter)


def main() -> None:
    """Serve until a signal comes."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app, service.settings.host, service.settings.port, access_log=False, log_level="warning", lifespan="on"
    )
    Server(config, service).run()


app = create_app(read_settings())

if __name__ == "__main__":
    main()
