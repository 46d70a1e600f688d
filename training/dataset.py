"""Recordings and their texts: read, decoded once, cached, and dealt out in batches of similar length."""

import csv
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speech.alphabet import normalise_text
from speech.audio import SAMPLE_RATE
from speech.features import FRAME_LENGTH
from speech.formats import resample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording and what is said in it; ``text`` as published, ``split`` is train, dev or empty."""

    id: str
    path: Path
    text: str
    corpus: str
    speaker: str
    split: str


def read_utterances(data: Path) -> list[Utterance]:
    """Utterances of a manifest (CSV: path, text and perhaps id, corpus, speaker, split) or of a corpus folder.

    A folder holds ``manifest.csv``, or has LJSpeech's layout (``metadata.csv``, ``wavs/``) or LibriSpeech's
    (``*.trans.txt`` beside ``*.flac``).

    Raises:
        FileNotFoundError: none of these is there, or the manifest lacks the column path or text.
    """
    if data.is_file():
        return _from_manifest(data)
    if (data / "manifest.csv").is_file():
        return _from_manifest(data / "manifest.csv")
    if (data / "metadata.csv").is_file():
        return _from_ljspeech(data)
    transcripts = sorted(data.rglob("*.trans.txt"))
    if transcripts:
        return [utterance for file in transcripts for utterance in _from_librispeech(file)]
    raise FileNotFoundError(
        f"expected {data} to be a manifest, or a folder with manifest.csv, metadata.csv or *.trans.txt"
    )


def read_lines(source: Path, dev: bool = False) -> list[str]:
    """Texts as published: of plain text, of ``id|text`` lines, of a CSV with a column ``text``, or of recordings.

    What names splits gives all but ``dev``, or ``dev`` alone: what is scored is not to be learnt.
    """
    if source.is_dir():
        return [utterance.text for utterance in read_utterances(source) if (utterance.split == "dev") == dev]
    with source.open(encoding="utf-8-sig", newline="") as file:
        if "text" in next(csv.reader(file), []):
            file.seek(0)
            rows = csv.DictReader(file)
            return [row["text"] for row in rows if row["text"] and (row.get("split") == "dev") == dev]
        file.seek(0)
        return [line.rpartition("|")[2] for line in file]


def _from_manifest(file: Path) -> list[Utterance]:
    with file.open(encoding="utf-8-sig", newline="") as lines:  # Excel begins with a byte order mark
        rows = csv.DictReader(lines)
        columns = rows.fieldnames or []
        if not {"path", "text"} <= set(columns):
            found = ", ".join(map(repr, columns)) or "none"
            raise FileNotFoundError(f"expected a manifest with the columns 'path' and 'text' in {file}, found {found}")
        return [
            Utterance(
                id=row.get("id") or Path(row["path"]).stem,
                path=file.parent / row["path"],
                text=row["text"],
                corpus=row.get("corpus") or file.parent.name,
                speaker=row.get("speaker") or "",
                split=row.get("split") or "",
            )
            for row in rows
        ]


def _from_ljspeech(folder: Path) -> list[Utterance]:
    with (folder / "metadata.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
        return [Utterance(r[0], folder / "wavs" / f"{r[0]}.wav", r[-1], folder.name, "", "") for r in rows]


def _from_librispeech(transcript: Path) -> Iterator[Utterance]:
    for line in transcript.read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition(" ")
        yield Utterance(name, transcript.parent / f"{name}.flac", text, "librispeech", name.split("-")[0], "")


def load_audio(path: Path) -> np.ndarray:
    """Any recording that libsndfile reads, as 16-bit samples: int16 (n,) at 22050 Hz, channels averaged.

    Resampled by soxr (high quality) and rounded to 16 bits, exactly what the service would get uploaded.
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = resample(samples.mean(axis=1), rate)
    return np.clip(np.rint(mono * 32768), -32768, 32767).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """An utterance that is ready to train on: int16 (n,) samples (on disk) and the normalised text."""

    utterance: Utterance
    samples: np.ndarray
    text: str

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE


def _try_load(path: Path) -> np.ndarray | str:
    try:
        samples = load_audio(path)
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        return f"{path}: {error}"
    return samples if len(samples) >= FRAME_LENGTH else f"{path}: {len(samples)} samples"


def _identity(path: Path) -> str:
    """What changes when the recording does."""
    facts = path.stat() if path.exists() else None
    return f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}" if facts else f"{path.resolve()} missing"


def load_clips(utterances: Sequence[Utterance], cache: Path) -> list[Clip]:
    """Decode every recording once into one memory-mapped file under ``cache`` and give the clips.

    A recording that cannot be read, is too short or has no text left is named in the log, counted and skipped.
    """
    key = hashlib.sha256("\n".join(_identity(u.path) for u in utterances).encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    data, index = cache / f"{key}.int16", cache / f"{key}.lengths.npy"
    if not index.exists():
        lengths = []
        with data.open("wb") as out, ThreadPoolExecutor() as pool:
            loaded = pool.map(_try_load, (u.path for u in utterances))
            for samples in tqdm(loaded, total=len(utterances), desc="decoding", unit="clip"):
                if isinstance(samples, str):
                    log.warning("skipped %s", samples)
                    samples = np.empty(0, np.int16)
                out.write(samples.tobytes())
                lengths.append(len(samples))
        np.save(index, np.asarray(lengths))
    lengths = np.load(index)
    ends = np.cumsum(lengths)
    audio = np.memmap(data, np.int16, "r") if lengths.sum() else np.empty(0, np.int16)
    clips = [
        Clip(utterance, audio[end - length : end], normalise_text(utterance.text))
        for utterance, length, end in zip(utterances, lengths, ends, strict=True)
    ]
    good = [clip for clip in clips if len(clip.samples) and clip.text]
    if len(good) < len(clips):
        log.warning("%d of %d recordings skipped", len(clips) - len(good), len(clips))
    return good


def repeat(clips: Sequence[Clip], times: Mapping[str, float], rng: np.random.Generator) -> list[Clip]:
    """The clips of one epoch: each corpus as often as ``times`` says (once if it does not), fractions drawn by lot."""
    chosen = []
    for clip in clips:
        n = times.get(clip.utterance.corpus, 1.0)
        chosen += [clip] * (int(n) + int(rng.random() < n % 1))
    return chosen


def batches(
    clips: Sequence[Clip], seconds: float, rng: np.random.Generator, by_length: bool = False
) -> Iterator[list[Clip]]:
    """Batches of clips of similar length, each of about so many seconds, padding included.

    In random order, or shortest first (``by_length``), which is how a first epoch learns soonest (SortaGrad,
    https://arxiv.org/abs/1512.02595).
    """
    jittered = sorted(clips, key=lambda clip: clip.seconds * rng.uniform(0.95, 1.05))
    groups: list[list[Clip]] = []
    for clip in jittered:
        group = groups[-1] if groups else []
        longest = max([clip.seconds, *(c.seconds for c in group)])
        if not group or longest * (len(group) + 1) > seconds:
            groups.append([clip])
        else:
            group.append(clip)
    order = np.arange(len(groups)) if by_length else rng.permutation(len(groups))
    for i in order:
        yield groups[i]
