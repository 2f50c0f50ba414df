"""What must happen to curvature when a loss is scaled, turned, cut, ...: for every kind of loss.

Each relation holds for each operator of each loss, unless it is listed: as refused, with what the
message must say, or as false, with the reason.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from tests import metamorphic
from tests.kinds_of_loss import EXAMPLES, LOSSES, case

SECOND_MOMENTS = (
    "empirical_fisher",
    "composed empirical_fisher",
    "observed fisher",
    "drawn fisher",
)
WITH_RIDGE = ("hessian", "composed hessian", "gauss_newton")
FACTOR, RIDGE = 3.0, 0.7
TOLERANCE = {"float64": 2**10 * 2.0**-52, "mixed_types": 2**10 * 2.0**-23}  # of the largest entry
SEEN = 1e-3  # by how much a relation that is false is off
ORDER = np.array([3, 0, 7, 5, 1, 6, 2, 4])


@pytest.fixture(autouse=True)
def mathematics(x64, strict):
    """All of it in float64, without silent promotion."""


# The matrices that relations compare. Made outside of a trace, an operator is checked there; inside
# of one, its products are NaN where a check fails.


class Lanes(NamedTuple):
    """Matrices of the same loss, by its views."""

    base: Any
    scaled: Any
    ridged: Any
    turned: Any
    permuted: Any


@functools.cache
def lanes(name, operator) -> Lanes:
    _, _, params, batch, *_ = case(name)
    view, rotation = metamorphic.view_of(params), rotations(params)
    back = metamorphic.turn(jax.tree.map(jnp.transpose, rotation), params)
    views = [
        (view, params, batch),
        (view._replace(factor=jnp.asarray(FACTOR)), params, batch),
        (view._replace(ridge=jnp.asarray(RIDGE)), params, batch),
        (view._replace(rotation=rotation), back, batch),
        (view, params, jax.tree.map(lambda x: x[ORDER], batch)),
    ]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *views)
    return Lanes(*np.asarray(metamorphic.inside_lanes(name, operator, stacked, key())))


def rotations(params):
    rng = np.random.default_rng(5)

    def leaf(x):
        return jnp.asarray(np.linalg.qr(rng.normal(size=(x.size, x.size)))[0], x.dtype)

    return jax.tree.map(leaf, params)


def key():
    return jax.random.key(3)


@functools.cache
def outside(name, operator):
    return metamorphic.by_products(made(name, operator))


def made(name, operator, batch=None, **options):
    _, _, params, own, *_ = case(name)
    view, batch = metamorphic.view_of(params), own if batch is None else batch
    return metamorphic.make(name, operator, view, params, batch, key(), **options)


# The relations: each gives a matrix, and what it must be.


def is_dense(name, operator):
    """It is the dense matrix of the same loss."""
    _, _, params, batch, *_ = case(name)
    truth = metamorphic.dense(name, params, batch, key())
    return outside(name, operator), getattr(truth, metamorphic.DENSE[operator])


def mapped(name, operator):
    """Inside of vmap it is what it is outside."""
    return lanes(name, operator).base, outside(name, operator)


def scaled(name, operator):
    """A multiple of the loss has the multiple of the matrix; its square, of gradients squared."""
    found = lanes(name, operator)
    return found.scaled, found.base * FACTOR ** (2 if operator in SECOND_MOMENTS else 1)


def ridged(name, operator):
    """`c |w|^2 / 2` adds c I to what holds the curvature of the whole loss, and nothing else."""
    found = lanes(name, operator)
    return found.ridged, found.base + RIDGE * (operator in WITH_RIDGE) * np.eye(len(found.base))


def turned(name, operator):
    """In coordinates `w = R z` it is `R'MR`."""
    found, leaves = lanes(name, operator), jax.tree.leaves(rotations(case(name).params))
    r = jax.scipy.linalg.block_diag(*(np.asarray(leaf, np.float64) for leaf in leaves))
    return found.turned, r.T @ found.base @ r


def permuted(name, operator):
    """The order of the examples does not matter."""
    found = lanes(name, operator)
    return found.permuted, found.base


def doubled(name, operator):
    """Of every example twice, and inside of jit, it is the same."""
    _, _, params, batch, *_ = case(name)
    view, twice = metamorphic.view_of(params), jax.tree.map(lambda x: jnp.repeat(x, 2, 0), batch)
    return metamorphic.inside(name, operator, view, params, twice, key()), outside(name, operator)


def microbatched(name, operator):
    """In parts it is that of the whole."""
    parts = made(name, operator, microbatch_size=EXAMPLES // 4)
    return metamorphic.at_once(parts), outside(name, operator)


def averaged(name, operator):
    """The mean over two batches is that of the whole."""
    make = functools.partial(made, name, operator)
    mean = geometry.averaged(make, case(name).batch, batch_size=EXAMPLES // 2)
    return metamorphic.by_products(mean), outside(name, operator)


def exact(name, operator):
    """Its exact diagonal, which takes no products, is that of the dense matrix."""
    found = geometry.diagonal(made(name, operator), key=key(), method="exact")
    _, right = is_dense(name, operator)
    return np.asarray(metamorphic.flat(found.value)), np.diag(right)


WHOLE = (is_dense, mapped, scaled, ridged, turned, permuted, doubled)
CUT = (microbatched, averaged)
IN_TRACE = (scaled, ridged, turned, permuted)  # all of it, so that nothing can be raised


# Where it is otherwise.


class Otherwise(NamedTuple):
    """Attributes:
    losses, operators: names, or None for all.
    relations: as above.
    because: why.
    refused: a pattern of the message; None where the relation is false.
    """

    losses: tuple[str, ...] | None
    operators: tuple[str, ...] | None
    relations: tuple[Any, ...]
    because: str
    refused: str | None = None


EXACT = ("gauss_newton", "observed fisher", "composed empirical_fisher")
HESSIANS = ("hessian", "composed hessian")
JACOBIANS = ("gauss_newton", "fisher", "observed fisher", "drawn fisher")
SINGLES = ("empirical_fisher", "composed empirical_fisher")
WEIGHTED = ("weighted", "masked", "class_weighted")
MIXING = ("sum", "contrastive", "log_mean_exp")
RULED = ("custom_vjp", "nested_custom_vjp", "callback")

# The first that fits counts.
OTHERWISE = (
    Otherwise(
        *(("callback",), None, (*WHOLE, *CUT, exact)),
        because="the backward pass has no derivative, and none that is transposed",
        refused="custom_vjp",
    ),
    Otherwise(
        *(RULED, JACOBIANS + SINGLES, (exact,)),
        because="it goes forwards through the model, which a custom_vjp does not bear",
        refused="custom_vjp",
    ),
    Otherwise(
        *(MIXING, JACOBIANS, (*WHOLE, *CUT, exact)),
        because="the outer loss is no mean over the examples",
        refused="not (the|their) mean",
    ),
    Otherwise(
        *(("norm_training", *MIXING), SINGLES, (*WHOLE, *CUT, exact)),
        because="the loss is not the mean of its values at single examples",
        refused="mean of its parts",
    ),
    Otherwise(
        *(WEIGHTED, ("empirical_fisher",), WHOLE + CUT),
        because="the weights are not declared",
        refused="example_weight",
    ),
    Otherwise(
        *(("norm_training", *MIXING, *WEIGHTED), ("hessian",), CUT),
        because="the loss is not the mean of its parts",
        refused="mean of its parts",
    ),
    Otherwise(
        *(("norm_training", *MIXING), None, CUT),
        because="the loss is not the mean of its parts, and says so of none",
        refused="mean of its parts",
    ),
    Otherwise(
        *(("norm_training",), JACOBIANS, (exact,)),
        because="what one example adds alone is not what it adds in its batch",
        refused="evaluation mode",
    ),
    Otherwise(("sum",), HESSIANS, (doubled,), "twice as many terms"),
    Otherwise(
        *(None, ("empirical_fisher",), (ridged,)),
        because="the gradient of each example of a plain loss has c w in it",
    ),
    Otherwise(
        *(None, ("drawn fisher",), (permuted, doubled, averaged)),
        because="labels are drawn by the place of an example in its batch, and by the batch",
    ),
)


def expected(name, operator, relation) -> Otherwise | None:
    for entry in OTHERWISE:
        if (
            (entry.losses is None or name in entry.losses)
            and (entry.operators is None or operator in entry.operators)
            and relation in entry.relations
        ):
            return entry
    return None


# What a model is made of does not matter to how examples are counted.
_MODELS = (
    *("norm_frozen", "tied", "attention", "lstm", "scan", "remat"),
    *("custom_jvp", "custom_vjp", "nested_custom_vjp"),
)
_OF_EXAMPLES = (doubled, averaged)
TRIPLES = [
    (name, operator, relation)
    for name in LOSSES
    for operator in metamorphic.operators(name)
    for relation in (*WHOLE, *CUT, *((exact,) if operator in EXACT else ()))
    if name not in _MODELS or relation not in _OF_EXAMPLES
]


def names(value):
    return getattr(value, "__name__", value)


@pytest.mark.parametrize(("name", "operator", "relation"), TRIPLES, ids=names)
def test_relation(name, operator, relation):
    otherwise = expected(name, operator, relation)
    if otherwise is not None and otherwise.refused:
        check_refused(name, operator, relation, otherwise.refused)
        return
    found, right = relation(name, operator)
    tol = TOLERANCE["mixed_types" if name == "mixed_types" else "float64"]
    if otherwise is None:
        np.testing.assert_allclose(found, right, rtol=0, atol=tol * np.abs(right).max())
    else:
        off = np.abs(found - right).max() / np.abs(right).max()
        assert np.isfinite(off) and off > SEEN, otherwise.because


def check_refused(name, operator, relation, pattern):
    try:
        found, _ = relation(name, operator)
    except UserError as error:
        assert re.search(pattern, str(error)), error
    else:
        assert relation in IN_TRACE and np.isnan(found).all()


def test_every_exception_is_met():
    met = {id(expected(*triple)) for triple in TRIPLES}
    assert [entry for entry in OTHERWISE if id(entry) not in met] == []
