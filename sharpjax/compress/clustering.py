"""Weight sharing: k-means of the numbers of a leaf.

held = cluster_params(params, 16)     # labels of 4 bits and 16 centres for each kernel
params_16 = uncluster_params(held)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.compress.integers import refuse_non_finite
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError, whole_number

_SWEEPS = 10_000


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Clustered:
    """An array whose numbers are `centres[labels]`.

    Attributes:
        labels: uint8, in the shape of the array.
        centres: [k], ascending, in the dtype of the array.
    """

    labels: jax.Array
    centres: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.labels.shape


def cluster(x: jax.Array, k: int) -> Clustered:
    """The numbers of an array in k clusters, each represented by its mean (Lloyd's algorithm).

    Nothing is random. Centres start evenly spaced from the least to the greatest number (S. Han et
    al., 2016, arXiv 1510.00149). A cluster that becomes empty keeps its centre. The algorithm stops
    when no number changes its cluster, or after 10,000 sweeps. A number halfway between two centres
    goes to the lower one. The result is a local minimum of the squared error.

    Args:
        x: floats.
        k: from 2 to 256.

    Cost: on the host, in float64: a sort of n numbers, then n + k log n for each sweep.

    Raises:
        UserError: k is out of bounds; x is empty, or holds NaN or infinity; inside a trace.

    >>> held = cluster(jnp.array([0.0, 0.5, 0.75, 1.25]), 2)
    >>> held.labels.tolist(), held.centres.tolist()
    ([0, 0, 1, 1], [0.25, 1.0])
    """
    return _cluster("cluster", x, k, "x")


def uncluster(held: Clustered) -> jax.Array:
    """`centres[labels]`."""
    return jnp.take(held.centres, held.labels.astype(jnp.int32), axis=0)


def cluster_params(params: Any, k: int, *, scope: Scope = "kernels") -> Any:
    """The tree with a `Clustered` in place of each leaf in scope, each with its own k centres.

    Args and errors: as in `cluster`, with the name of the leaf; scope as in `quantise_params`.
    """
    leaves, structure = jax.tree.flatten(params)
    chosen = in_scope("cluster_params", params, scope)
    new = [
        _cluster("cluster_params", leaf, k, f"'{name}'") if hit else leaf
        for name, leaf, hit in zip(tree.path_names(params), leaves, chosen, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def uncluster_params(held: Any) -> Any:
    """The tree with an array in place of each `Clustered`."""
    return jax.tree.map(
        lambda node: uncluster(node) if is_clustered(node) else node, held, is_leaf=is_clustered
    )


def is_clustered(node: Any) -> bool:
    """Whether a node of a tree is an array held as clusters."""
    return isinstance(node, Clustered)


def _cluster(caller: str, x: Any, k: int, argument: str) -> Clustered:
    if whole_number(caller, "k", k, least=2) > 256:
        raise UserError(f"{caller}: k={k}; give at most 256, for labels of 8 bits.")
    if loops.is_traced(x):
        raise UserError(f"{caller}: call it outside of jit, grad and vmap; it computes in numpy.")
    tree.check_floating(caller, jnp.asarray(x), argument)
    refuse_non_finite(caller, x, argument)
    numbers = np.sort(np.asarray(x, np.float64).reshape(-1))
    if not numbers.size:
        raise UserError(f"{caller}: {argument} is empty; there is nothing to cluster.")
    centres, ends = np.linspace(numbers[0], numbers[-1], k), None
    for _ in range(_SWEEPS):
        inner = np.searchsorted(numbers, (centres[1:] + centres[:-1]) / 2, side="right")
        if ends is not None and np.array_equal(inner, ends[1:-1]):
            break
        ends = np.concatenate([[0], inner, [numbers.size]])
        counts = np.diff(ends)
        some = counts > 0
        # Sums of each cluster alone: differences of prefix sums would cancel.
        centres[some] = np.add.reduceat(numbers, ends[:-1][some]) / counts[some]
    held = jnp.asarray(x)
    labels = np.searchsorted((centres[1:] + centres[:-1]) / 2, np.asarray(x, np.float64))
    return Clustered(jnp.asarray(labels, jnp.uint8), jnp.asarray(centres, held.dtype))
