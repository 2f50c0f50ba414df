"""Products by central differences, for layers that have a gradient and nothing beyond.

`D_h v = |v| (f(w + h u) - f(w - h u)) / 2h` with `u = v / |v|`, of a gradient (Hessian products) or
of a model (the `J v` of Gauss-Newton products). It is off by `h^2` times a third derivative, and by
rounding over h. Both show in `D_h - D_2h`. Jumps do not, as those of the gradient of a ReLU net:
with many of them between `w - h u` and `w + h u` a difference is steady, and off by 10 to 1,000 %.
But then the least error of all steps is far above rounding, and so it is seen.
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

TOLERANCE = 1e-2  # what a product may be off by, of the largest, before it is NaN
_LEVELS = 7  # steps that are tried
_SAFETY = 2.0  # of an error over what is left of a difference
_ROUGH = 4.0  # the least error of a smooth function over rounding: .06 to .3 on nets of tanh


class Step(NamedTuple):
    """What was found of a function at a point.

    Attributes:
        size: h, along vectors of norm 1.
        extent: `|D_h u|` of the vector that was tried.
        rough: whether its derivative jumps, or it is not finite.
    """

    size: jax.Array
    extent: jax.Array
    rough: jax.Array


def check_precision(caller: str, product: str, precision: str) -> None:
    """Refuses differences of what has few digits.

    Raises:
        UserError: names `caller`.
    """
    if product == "difference" and precision != "highest":
        raise UserError(
            f"{caller}: product='difference' with precision={precision!r}: nothing is left of a "
            f"difference of numbers with three digits. Leave the precision at 'highest'."
        )


def find_step(fn: Matvec, at: Params, hint: Params) -> Step:
    """The step whose measured error is the least, of seven; for use inside a trace.

    They lie between `e^(1/3)` of the norm of the parameters and of a hundredth of their root mean
    square, with e the precision. 29 evaluations.

    Args:
        hint: a direction in which `fn` bends, such as the gradient; half of what is tried.
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
    # Rounding of `fn`, as the shortest step shows it, and as it is at the least. Of a smooth
    # function error times step is as much at the best step; of one that jumps it has grown as the
    # root of the step.
    floor = 2 * eps * (tree.norm(fn(at)).astype(norm.dtype) + extent * norm)
    rounding = jnp.maximum((errors * sizes)[-1], floor)
    rough = ~(errors[best] * sizes[best] <= _ROUGH * rounding)
    return Step(sizes[best], extent, rough)


def along(how: How, step: Step, fn: Matvec, at: Params, vector: Params) -> Any:
    """`f'(at) v`, in one of three roles.

    "sure": by four evaluations, NaN where it is off by more than `TOLERANCE`. "fine": the same by
    two, unchecked. "coarse": with a step twice as long, and zero where the function is not smooth.
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
    """Whether an operator, or a product, has a difference in it."""
    return any(map(_is_difference, jax.tree.leaves(node, is_leaf=_is_difference)))


def unchecked(product: Any) -> Any:
    """The same product without checks; itself, where there is no difference in it."""
    return _with_role(product, "fine") if holds(product) else product


def error_of(product: Any) -> Partial | None:
    """The linear map whose value at v has the norm of the error of `product(v)`; None where no part
    of it is a difference.

    All around differences is linear, so that what sums, multiples, masks and means make of their
    error is the same product with steps of twice the length, subtracted. It costs two products.
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
    """The difference of each size."""
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
