"""What runs the network: one callable on arrays, with ONNX Runtime or OpenVINO for serving and Keras as the reference.

An engine takes padded clips and their true lengths and gives each clip's log-probabilities as if it were alone:
``(frames float32 (batch, frames, 193), n_frames int32 (batch,)) -> float32 (batch, ⌈frames / 2⌉, n_outputs)``.
"""

import ctypes
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speech.errors import ModelError, ModelMismatch
from speech.model_card import ONNX, WEIGHTS, ModelCard, check_file

Frames = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int32]
Engine = Callable[[Frames, Lengths], npt.NDArray[np.float32]]

LARGE = 6_000  # frames of a batch, padding included; what a larger one needed is given back to the system
# OpenVINO is given a multiple of this many frames, and two of them at least: it sets itself up for each new length,
# and rounds one clip of less than 64 frames otherwise than several.
ROUND = 64
SETUPS = 100  # of operators for a length, that OpenVINO keeps; its 5000 would be gigabytes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h

MAX_WER_CHANGE = 0.2  # points of word error rate that bfloat16 may cost

ONE_AT_A_TIME = threading.Lock()  # thread in OpenVINO 2026.4: two at their first clips can wait for each other for ever

log = logging.getLogger(__name__)


def give_back_memory() -> None:
    """Return what was freed to the system; glibc keeps it (https://man7.org/linux/man-pages/man3/malloc_trim.3.html)."""
    _glibc("malloc_trim", 0)


def share_memory() -> None:
    """Let threads share two heaps of the C library instead of eight for each core, each of which keeps what it ever
    held, and keep blocks of 4 MB and more out of them, which small ones that stay would hold in place
    (https://man7.org/linux/man-pages/man3/mallopt.3.html)."""
    _glibc("mallopt", M_ARENA_MAX, 2)
    _glibc("mallopt", M_MMAP_THRESHOLD, 4 << 20)
    _glibc("mallopt", M_TRIM_THRESHOLD, 64 << 20)  # as much as glibc chooses by itself


