"""The distinct models of a plan, and their parameters as lines."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from sharpjax import flops, tree
from sharpjax.runs.console import as_text, parameter_table
from sharpjax.train import planning
from sharpjax.train.plan import Plan, Train


class Model(NamedTuple):
    """A model of one or more arms of a plan.

    Attributes:
        example: one example of its input.
        params, variables: their shapes and types.
    """

    module: nn.Module
    example: jax.Array
    arms: tuple[str, ...]
    params: Any
    variables: Any


def distinct(plan: Plan) -> list[Model]:
    """Each distinct model of the trained arms, in the order of the stages. Each is traced once."""
    stages: dict[Any, list[Train]] = {}
    for stage in planning.ordered(plan):
        if isinstance(stage, Train):
            spec = plan.data[stage.data]
            what = (stage.step.model, spec.input_shape, spec.input_dtype)
            stages.setdefault(what, []).append(stage)
    found = []
    for same in stages.values():
        step, example = same[0].step, planning.example_of(plan, same[0])
        like = jax.eval_shape(functools.partial(step.init, example), jax.random.key(0))
        arms = tuple(stage.arm for stage in same)
        found.append(Model(step.model, example, arms, like.params, like.variables))
    return found


def forward(model: Model, batch_size: int) -> flops.Count:
    """The cost of a forward pass of one batch, found by tracing it."""
    batch = jax.ShapeDtypeStruct((batch_size, *model.example.shape[1:]), model.example.dtype)
    apply = functools.partial(model.module.apply, train=False)
    return flops.count(apply, {"params": model.params, **model.variables}, batch)


def parameters(model: Model) -> str:
    """A line about the model, and a table of its parameters."""
    leaves = zip(tree.path_names(model.params), jax.tree.leaves(model.params), strict=True)
    table = as_text(parameter_table({name: leaf.shape for name, leaf in leaves}))
    return f"{named(model.module)}: {tree.size(model.params):,} parameters\n{table}"


def named(value: Any) -> str:
    """A module or another dataclass in words: its class, and the fields that differ from the
    defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: f.default for f in dataclasses.fields(value)}
        now = {name: getattr(value, name) for name in fields if name not in ("parent", "name")}
        given = [f"{name}={named(x)}" for name, x in now.items() if x != fields[name]]
        return f"{type(value).__name__}({', '.join(given)})"
    return np.dtype(value).name if isinstance(value, type | np.dtype) else str(value)
