"""Which derivatives a loss has, what prevents the others, and what to do then.

jax would raise its own errors deep inside a solver. Here a trace of the loss is searched for parts
that may have no derivative. A loss without such parts is not examined further. The others are
differentiated by shapes alone, before anything is compiled.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import unknown

Need = Literal["value", "gradient", "hessian", "jacobian", "bend"]
Way = Literal["linearized", "forward", "reverse", "difference"]
Role = Literal["sure", "fine", "coarse"]
Product = Literal["auto", "forward", "reverse", "difference"]

_DERIVATIVE = {
    "gradient": "a gradient",
    "hessian": "the derivative of its gradient, which a Hessian product is",
    "jacobian": "a derivative along a direction (jvp), which the Jacobian of a model is",
    "bend": "second derivatives along a direction (forward over forward)",
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
_ALLOWED: dict[str, tuple[Way, ...]] = {
    "auto": ("linearized", "forward", "reverse"),
    "forward": ("linearized", "forward"),
    "reverse": ("reverse",),
    "difference": ("difference",),
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class How:
    """How an operator computes its products.

    Attributes:
        way: how the gradient is differentiated or, for products with a Jacobian, the model.
        outer: how the gradient of an outer loss is differentiated.
        role: the role of a difference, see `sharpjax.geometry.operators.differences`.
    """

    way: Way = "linearized"
    outer: Way = "linearized"
    role: Role = "sure"

    @property
    def product(self) -> Product:
        """The argument `product` that leads to this way again."""
        return "difference" if self.way == "difference" else "auto"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Suspects:
    """Parts of a trace that may have no derivative: primitives, and the names of functions with a
    `jax.custom_vjp`."""

    primitives: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.primitives or self.layers)


def suspects(jaxpr: Any) -> Suspects:
    """The `Suspects` of a jaxpr, except inside functions with derivatives of their own."""
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


def choose(
    need: Need, product: str, found: Suspects, loss: Any, params: Any, batch: Any
) -> tuple[Way, str | None]:
    """The first way that gives the derivative needed, and None; if none does, the reason instead.

    Args:
        need: "value", no derivative at all; "gradient"; "hessian", the derivative of the gradient;
            "jacobian", of a `loss` that may return any arrays; or "bend", forward over forward.
        product: "auto", or the way that the user chose.
        found: the result of `suspects` for the loss.
        loss, params, batch: the loss and its arguments.

    Raises:
        UserError: `product` is unknown.
    """
    if product not in get_args(Product):
        raise unknown("product", product, get_args(Product))
    ways = _ALLOWED[product]
    if not found or need == "value":
        return ways[0], None
    failed = None if need == "jacobian" else _failure("gradient", "reverse", loss, params, batch)
    if failed is not None:
        return ways[0], _refusal("gradient", product, found, failed)
    if need == "gradient":
        return ways[0], None
    for way in ways:
        if way == "difference":
            return way, None
        failed = _failure(need, way, loss, params, batch)
        if failed is None:
            return way, None
    return ways[0], _refusal(need, product, found, failed)


def _failure(need, way, loss, params, batch) -> str | None:
    """jax's error message for a derivative; None if the derivative exists."""
    trial = _TRIALS.get((need, way))
    if trial is None:
        return ""
    try:
        return None if trial.eval_shape(loss, params, batch).is_whole else ""
    except Exception as error:
        first = next(iter(str(error).splitlines()), "").rstrip(".")
        return f"{type(error).__name__}: {first}"


def _refusal(need: Need, product: str, found: Suspects, failed: str | None) -> str:
    reason = _reason(need, found, failed)
    if need in ("hessian", "jacobian"):
        if product == "auto":
            reason += (
                ". Else an operator made with product='difference' takes differences at nearby "
                "parameters, and measures how far they are off"
            )
        else:
            reason += f"; product={product!r} does not serve here, see product='auto'"
    if need == "bend":
        reason += ". Else take a method with probes, of Hessian products"
    return f"the loss has not {_DERIVATIVE[need]}: {reason}."


def _reason(need: Need, found: Suspects, failed: str | None) -> str:
    if need == "gradient" and "while" in found.primitives:
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
    return failed or "jax does not say why"


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


def _outputs(model_fn, batch, params):
    return tree.widen(model_fn(params, batch))


def _derivative(fn, way):
    """The derivative of `fn(loss, batch, params)`, along the parameters themselves."""

    def derivative(loss, params, batch):
        params, at = tree.widen(params), Partial(fn, loss, batch)
        if way == "linearized":
            return jax.linearize(at, params)[1](params)
        if way == "forward":
            return jax.jvp(at, (params,), (params,))[1]
        if way == "bend":
            return jax.jvp(lambda p: jax.jvp(at, (p,), (params,))[1], (params,), (params,))[1]
        value, pull = jax.vjp(at, params)
        if fn is _outputs:  # J v is the derivative of u -> J'u, transposed
            return jax.vjp(lambda u: pull(u)[0], value)[1](params)
        return pull(value)

    return derivative


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Answer:
    """Whether a derivative that could be traced can also be computed."""

    is_whole: bool


def _trial(derivative):
    @jax.jit  # so that its trace is cached
    def trial(loss, params, batch):
        closed = jax.make_jaxpr(derivative)(loss, params, batch)
        # `custom_lin` is jax's placeholder for the forward derivative of a custom backward pass.
        rest = any(eqn.primitive.name == "custom_lin" for eqn in _equations(closed.jaxpr))
        return _Answer(not rest)

    return trial


def _gradient(loss, params, batch):
    return _slope(loss, batch, tree.widen(params))


_TRIALS = {
    ("gradient", "reverse"): _trial(_gradient),
    **{("hessian", w): _trial(_derivative(_slope, w)) for w in _ALLOWED["auto"]},
    **{("jacobian", w): _trial(_derivative(_outputs, w)) for w in _ALLOWED["auto"]},
    ("bend", "forward"): _trial(_derivative(_outputs, "bend")),
}
