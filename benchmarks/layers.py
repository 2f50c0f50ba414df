"""Data-free metrics of every layer of a ResNet-18, and the bootstrap of alpha, on this machine.

    python benchmarks/layers.py [--width=64] [--samples=100] [--mode=weightwatcher]

Weights are Gaussian draws in the shapes of the network for CIFAR (3 x 3 stem, 10 classes). Wall and
processor time of the first call, which compiles, and of one more; then WeightWatcher on the same
arrays, if it is installed. Prints a table.
"""

import argparse
import datetime
import json
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


def weightwatcher(params):
    """The same by WeightWatcher, from a folder of arrays in torch's layout."""
    import weightwatcher as ww

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


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--mode", choices=("weightwatcher", "scale_free"), default="weightwatcher")
    args = parser.parse_args(arguments)
    params = network(args.width)
    convention = WEIGHTWATCHER if args.mode == "weightwatcher" else SCALE_FREE
    key = jax.random.key(0)

    def metrics(samples):
        return data_free(params, convention=convention, key=key, num_samples=samples)

    print(
        f"{len(params)} layers, width {args.width}, {os.cpu_count()} cores, {datetime.date.today()}"
    )
    print(f"{'':34}{'wall s':>9}{'processor s':>13}")
    for name, samples in (("metrics", 0), (f"with {args.samples} samples of alpha", args.samples)):
        for which in ("first call", "again"):
            _, wall, processor = timed(lambda samples=samples: metrics(samples))
            print(f"{name + ', ' + which:34}{wall:9.2f}{processor:13.2f}", flush=True)
    try:
        import weightwatcher as _  # noqa: F401
    except ImportError:
        print("WeightWatcher is not installed")
        return
    _, wall, processor = timed(lambda: weightwatcher(params))
    print(f"{'WeightWatcher':34}{wall:9.2f}{processor:13.2f}")


if __name__ == "__main__":
    main()
