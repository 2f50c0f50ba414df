"""A data set that is read from disk batch by batch: eigenvalues of all of it, from a warm start.

    python examples/larger_than_memory.py

`averaged` takes a loader: an object that gives the same batches each time it is iterated. At any
time one batch is in memory, the next one on its way, and the linearisations of as many batches as
`cache_bytes` holds. (The data here are 1 MB; with a terabyte nothing below would change but the
time.)
"""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import geometry

FEATURES, BATCH, FILES = 32, 512, 16


class Files:
    """Batches from the files of a folder, in the order of their names: no shuffling."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def __iter__(self):
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as arrays:
                yield dict(arrays)


def write(folder, files=FILES):
    rng = np.random.default_rng(0)
    scales = np.linspace(0.2, 2, FEATURES)
    for number in range(files):
        x = (rng.normal(size=(BATCH, FEATURES)) * scales).astype(np.float32)
        y = np.sin(x.sum(axis=1))
        np.savez(pathlib.Path(folder) / f"{number:04}.npz", x=x, y=y)


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)


def weights():
    a, b = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(a, (FEATURES, 8)) / FEATURES**0.5,
        "b1": jnp.zeros(8),
        "w2": jax.random.normal(b, (8,)) / 8**0.5,
    }


def main():
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        hessian = geometry.averaged(
            functools.partial(geometry.hessian, loss, weights()), Files(folder), cache_bytes=2**20
        )
        # A few steps on the first examples. Nothing is promised of what they give, but it is near
        # to where the search on all of the data begins.
        start = geometry.subsample_start(hessian, key=jax.random.key(1), k=2)
        warm = geometry.top_eigenpairs(hessian, key=jax.random.key(2), k=2, start=start)
        cold = geometry.top_eigenpairs(hessian, key=jax.random.key(2), k=2)
    for name, pairs in (("warm", warm), ("cold", cold)):
        geometry.check(pairs)
        values = ", ".join(f"{value:.4f}" for value in pairs.values)
        print(f"{name}: {values} after {pairs.num_products} passes over {FILES * BATCH} examples")


if __name__ == "__main__":
    main()
