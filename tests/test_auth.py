"""API keys: who is let in, what the others are told, and that no key is ever shown."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from pydantic import SecretStr, ValidationError
from starlette.testclient import TestClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api import create_app
from auth import ApiKeys, is_public
from config import Settings
from predictor import SpeechPredictor
from tests.conftest import FakeEngine, make_sound, make_wav, upload
from tests.test_server import ROOT, Process

KEYS = "first-key, second_KEY+/="
GOOD = {"Authorization": "Bearer first-key"}


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    """The app with two keys."""
    asked = settings.model_copy(update={"api_keys": SecretStr(KEYS)})
    with TestClient(create_app(asked, SpeechPredictor(FakeEngine()))) as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The real process with the real model and two keys."""
    started = Process(tmp_path_factory.mktemp("guarded"), STT_API_KEYS=KEYS)
    yield started
    started.stop()


def test_nothing_is_asked_by_default(client: TestClient):
    assert upload(client, make_wav(make_sound(1))).status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_every_route_but_health_needs_a_key(guarded: TestClient):
    paths = set(guarded.get("/openapi.json", headers=GOOD).json()["paths"]) | {"/docs", "/openapi.json"}
    assert {"/upload/", "/v1/models", "/audio_specs/", "/v1/audio/transcriptions", "/readyz"} < paths
    without = {path: guarded.get(path).status_code for path in paths | {"/nowhere", "/healthz/x", "/uix"}}
    assert {path for path, status in without.items() if status != 401} == {"/", "/healthz", "/readyz"}
    assert all(without[path] == 200 for path in ("/", "/healthz", "/readyz"))
    assert guarded.get("/nowhere", headers=GOOD).status_code == 404


def test_the_page_itself_is_open(guarded: TestClient):
    assert guarded.get("/ui/nothing.js").status_code == 404


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200), ("bearer second_KEY+/=", 200), ("Bearer  first-key ", 200),
        ("Bearer first-key,", 401), ("Bearer first-ke", 401), ("Bearer FIRST-KEY", 401), ("Bearer ", 401), ("Bearer", 401),
        ("", 401), ("Basic first-key", 401), ("first-key", 401), ("Bearer first-key, second_KEY+/=", 401),
        ("Bearer \xff\xfe", 401), ("Bearer " + "x" * 5000, 401),
    ],
)  # fmt: skip
def test_what_counts_as_a_key(guarded: TestClient, header: str, status: int):
    headers = [(b"authorization", header.encode("latin-1"))] if header else []
    assert guarded.get("/audio_specs/", headers=headers).status_code == status


def test_a_key_in_the_query_of_a_request_is_none(guarded: TestClient):
    assert guarded.get("/audio_specs/?api_key=first-key").status_code == 401


def test_the_answer_has_the_one_shape(guarded: TestClient):
    answer = guarded.post("/upload/", headers={"X-Request-ID": "mine", "Authorization": "Bearer guessed"})
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json() == {
        "detail": "expected an API key as 'Authorization: Bearer KEY', found one that is not known",
        "code": "InvalidApiKey",
        "request_id": "mine",
    }
    assert guarded.post("/upload/").json()["detail"].endswith("found none")
    assert guarded.post("/v1/audio/transcriptions").json()["error"]["code"] == "invalid_api_key"


