"""The complement of a Krylov space, in which probes are taken after deflation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import gram_schmidt, krylov, lanes

Params = Any


class KrylovComplement(NamedTuple):
    """The complement of the Krylov space of Q; for it, `P A Q = coupling beyond e_last'`.

    Attributes:
        basis: Q, leaves (m, *shape).
        last, beyond: the last vector of the basis, and the vector that would come after it.
        coupling: scalar.
        num_rows: int32, the number of basis vectors.
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


def complement(lanczos: krylov.Lanczos) -> KrylovComplement:
    """The complement of the vectors of a Lanczos process."""
    row = jnp.maximum(lanczos.num_products - 1, 0)
    return KrylovComplement(
        basis=lanczos.basis,
        last=jax.tree.map(lambda q: get_row(q, row), lanczos.basis),
        beyond=lanczos.vector,
        coupling=jnp.where(lanczos.num_products > 0, get_row(lanczos.beta, row), 0),
        num_rows=lanczos.num_products,
    )


def get_row(x: jax.Array, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)
