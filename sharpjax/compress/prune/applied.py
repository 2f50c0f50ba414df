"""Applying a mask: weights set to 0, counts, and a loss of the kept weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.compress.prune.amounts import check_structure
from sharpjax.errors import UserError
from sharpjax.losses.objective import masked


def apply_mask(params: Any, mask: Any) -> Any:
    """The weights where the mask is not 0, and 0 elsewhere. Differentiable.

    Args:
        params: pytree of arrays.
        mask: a tree like params, of booleans or numbers. A leaf may have fewer axes, so that True
            keeps a whole array.

    Raises:
        UserError: a mask of another structure, or with a leaf that does not broadcast, by name.

    >>> import jax.numpy as jnp
    >>> apply_mask({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([False, True])})
    {'w': Array([0., 2.], dtype=float32)}
    """
    return masked(params, mask, caller="prune.apply_mask")


class Counts(NamedTuple):
    """How many numbers are kept, and how many are pruned."""

    kept: int
    pruned: int

    @property
    def size(self) -> int:
        return self.kept + self.pruned

    @property
    def sparsity(self) -> float:
        """The share that is pruned; NaN if there are no numbers."""
        return self.pruned / self.size if self.size else float("nan")


class Sparsity(NamedTuple):
    """Counts in total, and by the name of each array."""

    total: Counts
    by_leaf: Mapping[str, Counts]


def sparsity(mask: Any, params: Any = None) -> Sparsity:
    """Exact counts of a mask.

    Args:
        mask: as in `apply_mask`.
        params: the weights of the mask; needed if a leaf of the mask has fewer axes than its
            weights, such as True for a whole array. Without them, each leaf is counted by its own
            shape: an array of shape [] is one number.

    Raises:
        UserError: a Python bool in the mask and no params; a mask of another structure, or with a
            leaf that does not broadcast.

    >>> found = sparsity({"a": np.array([True, False, False]), "b": np.array([True])})
    >>> found.total, found.total.sparsity, found.by_leaf["a"].pruned
    (Counts(kept=2, pruned=2), 0.5, 2)
    """
    if params is not None:
        check_structure("prune.sparsity", "mask", mask, params)
    names, leaves = tree.path_names(mask), jax.tree.leaves(mask)
    shaped = leaves if params is None else jax.tree.leaves(params)
    found = {}
    for name, leaf, like in zip(names, leaves, shaped, strict=True):
        if not hasattr(like, "shape"):
            raise UserError(
                f"prune.sparsity: the mask of '{name}' is {leaf!r} and does not say of how many "
                "numbers; give params."
            )
        try:
            whole = np.broadcast_to(np.asarray(leaf) != 0, like.shape)
        except ValueError:
            raise UserError(
                f"prune.sparsity: mask of '{name}' is {list(np.shape(leaf))} and the weights "
                f"{list(like.shape)}; give one of their shape, or True."
            ) from None
        kept = int(np.count_nonzero(whole))
        found[name] = Counts(kept, whole.size - kept)
    total = Counts(sum(c.kept for c in found.values()), sum(c.pruned for c in found.values()))
    return Sparsity(total, found)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MaskedLoss:
    """`loss(mask * params, batch)`; `masked_loss` makes it."""

    loss: Any
    mask: Any

    def __call__(self, params: Any, batch: Any) -> Any:
        return self.loss(apply_mask(params, self.mask), batch)


def masked_loss(loss: Any, mask: Any) -> MaskedLoss:
    """The loss of the kept weights, as a function of all weights: `L(m * w)`.

    Its gradient is m * grad L(m w), and its Hessian is diag(m) H(m w) diag(m). Rows and columns of
    pruned weights are 0, and the rest is the Hessian of the pruned model. So it works with every
    measure of `sharpjax.geometry`: eigenvalues and traces are those of the kept weights, and
    n - kept more eigenvalues are 0. A `model_fn` of `geometry.composed` is masked in the same way.

    Args:
        loss: a function, or a callable pytree, of (params, batch).
        mask: as in `apply_mask`; its leaves are leaves of the result, so masks of the same
            structure share a compilation.

    >>> import jax.numpy as jnp
    >>> loss = masked_loss(lambda w, batch: jnp.sum(w**3), jnp.array([True, False]))
    >>> jax.hessian(loss)(jnp.array([1.0, 2.0]), None).tolist()
    [[6.0, 0.0], [0.0, 0.0]]
    """
    plain = jax.tree.leaves(loss) == [loss]
    return MaskedLoss(Partial(loss) if plain else loss, mask)
