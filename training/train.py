"""Train the network on a folder of recordings: ``python -m training.train --data FOLDER --out Models/NAME``.

Checkpoints every ten minutes; the same command goes on from the last one. At the end the model is published: weights,
card, export and error rates lie in the same folder, ready for ``STT_MODEL=NAME``. With ``torchrun --nproc-per-node N``
instead of ``python`` N processes share the work, see `training.workers`.
"""

import argparse
import csv
import json
import logging
import math
import pickle
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from speech.alphabet import Alphabet
from speech.audio import Waveform, from_pcm16
from speech.beam import OPTIONS
from speech.ctc import LogProbs, decode_greedy
from speech.errors import ModelMismatch
from speech.features import FRAME_LENGTH, Spectrogram, spectrogram
from speech.model_card import CARD, LANGUAGE_MODEL, WEIGHTS, read_card
from training.augment import Augmentation, add_arguments
from training.command import one_line
from training.dataset import Clip, batches, load_clips, read_utterances, repeat
from training.history import RECIPE, credits_of, lines, more, of_model
from training.mmi import NBestMMI
from training.muon import Muon
from training.old_keras import read_layers, sizes_of
from training.torch_model import Network, product_type
from training.workers import Workers

SAVE_SECONDS = 600  # between two checkpoints
STEPS_A_LETTER = 17  # steps of 14.5 ms for a letter; so little text weighs as much as more would
INTERRUPTED = 130  # exit code, as of shells
MEET_SECONDS = 30  # between two meetings of several workers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("training.train")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a run does, beside its data."""

    rnn_layers: int = 3
    rnn_units: int = 256
    dropout: float = 0.15
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    batch_seconds: float = 100.0
    epochs: float = 10.0
    hours: float = math.inf  # of wall clock; the learning rate ends at 0 with whichever runs out first
    max_seconds: float = 20.0  # longer clips are left out
    average: float = 0.995  # decay of the moving average of the weights, which is what is kept
    mask_from_epoch: int = 1  # SpecAugment from this epoch on
    conv_every: int = 1  # steps between two updates of the convolutions, whose gradients are 45 % of a step's time
    mmi: float = 0.0  # share of the loss that asks what the beam search makes of it (`training.mmi`); the rest is CTC
    patience: int = 0  # stop when so many checkpoints in a row brought no better WER on dev; 0: never
    seed: int = 1
    repeat: dict[str, float] = field(default_factory=dict)  # how often a corpus is heard in an epoch

    def __post_init__(self) -> None:
        """Raise ValueError for what no run could do."""
        least = dict.fromkeys(("rnn_layers", "rnn_units", "warmup_steps", "conv_every"), 1)
        least |= dict.fromkeys(("dropout", "weight_decay", "average", "mask_from_epoch", "mmi", "patience", "seed"), 0)
        most = {"dropout": 0.99, "weight_decay": 1, "average": 0.99999, "mmi": 1, "seed": 2**32 - 1}
        for name in self.__annotations__.keys() - {"repeat"}:
            low, high = least.get(name, 1e-9), most.get(name, math.inf)
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"--{name.replace('_', '-')}: expected {low:g} to {high:g}, found {value}")
        for corpus, times in self.repeat.items():
            if not 0 <= times < math.inf:
                raise ValueError(f"--repeat {corpus}: expected 0 or more, found {times}")


def pad(spectrograms: Sequence[Spectrogram]) -> tuple[Tensor, Tensor]:
    """One batch: frames float32 (batch, even number of frames, 193), zeros behind each clip, and n_frames int64."""
    n_frames = torch.tensor([s.n_frames for s in spectrograms])
    longest = int(n_frames.max()) + int(n_frames.max()) % 2
    frames = torch.zeros(len(spectrograms), longest, spectrograms[0].frames.shape[1])
    for row, s in zip(frames, spectrograms, strict=True):
        row[: s.n_frames] = torch.from_numpy(s.frames)
    return frames, n_frames


def load_splits(data: Sequence[Path], cache: Path) -> tuple[list[Clip], list[Clip]]:
    """(train, dev) clips of manifests and folders; what names no split is trained on.

    What has more letters than steps, as where texts have slipped, cannot be learnt: it is named and left out of train.
    """
    utterances = [u for part in data for u in read_utterances(part)]
    if other := sorted({u.split for u in utterances} - {"train", "dev", ""}):
        n = sum(u.split in other for u in utterances)
        log.warning("left out %d utterances of the splits %s: train, dev and no split are used", n, ", ".join(other))
    train = load_clips([u for u in utterances if u.split in ("train", "")], cache)
    for clip in train:
        if not clip.fits:
            log.warning("skipped %s: %.1f s are too short for %r", clip.utterance.path, clip.seconds, clip.text[:50])
    return [c for c in train if c.fits], load_clips([u for u in utterances if u.split == "dev"], cache)


