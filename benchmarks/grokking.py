"""How long an epoch of `configs/grokking.py` takes, and its share of the machine's matrix rate.

    python benchmarks/grokking.py                          # 80 % of the pairs, some three minutes
    python benchmarks/grokking.py --write                  # also to results/grokking-<hardware>.md
    python benchmarks/grokking.py --epochs=5 --repeats=1   # a look

Prints tables in Markdown and whether the targets are met. An epoch is every training example in
batches of 512, and the test accuracy. Multiplications are those of the products in the traced
program, so a layer that is formed or factored, or looked up from a table, counts as it is computed.
Compilation is left out. Run it on a machine that does nothing else.
"""

import concurrent.futures
import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's talk of its compile cache
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.extend.core import jaxprs_in_params
from ml_collections import config_flags

from benchmarks import measure
from sharpjax import runtime
from sharpjax.runs import loading, study
from sharpjax.train import planning, population
from sharpjax.train.library import example_of

CONFIG = config_flags.DEFINE_config_file("config", "configs/grokking.py:table1_80")
EPOCHS = flags.DEFINE_integer("epochs", 25, "Epochs that are timed in one go.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 15, "Medians are over so many.", lower_bound=1)
WRITE = flags.DEFINE_bool("write", False, "Write the page to benchmarks/results, too.")

SEEDS = tuple(range(100, 110))  # of those of the study nothing is to be seen here
SHARE, RANK_RATIO = 0.55, 0.45  # the targets
# Products whose rate is measured, one on all cores; and those of the network, one on each core: of
# the table of embeddings with the weights of one position, and of a batch with the last layer.
LARGE, OWN = (2048, 2048, 2048), ((99, 128, 128), (512, 128, 99))


def products(fn, *args):
    """Floating-point operations of the matrix products in `fn(*args)`, two for a multiplication."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        inner = sum(map(_of_jaxpr, jaxprs_in_params(equation.params)))
        if equation.primitive.name == "scan":
            inner *= equation.params["length"]
        elif inner and equation.primitive.name in ("while", "cond"):
            raise ValueError(f"products inside a {equation.primitive.name} cannot be counted")
        total += inner
    return total


def matrix_rate(m, k, n, programs):
    """A function whose call multiplies [m, k] by [k, n] and back, `programs` times side by side;
    and how many operations that is."""
    a = jax.random.normal(jax.random.key(0), (m, k))
    # Orthonormal columns, b b' a projection: the numbers stay what they are, however often.
    b = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (k, n)))[0]
    times = max(1, 2**33 // (4 * m * k * n))
    fn = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, a: a @ b @ b.T, a))

    def run(_=None):
        jax.block_until_ready(fn(a, b))

    def together():
        with concurrent.futures.ThreadPoolExecutor(programs) as pool:
            list(pool.map(run, range(programs)))

    return (together if programs > 1 else run), programs * times * 4 * m * k * n


def arm(config, name, seeds):
    """What trains these seeds for some epochs from their start, and the operations of one epoch."""
    config = config.copy_and_resolve_references()
    config.seeds = seeds
    plan = study.plan_of(config)
    stage = planning.arms(plan)[name]
    split = loading.on_device(loading.load(plan))[stage.data]
    example = example_of(plan, stage)
    layout = stage.step.layout(stage.population, example, len(seeds))
    keys = [member.stream("init") for member in stage.members]
    start = population.initial(lambda key: stage.step.init(example, key), keys, layout)
    loop = stage.step.loop(stage.members, None, [split[seed] for seed in seeds], layout)
    nothing = loop.record(EPOCHS.value)

    def run():
        _, states, curves = loop.advance(0, EPOCHS.value, start, nothing)
        jax.block_until_ready(states)
        # A seed that has generalised stops, and epochs that were not run would be counted.
        if np.isfinite(curves.test_accuracy).sum() != EPOCHS.value * len(seeds):
            raise ValueError(f"{name}: a seed stopped before epoch {EPOCHS.value}; give fewer")

    one, order = population.members(start, layout)[0], stage.members[0].stream("order")
    return run, products(stage.step, one, split[seeds[0]], order)


def seconds(runs):
    """Of each run, by turns: float [repeats, runs]."""
    for run in runs:
        run()
    found = np.empty((REPEATS.value, len(runs)))
    for turn in found:
        for at, run in enumerate(runs):
            before = time.perf_counter()
            run()
            turn[at] = time.perf_counter() - before
    return found


def page():
    names = list(CONFIG.value.arms)
    on_cpu = jax.default_backend() == "cpu"
    cores = len(os.sched_getaffinity(0)) if on_cpu else 1
    ones = [arm(CONFIG.value, name, SEEDS[:1]) for name in names]
    tens = [arm(CONFIG.value, name, SEEDS) for name in names]
    rated = [matrix_rate(*LARGE, 1), *(matrix_rate(*shape, cores) for shape in OWN)]
    found = seconds([run for run, _ in (*ones, *tens, *rated)])
    alone, together = np.split(found[:, : 2 * len(names)] / EPOCHS.value, 2, axis=1)
    together = together / len(SEEDS)
    rates = np.array([done for _, done in rated]) / found[:, 2 * len(names) :]
    works = np.array([work for _, work in ones])
    shares = {"alone": works / alone / rates[:, :1], "together": works / together / rates[:, :1]}
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    )
    out = [
        f"# Epochs of the grokking study: {measure.hardware()}",
        "",
        f"Measured on {datetime.date.today()}, {platform.platform()}, Python "
        f"{platform.python_version()}; {versions}. Written by `python benchmarks/grokking.py "
        "--write`; do not edit.",
        "",
        f"Medians of {REPEATS.value} turns of {EPOCHS.value} epochs; shares and ratios are medians "
        "of those within a turn. GFLOP are of the matrix products as they are computed, forward "
        "and backward. Ten seeds run as the study runs them, each time per seed and epoch.",
        "",
        "| product, float32 | programs at a time | GFLOP/s |",
        "|---|---:|---:|",
    ]
    for shape, count, rate in zip((LARGE, *OWN), (1, cores, cores), rates.T, strict=True):
        size = " x ".join(map(str, shape))
        out.append(f"| {size} | {count} | {statistics.median(rate) / 1e9:.0f} |")
    out += [
        "",
        "| arm | GFLOP an epoch | one seed, ms | share of the rate | ten seeds, ms each | share |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for at, name in enumerate(names):
        one, ten = (1e3 * statistics.median(times[:, at]) for times in (alone, together))
        of_one, of_ten = (statistics.median(share[:, at]) for share in shares.values())
        out.append(
            f"| {name} | {works[at] / 1e9:.3f} | {one:.2f} | {of_one:.2f} | {ten:.2f} "
            f"| {of_ten:.2f} |"
        )
    dense, lowest = (
        next(i for i, name in enumerate(names) if part in name) for part in ("-dense-", "-svd_12-")
    )
    # On an accelerator ten seeds together may take twice one seed's time, and no more is asked.
    asked = [
        (f"ten seeds together to one after another, {name}", "at most", 1 if on_cpu else 0.2, ratio)
        for name, ratio in zip(names, (together / alone).T, strict=True)
    ]
    for label, times in (("one seed", alone), ("ten seeds", together)) if on_cpu else ():
        share = works[dense] / times[:, dense] / rates[:, 0]
        ratio = times[:, lowest] / times[:, dense]
        asked += [
            (f"dense, {label}: share of the matrix rate", "at least", SHARE, share),
            (f"rank 12.5 % to dense, {label}", "at most", RANK_RATIO, ratio),
        ]
    out += ["", "| what | target | measured | |", "|---|---|---:|---|"]
    for what, sense, limit, turns in asked:
        value = statistics.median(turns)
        met = value >= limit if sense == "at least" else value <= limit
        out.append(
            f"| {what} | {sense} {limit:g} | {value:.2f} | {'met' if met else '**missed**'} |"
        )
    return "\n".join(out) + "\n"


def main(_):
    runtime.start()
    text = page()
    print(text)
    if WRITE.value:
        folder = pathlib.Path(__file__).parent / "results"
        (folder / f"grokking-{measure.hardware()}.md").write_text(text)


if __name__ == "__main__":
    app.run(main)
