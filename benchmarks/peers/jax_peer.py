"""What the peers in JAX share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Outcome
from benchmarks.workloads import Loss, Model, cross_entropy


class JaxPeer:
    framework = "jax"
    compiles = True

    def __init__(self, workload):
        # As a user's program would have them: on the device before anything is timed.
        put = functools.partial(jax.tree.map, jnp.asarray)
        self.workload = workload
        self.params = put(workload.params)
        self.model = Model(workload.module, put(workload.variables))
        self.loss, self.outer = Loss(self.model), cross_entropy
        self.batches = [put(batch) for batch in workload.batches]
        self.batch = self.batches[0]
        self.direction = put(workload.vector(0))

    def gradient(self):
        found = gradient(self.loss, self.params, self.batch)
        return Outcome(None, detail={"vector": jax.block_until_ready(found)})

    def set_params(self, params):
        self.params = jax.tree.map(jnp.asarray, params)

    def numbers(self, values):
        return np.asarray(values, np.float64).tolist()


@jax.jit
def gradient(loss, params, batch):
    return jax.grad(loss)(params, batch)


def product(loss, params, batch, vector):
    """Forward over reverse."""
    return jax.jvp(lambda params: jax.grad(loss)(params, batch), (params,), (vector,))[1]


def mean_product(loss, params, batches, vector):
    found = [product(loss, params, batch, vector) for batch in batches]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)


def normal(like, seed):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(like)))
    keys = jax.tree.unflatten(jax.tree.structure(like), list(keys))
    return jax.tree.map(lambda k, x: jax.random.normal(k, x.shape, x.dtype), keys, like)
