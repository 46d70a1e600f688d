"""Connections that never ask, or ask for what is no request: over a real socket."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from connections import HttpConnection, WebSocketConnection

PATIENCE = 0.5  # seconds for the head of a request
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Says hello over HTTP and echoes bytes over WebSockets."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        app, port=0, http=HttpConnection, ws=WebSocketConnection, timeout_keep_alive=PATIENCE, lifespan="off",
        log_config=None,
    )  # fmt: skip
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def connection(server: uvicorn.Server) -> Iterator[socket.socket]:
    with socket.create_connection(server.servers[0].sockets[0].getsockname()[:2], timeout=20) as opened:
        yield opened


def address(server: uvicorn.Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"ws://{host}:{port}/"


def read(opened: socket.socket) -> bytes:
    """All until the server closes."""
    return b"".join(iter(lambda: opened.recv(65536), b""))


def answer(opened: socket.socket) -> bytes:
    """One answer of the app."""
    found = b""
    while not found.endswith(b"hello"):
        part = opened.recv(65536)
        assert part, f"closed after {found!r}"
        found += part
    return found


def refusal(answer: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.search(rb"\r\nconnection: close(\r\n|$)", head)
    return int(head.split()[1]), json.loads(body)


def test_a_connection_that_says_nothing_is_closed(server: uvicorn.Server):
    with connection(server) as silent:
        assert read(silent) == b""


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
def test_a_head_that_comes_too_slowly_is_answered(before: bytes, server: uvicorn.Server):
    with connection(server) as slow:
        slow.sendall(before)
        if before:
            answer(slow)
        slow.sendall(b"GET / HT")
        time.sleep(PATIENCE / 2)
        slow.sendall(b"TP/1.1\r\nHo")  # what is sent meanwhile gives no more time
        status, body = refusal(read(slow))
    assert (status, body["code"]) == (408, "RequestTimeout")


def test_a_head_in_two_parts_is_heard_and_the_connection_kept(server: uvicorn.Server):
    with connection(server) as slow:
        for _ in range(2):
            slow.sendall(b"GET / HT")
            time.sleep(PATIENCE / 4)
            slow.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
            assert answer(slow).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_wants_may_not_drip_for_ever(server: uvicorn.Server):
    with connection(server) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        answer(slow)
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 20 * PATIENCE:
                slow.sendall(b"x")
                time.sleep(PATIENCE / 10)
        assert time.monotonic() < began + 10 * PATIENCE


def test_after_such_a_body_a_silent_connection_is_closed(server: uvicorn.Server):
    with connection(server) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        answer(slow)
        slow.sendall(b"1234567890")
        assert read(slow) == b""


def test_after_a_body_that_nobody_wanted_the_connection_is_kept(server: uvicorn.Server):
    with connection(server) as slow:
        for _ in range(3):
            slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
            time.sleep(PATIENCE / 4)
            slow.sendall(b"6")
            time.sleep(PATIENCE / 4)
            slow.sendall(b"7890")
            answer(slow)


@pytest.mark.parametrize(
    "request_", [b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 90_000 + b"\r\n\r\n"], ids=["no HTTP", "too long"]
)
def test_what_is_no_request_gets_an_error_of_ours(request_: bytes, server: uvicorn.Server):
    with connection(server) as odd:
        odd.sendall(request_)
        status, body = refusal(read(odd))
    assert (status, body["code"]) == (400, "BadRequest")
    assert "expected an HTTP request" in body["detail"]


def test_a_handshake_that_cannot_be_read_is_answered(server: uvicorn.Server):
    with connection(server) as odd:
        odd.sendall(HANDSHAKE + b"X: " + b"a" * 9000 + b"\r\n\r\n")
        status, body = refusal(read(odd))
    assert (status, body["code"]) == (400, "BadRequest")
    assert "expected a WebSocket handshake" in body["detail"]


def test_who_pings_without_reading_is_not_read_from(server: uvicorn.Server):
    """The pongs would pile up in memory: 1 MB of pings, then all that the sockets between take, and no more."""
    ping = b"\x89\xfd" + bytes(4) + bytes(125)
    with connection(server) as flood:
        flood.sendall(HANDSHAKE + b"\r\n")
        assert flood.recv(65536).startswith(b"HTTP/1.1 101")
        flood.settimeout(2)
        with pytest.raises(TimeoutError):
            flood.sendall(ping * (100 * 2**20 // len(ping)))
        (ours,) = server.server_state.connections
        assert ours.transport.get_write_buffer_size() < 2**20
        flood.settimeout(20)
        assert flood.recv(65536).startswith(b"\x8a\x7d")  # and its pongs come as soon as it reads


async def _echoed(url: str, messages: list[bytes]) -> list[bytes]:
    async with connect_async(url, max_queue=1, compression=None) as client:

        async def send() -> None:
            for message in messages:
                await client.send(message)

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.5)
        found = [await asyncio.wait_for(client.recv(decode=False), 20) for _ in messages]
        await sending
    return found


def test_messages_go_on_after_a_pause_in_reading(server: uvicorn.Server):
    messages = [bytes([number]) * 300_000 for number in range(40)]
    assert asyncio.run(_echoed(address(server), messages)) == messages


def test_text_that_is_no_utf8_closes_with_1007(server: uvicorn.Server):
    with connect(address(server)) as client:
        client.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
