"""How much is pruned: the count rule, and shares for each layer."""

import math
import numbers
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from sharpjax import tree
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError


def num_pruned(amount: float, n: int) -> int:
    """How many of n weights are pruned: `min(round(amount n), n - 1)`.

    The product is computed in float64 and then rounded to the nearest integer, a half to the even
    one, as in `torch.nn.utils.prune`. One weight is always kept.

    Raises:
        UserError: `amount` is not in [0, 1).

    >>> num_pruned(0.5, 5), num_pruned(0.5, 7), num_pruned(0.1, 25), num_pruned(0.99, 10)
    (2, 4, 2, 9)
    """
    return max(min(round(check_amount("prune.num_pruned", amount) * n), n - 1), 0)


def check_amount(caller: str, amount: Any, argument: str = "amount") -> float:
    """A share in [0, 1) as a float.

    Raises:
        UserError: it is not a number in [0, 1).
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
    """Refuses a tree of another structure, and names the leaves that differ."""
    if jax.tree.structure(given) != jax.tree.structure(params):
        tree.check_same_structure(caller, argument, given, params)


def uniform(params: Any, amount: float, scope: Scope = "kernels") -> Any:
    """A tree of shares: the same for every array in scope, and 0 for the others.

    Raises:
        UserError: a share outside [0, 1); nothing is in scope.

    >>> uniform({"bias": np.zeros(4), "kernel": np.zeros((3, 4))}, 0.5)
    {'bias': 0.0, 'kernel': 0.5}
    """
    share = check_amount("prune.uniform", amount)
    shares = [share if own else 0.0 for own in in_scope("prune.uniform", params, scope)]
    return jax.tree.unflatten(jax.tree.structure(params), shares)


def by_name(params: Any, amounts: Mapping[str, float]) -> Any:
    """A tree of shares from globs on the names of arrays. If several globs match an array, the last
    one counts; if none does, its share is 0.

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
    """Shares by the Erdos-Renyi-kernel rule (arXiv 1911.11134): the larger an array, the larger the
    pruned share.

    The density of an array is `eps (sum(shape) / prod(shape)) ** power`. `eps` is chosen such that
    the total number kept is the sum of `n - floor(amount n)` over the arrays, with n numbers each;
    `amount` is read as the decimal number that is written.
    While a density would be above 1, the arrays of the largest density are kept whole and the
    others share the rest.

    Args:
        params: pytree of arrays.
        amount: share of all arrays in scope together.
        scope: see `scope.Scope`.
        kernel: if False, only the last two axes of a shape count (Erdos-Renyi, arXiv 1707.04780).
        power: exponent of the density.

    Returns:
        a tree like the parameters, of floats: 0 outside the scope. `mask` rounds the count of each
        array, so the total may differ from `amount` by half a weight for each array, and by the
        numbers that `floor` keeps.

    Raises:
        UserError: `amount` is not in [0, 1); `power` is negative or not finite; nothing is in
            scope.

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
    # 0.29 * 100 is 28.999999999999996 in float64.
    kept = sum(n - math.floor(Fraction(str(amount)) * n) for n in sizes.values())
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
