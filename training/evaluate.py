"""How well a model hears: ``python -m training.evaluate MODEL DATA``.

Every recording goes through the service's own `SpeechPredictor`, decoded and resampled to what a client would upload:
through the network once, and from there through each decoder.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from predictor import SpeechPredictor
from speech.audio import from_pcm16
from speech.engine import LOADERS, Engine, Frames, Lengths
from training.command import one_line
from training.conditions import Condition, apply, conditions, signal_to_noise
from training.dataset import Clip, load_clips, read_utterances
from training.report import Evaluation, plot, worst, write_report
from training.scores import Result

BATCH = 8  # clips


log = logging.getLogger("training.evaluate")


def load_decoders(folder: Path, engine: str = "auto", decoder: str = "both") -> dict[str, SpeechPredictor]:
    """The service's predictor by the name of its decoder; ``both``: if it is beam search, after a greedy one that
    shares its network.

    Raises:
        SpeechError: the model cannot be used.
    """
    served = SpeechPredictor.load(folder, engine, decoder="auto" if decoder == "both" else decoder)
    if not served.takes_hot_words:
        return {"greedy": served}
    if decoder != "both":
        return {decoder: served}
    served.engine = once(served.engine)
    return {"greedy": SpeechPredictor(served.engine, served.alphabet, served.name), "beam": served}


def once(engine: Engine) -> Engine:
    """An engine that, asked the same a second time in a row, gives its answer again."""
    asked: list[np.ndarray] = []

    def run(frames: Frames, n_frames: Lengths) -> Frames:
        if not asked or not (np.array_equal(asked[0], frames) and np.array_equal(asked[1], n_frames)):
            asked[:] = frames, n_frames, engine(frames, n_frames)
        return asked[2]

    return run


def transcribe_clips(
    decoders: Mapping[str, SpeechPredictor], clips: Sequence[Clip], condition: Condition | None = None, name: str = ""
) -> dict[str, list[Result]]:
    """What each decoder hears in each clip, shortest first, under a condition if one is given."""
    ordered = sorted(clips, key=lambda clip: clip.seconds)
    heard: dict[str, list[Result]] = {decoder: [] for decoder in decoders}
    for start in tqdm(range(0, len(ordered), BATCH), desc=name or "transcribing", unit="batch"):
        group = ordered[start : start + BATCH]
        sounds = [np.asarray(clip.samples) for clip in group]
        if condition:
            sounds = [apply(condition, s, c.utterance.id) for s, c in zip(sounds, group, strict=True)]
        waveforms = [from_pcm16(sound) for sound in sounds]
        ratios = [round(signal_to_noise(waveform.samples), 1) for waveform in waveforms]
        for decoder, predictor in decoders.items():
            for clip, snr, transcript in zip(group, ratios, predictor.transcribe_batch(waveforms), strict=True):
                u = clip.utterance
                result = Result(u.id, u.corpus, u.speaker, clip.seconds, snr, u.text, transcript.text)
                heard[decoder].append(result)
    return heard


def load(data: Iterable[Path], split: str, cache: Path) -> list[Clip]:
    """The clips of a split of the data, and those that name no split; '' for all.

    Raises:
        FileNotFoundError: a source is not there, or no such clip.
    """
    utterances = [u for source in data for u in read_utterances(source)]
    chosen = [u for u in utterances if not split or u.split in (split, "")]
    clips = load_clips(chosen, cache) if chosen else []
    if split and (unnamed := sum(not u.split for u in chosen)):
        log.warning(
            "%d of these utterances name no split: if the model has learnt from them, it looks too good", unnamed
        )
    if not clips:
        raise FileNotFoundError(f"expected utterances of split {split!r} that can be read, found none")
    return clips


def evaluate(decoders: Mapping[str, SpeechPredictor], clips: Sequence[Clip], degraded: bool) -> Evaluation:
    """Transcribe the clips as they are, and if asked under every condition."""
    clean = transcribe_clips(decoders, clips)
    others = conditions([clip.samples for clip in clips]) if degraded else {}
    return Evaluation.of(clean, {name: transcribe_clips(decoders, clips, c, name) for name, c in others.items()})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, such as Models/NAME")
    parser.add_argument("data", type=Path, nargs="+", help="manifest CSV, LJSpeech or LibriSpeech folder")
    parser.add_argument("--split", default="dev", help="rows of a manifest to use (default: dev; '' for all)")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    parser.add_argument("--engine", default="auto", choices=["auto", *LOADERS], help="as STT_ENGINE")
    parser.add_argument("--decoder", default="both", choices=["both", "greedy", "beam"], help="default: what it has")
    parser.add_argument("--conditions", action="store_true", help="again with noise, telephone, rooms, other speeds")
    parser.add_argument("--show", type=int, default=5, help="print so many of the worst utterances")
    parser.add_argument("--json", type=Path, help="write rates and utterances to this file")
    parser.add_argument("--plot", type=Path, help="write a picture to this PNG file")
    parser.add_argument("--report", action="store_true", help="write evaluation.md and .png into the model's folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with one_line(parser):
        for file in filter(None, (given.json, given.plot)):
            file.parent.mkdir(parents=True, exist_ok=True)  # an hour later would be too late
            if file.is_dir():
                raise IsADirectoryError(f"expected a file to write, found the folder {file}")
        if given.plot and given.plot.suffix.lower() != ".png":
            raise ValueError(f"expected a name that ends with .png for --plot, found {given.plot}")
        clips = load(given.data, given.split, given.cache)
        decoders = load_decoders(given.model, given.engine, given.decoder)
    found = evaluate(decoders, clips, given.conditions)
    print("\n\n".join(found.tables().values()))
    last = [*found.clean.values()][-1]
    for r in worst(last)[: given.show]:
        print(f"\n{r.id}\n  said:  {r.reference}\n  heard: {r.hypothesis}")
    if given.json:
        given.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
    if given.plot:
        plot(found, given.plot)
    if given.report:
        chosen = [f"--{name} {vars(given)[name]!r}" for name in ("split", "decoder", "engine")
                  if vars(given)[name] != parser.get_default(name)]  # fmt: skip
        flags = [*chosen, *["--conditions"] * given.conditions, "--report"]
        write_report(found, given.model, f"{parser.prog} Models/{given.model.name} DATA {' '.join(flags)}")


if __name__ == "__main__":
    main()
