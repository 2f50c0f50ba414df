"""Which weights are kept: masks by magnitude, by saliency, at random."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.compress.prune import amounts
from sharpjax.compress.prune.applied import apply_mask
from sharpjax.compress.prune.structures import Channels, Elements, Structure
from sharpjax.compress.scope import Scope, in_scope
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.geometry.operators.arguments import check_key

Method = Literal["magnitude", "saliency", "random"]
"""The score of a weight: |w|; |w g|, the first-order change of the loss if it is set to 0 (SNIP,
arXiv 1810.02340, where weights and gradient are those at the start); a random number."""


def mask(
    params: Any,
    amount: Any,
    *,
    method: Method = "magnitude",
    scope: Scope = "kernels",
    structure: Structure = Elements(),  # noqa: B008, a frozen value
    key: jax.Array | None = None,
    grads: Any = None,
) -> Any:
    """The mask that prunes the units of lowest score.

    Of n units, `num_pruned(amount, n)` are pruned: exactly `round(amount n)`, a half to the even
    number, and never all of them. Among equal scores the one of lowest index goes first, in the
    order of `jax.tree.leaves` and of rows. So masks are nested: what a smaller amount prunes, a
    larger one does too. Scores are compared as they are: no array is normalised.

    Args:
        params: a pytree of floats, finite; not traced, since it is looked at on the host.
        amount: a number in [0, 1): the units of all arrays in scope are ranked together (global
            pruning). A tree of numbers, as `uniform`, `erk` and `by_name` give: array by array.
        method: see `Method`; 'magnitude' by default.
        scope: what may be pruned: 'kernels'; 'trainable', every array, biases and normalisation
            too; globs; or a tree of booleans (`scope.Scope`). The rest is kept whole. Parameters
            and BatchNorm statistics together: `prune_variables`.
        structure: `Elements()`, `Channels(...)` or `Blocks(...)`; `n_of_m` is a function of its
            own.
        key: read by method 'random'. The same key gives nested masks.
        grads: a tree like params, read by method 'saliency'.

    Returns:
        a tree like the parameters, of boolean arrays of their shapes: True is kept.

    Raises:
        UserError: an amount of 1 or more, a structure that does not fit an array, weights or
            gradients that are not finite, an amount for an array out of scope, or what a method
            reads that is missing.

    Cost: a partial sort of the scores, O(n), on the host.

    >>> params = {"bias": jnp.array([0.0, 0.1]), "kernel": jnp.array([[3.0, -1.0], [2.0, 0.5]])}
    >>> mask(params, 0.5)["kernel"].tolist(), mask(params, 0.5)["bias"].tolist()
    ([[True, False], [True, False]], [True, True])
    >>> mask(params, 0.5, structure=Channels(order=1))["kernel"].tolist()
    [[True, False], [True, False]]
    """
    caller = "prune.mask"
    check(caller, params, method, key, grads)
    own = in_scope(caller, params, scope)
    names, leaves = tree.path_names(params), jax.tree.leaves(params)
    shares = _shares(caller, amount, params, own, scope)
    shapes = [np.shape(leaf) for leaf in leaves]
    chosen = [i for i, shape in enumerate(shapes) if own[i] and math.prod(shape)]
    sizes = [structure.units(names[i], shapes[i]) for i in chosen]
    if method == "random":
        units = _random(key, sizes)
    else:
        scores = _scores(leaves, method, grads)
        units = [structure.pool(scores[i]) for i in chosen]
    if shares is None:
        flat = np.concatenate([unit.ravel() for unit in units])
        kept = keep_highest(flat, amounts.num_pruned(amount, len(flat)))
        ends = np.cumsum([unit.size for unit in units])[:-1]
        parts = np.split(kept, ends)
    else:
        counts = [amounts.num_pruned(shares[i], u.size) for i, u in zip(chosen, units, strict=True)]
        parts = [keep_highest(u.ravel(), n) for u, n in zip(units, counts, strict=True)]
    found = [np.ones(shape, bool) for shape in shapes]
    for i, part, size in zip(chosen, parts, sizes, strict=True):
        found[i] = structure.spread(part.reshape(size), shapes[i])
    if isinstance(structure, Channels) and structure.biases:
        _follow(params, found, dict(zip(chosen, parts, strict=True)))
    return jax.tree.unflatten(jax.tree.structure(params), list(map(jnp.asarray, found)))


def n_of_m(
    params: Any,
    n: int,
    m: int,
    *,
    axis: int = -2,
    method: Method = "magnitude",
    scope: Scope = "kernels",
    key: jax.Array | None = None,
    grads: Any = None,
) -> Any:
    """The mask that keeps the n weights of highest score of every m that follow one another.

    Args:
        n, m: 1 <= n <= m; 2 of 4 is what sparse tensor cores read.
        axis: along which they follow; -2 is that of the inputs of Flax kernels, the one that a
            product sums over.
        method, scope, key, grads: as in `mask`, and so are ties.

    Raises:
        UserError: as `mask`; an array in scope whose axis is not a multiple of m.

    >>> n_of_m({"kernel": jnp.array([[1.0], [-3.0], [2.0], [2.0]])}, 1, 2)["kernel"].tolist()
    [[False], [True], [False], [True]]
    """
    caller = "prune.n_of_m"
    m = whole_number(caller, "m", m)
    if whole_number(caller, "n", n) > m:
        raise UserError(f"{caller}: n={n} of m={m}; give n <= m.")
    check(caller, params, method, key, grads)
    own = in_scope(caller, params, scope)
    leaves = jax.tree.leaves(params)
    for name, leaf, chosen in zip(tree.path_names(params), leaves, own, strict=True):
        shape = np.shape(leaf)
        if chosen and (not -len(shape) <= axis < len(shape) or shape[axis] % m):
            raise UserError(
                f"{caller}: '{name}' is {list(shape)}, and axis {axis} is no multiple of m={m}; "
                "choose another axis, or leave it out by scope."
            )
    if method == "random":
        drawn = iter(_random(key, [np.shape(x) for x, o in zip(leaves, own, strict=True) if o]))
        scores = [next(drawn) if chosen else np.empty(0) for chosen in own]
    else:
        scores = _scores(leaves, method, grads)

    def keep(score: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(score, axis, -1)
        groups = moved.reshape(-1, m)
        order = np.argsort(groups, axis=1, kind="stable")
        kept = np.ones(groups.shape, bool)
        np.put_along_axis(kept, order[:, : m - n], False, axis=1)
        return np.moveaxis(kept.reshape(moved.shape), -1, axis)

    found = [
        keep(score) if chosen else np.ones(np.shape(leaf), bool)
        for leaf, score, chosen in zip(leaves, scores, own, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), list(map(jnp.asarray, found)))


def prune_variables(
    params: Any,
    variables: Any,
    amount: Any,
    *,
    method: Literal["magnitude", "random"] = "magnitude",
    key: jax.Array | None = None,
) -> tuple[Any, Any, Any]:
    """Prunes parameters and all other variables together, BatchNorm statistics included.

    As in "Neural Network Compression: The Functional Perspective" (OpenReview Q7GXKjmCSB), which
    sets the smallest of all numbers that Keras saves to 0. A pruned variance of 0 makes BatchNorm
    divide by sqrt(epsilon). `mask` of the parameters never touches statistics.

    Returns:
        the parameters and variables, 0 where they are pruned, and the mask of `{"params": ...,
        "variables": ...}`.

    >>> params, stats = {"kernel": jnp.array([[3.0, 1.0]])}, {"batch_stats": {"var": jnp.ones(2)}}
    >>> _, pruned, _ = prune_variables(params, stats, 0.5)
    >>> pruned["batch_stats"]["var"].tolist()
    [0.0, 1.0]
    """
    both = {"params": params, "variables": variables}
    own = mask(both, amount, method=method, scope="trainable", key=key)
    pruned = apply_mask(both, own)
    return pruned["params"], pruned["variables"], own


def keep_highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Booleans that are False for the `count` lowest of some scores [n], of equals the first ones.

    >>> keep_highest(np.array([1.0, 0.0, 1.0, 1.0]), 2).tolist()
    [False, False, True, True]
    """
    if not count:
        return np.ones(scores.shape, bool)
    last = np.partition(scores, count - 1)[count - 1]
    kept = scores > last
    equal = np.flatnonzero(scores == last)
    kept[equal[count - np.count_nonzero(scores < last) :]] = True
    return kept


