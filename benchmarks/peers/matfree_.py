"""matfree 0.6.3: partial eigh and quadrature of a length that is given, XTrace.

All under one jit, the parameters and batches as arguments. Its loops run on the device, which for
convolutions on CPU is tens of times slower (jax-ml/jax#12868): it is not run there.
"""

import functools

import jax
import jax.numpy as jnp
from matfree import decomp, eig, stochtrace

from benchmarks.peers import Outcome
from benchmarks.peers.jax_peer import JaxPeer, mean_product, normal


class Peer(JaxPeer):
    name, package = "matfree", "matfree"

    def top(self, k, seed, steps):
        return self._top([self.batch], k, seed, steps)

    def top_over_batches(self, seed, steps):
        return self._top(self.batches, 1, seed, steps)

    def _top(self, batches, k, seed, steps):
        start = normal(self.params, seed)
        values, _ = _eigh(self.loss, self.params, batches, start, steps, k)
        return Outcome(self.numbers(values), steps)

    def trace(self, seed, products=100):
        args = (self.loss, self.params, [self.batch], jax.random.key(seed), products // 2)
        return Outcome(float(_xtrace(*args)), products)

    def density(self, steps, probes, seed):
        nodes, weights = [], []
        for i in range(probes):
            start = normal(self.params, 1000 * seed + i)
            found = _quadrature(self.loss, self.params, [self.batch], start, steps)
            nodes.append(self.numbers(found[0]))
            weights.append(self.numbers(found[1]))
        return Outcome(None, steps * probes, {"nodes": nodes, "weights": weights})

    def temporaries(self, what, steps):
        """Bytes of XLA's temporaries."""
        start = normal(self.params, 0)
        args = (self.loss, self.params, [self.batch], start, steps)
        fn = {"top": lambda: _eigh.lower(*args, 1), "top10": lambda: _eigh.lower(*args, 10)}
        fn["density"] = lambda: _quadrature.lower(*args)
        return fn[what]().compile().memory_analysis().temp_size_in_bytes


@functools.partial(jax.jit, static_argnames=("steps", "k"))
def _eigh(loss, params, batches, start, steps, k):
    # The vectors of the k largest alone: all `steps` of them would be written otherwise.
    matvec = functools.partial(mean_product, loss, params, batches)
    values, vectors = eig.eigh_partial(decomp.tridiag_sym(steps))(matvec, start)
    top = jnp.argsort(-values)[:k]
    return values[top], jax.tree.map(lambda v: v[top], vectors)


@functools.partial(jax.jit, static_argnames="steps")
def _quadrature(loss, params, batches, start, steps):
    matvec = functools.partial(mean_product, loss, params, batches)
    _, matrix, *_ = decomp.tridiag_sym(steps)(matvec, start)
    nodes, vectors = jnp.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


@functools.partial(jax.jit, static_argnames="num")
def _xtrace(loss, params, batches, key, num):
    matvec = functools.partial(mean_product, loss, params, batches)
    sampler = stochtrace.sampler_normal(params, num=num)
    estimate = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler)
    return estimate(matvec, key)
