"""Tables of modular arithmetic as sequences of tokens: all pairs, split into train and test.

An equation x o y = z is given as the four tokens [x, o, y, =]. Numbers are their own ids, the
operator is token p and '=' is token p + 1, so the vocabulary and the logits have p + 2 entries.
Nothing is downloaded. The operations are those of Power et al. (arXiv 2201.02177), including those
on permutations: the "numbers" are then the 120 permutations of five things in lexical order, and p
is 120.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.catalog import MAX_MODULUS
from sharpjax.errors import UserError, unknown, whole_number


class Operation(NamedTuple):
    """The operation `o`.

    Attributes:
        apply: (x, y, p) -> int64 numbers; the remainder modulo p is the answer.
        divides: whether it needs inverses, and so a prime modulus.
        nonzero: whether pairs with y = 0 are left out.
        size: the only allowed p; 0: any.
    """

    apply: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    divides: bool = False
    nonzero: bool = False
    size: int = 0


def _divide(x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    inverse = np.array([0] + [pow(i, -1, p) for i in range(1, p)], np.int64)
    return x * inverse[y]


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """The products of all pairs, x first and then y, [120, 120]; and the inverses, [120]."""
    all_ = np.array(list(itertools.permutations(range(5))))
    number = {tuple(one): i for i, one in enumerate(all_.tolist())}
    product = np.array([[number[tuple(y[x])] for y in all_] for x in all_])
    return product, np.argmax(product == 0, axis=1)


def _multiply(*factors: np.ndarray) -> np.ndarray:
    product, _ = _permutations()
    return functools.reduce(lambda x, y: product[x, y], factors)


# A name gives the operation on a pair (x, y). Names of two signs give the operations for even and
# for odd x ('+*' and '+-') or y ('-/'). MAX_MODULUS keeps cubes exact in int64.
OPERATIONS: Mapping[str, Operation] = {
    "+": Operation(lambda x, y, p: x + y),
    "-": Operation(lambda x, y, p: x - y),
    "*": Operation(lambda x, y, p: x * y),
    "/": Operation(_divide, divides=True, nonzero=True),
    "x^2+y": Operation(lambda x, y, p: x**2 + y),
    "x^3+y": Operation(lambda x, y, p: x**3 + y),
    "x^2+y^2": Operation(lambda x, y, p: x**2 + y**2),
    "x^2+xy+y^2": Operation(lambda x, y, p: x**2 + x * y + y**2),
    "x^2+xy+y^2+x": Operation(lambda x, y, p: x**2 + x * y + y**2 + x),
    "x^3+xy": Operation(lambda x, y, p: x**3 + x * y),
    "x^3+xy^2+y": Operation(lambda x, y, p: x**3 + x * y**2 + y),
    "+*": Operation(lambda x, y, p: np.where(x % 2, x * y, x + y)),
    "+-": Operation(lambda x, y, p: np.where(x % 2, x - y, x + y)),
    "-/": Operation(lambda x, y, p: np.where(y % 2, _divide(x, y, p), x - y), divides=True),
    "s5": Operation(lambda x, y, p: _multiply(x, y), size=120),
    "s5 xyx": Operation(lambda x, y, p: _multiply(x, y, x), size=120),
    "s5 xyx^-1": Operation(lambda x, y, p: _multiply(x, y, _permutations()[1][x]), size=120),
}


class Table(NamedTuple):
    """Equations: `tokens`, int32 [N, 4], and their answers `label`, int32 [N]."""

    tokens: np.ndarray
    label: np.ndarray


def table(operation: str, *, modulus: int) -> Table:
    """All equations x o y = z modulo p: p^2 of them, in the order of x p + y; p (p - 1) for '/'.

    Args:
        operation: a key of `OPERATIONS`. '/' is x times the inverse of y.
        modulus: p, from 2 to `MAX_MODULUS`; a prime if the operation divides, 120 for permutations.

    Raises:
        UserError: the operation is unknown; or the modulus is out of range, composite for a
            division, or not 120 for permutations.

    >>> tokens, label = table("/", modulus=5)
    >>> tokens[-1].tolist(), int(label[-1])  # 4 / 4 = 1
    ([4, 5, 4, 6], 1)
    """
    rule, p = _checked(operation, modulus)
    x, y = np.indices((p, p), np.int64).reshape(2, -1)
    if rule.nonzero:
        x, y = x[y != 0], y[y != 0]
    tokens = np.stack([x, np.full_like(x, p), y, np.full_like(x, p + 1)], axis=1)
    answer = rule.apply(x, y, p) % p
    return Table(tokens.astype(np.int32), answer.astype(np.int32))


def num_pairs(operation: str, *, modulus: int) -> int:
    """The number of equations in `table`, without making it.

    Raises:
        UserError: as `table` does.

    >>> num_pairs("/", modulus=97) == 97 * 96
    True
    """
    rule, p = _checked(operation, modulus)
    return p * (p - rule.nonzero)


def _checked(operation: str, modulus: int) -> tuple[Operation, int]:
    if operation not in OPERATIONS:
        raise unknown("operation", operation, OPERATIONS)
    rule = OPERATIONS[operation]
    p = whole_number("modular.table", "modulus", modulus, least=2)
    if p > MAX_MODULUS:
        raise UserError(
            f"modular.table: modulus={p} makes {p**2:,} pairs; give {MAX_MODULUS} or less."
        )
    if rule.size not in (0, p):
        raise UserError(
            f"modular.table: modulus={p}, but '{operation}' is on the {rule.size} permutations of "
            f"five things; give {rule.size}."
        )
    if rule.divides and (factor := _factor(p)) < p:
        raise UserError(
            f"modular.table: '{operation}' divides, and modulo {p} = {factor} x {p // factor} not "
            "every number has an inverse; give a prime modulus."
        )
    return rule, p


def split(key: jax.Array, num_examples: int, train_fraction: float) -> tuple[jax.Array, jax.Array]:
    """A random split of 0 to N - 1 into two disjoint parts that together contain every number.

    The first ceil(f N) examples of a permutation are for training, the others for testing: 7,528
    and 1,881 of the 9,409 pairs modulo 97 at f = 0.8, the sizes that PyTorch's
    `random_split([f, 1 - f])` gives. f is read as the decimal number that is written. Under
    `jax.vmap` over keys, each seed of a population has its own split.

    Args:
        key: random key of the split.
        num_examples: N. Static.
        train_fraction: f, above 0 and below 1. Static.

    Returns:
        int32 [ceil(f N)] and int32 [N - ceil(f N)].

    Raises:
        UserError: f is not between 0 and 1, or no example is left for testing.

    >>> train, test = split(jax.random.key(0), 10, 0.7)
    >>> train.shape, test.shape, sorted([*train.tolist(), *test.tolist()]) == list(range(10))
    ((7,), (3,), True)
    """
    first = num_train(num_examples, train_fraction)
    order = jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
    return order[:first], order[first:]


def num_train(num_examples: int, train_fraction: float) -> int:
    """ceil(f N): how many of N examples are for training.

    Raises:
        UserError: as `split` does.
    """
    if not 0 < train_fraction < 1:
        raise UserError(
            f"modular.split: train_fraction={train_fraction}; give a number above 0 and below 1, "
            "such as 0.5."
        )
    number = math.ceil(Fraction(str(train_fraction)) * num_examples)
    if number >= num_examples:
        raise UserError(
            f"modular.split: a train fraction of {train_fraction} of {num_examples} pairs leaves "
            "none to test; give a smaller fraction, or a larger modulus."
        )
    return number


def _factor(p: int) -> int:
    """The smallest factor above 1."""
    return next((i for i in range(2, math.isqrt(p) + 1) if p % i == 0), p)
