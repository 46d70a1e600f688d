"""What a log record looks like, where it goes, and the request id that every line of a request carries."""

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import Settings

FORMAT = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
MAX_BYTES, BACKUPS = 10 * 2**20, 5  # of each log file
FILES = {  # file name: loggers that write into it
    "api": ("api", "uvicorn", "python_multipart", "asyncio"),
    "predictor": ("predictor", "speech"),
}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # ends a line, or steers a terminal
WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
log = logging.getLogger("api")


class TextFormatter(logging.Formatter):
    """A line to read. What a client wrote cannot begin another one: control characters are escaped, and the lines of
    a traceback are indented."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of the record."""
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback below it."""
        return "\n".join("    " + _escaped(line) for line in super().formatException(ei).split("\n"))


def _escaped(text: str) -> str:
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII; a message's named values are fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """The object of the record."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        values = record.args if isinstance(record.args, Mapping) else {}
        return json.dumps({**entry, **values, **entry}, default=str)  # no value takes the place of a field


def configure_logging(settings: Settings) -> None:
    """Send the service's loggers to the console and to ``api.log`` and ``predictor.log``, rotated.

    A folder or file that cannot be written costs a warning on the console, never a request.
    """
    logging.raiseExceptions = False  # a record that cannot be written is dropped
    logging.getLogger("uvicorn.error").addFilter(_is_no_false_alarm)
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    console = _prepared(logging.StreamHandler(), formatter)
    for file, names in FILES.items():
        handlers, problem = [console], None
        try:
            handlers.append(_prepared(_file_handler(settings.log_folder / f"{file}.log"), formatter))
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


def _prepared(handler: logging.Handler, formatter: logging.Formatter) -> logging.Handler:
    handler.setFormatter(formatter)
    handler.addFilter(_add_request_id)
    return handler


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
    """uvicorn (0.54) finds an error in each handshake that is refused with a status and a body, and shows a traceback
    where a client sends text that is none."""
    if record.msg == "Invalid UTF-8 sequence received from client.":
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return record.msg != "ASGI callable returned without completing handshake."


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
            values = {
                "method": scope["method"],
                "path": quote(scope["path"]),
                "status": status or 499,  # the client went away
                "ms": round(1000 * (time.perf_counter() - started), 1),
                "bytes": received,
                "client": f"{host}:{port}",
            }
            log.info("%(method)s %(path)s %(status)d %(ms).1f ms %(bytes)d bytes from %(client)s", values)
            request_id.reset(token)
