"""How far each engine's log-probabilities are off: ``python -m benchmarks.exact RECORDINGS``, against Keras in float64.

Keras' own ``predict``, in float32, is one of them. Labels less likely than e⁻⁵⁰ are left out: a float32 probability
cannot hold some of them.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common import parser, report, where
from speech.audio import from_pcm16
from speech.engine import available_cores, load_engine, load_openvino
from speech.features import spectrogram
from speech.model import build_model, load_weights_file
from speech.model_card import WEIGHTS, check_file, read_card
from training.evaluate import load

LEAST = -50.0  # log-probability of a label that counts
NEAR = 1e-4


def main() -> None:
    """The command line."""
    arguments = parser("exact", __doc__)
    arguments.add_argument("data", type=Path, nargs="+", help="recordings whose split dev is heard")
    arguments.add_argument("--clips", type=int, default=24, help="so many of them, drawn by chance")
    arguments.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    given = arguments.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    card, clips = read_card(given.model), load(given.data, "dev", given.cache)
    chosen = np.random.default_rng(0).permutation(len(clips))[: given.clips]
    single = load_weights_file(
        check_file(card, given.model, WEIGHTS), card.rnn_layers, card.rnn_units, card.alphabet.size
    )
    keras.config.set_dtype_policy("float64")
    double = build_model(card.rnn_layers, card.rnn_units, card.alphabet.size)
    double.set_weights([weights.astype(np.float64) for weights in single.get_weights()])
    engines = {"onnx": load_engine(card, given.model, "onnx")[1]}
    if importlib.util.find_spec("openvino"):
        engines["openvino in float32"] = load_openvino(card, given.model, available_cores(), "f32")
    errors: dict[str, list[npt.NDArray[np.float64]]] = {"keras predict": [], **{name: [] for name in engines}}
    for index in tqdm(chosen, unit="clip"):
        frames = spectrogram(from_pcm16(clips[index].samples)).frames
        frames = frames[None, : len(frames) // 2 * 2]  # predict pads an odd number otherwise
        exact = np.log(double.predict(frames.astype(np.float64), verbose=0))
        found = {"keras predict": np.log(np.maximum(single.predict(frames, verbose=0), 1e-30))}
        for name, engine in engines.items():
            found[name] = engine(frames, np.array([frames.shape[1]], np.int32))
        for name, log_probs in found.items():
            errors[name].append(np.abs(log_probs - exact)[exact > LEAST])
    rows = []
    for name, parts in errors.items():
        off = np.concatenate(parts)
        far = int((off > NEAR).sum())
        rows.append(
            {
                "engine": name,
                "labels": len(off),
                "mean": float(off.mean()),
                f"more than {NEAR}": f"1 of {len(off) // far}" if far else "none",
                "largest": float(off.max()),
            }
        )
    report({"where": where()}, rows, given.json)


if __name__ == "__main__":
    main()
