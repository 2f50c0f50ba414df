"""A room imports only from floors below its own: what keeps the house in one piece."""

import ast
import inspect
import pathlib

import pytest

from sharpjax import geometry

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "sharpjax"

# Floor 0 is ordered: a module may import those before it.
GROUND = ("errors", "arithmetic", "estimate", "tree", "perturbation", "loops")
FLOORS = {
    **dict.fromkeys(GROUND, 0),
    **dict.fromkeys(("catalog", "commandline", "data", "geometry", "losses", "metrics", "nn"), 1),
    **dict.fromkeys(("flops", "optim", "protocol", "runtime", "workdir"), 1),
    **dict.fromkeys(("compress", "driver", "layerwise", "plots", "provenance", "schema"), 2),
    **dict.fromkeys(("report", "train"), 3),
    **dict.fromkeys(("runs",), 4),
    **dict.fromkeys(("studies",), 5),
}
# What each room may know of the world, where that is a promise.
FORBIDDEN = {
    "geometry": {"flax", "tensorflow_datasets", "ml_collections", "absl", "orbax", "etils"},
    "protocol": {"jax", "flax", "ml_collections", "absl", "etils"},
    "metrics": {"ml_collections", "absl"},
    "losses": {"ml_collections", "absl"},
    "compress": {"ml_collections", "absl", "qwix"},
    "layerwise": {"ml_collections", "absl", "weightwatcher", "powerlaw"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source, names):
    for name in names:
        parts = name.split(".")
        if parts[0] != "sharpjax" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        target = parts[1]
        if source == target:
            continue
        below = FLOORS[target] < FLOORS[source]
        if FLOORS[source] == FLOORS[target] == 0:
            below = GROUND.index(target) < GROUND.index(source)
        # The catalog is a table of names that every room of floor 1 may read.
        if not below and not (FLOORS[source] == 1 and target == "catalog"):
            yield f"{source} imports {name}"


def test_every_room_has_a_floor():
    assert {room(p) for p in modules()} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if room(path) == "__init__":
        assert not list(imported(path))
        return
    names = list(imported(path))
    assert not list(violations(room(path), names))
    outside = {name.split(".")[0] for name in names}
    assert not outside & FORBIDDEN.get(room(path), set())
    assert "tensorflow" not in outside


def test_the_rule_can_be_broken():
    assert list(violations("geometry", ["sharpjax.nn.mlp"]))
    assert list(violations("tree", ["sharpjax.loops"]))
    assert list(violations("train", ["sharpjax.runs.read"]))
    assert list(violations("runs", ["sharpjax.studies.papers.HYPOTHESES"]))
    assert not list(violations("studies", ["sharpjax.train.loop", "sharpjax.geometry"]))
    assert not list(violations("loops", ["sharpjax.tree", "sharpjax.errors"]))


def test_modules_are_short():
    lengths = {p: len(p.read_text().splitlines()) for p in modules()}
    assert sorted(lengths.values())[len(lengths) // 2] <= 180
    assert max(lengths.values()) <= 450, max(lengths, key=lengths.__getitem__)
    assert len((PACKAGE.parent / "launch.py").read_text().splitlines()) <= 90


# What each part of `protocol` may know of the others: what decides knows nothing of planning.
KNOWS = {
    "tests": set(),
    "claims": {"tests"},
    "canonical": {"claims"},
    "wording": {"claims"},
    "samples": {"tests", "claims", "canonical"},
    "attrition": {"samples"},
    "summary": {"canonical"},
    "judging": {"tests", "claims", "canonical", "samples", "wording"},
    "planning": {"tests", "claims", "canonical", "wording", "judging"},
    "seals": {"claims", "canonical"},
}


@pytest.mark.parametrize("part", KNOWS)
def test_parts_of_the_protocol_know_those_below_them(part):
    home = PACKAGE / "protocol"
    paths = [home / f"{part}.py"] if (home / f"{part}.py").exists() else (home / part).rglob("*.py")
    names = {name for path in paths for name in imported(path)}
    inside = {name.split(".")[2] for name in names if name.startswith("sharpjax.protocol.")}
    assert inside - {part} <= KNOWS[part]


def test_every_part_of_the_protocol_has_a_place():
    entries = {p.stem for p in (PACKAGE / "protocol").iterdir()} - {"__init__", "__pycache__"}
    assert entries == set(KNOWS)


# The parts of `geometry`, each of which may import those before it.
PARTS = (
    *("status", "accuracy", "loss", "operators", "lanczos", "eigenpairs", "exact", "estimators"),
    *("spectra", "report", "footprint", "sharpness"),
)


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_geometry_know_those_before_them(part):
    home = PACKAGE / "geometry"
    paths = [home / f"{part}.py"] if (home / f"{part}.py").exists() else (home / part).rglob("*.py")
    names = {name for path in paths for name in imported(path)}
    inside = {name.split(".")[2] for name in names if name.startswith("sharpjax.geometry.")}
    assert inside <= {*PARTS[: PARTS.index(part) + 1]}


def test_every_part_of_geometry_has_a_place():
    entries = {p.stem for p in (PACKAGE / "geometry").iterdir()} - {"__init__", "__pycache__"}
    assert entries == set(PARTS)


def test_geometry_shows_what_is_public():
    shown = set(dir(geometry))
    assert "hessian" in shown and not shown & {*PARTS, "annotations", "__builtins__"}
    assert not [name for name in shown if inspect.ismodule(getattr(geometry, name))]


def test_dataclasses_name_their_class():
    """jax's own registration lets a compiled function take one class for another."""
    for path in modules():
        blind = {"jax.tree_util.register_dataclass", "flax.struct.dataclass", "flax.struct"}
        uses = {
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        names = (uses | set(imported(path))) & blind
        assert not names or path == PACKAGE / "tree.py", f"{path}: tree.register_dataclass"
