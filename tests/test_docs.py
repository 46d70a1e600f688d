"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "Models").glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links), links


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
