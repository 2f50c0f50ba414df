"""Blocks of operators: some leaves, some entries, one block per layer."""

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry.operators.algebra import Matvec, Operator, Params
from sharpjax.geometry.operators.arguments import check_operator

Groups = Mapping[str, str | Sequence[str]] | Sequence[str]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restricted(Operator):
    """The diagonal block of an operator on some leaves; `restricted` makes it.

    Attributes:
        operator: any `Operator`.
        where: glob or globs on the names of the leaves.
    """

    operator: Any
    where: str | tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        full = self.operator.like
        return tree.partition(full, tree.select(full, self.where))[0]

    def linearize(self) -> Matvec:
        return Partial(_block_product, self.operator.linearize(), _rest(self.operator, self.where))


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockDiagonal(Operator):
    """An operator without the blocks that couple different groups of leaves; `block_diagonal` makes
    it.

    Attributes:
        operator: any `Operator`.
        groups: tuples of globs; together they name each leaf once.
    """

    operator: Any
    groups: tuple[tuple[str, ...], ...] = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        zeros = tuple(_rest(self.operator, where) for where in self.groups)
        return Partial(_blocks_product, self.operator.linearize(), zeros)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked(Operator):
    """`P A P`, with P zero on some entries; `masked` makes it.

    Attributes:
        operator: any `Operator`.
        mask: tree like its vectors, zero where an entry is held fixed.
    """

    operator: Any
    mask: Any

    @property
    def like(self) -> Any:
        return self.operator.like

    def linearize(self) -> Matvec:
        return Partial(_masked_product, self.operator.linearize(), self.mask)


def restricted(operator: Operator, where: str | Sequence[str]) -> Restricted:
    """The diagonal block of an operator on some leaves: `P A P'`, with the other leaves frozen.

    Its vectors have None in place of the other leaves. This works for any operator. When compiled,
    a product computes only what depends on these leaves, as with `hessian(..., where=...)`, which
    in addition keeps only the residuals of these leaves.

    Args:
        operator: any operator.
        where: glob or globs on the names of the leaves, as `sharpjax.tree.select` takes them.

    Raises:
        UserError: a glob matches no leaf.

    >>> from sharpjax.geometry import hessian
    >>> params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    >>> full = hessian(lambda p, batch: jnp.sum(p["a"] ** 2 * p["b"]), params, None)
    >>> print(restricted(full, "a") @ {"a": jnp.array([1.0, 2.0]), "b": None})
    {'a': Array([2., 4.], dtype=float32), 'b': None}
    """
    check_operator("restricted", operator)
    tree.select(operator.like, where)
    return Restricted(operator, where if isinstance(where, str) else tuple(where))


def layers(operator: Operator, groups: Groups | None = None) -> dict[str, Restricted]:
    """The diagonal blocks of the layers of a model, by name; for results per layer.

    `{name: trace(block, key=key) for name, block in layers(operator).items()}` is the trace of each
    layer. A product of a block takes on average about half the time of a full one: only what
    depends on the layer is computed.

    Args:
        operator: any operator, such as `hessian(loss, params, batch)`.
        groups: a dict from a name to one or several globs on leaf names, or a list of globs, each
            of which is also its name. Leaves that no glob matches are left out. Default: leaves
            whose names differ only in the last part, such as `Dense_0/kernel` and `Dense_0/bias`,
            form a layer.

    Raises:
        UserError: a glob matches no leaf, or two groups share one.

    >>> from sharpjax.geometry import hessian
    >>> params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "b": jnp.ones(2)}
    >>> operator = hessian(lambda p, _: jnp.sum(p["a"]["kernel"] * p["b"]), params, None)
    >>> list(layers(operator)), list(layers(operator, ["*/kernel"]))
    (['a', 'b'], ['*/kernel'])
    """
    check_operator("layers", operator)
    chosen = groups_of("layers", operator.like, groups)
    return {name: Restricted(operator, where) for name, where in chosen.items()}


