"""The mean of checkpoints."""

from pathlib import Path

import pytest
import torch

from training.average import main, mean


def checkpoint(folder: Path, value: float, steps: int, size: int = 2) -> str:
    folder.mkdir()
    file = folder / "checkpoint.pt"
    network = {"w": torch.full((size, 3), value), "count": torch.tensor(steps)}
    torch.save({"network": {}, "averaged": network, "progress": (steps, 1, 2.0, 3.0, 0, 1)}, file)
    return str(file)


def test_checkpoints_are_averaged_by_their_weights(tmp_path: Path):
    files = [checkpoint(tmp_path / "a", 1.0, 10), checkpoint(tmp_path / "b", 5.0, 20)]
    main([*files, "--weights", "0.25", "0.75", "--out", str(tmp_path / "both")])
    found = torch.load(tmp_path / "both" / "checkpoint.pt", weights_only=True)
    assert torch.equal(found["averaged"]["w"], torch.full((2, 3), 4.0))
    assert int(found["averaged"]["count"]) == 20
    assert torch.equal(found["network"]["w"], found["averaged"]["w"])
    assert found["progress"][0] == 20


def test_without_weights_all_count_the_same():
    networks = [{"w": torch.tensor([value])} for value in (1.0, 2.0, 6.0)]
    assert mean(networks, [1 / 3] * 3)["w"].item() == pytest.approx(3.0)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small, large = checkpoint(tmp_path / "a", 1.0, 1), checkpoint(tmp_path / "b", 1.0, 1, size=3)
    for given in ([small, large], [small, small, "--weights", "0.5", "0.6"], [small, small, "--weights", "1"]):
        with pytest.raises(SystemExit):
            main([*given, "--out", str(tmp_path / "c")])
        assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
