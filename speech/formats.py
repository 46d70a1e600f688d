"""Sound from any common file, decided by its content: decoded block by block, mixed to mono, resampled to 22050 Hz.

WAV, AIFF, FLAC, Ogg and MP3 are read by libsndfile (soundfile), m4a, mp4, webm and FLAC in Ogg by FFmpeg (PyAV,
optional); those are silent where their track begins late or has gaps. A file that breaks off is decoded as far as it
goes, and the break is logged. What was decoded is counted, so that minutes of silence in a few bytes cost no more than
``max_seconds``; what headers say of a whole file's length is not believed (`speech.containers`).
"""

import logging
import re
import struct
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speech.audio import FULL_SCALE, SAMPLE_RATE, Waveform, from_pcm16
from speech.containers import Bytes, Part, is_mpeg_audio, links, missing, open_ended
from speech.errors import AudioTooLong, DamagedWav, NotAWav, UnsupportedWav

if TYPE_CHECKING:
    from av import AudioFrame

READ = "WAV, AIFF, FLAC, Ogg (Vorbis, Opus, FLAC), MP3, m4a, mp4 or webm"
MIN_RATE, MAX_RATE = 4000, 384_000  # Hz
MAX_CHANNELS = 16
MAX_PACKETS = 2**21  # that an mp4 may announce: 12 hours of AAC; FFmpeg allots 32 bytes for each
MAX_LINKS = 1000  # of a chain of Ogg
BLOCK = 16384  # frames decoded at once
MAX_FRAME = 200_000  # samples that one of FFmpeg's frames may hold: real ones hold a few thousand
MIN_GAP, MAX_GAP = 0.1, 3600  # seconds without sound in a video that are silence; more is a clock that was set
MP3_FRAME = 1152  # samples
UNSUPPORTED_ENCODING = 4  # SF_ERR_UNSUPPORTED_ENCODING of sndfile.h
# Boxes of an mp4 that announce packets, up to the number; a compressed header (cmov) could announce any.
COUNTS = re.compile(rb"st(?:sz|z2).{8}(?P<stsz>.{4})|trun.{4}(?P<trun>.{4})|cmov", re.DOTALL)
FFMPEG = {"advanced_editlist": "0"}  # edit lists could repeat a second of sound into hours before a block is decoded

Block = npt.NDArray[np.float32]  # (n, channels)

log = logging.getLogger(__name__)


def decode_audio(data: Bytes, max_seconds: float = float("inf"), whole: bool = False) -> Waveform:
    """Sound of a file, channels averaged, at 22050 Hz and rounded to 16 bits as in training.

    A 22050 Hz mono 16-bit WAV file comes out exactly as `speech.audio.decode_wav` gives it.

    Raises:
        NotAWav: not a file of a kind that we read, or one that needs the package ``av``, which is not installed.
        DamagedWav: empty, or not one sample of it can be decoded; or not all, if it is to be ``whole``.
        UnsupportedWav: no track with sound, an unknown encoding, or a rate or channel count out of bounds.
        AudioTooLong: more than ``max_seconds``.
    """
    return Waveform(np.concatenate(list(decode_blocks(data, max_seconds, whole))))


