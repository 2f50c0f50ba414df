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
_ROUNDINGS = 16  # an eigenvalue below 16 eps times the largest cannot be told from zero


class InformationSharpness(NamedTuple):
    """`g'F^+ g`, the mean over chunks.

    Attributes:
        value: without the directions in which F cannot be told from zero.
        upper: the same with all directions; for cross-entropy the mean of `(1 - p_y) / p_y`.
        eigenvalues: [chunks, mC], of F, descending, with C directions per example: K, or K - 1 for
            softmax. The other eigenvalues of F are 0.
        parts: [chunks, mC], the contribution of each direction, so that a truncated value is the
            sum of the first of them.
        status: `Status`, int32: `NOT_CONVERGED` if `value` and `upper` differ by more than 1 %
            although there are enough parameters for all directions.
    """

    value: jax.Array
    upper: jax.Array
    eigenvalues: jax.Array
    parts: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`information_sharpness`. Its error is 0, or NaN if `status` is not `OK`."""
        error = jnp.where(self.status == Status.OK, jnp.zeros_like(self.value), jnp.nan)
        one = jnp.ones(jnp.shape(self.value), jnp.int32)
        return {"information_sharpness": Estimate(self.value, error, one)}


def information_sharpness(
    loss: Any, params: Params, batch: Any, *, m: int | None = None
) -> InformationSharpness:
    """`g'F^+ g`, with g the gradient and F the Fisher matrix: information-geometric sharpness
    (Jang et al., 2022, NeurIPS), which no smooth change of the parameters alters.

    It is computed in its dual form. Let J be the Jacobian of the outputs, and `M_n` and `r_n` the
    Hessian and gradient of the outer loss of example n. Then `F = J'MJ / N`, `g = J'r / N`, and

        g'F^+ g = |P c|^2 / N,    c_n = M_n^(-1/2) r_n,

    with P the projection onto the range of the matrix `M^(1/2) JJ' M^(1/2)`, of size NK x NK. If
    this matrix has all the rank that M allows, P drops out and the value is `|c|^2 / N`. For
    softmax cross-entropy this is the mean of `(1 - p_y) / p_y`, a function of the training
    confidences alone. This holds for networks with more than N K parameters and no two examples
    alike; `upper` is that number.

    Directions whose eigenvalue is below 16 eps of the largest (2e-6 in float32) cannot be told from
    those of eigenvalue 0 and are left out. If there are fewer parameters than directions, nothing
    shows how much they would add: with one feature of five scaled by 1e-3 it was 1 % in float32,
    and 4 % with 1e-4. Compute such models in float64.

    Cost, for each chunk: K back-propagations per example (without the weight gradients of dense
    layers), their products, and an eigendecomposition of size NK x NK. For convolutions, dense
    layers at many positions and all other layers, the gradients of all outputs are formed. Memory:
    five matrices of NK x NK numbers, and 256 MB (or what two examples take). Examples that do not
    fit into it are taken in blocks, and differentiated again for each pair of blocks. No derivative
    is propagated through the result.

    Args:
        loss: from `composed`, or any other loss with these parts. Its outer loss must be canonical,
            as in `fisher`: softmax cross-entropy, half the squared error. It must not declare
            weights.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        m: examples per chunk, which must divide their number. The value is the mean of the values
            of the chunks. None: all.

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
    """`|c|^2 / N`, the eigenvalues of F, descending, and the contribution of each direction."""
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
    """R [C, K] and c [C] of one example, with `M = R'R` and `r = R'c`, and whether this holds."""
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
    # The slope lies in the range of M; if it does not, M is singular by rounding.
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
    # With fewer parameters than directions, some directions must be missing.
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
