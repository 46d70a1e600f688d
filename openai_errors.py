"""OpenAI's ``error`` object, beside our own error body."""

import json
import re
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/audio/transcriptions", "/audio/transcriptions")


def openai_error(body: dict[str, Any], status: int, param: str | None = None) -> dict[str, Any]:
    """A body of ours, ``detail`` and ``code`` in it, with OpenAI's ``error`` object beside them."""
    code = "model_not_found" if body["code"] == "UnknownModel" else re.sub(r"(?<!^)(?=[A-Z])", "_", body["code"])
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {**body, "error": {"message": body["detail"], "type": kind, "param": param, "code": code.lower()}}


def error_of(response: Response) -> dict[str, Any]:
    """OpenAI's ``error`` object of a response with an error body of ours, for what is no response."""
    error: dict[str, Any] = openai_error(json.loads(bytes(response.body)), response.status_code)["error"]
    return error


class OpenAIErrors:
    """Adds OpenAI's ``error`` object to every error of its paths, whoever sends it. Plain ASGI, the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"].startswith("/v1/") or scope["path"] in PATHS):
            await self.app(scope, receive, send)
            return
        held: Message | None = None

        async def adding_send(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] >= 400:
                held = message
                return
            if held is not None:
                start, held = held, None
                body = _with_error(message.get("body", b""), start["status"])
                headers = [(k, b"%d" % len(body) if k == b"content-length" else v) for k, v in start["headers"]]
                await send({**start, "headers": headers})
                message = {**message, "body": body}
            await send(message)

        await self.app(scope, receive, adding_send)


def _with_error(body: bytes, status: int) -> bytes:
    """The body with the error object, or as it is if it has one or is not ours."""
    try:
        found = json.loads(body)
    except ValueError:
        return body
    ours = isinstance(found, dict) and {"detail", "code"} <= set(found) and "error" not in found
    return json.dumps(openai_error(found, status), ensure_ascii=False).encode() if ours else body
