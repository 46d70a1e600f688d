"""The command line: a process of its own with the real model, here and through a real server."""

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt
import webvtt

from predictor import SpeechPredictor
from tests.conftest import make_sound, make_wav
from tests.test_server import ROOT, Process

HELLO = ROOT / "samples" / "hello.wav"


def stt(*arguments: object, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tool."""
    done = subprocess.run(
        [sys.executable, "-m", "speech", *map(str, arguments)], cwd=ROOT, env={**os.environ, **variables},
        input=stdin, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@pytest.fixture(scope="module")
def said(shipped: SpeechPredictor) -> str:
    """What the model hears in the sample."""
    return shipped.transcribe(HELLO).text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings in a tree: good, broken, and what is no audio."""
    made = tmp_path_factory.mktemp("recordings")
    (made / "deep" / "er").mkdir(parents=True)
    shutil.copy(HELLO, made / "a.wav")
    samples, rate = soundfile.read(HELLO)
    soundfile.write(made / "deep" / "B.FLAC", samples, rate, format="FLAC")
    soundfile.write(made / "deep" / "er" / "c.ogg", samples, rate)
    (made / "broken.wav").write_bytes(HELLO.read_bytes()[:30])
    (made / "text.mp3").write_text("no sound")
    (made / "notes.txt").write_text("not audio by its name")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    started = Process(tmp_path_factory.mktemp("cli"), STT_API_KEYS="the-key")
    yield started
    started.stop()


def test_one_file_is_its_text_alone(said: str):
    done = stt(HELLO)
    assert (done.returncode, done.stdout, done.stderr) == (0, said + "\n", "")


def test_a_broken_file_never_stops_the_others(folder: Path, said: str):
    done = stt(folder, "missing.wav")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"{folder / 'a.wav'}: {said}"
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        str(folder / name) for name in ("a.wav", "deep/B.FLAC", "deep/er/c.ogg")
    ]
    broken, text, missing = done.stderr.splitlines()
    assert broken.startswith(f"{folder / 'broken.wav'}: DamagedWav: expected ")
    assert text.startswith(f"{folder / 'text.mp3'}: NotAWav: expected ")
    assert "found a file that begins with b'no sound'" in text
    assert missing.startswith("missing.wav: FileNotFoundError: ")


def test_a_folder_of_results_keeps_the_tree(folder: Path, tmp_path: Path, said: str):
    done = stt(folder, "--output", tmp_path / "out", "--format", "srt", "--jobs", 2)
    assert (done.returncode, done.stdout) == (1, "")
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert found == {"a.srt", "deep/B.srt", "deep/er/c.srt"}
    cues = list(srt.parse((tmp_path / "out" / "a.srt").read_text(encoding="utf-8")))
    assert " ".join(" ".join(cue.content.split()) for cue in cues) == said


def test_a_recording_is_never_overwritten_by_its_text(tmp_path: Path):
    recording = tmp_path / "a.txt"
    shutil.copy(HELLO, recording)
    done = stt(recording, "--output", tmp_path)
    assert done.returncode == 2
    assert "the place of no input" in done.stderr
    assert recording.read_bytes() == HELLO.read_bytes()


def test_standard_input_and_the_formats(said: str):
    found = json.loads(stt("-", "--format", "json", stdin=HELLO.read_bytes()).stdout)
    assert (found["file"], found["text"]) == ("-", said)
    assert found["duration"] == pytest.approx(3.433, abs=0.001)
    assert " ".join(word["word"] for word in found["words"]) == said
    assert " ".join(segment["text"] for segment in found["segments"]) == said
    assert all(0 <= word["start"] < word["end"] <= found["duration"] for word in found["words"])
    cues = webvtt.from_string(stt("-", "--format", "vtt", stdin=HELLO.read_bytes()).stdout)
    assert " ".join(" ".join(cue.text.split()) for cue in cues) == said


