"""Seconds that each engine takes for the same clips, beside the keras.io example's path, interleaved in one run.

The share of the peak is the network's arithmetic by the time it takes, over what a large matrix product reaches here.
"""

from collections.abc import Callable
from statistics import median

import numpy as np
from tqdm import tqdm

from benchmarks.common import load_stock, made_clip, parser, report, seconds_of, where
from predictor import SpeechPredictor
from speech.engine import LOADERS, available_cores, load_engine
from speech.errors import ModelError
from speech.features import spectrogram
from speech.model_card import ModelCard, read_card


def operations(card: ModelCard, n_steps: int) -> float:
    """Floating-point operations of the network as it is defined, for one clip: twice the multiplications."""
    units, width = card.rnn_units, 2 * card.rnn_units
    convolutions = 97 * 32 * 11 * 41 + 49 * 32 * 32 * 11 * 21
    inputs = 49 * 32 + width * (card.rnn_layers - 1)
    recurrent = 2 * 3 * units * (inputs + units * card.rnn_layers)
    return 2.0 * n_steps * (convolutions + recurrent + width * width + width * card.alphabet.size)


def peak(threads: int) -> dict[str, float]:
    """GFLOP/s of a large matrix product in float32, and in bfloat16 where PyTorch is installed and the CPU can."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    work = 2.0 * len(a) ** 3 / 1e9
    found = {"float32": work / min(seconds_of(lambda: a @ a) for _ in range(5))}
    try:
        import torch

        from training.torch_model import product_type
    except ImportError:
        return found
    torch.set_num_threads(threads)
    if product_type(torch.device("cpu")) == torch.bfloat16:
        b = torch.from_numpy(a).bfloat16()
        found["bfloat16"] = work / min(seconds_of(lambda: b @ b) for _ in range(5))
    return found


def main() -> None:
    """The command line."""
    arguments = parser("engines", __doc__)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of the clip")
    arguments.add_argument("--batch", type=int, default=8, help="clips of a batch")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=available_cores())
    given = arguments.parse_args()
    card = read_card(given.model)
    clip = made_clip(given.seconds)
    one = spectrogram(clip)
    frames, n_frames = one.frames[None], np.array([one.n_frames], np.int32)
    many = np.repeat(frames, given.batch, 0), np.repeat(n_frames, given.batch)

    stock = load_stock(given.model)
    calls: dict[str, tuple[Callable[[], object], int]] = {"stock Keras predict, one clip": (lambda: stock(clip), 1)}
    for name in LOADERS:
        try:
            _, run = load_engine(card, given.model, name, given.threads)
        except ModelError as error:
            print(f"{name}: {error}")
            continue
        calls[f"{name}, one clip"] = (lambda run=run: run(frames, n_frames), 1)  # type: ignore[misc]
        calls[f"{name}, batch of {given.batch}"] = (lambda run=run: run(*many), given.batch)  # type: ignore[misc]
        whole = SpeechPredictor(run)
        calls[f"{name}, sound to text, greedy, one clip"] = (lambda whole=whole: whole.transcribe(clip), 1)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for _ in tqdm(range(given.rounds), unit="round"):
        for name, (call, clips) in calls.items():
            times[name].append(seconds_of(call) / clips)

    reference = median(times["stock Keras predict, one clip"])
    peaks = peak(given.threads)
    gflop = operations(card, (one.n_frames + 1) // 2) / 1e9
    rows = [
        {
            "path": name,
            "ms per clip": 1000 * median(values),
            "× stock": reference / median(values),
            "× real time": given.seconds / median(values),
            "% of float32 peak": 100 * gflop / median(values) / peaks["float32"],
        }
        for name, values in times.items()
    ]
    result = {
        "where": {**where(), "threads": given.threads, **{f"{k} GFLOP/s": round(v) for k, v in peaks.items()}},
        "clip_seconds": given.seconds,
        "network_gflop": gflop,
        "times": times,
    }
    report(result, rows, given.json)


if __name__ == "__main__":
    main()
