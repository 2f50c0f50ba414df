"""Whether a loss is the mean of its parts, which is assumed wherever a batch is cut.

`L(both) = (w_1 L(one) + w_2 L(other)) / (w_1 + w_2)`, with weights that are the examples of each
part, or what the loss declares (`composed`). It is tried by value, on a few `scattered` examples at
a time: together, and in two parts. Few, since the law of large numbers hides weights: masks, class
weights, token counts, sums, BatchNorm in training mode and in-batch negatives then differ by far
more than the tolerance.

The two parts have numbers of examples without a common divisor, so that no mask leaves the same
share of both. Where they give the same value, as with a head of zeros, they would with any weights:
then they are tried again with the parameters moved. A difference that rounding explains is none.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.geometry.loss import scattered
from sharpjax.geometry.loss.assumptions import Checked, calling_parts, require
from sharpjax.geometry.loss.composed import parts as parts_of
from sharpjax.geometry.loss.composed import total_weight, weights
from sharpjax.geometry.loss.unusual import unusual

_TOLERANCE = 1e-3
_ALIKE = 0.1  # values as near as this say little of their weights, and of what is done with them
_FINE = float(jnp.finfo(jnp.float32).eps)
_TOGETHER = 8  # examples at the most, in parts of 3 and 5
_GROUPS = 4  # of examples that are taken together, where there are so many
_LEAST, _MOST = 16, 64  # examples that are looked at, where there are so many

Batch = Any
Parts = tuple[Batch, Batch]


def check_cut(
    caller: str,
    loss: Any,
    params: Any,
    batch: Batch,
    microbatch_size: int | None,
    *,
    argument: str = "microbatch_size",
) -> Checked | None:
    """Refuses microbatches of a loss that is not the mean of its parts.

    Cost: two forward passes of a microbatch, but of 16 to 64 examples (four where these are fewer
    than 8 groups, or of microbatches of 2 and 3); as many again where some examples stand out by a
    mask, or by a label that means none (`unusual`).

    Args:
        argument: the name under which the caller's user gave the size.

    Raises:
        UserError: names `caller` and the remedies.
    """
    if microbatch_size is None:
        return None
    size, count = int(microbatch_size), loops.count_examples(caller, batch)
    if size >= count:
        return None
    together, most = min(size, _TOGETHER), max(_LEAST, min(size, _MOST))
    how = together, most, f"{argument}={size}", f"{_ONE_PASS}: leave {argument} out."
    return _check_unusual(caller, loss, params, batch, *how)


def check_alone(caller: str, loss: Any, params: Any, batch: Batch) -> Checked | None:
    """Refuses a loss that is not the mean of its values on single examples.

    Cost: four forward passes of 16 examples; as many again where some stand out, as in `check_cut`.

    Raises:
        UserError: names `caller` and the remedies.
    """
    if loops.count_examples(caller, batch) < 2:
        return None
    how = 2, _LEAST, "taking each example by itself", _NONE
    return _check_unusual(caller, loss, params, batch, *how)


def check_batches(caller: str, loss: Any, params: Any, batches: Sequence[Batch]) -> Checked | None:
    """Refuses a mean over batches of a loss that is not the mean of its parts.

    Cost: two forward passes of 64 examples, or of as many as there are.

    Args:
        batches: a few; examples of all are taken together. One is not cut.

    Raises:
        UserError: names `caller` and the remedies.
    """
    if len(batches) < 2:
        return None
    some = _some(batches, share(len(batches)))
    return _check(caller, loss, params, some, _TOGETHER, _MOST, "a mean over batches", _PER_BATCH)


def num_batches(num_examples: int) -> int:
    """How many batches of so many examples `check_batches` should see, if there are so many."""
    return max(2, math.ceil(_LEAST / num_examples))


def share(count: int) -> int:
    """How many examples of each of so many batches `check_batches` looks at."""
    return math.ceil(_MOST / count)


_ONE_PASS = "Examples that see each other (in-batch negatives)"
_NONE = "Examples that see each other (in-batch negatives) have no gradients of their own."
_PER_BATCH = (
    "Examples that see each other (in-batch negatives): one batch of all. A loss that is meant for "
    "each batch by itself: add the operators of the batches, (A + B) / 2."
)


class _Found(NamedTuple):
    """The value of two parts together, and the mean of their values."""

    whole: jax.Array
    mean: jax.Array
    differ: jax.Array
    alike: jax.Array


def _check_unusual(caller, loss, params, batch, size, most, how, remedy) -> Checked | None:
    """On examples spread over the batch, then on those that stand out, beside others."""
    checked = _check(caller, loss, params, batch, size, most, how, remedy)
    if checked is None and not loops.inside_jit():
        seen = _joined(_spread(batch, size, most))
        for few in unusual([batch], seen, most):
            _check(caller, loss, params, few, size, most, how, remedy)
    return checked


def _check(caller, loss, params, batch, size, most, how, remedy) -> Checked | None:
    is_abstract = loops.inside_jit() or loops.is_traced((loss, params, batch))
    told = _without_regularizer(loss)
    count = loops.count_examples(caller, batch)
    if is_abstract:
        most = _LEAST
    elif size >= 4 and count <= _MOST:  # of pairs there would be many
        most = count
    parts = _spread(batch, size, most)
    with calling_parts(caller):
        jax.eval_shape(_values, (told, params), parts[0])
    if is_abstract:
        operands, chunks = jax.lax.stop_gradient(((told, params), tree.stack(parts)))
        wrong = loops.map_over_chunks(_is_wrong, operands, chunks)
        return require(caller, ~jnp.any(wrong), "")
    for moves in (False, True):
        point = _moved(params) if moves else params
        found = jax.device_get([_values((told, point), part) for part in parts])
        if not moves:
            beside = _beside(found, parts)
            found += jax.device_get([_values((told, point), part) for part in beside])
            parts = parts + beside
        for part, (whole, mean, differ, _) in zip(parts, found, strict=True):
            if differ and not abs(whole - mean) <= _rounding((told, point), part):
                a, b = (loops.count_examples(caller, x) for x in part)
                declared = weights(loss, part[0]) is not None
                what = "weighted mean that its example_weight says" if declared else "mean"
                apart = f"{mean:.6g} on average" if np.isfinite(mean) else "no number"
                message = (
                    f"the loss is not the {what} of its parts, so {how} would give another matrix: "
                    f"on {a + b} examples it is {whole:.6g}, on {a} and {b} of them apart "
                    f"{apart}. A weighted mean (a mask, class weights): declare what "
                    f"each example weighs, geometry.composed(..., example_weight=...). A sum: take "
                    f"the mean. BatchNorm: evaluation mode, with frozen statistics. {remedy}"
                )
                return require(caller, jnp.array(False), message)
        if not all(each.alike for each in found):
            break
    return None


def _beside(found, parts) -> list[Parts]:
    """A group whose value is no number beside one whose value is: that of a mean is none, either,
    but a mask that hides all of one group leaves that of the other."""
    known = [bool(np.isfinite(each.whole)) for each in found]
    if all(known) or not any(known):
        return []
    return [(_join(parts[known.index(False)]), _join(parts[known.index(True)]))]


def _is_wrong(operands, parts):
    """As the loop above, inside of a trace."""
    loss, params = operands

    def at(params):
        found = _values((loss, params), parts)
        explained = jax.lax.cond(
            found.differ,
            lambda: jnp.abs(found.whole - found.mean) <= _rounding((loss, params), parts),
            lambda: jnp.ones((), bool),
        )
        return ~explained, found.alike

    wrong, alike = at(params)
    return wrong | jax.lax.cond(alike, lambda: at(_moved(params))[0], lambda: jnp.zeros((), bool))


@jax.jit
def _values(operands, parts: Parts) -> _Found:
    loss, params = operands
    params, both = tree.widen(params), _join(parts)
    with jax.default_matmul_precision("highest"):
        whole, *values = tree.widen([loss(params, batch) for batch in (both, *parts)])
    counts = [jnp.asarray(total_weight(loss, part), whole.dtype) for part in parts]
    values, counts = jnp.stack(values), jnp.stack(counts)
    total = jnp.sum(counts)
    mean = jnp.sum(jnp.where(counts > 0, counts * values, 0)) / total
    values = jnp.where(counts > 0, values, mean)
    size = jnp.maximum(jnp.max(jnp.abs(values)), jnp.abs(whole))
    is_mean = jnp.abs(whole - mean) <= _TOLERANCE * size  # false for NaN
    return _Found(  # without NaN, which jax_debug_nans would stop at
        whole=jnp.nan_to_num(whole, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf),
        mean=jnp.nan_to_num(mean, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf),
        differ=jnp.isfinite(whole) & (total > 0) & ~is_mean,
        alike=~(jnp.abs(values[0] - values[1]) > _ALIKE * size),  # or NaN, which says nothing
    )


@jax.jit
def _moved(params):
    """Parameters elsewhere, each with its sign, and zeros moved, too."""
    params = tree.widen(params)
    z = tree.add_scaled(tree.zeros_like(params), 1.0, tree.random_normal(jax.random.key(0), params))
    return jax.tree.map(lambda w, z: jnp.where(w == 0, z / 3, w * jnp.exp(z / 2)), params, z)


@jax.jit
def _rounding(operands, parts: Parts):
    """What rounding the parameters and the value does to the value."""
    loss, params = operands
    params, both = tree.widen(params), _join(parts)
    eps = coarsest(jax.make_jaxpr(loss)(params, both).jaxpr)
    with jax.default_matmul_precision("highest"):
        whole, slopes = jax.value_and_grad(loss)(params, both)
        # Where the slope is nothing, as where a net fits its targets.
        z = tree.random_normal(jax.random.key(0), params)
        shaken = loss(jax.tree.map(lambda w, z: w + 8 * _FINE * w * z, params, z), both)
    moved = tree.norm(jax.tree.map(jnp.multiply, params, slopes))
    whole, shaken = tree.widen(jnp.abs(whole)), tree.widen(jnp.abs(shaken))
    allowed = (8 * _FINE + eps) * moved.astype(whole.dtype) + 8 * eps * whole
    allowed += 2 * jnp.abs(shaken - whole)
    return jnp.where(jnp.isfinite(allowed), allowed, 0)


def coarsest(jaxpr) -> float:
    """The coarsest rounding of a computation: that of bfloat16, where it is in use."""
    found = [_FINE]
    for eqn in jaxpr.eqns:
        for x in eqn.outvars:
            if jnp.issubdtype(x.aval.dtype, jnp.floating) and tree.is_narrow(x.aval):
                found.append(float(jnp.finfo(x.aval.dtype).eps))
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                found += [coarsest(inner)] if hasattr(inner, "eqns") else []
    return max(found)


def _without_regularizer(loss):
    """The part of it that depends on the batch, which a large regulariser could hide."""
    known = parts_of(loss)
    if known is None or known.regularizer is None:
        return loss
    return dataclasses.replace(known, regularizer=None)


# Which examples. Where types carry shardings, each device gives as many as the others.


def _spread(batch, size: int, most: int) -> list[Parts]:
    """Groups of `size` examples, each in two parts; in all about `most` examples."""
    devices = _num_devices(batch)
    local = loops.count_examples("batch", batch) // devices
    size = min(max(2, min(size // devices, local // _GROUPS)), local)
    groups = scattered.groups(local, size, math.ceil(most / devices))
    if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(batch)):
        places, groups = np.unique(groups, return_inverse=True)  # no more goes to the device
        batch = jax.tree.map(lambda x: x[places], batch)
    return _take(batch, devices, tuple(map(tuple, groups.reshape(-1, size).tolist())))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _take(batch, devices, groups) -> list[Parts]:
    first = _share(len(groups[0]))

    def part(places):
        return jax.tree.map(
            lambda x: _merged(_at(_by_device(jnp.asarray(x), devices), places)), batch
        )

    return [(part(group[:first]), part(group[first:])) for group in groups]


@functools.partial(jax.jit, static_argnums=1)
def _some(batches, each):
    """One batch of examples of several: so many of each."""
    devices = _num_devices(batches)

    def some(x):
        x = _by_device(jnp.asarray(x), devices)
        most = min(max(each // devices, 1), x.shape[1])
        return _merged(_at(x, scattered.scattered(x.shape[1], most)))

    return _join([jax.tree.map(some, batch) for batch in batches], devices)


def _at(x, places):
    """These places of axis 1. A gather does not know where its result lies, if types say that."""
    if not any(jax.typeof(x).sharding.spec):
        return x[:, np.asarray(places)]
    return jnp.concatenate([x[:, int(i) : int(i) + 1] for i in places], axis=1)


def _join(batches, devices: int | None = None):
    devices = _num_devices(batches) if devices is None else devices

    def leaf(*xs):
        return _merged(jnp.concatenate([_by_device(x, devices) for x in xs], axis=1))

    return jax.tree.map(leaf, *batches)


@jax.jit
def _joined(groups):
    return [_join(parts) for parts in groups]


# Lengths are named, for an array of shape (N, 0) has no -1.


def _by_device(x, devices: int):
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])


def _merged(x):
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _num_devices(batch) -> int:
    def leaf(x):
        lies = jax.typeof(x).sharding if isinstance(x, jax.Array) else None
        names = lies.spec[0] if lies is not None and len(lies.spec) else None
        if lies is None or names is None:
            return 1
        names = names if isinstance(names, tuple) else (names,)
        return math.prod(lies.mesh.shape[name] for name in names)

    return max(map(leaf, jax.tree.leaves(batch)))


def _share(size: int) -> int:
    """The largest number up to half of it without a common divisor; 1 of 1."""
    return next((n for n in range(size // 2, 0, -1) if math.gcd(n, size) == 1), 1)
