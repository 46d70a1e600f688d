"""The OpenAI dialect, spoken by OpenAI's own client over a socket, and what is refused."""

import asyncio
import html
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import BinaryIO

import httpx
import openai
import pytest
import srt
import uvicorn
import webvtt
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api import SOUND_ERRORS
from openai_api import Part, create_router
from openai_errors import PATHS, OpenAIErrors, openai_error
from speech.beam import Weights
from speech.ctc import Word
from speech.errors import DeadlineExceeded, NotAWav
from speech.hot_words import read_hot_words

TEXT = "is it a <cat> or a dog?"
CLIP = ("clip.wav", b"sound")
WORDS = tuple(Word(text, start, start + 0.1, 0.9) for start, text in enumerate(TEXT.split(), start=1))


async def fake_transcribe(file: BinaryIO, request: Request, hot_words: Weights) -> AsyncGenerator[Part, None]:
    """Fixed words in two parts; b'noise' is not audio, b'' is silence, b'broken' fails and b'bug' crashes midway."""
    data = file.read()
    await asyncio.sleep(0)
    if data == b"noise":
        raise NotAWav("expected WAV, found b'noise'")
    words = WORDS if data else ()
    yield Part(words[:4], 5.0)
    if data == b"broken":
        raise DeadlineExceeded("expected an answer within 60 s, found none")
    if data == b"bug":
        raise RuntimeError("secret")
    yield Part(words[4:], 8.5)


