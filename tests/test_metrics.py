"""/metrics, as Prometheus' own parser reads it, and the dashboard that asks for it."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api import create_app
from config import Settings
from predictor import SpeechPredictor
from tests.conftest import FakeEngine, make_sound, make_wav, upload

ROOT = Path(__file__).resolve().parent.parent


def scrape(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return scrape(client).get((name, frozenset(labels.items())), 0.0)


def test_an_answer_is_counted(client: TestClient):
    for seed in range(3):
        assert upload(client, make_wav(make_sound(2, seed))).status_code == 200
    assert client.post("/v1/audio/transcriptions", files={"file": ("a.wav", make_wav(make_sound(1)))}).is_success
    samples = scrape(client)

    def found(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert found("stt_requests_total", method="POST", path="/upload/", status="200") == 3
    assert found("stt_requests_total", method="POST", path="/v1/audio/transcriptions", status="200") == 1
    assert found("stt_request_seconds_count", path="/upload/") == 3
    assert found("stt_audio_seconds_total") == pytest.approx(7, abs=0.01)
    assert found("stt_real_time_factor_count") == 4
    assert 0 < found("stt_real_time_factor_sum") < 4
    assert found("stt_batch_size_sum") == 4  # clips
    assert 1 <= found("stt_batch_size_count") <= 4
    for stage in ("features", "network", "decoding"):
        assert found("stt_stage_seconds_count", stage=stage) == found("stt_batch_size_count")
        assert found("stt_stage_seconds_sum", stage=stage) > 0
    assert found("stt_in_flight") == found("stt_queue_seconds") == found("stt_live_connections") == 0


def test_errors_are_counted_by_their_code(client: TestClient):
    upload(client, b"ID3")
    upload(client, make_wav(make_sound(1), rate=8000))
    client.post("/upload/")
    client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")}, data={"language": "de"})
    for code in ("NotAWav", "UnsupportedWav", "InvalidRequest", "InvalidParameter"):
        assert value(client, "stt_errors_total", code=code) == 1
    assert value(client, "stt_requests_total", method="POST", path="/upload/", status="415") == 1


def test_a_refusal_at_the_gate_has_its_path(settings: Settings):
    with TestClient(create_app(settings.model_copy(update={"max_upload_bytes": 1024}))) as client:
        assert upload(client, bytes(2000)).status_code == 413
        assert value(client, "stt_requests_total", method="POST", path="/upload/", status="413") == 1
        assert value(client, "stt_errors_total", code="UploadTooLarge") == 1


def test_a_failed_network_is_an_error_and_no_answer(settings: Settings):
    predictor = SpeechPredictor(FakeEngine(fail=lambda frames: frames.any()))
    with TestClient(create_app(settings, predictor)) as client:
        assert upload(client, make_wav(make_sound(1))).status_code == 500
        assert value(client, "stt_errors_total", code="InferenceFailed") == 1
        assert value(client, "stt_audio_seconds_total") == 0
        assert value(client, "stt_requests_total", method="POST", path="/upload/", status="500") == 1


def test_what_clients_make_up_makes_no_labels(client: TestClient):
    sizes = []
    for number in range(5):
        client.get(f"/nowhere/{number}")
        client.get(f"/v1/models/model{number}")
        client.request(f"BREW{number}", "/upload/")
        client.get("/ui/metrics")
        client.get(f"/audio_specs/?q={number}", headers={"X-Request-ID": f"id{number}"})
        sizes.append(len(scrape(client)))
    samples = scrape(client)
    seen = {dict(labels)["path"] for name, labels in samples if name == "stt_requests_total"}
    assert {"other", "/v1/models/{name:path}", "/upload/", "/audio_specs/", "/ui"} <= seen
    assert not any(dict(labels).get("status") == "404" and dict(labels)["path"] == "/metrics" for _, labels in samples)
    methods = {dict(labels)["method"] for name, labels in samples if name == "stt_requests_total"}
    assert methods == {"GET", "other"}
    assert len(set(sizes[1:])) == 1  # the first time, /metrics had not been asked before
    assert not re.search(r"nowhere|BREW|model\d|id\d", client.get("/metrics").text.replace("model1", ""))


def test_live_connections_are_counted_while_they_are_open(client: TestClient):
    upload(client, make_wav(make_sound(1)))  # waits for the model; live sound does not
    with client.websocket_connect("/v1/audio/stream") as socket:
        assert value(client, "stt_live_connections") == 1
        socket.send_text('{"eof": 1}')
        assert socket.receive_json()["type"] == "done"
    assert value(client, "stt_live_connections") == 0
    assert value(client, "stt_requests_total", method="GET", path="/v1/audio/stream", status="101") == 1


def test_each_app_counts_for_itself(client: TestClient, settings: Settings):
    upload(client, make_wav(make_sound(1)))
    with TestClient(create_app(settings, SpeechPredictor(FakeEngine()))) as other:
        assert value(other, "stt_audio_seconds_total") == 0


def test_the_dashboard_asks_for_what_is_there(client: TestClient):
    upload(client, make_wav(make_sound(1)))
    upload(client, b"")
    samples = scrape(client)
    names = {name for name, _ in samples}
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:stt|process)_\w+", query)}
    assert asked <= names
    ours = {name for name in names if name.startswith("stt_")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked if name.startswith("stt_")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours} == shown
    labels = {key for name, pairs in samples if name.startswith("stt_") for key, _ in pairs}
    for query in queries:
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(group.split(", ")) <= labels, query
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_docs_name_every_metric(client: TestClient):
    upload(client, make_wav(make_sound(1)))
    upload(client, b"")
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in scrape(client) if name.startswith("stt_")}
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(stt_\w+)", page, re.MULTILINE)) == names
