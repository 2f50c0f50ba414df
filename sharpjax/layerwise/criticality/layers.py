"""Which leaves form a layer, and what of BatchNorm is replaced with it."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax

from sharpjax import tree
from sharpjax.errors import UserError, unknown
from sharpjax.geometry.operators.blocks import Groups, groups_of

BatchNorm = Literal["stay", "parameters", "all"]
BATCH_NORM = ("stay", "parameters", "all")


class Layer(NamedTuple):
    """The leaves that are replaced together, by the names of `sharpjax.tree.path_names`.

    Attributes:
        params: leaves of the parameters, at least one.
        variables: leaves of the other collections: BatchNorm statistics.
    """

    params: tuple[str, ...]
    variables: tuple[str, ...] = ()


def layers_of(
    params: Any,
    groups: Groups | None = None,
    *,
    variables: Any = None,
    norms: Mapping[str, str] = MappingProxyType({}),
    batch_norm: BatchNorm = "stay",
) -> dict[str, Layer]:
    """The layers of a model by name, in the order of their first leaves; groups keep their own
    order.

    If BatchNorm follows a layer, `batch_norm` says what is replaced with the layer:

    - 'stay': only the leaves of the group. Norms are layers of their own unless a group holds them;
      no running statistics are replaced.
    - 'parameters': also scale and bias of the norm that reads the layer's output; its running mean
      and variance stay.
    - 'all': also these statistics; and if a norm itself is replaced, its own.

    With the last two, a norm in `norms` is no layer of its own. With each of them, statistics can
    be recomputed after the replacement: see `recomputed`.

    Args:
        params: pytree of arrays.
        groups: as in `geometry.layers`: globs for each name, or a list of them. Leaves that match
            no glob are never replaced. By default, leaves whose names differ only in the last part
            are a layer. Blocks are groups: `{"block": "BasicBlock_0/*"}`.
        variables: collections beside the parameters, as in Flax; 'all' needs them.
        norms: the norm of each layer by the names of both, as `norms_of` finds them.
        batch_norm: see above.

    Raises:
        UserError: no parameters, a layer without any, a glob that matches no leaf, two groups that
            share one; an unknown option, or an option that needs `norms` without them; a layer or a
            norm in `norms` that the model does not have, or a norm without the statistics that
            'all' needs.

    >>> params = {"Conv_0": {"kernel": 0.0}, "BatchNorm_0": {"bias": 0.0, "scale": 1.0}}
    >>> list(layers_of(params))
    ['BatchNorm_0', 'Conv_0']
    >>> stats = {"batch_stats": {"BatchNorm_0": {"mean": 0.0, "var": 1.0}}}
    >>> norms = {"Conv_0": "BatchNorm_0"}
    >>> found = layers_of(params, variables=stats, norms=norms, batch_norm="all")
    >>> list(found), found["Conv_0"].variables
    (['Conv_0'], ('batch_stats/BatchNorm_0/mean', 'batch_stats/BatchNorm_0/var'))
    """
    caller = "criticality.layers_of"
    if batch_norm not in BATCH_NORM:
        raise unknown(f"batch_norm ({caller})", str(batch_norm), BATCH_NORM)
    own = named(caller, params, groups)
    if batch_norm == "stay":
        return own
    if not norms:
        raise UserError(
            f"{caller}: batch_norm='{batch_norm}' moves norms with the layers before them, and "
            "norms is empty; give norms=criticality.norms_of(model, example)."
        )
    names, beside = tree.path_names(params), tree.path_names(variables)
    _check_norms(caller, names, beside, norms, statistics=batch_norm == "all")
    owned, found = set(norms.values()), {}
    for name, (leaves, _) in own.items():
        if groups is None and name in owned:
            continue
        read = {norms[above] for leaf in leaves for above in _above(leaf) if above in norms}
        moved = _unique((*leaves, *(n for n in names if _layer(n) in read)))
        held = read | {_layer(n) for n in leaves}
        stats = tuple(n for n in beside if _within(n) in held)
        found[name] = Layer(moved, stats if batch_norm == "all" else ())
    _check_apart(caller, found)
    return found


def named(caller: str, params: Any, groups: Groups | None = None) -> dict[str, Layer]:
    """`layers_of` with batch_norm='stay'; errors name `caller`."""
    if not tree.path_names(params):
        raise UserError(f"{caller}: params holds no array at all.")
    _check_groups(caller, params, groups)
    return {name: Layer(leaves) for name, leaves in _names_of(caller, params, groups).items()}


def chosen(
    caller: str, layers: Mapping[str, Layer], names: Sequence[str] | None
) -> dict[str, Layer]:
    """Some layers by their names, in the order of `names`; None: all.

    Raises:
        UserError: names `caller`; an unknown name, or no name.
    """
    names = list(layers) if names is None else names
    if isinstance(names, str):
        raise UserError(f"{caller}: names is '{names}'; give several: ['{names}'].")
    if not isinstance(names, Iterable):
        raise UserError(f"{caller}: names is {names!r}; give names of layers: {', '.join(layers)}.")
    names = list(names)
    if not names:
        raise UserError(f"{caller}: no layers; name one or more of {', '.join(layers)}.")
    for name in names:
        if not isinstance(name, str) or name not in layers:
            raise unknown(f"layer ({caller})", str(name), layers)
    return {name: layers[name] for name in names}


def _names_of(caller: str, params: Any, groups: Groups | None) -> dict[str, tuple[str, ...]]:
    found, names = {}, tree.path_names(params)
    for name, where in groups_of(caller, params, groups).items():
        hits = tree.select(params, where)
        found[name] = tuple(n for n, hit in zip(names, jax.tree.leaves(hits), strict=True) if hit)
        if not tree.size(tree.partition(params, hits)[0]):
            raise UserError(f"{caller}: layer '{name}' has no parameters: its arrays are empty.")
    return found


def _check_groups(caller: str, params: Any, groups: Groups | None) -> None:
    if groups is None:
        return
    if isinstance(groups, str):
        groups = [groups]
    if not isinstance(groups, Mapping | Sequence):
        raise UserError(
            f"{caller}: groups is {kind_of(groups)}; give a dict from names to globs, such as "
            "{'block': 'BasicBlock_0/*'}, or a list of globs."
        )
    if not groups:
        raise UserError(f"{caller}: groups is empty; name a layer, or leave it out for all.")
    globs = groups if isinstance(groups, Mapping) else {str(glob): glob for glob in groups}
    for name, where in globs.items():
        several = isinstance(where, Sequence) and isinstance(groups, Mapping)
        if not isinstance(where, str) and not (several and all(isinstance(w, str) for w in where)):
            raise UserError(
                f"{caller}: groups has {kind_of(where)} for '{name}'; give a glob on names of "
                "leaves, such as 'BasicBlock_0/*'" + (", or several." if several else ".")
            )
        if not where:
            raise UserError(
                f"{caller}: layer '{name}' has no parameters: its list of globs is empty. There is "
                "nothing to replace; leave it out."
            )
        try:
            tree.select(params, where)
        except UserError as error:
            words = str(error).removeprefix("where: ")
            raise UserError(f"{caller}: groups, '{name}': {words}") from error


def kind_of(given: Any) -> str:
    """The type of an object, with an article: 'a dict'."""
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _check_norms(
    caller: str,
    names: Sequence[str],
    beside: Sequence[str],
    norms: Mapping[str, str],
    *,
    statistics: bool,
) -> None:
    """Refuses norms of which nothing, or less than requested, would be replaced."""
    layers = _unique([above for leaf in names for above in _above(leaf)])
    held = {_within(n) for n in beside}
    for layer, norm in norms.items():
        if layer not in layers:
            raise unknown(f"layer in norms ({caller})", str(layer), layers)
        if norm not in layers and norm not in held:
            raise unknown(f"norm of '{layer}' in norms ({caller})", str(norm), {*layers, *held})
        if statistics and norm not in held:
            raise UserError(
                f"{caller}: batch_norm='all' replaces the statistics of '{norm}', and variables "
                "has none; give variables={'batch_stats': ...} of the same model, or "
                "batch_norm='parameters'."
            )


def _check_apart(caller: str, layers: Mapping[str, Layer]) -> None:
    owners: dict[str, str] = {}
    for name, layer in layers.items():
        for leaf in layer.params:
            if owners.setdefault(leaf, name) != name:
                raise UserError(
                    f"{caller}: '{leaf}' goes with '{owners[leaf]}', whose norm it is, and is in "
                    f"'{name}'; take it out of that group, or give batch_norm='stay'."
                )


def _layer(leaf: str) -> str:
    return leaf.rpartition("/")[0]


def _within(leaf: str) -> str:
    """The layer of a leaf of `variables`, within its collection."""
    return _layer(leaf).partition("/")[2]


def _above(leaf: str) -> list[str]:
    """All prefixes of a leaf's name, its own layer first: a factor is in a layer, too."""
    parts = leaf.split("/")
    return ["/".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
