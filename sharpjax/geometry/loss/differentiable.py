"""What keeps a loss from being differentiated, and the way out.

jax says so deep inside a solver, in terms of its own. Losses that hold nothing of the kind are not
looked at again; the others are differentiated by shapes alone, before anything is compiled.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax
from jax.tree_util import Partial

from sharpjax import tree

Need = Literal["value", "gradient", "linearized", "product", "forward"]

_DERIVATIVE = {
    "gradient": "a gradient",
    "product": "the derivative of its gradient, which a Hessian product is",
    "linearized": "the derivative of its gradient, which a Hessian product is",
    "forward": "a derivative along a direction (jvp), which the Jacobian of a model is",
}
_LOOP = (
    "it holds a while_loop, or a fori_loop whose bounds are not Python numbers, which cannot be "
    "propagated backwards. Use fori_loop with static bounds or scan (with a mask where it ends "
    "early), a checkpointed while_loop such as Equinox's, or, where it solves an equation, "
    "jax.lax.custom_root"
)
_OPAQUE = {
    "pure_callback": "it calls back to Python (jax.pure_callback)",
    "io_callback": "it calls back to Python (jax.experimental.io_callback)",
    "pallas_call": "it holds a Pallas kernel",
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Suspects:
    """What a trace holds that may have no derivative: primitives, and functions with a
    `jax.custom_vjp` by name."""

    primitives: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.primitives or self.layers)


def suspects(jaxpr: Any) -> Suspects:
    """Of a jaxpr, but for what is inside functions with derivatives of their own."""
    primitives, layers = set(), {}
    for eqn in _equations(jaxpr):
        if eqn.primitive.name == "custom_vjp_call":
            inner = eqn.params.get("call_jaxpr")
            info = getattr(getattr(inner, "jaxpr", None), "debug_info", None)
            source = getattr(info, "func_src_info", None) or "a layer"
            layers[source.partition(" at ")[0]] = None
        elif eqn.primitive.name == "while" or eqn.primitive.name in _OPAQUE:
            primitives.add(eqn.primitive.name)
    return Suspects(frozenset(primitives), tuple(layers))


def refusal(need: Need, found: Suspects, loss: Any, params: Any, batch: Any) -> str | None:
    """Why the derivative that is needed cannot be had, and what to do; None where it can.

    Args:
        need: "value", no derivative at all; "gradient"; "linearized" or "product", of a Hessian; or
            "forward", for the Jacobian of a model.
        found: what `suspects` says of the loss.
        loss, params, batch: what it is called with.
    """
    if not found or need == "value":
        return None
    needs: tuple[Need, ...] = ("gradient",) if need == "gradient" else ("gradient", need)
    for kind in needs:
        error = None
        try:
            is_whole = _TRIALS[kind].eval_shape(loss, params, batch).is_whole
        except Exception as raised:
            is_whole, error = False, raised
        if not is_whole:
            return f"the loss has not {_DERIVATIVE[kind]}: {_reason(kind, found, error)}."
    return None


def _reason(kind: Need, found: Suspects, error: Exception | None) -> str:
    if kind == "gradient" and "while" in found.primitives:
        return _LOOP
    remedy = "for curvature use the layer's reference implementation in JAX"
    for primitive in _OPAQUE:
        if primitive in found.primitives:
            return f"{_OPAQUE[primitive]}; {remedy}, or give it a jax.custom_jvp"
    if found.layers:
        names = " and ".join(f"'{name}'" for name in found.layers)
        return (
            f"{names} with a backward pass of its own (jax.custom_vjp) cannot be differentiated "
            f"so; {remedy}, or give it a jax.custom_jvp, which serves backwards, too"
        )
    first = next(iter(str(error).splitlines()), "").rstrip(".")
    return f"{type(error).__name__}: {first}"


def _equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name.startswith("custom_"):
            continue
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _slope(loss, batch, params):
    return jax.grad(loss)(params, batch)


def _gradient(loss, params, batch):
    return _slope(loss, batch, tree.widen(params))


def _product(loss, params, batch):
    params = tree.widen(params)
    return jax.jvp(Partial(_slope, loss, batch), (params,), (params,))[1]


def _linearized(loss, params, batch):
    params = tree.widen(params)
    return jax.linearize(Partial(_slope, loss, batch), params)[1](params)


def _forward(loss, params, batch):
    params = tree.widen(params)
    return jax.jvp(lambda params: loss(params, batch), (params,), (params,))[1]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Answer:
    """Whether a derivative that was traced can be computed, too."""

    is_whole: bool


def _trial(derivative):
    @jax.jit  # so that it is remembered
    def trial(loss, params, batch):
        closed = jax.make_jaxpr(derivative)(loss, params, batch)
        # What stands for a derivative along a direction through a backward pass.
        rest = any(eqn.primitive.name == "custom_lin" for eqn in _equations(closed.jaxpr))
        return _Answer(not rest)

    return trial


_TRIALS = {
    "gradient": _trial(_gradient),
    "linearized": _trial(_linearized),
    "product": _trial(_product),
    "forward": _trial(_forward),
}
