"""The documentation says what the code does."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from starlette.testclient import TestClient

from tests.test_server import Process

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "Models").glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / link if link else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), f"{link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_of_the_service_is_in_the_table():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)}
    files = {str(file.relative_to(ROOT)) for file in (*ROOT.glob("*.py"), *(ROOT / "speech").glob("*.py"))}
    assert listed == files - {"speech/__init__.py"}


def test_every_error_of_the_api_is_in_its_table(client: TestClient):
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = {
        (int(status), code)
        for statuses, codes in re.findall(r"^\| (\d{3}[\d, ]*) \| (`[^|]+`) \|", text, re.MULTILINE)
        for status in statuses.split(", ")
        for code in re.findall(r"`(\w+)`", codes)
    }
    paths = client.get("/openapi.json").json()["paths"]
    documented = {
        (int(status), code)
        for path in paths.values()
        for operation in path.values()
        for status, response in operation["responses"].items()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert documented
    assert documented <= rows


def test_commands_of_the_docs_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for module in set(re.findall(r"python -m (training\.\w+)", text)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for variable in set(re.findall(r"\bSTT_[A-Z_]+\b", text)):
        assert f"`{variable}`" in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), variable


CURLS = sorted(
    {line for page in PAGES for line in re.findall(r"^(?:\$ )?(curl .*)$", page.read_text("utf-8"), re.MULTILINE)}
)
ADDRESS = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    started = Process(tmp_path_factory.mktemp("docs"), STT_API_KEYS="the-key")
    yield started
    started.stop()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the files that the examples name."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    samples, rate = soundfile.read(ROOT / "samples" / "hello.wav")
    soundfile.write(tmp_path / "hello.ogg", samples, rate)
    return tmp_path


def address(server: Process) -> str:
    return server.url.removeprefix("http://")


@pytest.mark.parametrize("curl", CURLS)
def test_every_curl_works(server: Process, here: Path, curl: str):
    key = "" if "Authorization" in curl else "-H 'Authorization: Bearer the-key'"
    command = f"{curl.replace(ADDRESS, address(server))} {key} --fail-with-body --silent --show-error --max-time 60"
    done = subprocess.run(
        command, shell=True, cwd=here, env={**os.environ, "STT_API_KEY": "the-key"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stdout
    assert done.stdout.strip()


def test_every_endpoint_has_a_curl(client: TestClient):
    called = {"/" + curl.partition(f"{ADDRESS}/")[2] for curl in CURLS}
    for path in client.get("/openapi.json").json()["paths"]:
        pattern = re.sub(r"{.*?}", "[^{}]+", path)
        assert path == "/audio/transcriptions" or any(re.fullmatch(pattern, url) for url in called), path


@pytest.mark.parametrize("page", ["openai", "streaming"])
def test_the_python_examples_run(server: Process, here: Path, page: str):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.DOTALL)
    key = code.replace('"none"', '"the-key"').replace("/v1/audio/stream", "/v1/audio/stream?api_key=the-key")
    command = [sys.executable, "-c", key.replace(ADDRESS, address(server))]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prison" in done.stdout
