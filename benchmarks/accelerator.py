"""What one accelerator gives: checks, then times, in under eight minutes.

    python benchmarks/accelerator.py            # one GPU or TPU, float32 without TF32
    python benchmarks/accelerator.py --tiny     # small sizes, to see that it runs: under a minute

It needs no peers and no data. First products, eigenvalues, traces and certificates are compared
with numpy in float64, eager and compiled (`accelerator_checks.py`); then times follow, each after a
call that compiles, which is timed, too. A part that fails is a line of the table, and parts that
would begin after `--seconds` are left out. Writes `results/accelerator-<hardware>.json` and `.md`.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.accelerator_checks import CHECKS  # noqa: E402
from sharpjax import geometry, losses, tree  # noqa: E402
from sharpjax.geometry.operators.algebra import linearize  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of what is timed: a causal transformer, a matrix, a head, a population."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocab: int = 8192
    sequences: int = 16
    length: int = 512
    matrix: int = 8192
    tokens: int = 16_384
    classes: int = 50_304
    features: int = 768
    members: int = 10
    hidden: int = 512
    examples: int = 1024
    steps: int = 32


TINY = Sizes(1, 16, 2, 32, 2, 8, 64, 32, 64, 8, 3, 8, 16, 4)


# Nets in plain JAX: nothing else has to be installed.


def transformer(sizes: Sizes) -> tuple[Callable, Any, Any]:
    """A loss, parameters and a batch; layers are scanned."""
    s, rng = sizes, np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / math.sqrt(shape[-2]), jnp.float32)

    params = {
        "token": normal(s.vocab, s.width),
        "position": normal(s.length, s.width),
        "layers": {
            "qkv": normal(s.layers, s.width, 3 * s.width),
            "out": normal(s.layers, s.width, s.width),
            "up": normal(s.layers, s.width, 4 * s.width),
            "down": normal(s.layers, 4 * s.width, s.width),
        },
    }
    tokens = rng.integers(0, s.vocab, (s.sequences, s.length + 1)).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens[:, :-1]), "label": jnp.asarray(tokens[:, 1:])}
    return TransformerLoss(s.heads), params, batch


@dataclasses.dataclass(frozen=True)
class TransformerLoss:
    heads: int

    def __call__(self, params, batch):
        tokens = batch["tokens"]
        x = params["token"][tokens] + params["position"][: tokens.shape[1]]
        x, _ = jax.lax.scan(functools.partial(_layer, self.heads), x, params["layers"])
        return _cross_entropy(_norm(x) @ params["token"].T, batch["label"])


def _layer(heads, x, w):
    batch, length, width = x.shape
    qkv = (_norm(x) @ w["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
    mask = np.tril(np.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ w["out"]
    return x + jax.nn.gelu(_norm(x) @ w["up"]) @ w["down"], None


def _norm(x):
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def _cross_entropy(logits, label):
    chosen = jnp.take_along_axis(logits, label[..., None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)


def mlp(sizes: Sizes, seed: int = 0) -> tuple[Callable, Any, Any]:
    rng, widths = np.random.default_rng(seed), (784, sizes.hidden, sizes.hidden, 10)
    params = [
        {"w": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32), "b": jnp.zeros(b)}
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(sizes.examples, 784)), jnp.float32)
    return _mlp_loss, params, {"x": x, "label": jnp.asarray(rng.integers(0, 10, sizes.examples))}


def _mlp_loss(params, batch):
    return _cross_entropy(_mlp(params, batch), batch["label"])


def _mlp(params, batch):
    x = batch["x"]
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


# Times: each part gives a call and a remark on its result.


def parts(sizes: Sizes):
    """Name, and what makes (call, remark of its result)."""
    return {
        "matrix rate, float32": lambda: _matrix(sizes, jnp.float32, "highest"),
        "matrix rate, bfloat16": lambda: _matrix(sizes, jnp.bfloat16, "default"),
        "transformer: gradient": lambda: _gradient(sizes),
        "transformer: Hessian product, linearised": lambda: _product(sizes, geometry.hessian),
        "transformer: largest eigenvalue": lambda: _top(sizes, 1),
        "transformer: ten largest": lambda: _top(sizes, 10),
        "transformer: density": lambda: _density(sizes),
        "dense net: Gauss-Newton product": lambda: _gauss_newton(sizes),
        "cross-entropy: Gauss-Newton product, logits as an array": lambda: _head(sizes, False),
        "cross-entropy: Gauss-Newton product, logits in blocks": lambda: _head(sizes, True),
        "population: by vmap": lambda: _population(sizes, True),
        "population: one after another": lambda: _population(sizes, False),
    }


def _matrix(sizes, dtype, precision):
    x = jax.random.normal(_key(), (sizes.matrix, sizes.matrix)).astype(dtype)
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    work = 2 * sizes.matrix**3
    return lambda: multiply(x, x), lambda _, seconds: f"{work / seconds / 1e12:.2f} TFLOP/s"


def _gradient(sizes):
    loss, params, batch = transformer(sizes)
    gradient = jax.jit(jax.grad(loss))

    def call():
        with jax.default_matmul_precision("highest"):
            return gradient(params, batch)

    return call, lambda *_: f"{tree.size(params):,} parameters, {batch['label'].size:,} tokens"


def _product(sizes, make):
    loss, params, batch = transformer(sizes)
    product, multiply = linearize(make(loss, params, batch)), jax.jit(lambda p, v: p(v))
    return lambda: multiply(product, params), lambda *_: ""


def _top(sizes, k):
    operator = geometry.hessian(*transformer(sizes))

    def say(found, _):
        count, sure = int(found.num_products), int(found.converged.sum())
        return f"{count} products, {sure} of {k} certified"

    return lambda: geometry.top_eigenpairs(operator, key=_key(), k=k), say


def _density(sizes):
    operator, steps = geometry.hessian(*transformer(sizes)), sizes.steps

    def call():
        return geometry.spectral_density(operator, key=_key(), num_steps=steps, num_probes=2)

    return call, lambda found, _: f"{int(found.num_products)} products"


def _gauss_newton(sizes):
    _, params, batch = mlp(sizes)
    loss = geometry.composed(_mlp, losses.CrossEntropy())
    product = linearize(geometry.gauss_newton(loss, params, batch))
    multiply = jax.jit(lambda p, v: p(v))
    return lambda: multiply(product, params), lambda *_: f"{tree.size(params):,} parameters"


def _head(sizes, in_blocks):
    """A linear head of many classes; in blocks where this version has `losses.LinearLogits`."""
    if in_blocks and not hasattr(losses, "LinearLogits"):
        raise NotImplementedError("this version has no losses.LinearLogits")
    rng, s = np.random.default_rng(0), sizes
    kernel = jnp.asarray(rng.normal(size=(s.features, s.classes)) / s.features**0.5, jnp.float32)
    x = jnp.asarray(rng.normal(size=(s.tokens, s.features)), jnp.float32)
    batch = {"x": x, "label": jnp.asarray(rng.integers(0, s.classes, s.tokens))}
    loss = geometry.composed(_blocks if in_blocks else _logits, losses.CrossEntropy())
    operator = geometry.gauss_newton(loss, {"kernel": kernel}, batch)
    product = jax.jit(lambda operator, v: operator.linearize()(v))
    compiled = product.lower(operator, operator.like).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e9
    said = f"{s.tokens:,} tokens, {s.classes:,} classes, {memory:.2f} GB of temporaries"
    said += "; compiled before"
    return lambda: compiled(operator, operator.like), lambda *_: said


def _logits(params, batch):
    return batch["x"] @ params["kernel"]


def _blocks(params, batch):
    return losses.LinearLogits(batch["x"], params["kernel"])  # pyright: ignore


def _population(sizes, by_vmap):
    nets = [mlp(sizes, seed) for seed in range(sizes.members)]
    loss, _, batch = nets[0]
    members = [params for _, params, _ in nets]

    def find(params):
        operator = geometry.hessian(loss, params, batch)
        return geometry.top_eigenpairs(operator, key=_key(), vectors=False).values

    if by_vmap:
        stacked, together = tree.stack(members), jax.jit(jax.vmap(find))
        call = functools.partial(together, stacked)
    else:

        def call():
            return [find(params) for params in members]

    return call, lambda *_: f"{sizes.members} nets of {tree.size(members[0]):,} parameters"


# The order of things.


def run(sizes: Sizes, *, seconds: float, repeats: int) -> dict[str, Any]:
    """All checks and times, as plain data."""
    start, found = time.perf_counter(), {"checks": [], "times": []}
    for name, check in CHECKS.items():
        row = {"what": name, "passed": True}
        with _noting(row):
            row["said"] = check()
        row["passed"] = "failed" not in row
        found["checks"].append(row)
        say(f"{name}: {row.get('said') or row.get('failed')}")
    for name, make in parts(sizes).items():
        row: dict[str, Any] = {"what": name}
        found["times"].append(row)
        if time.perf_counter() - start > seconds:
            row["failed"] = "left out: no time was left"
            continue
        with _noting(row):
            row |= timed(*make(), repeats=repeats)
        say(f"{name}: {row.get('failed') or duration(row['seconds'])} {row.get('said', '')}")
    return found | {"seconds": time.perf_counter() - start}


def timed(call, remark, *, repeats: int) -> dict[str, Any]:
    """The first call, the least of the others (at most `repeats`, 10 s), and a remark."""
    first, result = _clock(call)
    times = []
    while len(times) < repeats and (not times or sum(times) < 10):
        elapsed, result = _clock(call)
        times.append(elapsed)
    best = min(times)
    return {"first": first, "seconds": best, "most": max(times), "said": remark(result, best)}


def _clock(call):
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


@contextlib.contextmanager
def _noting(row):
    """What fails, such as for want of memory, ends one part alone."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, NotImplementedError):
            traceback.print_exc(limit=-3, file=sys.stderr)
        row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def machine() -> dict[str, Any]:
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind if device.platform != "cpu" else platform.machine(),
        "platform": device.platform,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def page(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    out = [
        f"# One accelerator: {found['device']} ({found['platform']})",
        "",
        f"Measured on {found['date']}, {found['system']}, Python {found['python']}; {versions}; "
        f"{found['seconds']:.0f} s in all. Written by `python benchmarks/accelerator.py`; do not "
        "edit. Float32 without TF32 unless said; the least of several calls, compilation apart.",
        "",
        "| check | | |",
        "|---|---|---|",
    ]
    for row in found["checks"]:
        verdict = "passed" if row["passed"] else "**failed**"
        out.append(f"| {row['what']} | {verdict} | {row.get('said') or row['failed']} |")
    out += ["", "| what | time | first call | |", "|---|---|---|---|"]
    for row in found["times"]:
        if "failed" in row:
            out.append(f"| {row['what']} | | | {row['failed'].replace('|', '/')} |")
        else:
            cells = duration(row["seconds"]), duration(row["first"]), row["said"]
            out.append(f"| {row['what']} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def _key():
    return jax.random.key(0)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def say(text: str) -> None:
    print(text, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--seconds", type=float, default=360, help="no part begins later")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    args = parser.parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")
    sizes = TINY if args.tiny else Sizes()
    found = machine() | {"sizes": dataclasses.asdict(sizes)}
    say(f"{found['device']}, {found['platform']}, jax {found['versions']['jax']}")
    found |= run(sizes, seconds=args.seconds, repeats=args.repeats)
    text = page(found)
    say("\n" + text)
    if not args.tiny:
        name = "accelerator-" + "-".join(found["device"].lower().split())
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.out / f"{name}.md").write_text(text)
    return 0 if all(row["passed"] for row in found["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
