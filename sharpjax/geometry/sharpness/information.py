"""Information-geometric sharpness: the gradient's length in the inverse Fisher metric."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.exact.contributions import output_shapes
from sharpjax.geometry.exact.cotangents import as_problem
from sharpjax.geometry.exact.gauss_newton import refuse_mixing
from sharpjax.geometry.exact.gram import gram
from sharpjax.geometry.loss.assumptions import both, mark
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.loss.composed import methods
from sharpjax.geometry.operators.gauss_newton import fisher
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

_MOST_BYTES = 2**30  # of the matrix of a chunk
_ROUNDINGS = 16  # of the largest eigenvalue, within which one is not known from zero


class InformationSharpness(NamedTuple):
    """`g'F^+ g`, the mean over chunks.

    Attributes:
        value: what is known of it: directions in which F is not known from zero are left out.
        upper: the same with all of them; for cross-entropy the mean of `(1 - p_y) / p_y`.
        eigenvalues: [chunks, mC], of F, descending, with C directions an example: K, or K - 1 for
            softmax. Its others are 0.
        parts: [chunks, mC], what the direction of each adds, so that a truncated value is a sum of
            the first of them.
        status: `Status`, int32: `NOT_CONVERGED` where `value` and `upper` differ by more than 1 %
            though there are parameters enough for all directions.
    """

    value: jax.Array
    upper: jax.Array
    eigenvalues: jax.Array
    parts: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`information_sharpness`; its error is 0, and NaN where it is not known (`status`)."""
        error = jnp.where(self.status == Status.OK, jnp.zeros_like(self.value), jnp.nan)
        one = jnp.ones(jnp.shape(self.value), jnp.int32)
        return {"information_sharpness": Estimate(self.value, error, one)}


