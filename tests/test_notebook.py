"""The training notebook, executed as a reader would, on a tiny corpus of made-up speech and with a tiny network."""

import hashlib
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


def test_the_recordings_are_downloaded_checked_and_unpacked(notebook: nbformat.NotebookNode, tmp_path: Path):
    """The cell as it is, but for another address and another sum."""
    corpus = tmp_path / "LJSpeech-1.1"
    (corpus / "wavs").mkdir(parents=True)
    (corpus / "metadata.csv").write_text("LJ001-0001|Printing|Printing\n", encoding="utf-8")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "corpus.tar.bz2", "w:bz2") as tar:
        tar.add(corpus, corpus.name)
    right = hashlib.sha256((served / "corpus.tar.bz2").read_bytes()).hexdigest()
    (cell,) = [cell for cell in notebook.cells if cell.id == "download"]
    head, _, rest = cell.source.partition("\n\nif ")
    assert "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2" in head
    imports = "\n".join(line for line in head.splitlines() if line.startswith("import"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/corpus.tar.bz2"
        names = {"DATA": tmp_path / "Data" / "LJSpeech-1.1", "LJSPEECH": address, "SHA256": "0" * 64, "Path": Path}
        with pytest.raises(ValueError, match=f"expected SHA-256 0+, found {right}"):
            exec(f"{imports}\nif {rest}", names)
        assert not names["DATA"].exists()
        exec(f"{imports}\nif {rest}", names | {"SHA256": right})
        server.shutdown()
    assert [file.name for file in names["DATA"].parent.iterdir()] == ["LJSpeech-1.1"]  # nothing else is left
    assert (names["DATA"] / "metadata.csv").read_text(encoding="utf-8").startswith("LJ001-0001|")


@pytest.mark.filterwarnings("default")  # those of Jupyter's client are its own
def test_it_runs_from_top_to_bottom(notebook: nbformat.NotebookNode, tmp_path: Path):
    assert shutil.which("espeak-ng"), "this test needs a speech engine: apt-get install -y espeak-ng"
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    corpus, run = tmp_path / "made", tmp_path / "runs" / "tiny"
    synthesize([str(text), "--out", str(corpus), "--clips", "8", "--dev", "0.25", "--engines", "espeak-ng"])
    run.mkdir(parents=True)
    for name in ("checkpoint.pt", "model.keras", "card.json"):
        (run / name).write_bytes(b"of another run")  # LOAD_CHECKPOINT is False: nobody reads it

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
