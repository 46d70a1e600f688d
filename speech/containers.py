"""Files as libsndfile is to see them: without the lengths that their headers may get wrong, and a chain link by link.

So joined MP3s are heard whole, and what a stream's recorder could not go back to fill in. But the size of a WAV's or
AIFF's chunk of sound is believed where there is one, for other chunks may follow, and so is the end that the last page
of an Ogg stream gives.
"""

import io
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from mmap import mmap
from typing import Any

Bytes = bytes | mmap  # of a file, in memory or on the disk

MAX_CHUNKS = 1000  # of a WAV, or tags of another file, looked at before the sound
MAX_PAGES = 10_000  # that begin streams of an Ogg file
OGG_FIRST = re.compile(rb"OggS\0[\2\3\6\7]")  # a page that begins a stream
XING = re.compile(rb"(?:Xing|Info).{3}[\1\3\5\7\x09\x0b\x0d\x0f](.{4})", re.DOTALL)  # with a count of frames
MANY = struct.pack(">I", 2**31 - 1)  # frames
LAYER3_RATES = (44100, 48000, 32000)  # Hz, of MPEG 1; halved in MPEG 2, and again in MPEG 2.5


class Part(io.RawIOBase):
    """Bytes of a file from ``start`` to ``stop``, behind a head of ours, as a file of their own; not copied."""

    def __init__(self, data: Bytes, start: int, stop: int, head: bytes = b"") -> None:
        super().__init__()
        self._head, self._data, self._at = head, memoryview(data)[start:stop], 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """The new position; libsndfile seeks to before the beginning of damaged files: it stays at the beginning."""
        self._at = max(0, offset + (0, self._at, len(self._head) + len(self._data))[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    @property
    def left(self) -> int:
        """How many bytes are behind the position."""
        return len(self._head) + len(self._data) - self._at

    def readinto(self, buffer: Any) -> int:
        """How many bytes were put into the buffer."""
        head = self._head[self._at : self._at + len(buffer)]
        start = max(0, self._at - len(self._head))
        rest = self._data[start : start + len(buffer) - len(head)]
        buffer[: len(head)], buffer[len(head) : len(head) + len(rest)] = head, rest
        self._at += len(head) + len(rest)
        return len(head) + len(rest)


def is_mpeg_audio(header: bytes) -> bool:
    """Whether four bytes are the header of an MP3 frame: none of its fields reserved, unlike AAC's layer 0."""
    word = int.from_bytes(header, "big")
    version, layer, bit_rate, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    return len(header) == 4 and word >> 21 == 0x7FF and version != 1 and layer != 0 and bit_rate != 15 and rate != 3


def links(data: Bytes) -> Iterator[Part]:
    """The links of a chain of Ogg: libsndfile reads the first one only. Source: RFC 3533, 6."""
    starts, stop = [0], 0
    for _ in range(MAX_PAGES):
        page = OGG_FIRST.search(data, stop)
        if page is None:
            break
        start = page.start()
        if start > stop:  # else it begins a stream beside the one before
            starts.append(start)
        lengths = data[start + 27 : start + 27 + int.from_bytes(data[start + 26 : start + 27], "big")]
        stop = start + 27 + len(lengths) + sum(lengths)
    return (Part(data, start, stop) for start, stop in pairwise([*starts, len(data)]))


def open_ended(data: Bytes) -> Part:
    """The file, its length left open where libsndfile would believe a wrong one.

    That is FLAC's count of samples, an MP3's of frames (and what libsndfile would guess if there is none), and the size
    of a WAV's sound if its writer left it 0, as into a pipe.

    Sources: RFC 9639, 8.2; http://gabriel.mp3-tech.org/mp3infotag.html; http://soundfile.sapp.org/doc/WaveFormat/
    """
    start = _after_tags(data)
    if data[start : start + 4] == b"fLaC" and len(data) > start + 26:
        place = start + 21
        return _patched(data, place, bytes([data[place] & 0xF0, 0, 0, 0, 0]))  # behind four bits of the sample width
    if is_mpeg_audio(data[start : start + 4]) and data[start + 1] >> 1 & 3 == 1:  # Layer III
        if count := XING.search(data, start, start + 64):
            size = struct.pack(">I", len(data) - start) if data[count.start(1) - 1] & 2 else b""
            return _patched(data, count.start(1), MANY + size)
        return Part(data, start, len(data), _counting_frame(data[start : start + 4]))
    if data[:4] in (b"RIFF", b"RIFX") and (place := _unfilled_size(data)):
        return _patched(data, place, b"\xff" * 4)
    return Part(data, 0, len(data))


def _patched(data: Bytes, place: int, new: bytes) -> Part:
    return Part(data, place + len(new), len(data), data[:place] + new)


def _after_tags(data: Bytes) -> int:
    """Where the file begins behind its ID3v2 tags. Source: https://id3.org/id3v2.4.0-structure, 3.1"""
    start = 0
    for _ in range(MAX_CHUNKS):
        if data[start : start + 3] != b"ID3" or len(data) < start + 10:
            break
        first, second, third, fourth = data[start + 6 : start + 10]  # seven bits each
        size = (first & 127) << 21 | (second & 127) << 14 | (third & 127) << 7 | fourth & 127
        start += 10 + size + (10 if data[start + 5] & 16 else 0)
    return start


def _counting_frame(header: bytes) -> bytes:
    """A silent MP3 frame of 64 kbit/s like that with these first four bytes, which counts very many more."""
    word = int.from_bytes(header, "big")
    version, mono = word >> 19 & 3, word >> 6 & 3 == 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    kbits, side, factor = (5, (32, 17), 144) if version == 3 else (8, (17, 9), 72)
    rate = LAYER3_RATES[word >> 10 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    word = word & ~0xF200 | kbits << 12 | 1 << 16  # neither padding nor a sum
    frame = word.to_bytes(4, "big") + bytes(side[mono]) + b"Xing" + struct.pack(">I", 1) + MANY
    return frame.ljust(factor * 64_000 // rate, b"\0")


def _unfilled_size(data: Bytes) -> int:
    """Where a WAV has the size of its sound, if that is 0 and the file's own size was not filled in either; else 0."""
    header = struct.Struct("<4sI" if data[:4] == b"RIFF" else ">4sI")
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = header.unpack_from(data, position)
        if name == b"data":
            return position + 4 if size == 0 and header.unpack_from(data)[1] + 8 != len(data) else 0
        position += 8 + size + size % 2
    return 0
