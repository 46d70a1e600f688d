"""The wire contract and every way to fail, through the real app with a fake engine behind it."""

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from api import create_app
from config import Settings
from predictor import SpeechPredictor
from service import Service
from speech.errors import ModelNotFound
from tests.conftest import FakeEngine, make_sound, make_wav, upload

GOOD = make_wav(make_sound(1.0))


def failure(response, status: int, code: str) -> str:
    """Detail of an error in the one shape, after its shape, status, code and request id were checked."""
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    assert sorted(body) == ["code", "detail", "request_id"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    return body["detail"]


def test_upload_answers_the_text(client: TestClient):
    response = upload(client, GOOD)
    assert response.status_code == 200
    body = response.json()
    assert len(body["transcryption"]) == 1
    assert body["duration"] == 1.0
    assert body["confidence"] == 1.0
    assert 0 < body["processing_time"] < 10


def test_root_is_exact(client: TestClient):
    assert client.get("/").json() == {
        "status": "ok",
        "message": "WAV to Tensor Processor API is running",
        "audio_specs": {"sample_rate": 22050, "format": "16-bit PCM WAV", "channels": "mono"},
    }


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_health_answers_head_too(client: TestClient, path: str):
    client.app.state.service.start().result(20)
    assert (client.head(path).status_code, client.post(path).status_code) == (200, 405)


def test_audio_specs_are_exact(client: TestClient):
    assert client.get("/audio_specs/").json() == {
        "sample_rate": 22050, "channels": 1, "bit_depth": 16, "format": "PCM WAV", "dtype": "float32",
    }  # fmt: skip


def test_extensible_pcm_is_taken(client: TestClient):
    plain, extensible = upload(client, GOOD), upload(client, make_wav(make_sound(1.0), extensible=True))
    assert extensible.json()["transcryption"] == plain.json()["transcryption"]


@pytest.mark.parametrize(
    ("data", "status", "code", "words"),
    [
        (make_wav(make_sound(1), rate=16000), 422, "UnsupportedWav", ["22050", "16000"]),
        (make_wav(make_sound(1), channels=2), 422, "UnsupportedWav", ["mono", "2"]),
        (make_wav(make_sound(1), bits=24), 422, "UnsupportedWav", ["16-bit", "24-bit"]),
        (make_wav(make_sound(0.01)), 422, "AudioTooShort", ["256", "220"]),
        (make_wav(make_sound(121)), 413, "AudioTooLong", ["120 s", "121.0 s"]),
        (b"", 400, "DamagedWav", ["empty"]),
        (GOOD[:-100], 400, "DamagedWav", ["44100", "44000"]),
        (b"OggS and so on, no WAV", 415, "NotAWav", ["RIFF", "OggS"]),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected_and_found(client, data, status, code, words):
    detail = failure(upload(client, data), status, code)
    assert all(word in detail for word in words)


def test_fastapi_own_errors_have_the_one_shape(client: TestClient):
    assert "file" in failure(client.post("/upload/"), 422, "InvalidRequest")
    assert "file" in failure(client.post("/upload/", data={"file": "text"}), 422, "InvalidRequest")
    broken = client.post("/upload/", content=b"x", headers={"content-type": "multipart/form-data; boundary=y"})
    failure(broken, 400, "BadRequest")
    failure(client.get("/nowhere"), 404, "NotFound")
    failure(client.get("/upload/"), 405, "MethodNotAllowed")


def test_too_large_is_refused_and_the_next_is_taken(settings: Settings):
    small = settings.model_copy(update={"max_upload_bytes": 20_000})
    with TestClient(create_app(small, SpeechPredictor(FakeEngine()))) as client:
        chunked = (b"x" * 1000 for _ in range(30))
        response = client.post("/upload/", content=chunked, headers={"content-type": "multipart/form-data; boundary=y"})
        assert "20000" in failure(response, 413, "UploadTooLarge")
        assert upload(client, make_wav(make_sound(0.4))).status_code == 200


def test_a_missing_model_starts_and_says_how_to_get_one(settings: Settings, tmp_path: Path):
    missing = settings.model_copy(update={"model": str(tmp_path / "nothing")})
    with TestClient(create_app(missing)) as client:
        for response in (upload(client, GOOD), client.get("/readyz")):
            detail = failure(response, 503, "ModelNotFound")
            assert "card.json" in detail
            assert "Name one of them" in detail
            assert str(tmp_path) not in detail
        assert client.get("/healthz").json() == {"status": "ok"}


def test_refusals_without_a_model_hold_on_to_nothing(settings: Settings, tmp_path: Path):
    """The one error that is raised each time kept the frames of every time, and with them requests."""
    service = Service(settings.model_copy(update={"model": str(tmp_path / "none")}))
    service.start().result(10)
    depths = set()
    for _ in range(3):
        with pytest.raises(ModelNotFound) as caught:
            service.check_ready()
        depths.add(len([*traceback.walk_tb(caught.value.__traceback__)]))
    assert len(depths) == 1


def test_a_model_that_fails_is_a_500_without_its_traceback(settings: Settings):
    engine = FakeEngine(fail=lambda frames: len(frames[0]) > 137 + 50)
    with TestClient(create_app(settings, SpeechPredictor(engine))) as client:
        response = upload(client, make_wav(make_sound(2.0)), headers={"X-Request-ID": "the-one"})
        assert failure(response, 500, "InferenceFailed") == "internal error"
        assert upload(client, GOOD).status_code == 200
    written = (settings.log_folder / "predictor.log").read_text()
    line = next(line for line in written.splitlines() if "the network failed" in line)
    assert "[the-one]" in line
    assert "Traceback" in written
    assert "secret: the engine broke" in written


def test_a_bug_is_a_500_without_its_traceback(client: TestClient, settings: Settings):
    def broken() -> None:
        raise ZeroDivisionError("secret")

    client.app.add_api_route("/broken", broken)
    assert failure(client.get("/broken"), 500, "InternalError") == "internal error"
    assert "secret" in (settings.log_folder / "api.log").read_text()


def test_a_loading_model_makes_readyz_503_and_uploads_wait(settings: Settings):
    loaded = threading.Event()

    class Slow(FakeEngine):
        def __call__(self, frames, n_frames):
            loaded.wait(10)
            return super().__call__(frames, n_frames)

    with TestClient(create_app(settings, SpeechPredictor(Slow()))) as client, ThreadPoolExecutor() as pool:
        failure(client.get("/readyz"), 503, "NotReady")
        assert client.get("/healthz").status_code == 200
        waiting = pool.submit(upload, client, GOOD)
        time.sleep(0.1)
        assert not waiting.done()
        loaded.set()
        assert waiting.result(10).status_code == 200
        assert client.get("/readyz").json() == {"status": "ready", "worker_restarts": 0}


def test_a_worker_that_died_is_seen(settings: Settings):
    class Mortal(FakeEngine):
        def __call__(self, frames, n_frames):
            if len(frames[0]) > 137 + 50:  # not the warm-up
                raise SystemExit
            return super().__call__(frames, n_frames)

    with TestClient(create_app(settings, SpeechPredictor(Mortal()))) as client:
        assert upload(client, GOOD).status_code == 200
        failure(upload(client, make_wav(make_sound(3))), 500, "InferenceFailed")
        soon = time.monotonic() + 10  # the answer may come before the thread is restarted
        while not (restarts := client.get("/readyz").json()["worker_restarts"]) and time.monotonic() < soon:
            time.sleep(0.01)
        assert restarts == 1
        assert "stt_worker_restarts 1.0" in client.get("/metrics").text
        assert upload(client, GOOD).status_code == 200


def test_uploads_work_where_no_lifespan_is_run(settings: Settings):
    assert upload(TestClient(create_app(settings, SpeechPredictor(FakeEngine()))), GOOD).status_code == 200


class Stuck(FakeEngine):
    """Says when it runs, and waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.go_on = threading.Event(), threading.Event()

    def __call__(self, frames, n_frames):
        if len(frames[0]) > 137 + 50:  # not the warm-up
            self.running.set()
            self.go_on.wait(10)
        return super().__call__(frames, n_frames)


def test_a_full_queue_is_503_with_a_time_to_come_back(settings: Settings):
    engine, tight = Stuck(), settings.model_copy(update={"max_queue_seconds": 5})
    with TestClient(create_app(tight, SpeechPredictor(engine))) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(upload, client, make_wav(make_sound(3)))
        engine.running.wait(10)
        waiting = pool.submit(upload, client, make_wav(make_sound(5.5)))
        while client.app.state.service._batcher.queued_seconds < 4:
            time.sleep(0.01)
        refused = upload(client, make_wav(make_sound(3)))
        assert "5 s" in failure(refused, 503, "QueueFull")
        assert int(refused.headers["Retry-After"]) >= 1
        engine.go_on.set()
        assert [first.result(10).status_code, waiting.result(10).status_code] == [200, 200]


def test_too_many_uploads_are_503_without_their_sound_being_looked_at(settings: Settings):
    engine, few = Stuck(), settings.model_copy(update={"max_uploads": 1})
    with TestClient(create_app(few, SpeechPredictor(engine))) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(upload, client, make_wav(make_sound(3)))
        engine.running.wait(10)
        refused = upload(client, b"not even sound")
        engine.go_on.set()
        assert "1 uploads" in failure(refused, 503, "QueueFull")
        assert int(refused.headers["Retry-After"]) >= 1
        assert first.result(10).status_code == 200
        assert upload(client, GOOD).status_code == 200


def test_a_late_answer_is_504_and_not_to_be_retried(settings: Settings):
    class Sleepy(FakeEngine):
        def __call__(self, frames, n_frames):
            time.sleep(0.5 if len(frames[0]) > 137 + 50 else 0)
            return super().__call__(frames, n_frames)

    hasty = settings.model_copy(update={"timeout": 0.1})
    with TestClient(create_app(hasty, SpeechPredictor(Sleepy()))) as client:
        response = upload(client, make_wav(make_sound(2)))
        assert "0.1 s" in failure(response, 504, "DeadlineExceeded")
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers


def test_two_files_are_refused(client: TestClient):
    answer = client.post("/upload/", files=[("file", ("a.wav", GOOD)), ("file", ("b.wav", GOOD))])
    assert "expected one file, found 2" in failure(answer, 422, "InvalidRequest")


def test_request_ids_are_taken_if_well_formed_and_made_otherwise(client: TestClient):
    assert client.get("/", headers={"X-Request-ID": "a.b_c-9"}).headers["X-Request-ID"] == "a.b_c-9"
    for hostile in ("", "x" * 65, "a b", "a\tb", "<script>"):
        made = client.get("/", headers={"X-Request-ID": hostile}).headers["X-Request-ID"]
        assert len(made) == 32
    assert client.get("/").headers["X-Request-ID"] != client.get("/").headers["X-Request-ID"]


def test_concurrent_uploads_get_their_own_answers(settings: Settings):
    engine = FakeEngine()
    files = [make_wav(make_sound(0.3 + 0.01 * i, seed=i)) for i in range(40)]
    with TestClient(create_app(settings, SpeechPredictor(engine))) as client, ThreadPoolExecutor(16) as pool:
        alone = [upload(client, data).json()["transcryption"] for data in files]
        together = [r.json()["transcryption"] for r in pool.map(lambda data: upload(client, data), files)]
    assert together == alone
    assert len(set(alone)) > 5
    assert max(engine.batches) > 1  # they were really run in batches


def test_the_openai_endpoint_takes_what_upload_refuses(client: TestClient):
    stereo = make_wav(np.repeat(make_sound(1), 2), channels=2)
    assert upload(client, stereo).status_code == 422
    answer = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", stereo)})
    assert answer.json()["text"] == upload(client, GOOD).json()["transcryption"]
    verbose = client.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", GOOD)}, data={"response_format": "verbose_json"}
    ).json()
    assert verbose["duration"] == 1.0
    assert verbose["segments"][0]["end"] <= 1.0


def test_the_openai_endpoint_is_behind_the_same_gate(settings: Settings):
    small = settings.model_copy(update={"max_upload_bytes": 2000})
    with TestClient(create_app(small, SpeechPredictor(FakeEngine()))) as client:
        response = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", GOOD)})
        assert (response.status_code, response.json()["code"]) == (413, "UploadTooLarge")
        assert response.json()["error"]["code"] == "upload_too_large"


def test_openapi_shows_examples(client: TestClient):
    document = client.get("/openapi.json").json()
    assert "transcryption" in str(document["components"]["schemas"]["Transcription"]["properties"])
    assert document["components"]["schemas"]["Transcription"]["properties"]["transcryption"]["examples"]
    assert client.get("/docs").status_code == 200


def test_importing_the_app_loads_no_framework():
    import subprocess
    import sys

    code = "import sys, api; sys.exit(bool({'tensorflow', 'keras', 'torch', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0
