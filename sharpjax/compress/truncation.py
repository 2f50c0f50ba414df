"""Kernels as products of two thin matrices, by their singular value decomposition.

    held = low_rank(params, energy=0.95)        # a `LowRank` if that takes fewer numbers
    params_k = merge_low_rank(held)             # of the old shapes, for any use of params

A kernel is treated as the matrix [inputs, outputs] that it applies: [in, out] for a dense layer,
[height width in, out] for a convolution. To train the factors of matrices, see `sharpjax.nn.svd`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.compress import grid, kernels
from sharpjax.compress.integers import refuse_non_finite
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError, whole_number
from sharpjax.nn import svd
from sharpjax.nn.svd import Decomposition


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """A kernel held as left @ right.

    Attributes:
        left: U diag(s), [m, k].
        right: V', [k, n].
        shape: original shape of the kernel, with m n numbers.
    """

    left: jax.Array
    right: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def low_rank(
    params: Any,
    *,
    rank: int | None = None,
    rank_fraction: float | None = None,
    energy: float | None = None,
    scope: Scope = "kernels",
) -> Any:
    """The tree with the best rank-k approximation of each kernel, as two factors.

    W = U diag(s) V' is truncated to k singular values. The error in the Frobenius norm is
    sqrt(s_{k+1}^2 + s_{k+2}^2 + ..), and in the spectral norm s_{k+1}. No matrix of rank k has a
    smaller error (Eckart and Young, 1936). A kernel [m, n] stays as it is if the factors would not
    have fewer numbers, k (m + n) >= m n. Computed in float32 at least; the factors have the dtype
    of the kernel.

    Args:
        params: pytree of floats; for a population, `jax.vmap` this function (not with `energy`).
        rank: k, or min(m, n) if that is less.
        rank_fraction: f, with k = floor(f min(m, n)) as in `sharpjax.nn.svd.decompose`.
        energy: in (0, 1]; k is the least for which s_1^2 + .. + s_k^2 is at least this share of the
            sum of all squares.
        scope: 'kernels', 'trainable', or globs; leaves of fewer than two axes are left as they are.

    Give one of `rank`, `rank_fraction` and `energy`. Cost: an SVD of each kernel, some
    20 m n min(m, n) operations.

    Raises:
        UserError: none or several of the three are given, or one is out of bounds; a kernel holds
            NaN or infinity; nothing is in scope; `energy` inside a trace, since shapes would depend
            on values.

    >>> held = low_rank({"kernel": jnp.ones((3, 3, 2, 8)), "bias": jnp.ones(8)}, rank=1)
    >>> held["kernel"].left.shape, held["kernel"].right.shape
    ((18, 1), (1, 8))
    """
    if [rank, rank_fraction, energy].count(None) != 2:
        raise UserError(
            f"low_rank: rank={rank}, rank_fraction={rank_fraction}, energy={energy}; give one."
        )
    if rank is not None:
        rank = whole_number("low_rank", "rank", rank)
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"low_rank: energy={energy}; give a number above 0 and at most 1.")
    fraction = None if rank_fraction is None else Decomposition(rank_fraction)
    leaves, structure = jax.tree.flatten(params)
    if energy is not None and loops.is_traced(leaves):
        raise UserError(
            "low_rank: energy decides how many numbers there are; call it outside of jit and vmap, "
            "or give rank."
        )
    chosen, names = in_scope("low_rank", params, scope), tree.path_names(params)
    new = list(leaves)
    for i, outputs in enumerate(kernels.output_axes(params)):
        leaf = jnp.asarray(leaves[i])
        if not chosen[i] or leaf.ndim < 2 or not leaf.size:
            continue
        tree.check_floating("low_rank", leaf, f"'{names[i]}'")
        refuse_non_finite("low_rank", leaf, f"'{names[i]}'")
        m = math.prod(leaf.shape[: leaf.ndim - len(outputs)])
        matrix = leaf.reshape(m, -1).astype(grid.computed_in(leaf.dtype))
        n = matrix.shape[1]
        if energy is not None:
            k = rank_of_energy(jnp.linalg.svd(matrix, compute_uv=False), energy)
        elif fraction is not None:
            k = fraction.rank(m, n, name=f"'{names[i]}'")
        else:
            k = min(rank or 1, m, n)
        if k * (m + n) < m * n:
            factors = svd.factorise(matrix, k)
            left, right = factors["U"] * factors["s"][None], factors["Vt"]
            new[i] = LowRank(left.astype(leaf.dtype), right.astype(leaf.dtype), leaf.shape)
    return jax.tree.unflatten(structure, new)


def rank_of_energy(singular_values: Any, energy: float) -> int:
    """The least k for which the k largest singular values hold this share of the sum of squares.

    >>> rank_of_energy([3.0, 4.0, 0.0], 0.9), rank_of_energy([1.0, 1.0], 0.5)
    (2, 1)
    """
    squares = np.sort(np.square(np.asarray(singular_values, np.float64)))[::-1]
    sums = np.cumsum(squares)
    return max(1, int(np.searchsorted(sums, energy * sums[-1] * (1 - 1e-12))) + 1)


def merge_low_rank(held: Any) -> Any:
    """The tree with kernels in their original shapes in place of each `LowRank`.

    >>> bool(jnp.allclose(merge_low_rank(low_rank(jnp.ones((4, 4)), rank=1, scope="*")), 1.0))
    True
    """
    return jax.tree.map(
        lambda node: _merged(node) if is_low_rank(node) else node, held, is_leaf=is_low_rank
    )


def is_low_rank(node: Any) -> bool:
    """Whether a node of a tree is a kernel held as two factors."""
    return isinstance(node, LowRank)


def _merged(node: LowRank) -> jax.Array:
    product = jnp.matmul(node.left, node.right, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(node.shape)
