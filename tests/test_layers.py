"""The arrow points down: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each file of the service may import the project's files named here, and no others.
ALLOWED = {
    "config": set(),
    "custom_logger": {"config"},
    "predictor": {"config", "speech"},
    "metrics": set(),
    "web_page": {"config"},
    "live_api": {"custom_logger", "openai_errors", "responses", "service", "speech"},
    "service": {"config", "metrics", "predictor", "speech"},
    "responses": {"custom_logger", "service", "speech"},
    "gate": {"responses", "service", "speech"},
    "openai_errors": set(),
    "connections": {"responses"},
    "auth": {"config", "custom_logger", "gate", "responses"},
    "openai_api": {"custom_logger", "openai_errors", "responses", "service", "speech"},
    "api": {
        "auth",
        "config",
        "connections",
        "custom_logger",
        "gate",
        "live_api",
        "metrics",
        "openai_api",
        "openai_errors",
        "predictor",
        "responses",
        "service",
        "speech",
        "web_page",
    },
    "speech.__init__": set(),
    "speech.__main__": {"config", "predictor", "speech"},  # a tool: nothing imports it
    "speech.errors": set(),
    "speech.alphabet": set(),
    "speech.audio": {"speech.errors"},
    "speech.features": {"speech.audio", "speech.errors"},
    "speech.ctc": {"speech.alphabet", "speech.features"},
    "speech.containers": set(),
    "speech.formats": {"speech.audio", "speech.containers", "speech.errors"},
    "speech.streaming": {"speech.audio", "speech.ctc", "speech.errors", "speech.features"},
    "speech.segments": {"speech.ctc"},
    "speech.pauses": {"speech.audio", "speech.ctc"},
    "speech.subtitles": {"speech.ctc", "speech.segments"},
    "speech.model_card": {"speech.alphabet", "speech.audio", "speech.features", "speech.errors"},
    "speech.model": {"speech.alphabet", "speech.features", "speech.errors"},
    "speech.beam": {
        "speech.alphabet",
        "speech.ctc",
        "speech.errors",
        "speech.language_model",
        "speech.search",
        "speech.spelling",
    },
    "speech.search": {"speech.language_model", "speech.spelling"},
    "speech.spelling": {"speech.alphabet", "speech.hot_words", "speech.language_model"},
    "speech.language_model": {"speech.errors"},
    "speech.hot_words": {"speech.alphabet", "speech.language_model"},
    "speech.engine": {"speech.model_card", "speech.model", "speech.errors"},
    "speech.batching": {"speech.errors"},
}
OURS = {path.stem for path in ROOT.glob("*.py")} | {"speech", "training", "benchmarks"}
HEAVY = {"tensorflow", "keras", "torch", "onnxruntime", "onnx"}


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *(ROOT / "speech").rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def imports(file: Path, everywhere: bool = True) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            found |= {f"speech.{alias.name}" for alias in node.names} if node.module == "speech" else {node.module}
    return found


def test_every_file_is_listed():
    assert set(modules()) == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_imports_point_down(module: str):
    ours = {name for name in imports(modules()[module]) if name.partition(".")[0] in OURS}
    if "speech" in ALLOWED[module]:
        ours = {"speech" if name.startswith("speech.") else name for name in ours}
    assert ours <= ALLOWED[module]


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_importing_a_module_loads_nothing_heavy(module: str):
    assert not {name.partition(".")[0] for name in imports(modules()[module], everywhere=False)} & HEAVY


def test_only_tools_import_tools():
    for module, file in modules().items():
        assert not {name.partition(".")[0] for name in imports(file)} & {"training", "benchmarks"}, module
