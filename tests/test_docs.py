"""What the documents say is so: the examples give what they show, the files and commands exist."""

import doctest
import pathlib
import re

import pytest

from sharpjax import geometry

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("geometry", "sharpness", "calibration", "function", "layers")  # which name tests
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def test_the_readme_example():
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert found.attempted >= 8 and found.failed == 0


@pytest.mark.parametrize(("page", "least"), [("function", 80), ("layers", 15)])
def test_the_examples_of_a_page(page, least):
    """All code on it, which is typed at a prompt."""
    path = ROOT / "docs" / f"{page}.md"
    blocks = re.findall(r"```(\w*)\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks and all(kind == "pycon" and ">>> " in text for kind, text in blocks)
    found = doctest.testfile(str(path), module_relative=False)
    assert found.attempted >= least and found.failed == 0


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_named_files_and_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        for config in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / config).exists(), f"{document.name}: {config}"
        for target in re.findall(r"^ *make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{document.name}: make {target}"


def test_named_tests_exist():
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)
    for test, path in re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+\.py)\)", text):
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_every_feature_is_shown_by_a_test():
    """In each row of the table; the test before says that it exists."""
    text = (ROOT / "docs" / "geometry.md").read_text()
    table = text.split("| shown by |\n")[1].split("\n\n")[0]
    rows = table.splitlines()[1:]
    assert len(rows) >= 25
    for row in rows:
        assert re.search(r"\[`test_\w+(\.py)?`\]\(\.\./tests/\w+\.py\) \|$", row), row


def test_names_of_the_library_exist():
    """Code in the page on geometry calls what there is."""
    text = (ROOT / "docs" / "geometry.md").read_text()
    for name in re.findall(r"geometry\.([a-z_]+)\(", text):
        assert hasattr(geometry, name), name


def test_every_room_is_in_the_design():
    text = (ROOT / "docs" / "design.md").read_text()
    rooms = {p.name for p in (ROOT / "sharpjax").iterdir() if p.is_dir() and p.name[0] != "_"}
    modules = {p.stem for p in (ROOT / "sharpjax").glob("*.py")} - {"__init__"}
    for name in rooms | modules:
        assert f"`{name}/`" in text or f"`{name}`" in text, name
