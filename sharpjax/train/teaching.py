"""The teachers of an arm: made from the states that a plan names, if these are sound."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import data, losses, tree
from sharpjax.data import Examples
from sharpjax.losses.teacher import are_probabilities
from sharpjax.train import planning
from sharpjax.train.library import Library
from sharpjax.train.plan import Member, Plan, Ref, Teacher, Train

# The number of training examples, from the first, on which a teacher's outputs are checked.
_LOOKED_AT = 64
# The number of examples per forward pass if the outputs of all are stored.
_AT_ONCE = 256


def teacher_of(
    plan: Plan, library: Library, stage: Train, member: Member, train: Examples
) -> losses.Teacher | None:
    """The teacher of a member, in the form that the objective holds; None: it has none."""
    if (taught := member.teacher) is None:
        return None
    num_classes = plan.data[stage.data].num_classes
    models = _models(plan, library, taught)
    if taught.kind == "stored":
        kind = "ensemble" if len(taught.refs) > 1 else "model"
        asked = losses.Teacher(kind=kind, weight=1.0, temperature=1.0, **models)
        models = dict[str, Any](params=outputs_of(asked, train, num_classes))
    return losses.Teacher(
        kind=taught.kind,
        weight=jnp.float32(taught.weight),
        temperature=jnp.float32(taught.temperature),
        prior=label_shares(train, num_classes) if taught.prior == "labels" else None,
        key=member.stream("teacher"),
        fresh=taught.fresh,
        divergence=taught.divergence,
        inputs=taught.inputs,
        **models,
    )


def _models(plan: Plan, library: Library, taught: Teacher) -> dict[str, Any]:
    """The fields of `losses.Teacher` that come from its models."""
    if not taught.refs:
        return {}
    states = [library.state(ref) for ref in taught.refs]
    trees = [(state.params, state.variables) for state in states]
    together = taught.kind == "ensemble" or len(trees) > 1
    params, variables = tree.stack(trees) if together else trees[0]
    model = planning.source_of(plan, taught.refs[0].arm).step.model
    return {"model": model, "params": params, "variables": variables}


def outputs_of(teacher: losses.Teacher, train: Examples, num_classes: int) -> jax.Array:
    """[N, K]: the outputs of a teacher for all training examples, without augmentation."""
    count = len(train.label)
    size = min(_AT_ONCE, count)
    parts = [_outputs(teacher, train, i, (size, num_classes)) for i in range(0, count, size)]
    return jnp.concatenate(parts)[:count]


@functools.partial(jax.jit, static_argnums=3)
def _outputs(
    teacher: losses.Teacher, train: Examples, first: int, shape: tuple[int, int]
) -> jax.Array:
    index = jnp.minimum(first + jnp.arange(shape[0]), len(train.label) - 1)
    return teacher.logits(data.batch(train, index), jnp.zeros(shape))


def unsound(
    plan: Plan, library: Library, members: Sequence[Member], train: Sequence[Examples]
) -> dict[int, str]:
    """The indices of the members that have an unsound teacher, each with the reason.

    A teacher is unsound in three cases. Its training stopped because of a non-finite loss or
    update, or it was derived from such a model. Its outputs on some of the first 64 training
    examples are not finite. Or these outputs are probabilities, of which a second softmax would
    leave almost nothing.

    Cost: a forward pass of 64 examples for each teacher.
    """
    asked: dict[Ref, str] = {}
    found = {}
    for i, (member, own) in enumerate(zip(members, train, strict=True)):
        for ref in member.teacher.refs if member.teacher else ():
            if ref not in asked:
                asked[ref] = _reason(plan, library, ref, own)
            if asked[ref]:
                key = Member(ref.seed, ref.of).key
                found.setdefault(i, f"its teacher '{ref.arm}' {key} {asked[ref]}")
    return found


def _reason(plan: Plan, library: Library, ref: Ref, train: Examples) -> str:
    state = library.state(ref)
    if not bool(state.alive):
        return "turned non-finite"
    model = planning.source_of(plan, ref.arm).step.model
    logits = losses.Logits(model, state.variables)
    index = jnp.arange(min(_LOOKED_AT, len(train.label)))
    outputs = _asked(logits, state.params, train, index)
    if not jnp.isfinite(outputs).all():
        return "gives non-finite outputs"
    return "gives probabilities, not logits" if are_probabilities(outputs) else ""


@jax.jit
def _asked(logits: losses.Logits, params: Any, train: Examples, index: jax.Array) -> jax.Array:
    return logits(params, data.batch(train, index))


def label_shares(train: Examples, num_classes: int) -> jax.Array:
    """[K]: the share of each class among the training labels.

    >>> examples = Examples(input=jnp.zeros((4, 1)), label=jnp.array([0, 2, 2, 2]))
    >>> label_shares(examples, 3).tolist()
    [0.25, 0.0, 0.75]
    """
    return jnp.bincount(train.label, length=num_classes) / jnp.float32(len(train.label))
