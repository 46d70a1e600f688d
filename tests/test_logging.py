"""Logs: one line a request, request ids through the whole pipeline, and never a broken request."""

import json
import logging
import os
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api import create_app
from config import Settings
from custom_logger import BACKUPS, MAX_BYTES, configure_logging
from predictor import SpeechPredictor
from tests.conftest import FakeEngine, make_sound, make_wav, upload


def lines(settings: Settings, name: str) -> list[str]:
    return (settings.log_folder / f"{name}.log").read_text(encoding="utf-8").splitlines()


def test_one_line_for_each_request(client: TestClient, settings: Settings):
    data = make_wav(make_sound(1))
    upload(client, data, headers={"X-Request-ID": "seen-everywhere"})
    client.get("/no%0Awhere")
    posted, missing = lines(settings, "api")[-2:]
    match = re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO +api \[seen-everywhere\] "
        r"POST /upload/ 200 [\d.]+ ms (\d+) bytes from testclient:\d+",
        posted,
    )
    assert match
    assert int(match[1]) > len(data)
    assert "GET /no%0Awhere 404" in missing  # a path cannot write lines of its own


def test_one_line_for_each_answer_with_its_stages(client: TestClient, settings: Settings):
    text = upload(client, make_wav(make_sound(1)), headers={"X-Request-ID": "abc"}).json()["transcryption"]
    line = lines(settings, "predictor")[-1]
    assert re.search(
        r"\[abc\] 1\.00 s of audio in [\d.]+ s, real-time factor [\d.]+; batch of 1: "
        r"features [\d.]+ s, network [\d.]+ s, decoding [\d.]+ s; 1 characters$",
        line,
    )
    assert not line.endswith(text)


def test_the_text_is_logged_if_a_setting_asks_for_it(settings: Settings):
    asked = settings.model_copy(update={"log_text": True})
    with TestClient(create_app(asked, SpeechPredictor(FakeEngine()))) as client:
        text = upload(client, make_wav(make_sound(1))).json()["transcryption"]
    assert lines(settings, "predictor")[-1].endswith(f": {text!r}")


@pytest.mark.skipif(os.name == "nt", reason="/dev/full is a thing of Linux")
@pytest.mark.parametrize("broken", ["/dev/null/logs", "/dev/full"])
def test_logs_that_cannot_be_written_break_nothing(settings: Settings, tmp_path: Path, broken: str, capsys):
    folder = Path(broken)
    if broken == "/dev/full":  # a disk without room
        folder = tmp_path / "full"
        folder.mkdir()
        for name in ("api.log", "predictor.log"):
            (folder / name).symlink_to("/dev/full")
    with TestClient(
        create_app(settings.model_copy(update={"log_folder": folder}), SpeechPredictor(FakeEngine()))
    ) as client:
        assert upload(client, make_wav(make_sound(1))).status_code == 200
    assert "POST /upload/ 200" in capsys.readouterr().err  # the console still has it


def test_files_rotate(settings: Settings):
    configure_logging(settings)
    log = logging.getLogger("api")
    for _ in range(MAX_BYTES // 1_000_000 + 2):
        log.debug("x" * 1_000_000)
        log.info("x" * 1_000_000)
    names = sorted(path.name for path in settings.log_folder.glob("api.log*"))
    assert names == ["api.log", "api.log.1"]
    assert BACKUPS > 1
    assert (settings.log_folder / "api.log").stat().st_size < MAX_BYTES


def test_json_lines_have_the_fields_of_the_text_lines(settings: Settings):
    asked = settings.model_copy(update={"log_format": "json", "log_text": True})
    data = make_wav(make_sound(1))
    with TestClient(create_app(asked, SpeechPredictor(FakeEngine()))) as client:
        text = upload(client, data, headers={"X-Request-ID": "mine"}).json()["transcryption"]
    request = json.loads(lines(settings, "api")[-1])
    assert abs(datetime.fromisoformat(request.pop("time")).timestamp() - datetime.now().timestamp()) < 3600
    assert request.pop("message").startswith("POST /upload/ 200 ")
    assert request.pop("ms") > 0
    assert request.pop("bytes") > len(data)
    assert request == {
        "level": "INFO", "logger": "api", "request_id": "mine",
        "method": "POST", "path": "/upload/", "status": 200, "client": "testclient:50000",
    }  # fmt: skip
    answer = json.loads(lines(settings, "predictor")[-1])
    assert (answer["request_id"], answer["batch"], answer["text"]) == ("mine", 1, text)
    assert answer["audio_seconds"] == pytest.approx(1, abs=0.01)
    assert {"seconds", "real_time_factor", "features", "network", "decoding", "characters"} < set(answer)
    assert answer["message"].endswith(repr(text))


def test_the_time_of_a_json_line_says_its_zone(settings: Settings):
    configure_logging(settings.model_copy(update={"log_format": "json"}))
    logging.getLogger("api").info("now")
    assert datetime.fromisoformat(json.loads(lines(settings, "api")[-1])["time"]).utcoffset() == timedelta(0)


FORGED = 'a\n2026-01-01 00:00:00,000 INFO    api [-] forged\r\x1b[2J\u2028\x85{"level": "INFO"}\x00\x0b'


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_is_logged_can_write_a_line_of_its_own(settings: Settings, form: str):
    configure_logging(settings.model_copy(update={"log_format": form}))
    log = logging.getLogger("api")
    log.warning("found %s", FORGED)
    log.warning("found %(what)s", {"what": FORGED, "level": FORGED, FORGED: FORGED})
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("crashed")
    written = lines(settings, "api")  # splitlines() also cuts at U+2028, U+0085 and such
    if form == "json":
        first, second, third = [json.loads(line) for line in written]
        assert first["message"] == f"found {FORGED}"
        assert (second["level"], second["what"]) == ("WARNING", FORGED)
        assert "ValueError" in third["exception"]
    else:
        assert sum(bool(re.match(r"\d{4}-", line)) for line in written) == 3
        assert all(line.startswith("    ") for line in written[3:])
        assert "\x1b" not in "".join(written)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_crash_is_logged_whole(settings: Settings, form: str):
    app = create_app(settings.model_copy(update={"log_format": form}), SpeechPredictor(FakeEngine()))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("on purpose")

    with TestClient(app) as client:
        assert client.get("/broken", headers={"X-Request-ID": "x1"}).status_code == 500
    text = "\n".join(lines(settings, "api"))
    assert "RuntimeError: on purpose" in text
    if form == "json":
        assert [
            entry["exception"].count("Traceback")
            for entry in map(json.loads, text.splitlines())
            if "exception" in entry
        ] == [1]


def test_the_servers_own_warnings_are_in_the_log(client: TestClient, settings: Settings):
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert lines(settings, "api")[-1].endswith("WARNING uvicorn.error [-] Invalid HTTP request received.")