def check(
    caller: str, params: Any, method: Any = "magnitude", key: Any = None, grads: Any = None
) -> None:
    """Refuses what has no scores: weights that are traced or not finite, keys not given."""
    if method not in get_args(Method):
        raise unknown(f"method ({caller})", str(method), get_args(Method))
    if loops.is_traced((params, grads)):
        raise UserError(
            f"{caller}: the weights are traced, and a mask is made on the host; call it outside of "
            "jit and vmap. `prune.gradual` makes masks while it trains."
        )
    tree.check_floating(caller, params)
    if method == "random":
        if key is None:
            raise UserError(f"{caller}: method 'random' needs key=jax.random.key(...).")
        check_key(caller, key)
    given = [("params", params)]
    if method == "saliency":
        if grads is None:
            raise UserError(f"{caller}: method 'saliency' needs grads, a tree like params.")
        tree.check_same_structure(caller, "grads", grads, params)
        given.append(("grads", grads))
    for argument, values in given:
        bad = [
            f"'{name}'"
            for name, leaf in zip(tree.path_names(values), jax.tree.leaves(values), strict=True)
            if not np.isfinite(_on_host(leaf)).all()
        ]
        if bad:
            raise UserError(
                f"{caller}: {argument} hold numbers that are not finite, in {', '.join(bad[:5])}; "
                "they have no rank. Prune a model that has not diverged."
            )


