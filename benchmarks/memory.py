"""What `geometry.memory` says before anything runs, beside what the compiled programs say.

    python benchmarks/memory.py [--only=W1,W2,W3] [--solvers='top1;density']
        [--operators=plain,microbatches,gauss_newton,averaged]

The nets are those of `workloads.py`, with random weights. Each solver runs, and for each program
that it calls the bytes of all arrays that are alive are added to the program's own temporaries and
outputs (`compiled.memory_analysis()`); the largest sum is its peak. Prints a table.
"""

import argparse
import functools
import gc
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workloads
from sharpjax import geometry, loops
from sharpjax.geometry.eigenpairs import search, top
from sharpjax.geometry.estimators import deflation
from sharpjax.geometry.lanczos import krylov
from sharpjax.geometry.operators import algebra, averaging

# Every program that a solver calls and that holds vectors.
PROGRAMS = {
    loops: ("_device_loop", "_device_loop_in_place", "_host_step", "_call", "_propose", "_absorb"),
    averaging: ("_linearize", "_term", "_fresh_term", "_sum", "_divide"),
    algebra: ("_solved", "_linearize"),
    search: ("_restart", "_begin"),
    top: ("_finish",),
    krylov: ("grow",),
    deflation: ("_begin", "_probe_complement"),
}
SHAPES = {
    "W1": ((1024, 28, 28, 1), np.float32, (1024,), 10),
    "W2": ((128, 32, 32, 3), np.float32, (128,), 10),
    "W3": ((32, 64), np.int32, (32, 64), 64),
}
SOLVERS = {
    "product": ("product", {}),
    "top1": ("top_eigenpairs", {"k": 1}),
    "top10": ("top_eigenpairs", {"k": 10, "max_products": 30}),
    "top1, basis_size=8": ("top_eigenpairs", {"k": 1, "basis_size": 8}),
    "top1, basis_size=0": ("top_eigenpairs", {"k": 1, "basis_size": 0, "vectors": False}),
    "density": ("spectral_density", {"num_steps": 4, "num_probes": 2}),
    "hutchinson": ("trace", {"method": "hutchinson", "max_products": 6}),
    "deflated": ("trace", {"max_products": 40}),
    "diagonal": ("diagonal", {"max_products": 44}),
    "solve": ("solve", {"max_products": 4}),
}


def problem(name):
    """Loss, parameters and batch of a workload, with random weights and data."""
    module = workloads._recipe(name, False).module
    shape, kind, labels, count = SHAPES[name]
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape) if kind == np.float32 else rng.integers(0, count, shape)
    batch = {"image": image.astype(kind), "label": rng.integers(0, count, labels, np.int32)}
    batch = jax.tree.map(jnp.asarray, batch)
    variables = dict(module.init(jax.random.key(0), batch["image"][:1]))
    params = variables.pop("params")
    return workloads.Loss(workloads.Model(module, variables)), params, batch


class Recorder:
    """Within it, `peak` is the largest number of bytes that a program and all arrays took."""

    def __init__(self):
        self.peak, self.where, self.known = 0, "", {}

    def __enter__(self):
        self.before = {(m, n): getattr(m, n) for m, names in PROGRAMS.items() for n in names}
        for (module, name), fn in self.before.items():
            setattr(module, name, self._recorded(name, fn))
        return self

    def __exit__(self, *_):
        for (module, name), fn in self.before.items():
            setattr(module, name, fn)

    def _recorded(self, name, fn):
        jitted = getattr(fn, "__wrapped__", fn) if not hasattr(fn, "lower") else fn

        @functools.wraps(fn)
        def called(*args, **kwargs):
            if not loops.is_traced((args, kwargs)) and not loops.inside_jit():
                self._see(name, jitted, args, kwargs)
            return fn(*args, **kwargs)

        if hasattr(fn, "eval_shape"):
            called.eval_shape = fn.eval_shape
        return called

    def _see(self, name, fn, args, kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        shapes = tuple((jnp.shape(x), str(getattr(x, "dtype", ""))) for x in leaves)
        found = self.known.get((name, structure, shapes))
        if found is None:
            analysis = fn.lower(*args, **kwargs).compile().memory_analysis()
            found = analysis.temp_size_in_bytes
            found += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            self.known[name, structure, shapes] = found
        alive = sum(x.nbytes for x in jax.live_arrays())
        if alive + found > self.peak:
            self.peak, self.where = alive + found, name


def run(solver, operator, options):
    if solver == "product":
        product, vector = algebra.linearize(operator), jax.tree.map(jnp.ones_like, operator.like)
        return loops.call(product, vector)
    options = dict(options)
    if solver == "solve":
        return geometry.solve(operator + 1.0, jax.tree.map(jnp.ones_like, operator.like), **options)
    return getattr(geometry, solver)(operator, key=jax.random.key(0), **options)


def operators(name, chosen):
    """Operators by name: one batch, microbatches, and means over four batches."""
    loss, params, batch = problem(name)
    if "plain" in chosen:
        yield "", geometry.hessian(loss, params, batch)
    if "microbatches" in chosen:
        size = len(batch["label"]) // 4
        yield ", microbatches", geometry.hessian(loss, params, batch, microbatch_size=size)
    if "gauss_newton" in chosen:
        found = geometry.composed(loss.model, workloads.cross_entropy)
        yield ", gauss_newton", geometry.gauss_newton(found, params, batch)
    of = functools.partial(geometry.hessian, loss, params)
    size = len(batch["label"]) // 4
    if "averaged" in chosen:
        yield ", averaged", geometry.averaged(of, batch, batch_size=size)
    if "averaged anew" in chosen:
        yield ", averaged anew", geometry.averaged(of, batch, batch_size=size, cache_bytes=0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="W1,W2,W3")
    parser.add_argument("--solvers", default=";".join(SOLVERS))
    parser.add_argument("--operators", default="plain")
    flags = parser.parse_args()
    print("| workload | call | model MiB | programs MiB | off | trace s | run s | where |")
    print("|---|---|---|---|---|---|---|---|")
    for name in flags.only.split(","):
        for label, operator in operators(name, flags.operators.split(",")):
            for title in flags.solvers.split(";"):
                solver, options = SOLVERS[title]
                gc.collect()
                begun = time.perf_counter()
                asked = operator + 1.0 if solver == "solve" else operator
                found = geometry.memory(asked, solver, **options)
                traced = time.perf_counter()
                with Recorder() as recorder:
                    jax.block_until_ready(run(solver, operator, options))
                ended = time.perf_counter()
                model, true = found.total / 2**20, recorder.peak / 2**20
                off = model / true - 1
                print(
                    f"| {name}{label} | {title} | {model:.1f} | {true:.1f} | {off:+.1%} "
                    f"| {traced - begun:.1f} | {ended - traced:.0f} | {recorder.where} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
