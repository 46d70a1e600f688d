"""Sound as the service takes it: 22050 Hz, mono, 16-bit PCM WAV, checked byte by byte.

The standard library's ``wave`` is not used: it reads truncated files without complaint, raises EOFError on empty
ones, and its versions differ on WAVE_FORMAT_EXTENSIBLE. Format: http://soundfile.sapp.org/doc/WaveFormat/ and
https://learn.microsoft.com/windows/win32/api/mmreg/ns-mmreg-waveformatextensible
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speech.errors import AudioTooLong, DamagedWav, NotAWav, UnsupportedWav

SAMPLE_RATE = 22050  # Hz
CHANNELS = 1
BIT_DEPTH = 16
FULL_SCALE = 32768  # of a 16-bit sample

PCM, FLOAT, EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
FORMAT_NAMES = {PCM: "PCM", FLOAT: "floating point", 0x0006: "A-law", 0x0007: "mu-law"}
# What follows the two bytes of the format tag in the GUID of an EXTENSIBLE subformat.
SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
MAX_CHUNKS = 1000  # headers looked at before the sound; a real file has a handful


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """Checked sound: ``samples`` is float32 (n,) in [-1, 1)."""

    samples: npt.NDArray[np.float32]
    sample_rate: int = SAMPLE_RATE

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.sample_rate


def decode_wav(data: bytes, max_seconds: float = float("inf")) -> Waveform:
    """Sound of a 22050 Hz mono 16-bit PCM WAV file.

    Raises:
        NotAWav: the bytes do not begin as a RIFF WAVE file.
        DamagedWav: the file is empty, lacks a chunk, or is shorter than its headers say.
        UnsupportedWav: another sample rate, channel count, sample width or encoding.
        AudioTooLong: more than ``max_seconds``.
    """
    if not data:
        raise DamagedWav("expected a WAV file, found an empty one")
    if data[:4] != b"RIFF"[: len(data)] or data[8:12] != b"WAVE"[: max(0, len(data) - 8)]:
        raise NotAWav(f"expected a RIFF WAVE file, found one that begins with {data[:12]!r}")
    has_format = False
    for name, start, size in _chunks(data):
        found = len(data) - start
        if name == b"fmt ":
            if size < 16 or found < size:
                raise DamagedWav(f"expected a format chunk of 16 bytes or more, found {min(size, found)}")
            _check_format(data[start : start + size])
            has_format = True
        elif name == b"data":
            if not has_format:
                raise DamagedWav("expected the format chunk before the sound, found none")
            if found < size:
                raise DamagedWav(f"expected {size} bytes of sound as the header says, found {found}")
            if size == 0 or size % 2:
                raise DamagedWav(f"expected whole 16-bit samples, found {size} bytes of sound")
            seconds = size / 2 / SAMPLE_RATE
            if seconds > max_seconds:
                raise AudioTooLong(f"expected at most {max_seconds:g} s of sound, found {seconds:.1f} s")
            return from_pcm16(np.frombuffer(data, "<i2", size // 2, start))
    raise DamagedWav("expected a WAV file with format and sound, found one that ends before the sound")


def from_pcm16(samples: npt.NDArray[np.int16]) -> Waveform:
    """Waveform of 16-bit samples int16 (n,) at 22050 Hz."""
    return Waveform(samples.astype(np.float32) / np.float32(FULL_SCALE))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and promised size of each chunk of a RIFF file."""
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _check_format(chunk: bytes) -> None:
    """Raise UnsupportedWav unless this is the one format that the model hears."""
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    valid = bits
    if tag == EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != SUBFORMAT_TAIL:
            raise UnsupportedWav("expected a PCM subformat in the WAVE_FORMAT_EXTENSIBLE header, found another one")
        tag = struct.unpack_from("<H", chunk, 24)[0]
        valid = struct.unpack_from("<H", chunk, 18)[0] or bits  # of the container's
    encoding = FORMAT_NAMES.get(tag, f"format {tag:#06x}")
    if valid != bits or align not in (0, channels * (bits // 8)):
        encoding += f" in {align} bytes a frame"
    checks = [
        ("sample rate", f"{SAMPLE_RATE} Hz", f"{rate} Hz"),
        ("channel count", f"{CHANNELS} (mono)", f"{channels}" if channels != CHANNELS else f"{channels} (mono)"),
        ("sample format", f"{BIT_DEPTH}-bit PCM", f"{valid}-bit {encoding}"),
    ]
    wrong = [f"{what}: expected {expected}, found {found}" for what, expected, found in checks if expected != found]
    if wrong:
        raise UnsupportedWav("; ".join(wrong))
