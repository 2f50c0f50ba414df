"""Exact traces and diagonals of Gauss-Newton and Fisher matrices: no probe, no variance."""

import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.exact import contributions, cotangents
from sharpjax.geometry.exact.contributions import Kind
from sharpjax.geometry.exact.cotangents import Problem
from sharpjax.geometry.lanczos.gram_schmidt import hashed
from sharpjax.geometry.loss.assumptions import Checked, calling_parts, require
from sharpjax.geometry.loss.axes import on_auto_axes
from sharpjax.geometry.loss.finite import poison
from sharpjax.geometry.loss.objective import scalar_type
from sharpjax.geometry.operators.algebra import without_derivative

# Memory for the examples of one chunk. A CPU is fastest if they stay in its cache: on a dense net,
# chunks of 128 of 1,024 examples took half the time of all at once.
_CPU_BYTES = 2**24
_BYTES = 2**28

# If examples change each other's outputs by more than this, relatively, the model is refused. The
# rounding of bfloat16 is less.
_SEEN = 0.01


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is divided.

    Attributes:
        examples, chunks: examples in a chunk, and the number of chunks.
        cotangents, passes: cotangents in a pass, and the number of passes over each chunk.
        total: cotangents of one example, each a back-propagation.
        weighted: whether the examples have declared weights.
        ways: for each leaf, its name and way.
    """

    examples: int
    chunks: int
    cotangents: int
    passes: int
    total: int
    weighted: bool
    ways: tuple[tuple[str, contributions.Way], ...]


def exact_part(kind: Kind, problem: Problem) -> tuple[Any, Plan]:
    """The trace by leaf (a tree of scalars) or the diagonal, without any probe, and the plan used.

    `tr G = mean_n sum_c sign_c |J_n' s_c|^2` and `diag G = mean_n sum_c sign_c (J_n' s_c)^2`, with
    `sum_c sign_c s_c s_c'` the matrix between the Jacobians of example n (`cotangents`). Each
    parameter takes the cheapest way (`contributions`), found in the jaxpr of the model on a batch
    of one. Exact up to rounding in the type that the model computes in. Nothing is checked.

    Cost: one forward pass and, for each output of an example, one back-propagation without the
    weight gradients of dense layers. This is 2.5 gradients on a dense net with 10 classes, 2.0 if
    the outer loss has a `square_root`, and about c gradients for convolutions with c outputs.
    Memory: one chunk of examples at a time, 16 MB on CPU and 256 MB elsewhere. A chunk has at most
    `microbatch_size` examples. If one example takes more memory, fewer cotangents are taken at a
    time.
    """
    if loops.is_traced(problem):
        problem = without_derivative(problem)
    # The loss of an example of weight 0 may be NaN.
    with jax.debug_nans(False) if problem.weight is not None else contextlib.nullcontext():
        return _solve(kind, problem)


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over one chunk of examples, for `sharpjax.loops.iterate`."""

    kind: Kind
    plan: Plan

    def __call__(self, carry, operands):
        index, total = carry
        problem, examples = operands
        chunk = index // self.plan.passes
        examples = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, chunk, 1, keepdims=False), examples
        )
        lies = jax.tree.map(lambda x: jax.typeof(x).sharding, total)
        add_up = functools.partial(_add_up, self)
        with jax.default_matmul_precision("highest"):
            each = problem, examples, index % self.plan.passes
            added = on_auto_axes(add_up, *each, lies=lies)
        return index + 1, jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, added)


def _solve(kind: Kind, problem: Problem) -> tuple[Any, Plan]:
    budget = _CPU_BYTES if jax.default_backend() == "cpu" else _BYTES
    plan, carry, examples = _begin(kind, budget, problem)
    operands = (dataclasses.replace(problem, batch=None, keys=None, weight=None), examples)
    steps = plan.chunks * plan.passes
    carry, _ = loops.iterate(_Pass(kind, plan), carry, operands, max_steps=steps)
    return carry[1], plan


def _add_up(step: _Pass, problem, examples, index):
    """The contribution of a chunk of examples to the total."""
    params, weighted = tree.widen(problem.params), step.plan.weighted
    traced = []

    def one(example, key, weight):
        one = jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)
        model, _ = _trace(step.kind, problem, one, key)
        outputs, pull, reads = contributions.pull_back(model, params, problem.model, one)
        signs, vectors = cotangents.squares(problem, outputs, one, key)
        signs = signs * jnp.where(weight > 0, weight, 0).astype(signs.dtype)
        signs, vectors = jax.tree.map(lambda x: _pass(step.plan, x, index), (signs, vectors))
        traced.append(model)
        added = contributions.contributions(
            *(step.kind, model, signs, reads), *jax.vmap(pull)(vectors)
        )
        added = poison(added, _value(problem, outputs, one))
        # The loss of an example of weight 0 may not be finite.
        return jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), added) if weighted else added

    added = jax.vmap(one)(*examples)
    leaves, treedef = jax.tree.flatten(problem.params)
    if step.kind == "trace":
        return jax.tree.unflatten(treedef, [jnp.sum(x) for x in added])
    each = zip(traced[0].routes, leaves, added, strict=True)
    return jax.tree.unflatten(treedef, [contributions.assemble(r, x.shape, a) for r, x, a in each])


