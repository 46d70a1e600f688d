"""How soon a server is ready: ``python -m benchmarks.start``, beside what it cannot do without.

The bar is 1.5 times the import of FastAPI, NumPy and the engine's library, plus the model's load. Medians, interleaved.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import parser, report, seconds_of, where
from benchmarks.load import ROOT, Server
from speech.engine import load_engine
from speech.model_card import read_card

LIBRARIES = {"openvino": "openvino", "onnx": "onnxruntime", "keras": "tensorflow"}
IMPORTS = "import sys; sys.modules['openvino_telemetry'] = None; import fastapi, numpy, {}"  # it would call Google
LOAD = """
import sys
sys.modules["openvino_telemetry"] = None
import time, {}, predictor
started = time.perf_counter()
predictor.SpeechPredictor.load(sys.argv[1]).warm_up()
print(time.perf_counter() - started)
"""


def load(model: Path, library: str) -> float:
    """Seconds that a model takes to be loaded and warm, once everything is imported."""
    command = [sys.executable, "-c", LOAD.format(library), str(model.resolve())]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def ready(model: Path) -> tuple[float, float]:
    """Seconds from the start of a process to a 200 from ``/readyz``, and the MB that it then holds."""
    started = time.perf_counter()
    with Server(model, queue_seconds=300) as server:
        return time.perf_counter() - started, server.memory()


def main() -> None:
    """The command line."""
    arguments = parser("start", __doc__)
    arguments.add_argument("--times", type=int, default=7, help="starts that are measured")
    given = arguments.parse_args()
    model, found = given.model, []
    engine = load_engine(read_card(model), model)[0]
    library = LIBRARIES[engine]
    for number in range(given.times + 1):
        imported = seconds_of(lambda: subprocess.run([sys.executable, "-c", IMPORTS.format(library)], check=True))
        measured = (imported, load(model, library), *ready(model))
        if number:  # the first fills the disk's cache
            found.append(measured)
    imports, loaded, started, megabytes = (statistics.median(values) for values in zip(*found, strict=True))
    row = {
        "engine": engine,
        "imports, s": imports,
        "load, s": loaded,
        "ready, s": started,
        "bar, s": 1.5 * imports + loaded,
        "memory, MB": megabytes,
    }
    report({"where": where(), "times": given.times}, [row], given.json)


if __name__ == "__main__":
    main()
