"""The command line: ``python -m speech FILE|FOLDER|- …`` writes what is said as text, json, srt or vtt.

A tool, as those in ``training/``: it may use the predictor, and nothing imports it. ``--server URL`` lets a running
server do the work. Exit code 0: all is written; 1: some file could not be, each is named; 2: wrong usage, no model.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx
from tqdm import tqdm

from config import read_settings
from predictor import SpeechPredictor
from speech.ctc import Word
from speech.engine import available_cores
from speech.errors import SpeechError
from speech.formats import decode_blocks
from speech.segments import segments
from speech.streaming import is_steady, pieces
from speech.subtitles import to_srt, to_vtt

FORMATS = ("text", "json", "srt", "vtt")
# fmt: off
SUFFIXES = (".wav", ".wave", ".aif", ".aiff", ".flac", ".ogg", ".oga", ".opus", ".mp3",
            ".m4a", ".mp4", ".webm", ".mkv", ".mov")
# fmt: on
STDIN = "-"
BATCH = 4  # pieces of one file
TRIES = 10  # with a server that says when to come back
INTERRUPTED = 130  # exit code, as of shells
LONGEST_WAIT = 30.0  # seconds, whatever it says
SERVER_JOBS = 8  # a server makes batches of what comes at the same time
TIMEOUT = httpx.Timeout(3600.0, connect=10.0)  # seconds; the text of hours takes its time


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said in one file, and its seconds of sound."""

    text: str
    words: Sequence[Word]
    duration: float


Hear = Callable[[bytes], Heard]


class ServerRefused(Exception):
    """The server's answer is an error; the message is its ``detail``."""


def load(given: argparse.Namespace, jobs: int) -> Hear:
    """A model that hears in this process, by the settings where the command line says nothing.

    Raises:
        ModelError: there is no such model, or it cannot be used; ValueError: the hot words cannot.
    """
    asked = {name: getattr(given, name) for name in ("model", "engine", "decoder") if getattr(given, name)}
    settings = read_settings().model_copy(update=asked)
    predictor = SpeechPredictor.load(
        settings.model_folder, settings.engine, settings.threads, settings.decoder, callers=jobs
    )
    hot_words = predictor.read_hot_words(given.hot_words)

    def hear(data: bytes) -> Heard:
        said, end = [], 0.0
        rest = pieces(decode_blocks(data, settings.max_long_seconds))
        while batch := list(islice(rest, BATCH)):
            loud = [piece for piece in batch if not is_steady(piece.waveform)]
            sounds, hot = [piece.waveform for piece in loud], [hot_words] * len(loud)
            transcripts = predictor.transcribe_timed(sounds, hot)[0] if loud else []
            said += [piece.place(transcript) for piece, transcript in zip(loud, transcripts, strict=True)]
            end = batch[-1].end
        text = " ".join(part.text for part in said if part.text)
        return Heard(text, [word for part in said for word in part.words], end)

    return hear


def connect(url: str, key: str, model: str, hot_words: Sequence[str] = ()) -> Hear:
    """A server that hears; while it is busy it says when to come back.

    Raises:
        ValueError: that is no URL of a server.
    """
    try:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL:
        base = httpx.URL()
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError(f"expected --server as http://HOST:PORT, found {url}")
    client = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=TIMEOUT)
    form = {"model": model, "response_format": "verbose_json", "timestamp_granularities[]": "word"}
    form["hotwords"] = ",".join(hot_words)

    def hear(data: bytes) -> Heard:
        for left in reversed(range(TRIES)):
            answer = client.post("v1/audio/transcriptions", data=form, files={"file": ("audio", data)})
            wait = answer.headers.get("Retry-After", "")
            if answer.is_success or not wait.isdecimal() or not left:
                break
            time.sleep(min(float(wait), LONGEST_WAIT))
        return _heard(answer)

    return hear


def _heard(answer: httpx.Response) -> Heard:
    """What a server's answer says."""
    try:
        body = answer.json()
        if answer.is_success:
            words = [Word(w["word"], w["start"], w["end"], w["probability"]) for w in body["words"]]
            return Heard(body["text"], words, body["duration"])
        detail = f"{body['code']}: {body['detail']}"
    except (ValueError, KeyError, TypeError):
        detail = f"expected an answer of this service, found status {answer.status_code} and {answer.text!r:.60}"
    raise ServerRefused(detail)


def render(heard: Heard, form: str, file: str) -> str:
    """The output for one file, with its last line break."""
    match form:
        case "srt":
            return to_srt(segments(heard.words))
        case "vtt":
            return to_vtt(segments(heard.words))
        case "json":
            found = segments(heard.words)
            body = {
                "file": file,
                "text": heard.text,
                "duration": round(heard.duration, 3),
                "segments": [{"text": s.text, **_times(s.start, s.end, s.confidence)} for s in found],
                "words": [{"word": w.text, **_times(w.start, w.end, w.confidence)} for w in heard.words],
            }
            return json.dumps(body) + "\n"
        case _:
            return heard.text + "\n"


def _times(start: float, end: float, probability: float) -> dict[str, float]:
    return {"start": round(start, 3), "end": round(end, 3), "probability": round(probability, 4)}


