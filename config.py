"""Settings, from the environment (STT_*), and the key numbers in one look.

22050 Hz mono 16-bit PCM → STFT frame 256, step 160, FFT 384 → 193 bins; served on 127.0.0.1:8000.
"""

import os
import re
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent


class Settings(BaseSettings):
    """Every setting of the service; the variable is STT_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="STT_", extra="ignore", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field("model1", min_length=1, description="folder under Models/, or a path to a model's folder")
    engine: Literal["auto", "openvino", "onnx", "keras"] = Field(
        "auto",
        description="auto, openvino, onnx or keras runs the network; auto: OpenVINO where it may compute in bfloat16, "
        "else ONNX Runtime, or Keras without an export",
    )
    decoder: Literal["auto", "greedy", "beam"] = Field(
        "auto",
        description="auto, greedy (the best letters alone) or beam (with a language model); auto: beam if there is one",
    )
    threads: int = Field(0, ge=0, le=1024, description="threads of the network; 0: one for each core")
    max_upload_bytes: int = Field(25 * 2**20, ge=1024, description="largest request body, in bytes")
    max_seconds: float = Field(120.0, gt=0, description="longest clip at /upload/, in seconds")
    max_long_seconds: float = Field(14400.0, gt=0, description="longest file at /v1/audio/transcriptions, in seconds")
    max_streams: int = Field(32, ge=0, description="live streams at once; more are refused with 503")
    max_queue_seconds: float = Field(300.0, gt=0, description="seconds of audio that may wait; beyond it 503")
    max_uploads: int = Field(128, gt=0, description="uploads that may be received or wait at once; more is 503")
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False, description="seconds until an answer is given up (504)")
    api_keys: SecretStr | None = Field(
        None, description="keys that clients must send, separated by commas; None: not set"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severity logged: DEBUG, INFO, WARNING or ERROR"
    )
    log_folder: Path = Field(ROOT / "logs", description="folder of api.log and predictor.log, of one server alone")
    log_format: Literal["text", "json"] = Field("text", description="text: lines to read; json: one JSON object a line")
    log_text: bool = Field(False, description="log the transcribed text itself, not only its length")

    @field_validator("api_keys")
    @classmethod
    def _keys_can_be_sent(cls, values: SecretStr | None) -> SecretStr | None:
        """A key that no header can carry, or a list without any, would be an open door or none at all."""
        keys = values.get_secret_value().split(",") if values is not None else []
        if not all(re.fullmatch("[!-~]+", key.strip()) for key in keys):
            raise ValueError("expected keys of visible ASCII characters, separated by commas")
        return values

    @field_validator("log_folder")
    @classmethod
    def _home_is_known(cls, folder: Path) -> Path:
        return Path(os.path.expanduser(folder))

    @property
    def key_list(self) -> list[str]:
        """The keys in plain text; empty if none is asked for."""
        return [] if self.api_keys is None else [key.strip() for key in self.api_keys.get_secret_value().split(",")]

    @property
    def model_folder(self) -> Path:
        """Where the model lies: ``model`` as a path if it has a separator, else a folder of Models/."""
        given = Path(os.path.expanduser(self.model))
        return given if given.name != self.model else ROOT / "Models" / self.model


def read_settings() -> Settings:
    """Settings of the environment; a bad value ends the process with one line for each."""
    try:
        return Settings()
    except ValidationError as error:
        sys.exit("\n".join(_line(str(e["loc"][0]), e["msg"], e["input"]) for e in error.errors()))


def _line(name: str, message: str, found: object) -> str:
    return f"STT_{name.upper()}: {message}, found {'others' if name == 'api_keys' else repr(found)}"


def unknown_settings() -> list[str]:
    """Variables of the environment that look like settings but are none: misspelt, most likely."""
    known = {f"STT_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith("STT_") and name.upper() not in known)
