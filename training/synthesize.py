"""Speech from text alone: ``python -m training.synthesize TEXT… --out FOLDER``, with the engines that Debian ships.

The folder gets ``wavs/`` (22050 Hz, mono, 16 bit) and a ``manifest.csv`` that `training.dataset.read_utterances` reads.
Same texts, engines, options and seed: same clips.
"""

import argparse
import csv
import logging
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap

import numpy as np
import soundfile
from num2words import num2words
from tqdm import tqdm

from speech.alphabet import APOSTROPHES, SPELT, normalise_text
from speech.audio import SAMPLE_RATE
from speech.engine import available_cores
from training.command import UNUSABLE
from training.dataset import load_audio, read_lines

CHARACTERS_PER_SECOND = 12  # that slow voices speak: texts are cut where they would grow too long
MIN_SECONDS = 0.5  # of a clip; shorter ones are skipped
ENGINE_SECONDS = 60  # that an engine may take for one text
PEAK = 0.5  # of a clip, full scale is 1
FLOOR_DB = (-50.0, -30.0)  # white noise under every clip, relative to its own level: perfect silence is nowhere else
ROUND = 16  # texts rendered between two looks at what was asked for
MAX_FAILURES = 64  # in a row: then nothing will come of it

NUMBER = re.compile(
    r"(?P<currency>[$£€])?(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<fraction>\.[0-9]+)?"
    r"(?P<after>%|(?:st|nd|rd|th|'?s)\b)?"
)
CURRENCIES = {"$": "dollars", "£": "pounds", "€": "euros"}

log = logging.getLogger("training.synthesize")


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that reads a text from its standard input and writes a WAV file."""

    programs: tuple[str, ...]
    packages: str  # of Debian, with its voices
    voices: Callable[[], list[str]]
    command: Callable[[str, str, np.random.Generator], list[str]]  # of a voice, a file to write, and chance


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice of an engine."""

    engine: str
    name: str

    @property
    def speaker(self) -> str:
        """What the manifest calls it."""
        return f"{self.engine}-{self.name.rpartition('/')[2]}"


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_SECONDS, check=False).stdout


def _flite_voices() -> list[str]:
    return [name for name in ("kal16", "awb", "rms", "slt") if name in _ask("flite", "-lv").split()]


def _festival_voices() -> list[str]:
    listed = re.findall(r"\w+", _ask("festival", "-b", "(print (voice.list))"))
    return sorted(name for name in listed if re.fullmatch(r"(kal|ked)_diphone|cmu_us_\w+", name))


def _espeak_voices() -> list[str]:
    """English accents × variants; an unknown variant would silently speak with the default voice, so ask for them."""
    accents = re.findall(r"\s(gmw/en\S*)", _ask("espeak-ng", "--voices=en"))
    variants = re.findall(r"\s!v/(\S+)(?=\s\s)", _ask("espeak-ng", "--voices=variant"))
    human = [name for name in variants if not re.search("robo|whisper|croak|demonic|fast", name, re.IGNORECASE)]
    return sorted(f"{accent}+{variant}" for accent in accents for variant in human)


def _espeak(voice: str, out: str, rng: np.random.Generator) -> list[str]:
    words_per_minute, pitch = rng.integers(130, 190), rng.integers(30, 70)
    return ["espeak-ng", "--stdin", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "-w", out]


ENGINES = {
    "flite": Engine(("flite",), "flite", _flite_voices, lambda voice, out, _: ["flite", "-voice", voice, "-o", out]),
    "festival": Engine(
        ("festival", "text2wave"),
        "festival festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k",
        _festival_voices,
        lambda voice, out, _: ["text2wave", "-eval", f"(voice_{voice})", "-o", out],
    ),
    "espeak-ng": Engine(("espeak-ng",), "espeak-ng", _espeak_voices, _espeak),
}


def find_voices(engines: Sequence[str]) -> list[Voice]:
    """Voices of those engines that are installed; a missing engine is named in the log, with how to install it.

    The only female natural voice, slt, stands in the list twice.
    """
    voices = []
    for name in engines:
        engine = ENGINES[name]
        there = all(shutil.which(program) for program in engine.programs)
        found = engine.voices() if there else []
        if not found:
            what = "has no English voice that we know" if there else "is missing"
            log.warning("%s %s: apt-get install %s", name, what, engine.packages)
        voices += [Voice(name, voice) for voice in found for _ in range(2 if "slt" in voice else 1)]
    return voices


