"""What `docs/geometry.md` tells users of another library to type runs, row by row, as it stands."""

import ast
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from sharpjax import geometry, losses

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "geometry.md"


def rows():
    """The cells of each row under "Coming from another library", without the heads."""
    section = PAGE.read_text().split("\n## Coming from another library\n")[1].split("\n## ")[0]
    for table in re.split(r"\n\n+", section.strip()):
        for line in table.splitlines()[2:]:
            yield [cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def statements(cell):
    """The code in a cell that calls or multiplies something; `"a" | "b"` is one line for each."""
    for code in re.findall(r"`([^`]+)`", cell):
        choice = re.search(r'"\w+"(?: \| "\w+")+', code)
        for word in choice[0].split(" | ") if choice else [""]:
            line = code.replace(choice[0], word) if choice else code
            if any(isinstance(x, ast.Call | ast.MatMult) for x in ast.walk(ast.parse(line))):
                yield line


def model_fn(params, batch):
    hidden = batch["x"]
    for layer in params["block"]:
        hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
    return hidden


def problem():
    """The names that the tables use: a net of 24 parameters, and 32 examples in two batches."""
    keys = jax.random.split(jax.random.key(3), 6)
    params = {
        "block": [
            {"w": jax.random.normal(a, (3, 3)), "b": jax.random.normal(b, (3,))}
            for a, b in (keys[:2], keys[2:4])
        ]
    }
    x, y = jax.random.normal(keys[4], (32, 3)), jax.random.normal(keys[5], (32, 3))
    batches = [{"x": x[:16], "target": y[:16]}, {"x": x[16:], "target": y[16:]}]
    batch, outer_loss = {"x": x, "target": y}, losses.SquaredError()
    loss = geometry.composed(model_fn, outer_loss)
    return {name: getattr(geometry, name) for name in dir(geometry)} | {
        "H": geometry.hessian(loss, params, batch),
        "functools": functools,
        "loss": loss,
        "model_fn": model_fn,
        "outer_loss": outer_loss,
        "params": params,
        "batch": batch,
        "batches": batches,
        "data": batches,
        "v": params,
        "key": jax.random.key(0),
        "damping": 100.0,
        "ncv": 8,
        "num_repeats": 2,
        "num_matvecs": 8,
    }


@pytest.mark.parametrize("there, here", rows())
def test_a_row_runs(there, here):
    names = problem()
    lines = list(statements(here))
    assert lines, f"nothing in this row can be run: {here}"
    for line in lines:
        exec(f"found = {line}" if _is_expression(line) else line, names)
        found = jax.block_until_ready(names.pop("found", None))
        if hasattr(found, "status"):
            geometry.check(found)  # raises where it is not OK


def _is_expression(line):
    return isinstance(ast.parse(line).body[0], ast.Expr)


def test_there_are_tables_of_three_libraries():
    assert len(list(rows())) >= 15 and all(len(row) == 2 for row in rows())