def decode_blocks(
    data: Bytes, max_seconds: float = float("inf"), whole: bool = False
) -> Iterator[npt.NDArray[np.float32]]:
    """`decode_audio` block by block, for sound that is not to be in memory as a whole; raises as it goes."""
    kind = _kind(data)
    rate, blocks = _open_av(data, kind) if kind != "sndfile" else _open_soundfile(data)
    for block in _resampled(_mono(_to_the_end(data, blocks), rate, max_seconds, whole), rate):
        samples = np.clip(np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        yield from_pcm16(samples).samples


def _to_the_end(data: Bytes, blocks: Iterator[Block]) -> Iterator[Block]:
    yield from blocks
    if problem := missing(data):
        raise DamagedWav(problem)


def resample(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Samples float32 (n,) of any rate in Hz as float32 (⌈n · 22050 / rate⌉ or one less,) at 22050 Hz.

    soxr, high quality: what the new rate cannot hold is 80 dB down or more, never an alias.
    """
    resampled: npt.NDArray[np.float32] = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    return resampled


def _resampled(blocks: Iterator[npt.NDArray[np.float32]], rate: int) -> Iterator[npt.NDArray[np.float32]]:
    resampler = Resampler(rate)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.end()


class Resampler:
    """Blocks float32 (n,) of any rate in Hz as blocks at 22050 Hz; joined they are the same however they were cut."""

    def __init__(self, rate: float) -> None:
        self._stream = (
            None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        )

    def push(self, samples: npt.NDArray[np.float32], last: bool = False) -> npt.NDArray[np.float32]:
        """What can be had of these samples; a little is held back until the next ones."""
        if self._stream is None:
            return samples
        resampled: npt.NDArray[np.float32] = self._stream.resample_chunk(samples, last=last)
        return resampled

    def end(self) -> npt.NDArray[np.float32]:
        """What was held back."""
        return self.push(np.empty(0, np.float32), last=True)


def _mono(
    blocks: Iterator[Block], rate: int, max_seconds: float, whole: bool = False
) -> Iterator[npt.NDArray[np.float32]]:
    """Averaged channels (n,) in [-1, 1], counted and checked; ends where the file breaks off after a first sample."""
    decoded, some = 0, False
    try:
        for block in blocks:
            finite = np.isfinite(block)
            some |= bool(finite.any())
            block[~finite] = 0
            decoded += len(block)
            if decoded > max_seconds * rate:
                raise AudioTooLong(f"expected at most {max_seconds:g} s of sound, found {decoded / rate:.1f} s or more")
            yield np.clip(block, -1, 1).mean(axis=1, dtype=np.float32)
    except DamagedWav as error:
        if whole or not decoded:
            raise
        log.warning("decoding stopped after %.2f s: %s", decoded / rate, error)
    if not decoded:
        raise DamagedWav("expected sound, found not one sample that can be decoded")
    if not some:
        raise DamagedWav("expected finite samples, found infinite ones or NaN")


def _kind(data: Bytes) -> str:
    """What the first bytes announce: ``sndfile``, or FFmpeg's name of the container."""
    if not data:
        raise DamagedWav("expected a file with sound, found an empty one")
    form = data[:4], data[8:12]
    if form in ((b"RIFF", b"WAVE"), (b"RIFX", b"WAVE"), (b"RF64", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC")):
        return "sndfile"
    if data[:4] == b"OggS" and data[28:33] == b"\x7fFLAC":
        return "ogg"  # libsndfile refuses it
    if data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or is_mpeg_audio(data[:4]):
        return "sndfile"
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    raise NotAWav(f"expected {READ}, found a file that begins with {data[:12]!r}")


def _check_sound(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UnsupportedWav(f"sample rate: expected {MIN_RATE} to {MAX_RATE} Hz, found {rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise UnsupportedWav(f"channel count: expected 1 to {MAX_CHANNELS}, found {channels}")


class _Sequential(soundfile.SoundFile):
    """A sound file that is only read on: soundfile seeks after each block, which spoils MP3 at every border."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.part = part

    def seekable(self) -> bool:
        """No."""
        return False


def _open_soundfile(data: Bytes) -> tuple[int, Iterator[Block]]:
    """Rate in Hz and blocks of a file that libsndfile reads, of all links if it is a chain of Ogg."""
    files = map(_open_part, links(data) if data[:4] == b"OggS" else [open_ended(data)])
    first = next(files)
    rate = first.samplerate
    _check_sound(rate, first.channels)

    def blocks() -> Iterator[Block]:
        for number, file in enumerate(chain([first], files)):
            with file:
                if number == MAX_LINKS:
                    raise DamagedWav(f"expected at most {MAX_LINKS} links in a chain, found more")
                if file.samplerate != rate:
                    raise DamagedWav(f"expected one sample rate, found {rate} Hz and then {file.samplerate} Hz")
                _check_sound(rate, file.channels)
                yield from _read(file)

    return rate, blocks()


def _open_part(part: Part) -> _Sequential:
    try:
        return _Sequential(part)
    except soundfile.LibsndfileError as error:
        if error.code == UNSUPPORTED_ENCODING:
            raise UnsupportedWav(
                f"expected {READ}, found an encoding that cannot be read: {error.error_string}"
            ) from None
        raise DamagedWav(f"expected a file that can be decoded, found: {error.error_string}") from None


def _read(file: _Sequential) -> Iterator[Block]:
    """Blocks, also the last one before a break: a read that fails loses what it was to give, so MP3 goes by frames."""
    per_block = BLOCK // MP3_FRAME if file.format == "MP3" else 1
    announced, heard, problem = file.part.samples, 0, ""

    def parts() -> Iterator[Block]:
        nonlocal heard, problem
        size = BLOCK // per_block
        try:
            while True:
                rest = announced - heard  # a read beyond it may fail, for tags
                part = file.read(min(size, rest) if rest > 0 else size, dtype="float32", always_2d=True)
                if not len(part):
                    break
                heard += len(part)
                yield part
        except soundfile.LibsndfileError as error:
            problem = error.error_string

    reading = parts()
    while held := list(islice(reading, per_block)):
        yield np.concatenate(held) if len(held) > 1 else held[0]
    if problem and (heard != announced or not announced):
        raise DamagedWav(f"expected a file that can be decoded, found: {problem}")
    if heard < announced:
        raise DamagedWav(f"expected {announced} samples as the header says, found {heard}")
    if file.format == "MP3" and (left := file.part.left) > 0:
        raise DamagedWav(f"expected sound of one kind to the end, found {left} bytes that are not")


def _open_av(data: Bytes, container: str) -> tuple[int, Iterator[Block]]:
    """Rate in Hz and blocks of the first track with sound of a file that FFmpeg reads as that container."""
    if container == "mov":
        _check_mp4(data)
    try:
        import av
    except ImportError:
        raise NotAWav(
            f"expected {READ}; FLAC in Ogg, m4a, mp4 and webm need the Python package 'av', which is not installed"
        ) from None

    def frames() -> "Iterator[tuple[float, AudioFrame]]":
        """Frames, and when each is heard, in seconds of the whole file; a packet that cannot be decoded is left out."""
        lost, whole = 0, Part(data, 0, len(data))
        try:
            with av.open(whole, "r", format=container, options=FFMPEG, metadata_errors="ignore") as file:
                if not file.streams.audio:
                    raise UnsupportedWav("expected a track with sound, found none")
                if not (known := [track for track in file.streams.audio if track.codec_context]):
                    raise UnsupportedWav("expected a track with sound in an encoding that can be read, found none")
                track, began = known[0], (file.start_time or 0) / av.time_base
                track.codec_context.options = {"max_samples": str(MAX_FRAME)}
                for packet in file.demux(track):
                    try:
                        decoded = packet.decode()
                    except av.FFmpegError:
                        lost += 1
                        continue
                    yield from ((0.0 if frame.time is None else frame.time - began, frame) for frame in decoded)
        except (av.FFmpegError, ValueError) as error:
            raise DamagedWav(f"expected a file that can be decoded, found: {error}") from None
        finally:
            if lost:
                log.warning("%d packets could not be decoded and were left out", lost)

    rest = frames()
    first = next(rest, None)
    if first is None:
        raise DamagedWav("expected sound, found not one sample that can be decoded")
    rate, channels = first[1].sample_rate, first[1].layout.nb_channels
    _check_sound(rate, channels)

    def blocks() -> Iterator[Block]:
        packed = av.AudioResampler(format="flt")  # PyAV reads memory that is not there for eight planes and more
        heard, skipped = 0, 0.0  # samples, seconds
        for seconds, frame in chain([first], rest):
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise DamagedWav("expected one sample rate and channel count, found them changed midway")
            gap = seconds - skipped - heard / rate
            if gap > MAX_GAP:
                skipped += gap
            elif gap > MIN_GAP:
                silence = round(gap * rate)
                heard += silence
                yield from (
                    np.zeros((min(BLOCK, silence - at), channels), np.float32) for at in range(0, silence, BLOCK)
                )
            heard += frame.samples
            for part in packed.resample(frame):
                yield part.to_ndarray().reshape(-1, channels).astype(np.float32)

    return rate, blocks()


def _check_mp4(data: Bytes) -> None:
    """Raise UnsupportedWav for a header that would make FFmpeg fill gigabytes: it allots all packets it is told of.

    All but the sound itself (``mdat``) is searched for the boxes that count packets, however they are nested.
    Source: ISO 14496-12, 8.7.3 (stsz, stz2) and 8.8.8 (trun).
    """
    start, packets = 0, 0
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        stop = min(len(data), start + size) if size >= 8 else len(data)
        for found in COUNTS.finditer(data, start, stop) if name != b"mdat" else ():
            packets += int.from_bytes(found["stsz"] or found["trun"] or b"\xff" * 4, "big")
        start = stop
    if packets > MAX_PACKETS:
        raise UnsupportedWav(f"expected at most {MAX_PACKETS} packets in an mp4, found {packets} announced")