def test_json_of_several_is_an_object_a_line(folder: Path, said: str):
    lines = stt(HELLO, folder / "deep", "--format", "json").stdout.splitlines()
    assert [json.loads(line)["file"] for line in lines] == [
        str(HELLO),
        *(str(folder / "deep" / name) for name in ("B.FLAC", "er/c.ogg")),
    ]
    assert json.loads(lines[0])["text"] == said


def test_a_long_file_is_heard_in_pieces_here_as_there(server: Process, tmp_path: Path):
    samples, rate = soundfile.read(HELLO, dtype="int16")
    silence = samples[:1] * 0
    soundfile.write(tmp_path / "long.wav", np.concatenate([*[samples, silence.repeat(rate)] * 9]), rate)
    found = json.loads(stt(tmp_path / "long.wav", "--format", "json").stdout)
    assert found["duration"] == pytest.approx(9 * (3.433 + 1), abs=0.01)
    there = json.loads(
        stt(tmp_path / "long.wav", "--format", "json", "--server", server.url, STT_API_KEY="the-key").stdout
    )
    assert (found["text"], found["words"]) == (there["text"], there["words"])
    starts = [word["start"] for word in found["words"]]
    assert starts == sorted(starts)
    assert starts[-1] > 35
    assert "AudioTooLong: expected at most 9 s" in stt(tmp_path / "long.wav", STT_MAX_LONG_SECONDS="9").stderr


def test_silence_is_an_empty_text(tmp_path: Path):
    silence = make_wav(make_sound(2) * 0)
    assert stt("-", stdin=silence).stdout == "\n"
    assert stt("-", "--format", "srt", stdin=silence).stdout == ""
    assert stt("-", "--format", "vtt", stdin=silence).stdout == "WEBVTT\n"


@pytest.mark.parametrize("form", ["text", "json", "srt", "vtt"])
def test_a_server_gives_what_the_model_here_gives(server: Process, form: str):
    here = stt(HELLO, "--format", form)
    there = stt(HELLO, "--format", form, "--server", server.url, STT_API_KEY="the-key")
    assert (there.returncode, there.stderr) == (0, "")
    if form != "json":
        assert there.stdout == here.stdout
        return
    ours, theirs = json.loads(here.stdout), json.loads(there.stdout)
    for segments in (ours["segments"], theirs["segments"]):
        for segment in segments:
            segment["probability"] = pytest.approx(segment["probability"], abs=2e-4)  # of rounded words
    assert ours == theirs


