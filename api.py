"""The HTTP service: routes and the server process. ``python api.py`` serves on 127.0.0.1:8000."""

import logging
import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from types import FrameType
from typing import Any, BinaryIO

import uvicorn
from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse, Response

from auth import ApiKeys, is_public
from config import Settings, read_settings, unknown_settings
from connections import HttpConnection, WebSocketConnection
from custom_logger import RequestLogMiddleware, configure_logging
from gate import UploadGate
from live_api import MAX_MESSAGE, create_live_router
from metrics import RequestMetrics
from openai_api import Part, create_router
from openai_errors import PATHS, OpenAIErrors
from predictor import SpeechPredictor
from responses import HANDLERS, crashed, documented_errors
from service import Service
from speech.audio import BIT_DEPTH, CHANNELS, SAMPLE_RATE
from speech.beam import Weights
from web_page import Page

log = logging.getLogger("api")

VERSION = "1.0.0"
KEEP_ALIVE = 75  # seconds; clients and proxies give up an idle connection sooner, so none is reused as it is closed
UPLOAD = "/upload/"


class Transcription(BaseModel):
    """What is said in the upload."""

    transcryption: str = Field(examples=["the birch canoe slid on the smooth planks"])
    duration: float = Field(description="seconds of sound", examples=[2.41])
    confidence: float = Field(description="0 … 1: geometric mean over the characters' steps", examples=[0.87])
    processing_time: float = Field(description="seconds from the complete upload to the text", examples=[0.064])


class Health(BaseModel):
    """The process lives."""

    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """The model is loaded and warm."""

    status: str = Field(examples=["ready"])
    worker_restarts: int = Field(description="batch workers that died and were restarted", examples=[0])


NOT_READY = [
    (503, "NotReady", "expected a loaded model, found one that is still loading"),
    (503, "ModelNotFound", "expected a model in 'model1', found no card.json there"),
    (503, "ModelMismatch", "SHA-256 of model.keras: the card says 01ab…, the file has 9f3c…"),
    (503, "ModelError", "the model could not be loaded"),
]
SOUND_ERRORS = [  # of all that take a file
    (400, "DamagedWav", "expected 96000 bytes of sound as the header says, found 512"),
    (400, "BadRequest", "There was an error parsing the body"),
    (401, "InvalidApiKey", "expected an API key as 'Authorization: Bearer KEY', found none"),
    (408, "UploadTooSlow", "expected 1000 bytes a second of the body and no pause of 60 s, found 99 bytes in 60 s"),
    (413, "UploadTooLarge", "expected a body of at most 26214400 bytes, found 52428800"),
    (413, "AudioTooLong", "expected at most 120 s of sound, found 300.0 s"),
    (415, "NotAWav", "expected a RIFF WAVE file, found one that begins with b'ID3\\x04'"),
    (422, "UnsupportedWav", "sample rate: expected 22050 Hz, found 44100 Hz"),
    (422, "AudioTooShort", "expected at least 256 samples, found 100"),
    (500, "InferenceFailed", "internal error"),
    (503, "QueueFull", "expected less than 300 s of audio in the queue, found 304 s"),
    *NOT_READY,
    (504, "DeadlineExceeded", "expected an answer within 60 s, found none"),
]
UPLOAD_ERRORS = [*SOUND_ERRORS, (422, "InvalidRequest", "body.file: Field required")]


