"""Masks of the weights that are kept: by magnitude, by saliency, or at random."""

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
"""The score of a weight w with gradient g. 'magnitude': |w|; 'saliency': |w g|, the first-order
change of the loss if w is set to 0 (SNIP, arXiv 1810.02340, which uses weights and gradients at
initialisation); 'random': a random number."""


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
    number, and never all of them. Among equal scores, the lowest index in the order of
    `jax.tree.leaves` and then of rows is pruned first. So masks are nested: units that a smaller
    amount prunes, a larger amount prunes too. Scores are compared as they are, without normalising
    arrays.

    Args:
        params: a pytree of floats, finite; not traced, since it is read on the host.
        amount: a number in [0, 1) ranks the units of all arrays in scope together (global pruning).
            A tree of numbers, from `uniform`, `erk` or `by_name`, prunes each array by itself.
        method: see `Method`; 'magnitude' by default.
        scope: what may be pruned: 'kernels'; 'trainable', which is every array, also biases and
            normalisation; globs; or a tree of booleans (`scope.Scope`). Everything else is kept. To
            prune parameters and BatchNorm statistics together, use `prune_variables`.
        structure: `Elements()`, `Channels(...)` or `Blocks(...)`; for n of m weights, use `n_of_m`.
        key: random key for method 'random'. The same key gives nested masks.
        grads: a tree like params, for method 'saliency'.

    Returns:
        a tree like the parameters, of boolean arrays of the same shapes: True is kept.

    Raises:
        UserError: an amount of 1 or more, a structure that does not fit an array, weights or
            gradients that are not finite, an amount for an array out of scope, an unknown method,
            traced weights, or `key` or `grads` missing for a method that needs it.

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
    follows = {}
    if isinstance(structure, Channels) and structure.biases:
        follows = _followers(params, shapes, chosen)
        chosen = [i for i in chosen if i not in follows]
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
    masks = dict(zip(chosen, parts, strict=True))
    for i, kernel in follows.items():
        found[i] = masks[kernel]
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
    """The mask that keeps the n weights of highest score among every m consecutive ones.

    Args:
        params: as in `mask`.
        n, m: 1 <= n <= m; sparse tensor cores support 2 of 4.
        axis: the axis of the groups; -2 is the input axis of Flax kernels, which a matrix product
            sums over.
        method, scope, key, grads: as in `mask`. Ties are also broken as there.

    Raises:
        UserError: as `mask`; the axis of an array in scope is not a multiple of m.

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
    """Prunes parameters and all other variables together, including BatchNorm statistics.

    This is the method of "Neural Network Compression: The Functional Perspective" (OpenReview
    Q7GXKjmCSB), which sets the smallest of all numbers that Keras saves to 0. A pruned variance of
    0 makes BatchNorm divide by sqrt(epsilon). In contrast, `mask` of the parameters never prunes
    statistics.

    Args:
        params: pytree of parameters.
        variables: pytree of the other variables.
        amount, method, key: as in `mask`, for both trees together.

    Returns:
        the pruned parameters, the pruned variables, and the mask of `{"params": ...,
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
    """Booleans [n] that are False for the `count` lowest scores; of equal scores, the first ones.

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
    """Refuses weights that are traced or not finite, and a missing key or missing gradients."""
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
    # In float64, products of float32 numbers are exact and do not underflow.
    return [w.astype(np.float64) * g for w, g in zip(weights, slopes, strict=True)]


def _random(key: Any, sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    counts = [math.prod(size) for size in sizes]
    drawn = np.asarray(jax.random.bits(key, (sum(counts),), jnp.uint32))
    parts = np.split(drawn, np.cumsum(counts)[:-1])
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def _shares(caller: str, amount: Any, params: Any, own: list[bool], scope: Any) -> Any:
    """The amount of each leaf, or None if `amount` is one number for all."""
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


def _followers(params: Any, shapes: list[tuple[int, ...]], chosen: list[int]) -> dict[int, int]:
    """Arrays of one axis, such as biases, that are masked like the channels of a kernel.

    Returns:
        the index of each such array, with the index of the kernel beside it in the tree.
    """
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    kernels = {paths[i][:-1]: i for i in chosen if len(shapes[i]) > 1}
    beside = {i: kernels[path[:-1]] for i, path in enumerate(paths) if path[:-1] in kernels}
    return {i: kernel for i, kernel in beside.items() if shapes[i] == shapes[kernel][-1:]}