def _in_words(number: re.Match[str]) -> str:
    whole, fraction, after = number["whole"].replace(",", ""), number["fraction"] or "", number["after"] or ""
    if len(whole) > 15 or (len(whole) > 1 and whole[0] == "0"):
        words = " ".join(num2words(digit) for digit in whole)
    elif after in ("st", "nd", "rd", "th"):
        words, after = num2words(int(whole), to="ordinal"), ""
    elif re.fullmatch("1[1-9][0-9][0-9]|20[0-9][0-9]", number["whole"]) and not (fraction or number["currency"]):
        words = num2words(int(whole), to="year")
    else:
        words = num2words(int(whole))
    if fraction:
        words += " point " + " ".join(num2words(digit) for digit in fraction[1:])
    if after in ("s", "'s"):
        words = re.sub("(s|x)$", r"\1e", re.sub("y$", "ie", words)) + "s"
    words += " percent" if after == "%" else ""
    words += f" {CURRENCIES[number['currency']]}" if number["currency"] else ""
    return f" {words} "


def speakable(text: str) -> str:
    """A text that all engines read alike: numbers in words, plain letters, and of all marks those that mean a pause."""
    if text.isupper() and " " in text:  # engines would spell short words, as they do with USA
        text = text.lower()
    text = NUMBER.sub(_in_words, text).replace("&", " and ")
    text = APOSTROPHES.sub("'", text).translate(SPELT)
    text = re.sub(r"--+|[\N{EN DASH}\N{EM DASH}]|\s-\s", ", ", text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = " ".join(re.sub(r"[^A-Za-z.,;:?!'-]", " ", plain).split())
    return re.sub(r" +(?=[.,;:?!])", "", words)


def pieces(lines: Sequence[str], max_seconds: float) -> list[str]:
    """What is to be spoken: each text once, cut between words where it would take longer than ``max_seconds``."""
    width = max(1, int(max_seconds * CHARACTERS_PER_SECOND))
    parts = [piece for line in lines for piece in wrap(speakable(line), width, break_on_hyphens=False)]
    return [piece for piece in dict.fromkeys(parts) if normalise_text(piece)]


def with_floor(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int16 (n,) speech, not all zeros, as float32 (n,) of one peak over white noise of a level drawn by lot."""
    sound = samples.astype(np.float32)
    level = np.sqrt(np.mean(np.square(sound))) * 10 ** (rng.uniform(*FLOOR_DB) / 20)
    sound += level * rng.standard_normal(len(sound), dtype=np.float32)
    return sound * np.float32(PEAK / np.abs(sound).max())


@dataclass(frozen=True, slots=True)
class Studio:
    """Voices, and how they are used."""

    voices: Sequence[Voice]
    espeak_share: float
    max_seconds: float
    seed: int

    def draw(self, rng: np.random.Generator) -> Voice:
        """A voice: espeak-ng's with the probability ``espeak_share``, or if there is no other."""
        robots = [voice for voice in self.voices if voice.engine == "espeak-ng"]
        natural = [voice for voice in self.voices if voice.engine != "espeak-ng"]
        chosen = robots if robots and (not natural or rng.random() < self.espeak_share) else natural
        return chosen[rng.integers(len(chosen))]

    def render(self, text: str, number: int) -> tuple[Voice, np.ndarray | str]:
        """A voice, and the text in that voice, float32 (n,) at 22050 Hz; or a sentence that says why it failed."""
        rng = np.random.default_rng((self.seed, number))
        voice = self.draw(rng)
        with TemporaryDirectory() as folder:
            out = f"{folder}/speech.wav"
            command = ENGINES[voice.engine].command(voice.name, out, rng)
            try:
                spoken = f"{text}\n".encode()
                subprocess.run(command, input=spoken, capture_output=True, timeout=ENGINE_SECONDS, check=True)
                samples = load_audio(Path(out))
            except (subprocess.SubprocessError, OSError, soundfile.LibsndfileError) as error:
                return voice, str(error)
        seconds = len(samples) / SAMPLE_RATE
        if not MIN_SECONDS <= seconds <= self.max_seconds:
            return voice, f"expected {MIN_SECONDS:g} to {self.max_seconds:g} s of speech, found {seconds:.1f} s"
        return voice, with_floor(samples, rng) if samples.any() else "expected speech, found silence"

    def record(self, texts: Sequence[str], endless: bool) -> Iterator[tuple[str, Voice, np.ndarray | str]]:
        """Each text in a voice, in random order, on all cores; endless: again and again, each time drawn anew."""
        rng = np.random.default_rng(self.seed)
        with ThreadPoolExecutor(available_cores()) as pool:
            for start in count(0, len(texts)) if endless else [0]:
                order = [texts[i] for i in rng.permutation(len(texts))]
                for first in range(0, len(order), ROUND):
                    batch = order[first : first + ROUND]
                    rendered = pool.map(self.render, batch, range(start + first, start + first + len(batch)))
                    for text, (voice, sound) in zip(batch, rendered, strict=True):
                        yield text, voice, sound


def synthesize(
    texts: Sequence[str], studio: Studio, out: Path, clips: int | None, hours: float | None, dev: float
) -> tuple[int, float]:
    """Write the corpus; gives (clips, seconds). All texts once if neither a number of clips nor hours are given.

    A share ``dev`` of the texts, rounded up, is kept for scoring: no text is in both splits. A failure is counted and
    skipped.

    Raises:
        RuntimeError: 64 failures in a row, or not one clip; ValueError: there is a corpus in the folder already.
    """
    if (out / "manifest.csv").exists() or (out / "metadata.csv").exists():
        raise ValueError(f"expected a new folder as --out, found a corpus in {out}")
    shuffled = np.random.default_rng((studio.seed, 0, 1)).permutation(len(texts))  # not the order they are spoken in
    held_out = {texts[i] for i in shuffled[: int(np.ceil(dev * len(texts)))]}
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    made, seconds, failed, in_a_row = 0, 0.0, Counter[str](), 0
    wanted, unit = (hours * 3600, "s") if hours else (clips or len(texts), "clip")
    with (out / "manifest.csv").open("w", encoding="utf-8", newline="") as file, tqdm(total=wanted, unit=unit) as bar:
        manifest = csv.writer(file)
        manifest.writerow(["id", "path", "corpus", "speaker", "split", "text"])
        for text, voice, sound in studio.record(texts, endless=bool(clips or hours)):
            if isinstance(sound, str):
                failed[voice.engine] += 1
                in_a_row += 1
                log.warning("%s skipped %r: %s", voice.speaker, text[:40], sound)
                if in_a_row == MAX_FAILURES:
                    raise RuntimeError(f"expected speech, found {in_a_row} failures in a row, the last: {sound}")
                continue
            name = f"{made:06}"
            soundfile.write(out / "wavs" / f"{name}.wav", sound, SAMPLE_RATE, subtype="PCM_16")
            split = "dev" if text in held_out else "train"
            manifest.writerow([name, f"wavs/{name}.wav", out.name, voice.speaker, split, text])
            made, seconds, in_a_row = made + 1, seconds + len(sound) / SAMPLE_RATE, 0
            bar.update(len(sound) / SAMPLE_RATE if hours else 1)
            if (clips and made >= clips) or (hours and seconds >= hours * 3600):
                break
    for engine, times in failed.items():
        log.warning("%s failed on %d texts, which were skipped", engine, times)
    if not made:
        (out / "manifest.csv").unlink()
        raise RuntimeError("expected speech, found that every text failed")
    return made, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.synthesize", description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT",
                        help="plain text, id|text lines, a CSV with a column text, or a corpus folder")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--clips", type=int, help="stop after so many (default: each text once)")
    amount.add_argument("--hours", type=float, help="stop after so much speech")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--espeak-share", type=float, default=0.3, help="of the clips; the rest are natural voices")
    parser.add_argument("--max-seconds", type=float, default=15.0, help="of a clip; longer texts are cut")
    parser.add_argument("--dev", type=float, default=0.0, metavar="SHARE", help="share of the texts in the split dev")
    given = parser.parse_args(arguments)
    for name in ("clips", "hours"):
        if (value := getattr(given, name)) is not None and not value > 0:
            parser.error(f"--{name}: expected more than 0, found {value}")
    if not 0 <= given.dev <= 1 or not 0 <= given.espeak_share <= 1 or given.seed < 0:
        parser.error("expected shares from 0 to 1 as --dev and --espeak-share, and a --seed of 0 or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    voices = find_voices(given.engines)
    if not voices:
        parser.exit(1, f"{parser.prog}: expected one of the engines {', '.join(given.engines)}, found none\n")
    try:
        texts = pieces([line for source in given.texts for line in read_lines(source)], given.max_seconds)
        if not texts:
            parser.exit(1, f"{parser.prog}: expected texts, found none\n")
        studio = Studio(voices, given.espeak_share, given.max_seconds, given.seed)
        made, seconds = synthesize(texts, studio, given.out, given.clips, given.hours, given.dev)
    except (*UNUSABLE, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    speakers = len({(voice.engine, voice.name) for voice in voices})
    print(f"{made} clips, {seconds / 60:.1f} min, {speakers} voices to choose from: {given.out / 'manifest.csv'}")


if __name__ == "__main__":
    main()
