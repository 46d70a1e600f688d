"""Every container, rate, width and channel count, from sound that the tests make; hostile bytes; bounds."""

import io
import itertools
import logging
import mmap
import struct
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE, decode_wav
from speech.errors import AudioError, AudioTooLong, DamagedWav, NotAWav, UnsupportedWav
from speech.formats import MAX_FRAME, MAX_GAP, MAX_LINKS, MAX_PACKETS, decode_audio, decode_blocks, resample

ROOT = Path(__file__).resolve().parent.parent
LEVEL = 0.25  # of the 1 kHz tone
SECONDS = 1.0

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]
MP3_RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000]
OPUS_RATES = [8000, 12000, 16000, 24000, 48000]
AAC_RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000]
WAV_WIDTHS = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"]
TOLERANCE = {  # of the level, as these encoders write it; of all others 0.1 %
    **dict.fromkeys(["PCM_U8", "PCM_S8", "pcm_u8", "ULAW", "ALAW"], 0.02),
    **dict.fromkeys(["IMA_ADPCM", "VORBIS", "OPUS", "MPEG_LAYER_III", "aac", "libopus"], 0.11),
}
# container, encodings, rates, channel counts: of soundfile, or of av where the container is in lower case.
# docs/formats.md has the same table.
CELLS = [
    ("WAV", WAV_WIDTHS, RATES, [1, 2]),
    ("WAV", ["PCM_16", "FLOAT"], [44100], [3, 6, 8, 16]),
    ("WAVEX", ["PCM_16", "PCM_24"], [16000, 48000], [1, 2, 6]),
    ("RF64", ["PCM_16"], [48000], [1, 2]),
    ("FLAC", ["PCM_S8", "PCM_16", "PCM_24"], RATES, [1, 2, 8]),
    ("OGG", ["VORBIS"], RATES, [1, 2, 4]),
    ("OGG", ["OPUS"], OPUS_RATES, [1, 2, 4]),
    ("MP3", ["MPEG_LAYER_III"], MP3_RATES, [1, 2]),
    ("AIFF", ["PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"], RATES, [1, 2]),
    ("ogg", ["flac"], RATES, [1, 2]),
    ("mp4", ["aac"], AAC_RATES, [1, 2]),
    ("ipod", ["aac", "alac"], [16000, 44100], [1, 2]),  # m4a
    ("webm", ["libopus"], OPUS_RATES, [1, 2]),
    ("matroska", ["pcm_s16le", "pcm_s24le", "pcm_u8", "pcm_f32le"], [16000, 44100], [1, 2]),
]
MATRIX = [(c, e, r, n) for c, *lists in CELLS for e, r, n in itertools.product(*lists)]


NAMES = {  # in docs/formats.md
    "WAVEX": "WAV, EXTENSIBLE", "RF64": "WAV, RF64", "OGG": "Ogg", "mp4": "MP4", "ipod": "M4A", "webm": "WebM",
    "matroska": "Matroska", "PCM_U8": "8-bit unsigned", "PCM_S8": "8-bit", "PCM_16": "16-bit", "PCM_24": "24-bit",
    "PCM_32": "32-bit", "FLOAT": "32-bit float", "DOUBLE": "64-bit float", "ULAW": "µ-law", "ALAW": "A-law",
    "IMA_ADPCM": "IMA ADPCM", "VORBIS": "Vorbis", "OPUS": "Opus", "MPEG_LAYER_III": "Layer III", "aac": "AAC",
    "alac": "ALAC", "ogg": "Ogg", "flac": "FLAC", "libopus": "Opus", "pcm_s16le": "16-bit", "pcm_s24le": "24-bit", "pcm_u8": "8-bit unsigned",
    "pcm_f32le": "32-bit float",
}  # fmt: skip


def tone(hertz: float, rate: int, seconds: float = SECONDS, level: float = LEVEL) -> np.ndarray:
    """A sine, float64 (n,)."""
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def encode(container: str, encoding: str, samples: np.ndarray, rate: int) -> bytes:
    """A file of samples (n, channels)."""
    file = io.BytesIO()
    if container.isupper():
        soundfile.write(file, samples, rate, format=container, subtype=encoding)
        return file.getvalue()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout)
    frame.sample_rate = rate
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(encoding, rate=rate, layout=layout)
        size = stream.codec_context.frame_size or 1024
        fitted = av.AudioResampler(stream.codec_context.format, layout, rate, size)
        for part in [*fitted.resample(frame), *fitted.resample(None), None]:
            output.mux([packet for packet in stream.encode(part) if packet.size])  # FLAC's last one is empty
    return file.getvalue()