def test_a_server_with_broken_files_and_the_v1_of_other_clients(server: Process, folder: Path, said: str):
    done = stt(folder, "--server", f"{server.url}/v1/", "--api-key", "the-key")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout.splitlines()[0].endswith(said)
    assert [line.split(": ")[1:3] for line in done.stderr.splitlines()] == [
        ["ServerRefused", "DamagedWav"], ["ServerRefused", "NotAWav"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "code", "out", "err"),
    [
        ([(503, "1", '{"code": "QueueFull", "detail": "full"}'), (200, "", '{"text": "a", "words": [], "duration": 1}')], 0, "a\n", ""),
        ([(503, "", '{"code": "ModelNotFound", "detail": "expected a model"}')], 1, "", "ModelNotFound: expected a model"),
        ([(503, "soon", '{"code": "QueueFull", "detail": "full"}')], 1, "", "QueueFull: full"),
        ([(502, "", "<html>" * 50)], 1, "", "expected an answer of this service, found status 502 and '<html>"),
        ([(200, "", '{"text": "a"}')], 1, "", "found status 200"),
        ([(200, "", "[]")], 1, "", "found status 200"),
    ],
)  # fmt: skip
def test_what_a_server_may_say(answers: list[tuple[int, str, str]], code: int, out: str, err: str):
    """A server that is busy is asked again if it says when; another one than ours is no crash."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, wait, body = left.pop(0)
            self.send_response(status)
            if wait:
                self.send_header("Retry-After", wait)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        done = stt(HELLO, "--server", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join(10)
    assert (done.returncode, done.stdout, left) == (code, out, [])
    assert err in done.stderr


def test_wrong_keys_and_servers_are_said_for_each_file(server: Process):
    wrong = stt(HELLO, "--server", server.url, STT_API_KEY="wrong")
    assert wrong.returncode == 1
    assert "InvalidApiKey: expected an API key" in wrong.stderr
    unknown = stt(HELLO, "--server", server.url, "--model", "other", STT_API_KEY="the-key")
    assert "UnknownModel: expected one of" in unknown.stderr
    nobody = stt(HELLO, "--server", "http://127.0.0.1:9")
    assert (nobody.returncode, "ConnectError" in nobody.stderr) == (1, True)
    other = stt(HELLO, "--server", f"{server.url}/elsewhere", STT_API_KEY="the-key")
    assert "NotFound" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required"),
        (("",), "found an empty name"),
        ((HELLO, ""), "found an empty name"),
        ((HELLO, "--format", "docx"), "docx"),
        ((HELLO, "--jobs", "0"), "found 0"),
        ((HELLO, "--server", "127.0.0.1:8000"), "http://HOST:PORT"),
        ((HELLO, "--server", "http://"), "http://HOST:PORT"),
        ((HELLO, "--server", "http://x:y"), "http://HOST:PORT"),
        ((HELLO, "--server", "http://127.0.0.1:1", "--decoder", "beam"), "--decoder"),
        ((HELLO, "--api-key", "clé"), "visible ASCII"),
        ((HELLO, ROOT / "samples", "x.wav", "--format", "srt"), "--output"),
        ((HELLO, "hello.wav", "--output", "out"), "hello.txt for"),
        ((ROOT / "tests",), "expected audio"),
        ((HELLO, "--output", ROOT / "README.md"), "found the file"),
        ((HELLO, "--model", "no-such-model"), "no-such-model"),
    ],
)  # fmt: skip
def test_wrong_usage_is_2_and_nothing_is_done(arguments: tuple[object, ...], words: str):
    done = stt(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_bar_is_drawn_on_a_terminal_only(folder: Path):
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "speech", str(folder / "deep")], cwd=ROOT, stdout=subprocess.PIPE, stderr=follower
    )
    out = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0
    drawn = os.read(leader, 65536).decode()
    os.close(leader)
    os.close(follower)
    assert "/2 [" in drawn  # perhaps 0/2 alone: a bar is drawn anew every 0.1 s at most
    assert "file/s" not in out
    assert stt(folder / "deep").stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error_to_read(folder: Path):
    done = subprocess.run(
        f"{sys.executable} -m speech '{folder / 'deep'}' | true", shell=True, cwd=ROOT,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == b""


def test_ctrl_c_ends_it_at_once_though_a_server_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "http://{}:{}".format(*silent.getsockname())
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # the tests may have been told to ignore it
        asking = subprocess.Popen([sys.executable, "-m", "speech", HELLO, "--server", url], cwd=ROOT, preexec_fn=heed)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(20) == 130


def test_names_cannot_steer_the_terminal(tmp_path: Path, said: str):
    names = [tmp_path / "a\x1b[2Jb.wav", tmp_path / "c\nd.wav"]
    shutil.copy(HELLO, names[0])
    names[1].write_bytes(b"")
    done = stt(*names)
    assert done.stdout == f"{tmp_path}/a\\x1b[2Jb.wav: {said}\n"
    assert done.stderr.startswith(f"{tmp_path}/c\\nd.wav: DamagedWav: ")


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [("> /dev/full", 1, "a standard output that takes the results"), (">&-", 2, "an open standard output")],
)
def test_an_output_that_takes_nothing_is_said(output: str, code: int, said: str):
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m speech "$1" {output}', sys.executable, HELLO],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"python -m speech: expected {said}, found")
    assert done.returncode == code
