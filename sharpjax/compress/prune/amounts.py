"""How much is pruned: the count rule, what may be pruned, and shares layer by layer."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpjax import tree
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError


def num_pruned(amount: float, n: int) -> int:
    """How many of n weights are pruned: `min(round(amount n), n - 1)`.

    The product is rounded to float64 and then to the nearest integer, a half to the even one, as
    `torch.nn.utils.prune` does. One weight is always kept.

    >>> num_pruned(0.5, 5), num_pruned(0.5, 7), num_pruned(0.1, 25), num_pruned(0.99, 10)
    (2, 4, 2, 9)
    """
    return max(min(round(check_amount("prune.num_pruned", amount) * n), n - 1), 0)


def check_amount(caller: str, amount: Any, argument: str = "amount") -> float:
    """A share in [0, 1) as a float.

    Raises:
        UserError: it is none.
    """
    real = isinstance(amount, numbers.Real) or getattr(amount, "shape", None) == ()
    if isinstance(amount, bool) or not real or not 0 <= float(amount) < 1:
        everything = " 1 prunes everything." if real and float(amount) == 1 else ""
        raise UserError(
            f"{caller}: {argument}={amount!r}; give the share that is pruned, at least 0 and less "
            f"than 1, as 0.9.{everything}"
        )
    return float(amount)


def check_structure(caller: str, argument: str, given: Any, params: Any) -> None:
    """Refuses a tree of another structure, naming the leaves that differ."""
    if jax.tree.structure(given) != jax.tree.structure(params):
        tree.check_same_structure(caller, argument, given, params)


def uniform(params: Any, amount: float, scope: Scope = "kernels") -> Any:
    """The same share of every array in scope, and 0 of the others.

    >>> uniform({"bias": np.zeros(4), "kernel": np.zeros((3, 4))}, 0.5)
    {'bias': 0.0, 'kernel': 0.5}
    """
    share = check_amount("prune.uniform", amount)
    shares = [share if own else 0.0 for own in in_scope("prune.uniform", params, scope)]
    return jax.tree.unflatten(jax.tree.structure(params), shares)


def by_name(params: Any, amounts: Mapping[str, float]) -> Any:
    """Shares by globs on the names of arrays; an array that several match has that of the last, one
    that none matches has 0.

    Raises:
        UserError: a glob that matches no array; a share outside [0, 1).

    >>> params = {"a": {"kernel": np.zeros((2, 2))}, "head": {"kernel": np.zeros((2, 2))}}
    >>> by_name(params, {"*/kernel": 0.9, "head/*": 0.5})
    {'a': {'kernel': 0.9}, 'head': {'kernel': 0.5}}
    """
    shares = [0.0] * len(jax.tree.leaves(params))
    for glob, amount in amounts.items():
        share = check_amount("prune.by_name", amount, f"amounts[{glob!r}]")
        hits = jax.tree.leaves(tree.select(params, glob))
        shares = [share if hit else before for hit, before in zip(hits, shares, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), shares)


def erk(
    params: Any,
    amount: float,
    scope: Scope = "kernels",
    *,
    kernel: bool = True,
    power: float = 1.0,
) -> Any:
    """Shares by the rule of Erdos, Renyi and kernels (arXiv 1911.11134): the larger an array, the
    more of it is pruned.

    The density of an array is `eps (sum(shape) / prod(shape)) ** power`. `eps` is such that
    `n - floor(amount n)` numbers are kept, summed over the arrays of n numbers. While that asks for
    a density above 1, the arrays of the largest one are kept whole and the others share the rest.

    Args:
        amount: of all arrays in scope together.
        kernel: False: the shape is that of the last two axes alone (Erdos-Renyi, 1707.04780).
        power: of the density.

    Returns:
        a tree like the parameters, of floats: 0 outside of the scope. `mask` rounds them layer by
        layer, so the total may differ from `amount` by half a weight for each array, and by what
        `floor` keeps.

    >>> shapes = {"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}
    >>> params = {name: np.zeros(shape) for name, shape in shapes.items()}
    >>> {name: round(share, 3) for name, share in erk(params, 0.5).items()}
    {'a': 0.0, 'b': 0.31, 'c': 0.655}
    """
    share = check_amount("prune.erk", amount)
    if not isinstance(power, numbers.Real) or not 0 <= power < math.inf:
        raise UserError(f"prune.erk: power={power!r}; give a number that is at least 0.")
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    own = in_scope("prune.erk", params, scope)
    left = [i for i, shape in enumerate(shapes) if own[i] and math.prod(shape)]
    sizes = {i: math.prod(shapes[i]) for i in left}
    used = {i: shapes[i] if kernel else shapes[i][-2:] for i in left}
    raw = {i: ((sum(used[i]) or 1) / math.prod(used[i])) ** power for i in left}
    kept = sum(n - math.floor(share * n) for n in sizes.values())
    shares = [0.0] * len(shapes)
    while share and left:
        eps = kept / sum(raw[i] * sizes[i] for i in left)
        largest = max(raw[i] for i in left)
        if eps * largest <= 1:
            for i in left:
                shares[i] = 1 - eps * raw[i]
            break
        whole = [i for i in left if raw[i] == largest]
        kept -= sum(sizes[i] for i in whole)
        left = [i for i in left if i not in whole]
    return jax.tree.unflatten(jax.tree.structure(params), shares)