def test_it_is_answered_before_a_byte_is_read(settings: Settings):
    events: list[str] = []

    async def never(scope, receive, send):
        events.append("let in")

    async def receive():
        events.append("read")
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        events.append(message.get("status", message["type"]))

    app = ApiKeys(never, settings.model_copy(update={"api_keys": SecretStr(KEYS)}))
    scope = {"type": "http", "method": "POST", "path": "/upload/", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert events == [401, "http.response.body", "read", "http.response.body"]


def test_a_server_that_cannot_answer_a_handshake_closes_it(settings: Settings):
    sent = []

    async def send(message):
        sent.append(message)

    app = ApiKeys(None, settings.model_copy(update={"api_keys": SecretStr(KEYS)}))
    asyncio.run(app({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, None, send))
    assert [(m["type"], m["code"]) for m in sent] == [("websocket.close", 1008)]


def test_the_openai_client(server: Process):
    clip = ("hello.wav", (ROOT / "samples" / "hello.wav").read_bytes())
    for key in ("first-key", "second_KEY+/="):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            assert client.audio.transcriptions.create(model="default", file=clip).text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.audio.transcriptions.create(model="default", file=clip)
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


@pytest.mark.parametrize("path", ["/v1/audio/stream", "/vosk", "/nowhere"])
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("?api_key=wrong", {}),
        ("?api_key=", {}),
        ("", {"Authorization": "Bearer wrong"}),
        ("?key=first-key", {}),
    ],
)
def test_a_websocket_without_a_key_is_refused_at_its_handshake(server: Process, path: str, query: str, headers):
    with (
        pytest.raises(InvalidStatus) as caught,
        connect(f"ws{server.url[4:]}{path}{query}", additional_headers=headers),
    ):
        pass
    answer = caught.value.response
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    body = json.loads(answer.body)
    assert body["code"] == "InvalidApiKey"
    assert body["detail"].startswith("expected an API key")
    server.wait_for(re.escape(f"[{body['request_id']}] WS {path} 401"))
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert not any("ERROR" in line for line in server.lines)  # a client's mistake is no alarm


@pytest.mark.parametrize(
    ("query", "headers"), [("?api_key=first-key", {}), ("?api_key=second_KEY%2B/%3D", {}), ("", GOOD)]
)
def test_a_websocket_with_a_key_is_served(server: Process, query: str, headers):
    with connect(f"ws{server.url[4:]}/v1/audio/stream{query}", additional_headers=headers) as socket:
        socket.send('{"sample_rate": 22050}')
        socket.send('{"eof": true}')
        assert json.loads(socket.recv(timeout=30)) == {"type": "done", "duration": 0.0}
    assert "first-key" not in "".join(server.lines)


def test_a_large_body_without_a_key_sees_the_401(server: Process):
    answer = httpx.post(f"{server.url}/upload/", files={"file": ("a.wav", bytes(20 * 2**20))}, timeout=30)
    assert answer.status_code == 401
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_no_key_is_ever_shown(server: Process, tmp_path: Path):
    asked = Settings(log_folder=tmp_path, api_keys=KEYS)
    for shown in (repr(asked), str(asked), str(asked.model_dump()), asked.model_dump_json()):
        assert "first-key" not in shown
    httpx.get(f"{server.url}/audio_specs/", headers={"Authorization": "Bearer guessed-key"})
    server.wait_for("GET /audio_specs/ 401")
    assert not re.search("first-key|second_KEY|guessed-key", "".join(server.lines))


@pytest.mark.parametrize("keys", ["", ",", "s3cret,", "s3cret,,b", "s3cret b", "s3cret\x07", "s3crèt"])
def test_keys_that_cannot_be_sent_stop_the_start_unseen(keys: str):
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys=keys)
    assert "s3cr" not in str(caught.value)
    run = subprocess.run(
        [sys.executable, "api.py"], cwd=ROOT, env={**os.environ, "STT_API_KEYS": keys},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert run.stderr.startswith("STT_API_KEYS: ")
    assert "s3cr" not in run.stderr


def test_what_is_public():
    assert not any(is_public(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert all(is_public(host) for host in ("0.0.0.0", "::", "192.168.1.5", "stt.example.org", ""))


@pytest.mark.parametrize(
    ("host", "keys", "warns"), [("0.0.0.0", None, True), ("0.0.0.0", KEYS, False), ("::1", None, False)]
)
def test_an_open_door_is_named_in_the_log(settings: Settings, host: str, keys: str | None, warns: bool):
    asked = settings.model_copy(update={"host": host, "api_keys": SecretStr(keys) if keys else None})
    with TestClient(create_app(asked, SpeechPredictor(FakeEngine()))):
        pass
    log = (settings.log_folder / "api.log").read_text(encoding="utf-8")
    assert ("WARNING" in log and "STT_API_KEYS" in log) == warns
