"""What a log record looks like, where it goes, and the request id that every line of a request carries."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import Settings

FORMAT = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
MAX_BYTES, BACKUPS = 10 * 2**20, 5  # of each log file
FILES = {"api": ("api",), "predictor": ("predictor", "speech")}  # file name: loggers that write into it
WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
log = logging.getLogger("api")


def configure_logging(settings: Settings) -> None:
    """Send the service's loggers to the console and to ``api.log`` and ``predictor.log``, rotated.

    A folder or file that cannot be written costs a warning on the console, never a request.
    """
    logging.raiseExceptions = False  # a record that cannot be written is dropped
    console = _prepared(logging.StreamHandler())
    for file, names in FILES.items():
        handlers, problem = [console], None
        try:
            handlers.append(_prepared(_file_handler(settings.log_folder / f"{file}.log")))
        except OSError as error:
            problem = error
        for name in names:
            logger = logging.getLogger(name)
            for old in logger.handlers:
                with suppress(OSError):  # what a full disk did not take
                    old.close()
            logger.handlers, logger.propagate = handlers, False
            logger.setLevel(settings.log_level)
        if problem:
            logging.getLogger(names[0]).warning("%s.log cannot be written: %s", file, problem)


def _file_handler(file: Path) -> logging.Handler:
    file.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")


def _prepared(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(_add_request_id)
    return handler


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class RequestLogMiddleware:
    """One line for each request, its id, and the last net under every exception. Plain ASGI.

    ``crashed`` sends the answer of a request whose handling raised; the traceback is in the log.
    """

    def __init__(self, app: ASGIApp, crashed: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app, self.crashed = app, crashed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, received, status = time.perf_counter(), 0, 0
        asked = Headers(scope=scope).get("x-request-id", "")
        identity = asked if WELL_FORMED_ID.fullmatch(asked) else uuid.uuid4().hex
        token = request_id.set(identity)

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def tagging_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identity
            await send(message)

        try:
            await self.app(scope, counting_receive, tagging_send)
        except Exception:
            log.exception("%s %s crashed", scope["method"], quote(scope["path"]))
            if not status:
                await self.crashed(scope, counting_receive, tagging_send)
        finally:
            host, port = scope.get("client") or ("-", 0)
            log.info(
                "%s %s %d %.1f ms %d bytes from %s:%d",
                scope["method"],
                quote(scope["path"]),
                status or 499,  # the client went away
                1000 * (time.perf_counter() - started),
                received,
                host,
                port,
            )
            request_id.reset(token)
