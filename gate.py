"""The gate in front of uploads."""

import asyncio
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from responses import error_response, speech_error_response
from service import Service
from speech.errors import SpeechError

LEAST_RATE = 1000  # bytes per second of a body, on the whole
LINGER, LINGER_ALL = 3.0, 20.0  # seconds in which a refused body is still read: for its next bytes, and in all


class UploadGate:
    """Stops an upload as early as it can be known to be in vain. Plain ASGI, in front of the body's parser.

    Not ready or no room: before a byte is read. Too large: by Content-Length, or as soon as the bytes received say
    so. Too slow: when none come for the time that a request may take, or fewer than `LEAST_RATE` after it.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self.paths:
            return await self.app(scope, receive, send)
        limit = self.service.settings.max_upload_bytes
        promised = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            await self.service.check_room()
        except SpeechError as error:
            return await refuse(speech_error_response(error), receive, send)
        if promised.isdigit() and int(promised) > limit:
            return await refuse(_too_large(limit, promised.decode()), receive, send)
        self.service.in_flight += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.service.in_flight -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, received, complete = self.service.settings, 0, False
        limit, refusal = settings.max_upload_bytes, None
        clock = asyncio.get_running_loop().time
        began = clock()

        async def counting_receive() -> Message:
            nonlocal refusal, received, complete
            if complete:  # the parser is done: what is left to come is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(settings.timeout + min(clock(), began + received / LEAST_RATE)):
                    message = await receive()
            except TimeoutError:
                expected = f"{LEAST_RATE} bytes a second of the body and no pause of {settings.timeout:g} s"
                found = f"{received} bytes in {clock() - began:.0f} s"
                refusal = error_response(408, "UploadTooSlow", f"expected {expected}, found {found}")
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
            await refuse(refusal, receive, send)


async def refuse(response: JSONResponse, receive: Receive, send: Send) -> None:
    """Answer at once, then read on for a while: a client that still writes would see a reset, not the answer.

    As nginx does with ``lingering_close``.
    """
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    clock, more = asyncio.get_running_loop().time, True
    end = clock() + LINGER_ALL
    with suppress(TimeoutError):
        while more and clock() < end:
            async with asyncio.timeout_at(min(end, clock() + LINGER)):
                more = (await receive()).get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(limit: int, found: str) -> JSONResponse:
    return error_response(413, "UploadTooLarge", f"expected a body of at most {limit} bytes, found {found}")
