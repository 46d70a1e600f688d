"""How soon a server is ready: ``python -m benchmarks.start``, beside what it cannot do without.

The bar is 1.5 times the import of FastAPI, NumPy and ONNX Runtime, plus the model's load. Medians, interleaved.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import SAMPLE, parser, report, seconds_of, where

ROOT = SAMPLE.parents[1]
IMPORTS = "import fastapi, numpy, onnxruntime"
LOAD = """
import sys, time, onnxruntime, predictor
started = time.perf_counter()
predictor.SpeechPredictor.load(sys.argv[1]).warm_up()
print(time.perf_counter() - started)
"""


def load(model: Path) -> float:
    """Seconds that a model takes to be loaded and warm, once everything is imported."""
    command = [sys.executable, "-c", LOAD, str(model)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def ready(model: Path) -> tuple[float, float]:
    """Seconds from the start of a process to a 200 from ``/readyz``, and the MB that it then holds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as logs:
        environment = {**os.environ, "STT_PORT": str(port), "STT_MODEL": str(model), "STT_LOG_FOLDER": logs}
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "api.py"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        try:
            while b" 200 " not in _answer(port):
                time.sleep(0.005)
                if process.poll() is not None or time.perf_counter() - started > 60:
                    raise RuntimeError("the server did not become ready")
            took = time.perf_counter() - started
            pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
            return took, pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        finally:
            process.terminate()
            process.wait()


def _answer(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return client.recv(100)
    except OSError:
        return b""


def main() -> None:
    """The command line."""
    arguments = parser("start", __doc__)
    arguments.add_argument("--times", type=int, default=7, help="starts that are measured")
    given = arguments.parse_args()
    model, found = given.model.resolve(), []
    for number in range(given.times + 1):
        measured = seconds_of(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True)), load(model)
        if number:  # the first fills the disk's cache
            found.append((*measured, *ready(model)))
        else:
            ready(model)
    imports, loaded, started, megabytes = (statistics.median(values) for values in zip(*found, strict=True))
    row = {
        "imports, s": imports,
        "load, s": loaded,
        "ready, s": started,
        "bar, s": 1.5 * imports + loaded,
        "memory, MB": megabytes,
    }
    report({"where": where(), "times": given.times}, [row], given.json)


if __name__ == "__main__":
    main()
