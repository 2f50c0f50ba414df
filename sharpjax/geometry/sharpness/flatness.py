"""Relative flatness: curvature in the last layer, weighted by its weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.geometry.exact.matrix_form import Dense, matrix_form
from sharpjax.geometry.exact.per_example import evaluate, find_entries
from sharpjax.geometry.loss.assumptions import both, mark, require
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.loss.composed import weights
from sharpjax.geometry.loss.implicit import give_arrays, multiplied_out
from sharpjax.geometry.operators.gauss_newton import gauss_newton
from sharpjax.geometry.status import if_finite

Params = Any

_TOLERANCE = 1e-3  # relative difference of outputs between the head and a linear layer


class RelativeFlatness(NamedTuple):
    """Relative flatness of a last layer. Large is sharp.

    Attributes:
        value: `sum_ss' <w_s, w_s'> tr H_ss'`.
        normalised: the same with each feature divided by its standard deviation and its weights
            multiplied by it. Constant features are left out.
        pairs: [K, K], the terms of `value`.
        status: `Status`, int32.
    """

    value: jax.Array
    normalised: jax.Array
    pairs: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`relative_flatness` and `relative_flatness_normalised`, exact on these examples."""
        names = ("relative_flatness", "relative_flatness_normalised")
        return dict(zip(names, map(_exact, self[:2]), strict=True))


def relative_flatness(
    loss: Any, params: Params, batch: Any, *, head: str, microbatch_size: int | None = None
) -> RelativeFlatness:
    """`sum_ss' <w_s, w_s'> tr H_ss'`: curvature in the last layer, in units of its weights
    (Petzka et al., 2021, arXiv 2001.00939).

    `w_s` are the weights of output s, and `H_ss'` the blocks of the Hessian in them; the bias does
    not enter. With features `f` [N, D] and outputs `f W + b` this has a closed form without second
    derivatives of the model,

        value = sum_n |f_n|^2 tr(W M_n W'),

    where `M_n` is the contribution of example n to the Hessian of the outer loss: for softmax
    cross-entropy `(diag(p) - p p') / N`. The value is a mean over the examples, however they are
    cut into batches. (Public codes add up batches.)

    A factor on all features that the head undoes does not change the value. A factor on a single
    feature does not change `normalised`. The division in `normalised` is exact for any model,
    because it is done between the features and the head, not in the layers before.

    Cost: one forward pass, and K products with the Hessian of the outer loss; two passes if the
    kernel is used in any way other than one product with the features. Memory: features and outputs
    of all examples, and the activations of one microbatch.

    Args:
        loss: from `composed`, or any other loss with these parts, as in `gauss_newton`. Declared
            weights are used; a regulariser is not.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        head: name of the kernel, [D, K], of the last layer: a glob on `tree.path_names(params)`.
        microbatch_size: examples per pass, which must divide their number; None: all at once.

    Raises:
        UserError: an argument does not fit; or the leaf is not the kernel of a linear layer whose
            outputs are those of the model, one row for each example (tested by a random change).

    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import CrossEntropy
    >>> loss = composed(lambda params, batch: batch["x"] @ params["kernel"], CrossEntropy())
    >>> batch = {"x": jnp.array([[1.0, 2.0]]), "label": jnp.array([0])}
    >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.0]])}
    >>> p = jax.nn.softmax(jnp.array([1.0, 0.0]))
    >>> found = relative_flatness(loss, params, batch, head="kernel")
    >>> print(jnp.allclose(found.value, 5 * p[0] * p[1]))  # |f|^2 |w_1|^2 p_1 p_2
    True
    """
    caller = "relative_flatness"
    operator = gauss_newton(loss, params, batch, where=head, microbatch_size=microbatch_size)
    loss, params, batch = operator.loss, operator.params, operator.batch
    refuse_sharded(caller, batch, "replicate them, jax.reshard(batch, jax.P()).")
    kernels = jax.tree.leaves(params)
    # The model is an argument of one function, so that jax caches the trace from call to call.
    outputs = jax.eval_shape(give_arrays, loss.model_fn, params, batch)
    loss = multiplied_out(loss)
    shape, count = getattr(outputs, "shape", None), loops.count_examples(caller, batch)
    if len(kernels) != 1 or kernels[0].ndim != 2 or shape != (count, kernels[0].shape[1]):
        raise UserError(
            f"{caller}: head={head!r} must name one kernel [D, K] of a model with outputs "
            f"({count}, K); it names {[x.shape for x in kernels]}, and the outputs are {shape}. "
            f"Where an example has several rows, make each row an example."
        )
    found, holds = _flatness(loss, params, batch, microbatch_size)
    checked = require(
        caller,
        holds,
        f"the outputs of the model are not those of a linear layer with the kernel {head!r}, "
        f"features @ kernel + bias. A head with something behind it (a scale, another layer) or "
        f"with tied weights has no relative flatness.",
    )
    return mark(found, both(operator.checked, checked))


