"""Whether an accelerator computes right: a logistic regression beside numpy in float64.

Each check returns what it found, as text, or raises.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import geometry


def logistic_loss(params, batch):
    z = batch["x"] @ params["w"] + params["b"]
    return jnp.mean(jax.nn.softplus(z) - batch["y"] * z)


def logistic() -> tuple[Any, Any, np.ndarray, Any]:
    """A logistic regression, and its Hessian by numpy in float64, in the order of its leaves."""
    rng = np.random.default_rng(0)
    scales = np.linspace(0.5, 3, 40)
    x, y = rng.normal(size=(256, 40)) * scales, rng.integers(0, 2, 256)
    params = {"b": rng.normal(), "w": rng.normal(size=40) / 10}
    p = 1 / (1 + np.exp(-(x @ params["w"] + params["b"])))
    rows = np.concatenate([np.ones((256, 1)), x], axis=1)
    truth = rows.T @ (rows * (p * (1 - p))[:, None]) / 256
    to_device = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float32))
    params, batch = to_device(params), to_device({"x": x, "y": y})
    return params, batch, truth, geometry.hessian(logistic_loss, params, batch)


def check_products() -> str:
    """Eager against jit against numpy."""
    params, batch, truth, operator = logistic()
    vector = {"b": jnp.float32(0.5), "w": jnp.linspace(-1, 1, 40)}
    exact = truth @ np.concatenate([np.atleast_1d(x) for x in jax.tree.leaves(vector)])
    gradient = jax.grad(logistic_loss)
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        eager = jax.jvp(lambda p: gradient(p, batch), (params,), (vector,))[1]
    ways = {"eager": eager, "compiled": operator @ vector, "linearised": None}
    ways["linearised"] = operator.linearize()(vector)
    ways["hvp"] = geometry.hvp(logistic_loss, params, batch, vector)
    off = {name: _off(found, exact) for name, found in ways.items()}
    _require(max(off.values()) < 1e-5, f"products are off by {off}")
    return "largest error " + ", ".join(f"{name} {x:.0e}" for name, x in off.items())


def check_certificates() -> str:
    """Certified eigenvalues against numpy."""
    _, _, truth, operator = logistic()
    exact = np.linalg.eigvalsh(truth)[::-1]
    worst, certified = 0.0, 0
    for seed in range(5):
        for options in ({"k": 1}, {"k": 5}, {"k": 3, "basis_size": 12}):
            found = geometry.top_eigenpairs(operator, key=jax.random.key(seed), **options)
            sure = np.asarray(found.converged)
            off = np.abs(np.asarray(found.values) - exact[: options["k"]]) / exact[0]
            worst, certified = (
                max(worst, float(np.max(off[sure], initial=0))),
                certified + sure.sum(),
            )
    _require(worst < 1e-3, f"a certified value is {worst:.1e} off")
    _require(certified >= 40, f"only {certified} of 45 values were certified")
    return f"{certified} of 45 values certified, the worst {worst:.0e} off"


def check_estimates() -> str:
    """Trace, density and log-determinant, in standard errors."""
    _, _, truth, operator = logistic()
    key = jax.random.key(0)
    found = geometry.trace(operator, key=key)
    density = geometry.spectral_density(operator, key=key, num_steps=30, num_probes=16)
    moments = density.estimates()["trace"]
    determinant = geometry.logdet(operator + 1.0, key=key, relative_error=0.05)
    exact = np.trace(truth), np.trace(truth), np.linalg.slogdet(truth + np.eye(41))[1]
    estimates = (found, moments, determinant)
    errors = [
        float(abs(x.value - y) / max(float(x.standard_error), 1e-5 * abs(y)))
        for x, y in zip(estimates, exact, strict=True)
    ]
    _require(max(errors) < 5, f"trace, density, logdet: {errors} standard errors off")
    return "off by " + ", ".join(f"{x:.1f}" for x in errors) + " standard errors"


CHECKS = {
    "products, eager against jit against numpy": check_products,
    "certified eigenvalues": check_certificates,
    "trace, density, log-determinant": check_estimates,
}


def _off(found, exact):
    flat = np.concatenate(
        [np.atleast_1d(np.asarray(x, np.float64)) for x in jax.tree.leaves(found)]
    )
    return float(np.linalg.norm(flat - exact) / np.linalg.norm(exact))


def _require(holds, message):
    if not holds:
        raise AssertionError(message)