def level_of(samples: np.ndarray, hertz: float, rate: int = SAMPLE_RATE) -> float:
    """Amplitude of a sine in the middle of the samples, by correlation."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    wave = np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / rate) * np.hanning(len(middle))
    return float(2 * abs(middle @ wave) / np.hanning(len(middle)).sum())


@pytest.mark.parametrize(("container", "encoding", "rate", "channels"), MATRIX)
def test_a_tone_is_a_tone_in_every_cell(container: str, encoding: str, rate: int, channels: int):
    data = encode(container, encoding, np.repeat(tone(1000, rate)[:, None], channels, axis=1), rate)
    found = decode_audio(data, max_seconds=SECONDS + 0.4)
    assert found.samples.dtype == np.float32
    assert np.abs(found.samples).max() < 1
    assert SECONDS - 0.001 <= found.duration <= SECONDS + 0.4  # codecs pad
    level = level_of(found.samples, 1000)
    assert level == pytest.approx(LEVEL, rel=TOLERANCE.get(encoding, 0.001))
    assert np.std(found.samples[8000:18000]) == pytest.approx(level / 2**0.5, rel=0.02)  # and there is nothing else


def test_the_docs_have_the_same_table():
    rows = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").split("|---|---|---|---|\n")[1].split("\n\n")[0]
    lists = [
        ["; ".join(NAMES.get(str(value), str(value)) for value in values) for values in cell] for _, *cell in CELLS
    ]
    assert rows.splitlines() == [
        f"| {NAMES.get(container, container)} | {' | '.join(cell)} |"
        for (container, *_), cell in zip(CELLS, lists, strict=True)
    ]


def test_what_decode_wav_reads_comes_out_bit_for_bit():
    samples = np.random.default_rng(0).integers(-32768, 32768, 30_000, dtype=np.int16)
    for container in ("WAV", "WAVEX"):
        data = encode(container, "PCM_16", samples[:, None], SAMPLE_RATE)
        assert np.array_equal(decode_audio(data).samples, decode_wav(data).samples)
    assert np.array_equal(
        decode_audio(encode("FLAC", "PCM_16", samples[:, None], 22050)).samples, decode_wav(data).samples
    )


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_file_is_resampled_as_one_piece_though_it_is_read_in_blocks(rate: int):
    samples = np.random.default_rng(1).uniform(-0.4, 0.4, 100_000)
    data = encode("WAV", "FLOAT", samples[:, None], rate)
    whole = np.rint(resample(samples.astype(np.float32), rate) * 32768) / 32768
    assert np.array_equal(decode_audio(data).samples, whole.astype(np.float32))


def test_an_mp3_read_in_blocks_has_no_seams():
    """soundfile seeks after each block that it reads, and MP3 comes out broken at every border."""
    noise = np.random.default_rng(2).normal(0, 0.1, 200_000)
    data = encode("MP3", "MPEG_LAYER_III", noise[:, None], SAMPLE_RATE)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    found = decode_audio(data).samples
    assert np.abs(found[: len(whole)] - whole).max() <= 1 / 32768
    assert len(found) - len(whole) < 0.1 * SAMPLE_RATE  # of padding, which only a count of frames would tell


@pytest.mark.parametrize(("container", "encoding"), [("mp4", "aac"), ("webm", "libopus")])
def test_eight_channels_of_a_video_are_heard(container: str, encoding: str):
    """PyAV's own arrays of eight planes reach into memory that is not theirs."""
    frame = av.AudioFrame.from_ndarray(tone(1000, 48000)[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate = 48000
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(encoding, rate=48000, layout="7.1")
        fitted = av.AudioResampler(stream.codec_context.format, "7.1", 48000, stream.codec_context.frame_size or 960)
        for part in [*fitted.resample(frame), *fitted.resample(None), None]:
            output.mux(stream.encode(part))
    found = decode_audio(file.getvalue())
    assert found.duration == pytest.approx(SECONDS, abs=0.1)
    assert level_of(found.samples, 1000) > 0.01


def test_a_frame_of_millions_of_samples_is_refused():
    """2 kB of ALAC may announce one of 16 million, and a block of PCM may hold one: gigabytes, once they are numbers."""
    file = io.BytesIO()
    samples = np.zeros((1, MAX_FRAME + 1), np.int16)
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(DamagedWav):
        decode_audio(file.getvalue())


def film(container: str, encoding: str, times: np.ndarray, pictures: bool = True, broken: int = -1) -> bytes:
    """A second of pictures from 1000 s on, and a tone of 1 kHz whose frames are heard that many seconds later, of
    which one may be broken."""
    file, rate = io.BytesIO(), 48000
    with av.open(file, "w", format=container) as output:
        video = output.add_stream("mpeg4" if container == "mp4" else "libvpx", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = output.add_stream(encoding, rate=rate, layout="mono")
        size = 1024 if encoding == "aac" else 960
        packets = []
        for number in range(10 if pictures else 0):
            picture = av.VideoFrame(32, 32, "yuv420p")
            picture.pts, picture.time_base = 10_000 + number, Fraction(1, 10)
            packets += video.encode(picture)
        sound = np.resize(tone(1000, rate), (len(times), 1, size)).astype(np.float32)
        for samples, when in zip(sound, times, strict=True):
            samples = samples if audio.codec_context.format.name.startswith("flt") else np.rint(samples * 32767)
            name = audio.codec_context.format.name
            frame = av.AudioFrame.from_ndarray(samples.astype(np.int16 if name == "s16" else np.float32), name, "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, round((1000 + when) * rate), Fraction(1, rate)
            packets += audio.encode(frame)
        packets += [*(video.encode(None) if pictures else []), *audio.encode(None)]
        for number, packet in enumerate(sorted(packets, key=lambda packet: packet.pts * packet.time_base)):
            if number == broken:
                damaged = av.Packet(b"\xff" * packet.size)
                damaged.pts, damaged.dts, damaged.stream = packet.pts, packet.dts, packet.stream
                damaged.time_base, damaged.duration = packet.time_base, packet.duration
                packet = damaged
            output.mux(packet)
    return file.getvalue()


def sounding(samples: np.ndarray) -> list[tuple[float, float]]:
    """From when to when something is heard, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > LEVEL / 4) / SAMPLE_RATE
    breaks = np.flatnonzero(np.diff(loud) > 0.05)
    return list(zip(loud[[0, *breaks + 1]], loud[[*breaks, -1]], strict=True))


KINDS = [("mp4", "aac", 1024 / 48000), ("webm", "libopus", 960 / 48000)]


@pytest.mark.parametrize(("container", "encoding", "step"), KINDS)
def test_sound_that_begins_late_in_a_film_or_has_gaps_is_heard_when_it_is_played(
    container: str, encoding: str, step: float
):
    times = 1.5 + step * np.arange(100)
    times[50:] += 2
    (first, pause), (again, end) = sounding(decode_audio(film(container, encoding, times)).samples)
    assert [first, pause, again, end] == pytest.approx(
        [1.5, 1.5 + 50 * step, 3.5 + 50 * step, 3.5 + 100 * step], abs=0.06
    )


@pytest.mark.parametrize(("container", "encoding", "step"), KINDS)
def test_a_recording_whose_clock_runs_from_anywhere_begins_at_once(container: str, encoding: str, step: float):
    """As browsers record; and a clock that is set midway is no silence of hours."""
    times = step * np.arange(100)
    times[50:] += MAX_GAP + 1
    ((first, end),) = sounding(decode_audio(film(container, encoding, times, pictures=False)).samples)
    assert [first, end] == pytest.approx([0, 100 * step], abs=0.06)


def test_a_packet_that_cannot_be_decoded_is_left_out(caplog: pytest.LogCaptureFixture):
    times = KINDS[0][2] * np.arange(100)
    whole = decode_audio(film("mp4", "aac", times, pictures=False))
    found = decode_audio(film("mp4", "aac", times, pictures=False, broken=50))
    assert found.duration == pytest.approx(whole.duration, abs=0.03)
    assert "1 packets could not be decoded" in caplog.text


def test_channels_are_averaged():
    both = np.stack([tone(1000, 44100), tone(3000, 44100)], axis=1)
    found = decode_audio(encode("FLAC", "PCM_16", both, 44100)).samples
    assert level_of(found, 1000) == pytest.approx(LEVEL / 2, rel=0.01)
    assert level_of(found, 3000) == pytest.approx(LEVEL / 2, rel=0.01)


@pytest.mark.parametrize(
    ("hertz", "rate", "alias"), [(15_000, 44100, 7050), (15_000, 48000, 7050), (12_500, 96000, 9550)]
)
def test_nothing_above_the_new_band_comes_back_as_an_alias(hertz: int, rate: int, alias: int):
    found = resample(tone(hertz, rate, level=0.9).astype(np.float32), rate)
    assert 20 * np.log10(level_of(found, alias) / 0.9 + 1e-12) < -80
    middle = found[2000:-2000]
    assert 20 * np.log10(np.abs(middle).max() / 0.9 + 1e-12) < -80
    assert abs(len(found) - SAMPLE_RATE) <= 1


def test_resampling_keeps_levels_and_the_rate_of_the_service_as_it_is():
    samples = tone(1000, SAMPLE_RATE).astype(np.float32)
    assert np.array_equal(resample(samples, SAMPLE_RATE), samples)
    for rate in (8000, 16000, 44100, 48000, 192_000):
        assert level_of(resample(tone(3000, rate).astype(np.float32), rate), 3000) == pytest.approx(LEVEL, rel=0.001)


SOUND = (tone(1000, 48000, 3.0) + np.random.default_rng(3).normal(0, 0.05, 144_000))[:, None]
FILES = {  # 3 s of each
    "wav": encode("WAV", "PCM_16", SOUND, 48000),
    "aiff": encode("AIFF", "PCM_16", SOUND, 48000),
    "flac": encode("FLAC", "PCM_16", SOUND, 48000),
    "vorbis": encode("OGG", "VORBIS", SOUND, 48000),
    "opus": encode("OGG", "OPUS", SOUND, 48000),
    "mp3": encode("MP3", "MPEG_LAYER_III", SOUND, 48000),
    "oga": encode("ogg", "flac", SOUND, 48000),
    "webm": encode("webm", "libopus", SOUND, 48000),
    "mp4": encode("mp4", "aac", SOUND, 48000),
}
RF64 = encode("RF64", "PCM_16", SOUND, 48000)
ID3V1 = b"TAG" + bytes(125)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "mp4"])
def test_a_file_that_breaks_off_is_decoded_as_far_as_it_goes(kind: str):
    found = decode_audio(FILES[kind][: len(FILES[kind]) * 2 // 3])
    assert 0.9 < found.duration < 2.1  # Ogg breaks off at a page, which holds up to a second
    assert level_of(found.samples, 1000) == pytest.approx(LEVEL, rel=0.05)


def test_a_break_is_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "speech.formats"):
        decode_audio(FILES["flac"][: len(FILES["flac"]) // 2])
    assert "stopped after" in caplog.text


def index_first(mp4: bytes) -> bytes:
    """As for the web: the index (moov) before the sound (mdat)."""
    moov = mp4[mp4.index(b"moov") - 4 :]
    place, n = moov.index(b"stco") + 8, int.from_bytes(moov[moov.index(b"stco") + 8 :][:4], "big")
    offsets = struct.unpack_from(f">{n}I", moov, place + 4)
    moved = struct.pack(f">{n}I", *(offset + len(moov) for offset in offsets))
    sound = mp4.index(b"mdat") - 4
    return mp4[:sound] + moov[: place + 4] + moved + moov[place + 4 + 4 * n :] + mp4[sound : -len(moov)]


WHOLE = {**{kind: data for kind, data in FILES.items() if kind not in ("webm", "mp4")}, "rf64": RF64,
         "mp4, index first": index_first(FILES["mp4"])}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_cut_is_not_whole(kind: str, caplog: pytest.LogCaptureFixture):
    data = WHOLE[kind]
    for behind in (b"", ID3V1):
        assert decode_audio(data + behind, whole=True).duration == pytest.approx(3, abs=0.05)
    assert not caplog.text
    frames = [at for at in range(len(data)) if data.startswith((b"OggS", b"\xff\xf8"), at)]  # pages of Ogg
    for stop in [len(data) // 2, len(data) - 1000, *frames[-2:]]:
        with pytest.raises(DamagedWav, match="expected .*, found"):
            decode_audio(data[:stop], whole=True)
        caplog.clear()
        assert decode_audio(data[:stop]).duration < 3
        assert "decoding stopped after" in caplog.text


@pytest.mark.parametrize("behind", [ID3V1, bytes(100), b"\xff\xf8" * 50], ids=["tag", "zeros", "frames"])
def test_what_follows_a_flac_costs_none_of_its_sound(behind: bytes, caplog: pytest.LogCaptureFixture):
    expected = decode_audio(FILES["flac"], whole=True).samples
    assert np.array_equal(decode_audio(FILES["flac"] + behind, whole=True).samples, expected)
    assert not caplog.text


@pytest.mark.parametrize("bare", [False, True])
def test_of_joined_flacs_it_is_said_that_only_the_first_is_heard(bare: bool):
    """Whether the second has tags and the like, or nothing but what a FLAC must have."""
    second = FILES["flac"]
    if bare:
        place, last = 4, 0
        while not last:
            last, size = second[place] & 0x80, int.from_bytes(second[place + 1 : place + 4], "big")
            place += 4 + size
        second = b"fLaC\x80\0\0\x22" + second[8:42] + second[place:]
    assert len(decode_audio(second, whole=True).samples) == len(decode_audio(FILES["flac"]).samples)
    with pytest.raises(DamagedWav, match="another behind it"):
        decode_audio(FILES["flac"] + second, whole=True)


@pytest.mark.parametrize("size", [0, 0x7F000008, 0x7FFFF000, 2**31, 2**32 - 1])
def test_a_wav_from_a_pipe_is_whole(size: int):
    data, at = bytearray(FILES["wav"]), FILES["wav"].index(b"data")
    data[4:8], data[at + 4 : at + 8] = struct.pack("<I", min(size + 36, 2**32 - 1)), struct.pack("<I", size)
    assert decode_audio(bytes(data), whole=True).duration == pytest.approx(3, abs=0.01)


def test_an_mp4_without_its_index_is_damaged():
    with pytest.raises(DamagedWav, match="can be decoded"):
        decode_audio(FILES["mp4"][: len(FILES["mp4"]) * 2 // 3])


@pytest.mark.parametrize("kind", FILES)
def test_sound_that_is_too_long_is_refused_while_it_is_decoded(kind: str):
    assert decode_audio(FILES[kind], max_seconds=3.1).duration >= 3
    with pytest.raises(AudioTooLong, match="at most 2 s"):
        decode_audio(FILES[kind], max_seconds=2)


def test_hours_in_a_small_file_cost_no_more_than_the_limit():
    hour = np.zeros(3600 * 8000, np.int16)
    data = encode("FLAC", "PCM_16", hour[:, None], 8000)
    assert len(data) < 1_000_000
    tracemalloc.start()
    with pytest.raises(AudioTooLong):
        decode_audio(data, max_seconds=120)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("claimed", [0, 20_000, 2**20, 2**36 - 1])
def test_the_length_in_a_flac_header_is_not_believed(claimed: int):
    data = bytearray(FILES["flac"])
    data[21] = data[21] & 0xF0 | claimed >> 32
    data[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    assert decode_audio(bytes(data), max_seconds=4).duration == pytest.approx(3, abs=0.01)


def test_the_length_in_a_wav_header_of_a_stream_is_not_believed():
    data, at = bytearray(FILES["wav"]), FILES["wav"].index(b"data")
    data[at + 4 : at + 8] = data[4:8] = b"\xff" * 4
    assert decode_audio(bytes(data), max_seconds=4).duration == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("width", WAV_WIDTHS)
@pytest.mark.parametrize(("whole", "order"), [(0, "<"), (36, "<"), (0xFFFFFFFF, "<"), (0, ">")])
def test_a_wav_whose_size_was_never_filled_in_goes_to_its_end(width: str, whole: int, order: str):
    """As writers to a pipe leave it."""
    file = io.BytesIO()
    soundfile.write(file, SOUND, 48000, format="WAV", subtype=width, endian="BIG" if order == ">" else "LITTLE")
    data = bytearray(file.getvalue())
    at = data.index(b"data")
    data[4:8], data[at + 4 : at + 8] = struct.pack(f"{order}I", whole), bytes(4)
    assert decode_audio(bytes(data), max_seconds=4).duration == pytest.approx(3, abs=0.1)  # ADPCM fills its last block


def test_chunks_behind_no_sound_are_no_sound():
    data = encode("WAV", "PCM_16", np.zeros((0, 1)), 22050) + b"LIST" + struct.pack("<I", 4000) + b"INFO" * 1000
    with pytest.raises(DamagedWav, match="not one sample"):
        decode_audio(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])


MP3 = encode("MP3", "MPEG_LAYER_III", SOUND[:, :1], 48000)
COUNT = MP3.index(b"Xing") + 8
PLAIN = MP3[MP3.index(MP3[:2], COUNT) :]  # without the frame that counts the others
ID3V2 = b"ID3\4\0\0\0\0\2\0" + b"\xff\xfb" * 128


@pytest.mark.parametrize("claimed", [0, 1, 4, 5, 50, 2**20, 2**32 - 1])
def test_the_length_in_an_mp3_header_is_not_believed(claimed: int):
    found = decode_audio(MP3[:COUNT] + claimed.to_bytes(4, "big") + MP3[COUNT + 4 :], max_seconds=4)
    assert found.duration == pytest.approx(3, abs=0.12)  # it says how much of both ends is padding too
    assert level_of(found.samples, 1000) == pytest.approx(LEVEL, rel=0.1)  # a seam where it ended


def test_an_mp3_without_a_count_is_not_ended_by_a_guess(caplog: pytest.LogCaptureFixture):
    """A loud beginning has larger frames, from which libsndfile would guess that there are few."""
    noise = np.random.default_rng(4).normal(0, 0.1, 22050 * 4) * (np.arange(22050 * 4) < 2000)
    data = encode("MP3", "MPEG_LAYER_III", noise[:, None], 22050)
    plain = data[data.index(data[:2], data.index(b"Xing")) :]
    assert soundfile.info(io.BytesIO(plain)).duration < 3.5
    for tag in (b"", ID3V2):
        assert decode_audio(tag + plain, max_seconds=5).duration == pytest.approx(4, abs=0.12)
    assert not caplog.text


@pytest.mark.parametrize(("second", "between"), [("MP3", b""), ("MP3", ID3V1), ("MP3", ID3V1 + ID3V2), ("PLAIN", b"")])
def test_joined_mp3s_are_heard_one_after_another(second: str, between: bytes, caplog: pytest.LogCaptureFixture):
    data = PLAIN if second == "PLAIN" else encode("MP3", "MPEG_LAYER_III", tone(3000, 48000, 2.0)[:, None], 48000)
    found = decode_audio(MP3 + between + data + ID3V1, max_seconds=7)
    seconds, hertz = (3.0, 1000) if second == "PLAIN" else (2.0, 3000)
    assert found.duration == pytest.approx(3 + seconds, abs=0.12)
    assert not caplog.text
    assert level_of(found.samples[: 3 * SAMPLE_RATE], 1000) == pytest.approx(LEVEL, rel=0.05)
    assert level_of(found.samples[-round(seconds * SAMPLE_RATE) :], hertz) == pytest.approx(LEVEL, rel=0.05)
    with pytest.raises(AudioTooLong):
        decode_audio(MP3 + between + data, max_seconds=4)


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_the_links_of_an_ogg_chain_are_heard_one_after_another(kind: str):
    """With the serial number of the first link or another one, longer or shorter."""
    for seconds in (1.0, 4.0):
        other = encode("OGG", kind.upper(), tone(3000, 48000, seconds)[:, None], 48000)
        found = decode_audio(FILES[kind] + other, max_seconds=8)
        assert found.duration == pytest.approx(3 + seconds, abs=0.05)
        assert level_of(found.samples[: 3 * SAMPLE_RATE], 1000) == pytest.approx(LEVEL, rel=0.05)
        assert level_of(found.samples[-round(seconds * SAMPLE_RATE) :], 3000) == pytest.approx(LEVEL, rel=0.11)
    twice = decode_audio(FILES[kind] * 2).samples
    assert np.array_equal(twice[:60_000], decode_audio(FILES[kind]).samples[:60_000])
    with pytest.raises(AudioTooLong):
        decode_audio(FILES[kind] * 2, max_seconds=4)


def test_what_is_joined_is_bounded_and_said(caplog: pytest.LogCaptureFixture):
    short = encode("OGG", "OPUS", tone(1000, 24000, 0.1)[:, None], 24000)
    started = time.perf_counter()
    assert decode_audio(short * (MAX_LINKS + 9)).duration == pytest.approx(0.1 * MAX_LINKS, rel=0.01)
    assert f"at most {MAX_LINKS} links" in caplog.text
    decode_audio(short + b"OggS\0\2" * 10**6)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("what", ["stereo", "another rate", "noise"])
def test_what_is_no_more_sound_of_an_mp3_is_said(what: str, caplog: pytest.LogCaptureFixture):
    behind = {
        "stereo": encode("MP3", "MPEG_LAYER_III", np.repeat(SOUND[:, :1], 2, axis=1), 48000),
        "another rate": encode("MP3", "MPEG_LAYER_III", SOUND[:, :1], 44100),
        "noise": bytes(range(1, 200)) * 100,
    }[what]
    assert decode_audio(MP3 + behind, max_seconds=7).duration == pytest.approx(3, abs=0.06)
    assert "decoding stopped after 3.0" in caplog.text


def test_a_film_on_the_disk_is_not_copied_into_memory(tmp_path: Path):
    padding = 30 << 20
    (tmp_path / "film").write_bytes(FILES["mp4"] + struct.pack(">I4s", padding, b"free") + bytes(padding - 8))
    with (tmp_path / "film").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tracemalloc.start()
        try:
            assert sum(len(block) for block in decode_blocks(data)) > 0
            assert tracemalloc.get_traced_memory()[1] < padding / 3
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("box", [b"stsz", b"trun", b"cmov"])
@pytest.mark.parametrize("wrapped", [b"", b"edts"])
def test_an_mp4_that_announces_millions_of_packets_is_refused_before_ffmpeg_sees_it(box: bytes, wrapped: bytes):
    """28 kB of these made FFmpeg fill 2 GB and 6 s."""
    number = struct.pack(">I", MAX_PACKETS + 1)
    inner = box + bytes(4) + (bytes(4) if box == b"stsz" else b"") + number + bytes(20)
    moov = (
        b"moov"
        + (struct.pack(">I", len(inner) + 12) + wrapped if wrapped else b"")
        + struct.pack(">I", len(inner) + 4)
        + inner
    )
    data = FILES["mp4"] + struct.pack(">I", len(moov) + 4) + moov
    started = time.perf_counter()
    with pytest.raises(UnsupportedWav, match=str(MAX_PACKETS)):
        decode_audio(data)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", DamagedWav, "empty"),
        (b"<html>not audio</html>", NotAWav, "FLAC.*begins with b'<html>"),
        (b"\xff\xf1\x50\x80" + bytes(400), NotAWav, "MP3"),  # AAC without a container
        (b"RIFF\x24\0\0\0AVI LIST", NotAWav, "WAV"),
        (b"MZ" + bytes(100), NotAWav, "expected WAV"),
        (encode("AU", "PCM_16", SOUND, 48000), NotAWav, "begins with b'.snd"),
        (b"fLaC" + bytes(100), DamagedWav, "decoded"),
        (b"OggS" + bytes(100), DamagedWav, "decoded"),
        (b"ID3\x04" + bytes(100), DamagedWav, "decoded"),
        (b"\x1aE\xdf\xa3" + bytes(100), DamagedWav, "decoded"),
        (b"\0\0\0\x18ftypM4A " + bytes(100), DamagedWav, "decoded"),
        (encode("WAV", "PCM_16", np.zeros((0, 1)), 22050), DamagedWav, "not one sample"),
        (encode("WAV", "PCM_16", np.zeros((99, 17)), 22050), UnsupportedWav, "1 to 16, found 17"),
        (encode("WAV", "PCM_16", np.zeros((99, 1)), 2000), UnsupportedWav, "4000 to 384000 Hz, found 2000"),
        (encode("WAV", "PCM_16", np.zeros((99, 1)), 10**6), UnsupportedWav, "found 1000000"),
        (encode("WAV", "FLOAT", np.full((99, 1), np.nan), 22050), DamagedWav, "finite"),
    ],
)
def test_a_bad_file_says_what_was_expected_and_found(data: bytes, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        decode_audio(data, 60)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silent(odd: float):
    samples = tone(1000, SAMPLE_RATE)[:, None]
    samples[5000:6000] = odd
    found = decode_audio(encode("WAV", "FLOAT", samples, SAMPLE_RATE)).samples
    assert len(found) == len(samples)
    assert not found[5000:6000].any()
    samples[5000:6000] = 0
    assert np.abs(found - samples[:, 0]).max() <= 1 / 32768
    many = np.concatenate([samples, np.full((3 * SAMPLE_RATE, 1), odd), samples])  # whole blocks of them
    assert len(decode_audio(encode("WAV", "FLOAT", many, SAMPLE_RATE)).samples) == len(many)


def test_loud_floats_are_clipped():
    found = decode_audio(encode("WAV", "FLOAT", np.full((99, 1), 1e30), 22050)).samples
    assert found.max() < 1


def test_without_av_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(NotAWav, match="package 'av'"):
        decode_audio(FILES["mp4"])
    assert decode_audio(FILES["opus"]).duration == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(("container", "mark", "other"), [("mp4", b"mp4a", b"ac-4"), ("webm", b"A_OPUS", b"A_NONE")])
def test_an_encoding_that_nobody_reads_is_unsupported(container: str, mark: bytes, other: bytes):
    data = FILES[container].replace(mark, other).replace(b"esds", b"dac4")
    with pytest.raises(UnsupportedWav, match="encoding that can be read"):
        decode_audio(data)


def test_a_video_without_sound_is_unsupported():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(UnsupportedWav, match="found none"):
        decode_audio(file.getvalue())


def is_decoded_or_refused(data: bytes) -> None:
    started = time.perf_counter()
    try:
        found = decode_audio(data, max_seconds=5)
    except AudioError as error:
        assert "found" in str(error)
    else:
        assert 0 < len(found.samples) <= 5 * SAMPLE_RATE + 1
        assert np.isfinite(found.samples).all()
    assert time.perf_counter() - started < 3


MAGIC = [b"RIFF\x00\x10\0\0WAVE", b"RIFF\xff\xff\0\0WAVEfmt \x10\0\0\0", b"RIFX\0\0\x10\0WAVE", b"RF64\xff\xff\xff\xffWAVEds64",
         b"FORM\0\0\x10\0AIFFCOMM", b"FORM\0\0\x10\0AIFC", b"fLaC\0\0\0\x22", b"OggS\0\x02", b"ID3\x04\0\0", b"\xff\xfb\x90\x64",
         b"\xff\xf3\x40\xc4", b"\0\0\0\x18ftypM4A ", b"\0\0\0\x18ftypisom\0\0\0\0isom\0\0\0\0\0\0\1\0moov", b"\x1aE\xdf\xa3",
         b"\x1aE\xdf\xa3\x84webm\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff"]  # fmt: skip
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.sampled_from(MAGIC), st.binary(max_size=600))
def test_any_bytes_behind_a_magic_number_are_sound_or_an_error_of_ours(magic: bytes, data: bytes):
    is_decoded_or_refused(magic + data)


@FUZZ
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_damage_to_a_real_file_leaves_sound_or_an_error_of_ours(kind: str, draw: st.DataObject):
    data = bytearray(FILES[kind][: draw.draw(st.integers(100, 30_000), "length")])
    for _ in range(draw.draw(st.integers(1, 6), "hits")):
        place = draw.draw(st.one_of(st.integers(0, 300), st.integers(0, len(data) - 1)), "place") % len(data)
        data[place : place + 4] = draw.draw(st.binary(max_size=6), "bytes")
    is_decoded_or_refused(bytes(data))


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_of_ours(data: bytes):
    is_decoded_or_refused(data)
