"""The site of docs/: every public name has its page, and it builds without a network."""

import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
COMPRESS, METRICS = "sharpjax.compress", "sharpjax.metrics"
MODULES = (
    *("sharpjax.geometry", "sharpjax.losses", "sharpjax.nn", "sharpjax.optim"),
    *("sharpjax.layerwise.criticality", "sharpjax.layerwise.data_free"),
    *(COMPRESS, f"{COMPRESS}.prune", f"{COMPRESS}.size", f"{COMPRESS}.observers"),
    *(f"{METRICS}.functional", f"{METRICS}.functional.streaming"),
    *(f"{METRICS}.representation", f"{METRICS}.representation.streaming"),
    *(f"{METRICS}.trajectory", f"{METRICS}.embedding", f"{METRICS}.weights"),
)


def public(name):
    """The public names of a module: those of `__all__`, else all but modules; of a file those that
    are its own."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
    found = {n: f for n in names if not isinstance(f := getattr(module, n), types.ModuleType)}
    if hasattr(module, "__path__"):
        return found
    return {n: f for n, f in found.items() if getattr(f, "__module__", name) == name}


PUBLIC = {f"{module}.{name}": found for module in MODULES for name, found in public(module).items()}


def test_every_public_name_is_on_one_page():
    """Once each, names of geometry on the page of their part; no page names what is not there."""
    named = {}
    for page in PAGES:
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            assert name in PUBLIC, f"docs/api/{page.name} names {name}, which is not public."
            assert name not in named, f"{name} is on docs/api/{page.name} and {named[name]}."
            named[name] = page.name
    for name, found in PUBLIC.items():
        part = found.__module__.split(".")[2] if ".geometry." in name else name.split(".")[1]
        assert named.get(name) == f"{part}.md", f"'::: {name}' is missing in docs/api/{part}.md."


@pytest.mark.parametrize("name", [n for n, f in PUBLIC.items() if inspect.isroutine(f)])
def test_docstrings_describe_arguments_that_exist(name):
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.getdoc(PUBLIC[name]) + "\n", re.M)
    described = re.findall(r"^    (\w[\w*, ]*):", section[1], re.M) if section else []
    described = [argument.strip("* ") for names in described for argument in names.split(",")]
    assert set(described) <= set(inspect.signature(PUBLIC[name]).parameters)
    assert len(described) == len(set(described))


def test_it_builds_without_a_network(tmp_path):
    """As `make docs`, strictly; no page fetches a script, a style or a font from elsewhere."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(module, reason="the extra `docs` is not installed")
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mkdocs", "build", f"--site-dir={tmp_path}"]
    environment = os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")
    }
    assert {f"api/{page.stem}.html" for page in PAGES} <= pages.keys()
    for name, html in pages.items():
        fetched = re.findall(
            r"""<(?!a\b)[a-z]+\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'> ]+)""", html
        )
        assert not fetched and "@import" not in html, f"{name} fetches {fetched}"
        assert "&gt;&gt;&gt;" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL), name
    eigenpairs = pages["api/eigenpairs.html"]
    assert 'id="sharpjax.geometry.top_eigenpairs"' in eigenpairs