def make_app() -> FastAPI:
    """The router as an app of ours has it: error bodies of its own, the middleware outermost."""

    async def not_audio(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error), "code": "NotAWav", "request_id": "r"}, 415)

    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": error.detail, "code": "NotFound", "request_id": "r"}, error.status_code)

    app = FastAPI(exception_handlers={NotAWav: not_audio, HTTPException: http_error})
    app.include_router(create_router(fake_transcribe, read_hot_words, "model1", SOUND_ERRORS))
    app.add_middleware(OpenAIErrors)
    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_app(), "127.0.0.1", 0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def strict(url: str) -> Iterator[openai.OpenAI]:
    """The client that refuses an answer in which a promised field is missing or of another type."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as made:
        yield made


def test_json_and_defaults(strict: openai.OpenAI):
    assert strict.audio.transcriptions.create(model="model1", file=CLIP).text == TEXT
    assert strict.audio.transcriptions.create(model="model1", file=CLIP, response_format="json").text == TEXT


@pytest.mark.parametrize("model", ["model1", "whisper-1", "default"])
def test_the_served_model_and_its_aliases(strict: openai.OpenAI, model: str):
    assert strict.audio.transcriptions.create(model=model, file=CLIP, language="en", temperature=0.2, prompt="x").text
    assert strict.models.retrieve(model).id == "model1"


def test_text_srt_and_vtt(client: openai.OpenAI):
    text = client.audio.transcriptions.create(model="model1", file=CLIP, response_format="text")
    assert text == TEXT + "\n"
    subtitles = client.audio.transcriptions.create(model="model1", file=CLIP, response_format="srt")
    assert " ".join(cue.content for cue in srt.parse(subtitles)) == TEXT
    subtitles = client.audio.transcriptions.create(model="model1", file=CLIP, response_format="vtt")
    assert " ".join(html.unescape(cue.text) for cue in webvtt.from_string(subtitles)) == TEXT


def test_verbose_json_is_complete(strict: openai.OpenAI):
    found = strict.audio.transcriptions.create(model="model1", file=CLIP, response_format="verbose_json")
    assert (found.text, found.language, found.duration, found.words) == (TEXT, "english", 8.5, None)
    assert found.segments
    first, last = found.segments[0], found.segments[-1]
    assert [s.id for s in found.segments] == list(range(len(found.segments)))
    assert (first.start, last.end, first.text) == (1.0, 7.1, "is")
    assert first.avg_logprob == pytest.approx(-0.1054, abs=1e-4)
    assert (first.tokens, first.seek, first.temperature) == ([], 0, 0.0)


@pytest.mark.parametrize("asked", [["word"], ["segment"], ["word", "segment"]])
def test_granularities(strict: openai.OpenAI, asked):
    found = strict.audio.transcriptions.create(
        model="model1", file=CLIP, response_format="verbose_json", timestamp_granularities=asked
    )
    assert (found.words is not None, found.segments is not None) == ("word" in asked, "segment" in asked)
    if found.words:
        assert [(w.word, w.start, w.end) for w in found.words] == [(w.text, w.start, w.end) for w in WORDS]
        assert all(w.probability == 0.9 for w in found.words)


@pytest.mark.parametrize("form", ["json", "text"])
def test_stream(strict: openai.OpenAI, form):
    with strict.audio.transcriptions.create(model="model1", file=CLIP, stream=True, response_format=form) as stream:
        events = list(stream)
    assert [e.type for e in events[:-1]] == ["transcript.text.delta"] * 2
    assert "".join(e.delta for e in events[:-1]) == TEXT
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", TEXT)


@pytest.mark.parametrize(("data", "code"), [(b"broken", "deadline_exceeded"), (b"bug", "internal_error")])
def test_a_stream_that_fails_midway_ends_with_an_error(client: openai.OpenAI, url: str, data: bytes, code: str):
    file = ("clip.wav", data)
    heard = []
    with (
        pytest.raises(openai.APIError) as caught,
        client.audio.transcriptions.create(model="model1", file=file, stream=True) as stream,
    ):
        heard.extend(event.type for event in stream)
    assert (heard, caught.value.code, caught.value.type) == (["transcript.text.delta"], code, "server_error")
    body = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": file}, data={"stream": "true"}).text
    assert "secret" not in body
    assert body.count("data: ") == 2


def test_silence(strict: openai.OpenAI, client: openai.OpenAI):
    silent = ("clip.wav", b"")
    found = strict.audio.transcriptions.create(model="model1", file=silent, response_format="verbose_json")
    assert (found.text, found.segments) == ("", [])
    with strict.audio.transcriptions.create(model="model1", file=silent, stream=True) as stream:
        assert [e.type for e in stream] == ["transcript.text.done"]
    assert client.audio.transcriptions.create(model="model1", file=silent, response_format="text") == "\n"
    assert client.audio.transcriptions.create(model="model1", file=silent, response_format="vtt") == "WEBVTT\n"


def test_the_async_client(url: str):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return (await client.audio.transcriptions.create(model="model1", file=CLIP)).text

    assert asyncio.run(ask()) == TEXT


def test_models(strict: openai.OpenAI):
    (model,) = list(strict.models.list())
    assert (model.id, model.object, model.created, model.owned_by) == ("model1", "model", 0, "local")
    with pytest.raises(openai.NotFoundError) as caught:
        strict.models.retrieve("gpt-4o/transcribe")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"response_format": "diarized_json"}, "response_format", ["verbose_json", "diarized_json"]),
        ({"language": "de"}, "language", ["english", "'de'"]),
        ({"temperature": 1.5}, "temperature", ["0 to 1", "1.5"]),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]", ["verbose_json", "json"]),
        (
            {"timestamp_granularities": ["char"], "response_format": "verbose_json"},
            "timestamp_granularities[]",
            ["word", "'char'"],
        ),
        ({"include": ["logprobs"]}, "include[]", ["not supported", "avg_logprob"]),
        ({"chunking_strategy": "auto"}, "chunking_strategy", ["not supported"]),
        ({"chunking_strategy": {"type": "server_vad"}}, "chunking_strategy[type]", ["not supported"]),
        ({"keywords": ["Jürgen", "a:b"]}, "keywords[]", ["keywords[]: ", "WORD:NUMBER", "a:b"]),
        ({"extra_body": {"hotwords": "eins, 2"}}, "hotwords", ["hotwords: ", "numbers written out", "'2'"]),
        ({"languages": ["en"]}, "languages[]", ["not supported"]),
        ({"known_speaker_names": ["a"]}, "known_speaker_names[]", ["not supported"]),
        ({"extra_body": {"best_of": 5}}, "best_of", ["response_format", "best_of"]),
        ({"stream": True, "response_format": "srt"}, "stream", ["json or text", "srt"]),
        ({"extra_body": {"stream": "perhaps"}}, "stream", ["true", "perhaps"]),
        ({"extra_body": {"temperature": "nan"}}, "temperature", ["nan"]),
        ({"extra_body": {"temperature": "warm"}}, "temperature", ["warm"]),
        ({"extra_body": {"prompt": ["a", "b"]}}, "prompt[]", ["prompt"]),
    ],
)
def test_a_bad_value_is_a_400_that_names_the_field(client: openai.OpenAI, wrong, param: str, words):
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model="model1", file=CLIP, **wrong)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, "invalid_parameter", "invalid_request_error")
    body = error.response.json()
    assert sorted(body) == ["code", "detail", "error", "request_id"]
    assert body["detail"] == body["error"]["message"]
    assert all(word in body["detail"] for word in words)


def test_an_unknown_model_is_a_404(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        client.audio.transcriptions.create(model="whisper-large", file=CLIP)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "whisper-large" in str(caught.value)


def test_an_error_of_the_app_gets_the_error_object(client: openai.OpenAI, url: str):
    with pytest.raises(openai.APIStatusError) as caught:
        client.audio.transcriptions.create(model="model1", file=("a.wav", b"noise"))
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (415, "not_a_wav", None)
    body = caught.value.response.json()
    assert (body["code"], body["request_id"]) == ("NotAWav", "r")
    missing = httpx.post(f"{url}/v1/audio/translations")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "Not Found")


@pytest.mark.parametrize("path", PATHS)
def test_forms_that_only_hand_written_clients_send(url: str, path: str):
    def post(data=None, files=None, **kwargs) -> tuple[int, str | None]:
        response = httpx.post(url + path, data=data, files=files, **kwargs)
        return response.status_code, (response.json().get("error") or {}).get("param")

    files = {"file": CLIP}
    empty = dict.fromkeys(("model", "language", "prompt", "temperature", "response_format", "stream", "hotwords"), "")
    assert post(files=files) == (200, None)  # the served model is the default
    assert post(empty, files) == (200, None)  # an empty field counts as not given
    assert post({"stream": "False", "language": "English", "temperature": "1"}, files) == (200, None)
    assert post({"model": "model1"}) == (400, "file")
    assert post({"file": "text"}, {"prompt": CLIP}) == (400, "prompt")
    assert post({"file": "text"}) == (400, "file")
    assert post(files=files, json=None, data={"model": ["model1", "model1"]}) == (400, "model")
    assert post(json={"file": "x"}) == (400, "file")
    assert post(content=b"x", headers={"content-type": "multipart/form-data; boundary=y"})[0] == 400
    assert post(files=[("file", CLIP), ("file", CLIP)])[0] == 400
    for charset, name in (("undefined", b"language"), ("punycode", b"\xff"), ("unicode_escape", b"x\\ud800")):
        body = b'--y\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\nen\r\n--y--\r\n'
        kind = f"multipart/form-data; boundary=y; charset={charset}"
        assert post(content=body, headers={"content-type": kind})[0] == 400


def test_openapi_shows_the_form(url: str):
    document = httpx.get(f"{url}/openapi.json").json()
    body = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]
    fields = body["content"]["multipart/form-data"]["schema"]["properties"]
    assert fields["response_format"]["enum"] == ["json", "text", "srt", "vtt", "verbose_json"]


def test_openapi_shows_every_answer(url: str):
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    responses = paths["/v1/audio/transcriptions"]["post"]["responses"]
    assert {"text/plain", "text/vtt", "text/event-stream"} <= responses["200"]["content"].keys()
    assert {"400", "404", "413", "415", "503"} <= responses.keys()
    assert "404" in paths["/v1/models/{name}"]["get"]["responses"]


def test_openai_error_keeps_our_body():
    body = {"detail": "internal error", "code": "InferenceFailed", "request_id": "r"}
    assert openai_error(body, 500) == {
        **body,
        "error": {"message": "internal error", "type": "server_error", "param": None, "code": "inference_failed"},
    }


def test_the_middleware_leaves_other_paths_and_other_bodies_alone():
    ours = json.dumps({"detail": "d", "code": "QueueFull", "request_id": "r"}).encode()

    async def ask(path: str, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        sent = []

        async def app(scope, receive, send):
            headers = [(b"content-length", b"%d" % len(body)), (b"retry-after", b"3")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def send(message):
            sent.append(message)

        await OpenAIErrors(app)({"type": "http", "path": path}, None, send)
        assert [m["type"].rpartition(".")[2] for m in sent] == ["start", "body", "body"]
        return sent[0]["headers"], sent[1]["body"]

    headers, body = asyncio.run(ask("/v1/audio/transcriptions", ours))
    assert json.loads(body)["error"]["code"] == "queue_full"
    assert dict(headers) == {b"content-length": b"%d" % len(body), b"retry-after": b"3"}
    assert asyncio.run(ask("/upload/", ours))[1] == ours
    assert asyncio.run(ask("/v1/models", b"<html>"))[1] == b"<html>"
