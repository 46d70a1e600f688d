"""Every way to fail, in one JSON shape, and which status it has."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from custom_logger import request_id
from service import ClientGone
from speech import errors
from speech.errors import SpeechError, Unavailable

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


class ErrorBody(BaseModel):
    """The one shape of everything that goes wrong."""

    detail: str = Field(description="a sentence: what was expected, what was found")
    code: str = Field(description="name of the error, stable between versions")
    request_id: str = Field(description="the X-Request-ID of the answer and of the log lines")


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


async def crashed(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer of a request whose handling raised."""
    await error_response(500, "InternalError", "internal error")(scope, receive, send)


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    SpeechError: _speech_error,
    HTTPException: _http_error,
    RequestValidationError: _invalid_request,
    ClientGone: _client_gone,
}


def documented_errors(*codes: tuple[int, str, str]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for errors: (status, code, example of the detail)."""
    described: dict[int | str, dict[str, Any]] = {}
    for status, code, detail in codes:
        entry = described.setdefault(status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        entry["description"] = ", ".join(filter(None, [entry.get("description", ""), code]))
        example = {"detail": detail, "code": code, "request_id": "3f1c0b4e"}
        entry["content"]["application/json"]["examples"][code] = {"value": example}
    return described
