"""The Krylov space of a random vector, in which an operator is known exactly.

It grows by one product at a time. Each new vector `q`, of norm 1 in the complement of those before,
comes with `b = P A q`, in units that are given (`lanczos.units`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import gram_schmidt, krylov, lanes

Params = Any


class KrylovSpace(NamedTuple):
    """A Lanczos process, seen as a space that grows."""

    lanczos: krylov.Lanczos

    @property
    def vector(self) -> Params:
        """What the operator is applied to next."""
        return self.lanczos.vector

    @property
    def num_products(self) -> jax.Array:
        """Also the number of vectors of the basis."""
        return self.lanczos.num_products

    @property
    def exhausted(self) -> jax.Array:
        """Nothing is left to grow by, or no room."""
        most = min(len(self.lanczos.alpha), tree.size(self.vector))
        return (self.num_products >= most) | self.lanczos.broken

    @property
    def is_whole(self) -> jax.Array:
        return self.num_products >= tree.size(self.vector)

    @property
    def finite(self) -> jax.Array:
        return self.lanczos.finite

    def absorb(self, product: Params) -> tuple["KrylovSpace", Params, Params]:
        """The space with one product more, `q` and `b`."""
        q, row = self.vector, lanes.furthest(self.num_products)
        lanczos = krylov.LanczosStep().absorb(self.lanczos, product)
        b = tree.scale(_get_row(lanczos.alpha, row), q)
        b = tree.add_scaled(b, _get_row(lanczos.beta, row), lanczos.vector)
        return KrylovSpace(lanczos), q, b

    def complement(self) -> "KrylovComplement":
        row = jnp.maximum(self.num_products - 1, 0)
        beta = _get_row(self.lanczos.beta, row)
        return KrylovComplement(
            basis=self.lanczos.basis,
            last=jax.tree.map(lambda q: _get_row(q, row), self.lanczos.basis),
            beyond=self.vector,
            coupling=jnp.where(self.num_products > 0, beta, 0),
            num_rows=self.num_products,
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
        """`P z`."""
        zeros = jnp.zeros_like(self.coupling, shape=jax.tree.leaves(self.basis)[0].shape[0])
        row = jnp.maximum(lanes.furthest(self.num_rows) - 1, 0)
        return gram_schmidt.sweep(self.basis, probe, zeros, row)[0]

    def restrict(self, probe: Params, product: Params) -> Params:
        """`P A P z`, from `z` and `A P z`."""
        overlap = self.coupling * tree.vdot(self.beyond, probe)
        return tree.add_scaled(product, -overlap, self.last)


def start(key: jax.Array, like: Params, size: int, unit: jax.Array) -> KrylovSpace:
    """No vector yet, and room for `size`."""
    return KrylovSpace(krylov.start(key, like, krylov.num_rows(size))._replace(unit=unit))


def _get_row(x, row):
    return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)