def create_app(settings: Settings, predictor: SpeechPredictor | None = None) -> FastAPI:
    """The application; without a predictor it loads the one that the settings name."""
    service = Service(settings, predictor)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings)
        for name in unknown_settings():
            log.warning("%s is no setting", name)
        if is_public(settings.host) and not settings.key_list:
            log.warning("%s can be reached from outside and STT_API_KEYS is not set: all may use it", settings.host)
        async with service.running():
            yield

    app = FastAPI(
        title="WAV to text",
        version=VERSION,
        description="Transcribes speech: 22050 Hz mono 16-bit PCM WAV files at /upload/, audio of any kind at "
        "/v1/audio/transcriptions. Nothing leaves this machine.",
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    app.add_middleware(UploadGate, service=service, paths=frozenset({UPLOAD, *PATHS}))
    app.add_middleware(ApiKeys, settings=settings)
    app.add_middleware(RequestLogMiddleware, crashed=crashed)
    app.add_middleware(RequestMetrics, metrics=service.metrics)
    app.add_middleware(OpenAIErrors)  # the outermost

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

    @app.get("/readyz", summary="The model is loaded and warm", responses=documented_errors(*NOT_READY))
    async def readyz() -> Readiness:
        service.check_ready()
        return Readiness(status="ready", worker_restarts=service.worker_restarts)

    for path, answer in (("/", root), ("/healthz", healthz), ("/readyz", readyz)):
        app.head(path, include_in_schema=False)(answer)  # as wget --spider asks

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(UPLOAD, summary="Transcribe a WAV file", responses=documented_errors(*UPLOAD_ERRORS))
    async def upload(request: Request, file: UploadFile) -> Transcription:
        if (parts := len((await request.form()).getlist("file"))) > 1:
            raise RequestValidationError([{"loc": ("body", "file"), "msg": f"expected one file, found {parts}"}])
        answer = await service.transcribe(file.file, request)
        return Transcription(
            transcryption=answer.transcript.text,
            duration=round(answer.duration, 3),
            confidence=round(answer.transcript.confidence, 4),
            processing_time=round(answer.processing_time, 4),
        )

    async def hear(file: BinaryIO, request: Request, hot_words: Weights) -> AsyncGenerator[Part, None]:
        async with aclosing(service.transcribe_pieces(file, request, hot_words)) as transcripts:
            async for piece, said in transcripts:
                yield Part(said.words, piece.end)

    name, count = settings.model_folder.name, service.metrics.error
    app.include_router(create_router(hear, service.read_hot_words, name, SOUND_ERRORS, count))
    app.include_router(create_live_router(service))
    app.mount("/ui", Page())
    return app


class Server(uvicorn.Server):
    """uvicorn, but a first SIGTERM or SIGINT lets what was accepted be answered while /readyz already says 503."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._signal: int | None = None
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining; a second signal ends at once."""
        if self.service.draining:
            super().handle_exit(sig, frame)
        self.service.draining, self._signal = True, sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        try:
            await super().startup(sockets)
        except SystemExit:
            if not self.lifespan.should_exit:  # then it could not listen, which uvicorn has said
                log.error("STT_HOST and STT_PORT choose another address")
            raise
        for address in (listener.getsockname() for server in self.servers for listener in server.sockets):
            host, port = address[:2]
            host = f"[{host}]" if ":" in host else host
            log.info("serving on http://%s:%d, model %s", host, port, self.service.settings.model)

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: leave once nothing is in flight; say once what is waited for."""
        if self._signal is not None and not self.service.in_flight:
            super().handle_exit(self._signal, None)
        elif self._signal is not None and not self._told:
            self._told = True
            waiting = "stopping once %d uploads and streams are answered; another signal ends at once"
            log.info(waiting, self.service.in_flight)
        return await super().on_tick(counter)


def main() -> None:
    """Serve until a signal comes."""
    service: Service = app.state.service
    settings = service.settings
    config = uvicorn.Config(
        app,
        settings.host,
        settings.port,
        access_log=False,
        log_level="warning",
        lifespan="on",
        http=HttpConnection,
        ws=WebSocketConnection,
        timeout_keep_alive=KEEP_ALIVE,
        ws_max_size=MAX_MESSAGE,
        ws_ping_timeout=settings.timeout,
        timeout_graceful_shutdown=math.ceil(settings.timeout),  # for who does not read; uploads are waited for before
        ws_per_message_deflate=False,  # sound hardly gets smaller, and what is small could grow a thousandfold
    )
    with suppress(KeyboardInterrupt):
        Server(config, service).run()


app = create_app(read_settings())

if __name__ == "__main__":
    main()
