"""The gate in front of uploads, alone: what it reads, what it answers, and when."""

import asyncio
from collections.abc import Callable, Iterable

import pytest
from starlette.types import Message, Receive, Scope, Send

from config import Settings
from gate import UploadGate
from predictor import SpeechPredictor
from service import Service
from tests.conftest import FakeEngine

LIMIT = 2000


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers 200 when the body has ended."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def ask(settings: Settings) -> Callable[..., list[str]]:
    """Sends blocks of a body to a gate; what was read and sent, in order."""

    def run(blocks: Iterable[bytes], promised: int | None = None, app=reads_all) -> list[str]:
        async def talk() -> list[str]:
            seen, left = [], iter(blocks)

            async def receive() -> Message:
                await asyncio.sleep(0.002)
                block = next(left, None)
                seen.append("read")
                return {"type": "http.request", "body": block or b"", "more_body": block is not None}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen.append(str(message["status"]))

            service = Service(settings.model_copy(update={"max_upload_bytes": LIMIT}), SpeechPredictor(FakeEngine()))
            headers = [] if promised is None else [(b"content-length", str(promised).encode())]
            scope = {"type": "http", "method": "POST", "path": "/upload/", "headers": headers}
            async with service.running(), asyncio.timeout(20):
                try:
                    await UploadGate(app, service, frozenset({"/upload/"}))(scope, receive, send)
                finally:
                    assert service.in_flight == 0
            return seen

        return asyncio.run(talk())

    return run


def test_a_body_that_promises_too_much_is_refused_before_it_is_read(ask):
    assert ask([b"x" * (LIMIT + 1)], LIMIT + 1)[0] == "413"
    assert ask([b"x" * LIMIT], LIMIT)[-1] == "200"


def test_a_body_that_promises_nothing_is_refused_as_soon_as_it_is_too_large(ask):
    assert ask([b"x" * 1000] * 2)[-1] == "200"
    assert ask([b"x" * 1000] * 2 + [b"x"] * 9)[:4] == ["read", "read", "read", "413"]


def test_the_rest_of_a_refused_body_is_read_for_a_bounded_time(ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gate.LINGER_ALL", 0.1)
    assert len(ask(iter(lambda: b"x", None), LIMIT + 1)) < 200


def test_a_bug_behind_the_gate_is_not_hidden(ask):
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask([b"x"], app=broken)
