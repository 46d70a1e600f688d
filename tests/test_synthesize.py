"""Speech made from text by the engines that are really installed."""

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.alphabet import CHARACTERS, normalise_text
from training.dataset import read_lines, read_utterances
from training.synthesize import Studio, Voice, find_voices, main, pieces, speakable, with_floor

LINES = [
    "The first of the three men spoke.", "In 1455 he paid $20 for it.", "Nothing was heard of him again.",
    "She opened the window and looked out.", "It rained on the 21st of May.", "Who would have thought so?",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LINES as a file; says so if the engines are missing."""
    missing = [name for name in ("flite", "espeak-ng") if not shutil.which(name)]
    assert not missing, f"these tests need speech engines: apt-get install -y {' '.join(missing)}"
    file = tmp_path_factory.mktemp("text") / "lines.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("In 1455, the 21st", "In fourteen fifty-five, the twenty-first"),
        ("$1,200 & 5%", "one thousand, two hundred dollars and five percent"),
        ("at 12:54", "at twelve: fifty-four"),
        ("the 1990s, 007", "the nineteen nineties, zero zero seven"),
        ("3.14 of A4", "three point one four of A four"),
        ("one — two -- three", "one, two, three"),
        ("’Tis [[x]] naïve", "'Tis x naive"),
        ("Straße, don´t, encyclopædia", "Strasse, don't, encyclopaedia"),
        ("9" * 400, " ".join(["nine"] * 400)),
    ],
)
def test_texts_are_written_as_they_are_spoken(written: str, spoken: str):
    assert speakable(written) == spoken
    assert set(normalise_text(spoken)) <= set(CHARACTERS)


def test_long_texts_are_cut_between_words_and_none_is_said_twice():
    sentence = "the quick brown fox jumps over the lazy dog " * 20
    parts = pieces([sentence.strip(), sentence, "...", "Привет"], 5.0)
    assert all(len(part) <= 60 for part in parts)
    assert set(" ".join(parts).split()) == set(sentence.split())
    assert len(set(parts)) == len(parts)


def test_texts_of_all_layouts(tmp_path: Path):
    (tmp_path / "manifest.csv").write_text('path,text\na.wav,"One, two"\nb.wav,\n')
    (tmp_path / "metadata.csv").write_text("a|In 2|In two\n")
    (tmp_path / "lines.txt").write_text("One, two\n")
    assert read_lines(tmp_path / "manifest.csv") == ["One, two"]
    assert read_lines(tmp_path / "metadata.csv") == ["In two"]
    assert read_lines(tmp_path / "lines.txt") == ["One, two"]
    assert read_lines(tmp_path) == ["One, two"]
    (tmp_path / "excel.csv").write_text('text,path\n"One, two",a.wav\n', encoding="utf-8-sig")
    (tmp_path / "mark.txt").write_text("One, two\n", encoding="utf-8-sig")
    assert read_lines(tmp_path / "excel.csv") == ["One, two"]
    assert read_lines(tmp_path / "mark.txt") == ["One, two"]


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("h1|good morning|bob\nh2|good evening|bob\n", ["good morning", "good evening"]),
        ("h1|good|\nh2|in 2 and 3|in two and three\n", ["good", "in two and three"]),
        ("one | two\nthree\n", ["one|two", "three"]),
    ],
)
def test_the_column_with_the_text_is_found(tmp_path: Path, lines: str, texts: list[str]):
    (tmp_path / "lines.csv").write_text(lines)
    assert read_lines(tmp_path / "lines.csv") == texts


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_between_columns_are_refused(tmp_path: Path, mark: str):
    (tmp_path / "lines.csv").write_text(f"path{mark}text\na.wav{mark}hello\n")
    with pytest.raises(ValueError, match="expected commas"):
        read_lines(tmp_path / "lines.csv")


def test_capitals_are_no_letters_to_spell():
    assert speakable("THEY TOLD US IN 2001") == "they told us in two thousand and one"
    assert speakable("US") == "US"


def test_a_corpus_is_what_training_reads_and_depends_on_its_seed_alone(text: Path, tmp_path: Path):
    folders = [tmp_path / name / "made" for name in ("one", "again", "other")]
    for folder, seed in zip(folders, "112", strict=True):
        main([str(text), "--out", str(folder), "--dev", "0.3", "--seed", seed, "--engines", "flite", "espeak-ng"])
    one, again, other = ([(u, u.path.read_bytes()) for u in read_utterances(folder)] for folder in folders)
    assert [(u.text, u.speaker, u.split, data) for u, data in one] == [
        (u.text, u.speaker, u.split, data) for u, data in again
    ]
    assert {data for _, data in one}.isdisjoint(data for _, data in other)
    assert sorted(u.text for u, _ in one) == sorted(speakable(line) for line in LINES)
    assert [u.split for u, _ in one].count("dev") == 2
    for utterance, _ in one:
        facts = soundfile.info(utterance.path)
        assert (facts.samplerate, facts.channels, facts.subtype) == (22050, 1, "PCM_16")
        assert 0.5 < facts.duration < 15
        samples, _ = soundfile.read(utterance.path, dtype="int16")
        assert np.count_nonzero(samples[:200]) > 100, "no digital silence"


def test_clips_are_counted_and_texts_said_again_in_other_voices(text: Path, tmp_path: Path):
    main([str(text), "--out", str(tmp_path), "--clips", "8", "--engines", "espeak-ng"])
    utterances = read_utterances(tmp_path)
    assert len(utterances) == 8
    assert len({u.text for u in utterances}) == 6
    assert len({u.speaker for u in utterances}) > 3
    main([str(text), "--out", str(tmp_path / "hours"), "--hours", "0.001", "--engines", "espeak-ng"])
    seconds = [soundfile.info(u.path).duration for u in read_utterances(tmp_path / "hours")]
    assert sum(seconds[:-1]) < 3.6 <= sum(seconds)


def test_few_clips_of_many_texts_have_the_share_for_scoring(tmp_path: Path, text: Path):
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"number {i} of them" for i in range(300)), encoding="utf-8")
    main([str(many), "--out", str(tmp_path), "--clips", "24", "--dev", "0.5", "--engines", "espeak-ng"])
    assert 4 <= [u.split for u in read_utterances(tmp_path)].count("dev") <= 20


@pytest.mark.parametrize("amount", [("--clips", "0"), ("--hours", "-1"), ("--hours", "nan")])
def test_an_amount_is_more_than_nothing(amount: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["lines.txt", "--out", "nowhere", *amount])
    assert "expected more than 0" in capsys.readouterr().err


def test_espeaks_variants_are_voices_of_their_own(text: Path):
    """An unknown variant is spoken with the default voice: these are known, and differ."""
    voices = [voice for voice in find_voices(["espeak-ng"]) if voice.name.startswith("gmw/en-US+")]
    assert len(voices) > 20
    sounds = []
    for voice in voices[:: len(voices) // 5]:
        _, sound = Studio([voice], 1.0, 15.0, 1).render("hello world", 0)
        assert isinstance(sound, np.ndarray)
        sounds.append(sound)
    assert len({sound.tobytes() for sound in sounds}) == len(sounds)


def test_natural_voices_come_first(text: Path):
    voices = find_voices(["flite", "espeak-ng"])
    assert [voice.name for voice in voices].count("slt") == 2
    rng = np.random.default_rng(0)
    studio = Studio(voices, 0.3, 15.0, 1)
    drawn = [studio.draw(rng).engine for _ in range(2000)]
    assert drawn.count("espeak-ng") / len(drawn) == pytest.approx(0.3, abs=0.04)
    robots = Studio([voice for voice in voices if voice.engine == "espeak-ng"], 0.0, 15.0, 1)
    assert robots.draw(rng).engine == "espeak-ng"


def test_what_fails_is_counted_and_skipped(text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        main([str(text), "--out", str(tmp_path), "--engines", "espeak-ng", "--max-seconds", "1.5"])
    with (tmp_path / "manifest.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    skipped = [record for record in caplog.records if "skipped '" in record.getMessage()]
    assert skipped
    assert len(written) + len(skipped) == len(pieces(LINES, 1.5))
    assert f"espeak-ng failed on {len(skipped)} texts" in caplog.text
    _, reason = Studio([Voice("flite", "slt")], 0.0, 15.0, 1).render("", 0)
    assert isinstance(reason, str)


@pytest.mark.parametrize("name", ["manifest.csv", "metadata.csv"])
def test_recordings_are_never_overwritten(name: str, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match="1"):
        main([str(text), "--out", str(tmp_path), "--engines", "espeak-ng"])
    assert "expected a new folder as --out, found a corpus" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_no_clip_at_all_is_a_failure(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    one = tmp_path / "one.txt"
    one.write_text("hello world", encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        main([str(one), "--out", str(tmp_path), "--engines", "espeak-ng", "--max-seconds", "0.1"])
    assert "every text failed" in capsys.readouterr().err
    assert not (tmp_path / "manifest.csv").exists()


def test_nothing_but_failures_ends(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(text), "--out", str(tmp_path), "--clips", "5", "--engines", "espeak-ng", "--max-seconds", "0.1"])
    assert "64 failures in a row, the last: expected 0.5 to 0.1 s of speech" in capsys.readouterr().err


def test_a_missing_engine_is_named_once_and_without_any_there_is_no_corpus(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "espeak-ng").symlink_to(str(shutil.which("espeak-ng")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with caplog.at_level(logging.WARNING):
        main([str(text), "--out", str(tmp_path / "out"), "--clips", "2"])
    assert caplog.text.count("flite is missing: apt-get install flite") == 1
    assert caplog.text.count("festival is missing: apt-get install festival") == 1
    (tmp_path / "bin" / "espeak-ng").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([str(text), "--out", str(tmp_path / "none")])
    assert stopped.value.code == 1
    assert "expected one of the engines flite, festival, espeak-ng, found none" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_floor_lies_30_to_50_db_below_the_speech():
    speech = (8000 * np.sin(np.arange(22050) / 5)).astype(np.int16)
    speech[11025:] = 0
    for seed in range(10):
        sound = with_floor(speech, np.random.default_rng(seed))
        level = 20 * np.log10(np.std(sound[11025:]) / (np.std(sound[:11025]) / np.sqrt(2)))
        assert -50.5 < level < -29.5
        assert np.abs(sound).max() == pytest.approx(0.5)


@pytest.mark.skipif(not shutil.which("text2wave"), reason="festival is optional: apt-get install festival")
def test_festival_speaks(tmp_path: Path):
    voices = {voice.name: voice for voice in find_voices(["festival"])}
    assert voices
    for voice in voices.values():
        _, sound = Studio([voice], 0.0, 15.0, 1).render('hello (there), it\'s "me"', 0)
        assert isinstance(sound, np.ndarray), sound
        assert 0.5 < len(sound) / 22050 < 4
