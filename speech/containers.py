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
OPEN_SIZE = 0x7F000000  # bytes of sound, and more: what writers into a pipe say
SLACK = 128  # bytes that a file may lack: some writers count a header or a tag as sound
FLAC_FIRST = re.compile(rb"fLaC[\0\x80]\0\0\x22")  # it, and the length of what it begins with
MANY = struct.pack(">I", 2**31 - 1)  # frames
LAYER3_RATES = (44100, 48000, 32000)  # Hz, of MPEG 1; halved in MPEG 2, and again in MPEG 2.5


class Part(io.RawIOBase):
    """Bytes of a file from ``start`` to ``stop``, behind a head of ours, as a file of their own; not copied."""

    def __init__(self, data: Bytes, start: int, stop: int, head: bytes = b"") -> None:
        super().__init__()
        self._head, self._data, self._at = head, memoryview(data)[start:stop], 0
        self.samples = 0  # of each channel, as the header of a FLAC counts them; 0: it does not

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
    return (Part(data, start, stop) for start, stop in _bounds(data))


def _bounds(data: Bytes) -> Iterator[tuple[int, int]]:
    starts, stop = [0], 0
    for _ in range(MAX_PAGES):
        page = OGG_FIRST.search(data, stop)
        if page is None:
            break
        start = page.start()
        if start > stop:  # else it begins a stream beside the one before
            starts.append(start)
        stop = _page_end(data, start)
    return pairwise([*starts, len(data)])


def _page_end(data: Bytes, start: int) -> int:
    lengths = data[start + 27 : start + 27 + int.from_bytes(data[start + 26 : start + 27], "big")]
    return start + 27 + len(lengths) + sum(lengths)


def open_ended(data: Bytes) -> Part:
    """The file, its length left open where libsndfile would believe a wrong one.

    That is FLAC's count of samples, an MP3's of frames (and what libsndfile would guess if there is none), and the size
    of a WAV's sound if its writer left it 0, as into a pipe.

    Sources: RFC 9639, 8.2; http://gabriel.mp3-tech.org/mp3infotag.html; http://soundfile.sapp.org/doc/WaveFormat/
    """
    start = _after_tags(data)
    if data[start : start + 4] == b"fLaC" and len(data) > start + 26:
        place = start + 21
        part = _patched(data, place, bytes([data[place] & 0xF0, 0, 0, 0, 0]))  # behind four bits of the sample width
        part.samples = int.from_bytes(data[place : place + 5], "big") & 2**36 - 1
        return part
    if is_mpeg_audio(data[start : start + 4]) and data[start + 1] >> 1 & 3 == 1:  # Layer III
        if count := XING.search(data, start, start + 64):
            size = struct.pack(">I", len(data) - start) if data[count.start(1) - 1] & 2 else b""
            return _patched(data, count.start(1), MANY + size)
        return Part(data, start, len(data), _counting_frame(data[start : start + 4]))
    if data[:4] in (b"RIFF", b"RIFX"):
        start, announced = _sound(data)
        whole = int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big") + 8
        if start and not announced and whole != len(data):
            return _patched(data, start - 4, b"\xff" * 4)
    return Part(data, 0, len(data))


def missing(data: Bytes) -> str:
    """Which sound a file announces and lacks, or has and is not heard; empty if none is known.

    A cut WAV, AIFF or mp4 shows by the size of its sound, an MP3 by its count of bytes, Ogg by its last page; Matroska,
    WebM and an MP3 without a count do not. A FLAC's count is in its `Part`; of joined ones only the first is heard.

    Sources: as `open_ended`; RFC 3533, 6; AIFF 1.3, Sound Data Chunk; ISO 14496-12, 4.2; EBU Tech 3306, 3.5 (RF64)
    """
    start, announced = _after_tags(data), 0
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        start, announced = _sound(data)
        announced = announced if announced < OPEN_SIZE else 0
    elif data[4:8] == b"ftyp":
        start, announced = _last_box(data)
    elif data[:4] == b"OggS":
        for first, stop in _bounds(data):
            last = data.rfind(b"OggS\0", first, stop)
            if not int.from_bytes(data[last + 5 : last + 6], "big") & 4 or _page_end(data, last) > stop:
                return "expected a last page of the Ogg stream, found none"
    elif data[start : start + 4] == b"fLaC" and FLAC_FIRST.search(data, start + 4):
        return "expected one FLAC file, found another behind it"
    elif is_mpeg_audio(data[start : start + 4]) and (count := XING.search(data, start, start + 64)):
        flags, place = data[count.start(1) - 1], count.end(1)
        announced = int.from_bytes(data[place : place + 4], "big") if flags & 2 else 0
    found = max(0, len(data) - start)
    return f"expected {announced} bytes of sound as the header says, found {found}" * (announced > found + SLACK)


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


def _sound(data: Bytes) -> tuple[int, int]:
    """Where the sound of a WAV or AIFF begins, and how many bytes it has as its chunk says; (0, 0) if there is none."""
    header = struct.Struct(">4sI" if data[:4] in (b"RIFX", b"FORM") else "<4sI")
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = header.unpack_from(data, position)
        if name in (b"data", b"SSND"):
            if data[:4] == b"RF64" and data[12:16] == b"ds64":
                size = int.from_bytes(data[28:36], "little")
            return position + 8, size
        position += 8 + size + size % 2
    return 0, 0


def _last_box(data: Bytes) -> tuple[int, int]:
    """Where the last box of an mp4 begins, and its size as it says, if that is of sound (and pictures); else (0, 0)."""
    start = 0
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        if size < 8 or start + size > len(data):
            return (start, size) if name == b"mdat" else (0, 0)
        start += size
    return 0, 0
