"""Products by central differences, for layers that have a gradient but no second derivative.

`D_h v = |v| (f(w + h u) - f(w - h u)) / 2h` with `u = v / |v|`. Here f is a gradient (for Hessian
products) or a model (for the `J v` of Gauss-Newton products). The error of `D_h` is `h^2` times a
third derivative, plus rounding over h. Both show in `D_h - D_2h`. Jumps, such as those of the
gradient of a ReLU net, do not: with many of them between `w - h u` and `w + h u`, a difference is
steady but off by 10 to 1,000 %. They are detected in another way: the least error over all steps is
then far above rounding.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss.differentiable import How, Role
from sharpjax.geometry.operators.algebra import Matvec, Params

TOLERANCE = 1e-2  # largest error of a product, relative to the largest, before it becomes NaN
_LEVELS = 7  # number of step sizes that are tried
_SAFETY = 2.0  # factor from `D_h - D_2h` to the error
_ROUGH = 4.0  # largest least error over rounding of a smooth function; tanh nets have .06 to .3


class Step(NamedTuple):
    """The step size found for a function at a point.

    Attributes:
        size: h, along vectors of norm 1.
        extent: `|D_h u|` of the unit vector u that was tried.
        rough: whether the derivative jumps, or is not finite.
    """

    size: jax.Array
    extent: jax.Array
    rough: jax.Array


def check_precision(caller: str, product: str, precision: str) -> None:
    """Refuses differences of numbers computed in low precision.

    Raises:
        UserError: names `caller`.
    """
    if product == "difference" and precision != "highest":
        raise UserError(
            f"{caller}: product='difference' with precision={precision!r}: nothing is left of a "
            f"difference of numbers with three digits. Leave the precision at 'highest'."
        )


def find_step(fn: Matvec, at: Params, hint: Params) -> Step:
    """The step with the least measured error, out of seven; for use inside a trace.

    The steps lie between `e^(1/3)` times the norm of the parameters and `e^(1/3)` times a hundredth
    of their root mean square, with e the machine precision. Costs 29 evaluations of `fn`.

    Args:
        hint: a direction along which `fn` is curved, such as the gradient. The direction tried is
            the sum of this and a random one, both of norm 1.
    """
    noise = tree.random_normal(jax.random.key(0), at)
    unit = tree.add_scaled(_normal(hint), 1.0, _normal(noise))
    unit = _normal(unit)
    norm = tree.norm(at)
    norm = jnp.where(norm > 0, norm, 1)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(at))
    least, most = 0.01 / tree.size(at) ** 0.5, 1.0
    ladder = jnp.geomspace(most, least, _LEVELS, dtype=norm.dtype)
    sizes = eps ** (1 / 3) * norm * ladder
    errors, extents = loops.map_over_chunks(_try, (fn, at, unit), sizes)
    errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
    best = jnp.argmin(errors)
    extent = extents[best]
    # Rounding of `fn`: as measured at the shortest step, but at least `floor`. For a smooth
    # function, error times step is about the same at the best step; for one that jumps, it has
    # grown as the root of the step.
    floor = 2 * eps * (tree.norm(fn(at)).astype(norm.dtype) + extent * norm)
    rounding = jnp.maximum((errors * sizes)[-1], floor)
    rough = ~(errors[best] * sizes[best] <= _ROUGH * rounding)
    return Step(sizes[best], extent, rough)


def along(how: How, step: Step, fn: Matvec, at: Params, vector: Params) -> Any:
    """`f'(at) v`, in one of three roles, `how.role`.

    "sure": by four evaluations; NaN if the error is above `TOLERANCE`. "fine": the same by two
    evaluations, unchecked. "coarse": with a step twice as long, and zero if the function is not
    smooth.
    """
    norm = tree.norm(vector)
    unit = _normal(vector)
    if how.role == "fine":
        return tree.scale(norm, *_central(fn, at, unit, jnp.expand_dims(step.size, 0)))
    if how.role == "coarse":
        coarse = tree.scale(norm, *_central(fn, at, unit, 2 * jnp.expand_dims(step.size, 0)))
        return jax.tree.map(lambda x: jnp.where(step.rough, 0, x), coarse)
    fine, coarse = _central(fn, at, unit, jnp.stack([step.size, 2 * step.size]))
    error = _SAFETY * tree.norm(tree.add_scaled(fine, -1.0, coarse))
    size = jnp.maximum(tree.norm(fine), step.extent.astype(error.dtype))
    sure = ~step.rough & (error <= TOLERANCE * size)
    return tree.scale(jnp.where(sure, norm, jnp.nan), fine)


def holds(node: Any) -> bool:
    """Whether an operator or a product contains a difference."""
    return any(map(_is_difference, jax.tree.leaves(node, is_leaf=_is_difference)))


def unchecked(product: Any) -> Any:
    """The same product with its differences unchecked; itself if it contains none."""
    return _with_role(product, "fine") if holds(product) else product


def error_of(product: Any) -> Partial | None:
    """A linear map whose value at v has the norm of the error of `product(v)`; None if no part of
    the product is a difference.

    Sums, multiples, masks and means of differences are linear. So their error is the product minus
    the same product with steps of twice the length (times a safety factor). It costs two products.
    """
    if not holds(product):
        return None
    return Partial(_left, _with_role(product, "fine"), _with_role(product, "coarse"))


def _is_difference(node):
    return isinstance(node, How) and node.way == "difference"


def _with_role(node, role: Role):
    def leaf(x):
        return dataclasses.replace(x, role=role) if _is_difference(x) else x

    return jax.tree.map(leaf, node, is_leaf=_is_difference)


def _left(fine, coarse, vector):
    rest = tree.add_scaled(loops.call(fine, vector), -1.0, loops.call(coarse, vector))
    return tree.scale(_SAFETY, rest)


def _normal(vector):
    norm = tree.norm(vector)
    return tree.scale(jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0), vector)


def _moved(operands, size):
    fn, at, unit = operands
    return fn(tree.add_scaled(at, size, unit))


def _central(fn, at, unit, sizes):
    """The central difference for each step size."""
    ends = loops.map_over_chunks(_moved, (fn, at, unit), jnp.concatenate([sizes, -sizes]))
    count = len(sizes)

    def difference(i):
        return jax.tree.map(lambda x: (x[i] - x[i + count]) / (2 * sizes[i]).astype(x.dtype), ends)

    return [difference(i) for i in range(count)]


def _try(operands, size):
    fn, at, unit = operands
    fine, coarse = _central(fn, at, unit, jnp.stack([size, 2 * size]))
    off, extent = tree.norm(tree.add_scaled(fine, -1.0, coarse)), tree.norm(fine)
    return off.astype(size.dtype), extent.astype(size.dtype)
