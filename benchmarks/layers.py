"""Data-free metrics of every layer of a ResNet-18, and the bootstrap of alpha, on this machine.

    python benchmarks/layers.py [--width=64] [--samples=100] [--repeats=3] [--mode=weightwatcher]

Weights are Gaussian draws in the shapes of the network for CIFAR (3 x 3 stem, 10 classes). Wall and
processor time of the first call, which compiles, and of `repeats` more, in turn with WeightWatcher
on the same arrays, if that is installed; their numbers are compared. Prints a table.
"""

import argparse
import datetime
import json
import logging
import os
import pathlib
import tempfile
import time

import jax
import numpy as np

from sharpjax.layerwise.data_free import SCALE_FREE, WEIGHTWATCHER, data_free


def shapes(width):
    """Kernels of a ResNet-18, in the layout of Flax."""
    found = {"stem": (3, 3, 3, width)}
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(2):
            name = f"stage{stage}_block{block}"
            found[f"{name}_a"] = (3, 3, inputs, outputs)
            found[f"{name}_b"] = (3, 3, outputs, outputs)
            if inputs != outputs:
                found[f"{name}_shortcut"] = (1, 1, inputs, outputs)
            inputs = outputs
    return found | {"head": (inputs, 10)}


def network(width):
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": rng.normal(size=s).astype(np.float32) / np.sqrt(np.prod(s[:-1]))}
        for name, s in shapes(width).items()
    }


def timed(fn):
    wall, processor = time.perf_counter(), time.process_time()
    found = fn()
    return found, time.perf_counter() - wall, time.process_time() - processor


def weightwatcher_table(params):
    """The same by WeightWatcher, from a folder of arrays in torch's layout."""
    import weightwatcher as ww

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        layers = {}
        for i, (name, leaf) in enumerate(params.items()):
            kernel = leaf["kernel"]
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            file = f"{name}.weight.npy"
            np.save(pathlib.Path(folder, file), np.ascontiguousarray(kernel.transpose(order)))
            layers[i] = {
                "name": name,
                "longname": name,
                "weightfile": file,
                "biasfile": None,
                "type": "conv2d" if kernel.ndim == 4 else "dense",
                "dims": json.dumps([kernel.shape[k] for k in order]),
            }
        config = {"framework": "ww_flatfiles", "weights_dir": folder, "layers": layers}
        pathlib.Path(folder, "ww_config.json").write_text(json.dumps(config))
        watcher = ww.WeightWatcher(model=folder)
        return watcher.analyze(
            randomize=True, mp_fit=True, detX=True, savefig=False, svd_method="accurate"
        )


# What WeightWatcher draws anew at each call.
RANDOM = ("max_rand_eval", "rand_distance", "ww_softrank", "ww_maxdist")
NOT_FOLLOWED = ("sv_min",)  # of convolutions it takes the largest of several
MOST_OF_PRODUCT = 3_000  # eigenvalues; its product (`detX_num`, `detX_val`) of more may be 0
FEWEST = 20  # eigenvalues; its rule for fewer is another


def differences(table, theirs):
    """The largest relative difference of each column that both have, over all layers."""
    place = {name.removesuffix("/kernel"): i for i, name in enumerate(table.names)}
    rows = [row for row in theirs.to_dict("records") if row["num_evals"] >= FEWEST]
    found = {}
    for column in set(table.metrics._fields) & set(theirs.columns) - {*RANDOM, *NOT_FOLLOWED}:
        most = MOST_OF_PRODUCT if column.startswith("detX") else np.inf
        kept = [row for row in rows if row["num_evals"] <= most]
        own = np.array([getattr(table.metrics, column)[place[row["name"]]] for row in kept])
        other = np.array([row[column] for row in kept], float)
        found[column] = float(np.max(np.abs(own - other) / np.maximum(np.abs(other), 1e-12)))
    return len(rows), found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mode", choices=("weightwatcher", "scale_free"), default="weightwatcher")
    args = parser.parse_args(arguments)
    params = network(args.width)
    convention = WEIGHTWATCHER if args.mode == "weightwatcher" else SCALE_FREE
    key = jax.random.key(0)

    def metrics(samples=0):
        return data_free(params, convention=convention, key=key, num_samples=samples)

    tasks = {"metrics": metrics}
    try:
        import weightwatcher

        tasks["WeightWatcher"] = lambda: weightwatcher_table(params)
        version = f", WeightWatcher {getattr(weightwatcher, '__version__', '')}"
    except ImportError:
        version = ", WeightWatcher is not installed"
    print(
        f"{len(params)} layers, width {args.width}, {os.cpu_count()} cores, "
        f"{datetime.date.today()}, jax {jax.__version__}{version}"
    )
    print(f"{'':34}{'wall s':>9}{'processor s':>13}")

    def line(name, wall, processor):
        print(f"{name:34}{wall:9.2f}{processor:13.2f}", flush=True)

    _, *first = timed(metrics)
    line("metrics, first call", *first)
    times, found = {name: [] for name in tasks}, {}
    for _ in range(args.repeats):  # they take turns, since the machine may be busy
        for name, task in tasks.items():
            found[name], *own = timed(task)
            times[name].append(own)
            line(name, *own)
    for name, own in times.items():
        line(f"{name}, least", *np.min(own, axis=0))
        line(f"{name}, median", *np.median(own, axis=0))
    if "WeightWatcher" in found and args.mode == "weightwatcher":
        count, differ = differences(found["metrics"], found["WeightWatcher"])
        worst = max(differ, key=differ.__getitem__)
        print(
            f"{len(differ)} columns of {count} layers of {FEWEST} eigenvalues or more: the largest "
            f"relative difference is {differ[worst]:.1e}, of {worst}"
        )
    for which in ("first call", "again"):
        _, *own = timed(lambda: metrics(args.samples))
        line(f"with {args.samples} samples of alpha, {which}", *own)


if __name__ == "__main__":
    main()
