"""The mean of checkpoints."""

from pathlib import Path

import pytest
import torch

from training.average import main, mean
from training.publish import write_weights
from training.torch_model import Network


def checkpoint(folder: Path, value: float, steps: int, size: int = 2) -> str:
    folder.mkdir()
    file = folder / "checkpoint.pt"
    network = {"w": torch.full((size, 3), value), "count": torch.tensor(steps)}
    torch.save({"network": {}, "averaged": network, "progress": (steps, 1, 2.0, 3.0, 0, 1)}, file)
    return str(file)


def test_checkpoints_are_averaged_by_their_weights(tmp_path: Path):
    files = [checkpoint(tmp_path / "a", 1.0, 10), checkpoint(tmp_path / "b", 5.0, 20)]
    (tmp_path / "b" / "log.csv").write_text("step")
    main([*files, "--weights", "0.25", "0.75", "--out", str(tmp_path / "both")])
    assert (tmp_path / "both" / "log.csv").read_text() == "step"
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


def test_a_model_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its language model and weights of the search would be those of another."""
    good = checkpoint(tmp_path / "a", 1.0, 1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.keras").write_bytes(b"")
    with pytest.raises(SystemExit, match="1"):
        main([good, good, "--out", str(tmp_path / "model")])
    assert "without model.keras" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["model.keras"]


def test_what_is_no_checkpoint_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = checkpoint(tmp_path / "a", 1.0, 1)
    junk, other = tmp_path / "junk.pt", tmp_path / "other.pt"
    junk.write_bytes(b"no checkpoint")
    torch.save({"some": "thing"}, other)
    for bad in (junk, other, tmp_path / "missing.pt", tmp_path):
        with pytest.raises(SystemExit, match="1"):
            main([str(bad), good, "--out", str(tmp_path / "c")])
        (line,) = capsys.readouterr().err.splitlines()
        assert str(bad) in line
    with pytest.raises(SystemExit, match="1"):
        main([good, good, "--weights", "nan", "1", "--out", str(tmp_path / "c")])
    with pytest.raises(SystemExit, match="1"):
        main([good, good, "--out", str(tmp_path / "a")])
    assert "found one in" in capsys.readouterr().err


def test_a_model_is_averaged_with_what_was_trained_on_from_it(tmp_path: Path):
    torch.manual_seed(0)
    networks = Network(32, 1, 4, 0.0), Network(32, 1, 4, 0.0)
    (tmp_path / "model").mkdir()
    write_weights(networks[0].keras_weights(), 1, 4, tmp_path / "model")
    state = {"network": {}, "averaged": networks[1].state_dict(), "progress": (9, 1, 2.0, 3.0, 0, 1)}
    torch.save(state, tmp_path / "after.pt")
    main(
        [str(tmp_path / "model"), str(tmp_path / "after.pt"), "--weights", "0.25", "0.75", "--out", str(tmp_path / "c")]
    )
    found = torch.load(tmp_path / "c" / "checkpoint.pt", weights_only=True)
    for name, value in found["averaged"].items():
        if value.is_floating_point():
            before, after = (network.state_dict()[name] for network in networks)
            assert torch.allclose(value, 0.25 * before + 0.75 * after, atol=1e-3)
    assert found["progress"][0] == 9
