"""traceax 1.0.2: Hutch++ on a lineax operator, all under one jit."""

import functools

import jax
import lineax
import traceax
from jax.flatten_util import ravel_pytree

from benchmarks.peers import Outcome
from benchmarks.peers.jax_peer import JaxPeer, product


class Peer(JaxPeer):
    name, package = "traceax", "traceax"

    def trace(self, seed, products=99):
        args = (self.loss, self.params, self.batch, jax.random.key(seed), products)
        return Outcome(float(_hutchpp(*args)), products)


@functools.partial(jax.jit, static_argnames="products")
def _hutchpp(loss, params, batch, key, products):
    flat, unravel = ravel_pytree(params)

    def matvec(vector):
        return ravel_pytree(product(loss, params, batch, unravel(vector)))[0]

    operator = lineax.FunctionLinearOperator(matvec, jax.eval_shape(lambda: flat))
    sampler = traceax.RademacherSampler(float)  # the default gives integers, which jvp refuses
    return traceax.HutchPlusPlusEstimator(sampler)(key, operator, products)[0]
