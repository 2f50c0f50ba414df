"""Checks that a loss is the mean of its parts, which is assumed wherever a batch is cut.

`L(both) = (w_1 L(one) + w_2 L(other)) / (w_1 + w_2)`. The weights are the numbers of examples of
the parts, or what the loss declares (`composed`). The check compares values of the loss on a few
`scattered` examples at a time: on all together, and on two parts. They are few, since the law of
large numbers hides weights. With few examples, the effect of masks, class weights, token counts,
sums, BatchNorm in training mode and in-batch negatives is far above the tolerance.

The numbers of examples in the two parts have no common divisor, so that no mask leaves the same
share of both. If both parts give the same value, as with a head of zeros, any weights would pass;
the check is then repeated with the parameters moved. A difference within rounding is accepted.
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
_ALIKE = 0.1  # values nearer than this, relatively, say little about weights and how they are used
_FINE = float(jnp.finfo(jnp.float32).eps)
_TOGETHER = 8  # largest number of examples in a group; its parts have 3 and 5
_GROUPS = 4  # number of groups at least, if there are enough examples
_LEAST, _MOST = 16, 64  # numbers of examples that are used, if there are so many

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
    """Refuses microbatches if the loss is not the mean of its parts.

    Cost: two forward passes on as many examples as a microbatch has, but at least 16 and at most 64
    (four passes if these form fewer than 8 groups, or if a microbatch has fewer than 4 examples).
    As many again if some examples stand out by a mask, or by a label that means none (`unusual`).

    Args:
        argument: the caller's name for the argument `microbatch_size`, for the message.

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

    Cost: four forward passes of 16 examples; as many again if some stand out, as in `check_cut`.

    Raises:
        UserError: names `caller` and the remedies.
    """
    if loops.count_examples(caller, batch) < 2:
        return None
    how = 2, _LEAST, "taking each example by itself", _NONE
    return _check_unusual(caller, loss, params, batch, *how)


def check_batches(caller: str, loss: Any, params: Any, batches: Sequence[Batch]) -> Checked | None:
    """Refuses a mean over batches if the loss is not the mean of its parts.

    Cost: two forward passes of 64 examples, or of all if there are fewer.

    Args:
        batches: a few batches; examples of all are taken together. A single one is not checked,
            since it is not cut.

    Raises:
        UserError: names `caller` and the remedies.
    """
    if len(batches) < 2:
        return None
    some = _some(batches, share(len(batches)))
    return _check(caller, loss, params, some, _TOGETHER, _MOST, "a mean over batches", _PER_BATCH)


def num_batches(num_examples: int) -> int:
    """How many batches of `num_examples` examples `check_batches` should get, if there are
    enough."""
    return max(2, math.ceil(_LEAST / num_examples))


def share(count: int) -> int:
    """How many examples of each of `count` batches `check_batches` uses."""
    return math.ceil(_MOST / count)


_ONE_PASS = "Examples that see each other (in-batch negatives)"
_NONE = "Examples that see each other (in-batch negatives) have no gradients of their own."
_PER_BATCH = (
    "Examples that see each other (in-batch negatives): one batch of all. A loss that is meant for "
    "each batch by itself: add the operators of the batches, (A + B) / 2."
)


class _Found(NamedTuple):
    """The value of two parts together, and the mean of their values; whether these differ beyond
    the tolerance, and whether the two values are alike."""

    whole: jax.Array
    mean: jax.Array
    differ: jax.Array
    alike: jax.Array


def _check_unusual(caller, loss, params, batch, size, most, how, remedy) -> Checked | None:
    """`_check` on examples spread over the batch, then on those that stand out, mixed with
    others."""
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
    elif size >= 4 and count <= _MOST:  # not for pairs, of which there would be many
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
    """One more pair: a group whose value is not finite, with one whose value is. For a mean, the
    value of both together is not finite either. If a mask hides all of the first group, the value
    is that of the second."""
    known = [bool(np.isfinite(each.whole)) for each in found]
    if all(known) or not any(known):
        return []
    return [(_join(parts[known.index(False)]), _join(parts[known.index(True)]))]


def _is_wrong(operands, parts):
    """The same as the loop in `_check`, for use inside of a trace."""
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
    return _Found(  # without NaN, since jax_debug_nans would stop at it
        whole=jnp.nan_to_num(whole, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf),
        mean=jnp.nan_to_num(mean, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf),
        differ=jnp.isfinite(whole) & (total > 0) & ~is_mean,
        alike=~(jnp.abs(values[0] - values[1]) > _ALIKE * size),  # true for NaN, which says nothing
    )


@jax.jit
def _moved(params):
    """Moved parameters: each keeps its sign, and zeros are moved as well."""
    params = tree.widen(params)
    z = tree.add_scaled(tree.zeros_like(params), 1.0, tree.random_normal(jax.random.key(0), params))
    return jax.tree.map(lambda w, z: jnp.where(w == 0, z / 3, w * jnp.exp(z / 2)), params, z)


@jax.jit
def _rounding(operands, parts: Parts):
    """The error of the value due to rounding of the parameters and of the value itself."""
    loss, params = operands
    params, both = tree.widen(params), _join(parts)
    eps = coarsest(jax.make_jaxpr(loss)(params, both).jaxpr)
    with jax.default_matmul_precision("highest"):
        whole, slopes = jax.value_and_grad(loss)(params, both)
        # For points where the gradient vanishes, such as where a net fits its targets.
        z = tree.random_normal(jax.random.key(0), params)
        shaken = loss(jax.tree.map(lambda w, z: w + 8 * _FINE * w * z, params, z), both)
    moved = tree.norm(jax.tree.map(jnp.multiply, params, slopes))
    whole, shaken = tree.widen(jnp.abs(whole)), tree.widen(jnp.abs(shaken))
    allowed = (8 * _FINE + eps) * moved.astype(whole.dtype) + 8 * eps * whole
    allowed += 2 * jnp.abs(shaken - whole)
    return jnp.where(jnp.isfinite(allowed), allowed, 0)


def coarsest(jaxpr) -> float:
    """The largest machine epsilon in a computation: that of bfloat16 if bfloat16 is used."""
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
    """The part of the loss that depends on the batch; a large regulariser could hide it."""
    known = parts_of(loss)
    if known is None or known.regularizer is None:
        return loss
    return dataclasses.replace(known, regularizer=None)


# Which examples. If types carry shardings, each device gives the same number.


def _spread(batch, size: int, most: int) -> list[Parts]:
    """Groups of at most `size` examples, each in two parts; about `most` examples in all."""
    devices = _num_devices(batch)
    local = loops.count_examples("batch", batch) // devices
    size = min(max(2, min(size // devices, local // _GROUPS)), local)
    groups = scattered.groups(local, size, math.ceil(most / devices))
    if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(batch)):
        places, groups = np.unique(groups, return_inverse=True)  # only these go to the device
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
    """One batch of examples from several batches: `each` of each."""
    devices = _num_devices(batches)

    def some(x):
        x = _by_device(jnp.asarray(x), devices)
        most = min(max(each // devices, 1), x.shape[1])
        return _merged(_at(x, scattered.scattered(x.shape[1], most)))

    return _join([jax.tree.map(some, batch) for batch in batches], devices)


def _at(x, places):
    """The given places of axis 1. If types carry shardings, slices are used, since a gather cannot
    infer the sharding of its result."""
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


# Lengths are given explicitly, since -1 is not defined for an array of shape (N, 0).


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
    """The largest number up to `size / 2` that has no common divisor with `size`; 1 for 1."""
    return next((n for n in range(size // 2, 0, -1) if math.gcd(n, size) == 1), 1)