def block_diagonal(operator: Operator, groups: Groups | None = None) -> BlockDiagonal:
    """An operator without the coupling of different layers: its diagonal blocks, zero elsewhere.

    Its eigenvalues are those of all blocks together; for the eigenvalues of each block, see
    `layers`. A product costs one product of each block, and each block is compiled. For the 7
    layers of a dense net this is 1.3 Hessian products or 1.9 Gauss-Newton products (operations
    counted; about L / 4 for L layers). The operator is linearised once.

    Args:
        operator: any operator.
        groups: as in `layers`; together they must name every leaf.

    Raises:
        UserError: a glob matches no leaf, two groups share a leaf, or a leaf is in none.

    >>> from sharpjax.geometry import hessian
    >>> params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    >>> full = hessian(lambda p, _: jnp.sum(p["a"] ** 2 * p["b"]), params, None)
    >>> print(block_diagonal(full).linearize()(params))
    {'a': Array([2., 2.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}
    """
    caller = "block_diagonal"
    check_operator(caller, operator)
    chosen = tuple(groups_of(caller, operator.like, groups).values())
    hits = [jax.tree.leaves(tree.select(operator.like, where)) for where in chosen]
    names = tree.path_names(operator.like)
    missing = [n for n, hit in zip(names, zip(*hits, strict=True), strict=True) if not any(hit)]
    if missing:
        raise UserError(
            f"{caller}: no group has the leaf '{missing[0]}'. Add a glob for it, or restrict the "
            f"operator to the leaves that are meant."
        )
    return BlockDiagonal(operator, chosen)


def masked(operator: Operator, mask: Params) -> Masked:
    """The operator on some entries only, such as those left by pruning: `P A P`.

    Vectors keep their shapes, and each entry held fixed adds an eigenvalue of zero. The trace and
    the nonzero eigenvalues are those of the smaller matrix. A product costs a full product of A.

    Args:
        operator: any operator A.
        mask: tree of arrays in the shapes of its vectors, zero (False) where an entry is held
            fixed.

    Raises:
        UserError: the mask has another structure or other shapes.

    >>> from sharpjax.geometry import hessian
    >>> operator = hessian(lambda w, batch: jnp.sum(w) ** 2, jnp.ones(3), None)
    >>> masked(operator, jnp.array([1, 1, 0])).linearize()(jnp.ones(3)).tolist()
    [4.0, 4.0, 0.0]
    """
    check_operator("masked", operator)
    shapes = _shapes(operator.like)
    tree.check_same_structure("masked", "mask", _shapes(mask), shapes)
    return Masked(operator, jax.tree.map(jnp.asarray, mask))


def groups_of(caller: str, like: Params, groups: Groups | None) -> dict[str, tuple[str, ...]]:
    """The globs of each layer, by its name; `groups` as in `layers`.

    Raises:
        UserError: names `caller`; a glob matches no leaf, or two groups share one.
    """
    if groups is None:
        found: dict[str, tuple[str, ...]] = {}
        for name in tree.path_names(like):
            layer = name.rpartition("/")[0] or name
            found[layer] = (*found.get(layer, ()), glob.escape(name))
        return found
    if isinstance(groups, str):
        groups = [groups]
    if not isinstance(groups, Mapping | list | tuple) or not groups:
        raise UserError(
            f"{caller}: groups must be globs, or names with their globs, and one at least; got "
            f"{groups!r}."
        )
    named = groups if isinstance(groups, Mapping) else {where: where for where in groups}
    chosen = {n: (w,) if isinstance(w, str) else tuple(w) for n, w in named.items()}
    owners: dict[str, str] = {}
    for group, where in chosen.items():
        hits = jax.tree.leaves(tree.select(like, where))
        for name, hit in zip(tree.path_names(like), hits, strict=True):
            if hit and owners.setdefault(name, group) != group:
                raise UserError(
                    f"{caller}: the leaf '{name}' is in the groups '{owners[name]}' and '{group}'; "
                    f"a leaf may be in one alone."
                )
    return chosen


def _shapes(like):
    # Shapes only, as if float32: a mask may be boolean.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), like)


def _rest(operator, where):
    full = operator.like
    return tree.zeros_like(tree.widen(tree.partition(full, tree.select(full, where))[1]))


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _block_product(product, zeros, vector):
    full = _embedded_product(product, zeros, vector)
    return jax.tree.map(
        lambda v, x: None if v is None else x, vector, full, is_leaf=lambda v: v is None
    )


def _embedded_product(product, zeros, vector):
    embedded = Partial(_embed, product, zeros)
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(vector)):
        return embedded(vector)
    # A linear function is its own derivative. Differentiating leaves out what does not depend on
    # the vector; from a product with zeros the compiler could not know that.
    return jax.jvp(embedded, (tree.zeros_like(vector),), (vector,))[1]


def _embed(product, zeros, vector):
    return product(tree.combine(vector, zeros))


def _blocks_product(product, zeros, vector):
    found = jax.tree.map(lambda _: None, vector)
    for rest in zeros:
        part = jax.tree.map(
            lambda r, v: v if r is None else None, rest, vector, is_leaf=lambda r: r is None
        )
        found = tree.combine(found, _block_product(product, rest, part))
    return found


def _masked_product(product, mask, vector):
    return _keep(mask, product(_keep(mask, vector)))


def _keep(mask, vector):
    return jax.tree.map(lambda m, x: jnp.where(m.astype(bool), x, jnp.zeros_like(x)), mask, vector)
