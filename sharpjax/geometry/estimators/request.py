"""The request that an estimator gets, and what it finds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.geometry.accuracy import Accuracy, Target, ask
from sharpjax.geometry.exact.remainder import LEAST_PROBES
from sharpjax.geometry.loss.assumptions import Checked
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator

_MOST = 100  # default of max_products
_BASIS = 32


class Request(NamedTuple):
    """The arguments of an estimator, checked.

    Attributes:
        caller: the name of the public function.
        key: may be None with "exact" only.
        given_products: the user's `max_products`, or None.
        basis_size: 0 if the method has no basis.
    """

    caller: str
    operator: Operator
    key: jax.Array | None
    method: str
    accuracy: Accuracy
    given_products: int | None
    basis_size: int

    @property
    def max_products(self) -> int:
        return _MOST if self.given_products is None else self.given_products

    def share(self, parts: int) -> int:
        """The number of probes that each of `parts` parts may take.

        Raises:
            UserError: there is no key, or these are too few for a standard error.
        """
        if self.key is None:
            raise UserError(
                f"{self.caller}: method='exact' has to probe this matrix: the model is not affine "
                f"in some leaves, or the Hessian of the regularizer is not diagonal. Give a key, "
                f"such as key=jax.random.key(0)."
            )
        if self.given_products is None:
            return _MOST
        each = self.given_products // parts
        if each < LEAST_PROBES:
            raise UserError(
                f"{self.caller}: max_products={self.given_products} are too few: method='exact' "
                f"has to probe {parts} leaves (or slices of a stack, or a regularizer), "
                f"{LEAST_PROBES} times each. Give {LEAST_PROBES * parts} or more, or leave it out."
            )
        return each


class Found(NamedTuple):
    """A trace, a diagonal or a norm.

    Attributes:
        value: for a trace, a tree like the parameters with a scalar for each leaf; for a diagonal,
            a tree like the parameters; for a norm, a scalar.
        error: the standard error, of the same structure.
        remainder: the part of a trace that was probed, a scalar; None for others.
        num_products: int32, products of every kind.
        checked: inside a trace, the checks that the result depends on.
    """

    value: Any
    error: Any
    remainder: jax.Array | None
    num_products: jax.Array
    checked: Checked | None = None


def check(
    caller: str,
    operator: Any,
    key: Any,
    method: str,
    methods: Sequence[str],
    relative_error: Target,
    absolute_error: Target,
    max_products: Any,
    basis_size: Any,
    *,
    least: int,
) -> Request:
    """The checked arguments of a public function.

    Args:
        least: smallest `max_products`.

    Raises:
        UserError: names `caller`; an argument does not fit, or the method would ignore it.
    """
    check_operator(caller, operator)
    accuracy = ask(caller, relative_error, absolute_error)
    if method not in methods:
        raise unknown("method", method, methods)
    if max_products is not None:
        max_products = whole_number(caller, "max_products", max_products, least=least)
        max_products = min(max_products, 2**31 - 1)
    if method != "deflated" and basis_size is not None:
        raise UserError(
            f"{caller}: method='{method}' has no basis. Leave basis_size out, or take "
            f"method='deflated'."
        )
    basis_size = _BASIS if basis_size is None else whole_number(caller, "basis_size", basis_size)
    if key is not None:
        key = check_key(caller, key)
    elif method != "exact":
        raise UserError(
            f"{caller}: method='{method}' draws probes at random. Give a key, such as "
            f"key=jax.random.key(0)."
        )
    basis_size = basis_size if method == "deflated" else 0
    return Request(caller, operator, key, method, accuracy, max_products, basis_size)
