"""JAX without a library: the gradient that others are measured in, forward over reverse under jit,
and power iteration that stops by an oracle."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.peers import Outcome
from benchmarks.peers.jax_peer import JaxPeer, normal, product


class Peer(JaxPeer):
    name, package = "plain jax", "jax"

    def product(self):
        found = _product(self.loss, self.params, self.batch, self.direction)
        return Outcome(None, 1, {"vector": jax.block_until_ready(found)})

    def products(self, count):
        v = self.direction
        for _ in range(count):
            v = _normalized_product(self.loss, self.params, self.batch, v)
        return Outcome(None, count, {"vector": jax.block_until_ready(v)})

    def power_iteration(self, seed, truth, tol=1e-3, max_iterations=200):
        """Products until the Rayleigh quotient first is within `tol` of the truth: fewer than any
        power iteration needs that has to find out by itself."""
        v = normal(self.params, seed)
        for i in range(max_iterations):
            value, v = _power_step(self.loss, self.params, self.batch, v)
            if abs(float(value) - truth) <= tol * abs(truth):
                return Outcome([float(value)], i + 1)
        return Outcome([float(value)], max_iterations)

    def flops(self):
        """Operations of a gradient and of a product from scratch, as XLA counts them."""
        args = (self.loss, self.params, self.batch)
        gradient = jax.jit(lambda loss, params, batch: jax.grad(loss)(params, batch))
        compiled = (gradient.lower(*args), _product.lower(*args, self.direction))
        return [_flops(lowered.compile().cost_analysis()) for lowered in compiled]


def _flops(analysis):
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float(analysis["flops"])


_product = jax.jit(product)


@jax.jit
def _normalized_product(loss, params, batch, v):
    return product(loss, params, batch, _unit(v))


@functools.partial(jax.jit)
def _power_step(loss, params, batch, v):
    v = _unit(v)
    found = product(loss, params, batch, v)
    return _vdot(v, found), found


def _vdot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _unit(v):
    norm = jnp.sqrt(_vdot(v, v))
    return jax.tree.map(lambda x: x / norm, v)