def ctc_loss(network: Network, frames: Tensor, n_frames: Tensor, texts: Sequence[str], alphabet: Alphabet,
             mmi: NBestMMI | None = None, share: float = 0.0) -> Tensor:  # fmt: skip
    """Mean over the batch of the CTC loss of each utterance, divided by the length of its text; a text that is none, or
    very slow, is taken for one of a letter in a quarter of a second. ``share`` of it is the loss of `training.mmi`."""
    labels = [alphabet.encode(text) for text in texts]
    lengths = torch.tensor([len(label) for label in labels])
    flat = torch.tensor([label for row in labels for label in row], dtype=torch.int64, device=network.device)
    n_steps = (n_frames + 1) // 2
    log_probs = network(frames.to(network.device), n_frames.to(network.device))
    losses = F.ctc_loss(log_probs, flat, n_steps, lengths, blank=alphabet.blank, reduction="none", zero_infinity=True)
    if mmi:
        losses = (1 - share) * losses + share * mmi.losses(log_probs, n_steps, texts)
    return (losses / torch.maximum(lengths, n_steps / STEPS_A_LETTER).to(network.device)).mean()


@torch.no_grad()
def error_rates(network: Network, clips: Sequence[Clip], alphabet: Alphabet) -> dict[str, tuple[float, float]]:
    """Greedy (WER, CER) of each corpus of the clips, in percent."""
    network.eval()
    texts: dict[str, tuple[list[str], list[str]]] = {}
    for group in batches(clips, 120.0, np.random.default_rng(0)):
        frames, n_frames = pad([spectrogram(from_pcm16(np.asarray(clip.samples))) for clip in group])
        log_probs = network(frames.to(network.device), n_frames.to(network.device)).transpose(0, 1).cpu()
        for clip, values, n in zip(group, log_probs, n_frames, strict=True):
            text = decode_greedy(LogProbs(values[: (n + 1) // 2].numpy()), alphabet).text
            references, hypotheses = texts.setdefault(clip.utterance.corpus, ([], []))
            references.append(clip.text)
            hypotheses.append(text)
    network.train()
    return {name: (100 * jiwer.wer(r, h), 100 * jiwer.cer(r, h)) for name, (r, h) in sorted(texts.items())}


class Trainer:
    """One run: its state is a checkpoint in ``out``, from which the next call goes on."""

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[Clip],
        dev: Sequence[Clip],
        out: Path,
        workers: Workers | None = None,
        augmentation: Augmentation | None = None,
        curves: "SummaryWriter | None" = None,
        device: torch.device | None = None,
        mmi: NBestMMI | None = None,
    ) -> None:
        self.mmi = mmi
        self.recipe, self.train, self.dev, self.out = recipe, train, dev, out
        self.alphabet = Alphabet()
        torch.manual_seed(recipe.seed)
        network = (self.alphabet.size, recipe.rnn_layers, recipe.rnn_units, recipe.dropout)
        device = device or torch.device("cpu")
        self.network, self.averaged = Network(*network).to(device), Network(*network).to(device)
        dtype = self.network.dtype = self.averaged.dtype = product_type(device)
        self.averaged.load_state_dict(self.network.state_dict())
        hidden = set(self.network.hidden_matrices())
        self.optimizers = [
            Muon(self.network.hidden_matrices(), recipe.learning_rate, recipe.weight_decay, dtype=dtype),
            torch.optim.Adam([p for p in self.network.parameters() if p not in hidden], recipe.learning_rate),
        ]
        self.step, self.epoch, self.elapsed, self.heard = 0, 0, 0.0, 0.0
        self.position, self.length = 0, 1  # batches of this worker's epoch that are behind it, and in all
        self.alone = 0, 0.0  # steps and seconds of sound since the workers last met
        self.stale, self.best = 0, (math.inf, self.averaged.state_dict())  # checkpoints since the best; WER, weights
        self.shortest_first = True  # in the first epoch
        self.workers, self.curves = workers or Workers(), curves
        self.augmentation = augmentation or Augmentation()
        self.checkpoint = out / "checkpoint.pt"
        if self.checkpoint.exists():
            try:
                state = torch.load(self.checkpoint, device, weights_only=True)
                self.network.load_state_dict(state["network"])
                self.averaged.load_state_dict(state["averaged"])
                for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)
                self.step, self.epoch, self.elapsed, self.heard, self.position, self.length = state["progress"]
                self.stale, self.best = state.get("patience", (self.stale, self.best))
            except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                wanted = f"a checkpoint of a network of {recipe.rnn_layers} × {recipe.rnn_units} in {self.checkpoint}"
                raise ValueError(f"expected {wanted}, found another or a damaged one") from error
            for group in self.optimizers[0].param_groups:
                group["weight_decay"] = recipe.weight_decay
            log.info("resumed at step %d, epoch %d, after %.2f h", self.step, self.epoch, self.elapsed / 3600)
        self.workers.merge(self.network.state_dict(), self.workers.rank == 0)

    def start_from(self, model: Path) -> None:
        """Take the weights of a model's folder as the first ones, and its language model along.

        Raises as `read_layers`; FileNotFoundError without a model there; ModelMismatch if the sizes or labels differ.
        """
        if not (model / WEIGHTS).is_file():
            raise FileNotFoundError(f"expected a model's folder with {WEIGHTS} as --init, found none in {model}")
        if (model / CARD).exists() and read_card(model).characters != self.alphabet.characters:
            raise ModelMismatch(f"expected the labels {self.alphabet.characters!r} in {model}, found others")
        layers, _ = read_layers(model / WEIGHTS)
        try:
            if sizes_of(layers)[0] != self.recipe.rnn_layers:
                raise KeyError
            for network in (self.network, self.averaged):
                network.load_keras_weights({layer.settings["name"]: layer.weights for layer in layers})
        except (KeyError, RuntimeError):
            wanted = f"{self.recipe.rnn_layers} × {self.recipe.rnn_units}"
            raise ModelMismatch(f"expected a network of {wanted} in {model}, found another") from None
        for name in (LANGUAGE_MODEL, OPTIONS):
            if self.workers.rank == 0 and (model / name).exists() and model.resolve() != self.out.resolve():
                shutil.copy(model / name, self.out / name)

    def progress(self) -> float:
        """How much of the run is behind us, 0 … 1."""
        hours = self.elapsed / 3600 / self.recipe.hours
        return min(1.0, max(hours, (self.epoch + self.position / self.length) / self.recipe.epochs))

    def run(self) -> None:
        """Train until the epochs, the hours or the patience are over; checkpoint and score every ten minutes."""
        recipe, workers, saved = self.recipe, self.workers, time.monotonic()
        started = met = saved - self.elapsed
        scored = self.step
        out_of_patience = 0 < recipe.patience <= self.stale
        done = self.progress() >= 1 or out_of_patience
        if done:
            more = "a higher --patience goes" if out_of_patience else "more --epochs or --hours go"
            log.warning("this run has ended: %s on with it, another --out begins a new one", more)
        while not done:
            rng = np.random.default_rng((recipe.seed, self.epoch))
            chosen = self.augmentation.join(repeat(self.train, recipe.repeat, rng), recipe.max_seconds, rng)
            chosen = self.augmentation.silence(chosen, rng)
            plan = list(batches(chosen, recipe.batch_seconds, rng, by_length=self.epoch == 0 and self.shortest_first))
            if len(plan) < workers.size:
                raise ValueError(f"expected a batch for each of {workers.size} workers, found {len(plan)}")
            plan = plan[workers.rank :: workers.size]
            self.length = len(plan)
            self.position = min(self.position, self.length)  # there may have been more to hear in the last call
            bar = tqdm(plan[self.position :], desc=f"epoch {self.epoch}", unit="batch", mininterval=10)
            for group in bar:
                loss = self.learn(group, np.random.default_rng((recipe.seed, self.epoch, workers.rank, self.position)))
                self.position += 1
                self.elapsed = time.monotonic() - started
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if (self.step == 1 or self.step % 20 == 0) and workers.rank == 0:
                    self.note({"loss": round(loss, 4), "lr": self.optimizers[0].param_groups[0]["lr"]})
                if workers.size == 1 or time.monotonic() - met > MEET_SECONDS or self.progress() >= 1:
                    self.meet()
                    if workers.rank == 0 and time.monotonic() - saved > SAVE_SECONDS:
                        self.save()
                        saved, scored = time.monotonic(), self.step
                    stop = self.progress() >= 1 or (0 < recipe.patience <= self.stale)
                    done = workers.sum(stop and workers.rank == 0) != [0]
                    met = time.monotonic()
                if done:
                    break
            if self.position == self.length:
                self.epoch, self.position = self.epoch + 1, 0
        if workers.rank == 0:
            if self.step > scored:
                self.save()
            if recipe.patience and self.best[0] < math.inf:
                log.info("kept the best weights, of %.1f %% WER", self.best[0])
                self.averaged.load_state_dict(self.best[1])
                self.write()

    def meet(self) -> None:
        """Take the mean of all workers' weights into this worker's, and into the moving average."""
        steps, seconds = self.alone
        self.workers.merge(self.network.state_dict(), steps)
        all_steps, all_seconds = self.workers.sum(steps, seconds)
        self.step += int(all_steps) - steps
        self.heard += all_seconds - seconds
        self.alone = 0, 0.0
        decay = min(self.recipe.average, self.step / (self.step + 10)) ** all_steps
        with torch.no_grad():
            for mean, new in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
                mean.lerp_(new, 1 - decay) if mean.is_floating_point() else mean.copy_(new)

    def learn(self, group: Sequence[Clip], rng: np.random.Generator) -> float:
        """One step of both optimisers on one batch; gives the loss."""
        recipe, augmentation = self.recipe, self.augmentation
        spectrograms = []
        for clip in group:
            sound = augmentation.sound(from_pcm16(np.asarray(clip.samples)).samples, rng, speech=bool(clip.text))
            sound = np.pad(sound, (0, max(0, FRAME_LENGTH - len(sound))))  # it may have become shorter
            frames = augmentation.vocal_tract(spectrogram(Waveform(sound)).frames, rng)
            masked = self.epoch >= recipe.mask_from_epoch
            spectrograms.append(Spectrogram(augmentation.masked(frames, rng) if masked else frames))
        rate = 0.5 * (1 + math.cos(math.pi * self.progress())) * min(1.0, (self.step + 1) / recipe.warmup_steps)
        for parameters in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            parameters["lr"] = recipe.learning_rate * rate
        for parameter in self.network.front_parameters():
            parameter.requires_grad_(self.step % recipe.conv_every == 0)
        torch.manual_seed(int(rng.integers(2**63)))  # of dropout
        loss = ctc_loss(self.network, *pad(spectrograms), [clip.text for clip in group], self.alphabet,
                        self.mmi, recipe.mmi)  # fmt: skip
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        seconds = sum(clip.seconds for clip in group)
        self.step, self.heard = self.step + 1, self.heard + seconds
        self.alone = self.alone[0] + 1, self.alone[1] + seconds
        return loss.item()

    def note(self, row: dict[str, float]) -> None:
        """Append a line to log.csv: where the run is, and one measured value each."""
        file = self.out / "log.csv"
        new = not file.exists()
        with file.open("a", newline="") as lines:
            writer = csv.writer(lines)
            if new:
                writer.writerow(["step", "epoch", "elapsed_s", "heard_h", "name", "value"])
            for name, value in row.items():
                where = [self.step, self.epoch, round(self.elapsed), round(self.heard / 3600, 3)]
                writer.writerow([*where, name, value])
                if self.curves:
                    self.curves.add_scalar(name, value, self.step)

    def save(self) -> None:
        """Write the checkpoint, score on dev, and write what patience makes of it."""
        self.write()
        rates = error_rates(self.averaged, self.dev, self.alphabet)
        mean = sum(wer for wer, _ in rates.values()) / len(rates) if rates else math.inf
        self.stale += bool(rates)
        if self.recipe.patience and mean < self.best[0]:
            self.stale, self.best = 0, (mean, {k: v.clone() for k, v in self.averaged.state_dict().items()})
        for name, (wer, cer) in rates.items():
            self.note({f"wer_{name}": round(wer, 2), f"cer_{name}": round(cer, 2)})
        log.info("step %d, %.2f h heard, greedily: %s", self.step, self.heard / 3600,
                 ", ".join(f"{name} WER {wer:.1f} CER {cer:.1f}" for name, (wer, cer) in rates.items()))  # fmt: skip
        if self.recipe.patience:
            self.write()

    def write(self) -> None:
        """Write the checkpoint in one move."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.step, self.epoch, self.elapsed, self.heard, self.position, self.length),
        }
        if self.recipe.patience:
            state["patience"] = self.stale, self.best
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)


def _tensorboard(out: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit("--tensorboard: expected the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(out / "tensorboard")


def _repeats(values: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(times) for name, _, times in (value.partition("=") for value in values)}
    except ValueError:
        raise ValueError(f"--repeat: expected CORPUS=TIMES, found {' '.join(values)}") from None


def _device(name: str) -> torch.device:
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name}: {str(error).splitlines()[0]}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="manifest CSV, LJSpeech or LibriSpeech")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoint, log, curves, model")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    parser.add_argument(
        "--init", type=Path, help="folder of a model of the same size to start from, language model and all"
    )
    parser.add_argument("--mmi-lm", type=Path, help="language model for --mmi, which has not read the texts of DATA")
    parser.add_argument("--repeat", nargs="*", default=[], metavar="CORPUS=TIMES", help="weight of a corpus")
    parser.add_argument(
        "--tensorboard", action="store_true", help="curves for TensorBoard in the folder of the run too"
    )
    parser.add_argument("--device", type=_device, help="of PyTorch; default: cuda if there is one, else cpu")
    parser.add_argument("--no-publish", action="store_true", help="write the checkpoint only")
    for name, kind in Recipe.__annotations__.items():
        if name != "repeat":
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=Recipe.__dataclass_fields__[name].default)
    add_arguments(parser)
    return parser


def _prepare(given: argparse.Namespace, command: str) -> tuple[Trainer, list[Clip], list[Clip]]:
    """The run that the arguments describe, and its clips of the splits train and dev; ``command`` is remembered.

    Raises:
        SpeechError, OSError, ValueError: what is given cannot be used.
    """
    values = {name: getattr(given, name) for name in Recipe.__annotations__ if name != "repeat"}
    recipe = Recipe(**values, repeat=_repeats(given.repeat))
    mmi = NBestMMI.of(given.init, given.mmi_lm) if recipe.mmi else None
    workers, augmentation = Workers(), Augmentation.of(given)
    for turn in (True, False):  # the first fills the cache, the others read it
        if turn == (workers.rank == 0):
            train, dev = load_splits(given.data, given.cache)
        workers.sum(0)
    short = [c for c in train if c.seconds <= recipe.max_seconds]
    if len(short) < len(train):
        log.warning("left out %d clips longer than --max-seconds %g", len(train) - len(short), recipe.max_seconds)
    heard = [c for c in short if recipe.repeat.get(c.utterance.corpus, 1)]
    if not heard:
        raise ValueError(f"expected clips to train on in {' '.join(map(str, given.data))}, found none that can be used")
    if recipe.patience and not dev:
        raise ValueError("--patience: expected clips of the split dev, found none")
    if unknown := set(recipe.repeat) - {c.utterance.corpus for c in train}:
        raise ValueError(f"--repeat: expected corpora of the data, found {', '.join(sorted(unknown))}")
    if (given.out / WEIGHTS).exists() and not (given.out / "checkpoint.pt").exists():
        raise ValueError(
            f"expected a new folder or one with checkpoint.pt as --out, found a model alone in {given.out}, which "
            "would be overwritten: --init goes on from it, into another folder"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    curves = _tensorboard(given.out) if given.tensorboard and workers.rank == 0 else None
    device = given.device or workers.device(torch.cuda.device_count())
    trainer = Trainer(recipe, short, dev, given.out, workers, augmentation, curves, device, mmi)
    trainer.shortest_first = not given.init
    file, before, data = given.out / RECIPE, {}, credits_of(heard)
    if given.init and trainer.step == 0:
        trainer.start_from(given.init)
        before = of_model(given.init)
    elif given.init:
        log.info("--init is not looked at: the run goes on from its checkpoint")
    if workers.rank == 0:
        if trainer.step and file.exists():
            last = json.loads(file.read_text(encoding="utf-8"))
            before, data = last.get("before", {}), more(last.get("data", {}), data)
            command = lines(last.get("command", ""), command)
        written = {**asdict(recipe), "augmentation": asdict(augmentation)}
        written |= {"command": command, "data": data, "before": before}
        file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return trainer, short, dev


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.mmi and not (given.init and given.mmi_lm):
        parser.error("--mmi: expected --init and --mmi-lm, for the search that it learns from")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command = shlex.join(["python", "-m", "training.train", *(arguments or sys.argv[1:])])
    with one_line(parser):
        trainer, train, dev = _prepare(given, command)
    if threading.current_thread() is threading.main_thread():  # Ray calls this in another one
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        trainer.run()
    except KeyboardInterrupt:
        if trainer.workers.rank == 0:
            trainer.write()
        parser.exit(INTERRUPTED, f"{parser.prog}: stopped; the same command goes on from here\n")
    trainer.workers.part()
    if not given.no_publish and trainer.workers.rank == 0:
        from training.publish import publish, table

        with one_line(parser):
            rates = table(publish(given.out, train, dev))
        served = all((given.out / name).exists() for name in (LANGUAGE_MODEL, OPTIONS))
        print("greedily decoded" + (", but it is served with beam search: training.evaluate measures both" * served))
        print(rates)


if __name__ == "__main__":
    main()