def information_sharpness(
    loss: Any, params: Params, batch: Any, *, m: int | None = None
) -> InformationSharpness:
    """`g'F^+ g`, with g the gradient and F the Fisher matrix: information-geometric sharpness
    (Jang et al., 2022, NeurIPS), which no smooth change of the parameters alters.

    By its dual form. With J the Jacobian of the outputs, `M_n` the Hessian of the outer loss of
    example n and `r_n` its slope, `F = J'MJ / N` and `g = J'r / N`, and

        g'F^+ g = |P c|^2 / N,    c_n = M_n^(-1/2) r_n,

    with P the projection on the range of the matrix `M^(1/2) JJ' M^(1/2)`, N K numbers square.
    Where that has all the rank that M allows, P drops out and it is `|c|^2 / N`: of softmax
    cross-entropy the mean of `(1 - p_y) / p_y`, a function of the training confidences alone. So it
    is for nets with more than N K parameters and no two examples alike; `upper` is that number.

    Directions whose eigenvalue is below 16 eps of the largest (2e-6 in float32) are not known from
    those of eigenvalue 0 and are left out. Where there are fewer parameters than directions nothing
    says how much they would add: with one feature of five scaled by 1e-3 it was 1 % in float32, by
    1e-4 4 %. Compute such models in float64.

    Cost: for each chunk K back-propagations an example, without the weight gradients of dense
    layers, their products, and an eigendecomposition of N K numbers square. Of convolutions, dense
    layers at many positions and all else the gradients of all outputs are formed. Memory: five
    matrices of N K numbers square, and 256 MB (or what two examples take): examples that do not fit
    there are taken in blocks, and differentiated again for each pair of these. No derivative is
    propagated through it.

    Args:
        loss: from `composed`, or any other that has its parts, whose outer loss is canonical, as in
            `fisher`: softmax cross-entropy, half the squared error. No declared weights.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        m: examples a chunk, dividing their number; the value is the mean over chunks of each one's
            own. None: all.

    Raises:
        UserError: an argument does not fit; the outputs of one example depend on the others of its
            batch; the matrix of a chunk takes more than 1 GiB.

    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import CrossEntropy
    >>> loss = composed(lambda w, batch: batch["x"] @ w, CrossEntropy())
    >>> batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    >>> found = information_sharpness(loss, jnp.zeros((2, 4)), batch)
    >>> print(f"{found.value:.3f}")  # (1 - 1/4) / (1/4)
    3.000
    """
    caller = "information_sharpness"
    operator = fisher(loss, params, batch)
    params, batch = operator.params, operator.batch
    refuse_sharded(caller, batch, "replicate them, jax.reshard(batch, jax.P()).")
    count = loops.count_examples(caller, batch)
    size = count if m is None else whole_number(caller, "m", m)
    chunks = loops.split_chunks(caller, batch, size)
    if operator.how.way != "linearized":
        raise UserError(
            f"{caller}: needs the model forwards and backwards, and a layer of it has one of these "
            f"alone. Use the layer's reference implementation in JAX."
        )
    problem = as_problem(caller, operator)
    outputs = output_shapes(problem.model, params, batch)
    if problem.weight is not None or getattr(outputs, "shape", ())[:1] != (count,):
        raise UserError(
            f"{caller}: takes an unweighted mean over examples with one row of outputs each. Leave "
            f"masked examples out of the batch."
        )
    outer = size * outputs.size // count
    if outer**2 * outputs.dtype.itemsize > _MOST_BYTES:
        raise UserError(
            f"{caller}: {size} examples of {outputs.size // count} outputs make a matrix of "
            f"{outer**2 * outputs.dtype.itemsize / 2**30:.1f} GiB; take chunks of fewer examples, "
            f"m=."
        )
    checked = both(operator.checked, refuse_mixing(caller, problem))
    given = problem.model, problem.outer, params
    found = [_chunk(*given, tree.index(chunks, i)) for i in range(count // size)]
    return mark(_mean(tree.size(params), tree.stack(found)), checked)


def _chunk(model, outer_loss, params, batch):
    """`|c|^2 / N` and, by eigenvalues of F descending, what each direction adds to it."""
    roots, c, holds = _roots(model, outer_loss, params, batch)
    return _decompose(gram(model, params, batch, roots), c, holds)


@jax.jit
def _roots(model, outer_loss, params, batch):
    with jax.default_matmul_precision("highest"):
        outputs = tree.widen(model(tree.widen(params), batch))
        count, *shape = outputs.shape
        whiten = jax.tree_util.Partial(_whiten, outer_loss, shape)
        roots, c, holds = jax.vmap(whiten)(outputs.reshape(count, -1), batch)
    return roots.reshape(*c.shape, *shape), c, jnp.all(holds)


@jax.jit
def _decompose(matrix, c, holds):
    count, c = len(c), c.reshape(-1)
    with jax.default_matmul_precision("highest"):
        eigenvalues, basis = jnp.linalg.eigh((matrix + matrix.T) / 2)
        parts = jnp.square(c @ basis) / count
    upper = jnp.where(holds, jnp.sum(jnp.square(c)) / count, jnp.nan)
    return upper, eigenvalues[::-1] / count, parts[::-1]


def _whiten(outer_loss, shape, row, one):
    """For one example R [C, K] and c [C], with `M = R'R` and `r = R'c`, and whether that holds."""
    one, outputs = jax.tree.map(lambda x: jnp.expand_dims(x, 0), one), row.reshape(1, *shape)
    likelihood = methods(outer_loss)
    if hasattr(likelihood, "square_root") and hasattr(likelihood, "newton_step"):
        root = likelihood.square_root(outputs, one).reshape(-1, row.size)
        return root, -root @ likelihood.newton_step(outputs, one).reshape(-1), jnp.bool_(True)
    of = lambda row: outer_loss(row.reshape(outputs.shape), one)  # noqa: E731
    slope = jax.grad(of)(row)
    values, vectors = jnp.linalg.eigh(jax.hessian(of)(row))
    eps = _ROUNDINGS * jnp.finfo(values.dtype).eps
    known = values > eps * jnp.max(values)
    root = jnp.sqrt(jnp.where(known, values, 1))
    along = vectors.T @ slope
    # The slope lies in the range of M; where it does not, M is singular by rounding.
    lost = jnp.max(jnp.where(known, 0, jnp.abs(along)))
    holds = lost <= 1e3 * eps * jnp.max(jnp.abs(slope))
    unit = jnp.where(known, root, 0)
    return jnp.expand_dims(unit, 1) * vectors.T, jnp.where(known, along / root, 0), holds


@tells_unknown
@functools.partial(jax.jit, static_argnums=0)
def _mean(num_params: int, chunks) -> InformationSharpness:
    upper, eigenvalues, parts = chunks
    eps = _ROUNDINGS * jnp.finfo(eigenvalues.dtype).eps
    known = eigenvalues > eps * eigenvalues[:, :1]
    value, upper = jnp.mean(jnp.sum(jnp.where(known, parts, 0), 1)), jnp.mean(upper)
    # With fewer parameters than directions some must be missing.
    short = (upper - value > 0.01 * upper) & (num_params >= eigenvalues.shape[1])
    status = jnp.where(short, Status.NOT_CONVERGED, Status.OK)
    finite = jnp.isfinite(upper) & jnp.isfinite(value)
    return InformationSharpness(
        value=jnp.where(finite, value, jnp.nan),
        upper=upper,
        eigenvalues=eigenvalues,
        parts=parts,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )
