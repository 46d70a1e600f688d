"""What each augmentation is worth: ``python -m benchmarks.worth DATA --out FOLDER``.

From the weights of one model, the same clips once, changed by one kind alone; then greedy word error rates of ``dev``,
as recorded and under conditions, in percent. Takes some six minutes of one core for each kind.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.augment import OFF
from benchmarks.common import parser, report, where
from speech.alphabet import Alphabet
from speech.model_card import read_card
from training.augment import Augmentation
from training.conditions import apply, conditions
from training.dataset import Clip
from training.train import Recipe, Trainer, error_rates, load_splits

KINDS = {
    "nothing": OFF,
    "speed": replace(OFF, speed_probability=0.8, speed_range=0.15),
    "SpecAugment": replace(OFF, frequency_masks=2, frequency_mask_bins=40, time_masks=3, time_mask_frames=45),
    "reverb": replace(OFF, reverb_probability=0.5),
    "telephone": replace(OFF, telephone_probability=0.5),
    "background": replace(OFF, background_probability=0.5),
    "tilt": replace(OFF, tilt_probability=0.5),
    "noise": replace(OFF, noise_probability=0.5),
    "pitch": replace(OFF, pitch_probability=0.5),
    "vocal tract": replace(OFF, vocal_tract_probability=0.7),
    "codec": replace(OFF, codec_probability=0.5),
    "join": replace(OFF, join_probability=0.3),
    "trim": replace(OFF, trim_probability=0.5),
    "gain": replace(OFF, gain_probability=0.5),
}
CONDITIONS = "white noise, 10 dB", "babble, 20 dB", "room, reverberation 0.3 s", "telephone, 300–3400 Hz"
MADE = "made speech"  # of training.synthesize: takes the place of three tenths of the clips


def some(clips: Sequence[Clip], minutes: float) -> list[Clip]:
    """Clips chosen by lot, together so long."""
    chosen, seconds = [], 0.0
    for i in np.random.default_rng(0).permutation(len(clips)):
        if seconds < 60 * minutes:
            chosen.append(clips[int(i)])
            seconds += clips[int(i)].seconds
    return chosen


def taught(model: Path, train: Sequence[Clip], kind: Augmentation, recipe: Recipe, out: Path) -> Trainer:
    """One more epoch of a model; its checkpoint lies in ``out`` and is not made again."""
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, train, [], out, augmentation=kind)
    trainer.shortest_first = False
    if not trainer.step:
        trainer.start_from(model)
    trainer.run()
    return trainer


def rates(trainer: Trainer, dev: Sequence[Clip]) -> dict[str, float]:
    """Greedy word error rates by corpus, and of all clips under conditions."""
    found = {}
    for corpus, (wer, cer) in error_rates(trainer.averaged, dev, Alphabet()).items():
        found[corpus], found[f"{corpus} CER"] = wer, cer
    ways = conditions([clip.samples for clip in dev])
    for name in CONDITIONS:
        heard = []
        for clip in dev:
            changed = apply(ways[name], clip.samples, clip.utterance.id)
            heard.append(replace(clip, utterance=replace(clip.utterance, corpus=name), samples=changed))
        found[name] = error_rates(trainer.averaged, heard, Alphabet())[name][0]
    return found


def main() -> None:
    """The command line."""
    arguments = parser("worth", __doc__)
    arguments.add_argument("data", type=Path, nargs="+", help="as of training.train")
    arguments.add_argument("--out", type=Path, required=True, help="a folder for checkpoints; what is there is kept")
    arguments.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    arguments.add_argument("--minutes", type=float, default=60.0, help="of sound that each kind learns from")
    arguments.add_argument("--learning-rate", type=float, default=1e-3)
    arguments.add_argument("--corpora", nargs="*", help="learn from these only")
    arguments.add_argument("--kinds", nargs="*", default=list(KINDS), choices=[*KINDS, MADE])
    arguments.add_argument("--made", type=Path, help=f"a folder of training.synthesize, for the kind {MADE!r}")
    given = arguments.parse_args()
    if MADE in given.kinds and not given.made:
        arguments.error(f"{MADE}: expected its folder as --made")
    logging.basicConfig(level=logging.WARNING)
    card = read_card(given.model)
    recipe = Recipe(
        card.rnn_layers, card.rnn_units, learning_rate=given.learning_rate, warmup_steps=20, batch_seconds=60, epochs=1,
        average=0.98, mask_from_epoch=0, conv_every=3,
    )  # fmt: skip
    everything, dev = load_splits(given.data, given.cache)
    fit = [c for c in everything if c.seconds <= recipe.max_seconds]
    train = some([c for c in fit if not given.corpora or c.utterance.corpus in given.corpora], given.minutes)
    given.out.mkdir(parents=True, exist_ok=True)
    untaught = Trainer(recipe, train, [], given.out)
    untaught.start_from(given.model)
    rows = [{"kind": "before", **rates(untaught, dev)}]
    for kind in given.kinds:
        learnt = train
        if kind == MADE:
            made, _ = load_splits([given.made], given.cache)
            learnt = some(train, 0.7 * given.minutes) + some(made, 0.3 * given.minutes)
        trainer = taught(given.model, learnt, KINDS.get(kind, OFF), recipe, given.out / kind.replace(" ", "_"))
        rows.append({"kind": kind, **rates(trainer, dev)})
        print(json.dumps(rows[-1]), flush=True)
    report({"where": where(), "minutes": given.minutes}, rows, given.json)


if __name__ == "__main__":
    main()
