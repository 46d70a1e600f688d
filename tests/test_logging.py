"""Logs: one line a request, request ids through the whole pipeline, and never a broken request."""

import os
import re
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
    import logging

    configure_logging(settings)
    log = logging.getLogger("api")
    for _ in range(MAX_BYTES // 1_000_000 + 2):
        log.debug("x" * 1_000_000)
        log.info("x" * 1_000_000)
    names = sorted(path.name for path in settings.log_folder.glob("api.log*"))
    assert names == ["api.log", "api.log.1"]
    assert BACKUPS > 1
    assert (settings.log_folder / "api.log").stat().st_size < MAX_BYTES
