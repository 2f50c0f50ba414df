"""Curvature of one small problem on meshes of many shapes, as a process of its own.

    python tests/sharded.py KIND:DATA:MODEL,... [PROCESS COORDINATOR]

The batch is sharded over `data`, the parameters over `model`. With a PROCESS (0 or 1 of two) half
of the devices are those of the other. Prints one line of JSON with the numbers for each mesh, and
what a compiled solve gathers, where one process can see it all and there is something to gather.
"""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import geometry, tree

AXES = ("data", "model")


def matmul(x, w, out):
    """The product, with its sharding named where types carry it."""
    return jnp.einsum("nd,dh->nh", x, w, **out)


def loss(params, batch):
    explicit = jax.sharding.AxisType.Explicit in jax.typeof(batch["x"]).sharding.mesh.axis_types
    hidden_lies = {"out_sharding": jax.P("data", "model")} if explicit else {}
    out_lies = {"out_sharding": jax.P("data", None)} if explicit else {}
    hidden = matmul(batch["x"], params["in"]["kernel"], hidden_lies)
    hidden = jnp.tanh(hidden + params["in"]["bias"])
    logits = matmul(hidden, params["out"]["kernel"], out_lies) + params["out"]["bias"]
    picked = jnp.sum(jax.nn.one_hot(batch["label"], 10) * logits, axis=1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def problem():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    params = {
        "in": {"kernel": draw(24, 32), "bias": draw(32)},
        "out": {"kernel": draw(32, 10), "bias": draw(10)},
    }
    centres = 4 * draw(10, 24)
    label = rng.integers(0, 10, 64).astype(np.int32)
    return params, {"x": centres[label] + draw(64, 24), "label": label}


def shardings(mesh):
    def lies(*spec):
        return jax.NamedSharding(mesh, jax.P(*spec))

    params = {
        "in": {"kernel": lies(None, "model"), "bias": lies("model")},
        "out": {"kernel": lies("model", None), "bias": lies()},
    }
    return params, {"x": lies("data", None), "label": lies("data")}


def place(array, sharding):
    """A global array of which each process holds its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def lies(x):
    """How it is sharded; on one device not at all."""
    return str(getattr(x.sharding, "spec", None))


def measure(kind, num_data, num_model, compiled):
    mesh = jax.make_mesh(
        (num_data, num_model), AXES, axis_types=(getattr(jax.sharding.AxisType, kind),) * 2
    )
    params, batch = problem()
    params_lie, batch_lies = shardings(mesh)
    with jax.set_mesh(mesh):
        params = jax.tree.map(place, params, params_lie)
        batch = jax.tree.map(place, batch, batch_lies)
        operator = geometry.hessian(loss, params, batch)
        key = jax.random.key(0)
        pairs = geometry.top_eigenpairs(operator, key=key, k=3)
        trace = geometry.trace(operator, key=key, max_products=8)
        solution = geometry.solve(operator + 2.0, params)
        return {
            "values": np.asarray(pairs.values).tolist(),
            "converged": bool(np.asarray(pairs.converged).all()),
            "vectors": lies(pairs.vectors["in"]["kernel"]),
            "trace": float(trace.value),
            "solution": float(tree.norm(solution.value)),
            "lies": lies(solution.value["in"]["kernel"]),
            "gathered": gathered(operator, key) if compiled else None,
        }


def gathered(operator, key, rows=20):
    """Shapes that a compiled solve with a basis of `rows` vectors gathers from other devices."""
    solve = functools.partial(geometry.top_eigenpairs, k=3, max_products=rows)
    program = jax.jit(solve).lower(operator, key=key).compile().as_text()
    shapes = re.findall(r"= \(?(\w+\[[\d,]*\]).* all-gather", program)
    assert f"[{rows},24," in program  # the basis itself can be found so
    return sorted(set(shapes))


def main(meshes, process=None, coordinator=None):
    if process is not None:
        jax.distributed.initialize(coordinator, num_processes=2, process_id=int(process))
    for mesh in meshes.split(","):
        kind, *shape = mesh.split(":")
        num_data, num_model = map(int, shape)
        compiled = process is None and num_data * num_model > 1
        print(json.dumps({"mesh": mesh} | measure(kind, num_data, num_model, compiled)))


if __name__ == "__main__":
    main(*sys.argv[1:])
