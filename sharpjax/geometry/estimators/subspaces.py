"""Spaces in which an operator is known exactly, grown by one vector at a time.

Each new vector `q`, of norm 1 in the complement of those before, comes with `b = P A q`, in units
that are given (`lanczos.units`). All kinds have: `cost`, products for each vector of the basis;
`vector`, what the operator is applied to next; `num_products` and `num_rows`; `exhausted`, nothing
is left to grow by, or no room; `finite`; `absorb(product)`, which gives the space with one product
more, `q` and `b`, zeros where no vector was added; and `complement()`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import gram_schmidt, krylov, lanes, recurrence, units

Params = Any


def start(
    kind: "Kind", key: jax.Array, like: Params, basis_size: int, unit: jax.Array
) -> "Krylov | Sketch":
    """A space of one of the kinds below, with no vector yet and room for `basis_size`."""
    rows = krylov.num_rows(basis_size)
    if kind is Krylov:
        return Krylov(krylov.start(key, like, rows)._replace(unit=unit))
    return _start_sketch(key, like, rows, recurrence.shardings(like))._replace(unit=unit)


class Krylov(NamedTuple):
    """The Krylov space of a random vector: one product for each vector of the basis."""

    lanczos: krylov.Lanczos
    cost = 1

    @property
    def vector(self) -> Params:
        return self.lanczos.vector

    @property
    def num_products(self) -> jax.Array:
        return self.lanczos.num_products

    @property
    def num_rows(self) -> jax.Array:
        return self.lanczos.num_products

    @property
    def exhausted(self) -> jax.Array:
        most = min(len(self.lanczos.alpha), tree.size(self.vector))
        return (self.num_products >= most) | self.lanczos.broken

    @property
    def finite(self) -> jax.Array:
        return self.lanczos.finite

    def absorb(self, product: Params) -> tuple["Krylov", Params, Params]:
        q, row = self.vector, lanes.furthest(self.num_products)
        lanczos = krylov.LanczosStep().absorb(self.lanczos, product)
        b = tree.scale(_get_row(lanczos.alpha, row), q)
        b = tree.add_scaled(b, _get_row(lanczos.beta, row), lanczos.vector)
        return Krylov(lanczos), q, b

    def complement(self) -> "KrylovComplement":
        row = jnp.maximum(self.num_products - 1, 0)
        beta = _get_row(self.lanczos.beta, row)
        return KrylovComplement(
            basis=self.lanczos.basis,
            last=jax.tree.map(lambda q: _get_row(q, row), self.lanczos.basis),
            beyond=self.vector,
            coupling=jnp.where(self.num_products > 0, beta, 0),
            num_rows=self.num_rows,
        )


class KrylovComplement(NamedTuple):
    """The complement of a Krylov space, in which `P A Q = coupling beyond e_last'`.

    Attributes:
        basis: leaves (m, *shape).
        last, beyond: the last vector of the basis, and the one that would come after it.
        coupling: scalar.
        num_rows: int32.
    """

    basis: Params
    last: Params
    beyond: Params
    coupling: jax.Array
    num_rows: jax.Array

    def project(self, probe: Params) -> Params:
        return _sweep(self.basis, probe, self.num_rows, self.coupling)

    def restrict(self, probe: Params, product: Params) -> Params:
        overlap = self.coupling * tree.vdot(self.beyond, probe)
        return tree.add_scaled(product, -overlap, self.last)


class Sketch(NamedTuple):
    """The space of `A Omega`, Omega random: two products for each vector of the basis.

    Attributes:
        basis: leaves (m, *shape).
        vector: a column of Omega, or the new vector of the basis.
        key: for the next column.
        unit: of products.
        is_column: whether `vector` is a column of Omega.
        num_rows, num_products: int32.
        spanned: the last column brought nothing new: the space holds all that A reaches.
        finite: no product has held a NaN or an infinity.
    """

    basis: Params
    vector: Params
    key: jax.Array
    unit: jax.Array
    is_column: jax.Array
    num_rows: jax.Array
    num_products: jax.Array
    spanned: jax.Array
    finite: jax.Array
    cost = 2

    @property
    def exhausted(self) -> jax.Array:
        most = min(jax.tree.leaves(self.basis)[0].shape[0], tree.size(self.vector))
        return (self.num_rows >= most) | self.spanned

    def absorb(self, product: Params) -> tuple["Sketch", Params, Params]:
        row = lanes.furthest(self.num_rows)
        product = jax.tree.map(lambda p, x: p.astype(x.dtype), product, self.vector)
        unit, product = units.scale(self.unit, product)
        norm = tree.norm(product)
        b = _sweep(self.basis, product, row, norm)
        free = _sweep(self.basis, b, row, norm)
        length = tree.norm(free)
        spanned = length <= 10 * krylov.noise(length.dtype) * norm
        fresh = tree.scale(jnp.where(spanned, 0, 1 / jnp.where(spanned, 1, length)), free)
        is_column = lanes.of_furthest(self.num_products, self.is_column)
        zeros = tree.zeros_like(b)
        q, b = _select(is_column, (zeros, zeros), (self.vector, b))
        basis = jax.tree.map(lambda rows, x: _set_row(rows, x, row), self.basis, q)
        subkey, key = jax.random.split(self.key)
        space = Sketch(
            basis=basis,
            vector=_select(is_column, fresh, random_column(subkey, zeros)),
            key=key,
            unit=unit,
            is_column=~self.is_column,
            num_rows=self.num_rows + jnp.where(is_column, 0, 1),
            num_products=self.num_products + 1,
            spanned=is_column & spanned,
            finite=self.finite & jnp.isfinite(norm),
        )
        return space, q, b

    def complement(self) -> "SketchComplement":
        return SketchComplement(self.basis, self.num_rows)


class SketchComplement(NamedTuple):
    """The complement of any space with an orthonormal basis, leaves (m, *shape)."""

    basis: Params
    num_rows: jax.Array

    def project(self, probe: Params) -> Params:
        return _sweep(self.basis, probe, self.num_rows, tree.vdot(probe, probe))

    def restrict(self, probe: Params, product: Params) -> Params:
        return self.project(product)


Kind = type[Krylov] | type[Sketch]


def random_column(key: jax.Array, like: Params) -> Params:
    """Normal numbers, lying as `like` does, which is zero."""
    return tree.add_scaled(like, 1.0, tree.random_normal(key, like))


def allocate_rows(zeros: Params, rows: int, lie: tuple[jax.NamedSharding | None, ...]) -> Params:
    """Leaves (rows, *shape) of zeros, placed as those of `zeros` are; for use inside a trace."""

    def allocate(z, sharding):
        # A sum with zeros of the leaf takes its sharding, where types carry it.
        basis = jnp.zeros((rows, *z.shape), z.dtype) + jnp.expand_dims(z, 0)
        if sharding is None:
            return basis
        lies = jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        return jax.lax.with_sharding_constraint(basis, lies)

    leaves, treedef = jax.tree.flatten(zeros)
    allocated = [allocate(z, s) for z, s in zip(leaves, lie, strict=True)]
    return jax.tree.unflatten(treedef, allocated)


def _sweep(basis, vector, num_rows, scalar):
    zeros = jnp.zeros_like(scalar, shape=jax.tree.leaves(basis)[0].shape[0])
    row = jnp.maximum(lanes.furthest(num_rows) - 1, 0)
    return gram_schmidt.sweep(basis, vector, zeros, row)[0]


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _get_row(x, row):
    return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)


def _set_row(x, value, row):
    return jax.lax.dynamic_update_index_in_dim(x, value, row, 0)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _start_sketch(key, like, rows, lie) -> Sketch:
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)
    subkey, key = jax.random.split(key)

    return Sketch(
        basis=allocate_rows(zeros, rows, lie),
        vector=random_column(subkey, zeros),
        key=key,
        unit=zero,
        is_column=zero == 0,
        num_rows=zero.astype(jnp.int32),
        num_products=zero.astype(jnp.int32),
        spanned=zero != 0,
        finite=zero == 0,
    )