def _on_host(leaf: Any) -> np.ndarray:
    array = np.asarray(jax.device_get(leaf))
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _scores(leaves: list[Any], method: str, grads: Any) -> list[np.ndarray]:
    weights = [np.abs(_on_host(leaf)) for leaf in leaves]
    if method == "magnitude":
        return weights
    slopes = [np.abs(_on_host(leaf)) for leaf in jax.tree.leaves(grads)]
    # In float64, where no product of float32 numbers is rounded or too small.
    return [w.astype(np.float64) * g for w, g in zip(weights, slopes, strict=True)]


def _random(key: Any, sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    counts = [math.prod(size) for size in sizes]
    drawn = np.asarray(jax.random.bits(key, (sum(counts),), jnp.uint32))
    parts = np.split(drawn, np.cumsum(counts)[:-1])
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def _shares(caller: str, amount: Any, params: Any, own: list[bool], scope: Any) -> Any:
    """The amount of each leaf; None: it is one number for all."""
    if jax.tree.structure(amount) == jax.tree.structure(0):
        amounts.check_amount(caller, amount)
        return None
    amounts.check_structure(caller, "amount", amount, params)
    names, shares = tree.path_names(params), jax.tree.leaves(amount)
    checked = [
        amounts.check_amount(caller, share, f"amount of '{name}'")
        for name, share in zip(names, shares, strict=True)
    ]
    for name, share, chosen in zip(names, checked, own, strict=True):
        if share and not chosen:
            raise UserError(
                f"{caller}: the amount of '{name}' is {share:g}, and scope={scope!r} leaves it "
                "out; widen the scope, or give 0."
            )
    return checked


def _follow(params: Any, found: list[np.ndarray], parts: dict[int, np.ndarray]) -> None:
    """Masks arrays of one axis as the channels of the kernel beside them."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    kernels = {paths[i][:-1]: part for i, part in parts.items() if found[i].ndim > 1}
    for i, path in enumerate(paths):
        part = kernels.get(path[:-1])
        if part is not None and found[i].shape == part.shape:
            found[i] = part
