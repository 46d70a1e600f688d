"""What uvicorn's connections lack: an end to those that never ask or never end, and an answer to what is no request."""

import asyncio
from http import HTTPStatus

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from responses import error_response


class HttpConnection(H11Protocol):
    """uvicorn's, but the head of a request has to come within ``timeout_keep_alive`` seconds, and so has the rest of a
    body whose request has been answered."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is waited for."""
        super().connection_made(transport)
        self._expect_the_rest()

    def data_received(self, data: bytes) -> None:
        """Part of a head, or of a body that nobody wants any more, and uvicorn's own timer is off; or of a request."""
        super().data_received(data)
        if self.conn.our_state in (h11.IDLE, h11.DONE):
            self._expect_the_rest()
        else:
            self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_expecting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """An error body as all others have."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way
            detail = "expected an HTTP request, found what cannot be read as one, or is too long"
            self.transport.write(_on_the_wire(error_response(400, "BadRequest", detail)))
        self.transport.close()

    def _expect_the_rest(self) -> None:
        if self._end is None:
            self._end = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _stop_expecting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # else it has not said a word, or too many
            expected = f"expected the head of a request within {self.timeout_keep_alive:g} s"
            self.transport.write(_on_the_wire(error_response(408, "RequestTimeout", f"{expected}, found a part")))
        self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's, but a handshake that cannot be read is answered, and who reads nothing is not read from."""

    def data_received(self, data: bytes) -> None:
        """A handshake or frames."""
        super().data_received(data)
        if (error := self.conn.handshake_exc) is not None and not self.handshake_initiated:
            found = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
            refusal = error_response(400, "BadRequest", f"expected a WebSocket handshake, found: {found:.200}")
            self.transport.write(_on_the_wire(refusal))
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads no more, perhaps sends pings nevertheless: their pongs would pile up."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()


def _on_the_wire(response: Response) -> bytes:
    """A response as HTTP/1.1 has it, for a connection that ends with it."""
    status = HTTPStatus(response.status_code)
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