@functools.partial(jax.jit, static_argnums=3)
def _flatness(loss, params, batch, microbatch_size) -> tuple[RelativeFlatness, jax.Array]:
    params = tree.widen(params)
    (kernel,) = jax.tree.leaves(params)
    operands = loss.model_fn, params
    with jax.default_matmul_precision("highest"):
        if microbatch_size is None:
            rows = _rows(operands, batch)
        else:
            chunks = loops.split_chunks("relative_flatness", batch, microbatch_size)
            rows = loops.map_over_chunks(_rows, operands, chunks)
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        features, outputs, change = rows
        weight, count = weights(loss, batch), len(outputs)
        share = jnp.full(count, 1 / count) if weight is None else weight / jnp.sum(weight)
        share = jnp.expand_dims(share.astype(features.dtype), 1)
        counts = share != 0  # NaN, as when all weights are 0, counts
        features = jnp.where(counts, features, 0)

        linear = features @ _change(kernel)
        off = jnp.where(counts, change - linear, 0)
        size = jnp.max(jnp.abs(jnp.where(counts, change, 0)))
        holds = jnp.max(jnp.abs(off)) <= _TOLERANCE * size

        mean = jnp.sum(share * features, 0)
        deviation = jnp.sqrt(jnp.sum(share * jnp.square(features - mean), 0))
        # A constant feature differs from its mean only by rounding.
        varies = deviation > 16 * jnp.finfo(kernel.dtype).eps * jnp.abs(mean)
        scaled = jnp.where(varies, features / jnp.where(varies, deviation, 1), 0)
        lengths = jnp.stack([jnp.sum(jnp.square(x), 1) for x in (features, scaled)])

        def column(unit):
            """`sum_n |f_n|^2 M_n` times a unit vector, for both kinds of features."""
            slope = jax.grad(loss.outer_loss)
            tangents = jnp.broadcast_to(unit, outputs.shape).astype(outputs.dtype)
            curved = jax.jvp(lambda z: slope(z, batch), (outputs,), (tangents,))[1]
            return lengths @ jnp.where(counts, curved, 0).astype(lengths.dtype)

        between = jax.lax.map(column, jnp.eye(kernel.shape[1], dtype=kernel.dtype))
        weighed = jnp.expand_dims(deviation * varies, 1) * kernel
        pairs, normalised = (between[:, i] * (w.T @ w) for i, w in enumerate((kernel, weighed)))
    found = RelativeFlatness(
        value=jnp.sum(pairs),
        normalised=jnp.sum(normalised),
        pairs=pairs,
        status=if_finite(jnp.all(jnp.isfinite(pairs)) & jnp.all(jnp.isfinite(normalised))),
    )
    return found, holds | ~jnp.isfinite(size)


def _rows(operands, batch):
    """The features, the outputs, and how `_change` of the kernel changes the outputs."""
    model_fn, params = operands
    (kernel,), treedef = jax.tree.flatten(params)

    def outputs(kernel, batch):
        return tree.widen(model_fn(treedef.unflatten([kernel]), batch))

    found = outputs(kernel, batch)
    features = _read(outputs, kernel, batch)
    if features is None:
        features = _differentiate(outputs, kernel, batch)
    return features, found, outputs(kernel + _change(kernel), batch) - found


def _read(outputs, kernel, batch):
    """The features, read from the model: the other factor in the product with the kernel.

    None unless the kernel is used in exactly one product, with one row for each example. The factor
    is multiplied by the slope of the first output in the product, which is not 1 for logits divided
    by a temperature. This costs no further pass, because the compiler sees that it is the same as
    that of the outputs.
    """
    closed = jax.make_jaxpr(outputs)(kernel, batch)
    uses = find_entries(closed.jaxpr, 1)[0]
    form = matrix_form(uses[0].eqn, uses[0].operand) if len(uses) == 1 else None
    if not isinstance(form, Dense) or uses[0].moves or uses[0].operand != 1:
        return None
    (count, *_), (rows, columns) = closed.out_avals[0].shape, kernel.shape
    out: Any = form.eqn.outvars[0].aval
    if form.sizes != (1, count, rows, columns) or out.shape != (count, columns):
        return None

    def moved(by):
        (found,), read = evaluate(closed, [kernel, *jax.tree.leaves(batch)], {uses[0].path: by})
        return found[:, 0], read[uses[0].path]

    still = jnp.zeros(out.shape, out.dtype)
    _, slope, read = jax.jvp(moved, (still,), (still.at[:, 0].set(1),), has_aux=True)
    return jnp.expand_dims(slope, 1) * tree.widen(form.inputs(read)[0])


def _differentiate(outputs, kernel, batch):
    """The features of each example, as the gradient of the first output in the first column."""

    def feature(one):
        def first(column):
            return outputs(kernel.at[:, 0].set(column), one)[0, 0]

        return jax.grad(first)(kernel[:, 0])

    return jax.vmap(feature)(jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch))


def _change(kernel):
    size = jnp.sqrt(jnp.mean(jnp.square(kernel)))
    random = jax.random.normal(jax.random.key(0), kernel.shape, kernel.dtype)
    return jnp.where(size > 0, size, 1) * random


def _exact(value) -> Estimate:
    return Estimate(value, jnp.zeros_like(value), jnp.ones(jnp.shape(value), jnp.int32))
