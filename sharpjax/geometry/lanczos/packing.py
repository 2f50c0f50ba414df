"""Packs the small leaves of a vector into one array, while a solver works with it.

XLA on CPU compiles about ten fusions for each leaf of each vector that a step reads, which takes
.3 s of processor time a leaf. Networks have many leaves, but few large ones: a transformer of
818,000 parameters has 52, none above 65,536 numbers. When they are packed, a step is compiled for
one array.

Packing does not change random numbers: `tree.random_normal` draws for all small leaves together, in
the order in which they are packed. Sums are taken in another order, so their rounding differs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import loops, tree

Params = Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Packing:
    """Which leaves are packed together.

    Attributes:
        treedef, shapes, dtypes: those of a vector and its leaves.
        groups: indices of the leaves in each group, in the order of `tree.shared_draws`; a leaf
            that is alone in its group keeps its shape.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def like(self) -> tuple[np.ndarray, ...]:
        """The structure of a packed vector; takes no memory."""
        return tuple(
            np.broadcast_to(np.zeros((), self.dtypes[group[0]]), self._shape(group))
            for group in self.groups
        )

    def pack(self, vector: Params, join: Any = jnp.concatenate) -> tuple[Any, ...]:
        """The packed arrays of a vector; its leaves may have leading axes."""
        leaves = jax.tree.leaves(vector)
        return tuple(
            leaves[group[0]]
            if len(group) == 1
            else join([self._flat(leaves[i], i) for i in group], axis=-1)
            for group in self.groups
        )

    def unpack(self, packed: tuple[Any, ...]) -> Params:
        """The vector, from numpy or jax arrays, which may have leading axes."""
        leaves: list[Any] = [None] * len(self.shapes)
        for group, x in zip(self.groups, packed, strict=True):
            if len(group) == 1:
                leaves[group[0]] = x
                continue
            begin = 0
            for i in group:
                end = begin + math.prod(self.shapes[i])
                leaves[i] = x[..., begin:end].reshape((*x.shape[:-1], *self.shapes[i]))
                begin = end
        return jax.tree.unflatten(self.treedef, leaves)

    def product(self, product: Any) -> Partial:
        """A product on vectors, turned into a product on packed vectors."""
        return Partial(_packed, self, product)

    # On the host, where nothing is compiled: for the vectors that a user passes and receives.

    def store(self, vector: Params) -> tuple[jax.Array, ...]:
        """`pack`, outside of a trace."""
        small = {i for group in self.groups if len(group) > 1 for i in group}
        leaves, treedef = jax.tree.flatten(vector)
        leaves = [jax.device_get(x) if i in small else x for i, x in enumerate(leaves)]
        return jax.device_put(self.pack(treedef.unflatten(leaves), np.concatenate))

    def read(self, packed: tuple[jax.Array, ...]) -> Params:
        """`unpack`, outside of a trace."""
        pairs = zip(self.groups, packed, strict=True)
        host = tuple(jax.device_get(x) if len(group) > 1 else x for group, x in pairs)
        return jax.device_put(self.unpack(host))

    def _shape(self, group):
        if len(group) == 1:
            return self.shapes[group[0]]
        return (sum(math.prod(self.shapes[i]) for i in group),)

    def _flat(self, x, i):
        lead = x.shape[: x.ndim - len(self.shapes[i])]
        return x.reshape((*lead, math.prod(self.shapes[i])))


def of(like: Params, others: Any) -> Packing | None:
    """How vectors like this are packed; None if they are not.

    They are not packed inside a trace, with host code, if they lie on several devices or not on
    jax's default device, or if no two leaves can be packed together.

    Args:
        others: the product, and the other operands of a solver.
    """
    if loops.holds_host_code(others) or loops.is_traced((like, others)) or loops.inside_jit():
        return None
    leaves, treedef = jax.tree.flatten(like)
    if not all(map(_is_here, leaves)):
        return None
    wide = jax.tree.leaves(jax.eval_shape(tree.widen, like))
    groups = tuple(map(tuple, tree.shared_draws(wide)))
    if len(groups) == len(leaves):
        return None
    shapes, dtypes = tuple(x.shape for x in wide), tuple(x.dtype for x in wide)
    return Packing(treedef, shapes, dtypes, groups)


def _is_here(leaf) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return True
    if not isinstance(leaf, jax.Array):
        return False
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return leaf.devices() == {jax.local_devices()[0] if chosen is None else chosen}


def _packed(packing, product, vector):
    return packing.pack(product(packing.unpack(vector)))