def _value(problem, outputs, one):
    """The loss of an example, as far as the matrix depends on it."""
    if problem.rule == "sampled":
        return jnp.zeros(())
    if problem.rule == "value":
        return tree.total([jnp.sum(x) for x in jax.tree.leaves(outputs)])
    return problem.outer(outputs, one)


def _pass(plan, x, index):
    if plan.passes == 1:
        return x
    short = plan.cotangents * plan.passes - plan.total
    x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
    return jax.lax.dynamic_slice_in_dim(x, index * plan.cotangents, plan.cotangents)


def _trace(kind, problem, one, key):
    """The model traced for one example, and the number of its cotangents."""
    params = tree.widen(problem.params)
    outputs = contributions.output_shapes(problem.model, params, one)
    signs, _ = jax.eval_shape(functools.partial(cotangents.squares, problem), outputs, one, key)
    return contributions.trace_model(kind, problem.model, params, one, signs.size), signs.size


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(kind, budget, problem):
    params = tree.widen(problem.params)
    count = loops.count_examples(kind, problem.batch)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), problem.batch)
    key = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), problem.keys)
    traced, cotangents = _trace(kind, problem, one, key)
    plan = _cut(traced, problem, count, cotangents, budget)
    total = tree.zeros_like(params)
    if kind == "trace":
        total = jax.tree.map(jnp.sum, total)
    held = plan.examples * plan.chunks
    weights = (jnp.arange(held) < count).astype(scalar_type(params)) / count
    if problem.weight is not None:
        weight = problem.weight.astype(weights.dtype)
        nothing = jnp.where(jnp.sum(weight) > 0, 0, jnp.nan)  # the loss is 0 / 0
        total = jax.tree.map(lambda x: x + nothing.astype(x.dtype), total)
        weights = jnp.pad(weight / jnp.sum(weight), (0, held - count))

    def cut(x):
        # Interleaved: each chunk takes a share of the examples on each device.
        repeated = jnp.concatenate([x, x[: held - count]]) if held > count else x
        return repeated.reshape(plan.examples, plan.chunks, *x.shape[1:])

    examples = (jax.tree.map(cut, problem.batch), jax.tree.map(cut, problem.keys))
    examples = (*examples, weights.reshape(plan.examples, plan.chunks))
    return plan, (jnp.int32(0), total), examples


def _cut(traced, problem, count, total, budget) -> Plan:
    """Chunks of examples that fit into memory, and several passes over the cotangents if those of
    one example do not fit."""
    fixed, each = traced.numbers()
    fixed += total**2
    passes = min(total, math.ceil(total * each / max(budget // 4 - fixed, 1)))
    together = math.ceil(total / passes)
    most = max(1, budget // 4 // (fixed + together * each))
    if problem.microbatch_size is not None:
        most = min(most, problem.microbatch_size)
    chunks = math.ceil(count / min(most, count))
    names = tree.path_names(problem.params)
    ways = tuple((name, route.way) for name, route in zip(names, traced.routes, strict=True))
    weighted = problem.weight is not None
    return Plan(math.ceil(count / chunks), chunks, together, passes, total, weighted, ways)


def refuse_mixing(caller: str, problem: Problem) -> Checked | None:
    """Refuses a model in which examples affect each other.

    Two examples, far apart in the batch, must have the same outputs and Jacobian together as alone.
    The Jacobian (one product with it) is compared because outputs say little if the head is zero or
    a bias is large.

    Raises:
        UserError: names `caller`; outputs or Jacobian differ by more than 1 %.
    """
    if loops.count_examples(caller, problem.batch) == 1:
        return None
    with jax.debug_nans(False), calling_parts(caller):
        mixes = _mixes(problem)
    return require(
        caller,
        ~mixes,
        "the outputs of one example depend on the others of its batch, or on its place among them, "
        "as those of BatchNorm in training mode do, and of dropout, whose masks differ though the "
        "key is fixed. Call the model in evaluation mode, with frozen statistics and no dropout, "
        "so that it acts on each example by itself.",
    )


@jax.jit
def _mixes(problem):
    if problem.rule == "value":
        return jnp.zeros((), bool)
    return on_auto_axes(_mixes_two, problem)


def _mixes_two(problem):
    middle = loops.count_examples("trace", problem.batch) // 2
    two = jax.tree.map(lambda x: jnp.stack([x[0], x[middle]]), problem.batch)
    alone = jax.tree.map(lambda x: jnp.expand_dims(x, 1), two)
    params = tree.widen(problem.params)
    direction = jax.tree.map(_scrambled, params)

    def along(batch):
        with jax.default_matmul_precision("highest"):
            return jax.jvp(lambda p: tree.widen(problem.model(p, batch)), (params,), (direction,))

    def differs(x, y):
        size, off = (jnp.max(jnp.abs(z), initial=0) for z in (x, x - y.reshape(x.shape)))
        return jnp.isfinite(size) & ~(off <= _SEEN * size)  # true also if `y` is not finite

    different = jax.tree.map(differs, along(two), jax.vmap(along)(alone))
    return jnp.any(jnp.stack(jax.tree.leaves(different)))


def _scrambled(like):
    """Pseudorandom numbers between -1 and 1, made far faster than by a random generator."""
    bits = hashed(jnp.arange(like.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9))
    return bits.astype(like.dtype).reshape(like.shape) / 2.0**31 - 1
