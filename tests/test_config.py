"""Settings: the brief's defaults, every one documented, a bad one stops the start with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings, unknown_settings

ROOT = Path(__file__).resolve().parent.parent


def test_defaults_are_the_brief(monkeypatch: pytest.MonkeyPatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STT_{name.upper()}", raising=False)
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_upload_bytes == 25 * 1024 * 1024
    assert settings.max_seconds == 120
    assert settings.log_folder == ROOT / "logs"
    assert settings.model_folder.parent == ROOT / "Models"


def test_the_environment_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STT_PORT", "9999")
    monkeypatch.setenv("STT_MODEL", "somewhere/else")
    monkeypatch.setenv("STT_PROT", "1")
    monkeypatch.setenv("stt_prt", "1")
    assert Settings().port == 9999
    assert Settings().model_folder == Path("somewhere/else")
    assert unknown_settings() == ["STT_PROT", "stt_prt"]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    """Env files of systemd and containers do not go through a shell."""
    monkeypatch.setenv("STT_MODEL", "~/models/mine")
    monkeypatch.setenv("STT_LOG_FOLDER", "~/logs")
    assert Settings().model_folder == Path.home() / "models" / "mine"
    assert Settings().log_folder == Path.home() / "logs"
    monkeypatch.setenv("STT_MODEL", "~nobody-by-that-name/mine")
    assert Settings().model_folder == Path("~nobody-by-that-name/mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [("STT_PORT", "eighty"), ("STT_PORT", "70000"), ("STT_ENGINE", "magic"), ("STT_LOG_LEVEL", "LOUD"),
     ("STT_MAX_SECONDS", "-1"), ("STT_TIMEOUT", "0"), ("STT_THREADS", "-2")],
)  # fmt: skip
@pytest.mark.parametrize("command", [["api.py"], ["predictor.py", "x.wav"]])
def test_a_bad_value_stops_the_start_with_one_line(command: list[str], name: str, value: str):
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, name: value},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"{name}: ")
    assert value in run.stderr


def test_every_setting_is_in_the_table_of_the_docs():
    rows = {
        line.split("|")[1].strip(" `"): line
        for line in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `STT_")
    }
    assert set(rows) == {f"STT_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = "logs" if name == "log_folder" else field.default
        cells = [cell.strip() for cell in rows[f"STT_{name.upper()}"].split("|")]
        assert cells[2] == f"`{default}`", name
        assert cells[3] == field.description, name