def find(inputs: Sequence[str]) -> dict[str, Path]:
    """Each file to read, and its path without the folder that was given.

    Raises:
        ValueError: a name is empty, or a folder has no audio in it.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        if not given:  # a variable that is not set; as a path it would be the current folder
            raise ValueError(f"expected a file, a folder or {STDIN}, found an empty name")
        if given == STDIN:
            found[given] = Path("stdin")
        elif (folder := Path(given)).is_dir():
            files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise ValueError(f"expected audio ({' '.join(SUFFIXES)}) in {given}, found none")
            found |= {str(file): file.relative_to(folder) for file in files}
        else:
            found[given] = Path(folder.name)
    return found


def check_distinct(targets: Mapping[str, Path]) -> None:
    """Raise ValueError if one result would take the place of another, or of what it is to be made from."""
    sources: dict[Path, str] = {}
    inputs = {Path(source).resolve() for source in targets if source != STDIN}
    for source, target in targets.items():
        if (other := sources.setdefault(target, source)) != source:
            raise ValueError(f"expected a name of its own for each result, found {target} for {other} and {source}")
        if target.resolve() in inputs:
            raise ValueError(f"expected results that take the place of no input, found {target} for {source}")


def transcribe_file(file: str, hear: Hear, form: str, target: Path | None) -> str:
    """The output for one file; it is also written to the target, if there is one."""
    data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    output = render(hear(data), form, file)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(output, encoding="utf-8")
    return output


def read_arguments(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """What the command line asks for; wrong usage ends the process with 2."""
    parser = argparse.ArgumentParser(prog="python -m speech", description="Writes what is said in audio files.")
    parser.add_argument("inputs", nargs="+", metavar="FILE|FOLDER|-", help="audio of any kind; - is standard input")
    parser.add_argument("--format", choices=FORMATS, default="text", help="text unless given")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="a file for each result, not standard output")
    parser.add_argument("--jobs", type=int, metavar="N", help="files at a time; one for each core, 8 with --server")
    parser.add_argument("--model", metavar="NAME", help="folder under Models/, or a path to a model's folder")
    parser.add_argument("--engine", choices=("auto", "openvino", "onnx", "keras"), help="what runs the network")
    parser.add_argument(
        "--decoder", choices=("auto", "greedy", "beam"), help="the best letters alone, or beam search with language"
    )
    parser.add_argument("--hot-words", metavar="WORDS", action="append", default=[], help="Kubernetes,ice cream:6")
    parser.add_argument("--server", metavar="URL", help="let a running server do the work")
    parser.add_argument("--api-key", metavar="KEY", help="of the server; better in the variable STT_API_KEY")
    given = parser.parse_args(arguments)
    given.api_key = given.api_key or os.environ.get("STT_API_KEY", "")
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"expected --jobs of 1 or more, found {given.jobs}")
    if given.output and given.output.exists() and not given.output.is_dir():
        parser.error(f"expected a folder as --output, found the file {given.output}")
    if given.server and (given.engine or given.decoder):
        parser.error("expected --engine and --decoder without --server, which chooses them itself")
    if not (given.api_key.isascii() and given.api_key.isprintable()):
        parser.error("expected an API key of visible ASCII characters, found others")
    return parser, given


def run(files: Mapping[str, Path | None], hear: Hear, form: str, jobs: int) -> int:
    """Transcribe the files, several at a time, and write their results in their order; 1 if one could not be."""
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        work = {file: pool.submit(transcribe_file, file, hear, form, target) for file, target in files.items()}
        for file, result in tqdm(work.items(), unit="file", leave=False, disable=None if len(files) > 1 else True):
            try:
                output = result.result()
            except Exception as error:  # one broken file never stops the others
                failed = 1
                tqdm.write(f"{shown(file)}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            if files[file] is None:
                tqdm.write(f"{shown(file)}: {output}" if form == "text" and len(files) > 1 else output, end="")
        sys.stdout.flush()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def shown(file: str) -> str:
    """A file's name as a terminal can bear it: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit code."""
    parser, given = read_arguments(arguments)
    if sys.stdout is None:
        parser.exit(2, f"{parser.prog}: expected an open standard output, found it closed\n")
    try:
        found = find(given.inputs)
        suffix = ".txt" if given.format == "text" else f".{given.format}"
        targets = (
            {file: given.output / name.with_suffix(suffix) for file, name in found.items()} if given.output else {}
        )
        check_distinct(targets)
        if len(found) > 1 and given.format in ("srt", "vtt") and not given.output:
            raise ValueError(f"expected --output FOLDER for the {given.format} of several files, found none")
        jobs = min(len(found), given.jobs or (SERVER_JOBS if given.server else available_cores()))
        if given.server:
            hear = connect(given.server, given.api_key, given.model or "default", given.hot_words)
        else:
            hear = load(given, jobs)
    except ValueError as error:
        parser.error(str(error))
    except SpeechError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be none that can be printed
    try:
        return run({file: targets.get(file) for file in found}, hear, given.format, jobs)
    except OSError as error:  # of standard output: files that cannot be read are named one by one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # then whoever read has seen enough
            print(f"{parser.prog}: expected a standard output that takes the results, found: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    if (code := main()) == INTERRUPTED:
        os._exit(code)  # threads that wait for a server would be waited for
    sys.exit(code)
