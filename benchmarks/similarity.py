"""All pairs of many models in one call, against a loop over pairs in numpy.

    python benchmarks/similarity.py [--models=60] [--examples=10000] [--classes=10]

Seven metrics of all pairs, from logits in float32 that lie in memory. The loop calls the function
of a pair for each metric; every pair takes the same time, so that only `--loop_pairs` of them are
timed and the time of all is theirs times the ratio (0: all are). The call is timed with its
compilation, and without; float64 beside float32. Prints a table.
"""

import argparse
import datetime
import time

import jax
import numpy as np

from benchmarks import measure
from sharpjax.metrics import functional
from sharpjax.metrics.functional import METRICS

SEVEN = ("disagreement", "activation_distance", "l1", "cosine_distance", "jsd",
         "rank_disagreement", "error_consistency")  # fmt: skip


def problem(num_models, num_examples, num_classes):
    """Models that agree in part, and labels that they are often right about."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, num_classes, num_examples)
    shared = 2 * rng.normal(size=(num_examples, num_classes)) + 3 * np.eye(num_classes)[label]
    own = rng.normal(size=(num_models, num_examples, num_classes))
    return (shared + own).astype(np.float32), label


def loop(logits, label, num_pairs):
    """Seconds of wall and processor time of the pairs, and what they gave."""
    pairs = np.argwhere(np.triu(np.ones((len(logits),) * 2), 1))
    some = pairs[np.linspace(0, len(pairs) - 1, num_pairs or len(pairs)).astype(int)]
    wall, processor = time.perf_counter(), time.process_time()
    found = [
        {name: METRICS[name].fn(logits[i], logits[j], label) for name in SEVEN} for i, j in some
    ]
    scale = len(pairs) / len(some)
    times = (time.perf_counter() - wall) * scale, (time.process_time() - processor) * scale
    return some, found, times


def once(fn):
    wall, processor = time.perf_counter(), time.process_time()
    found = fn()
    return found, (time.perf_counter() - wall, time.process_time() - processor)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, size in (("models", 60), ("examples", 10_000), ("classes", 10), ("loop_pairs", 60)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    logits, label = problem(args.models, args.examples, args.classes)
    pairs, found, slow = loop(logits, label, args.loop_pairs)
    rows = [("a loop over pairs, numpy in float64", slow, "")]
    for dtype in (np.float32, np.float64):
        given = logits.astype(dtype)

        def call(given=given):
            return functional.all_pairs(given, SEVEN, label)

        _, first = once(call)
        all_of_it = [once(call) for _ in range(args.repeats)]
        again = min((times for _, times in all_of_it), key=lambda times: times[0])
        matrices = all_of_it[-1][0]
        apart = max(
            abs(matrices[name][i, j] - values[name])
            for (i, j), values in zip(pairs, found, strict=True)
            for name in SEVEN
        )
        name = np.dtype(dtype).name
        rows.append((f"one call, {name}, the first", first, f"{apart:.0e}"))
        rows.append((f"one call, {name}", again, f"{apart:.0e}"))
    print(f"{args.models} models, {args.examples:,} examples, {args.classes} classes: {SEVEN}")
    print(f"{measure.hardware()}, jax {jax.__version__}, {datetime.date.today()}\n")
    print("| what | seconds | of processors | times as fast | apart from the loop |")
    print("|---|---|---|---|---|")
    for what, (wall, processor), apart in rows:
        print(f"| {what} | {wall:.2f} | {processor:.2f} | {slow[0] / wall:.1f} | {apart} |")


if __name__ == "__main__":
    main()
