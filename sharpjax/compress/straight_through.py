"""Quantisation-aware training: a function at the rounded weights, as a function of the weights.

    loss_4 = on_quantised(loss, 4)                  # loss_4(params, batch) = loss(q(params), batch)
    grads = jax.grad(loss_4)(params, batch)         # at q(params), straight through the rounding
    geometry.top_eigenpairs(geometry.hessian(loss_4, params, batch), key=key, k=1)

Quantisation-aware training (arXiv 1712.05877) minimises the loss at the rounded weights, while the
weights themselves can move by less than a step. The Hessian is that of the loss at the rounded
weights, with zeros for clipped weights; see `fake_quantise`.
"""

import dataclasses
from typing import Any

import jax
from jax.tree_util import Partial

from sharpjax.compress import grid
from sharpjax.compress.grid import Bound
from sharpjax.compress.scope import Scope
from sharpjax.compress.weights import fake_quantise_params


@dataclasses.dataclass(frozen=True)
class _OnQuantised:
    """The static part of `on_quantised`: equal by value, so that it is compiled once."""

    bits: int
    chosen: tuple[str | bool, ...]  # the leaves of `scope`
    structure: Any
    per_channel: bool
    min_numbers: int
    symmetric: bool
    bound: Bound

    def __call__(self, fn: Any, params: Any, batch: Any) -> Any:
        rounded = fake_quantise_params(
            params,
            self.bits,
            scope=jax.tree.unflatten(self.structure, self.chosen),
            per_channel=self.per_channel,
            min_numbers=self.min_numbers,
            symmetric=self.symmetric,
            bound=self.bound,
        )
        return fn(rounded, batch)


def on_quantised(
    fn: Any,
    bits: int,
    *,
    scope: Scope = "kernels",
    per_channel: bool = True,
    min_numbers: int = 0,
    symmetric: bool = True,
    bound: Bound = "integer",
) -> Partial:
    """`fn(fake_quantise_params(params, bits, ..), batch)`: a loss, or the `model_fn` of one.

    Each call computes the steps from the weights; derivatives treat the steps as constants. For
    Gauss-Newton and Fisher matrices, pass the model:
    `geometry.composed(on_quantised(loss.model_fn, 4), loss.outer_loss)`.

    Args:
        fn: `fn(params, batch)`, a function or a callable pytree.
        bits, scope, per_channel, min_numbers, symmetric, bound: as in `quantise_params`.

    Raises:
        UserError: invalid `bits` or `bound`; when called, nothing is in scope.

    >>> import jax.numpy as jnp
    >>> loss = on_quantised(lambda p, batch: jnp.sum((p["kernel"] - batch) ** 2), 2)
    >>> w, target = {"kernel": jnp.array([0.7, -1.0])}, jnp.zeros(2)
    >>> print(loss(w, target), jax.grad(loss)(w, target)["kernel"])  # at [1, -1]
    2.0 [ 2. -2.]
    """
    bits = grid.whole_bits("on_quantised", bits)
    grid.check_options("on_quantised", bound)
    parts, structure = jax.tree.flatten(scope)
    chosen = tuple(part if isinstance(part, str) else bool(part) for part in parts)
    is_function = jax.tree_util.treedef_is_leaf(jax.tree.structure(fn))
    rounded = _OnQuantised(bits, chosen, structure, per_channel, min_numbers, symmetric, bound)
    return Partial(rounded, Partial(fn) if is_function else fn)