def _glibc(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function:  # other C libraries have none
        function(*arguments)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_onnx(card: ModelCard, folder: Path, threads: int) -> Engine:
    """The network in ONNX Runtime (https://onnxruntime.ai), made by ``python -m training.export``.

    Raises:
        ModelNotFound, ModelMismatch: the exported file is missing or is not the one the card knows.
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    file = check_file(card, folder, ONNX)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads give the core back between two requests instead of spinning.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    _check_source(card, session.get_modelmeta().custom_metadata_map.get("weights_sha256"))
    give_back = onnxruntime.RunOptions()
    give_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(frames: Frames, n_frames: Lengths) -> npt.NDArray[np.float32]:
        if frames.shape[1] % 2:
            frames = np.pad(frames, ((0, 0), (0, 1), (0, 0)))
        large = frames.shape[0] * frames.shape[1] > LARGE
        return session.run(["log_probs"], {"frames": frames, "n_frames": n_frames}, give_back if large else None)[0]

    return run


def _check_source(card: ModelCard, built_from: str | None) -> None:
    if built_from != card.sha256.get(WEIGHTS):
        raise ModelMismatch(
            f"{ONNX} is stale: the card's weights are {card.sha256.get(WEIGHTS)}, it was exported from {built_from}; "
            f"run python -m training.export {card.name}"
        )


def load_openvino(card: ModelCard, folder: Path, threads: int, precision: str = "") -> Engine:
    """The exported file in OpenVINO (https://docs.openvino.ai), in bfloat16 where CPU and card allow it.

    ``precision`` is "f32" or "bf16" to choose; else the card's measurement decides, see `bfloat16_allowed`.

    Raises:
        ModelNotFound, ModelMismatch: the exported file is missing, is not the one the card knows, or holds layers that
            OpenVINO computes wrongly.
        ImportError: openvino is not installed.
    """
    core = _openvino().Core()
    model = core.read_model(check_file(card, folder, ONNX))
    source = model.get_rt_info(["framework", "weights_sha256"]) if model.has_rt_info("framework") else None
    _check_source(card, source and source.astype(str))
    if any(node.get_attributes().get("direction") == "bidirectional" for node in model.get_ops()):
        raise ModelMismatch(
            f"OpenVINO ignores the lengths of clips in layers of two directions, as older exports had them; "
            f"run python -m training.export {card.name}"
        )
    if not precision:
        precision = "bf16" if bfloat16_allowed(card) else "f32"
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # else two processes meet on the same core
        "CPU_RUNTIME_CACHE_CAPACITY": SETUPS,
    }
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def run(frames: Frames, n_frames: Lengths) -> npt.NDArray[np.float32]:
        longest = frames.shape[1]
        if missing := max(-longest % ROUND, 2 * ROUND - longest):
            frames = np.pad(frames, ((0, 0), (0, missing), (0, 0)))
        with ONE_AT_A_TIME:
            used = compiled.create_infer_request() if frames.shape[0] * frames.shape[1] > LARGE else request
            return used.infer({"frames": frames, "n_frames": n_frames})["log_probs"][:, : (longest + 1) // 2]

    return run


def _openvino() -> Any:
    """OpenVINO, without the package by which its import would tell Google Analytics of itself
    (https://docs.openvino.ai/2026/about-openvino/additional-resources/telemetry.html)."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO does without one it cannot import
    import openvino

    return openvino


def computes_bfloat16(features: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether OpenVINO is installed and can multiply in bfloat16 on this CPU; if not, it takes float32 without a word.

    It is not imported where Linux names no bfloat16 among the CPU's ``features``, such as avx512_bf16.
    """
    if not importlib.util.find_spec("openvino") or (features.exists() and "bf16" not in features.read_text()):
        return False
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def bfloat16_allowed(card: ModelCard) -> bool:
    """Whether this CPU computes in bfloat16, and this very export was found to hear as well in it: `training.export`
    measured a word error rate at most 0.2 points away."""
    found = card.reduced_precision
    measured = found.get("onnx") == card.sha256.get(ONNX) and abs(found.get("wer_change", 1.0)) <= MAX_WER_CHANGE
    return measured and computes_bfloat16()


def load_keras(card: ModelCard, folder: Path, threads: int) -> Engine:
    """The network in Keras on TensorFlow: the reference, slow to start and to run.

    Raises:
        ModelNotFound, ModelMismatch: the weights are missing, are not the card's or do not fit.
        ImportError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow

    from speech.model import load_weights_file, masked_log_probs

    if not tensorflow.config.threading.get_intra_op_parallelism_threads():
        try:
            tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:  # already running with its own choice
            log.debug("TensorFlow runs already, its threads stay as they are")
    file = check_file(card, folder, WEIGHTS)
    return masked_log_probs(load_weights_file(file, card.rnn_layers, card.rnn_units, card.alphabet.size))


LOADERS: dict[str, Callable[[ModelCard, Path, int], Engine]] = {
    "openvino": load_openvino,
    "onnx": load_onnx,
    "keras": load_keras,
}


def load_engine(
    card: ModelCard, folder: Path, engine: str = "auto", threads: int = 0, callers: int = 1
) -> tuple[str, Engine]:
    """(name, engine) of a model; ``auto`` takes OpenVINO if it may compute in bfloat16, else ONNX Runtime, and falls
    back to Keras. Each fall is one line in the log.

    ``threads`` 0 means one for each core that this process may use, or that each of so many ``callers`` has to itself
    where they run side by side: OpenVINO takes one at a time.

    Raises:
        ModelError: the model cannot be loaded by the engine that was asked for, or by any.
    """

    def load(name: str) -> Engine:
        side_by_side = 1 if name == "openvino" else callers
        return _load(name, card, folder, threads or max(1, available_cores() // side_by_side))

    if engine != "auto":
        return engine, load(engine)
    for name, next_best in (("openvino", "onnx"), ("onnx", "keras"))[not bfloat16_allowed(card) :]:
        try:
            return name, load(name)
        except ModelError as error:
            log.warning("falling back from %s to the %s engine: %s", name, next_best, error)
    return "keras", load("keras")


def _load(engine: str, card: ModelCard, folder: Path, threads: int) -> Engine:
    try:
        return LOADERS[engine](card, folder, threads)
    except ImportError as error:
        raise ModelMismatch(f"expected the {engine} engine to be installed, found: {error}") from error
