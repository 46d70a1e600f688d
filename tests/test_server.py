"""The real process: started as the README says, spoken to over a socket, stopped by signals."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.conftest import make_sound, make_wav

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """``python api.py`` on a free port, its address read from what it prints."""

    def __init__(self, tmp_path: Path, ready: str = "ready", **variables: str) -> None:
        environment = {**os.environ, "STT_PORT": "0", "STT_LOG_FOLDER": str(tmp_path / "logs"), **variables}
        self.process = subprocess.Popen(
            [sys.executable, "api.py"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"serving on (http://\S+),")
        self.wait_for(ready)

    def _read(self) -> None:
        assert self.process.stderr
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.lines:
                if match := re.search(pattern, line):
                    return match[match.lastindex or 0]
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)
        raise TimeoutError(f"{pattern} not in:\n{''.join(self.lines)}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr
        self.process.stderr.close()

    def post(self, data: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}/upload/", files={"file": ("a.wav", data)}, timeout=60)


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    started = Process(tmp_path)
    yield started
    started.stop()


def test_health_answers_while_a_transcription_runs(server: Process):
    """The event loop is never blocked: no health check takes as long as a transcription, and most are far quicker."""
    long = make_wav(make_sound(60))
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=server.url) as client:
        client.get("/healthz")
        answers = [pool.submit(server.post, long) for _ in range(4)]
        checks = []
        while not all(answer.done() for answer in answers):
            started = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            checks.append(time.perf_counter() - started)
    took = min(answer.result().json()["processing_time"] for answer in answers)
    assert all(answer.result().status_code == 200 for answer in answers)
    assert len(checks) > 10
    assert max(checks) < took
    assert sorted(checks)[len(checks) // 2] < took / 10


def test_sigterm_answers_what_was_accepted(server: Process, tmp_path: Path):
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=server.url) as client:
        assert client.get("/readyz").status_code == 200
        accepted = [pool.submit(server.post, make_wav(make_sound(110, seed))) for seed in range(3)]
        wait_until(lambda: "stt_in_flight 3.0" in client.get("/metrics").text)
        assert not any(answer.done() for answer in accepted)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert not any(answer.done() for answer in accepted)
        assert server.post(make_wav(make_sound(1))).json()["code"] == "NotReady"
        assert client.get("/healthz").status_code == 200
        assert [answer.result().status_code for answer in accepted] == [200, 200, 200]
    assert server.process.wait(10) in (0, -signal.SIGTERM)
    told = "stopping once 3 uploads and streams are answered; another signal ends at once"
    assert (tmp_path / "logs" / "api.log").read_text().count(told) == 1


def test_a_refused_upload_gets_its_answer_while_it_still_writes(server: Process):
    """A client that sends much more than the limit sees the 413, not a reset connection."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.putrequest("POST", "/upload/")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(60 * 2**20))
    connection.endheaders()
    for _ in range(60):
        connection.send(bytes(2**20))
    response = connection.getresponse()
    assert response.status == 413
    assert b"UploadTooLarge" in response.read()


def test_an_idle_connection_stays_open_for_longer_than_clients_keep_it(server: Process):
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)) as connection:
        for pause in (5.5, 0):  # httpx lets go of it after 5 s
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            time.sleep(pause)


def test_a_client_that_hangs_up_is_logged_and_leaves_no_harm(server: Process):
    data = make_wav(make_sound(60))
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/upload/", files={"file": ("a.wav", data)}, timeout=httpx.Timeout(30, read=0.05))
    server.wait_for(r"POST /upload/ 499")
    assert server.post(make_wav(make_sound(1))).status_code == 200


def test_logs_are_written_to_both_files(server: Process, tmp_path: Path):
    answer = server.post(make_wav(make_sound(1)))
    identity = answer.headers["X-Request-ID"]
    files = [tmp_path / "logs" / name for name in ("api.log", "predictor.log")]
    wait_until(lambda: all(f"[{identity}]" in file.read_text(encoding="utf-8") for file in files))  # behind its answer


def test_a_body_that_drips_is_given_up(tmp_path: Path):
    """A byte now and then is never a pause, and could hold a place for ever."""
    server = Process(tmp_path, STT_TIMEOUT="1")
    try:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        with socket.create_connection((host, port), timeout=20) as slow:
            slow.sendall(b"POST /upload/ HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n")
            slow.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
            slow.setblocking(False)
            started, answer = time.monotonic(), b""
            while not answer and time.monotonic() < started + 20:
                slow.send(b"a")
                time.sleep(0.1)
                with suppress(BlockingIOError):
                    answer = slow.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"UploadTooSlow" in answer
    finally:
        server.stop()


def test_sigterm_ends_it_though_a_handshake_was_refused(server: Process):
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    with socket.create_connection((host, port), timeout=20) as odd:
        odd.sendall(b"GET /vosk HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX: ")
        odd.sendall(b"a" * 9000 + b"\r\n\r\n")
        assert odd.recv(65536).startswith(b"HTTP/1.1 400")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert not any("Traceback" in line for line in server.lines)


def test_a_port_in_use_ends_the_start_and_names_the_settings(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment = {**os.environ, "STT_PORT": str(other.getsockname()[1]), "STT_LOG_FOLDER": str(tmp_path / "logs")}
        run = subprocess.run(
            [sys.executable, "api.py"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 3
    assert "address already in use" in run.stderr and "STT_HOST and STT_PORT" in run.stderr
    assert "Traceback" not in run.stderr
