"""General code knows no study: it names none, nor its arms, its metrics or its figures."""

import ast
import functools
import json
import pathlib
import re

import pytest

from configs import grokking, reproducibility, sam_cifar, surfaces
from sharpjax import catalog
from sharpjax.runs import standing, study
from sharpjax.train.plan import Derive, Draw, Train

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "sharpjax"
STUDIES = PACKAGE / "studies"
# Where the names belong: the table of all names, and the studies themselves.
HOME = (PACKAGE / "catalog.py", STUDIES)
GENERAL = [
    PACKAGE.parent / "launch.py",
    *(p for p in sorted(PACKAGE.rglob("*.py")) if not any(p.is_relative_to(h) for h in HOME)),
]
# Words of the field, or of the language, that a study also has for a name: where, and which.
WORDS = {
    ("geometry/loss/objective.py", "sharpness"),  # what is measured
    ("layerwise/data_free/table.py", "data_free"),  # a function
    ("optim/__init__.py", "sam"),  # an optimiser
    ("optim/factory.py", "sgd"),
    ("optim/settings.py", "sgd"),
    ("report/record.py", "planned"),  # what became of seeds
    ("schema/__init__.py", "complete"),  # a function
    ("train/layer_curvature.py", "sharpness"),  # what is measured
    ("train/task.py", "curves"),  # what an arm stores of its training
}


@functools.cache
def names():
    """Every study, registered arm, and figure, with what it is."""
    found = {name: "study" for name in catalog.STUDIES}
    for path in standing.OFFICIAL.glob("*.json"):
        found |= {arm: "arm" for arm in json.loads(path.read_text())["arms"]}
    for path in STUDIES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Figure"):
                found |= {text: "figure" for text in constants(node.args[0])}
    return found


@functools.cache
def prefixes():
    """What the metrics of a study's own evaluators, measures and draws start with, as `grok/`."""
    own = []
    for config in (grokking, reproducibility, sam_cifar, surfaces):
        for stage in study.plan_of(config.get_config("smoke").lock()).stages:
            sources = stage.evaluators if isinstance(stage, Train | Derive) else [stage]
            own += [s for s in sources if isinstance(s, Draw) or in_a_study(type(s).__module__)]
    return {metric.partition("/")[0] + "/" for one in own for metric in one.metrics}


def in_a_study(module):
    return f"{module}.".startswith("sharpjax.studies.")


def constants(tree):
    """The strings in a syntax tree, without docstrings; of an f-string, its parts."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source):
    """What a source names that it must not know: the name, and what it is."""
    tree = ast.parse(source)
    yield from ((name, "module") for name in imports(tree) if in_a_study(name))
    for text in constants(tree):
        if text in names():
            yield text, names()[text]
        if any(re.search(rf"\b{prefix}(\w|$)", text) for prefix in prefixes()):
            yield text, "metric"
        if in_a_study(text.replace(":", ".")):
            yield text, "module"


@pytest.mark.parametrize("path", GENERAL, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_general_code_names_no_study(path):
    where = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    found = set(violations(path.read_text()))
    allowed = {word for place, word in WORDS if place == where}
    assert {word for word, _ in found} == allowed, f"{found}; allowed: {allowed or 'nothing'}"


def test_every_exception_has_a_place():
    assert {PACKAGE / place for place, _ in WORDS} <= set(GENERAL)


def test_what_is_looked_for():
    assert {"grokking", "sharpness", "reproducibility"} <= names().keys()
    assert {"sgd_2x", "add97-dense-80", "significant_only", "stability"} <= names().keys()
    assert prefixes() >= {"grok/", "study/", "registry/"}
    assert not prefixes() & {"train/", "test/"}


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import sharpjax.studies.grokking.plan", "module"),
        ("from sharpjax import studies", "module"),
        ("from sharpjax.studies import grokking", "module"),
        ("def f():\n    from sharpjax.studies.papers import HYPOTHESES", "module"),
        ("x = 'sharpjax.studies.sharpness.plan:STUDY'", "module"),
        ("if config.study == 'grokking': pass", "study"),
        ("ORDER = ('sgd_2x',)", "arm"),
        ("CAPTIONS = {'stability': 'How stable it was.'}", "figure"),
        ("x = row['metric'] == 'grok/epochs'", "metric"),
        ("x = f'grok/{name}'", "metric"),
        ("x = rows['registry/bias']", "metric"),
        ("def f():\n    'As grokking does, of grok/epochs.'", None),
        ("x = 'train/loss', 'test/accuracy', 'hessian/trace', 'model'", None),
    ],
)
def test_the_rule_can_be_broken(source, what):
    found = {kind for _, kind in violations(source)}
    assert found == ({what} if what else set())
