"""Subtitles, read back by the parsers of srt and webvtt-py."""

import html
import re
from datetime import timedelta
from itertools import pairwise

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from speech.ctc import Word
from speech.segments import segments
from speech.subtitles import LINE, LINES, cues, to_srt, to_vtt


def say(text: str, gap: float = 0.1, length: float = 0.3) -> list[Word]:
    return [Word(word, i * (gap + length), i * (gap + length) + length, 0.9) for i, word in enumerate(text.split())]


def seconds(time: str) -> float:
    return webvtt.models.Timestamp.from_string(time).in_seconds() + int(time[-3:]) / 1000


SHORT = segments([Word("hello", 1.0, 1.2345, 0.9), Word("world", 1.4, 1.9, 0.9), Word("again", 3661.5, 3662.75, 0.9)])


def test_srt_is_exact():
    assert to_srt(SHORT) == (
        "1\n00:00:01,000 --> 00:00:02,000\nhello world\n\n2\n01:01:01,500 --> 01:01:02,750\nagain\n"
    )


def test_vtt_is_exact():
    assert to_vtt(SHORT) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nhello world\n\n01:01:01.500 --> 01:01:02.750\nagain\n"
    )


def test_nothing_said_is_still_a_file():
    assert to_srt(()) == ""
    assert to_vtt(()) == "WEBVTT\n"
    assert list(webvtt.from_string(to_vtt(()))) == []


def test_vtt_is_escaped_and_comes_back():
    text = "a<b> &amp; c-->d"
    written = to_vtt(segments(say(text)))
    assert "<" not in written
    assert written.count("-->") == 1
    assert html.unescape(webvtt.from_string(written)[0].text) == text


def test_srt_has_no_arrow_in_its_text():
    assert next(srt.parse(to_srt(segments(say("a --> b"))))).content == "a -> b"


def test_two_lines_are_balanced():
    lines = cues(segments(say("the birch canoe slid on the smooth planks and sank", length=0.05, gap=0.05)))[0].lines
    assert lines == ("the birch canoe slid on", "the smooth planks and sank")


def test_a_long_segment_becomes_cues_cut_at_its_pause():
    words = say(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen", 0.01, 0.05
    )
    moved = [Word(w.text, w.start + 0.5 * (i > 9), w.end + 0.5 * (i > 9), w.confidence) for i, w in enumerate(words)]
    assert " ".join(cues(segments(moved))[0].lines).endswith("ten")


def test_a_cue_is_shown_for_a_second_but_not_into_the_next():
    shown = cues(segments([Word("a", 0, 0.02, 1), Word("b", 0.9, 1.0, 1), Word("c", 9, 9, 1)], max_gap=0.5))
    assert [(cue.start, cue.end) for cue in shown] == [(0, 900), (900, 1900), (9000, 10000)]


TEXT = st.text(st.sampled_from("abcdefghij'?!&<>-1"), min_size=1, max_size=60)
SAID = st.lists(st.tuples(TEXT, st.floats(0, 2), st.floats(0.015, 3)), max_size=60)


def words_of(said) -> list[Word]:
    words, now = [], 0.0
    for text, gap, length in said:
        words.append(Word(text, now + gap, now + gap + length, 0.5))
        now += gap + length
    return words


@given(SAID)
def test_any_words_are_valid_files_with_every_character_in_order(said):
    words = words_of(said)
    found = segments(words)
    expected = "".join(w.text for w in words)
    from_srt = list(srt.parse(to_srt(found)))
    written = "".join("".join(c.content.split()) for c in from_srt)
    assert re.sub("-+>", ">", written) == re.sub("-+>", ">", expected)  # words may make an arrow that lines do not
    assert [c.index for c in from_srt] == list(range(1, len(from_srt) + 1))
    from_vtt = list(webvtt.from_string(to_vtt(found)))
    assert "".join("".join(html.unescape(c.raw_text).split()) for c in from_vtt) == expected
    assert all(len(line) <= LINE for cue in cues(found) for line in cue.lines)
    assert all(1 <= len(cue.lines) <= LINES for cue in cues(found) if max(map(len, cue.lines)) < LINE)


@given(SAID)
def test_any_times_are_in_order_and_never_empty(said):
    found = segments(words_of(said))
    from_srt = list(srt.parse(to_srt(found)))
    assert all(c.start < c.end for c in from_srt)
    assert all(a.start < b.start and a.end <= b.start for a, b in pairwise(from_srt))
    from_vtt = list(webvtt.from_string(to_vtt(found)))
    for a, b in zip(from_srt, from_vtt, strict=True):
        assert a.start == timedelta(seconds=seconds(b.start))
        assert a.end == pytest.approx(timedelta(seconds=seconds(b.end)), abs=timedelta(milliseconds=1))
