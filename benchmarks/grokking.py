"""How long an epoch of `configs/grokking.py` takes, and its share of the machine's matrix rate.

    python benchmarks/grokking.py                          # 80 % of the pairs
    python benchmarks/grokking.py --epochs=10 --repeats=1  # a look

Prints a table in Markdown and whether the targets are met. An epoch is every training example in
batches of 512, and the test accuracy. Multiplications are those of the products in the traced
program, so a layer that is formed or factored, or looked up from a table, counts as it is computed.
Compilation is left out. Run it on a machine that does nothing else.
"""

import concurrent.futures
import datetime
import functools
import itertools
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's talk of its compile cache

import jax
from absl import app, flags
from ml_collections import config_flags

from sharpjax import runtime
from sharpjax.studies import grokking, schema
from sharpjax.train import epoch_population, population
from sharpjax.train.streams import stream

CONFIG = config_flags.DEFINE_config_file("config", "configs/grokking.py:table1_80")
EPOCHS = flags.DEFINE_integer("epochs", 100, "Epochs that are timed in one go.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Medians are over so many.", lower_bound=1)

SHARE, RANK_RATIO = 0.55, 0.45  # the targets
# Products whose rate is measured: one on all cores, and those of the network, one on each core.
LARGE, OWN = (2048, 2048, 2048), ((512, 512, 128), (512, 128, 99))


def products(fn, *args):
    """Floating-point operations of the matrix products in `fn(*args)`, two for a multiplication."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval.shape, equation.outvars[0].aval
            total += (
                2
                * result.size
                * functools.reduce(lambda size, axis: size * left[axis], contracted, 1)
            )
        inner = _of_inner(equation.params)
        if equation.primitive.name == "scan":
            inner *= equation.params["length"]
        elif inner and equation.primitive.name in ("while", "cond"):
            raise ValueError(f"products inside a {equation.primitive.name} cannot be counted")
        total += inner
    return total


def _of_inner(params):
    inner = (getattr(value, "jaxpr", value) for value in params.values())
    return sum(_of_jaxpr(jaxpr) for jaxpr in inner if hasattr(jaxpr, "eqns"))


def matrix_rate(m, k, n, programs):
    """A function whose call multiplies [m, k] by [k, n] and back, `programs` times side by side;
    and how many operations that is."""
    a = jax.random.normal(jax.random.key(0), (m, k))
    b = jax.random.normal(jax.random.key(1), (k, n)) / 1e3
    times = max(1, 2**33 // (4 * m * k * n))
    fn = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, a: a @ b @ b.T, a))

    def run(_=None):
        return jax.block_until_ready(fn(a, b))

    def together():
        with concurrent.futures.ThreadPoolExecutor(programs) as pool:
            list(pool.map(run, range(programs)))

    return (together if programs > 1 else run), programs * times * 4 * m * k * n


def condition(config, name, seeds):
    """What trains these seeds for some epochs from their start, and the operations of one epoch."""
    config = config.copy_and_resolve_references()
    config.seeds = seeds
    arm = schema.resolve_arms(config)[name]
    made = grokking.make_condition(config, name, arm)
    split = grokking.split_of({name: arm}, seeds)[name]
    examples = [grokking.examples(split[seed]) for seed in seeds]
    data = population.gather(examples, made.layout)
    keys = {
        use: population.gather([stream(seed, use) for seed in seeds], made.layout)
        for use in ("init", "order")
    }
    start = epoch_population.initial(made.step, keys["init"], data, made.layout)

    def run():
        epoch_population.advance(
            made.step, start, data, keys["order"], num_epochs=EPOCHS.value, layout=made.layout
        )

    (one,) = population.members(start, made.layout)[:1]
    return run, products(made.step, one, examples[0], stream(0, "order"))


def seconds(*runs):
    """Median time of each, taking turns."""
    found = [[] for _ in runs]
    for run in runs:
        run()
    for _, (run, times) in itertools.product(range(REPEATS.value), zip(runs, found, strict=True)):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return [statistics.median(times) for times in found]


def main(_):
    runtime.start()
    cores = os.cpu_count()
    names = list(CONFIG.value.arms)
    seeds = tuple(range(10))
    ones = [condition(CONFIG.value, name, seeds[:1]) for name in names]
    tens = [condition(CONFIG.value, name, seeds) for name in names]
    large = matrix_rate(*LARGE, 1)
    own = [matrix_rate(*shape, cores) for shape in OWN]
    measured = seconds(*(run for run, _ in (*ones, *tens, large, *own)))
    alone, together = measured[: len(names)], measured[len(names) : 2 * len(names)]
    rates = [done / t for (_, done), t in zip((large, *own), measured[-3:], strict=True)]

    device = jax.devices()[0]
    print(f"{cores} cores, {device.device_kind}, jax {jax.__version__}, {datetime.date.today()}\n")
    for shape, rate in zip((LARGE, *OWN), rates, strict=True):
        print(f"- {' x '.join(map(str, shape))}: {rate / 1e9:.0f} GFLOP/s")
    print(
        "\n| arm | GFLOP an epoch | one seed, ms | ten seeds, ms each | share of the matrix rate |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    each = [t / EPOCHS.value / len(seeds) for t in together]
    for name, t, ten, (_, work) in zip(names, alone, each, ones, strict=True):
        print(
            f"| {name} | {work / 1e9:.3f} | {1e3 * t / EPOCHS.value:.2f} | {1e3 * ten:.2f} | "
            f"{work / ten / rates[0]:.2f} |"
        )
    dense = names.index(next(name for name in names if "-dense-" in name))
    lowest = names.index(next(name for name in names if "-svd_12-" in name))
    share = ones[dense][1] / each[dense] / rates[0]
    ratio = each[lowest] / each[dense]
    order = max(ten * EPOCHS.value / t for ten, t in zip(each, alone, strict=True))
    print()
    for what, value, is_met in (
        (f"dense, share of the matrix rate, {SHARE} or more", share, share >= SHARE),
        (f"rank 12.5 % to dense, {RANK_RATIO} at most", ratio, ratio <= RANK_RATIO),
        ("ten seeds together to one after another, 1 at most", order, order <= 1),
    ):
        print(f"- {what}: {value:.2f}, {'met' if is_met else 'missed'}")


if __name__ == "__main__":
    app.run(main)
