"""A transformer sharded over 8 devices: what its curvature compiles to, and what it takes.

    python benchmarks/sharded_transformer.py                   # 354 million parameters, compiled
    python benchmarks/sharded_transformer.py --size=30m --run  # a smaller one, run for real
    python benchmarks/sharded_transformer.py --size=tiny --json

The devices are eight of the host, a mesh of 2 (data) x 4 (model): attention heads, the hidden layer
of each block and the vocabulary are cut over `model`, the batch over `data`. Five programs are
compiled as solvers call them, from shapes: the linearisation, a product, the loop of the largest
eigenvalue with a basis of 8 vectors, the loop of the density, which has none, and a random start.
For each: seconds to compile, bytes on a device as the program says and as `geometry.memory` does,
and what travels between devices, by kind, with the largest array of each. A basis must not be
gathered: that is checked.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

DEVICES = 8
SIZES = {  # layers, width, heads, vocabulary, sequences, tokens
    "tiny": (2, 32, 4, 64, 4, 16),
    "30m": (8, 512, 8, 8192, 8, 64),
    "60m": (12, 576, 8, 16384, 8, 64),
    "350m": (24, 1024, 16, 50304, 8, 512),
}
ROWS = 8  # of the basis
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def shapes(size):
    import jax
    import jax.numpy as jnp

    layers, width, heads, vocab, sequences, tokens = SIZES[size]
    deep = width // heads

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    params = {
        "embed": array(vocab, width),
        "place": array(tokens, width),
        "norm": array(2 * layers + 1, width),
        "qkv": array(layers, 3, width, heads, deep),
        "out": array(layers, heads, deep, width),
        "up": array(layers, width, 4 * width),
        "down": array(layers, 4 * width, width),
    }
    batch = {
        name: jax.ShapeDtypeStruct((sequences, tokens), jnp.int32) for name in ("token", "label")
    }
    return params, batch


def placed(params, batch):
    """The same shapes on the mesh."""
    import jax

    types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, DEVICES // 2), ("data", "model"), axis_types=types)
    specs = {
        "embed": jax.P("model", None),
        "place": jax.P(),
        "norm": jax.P(),
        "qkv": jax.P(None, None, None, "model", None),
        "out": jax.P(None, "model", None, None),
        "up": jax.P(None, None, "model"),
        "down": jax.P(None, "model", None),
    }

    def on(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

    params = {name: on(x, specs[name]) for name, x in params.items()}
    return params, {name: on(x, jax.P("data", None)) for name, x in batch.items()}


def loss(params, batch):
    """Mean cross-entropy of the next token; pre-norm blocks, one after another in a scan."""
    import jax
    import jax.numpy as jnp

    def norm(x, scale):
        return scale * x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    def block(x, layer):
        scale, qkv, out, up, down = layer
        q, k, v = jnp.einsum("btd,cdhe->cbthe", norm(x, scale[0]), qkv)
        scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5
        length = x.shape[1]
        past = jnp.arange(length)[:, None] >= jnp.arange(length)
        weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
        x = x + jnp.einsum("bhqk,bkhe,hed->bqd", weights, v, out)
        hidden = jax.nn.gelu(jnp.einsum("btd,df->btf", norm(x, scale[1]), up))
        return x + jnp.einsum("btf,fd->btd", hidden, down), None

    count = params["up"].shape[0]
    scales = params["norm"][: 2 * count].reshape(count, 2, -1)
    x = jnp.take(params["embed"], batch["token"], axis=0) + params["place"]
    layers = (scales, params["qkv"], params["out"], params["up"], params["down"])
    x, _ = jax.lax.scan(block, x, layers)
    logits = jnp.einsum("btd,vd->btv", norm(x, params["norm"][-1]), params["embed"])
    hit = batch["label"][..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def travels(text):
    """What a program moves between devices: kind -> (count, bytes of the largest array)."""
    found = {}
    for line in text.splitlines():
        made = re.search(r"= (.*?) (" + "|".join(KINDS) + r")(-start)?\(", line)
        if made:
            sizes = [4 * _product(dims) for dims in re.findall(r"\w+\[([\d,]*)\]", made.group(1))]
            count, largest = found.get(made.group(2), (0, 0))
            found[made.group(2)] = count + 1, max([largest, *sizes])
    return found


def gathered(text):
    """The shapes of all gathered arrays."""
    lines = [x for x in text.splitlines() if re.search(r"all-gather(-start)?\(", x)]
    return sorted(
        {s for x in lines for s in re.findall(r"\w+\[[\d,]+\]", x.split(" all-gather")[0])}
    )


def _product(dims):
    total = 1
    for dim in filter(None, dims.split(",")):
        total *= int(dim)
    return total


def compiled(size):
    """The four programs, and what was found of each."""
    import jax
    import jax.numpy as jnp

    from sharpjax import geometry, loops, tree
    from sharpjax.geometry.eigenpairs import convergence
    from sharpjax.geometry.lanczos import krylov, recurrence
    from sharpjax.geometry.operators import algebra
    from sharpjax.geometry.spectra import quadrature

    params, batch = placed(*shapes(size))
    operator = geometry.hessian(loss, params, batch)
    lies = jax.tree.map(lambda x: x.sharding, params)
    everywhere = jax.NamedSharding(jax.tree.leaves(lies)[0].mesh, jax.P())

    def on(shape, spec):
        """What a solver makes lies as parameters do, whatever its leading axes."""
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=spec)

    def like_params(found, rows=()):
        return jax.tree.map(
            lambda x, s: on(x, jax.NamedSharding(s.mesh, jax.P(*rows, *s.spec))), found, lies
        )

    rows = []

    def add(name, lowered, model):
        begun = time.perf_counter()
        program = lowered.compile()
        seconds, taken, text = (
            time.perf_counter() - begun,
            program.memory_analysis(),
            program.as_text(),
        )
        used = taken.argument_size_in_bytes + taken.temp_size_in_bytes
        used += taken.output_size_in_bytes - taken.alias_size_in_bytes
        row = {"name": name, "seconds": seconds, "bytes": used, "model": model}
        rows.append(row | {"travels": travels(text), "gathered": gathered(text)})
        return program

    key = jax.random.key(0)
    vector = like_params(jax.eval_shape(tree.widen, params))
    own = sum(_held(x) for x in jax.tree.leaves(operator))
    asked = geometry.memory(operator, "product")
    linear = add("linearise", algebra._solved.lower(operator), own + asked.residuals)
    product = jax.tree.map(on, jax.eval_shape(algebra._solved, operator), linear.output_shardings)
    add("product", loops._call.lower(product, vector), asked.total - own)

    state = jax.eval_shape(functools.partial(krylov.start, rows=ROWS), key, vector)
    state = jax.tree.map(lambda x: on(x, everywhere), state)
    state = state._replace(
        vector=like_params(state.vector), basis=like_params(state.basis, (None,))
    )
    step = convergence.SearchStep(1, "LA", 2)
    search = jax.eval_shape(lambda s: convergence.begin(step, s, 1e-3, jnp.inf), state)
    search = jax.tree.map(lambda x: on(x, everywhere), search)._replace(state=state)
    asked = geometry.memory(operator, basis_size=ROWS)
    limit = jnp.int32(ROWS)
    loop = loops._device_loop_in_place
    lowered = loop.lower(step, convergence.is_done, search, product, limit)
    add("largest eigenvalue", lowered, asked.total - own)

    step = quadrature._ProbeStep(64, 1, None)
    lie = recurrence.shardings(params)
    carry = jax.eval_shape(
        functools.partial(quadrature._begin, step, lie, 2), key, params, None, ()
    )
    state = carry.state
    carry = jax.tree.map(lambda x: on(x, everywhere), carry)
    state = carry.state._replace(
        vector=like_params(state.vector), previous=like_params(state.previous)
    )
    carry = carry._replace(state=state)
    asked = geometry.memory(operator, geometry.spectral_density, num_probes=2)
    lowered = loop.lower(step, quadrature._is_done, carry, product, jnp.int32(64))
    add("density", lowered, asked.total - own)
    add("random start", krylov._start.lower(key, params, ROWS, None, None, lie), None)
    return {
        "parameters": tree.size(params),
        "vector": held_by(vector),
        "rows": rows,
    }


def held_by(tree):
    """Bytes on a device."""
    import jax

    return sum(map(_held, jax.tree.leaves(tree)))


def _held(x):
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        return 0
    return 4 * _product(",".join(map(str, sharding.shard_shape(x.shape))))


def no_basis_is_gathered(found):
    """No program gathers an array of the size of a stack of vectors, or of several."""
    return all(
        4 * _product(shape.split("[")[1].rstrip("]")) < ROWS * 4 * found["parameters"] / DEVICES
        for row in found["rows"]
        for shape in row["gathered"]
    )


def run(size):
    """The same for real: seconds, numbers, and the peak of the process."""
    import jax
    import numpy as np

    from sharpjax import geometry

    params, batch = placed(*shapes(size))
    rng = np.random.default_rng(0)

    def draw(name, x):
        made = rng.normal(size=x.shape).astype(np.float32)
        made = np.ones(x.shape, np.float32) if name == "norm" else made / x.shape[-1] ** 0.5 / 2
        return jax.device_put(made, x.sharding)

    vocab = SIZES[size][3]
    params = {name: draw(name, x) for name, x in params.items()}
    batch = {
        name: jax.device_put(rng.integers(0, vocab, x.shape, np.int32), x.sharding)
        for name, x in batch.items()
    }
    operator, key, found = geometry.hessian(loss, params, batch), jax.random.key(0), {}
    for name, call in {
        "product": lambda: operator @ params,
        "largest eigenvalue": lambda: geometry.top_eigenpairs(
            operator, key=key, basis_size=ROWS, max_products=16, tol=1e-2
        ),
        "density": lambda: geometry.spectral_density(operator, key=key, num_steps=4, num_probes=2),
    }.items():
        begun = time.perf_counter()
        result = jax.block_until_ready(call())
        found[name] = {"seconds": time.perf_counter() - begun}
        if name == "largest eigenvalue":
            vectors = result.vectors["up"]
            found[name] |= {
                "value": float(result.values[0]),
                "converged": bool(result.converged[0]),
                "products": int(result.num_products),
                "lies": str(vectors.sharding.spec),
            }
        if name == "density":
            found[name] |= {"trace": float(result.estimates()["trace"].value)}
    found["peak bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def mib(count):
    return f"{count / 2**20:,.1f}"


def table(found):
    print(f"{found['parameters']:,} parameters, {mib(found['vector'])} MiB a vector and device")
    print("| program | compile s | MiB a device | model | off | travels: count, largest MiB |")
    print("|---|---|---|---|---|---|")
    for row in found["rows"]:
        moves = "; ".join(f"{k} {n}, {mib(b)}" for k, (n, b) in sorted(row["travels"].items()))
        known = ("", "")
        if row["model"] is not None:
            known = mib(row["model"]), f"{row['model'] / row['bytes'] - 1:+.1%}"
        print(
            f"| {row['name']} | {row['seconds']:.1f} | {mib(row['bytes'])} | {known[0]} "
            f"| {known[1]} | {moves} |"
        )
    shapes = sorted({shape for row in found["rows"] for shape in row["gathered"]})
    print("gathered:", ", ".join(shapes) or "nothing")
    print(f"a basis is {'never' if no_basis_is_gathered(found) else 'SOMEWHERE'} gathered")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="350m")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    wanted = f"--xla_force_host_platform_device_count={DEVICES}"
    if wanted not in os.environ.get("XLA_FLAGS", ""):
        root = pathlib.Path(__file__).resolve().parent.parent
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        flags_ = f"{os.environ.get('XLA_FLAGS', '')} {wanted}"
        environment = os.environ | {"XLA_FLAGS": flags_, "PYTHONPATH": path}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    found = {"ran": run(flags.size)} if flags.run else compiled(flags.size)
    if flags.json or flags.run:
        print(json.dumps(found))
    else:
        table(found)


if __name__ == "__main__":
    main()
