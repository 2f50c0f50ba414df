"""An operator without a solver: one product, the dense matrix, and a scipy operator."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss.assumptions import renewed

Params = Any

_COLUMNS = 32  # columns of a dense matrix that are computed together


def check_vector(caller: str, argument: str, call: str, operator: Any, vector: Any) -> Params:
    """Checks a vector of an operator and returns it in float32 at least.

    Args:
        call: the code that uses one vector `v`, for the error message.

    Raises:
        UserError: names `caller`, `argument` and the leaf that differs, and says what to do with a
            flat array and with many vectors.
    """
    like, wide = jax.eval_shape(tree.widen, operator.like), tree.widen(vector)
    shapes = [x.shape for x in jax.tree.leaves(like)]
    given = [getattr(x, "shape", None) for x in jax.tree.leaves(vector)]
    if given != shapes and given == [(tree.size(like),)]:
        raise UserError(
            f"{caller}: {argument} is one flat array. Give a tree: "
            f"jax.flatten_util.ravel_pytree(operator.like)[1]({argument})."
        )
    many = {shape[:1] for shape in given if shape}
    if len(many) == 1 and [shape and shape[1:] for shape in given] == shapes != given:
        raise UserError(
            f"{caller}: {argument} has a leading axis of {many.pop()[0]}. Of many vectors V: "
            f"jax.vmap(lambda v: {call})(V), or one after another: "
            f"jax.lax.map(lambda v: {call}, V)."
        )
    tree.check_same_structure(caller, argument, wide, like, of="operator.like")
    return wide


def multiply(operator: Any, vector: Params) -> Params:
    """`operator @ vector`: linearised and applied in one compiled program."""
    vector = check_vector("operator @ v", "v", "operator @ v", operator, vector)
    operator = renewed("operator @ v", operator)
    if loops.holds_host_code(operator):
        return operator.linearize()(vector)
    return _multiply(operator, vector)


def to_dense(operator: Any, max_bytes: int) -> jax.Array:
    """All columns, a few at a time."""
    like = operator.like
    size = tree.size(like)
    taken = size**2 * _dtype(like).itemsize
    if taken > max_bytes:
        raise UserError(
            f"to_dense: {size} x {size} numbers take {taken / 2**30:.3g} GiB, more than "
            f"max_bytes={max_bytes} allows. Take products (operator @ v), some leaves alone "
            f"(restricted), or raise max_bytes."
        )
    product = renewed("to_dense", operator).linearize()
    count = min(size, _COLUMNS)
    starts = range(0, size, count)
    if loops.inside_jit() or loops.is_traced(operator):
        firsts = jnp.asarray(starts, jnp.int32)
        rows = loops.map_over_chunks(Partial(_columns, count), (product, like), firsts)
        return rows.reshape(-1, size)[:size].T
    # The loop is in Python, outside of the compiled program, since that may hold convolutions or
    # host code.
    columns = _columns if loops.holds_host_code(product) else _jitted_columns
    return jnp.concatenate([columns(count, (product, like), i) for i in starts])[:size].T


def to_scipy(operator: Any) -> Any:
    """A `scipy.sparse.linalg.LinearOperator` on flat numpy vectors."""
    from scipy.sparse import linalg  # the import takes half a second

    if loops.inside_jit() or loops.is_traced(operator):
        raise UserError("to_scipy: call it outside of jit, grad and vmap; scipy runs on the host.")
    like, product = operator.like, renewed("to_scipy", operator).linearize()
    size, dtype = tree.size(like), _dtype(like)

    def matvec(vector):
        if np.iscomplexobj(vector):  # scipy asks for products of its own complex iterates
            return matvec(vector.real) + 1j * matvec(vector.imag)
        flat = np.asarray(vector, dtype).reshape(-1)
        return np.asarray(_jitted_ravel(loops.call(product, _jitted_unravel(flat, like))))

    make: Any = linalg.LinearOperator
    return make((size, size), matvec=matvec, rmatvec=matvec, dtype=dtype)


@jax.jit
def _multiply(operator, vector):
    return operator.linearize()(vector)


def _columns(count, operands, start):
    """`count` columns from `start` on, as rows of shape [count, n]; zero beyond the last."""
    product, like = operands
    places = start + jnp.arange(count, dtype=jnp.int32)
    size = tree.size(like)
    units = jnp.expand_dims(places, 1) == jnp.expand_dims(jnp.arange(size, dtype=jnp.int32), 0)
    return jax.vmap(lambda unit: _ravel(product(_unravel(unit, like))))(units)


def _ravel(vector):
    """One flat array, in the order of `jax.flatten_util.ravel_pytree`."""
    dtype = _dtype(vector)
    return jnp.concatenate([x.astype(dtype).reshape(-1) for x in jax.tree.leaves(vector)])


def _unravel(flat, like):
    leaves, treedef = jax.tree.flatten(jax.eval_shape(tree.widen, like))
    ends = np.cumsum([0, *(math.prod(x.shape) for x in leaves)])
    parts = zip(leaves, ends[:-1], ends[1:], strict=True)
    made = [flat[a:b].astype(x.dtype).reshape(x.shape) for x, a, b in parts]
    return jax.tree.unflatten(treedef, made)


def _dtype(like):
    """float64 if any leaf is float64, else float32."""
    wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(like))
    return np.dtype("float64" if wide else "float32")


_jitted_columns = jax.jit(_columns, static_argnums=0)
_jitted_ravel = jax.jit(_ravel)
_jitted_unravel = jax.jit(_unravel)
