"""Settings, from the environment (STT_*), and the key numbers in one look.

22050 Hz mono 16-bit PCM → STFT frame 256, step 160, FFT 384 → 193 bins; served on 127.0.0.1:8000.
"""

import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent


class Settings(BaseSettings):
    """Every setting of the service; the variable is STT_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="STT_", extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field("model1", min_length=1, description="folder under Models/, or a path to a model's folder")
    engine: Literal["auto", "onnx", "keras"] = Field("auto", description="what runs the network")
    decoder: Literal["greedy", "beam"] = Field("greedy", description="best path, or beam search with a language model")
    threads: int = Field(0, ge=0, description="threads of the network; 0: one for each core")
    max_upload_bytes: int = Field(25 * 2**20, ge=1024, description="largest request body, in bytes")
    max_seconds: float = Field(120.0, gt=0, description="longest clip, in seconds")
    max_queue_seconds: float = Field(600.0, gt=0, description="audio that may wait at once, in seconds; more is 503")
    timeout: float = Field(60.0, gt=0, description="seconds until an answer is given up (504)")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severity logged")
    log_folder: Path = Field(ROOT / "logs", description="folder of api.log and predictor.log")
    log_text: bool = Field(False, description="log the transcribed text itself, not only its length")

    @property
    def model_folder(self) -> Path:
        """Where the model lies: ``model`` as a path if it has a separator, else a folder of Models/."""
        return Path(self.model) if Path(self.model).name != self.model else ROOT / "Models" / self.model


def read_settings() -> Settings:
    """Settings of the environment; a bad value ends the process with one line for each."""
    try:
        return Settings()
    except ValidationError as error:
        sys.exit("\n".join(f"STT_{str(e['loc'][0]).upper()}: {e['msg']}, found {e['input']!r}" for e in error.errors()))


def unknown_settings() -> list[str]:
    """Variables of the environment that look like settings but are none: misspelt, most likely."""
    known = {f"STT_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("STT_") and name.upper() not in known)
