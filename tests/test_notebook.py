"""The training notebook, executed as a reader would, on a tiny corpus of made-up speech and with a tiny network."""

import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from predictor import SpeechPredictor
from tests.conftest import make_sound
from training.synthesize import main as synthesize

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "SpeechToTextModel.ipynb"
LINES = [
    "The first of the three men spoke.",
    "Nothing was heard of him.",
    "She opened the window.",
    "It rained in May.",
]


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    """The notebook as it is committed."""
    return nbformat.read(NOTEBOOK, as_version=4)


def test_what_is_committed_is_valid_and_without_outputs(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.filterwarnings("default")  # those of Jupyter's client are its own
def test_it_runs_from_top_to_bottom(notebook: nbformat.NotebookNode, tmp_path: Path):
    assert shutil.which("espeak-ng"), "this test needs a speech engine: apt-get install -y espeak-ng"
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    corpus, run = tmp_path / "made", tmp_path / "runs" / "tiny"
    synthesize([str(text), "--out", str(corpus), "--clips", "8", "--dev", "0.25", "--engines", "espeak-ng"])
    run.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes(b"of another run")  # LOAD_CHECKPOINT is False: nobody reads it

    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    settings = (
        f"NAME, DATA, CHECKPOINTS, MODELS = 'tiny', Path({str(corpus)!r}), Path({str(run.parent)!r}),"
        f" Path({str(tmp_path / 'Models')!r})\n"
        "LOAD_CHECKPOINT, EPOCHS, RNN_LAYERS, RNN_UNITS = False, 1, 1, 8\n"
        f"OPTIONS = ['--cache', {str(tmp_path / 'cache')!r}]"
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(settings))
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()

    printed = {cell.id: "".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in notebook.cells}
    assert printed["data"].startswith("8 recordings")
    assert printed["examples"].count("heard:") == 2
    (picture,) = next(cell for cell in notebook.cells if cell.id == "curves").outputs
    assert "image/png" in picture.data
    model = tmp_path / "Models" / "tiny"
    assert not (model / "checkpoint.pt").exists()
    assert isinstance(SpeechPredictor.load(model).transcribe(make_sound(1.0) / np.float32(32768)).text, str)
