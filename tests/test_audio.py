"""The decoder takes one format, and says why it does not take the others."""

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.audio import Waveform, decode_wav
from speech.errors import AudioError, AudioTooLong, DamagedWav, NotAWav, UnsupportedWav
from tests.conftest import make_sound, make_wav

SOUND = make_sound(0.1)
GOOD = make_wav(SOUND)


def _wide(wav: bytes, align: int | None = None, valid: int | None = None) -> bytes:
    """The same with another number of bytes a frame, or of valid bits of a sample, in its header."""
    data = bytearray(wav)
    if align:
        struct.pack_into("<H", data, 32, align)
    if valid:
        struct.pack_into("<H", data, 38, valid)
    return bytes(data)


def test_samples_are_those_of_the_file():
    waveform = decode_wav(make_wav(np.array([0, 1, -1, 32767, -32768])))
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.tolist() == [0, 1 / 32768, -1 / 32768, 32767 / 32768, -1]


def test_reads_what_the_standard_library_writes():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(SOUND.tobytes())
    waveform = decode_wav(buffer.getvalue())
    assert np.array_equal(waveform.samples * 32768, SOUND)
    assert waveform.duration == pytest.approx(0.1)


def test_extensible_pcm_is_the_same_sound():
    assert np.array_equal(decode_wav(make_wav(SOUND, extensible=True)).samples, decode_wav(GOOD).samples)


def test_chunks_around_the_sound_are_skipped():
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # odd size: one byte of padding
    assert len(decode_wav(GOOD[:12] + note + GOOD[12:] + note).samples) == len(SOUND)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", DamagedWav, ["empty"]),
        (b"ID3\x04 an mp3, it seems", NotAWav, ["RIFF", "ID3"]),
        (b"RIFX" + GOOD[4:], NotAWav, ["RIFX"]),
        (GOOD[:8] + b"AVI " + GOOD[12:], NotAWav, ["AVI"]),
        (GOOD[:3], DamagedWav, ["ends before"]),
        (GOOD[:20], DamagedWav, ["ends before", "16"]),
        (GOOD[:40], DamagedWav, ["ends before"]),
        (GOOD[:-2], DamagedWav, ["4410", "4408"]),
        (GOOD[:44], DamagedWav, ["4410", "0"]),
        (make_wav(SOUND[:0]), DamagedWav, ["0 bytes"]),
        (GOOD[:40] + struct.pack("<I", 3) + b"abc", DamagedWav, ["3 bytes"]),
        (GOOD[:12] + GOOD[36:] + GOOD[12:36], DamagedWav, ["format chunk"]),
        (make_wav(SOUND, rate=44100), UnsupportedWav, ["22050 Hz", "44100 Hz"]),
        (make_wav(SOUND, channels=2), UnsupportedWav, ["mono", "found 2"]),
        (make_wav(SOUND, bits=8), UnsupportedWav, ["16-bit PCM", "8-bit PCM"]),
        (make_wav(SOUND, bits=32, tag=3), UnsupportedWav, ["32-bit floating point"]),
        (make_wav(SOUND, tag=6), UnsupportedWav, ["A-law"]),
        (make_wav(SOUND, tag=3, extensible=True), UnsupportedWav, ["floating point"]),
        (make_wav(SOUND, extensible=True).replace(bytes.fromhex("aa00389b71"), b"other"), UnsupportedWav, ["subformat"]),
        (_wide(make_wav(SOUND, bits=32, extensible=True), valid=16), UnsupportedWav, ["16-bit PCM in 4 bytes"]),
        (_wide(GOOD, align=4), UnsupportedWav, ["16-bit PCM in 4 bytes"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(data: bytes, error: type[AudioError], words: list[str]):
    with pytest.raises(error) as raised:
        decode_wav(data)
    assert type(raised.value) is error
    assert "expected" in str(raised.value)
    assert any(word in str(raised.value) for word in words)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(UnsupportedWav, match=r"48000.*found 2.*24-bit"):
        decode_wav(make_wav(SOUND, rate=48000, channels=2, bits=24))


def test_a_long_clip_is_refused_by_its_header():
    assert decode_wav(GOOD, max_seconds=0.1).duration == pytest.approx(0.1)
    with pytest.raises(AudioTooLong, match=r"0\.05 s.*found 0\.1 s"):
        decode_wav(GOOD, max_seconds=0.05)


def test_a_file_of_endless_tiny_chunks_is_given_up():
    with pytest.raises(DamagedWav):
        decode_wav(GOOD[:12] + b"junk\0\0\0\0" * 100_000 + GOOD[12:])


@given(st.binary(max_size=300))
def test_any_bytes_give_a_waveform_or_an_audio_error(data: bytes):
    for candidate in (data, GOOD[:12] + data, GOOD[:36] + data):
        try:
            assert isinstance(decode_wav(candidate), Waveform)
        except AudioError as error:
            assert str(error)


@given(st.integers(0, 43), st.integers(0, 255), st.integers(44, len(GOOD)))
def test_a_changed_or_cut_header_gives_a_waveform_or_an_audio_error(position: int, value: int, length: int):
    data = bytearray(GOOD[:length])
    data[position] = value
    try:
        assert len(decode_wav(bytes(data)).samples) > 0
    except AudioError as error:
        assert str(error)
