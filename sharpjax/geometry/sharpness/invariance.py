"""Which measures change when the weights change but the function does not."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree
from sharpjax.errors import UserError

Params = Any


class Invariance(NamedTuple):
    """How each measure changes under each transform.

    Attributes:
        before: the value of each measure at the parameters, by name.
        after: its value after each transform, by the names of the measure and the transform.
        same: whether the two agree within the tolerance, likewise.
        off: by the name of a transform, how far the outputs moved, relative to their size.
    """

    before: dict[str, float]
    after: dict[tuple[str, str], float]
    same: dict[tuple[str, str], bool]
    off: dict[str, float]

    def __str__(self) -> str:
        """A table of measures by transforms: "yes" if a measure stays the same, else its factor."""
        transforms = list(self.off)
        rows = [["measure", *transforms]]
        for measure, value in self.before.items():
            cells = [
                "yes" if self.same[measure, t] else _factor(self.after[measure, t], value)
                for t in transforms
            ]
            rows.append([measure, *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def check_invariance(
    measures: Mapping[str, Callable[[Params], Any]],
    transforms: Mapping[str, Callable[[Params], Params]],
    params: Params,
    outputs: Callable[[Params], Any],
    *,
    tolerance: float = 1e-3,
    rounding: float = 1e-4,
) -> Invariance:
    """Which measures stay the same when the weights change but the function does not.

    A measure that changes depends on the parametrisation, and cannot alone explain how a network
    generalises (Dinh et al., 2017, arXiv 1703.04933). Each transform is checked first: it must move
    the parameters and must not move the outputs.

    Cost: each measure once, and once more for each transform.

    Args:
        measures: by name, `measure(params) -> number`.
        transforms: by name, `transform(params) -> params`, such as those of
            `sharpjax.nn.symmetries`.
        params: pytree of arrays; or anything that transforms and measures take, such as all
            variables of a model.
        outputs: `outputs(params) -> array`, what the network computes on some examples.
        tolerance: largest relative change of a measure that counts as the same.
        rounding: largest change of the outputs that counts as none, relative to their Euclidean
            norm.

    Returns:
        `Invariance`; `print` shows a table.

    Raises:
        UserError: a transform moves the outputs, does not move the parameters, or changes their
            structure; a measure does not return a number, or returns one that is not finite.

    >>> found = check_invariance(
    ...     {"norm": lambda w: jnp.sum(w**2), "product": lambda w: w[0] * w[1]},
    ...     {"rescaling": lambda w: w * jnp.array([2.0, 0.5])},
    ...     jnp.array([1.0, 3.0]),
    ...     lambda w: w[0] * w[1],
    ... )
    >>> print(found)
    measure  rescaling
    norm     x 0.625
    product  yes
    """
    caller = "check_invariance"
    before = {name: _number(caller, name, "", m(params)) for name, m in measures.items()}
    right = outputs(params)
    size = max(float(tree.norm(right)), np.finfo(np.float32).tiny)
    after, same, off = {}, {}, {}
    for transform, change in transforms.items():
        changed = change(params)
        if jax.tree.structure(changed) != jax.tree.structure(params):
            raise UserError(
                f"{caller}: '{transform}' returns another structure than the parameters'."
            )
        if _distance(changed, params) == 0:
            raise UserError(f"{caller}: '{transform}' leaves the parameters as they are.")
        off[transform] = _distance(outputs(changed), right) / size
        if not off[transform] <= rounding:
            raise UserError(
                f"{caller}: '{transform}' moves the outputs by {off[transform]:.2g} of their size; "
                f"it is to leave the function as it is, within {rounding:.2g}."
            )
        for name, measure in measures.items():
            value = _number(caller, name, f" after '{transform}'", measure(changed))
            after[name, transform] = value
            largest = max(abs(value), abs(before[name]))
            same[name, transform] = abs(value - before[name]) <= tolerance * largest
    return Invariance(before, after, same, off)


def _number(caller, name, when, value) -> float:
    try:
        value = np.asarray(value).astype(float).item()
    except (TypeError, ValueError):
        raise UserError(
            f"{caller}: measure '{name}' must return one number{when}, got a "
            f"{type(value).__name__}{_shape(value)}. Of a result of geometry take its `.value`."
        ) from None
    if not np.isfinite(value):
        raise UserError(f"{caller}: measure '{name}' is {value}{when}.")
    return value


def _shape(value) -> str:
    return f" of shape {value.shape}" if hasattr(value, "shape") else ""


def _distance(a, b) -> float:
    wide = [
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, jnp.float32)), t) for t in (a, b)
    ]
    return float(tree.norm(jax.tree.map(jnp.subtract, *wide)))


def _factor(value: float, before: float) -> str:
    return f"x {value / before:.3g}" if before else f"{value:.3g}, was 0"
