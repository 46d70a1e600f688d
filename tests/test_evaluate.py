"""Scoring: against jiwer, and through the service's own predictor."""

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from tests.conftest import make_sound
from training.evaluate import Result, by_corpus, main, rates, table

SAID = ["the cat sat", "on the mat", "and slept", "a b c d e f"]
HEARD = ["the cat sat", "on mat", "end slept well", ""]


def results() -> list[Result]:
    corpora = ("one", "one", "two", "two")
    return [Result(str(i), c, "", 1.5, s, h) for i, (c, s, h) in enumerate(zip(corpora, SAID, HEARD, strict=True))]


def test_rates_are_jiwers():
    found = rates(results())
    assert found.wer == pytest.approx(100 * jiwer.wer(SAID, HEARD), abs=0.01)
    assert found.cer == pytest.approx(100 * jiwer.cer(SAID, HEARD), abs=0.01)
    assert (found.clips, found.seconds) == (4, 6.0)
    assert found.wer_interval[0] <= found.wer <= found.wer_interval[1]


def test_the_interval_covers_what_resampling_gives():
    many = [Result(str(i), "x", "", 1.0, "a b", "a b" if i % 2 else "a c") for i in range(400)]
    low, high = rates(many).wer_interval
    assert low == pytest.approx(25 - 2.45, abs=0.6)  # 1.96 · 25 % · 1 / √400, in percent
    assert high == pytest.approx(25 + 2.45, abs=0.6)


def test_each_corpus_and_all():
    groups = by_corpus(results())
    assert list(groups) == ["one", "two", "all"]
    assert groups["one"].wer == pytest.approx(100 / 6, abs=0.01)
    assert "| one | 2 | 3 s | 16.7 (" in table(groups)


def test_the_command_line_scores_a_folder(tiny_model: Path, tmp_path: Path, capsys):
    rows = ["path,text,split"]
    for i, split in enumerate(("dev", "dev", "train")):
        soundfile.write(tmp_path / f"{i}.wav", np.repeat(make_sound(0.5, i), 2), 44100)
        rows.append(f"{i}.wav,what was said,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    main([str(tiny_model), str(tmp_path), "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert [u["reference"] for u in written["utterances"]] == ["what was said"] * 2
    assert written["rates"][tmp_path.name]["clips"] == 2
    assert "said:  what was said" in capsys.readouterr().out


def test_no_utterances_and_no_model_are_one_line(tiny_model: Path, tmp_path: Path, capsys):
    (tmp_path / "manifest.csv").write_text("path,text,split\nx.wav,a,train\n")
    for arguments in (
        [str(tiny_model), str(tmp_path)],
        [str(tmp_path / "none"), str(tmp_path)],
        [str(tiny_model), "/none"],
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("python -m training.evaluate: expected")
