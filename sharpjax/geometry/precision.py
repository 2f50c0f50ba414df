"""Products in bfloat16, and the error that they bring."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry import units
from sharpjax.geometry.algebra import Operator, check_same_space, linearize, widen
from sharpjax.geometry.assumptions import solver
from sharpjax.geometry.checks import check_key, check_operator
from sharpjax.geometry.status import if_finite

Precision = Literal["highest", "bfloat16"]


class ProductError(NamedTuple):
    """How far the products of one operator are from those of another.

    Attributes:
        value: `|B - A|_F / |A|_F`, estimated from random probes.
        standard_error: of the value, from the spread over the probes.
        largest: the largest `|B z - A z| / |A z|` of a probe.
        num_evaluations: int32, products of each operator.
        status: `Status`, int32.
    """

    value: jax.Array
    standard_error: jax.Array
    largest: jax.Array
    num_evaluations: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The value, as `product_error`."""
        found = Estimate(self.value, self.standard_error, self.num_evaluations)
        return {"product_error": found}


@solver
def product_error(
    operator: Operator, reference: Operator, *, key: jax.Array, num_probes: int = 8
) -> ProductError:
    """The relative error of the products of an operator, against those of a better one.

    `sqrt(sum |B z - A z|^2 / sum |A z|^2)` over normal probes z estimates `|B - A|_F / |A|_F`. For
    operators in bfloat16 (`precision="bfloat16"`) against the same one in float32.

    It says what `tol` a solver can meet: `top_eigenpairs` sees the noise of products, which is a
    share of the *largest* eigenvalue, and certifies no value to less. On a trained net of 26,000
    parameters the error was 0.008 +- 0.001. The largest eigenvalue met `tol=1e-3` (and was 2e-5
    off); the tenth, 14 times smaller, `tol=0.1` and not 0.03 (it was 2e-3 off). A trace by probes
    has an error of its own far above this one.

    Args:
        operator: B, such as `hessian(loss, params, batch, precision="bfloat16")`.
        reference: A, on the same vectors.
        key: for the probes.
        num_probes: at least 2.

    Cost: `num_probes` products of each. Memory: both linearisations, five vectors.

    Raises:
        UserError: an argument does not fit.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.sum(w**4)
    >>> exact = hessian(loss, jnp.linspace(0.1, 1.0, 50), None)
    >>> found = product_error(1.01 * exact, exact, key=jax.random.key(0))
    >>> print(found.value.round(4), found.largest.round(4), found.num_evaluations)
    0.01 0.01 8
    """
    caller = "product_error"
    check_operator(caller, operator)
    check_operator(caller, reference)
    check_same_space("product_error(B, A)", operator, reference)
    num_probes = whole_number(caller, "num_probes", num_probes, least=2)
    key = check_key(caller, key)
    products = Partial(_both, linearize(operator), linearize(reference))
    carry = _begin(key, reference.like, num_probes)
    carry, _ = loops.iterate(_ProbeStep(), carry, products, max_steps=num_probes)
    return _finish(carry)


def lower(fn: Any, precision: str) -> Any:
    """`fn(first, batch)`, a callable pytree, computed in a precision: arrays of floats are cast
    before it sees them, its own as well.

    Raises:
        UserError: the precision is unknown.

    >>> lower(Partial(jnp.add), "bfloat16")(jnp.float32(1), jnp.float32(1 / 512)).item()
    1.0
    """
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    return fn if precision == "highest" else Partial(in_bfloat16, fn)


def in_bfloat16(fn: Any, first: Any, batch: Any) -> Any:
    """`fn(first, batch)` of arrays cast to bfloat16; what it returns is widened."""

    def leaf(x):
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.bfloat16) if floating else x

    fn, first, batch = jax.tree.map(leaf, (fn, first, batch))
    return widen(fn(first, batch))


class _Carry(NamedTuple):
    """`errors` and `norms` hold `|B z - A z|^2` and `|A z|^2` of the probes that were made, by the
    square of `unit`."""

    probe: Any
    key: jax.Array
    unit: jax.Array
    errors: jax.Array
    norms: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class _ProbeStep:
    """One probe, for `sharpjax.loops.iterate`."""

    def propose(self, carry: _Carry):
        return carry.probe

    def absorb(self, carry: _Carry, product) -> _Carry:
        found, exact = product
        unit, exact = units.scale(carry.unit, exact)
        error = tree.add_scaled(exact, -1 / units.known(unit), found)
        probe, key = _draw(carry.key, carry.probe)
        return _Carry(
            probe=probe,
            key=key,
            unit=unit,
            errors=carry.errors.at[carry.count].set(tree.vdot(error, error)),
            norms=carry.norms.at[carry.count].set(tree.vdot(exact, exact)),
            count=carry.count + 1,
        )


def _draw(key, like):
    key, subkey = jax.random.split(key)
    # A sum with zeros of the leaf takes its sharding, where types carry it.
    return tree.add_scaled(tree.zeros_like(like), 1.0, tree.random_normal(subkey, like)), key


@functools.partial(jax.jit, static_argnames="num_probes")
def _begin(key, like, num_probes) -> _Carry:
    zeros = tree.zeros_like(widen(like))
    zero = tree.vdot(zeros, zeros)
    probe, key = _draw(key, zeros)
    each = jnp.full(num_probes, zero)
    return _Carry(probe, key, zero, errors=each, norms=each, count=zero.astype(jnp.int32))


@jax.jit
def _finish(carry: _Carry) -> ProductError:
    errors, norms = carry.errors, carry.norms
    count = len(errors)
    share = jnp.sum(errors) / jnp.sum(norms)
    value = jnp.sqrt(share)
    # The delta method for a ratio of means, and then for its root.
    spread = jnp.sqrt(jnp.sum(jnp.square(errors - share * norms)) / (count * (count - 1)))
    safe = jnp.where(value > 0, value, 1)
    return ProductError(
        value=value,
        standard_error=spread / jnp.mean(norms) / (2 * safe),
        largest=jnp.sqrt(jnp.max(errors / norms)),
        num_evaluations=carry.count,
        status=if_finite(jnp.isfinite(value)),
    )


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _both(product, reference, vector):
    return product(vector), reference(vector)
