"""The libraries that are compared, one module each, all with the same few methods.

A peer is made for one workload (that is not timed). Its methods are what is timed: each starts from
parameters and batches in the framework's own arrays and ends with numbers on the host. What a
library does not offer its peer has no method for.

    gradient()                                  one gradient
    product()                                   one Hessian product, from scratch
    products(count)                             `count` products in turn, as inside a solve
    gauss_newton_product()                      one Gauss-Newton product, from scratch
    gauss_newton_products(count)
    top(k, seed, ...)                           the k largest eigenvalues
    top_over_batches(seed, ...)                 the largest one of the mean over all batches
    trace(seed, ...)                            the Hessian's trace
    density(steps, probes, seed)                `detail`: nodes and weights of the quadrature
    report(seed, ...)                           `detail`: top, smallest, trace, nodes, weights
"""

import importlib
from typing import Any, NamedTuple

NAMES = (
    "sharpjax",
    "plain_jax",
    "pyhessian",
    "edge_of_stability",
    "curvlinops",
    "curvlinops_compiled",
    "eigenthings",
    "matfree",
    "traceax",
)


class Outcome(NamedTuple):
    """`values`: a number or a list of numbers; `products`: how many it took."""

    values: Any
    products: float = float("nan")
    detail: dict[str, Any] = {}


class Missing(Exception):
    """What this version of the library does not have."""


def load(name: str) -> type:
    """The class `Peer` of a module."""
    return importlib.import_module(f"benchmarks.peers.{name}_").Peer
