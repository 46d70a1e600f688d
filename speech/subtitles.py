"""Subtitles of a transcript, as SubRip (SRT) and WebVTT: cues of at most two lines of 42 characters.

Formats: https://en.wikipedia.org/wiki/SubRip and https://www.w3.org/TR/webvtt1/; lengths: the BBC's and Netflix's
guidelines for subtitles.
"""

import html
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speech.ctc import Word
from speech.segments import Segment, cut

LINE = 42  # characters
LINES = 2  # of a cue
SHOWN = 1.0  # seconds that a cue is shown at least, if the next one leaves it the time


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown at once: ``start`` and ``end`` in whole milliseconds, one or two lines."""

    start: int
    end: int
    lines: tuple[str, ...]


def to_srt(segments: Sequence[Segment]) -> str:
    """A SubRip file, empty for no segments. SRT knows no escapes: ``-->`` in a text becomes ``->``."""
    blocks = (
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_text(cue, lambda s: s.replace('-->', '->'))}"
        for number, cue in enumerate(cues(segments), start=1)
    )
    return "\n".join(blocks)


def to_vtt(segments: Sequence[Segment]) -> str:
    """A WebVTT file, its text escaped (``&``, ``<``, ``>``)."""
    blocks = (
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_text(cue, lambda s: html.escape(s, quote=False))}"
        for cue in cues(segments)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def cues(segments: Sequence[Segment]) -> list[Cue]:
    """Cues in order: a segment, or the parts of one that is too long, cut at its pauses.

    A cue begins with its first word and is shown for a second or longer, but not into the next one. What a segment
    shows are its ``words``: one without any gives no cue.
    """
    parts = [part for segment in segments for part in cut(segment.words, _fits)]
    begins = [round(1000 * part[0].start) for part in parts]
    found = []
    for number, (part, begin) in enumerate(zip(parts, begins, strict=True), start=1):
        end = max(round(1000 * part[-1].end), begin + round(1000 * SHOWN))
        end = min(end, begins[number]) if number < len(begins) else end
        found.append(Cue(begin, max(end, begin + 1), tuple(_balanced(part))))
    return found


def _fits(words: Sequence[Word]) -> bool:
    return len(_wrapped(words, LINE)) <= LINES


def _wrapped(words: Sequence[Word], width: int) -> list[str]:
    return textwrap.wrap(" ".join(word.text for word in words), width, break_on_hyphens=False)


def _balanced(words: Sequence[Word]) -> list[str]:
    """Lines of similar length: the narrowest wrapping that needs no more lines, a word of its own never broken."""
    widest = _wrapped(words, LINE)
    longest = min(LINE, max(len(word.text) for word in words))
    narrower = (_wrapped(words, width) for width in range(longest, LINE))
    return next((lines for lines in narrower if len(lines) <= len(widest)), widest)


def _text(cue: Cue, escape: Callable[[str], str]) -> str:
    return "".join(f"{escape(line)}\n" for line in cue.lines)


def _clock(milliseconds: int, point: str) -> str:
    """HH:MM:SS, the point, and three digits."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"
