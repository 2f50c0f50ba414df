"""Deflation: one part of an operator is known exactly, and random probes estimate the rest.

With an orthonormal basis Q of a small space, `tr A = tr Q'AQ + tr P A P`, `P = I - Q Q'`, and the
probes' variance falls from `2 |A|_F^2` to `2 |P A P|_F^2` (Meyer, Musco, Musco and Woodruff,
arXiv 2010.09649). Q spans the Krylov space of a random vector and costs one product per vector.

How far the basis should grow is not known beforehand (Persson, Cortinovis and Kressner, arXiv
2109.10659). A few probes taken first, the pilots, decide this without further products: `P A P z`
follows from `A z` and from `q` and `P A q` of each new vector q. So `|P A P|_F` can be estimated at
each step. For a trace, the pilots also enter the estimate.

The pilots also show how exact the exact part is. Products with noise, `A v + e(v)`, are those of no
symmetric matrix. For a normal z independent of e, `E (z'(A q + e) - q'A z)^2 = |e|^2`, whatever the
direction of e. This takes no further product.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.estimators import hutchinson
from sharpjax.geometry.estimators.complement import complement, get_row
from sharpjax.geometry.estimators.hutchinson import Probing, Reached, Statistic
from sharpjax.geometry.lanczos import krylov, lanes, recurrence
from sharpjax.geometry.operators.algebra import Operator, linearize

Params = Any

_PILOTS = 4  # probes taken before the basis
_WORTH = 20  # a basis is begun if at least so many probes would be needed beyond the pilots
_PATIENCE = 5  # growth ends after so many vectors without gain


def run(
    statistic: Statistic,
    key: jax.Array,
    operator: Operator,
    *,
    accuracy: Accuracy,
    max_products: int,
    basis_size: int,
) -> tuple[Probing, jax.Array]:
    """A few probes, then a basis as far as it pays, then probes of the rest.

    Args:
        statistic: the quantity to estimate.
        key: for the probes and the start of the basis.
        operator: symmetric.
        accuracy: the requested accuracy.
        max_products: limit on all products.
        basis_size: largest number of basis vectors; 0 means probes alone.

    Returns:
        The state of the probes, and the number of products that are not among them.
    """
    like, product = operator.like, linearize(operator)
    probe = functools.partial(hutchinson.run, to_accuracy=accuracy.is_asked)
    has_basis = bool(basis_size) and max_products >= _PILOTS + _WORTH
    keep = _PILOTS if has_basis else 0
    state, start_key, none = _begin(statistic, keep, key, like, accuracy)
    if not has_basis:
        return probe(statistic, state, product, max_probes=max_products), none
    state = probe(statistic, state, product, max_probes=_PILOTS)
    steps = _steps_worth_taking(statistic, state, max_products, basis_size)
    if not (traced := loops.is_traced((state, product))):
        steps = int(steps)
        if not steps:
            return probe(statistic, state, product, max_probes=max_products - _PILOTS), none
    rows = krylov.num_rows(min(basis_size, tree.size(like)))
    lie = recurrence.shardings(like)
    growth = _begin_growth(statistic, rows, lie, start_key, like, state, max_products)
    state = state._replace(kept=None)
    growth, _ = loops.iterate(
        GrowStep(statistic), growth, product, max_steps=steps, until=_is_done, donate=True
    )
    # The basis is donated, because memory may not hold two.
    basis, growth = growth.lanczos.basis, _without_basis(growth)
    state, left, used, reached = _probe_complement(statistic, basis, state, growth)
    if not traced:
        left = 0 if accuracy.is_asked and reached else int(left)
    if traced or left:
        state = probe(statistic, state, product, max_probes=left)
    return state, used


class Growth(NamedTuple):
    """A growing basis.

    Attributes:
        lanczos: the basis.
        unit: of the operator; all fields below are in this unit.
        probes, products: the pilots `z` and `P A P z`, leaves (_PILOTS, *shape).
        exact, sums: of the statistic; the sums are over the pilots.
        best: the lowest score so far.
        since: number of products since the best score.
        count: int32, number of pilots.
        max_products: int32.
        accuracy: the requested accuracy.
        done: further growth does not pay, or is impossible.
    """

    lanczos: krylov.Lanczos
    unit: jax.Array
    probes: Params
    products: Params
    exact: Any
    sums: Any
    best: jax.Array
    since: jax.Array
    count: jax.Array
    max_products: jax.Array
    accuracy: Accuracy
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class GrowStep:
    """One product for the basis and the test if it was the last, for `sharpjax.loops.iterate`."""

    statistic: Statistic

    def propose(self, state: Growth) -> Params:
        return state.lanczos.vector

    def absorb(self, state: Growth, product: Params) -> Growth:
        q, row = state.lanczos.vector, lanes.furthest(state.lanczos.num_products)
        lanczos = krylov.LanczosStep().absorb(state.lanczos, product)
        b = tree.scale(get_row(lanczos.alpha, row), q)
        b = tree.add_scaled(b, get_row(lanczos.beta, row), lanczos.vector)
        overlap = tree.vdot(q, b)

        def deflate(sums, pilot):
            product, asymmetry = _deflate(q, b, overlap, *pilot)
            return self.statistic.add(sums, pilot[0], product), (product, jnp.square(asymmetry))

        _, none = self.statistic.begin(tree.zeros_like(q))
        sums, seen = jax.lax.scan(deflate, none, (state.probes, state.products))
        products, squares = seen
        # Divided by n - 2, not n: with a scale estimated from n values, the variance is that of
        # Student's t.
        noise = jnp.sum(squares) / (_PILOTS - 2)
        exact = self.statistic.deflate(state.exact, q, b, noise)
        state = state._replace(lanczos=lanczos, products=products, exact=exact, sums=sums)
        return judge(self.statistic, state)


def judge(statistic: Statistic, state: Growth) -> Growth:
    """Update the score, and decide whether to go on.

    The score is the number of products needed in total less the number allowed, if that is at most
    0. Otherwise it is the variance that remains when all allowed products are used. It falls if a
    product saves more than its own cost.
    """
    _, error, allowed = hutchinson.estimate(statistic, state)
    variance = _PILOTS * jnp.square(error)  # of one probe
    allowed = jnp.square(allowed)
    lanczos = state.lanczos
    left = (state.max_products - lanczos.num_products).astype(error.dtype)
    needed = variance / jnp.where(allowed > 0, allowed, 1)
    score = jnp.where(variance <= allowed * left, needed - left, variance / left)
    gain = score < state.best
    since = jnp.where(gain, 0, state.since + 1)
    done = (since >= _PATIENCE) | lanczos.broken | ~lanczos.finite
    done |= lanczos.num_products >= min(len(lanczos.alpha), tree.size(lanczos.vector))
    if statistic.least <= _PILOTS:
        done |= variance <= allowed * _PILOTS
    return state._replace(best=jnp.where(gain, score, state.best), since=since, done=done)


def _is_done(state: Growth) -> jax.Array:
    return state.done


def _deflate(q, b, overlap, probe, product):
    """`(I - qq') B (I - qq') z` from `B z` and `b = B q`; and the asymmetry `z'b - q'B z`."""
    part = tree.vdot(q, probe)
    product = tree.add_scaled(product, -part, b)
    along = tree.vdot(q, product)
    asymmetry = tree.vdot(probe, b) - part * overlap - along
    return tree.add_scaled(product, -along, q), asymmetry


@functools.partial(jax.jit, static_argnums=0)
def _steps_worth_taking(statistic, state: Probing, max_products, basis_size) -> jax.Array:
    """The number of products that a basis may take; 0 if by the pilots few more probes will do."""
    _, error, allowed = hutchinson.estimate(statistic, state)
    limit = jnp.asarray(max_products, error.dtype)
    ratio = jnp.where(allowed > 0, error / jnp.where(allowed > 0, allowed, 1), limit)
    needed = jnp.maximum(_PILOTS * jnp.square(ratio), statistic.least)
    pays = state.finite & (error > 0) & (jnp.minimum(needed, limit) >= _PILOTS + _WORTH)
    most = jnp.minimum(basis_size, tree.countable(state.probe))
    spared = 0 if statistic.least <= _PILOTS else statistic.least  # reserved for later probes
    most = jnp.minimum(most, max_products - _PILOTS - spared)
    return jnp.where(pays, most, 0).astype(jnp.int32)


@functools.partial(loops.compiled_quickly, static_argnums=(0, 1))
def _begin(statistic, keep, key, like, accuracy) -> tuple[Probing, jax.Array, jax.Array]:
    """The state before the first probe, a key for the basis, and 0, the products of no basis."""
    probe_key, start_key = jax.random.split(key)
    state = hutchinson.begin(statistic, probe_key, like, accuracy, keep=keep)
    return state, start_key, jnp.zeros_like(state.count)


@functools.partial(loops.compiled_quickly, static_argnums=(0, 1, 2))
def _begin_growth(statistic, rows, lie, key, like, state: Probing, max_products) -> Growth:
    assert state.kept is not None
    lanczos = krylov.begin(key, like, rows, lie=lie)._replace(unit=state.unit)
    probes, products = state.kept
    _, error = statistic.estimate(state.exact, state.sums, state.count)
    growth = Growth(
        lanczos=lanczos,
        unit=state.unit,
        probes=probes,
        products=products,
        exact=state.exact,
        sums=state.sums,
        best=jnp.full_like(error, jnp.inf),
        since=jnp.zeros_like(state.count),
        count=jnp.full_like(state.count, _PILOTS),
        max_products=jnp.zeros_like(state.count) + jnp.asarray(max_products, jnp.int32),
        accuracy=state.accuracy,
        done=~state.finite,
    )
    return judge(statistic, growth)


def _without_basis(growth: Growth) -> Growth:
    return growth._replace(lanczos=growth.lanczos._replace(basis=None))


@functools.partial(loops.compiled_quickly, static_argnums=0, donate_argnums=1)
def _probe_complement(
    statistic, basis, state: Probing, growth: Growth
) -> tuple[Probing, jax.Array, jax.Array, jax.Array]:
    """The state for probes of the complement, how many more probes are allowed, how many products
    so far are not probes in its sums, and whether the requested accuracy is reached."""
    lanczos = growth.lanczos._replace(basis=basis)
    left = growth.max_products - state.count - lanczos.num_products
    keeps = _keeps_pilots(statistic, growth)
    sums = jax.tree.map(lambda x: jnp.where(keeps, x, jnp.zeros_like(x)), growth.sums)
    state = state._replace(
        complement=complement(lanczos),
        kept=None,
        exact=growth.exact,
        sums=sums,
        count=jnp.where(keeps, state.count, 0),
        finite=state.finite & lanczos.finite,
    )
    used = lanczos.num_products + jnp.where(keeps, 0, _PILOTS)
    left = jnp.where(_is_whole(lanczos), 0, left)
    return state, left, used, Reached(statistic)(state)


def _keeps_pilots(statistic, growth: Growth) -> jax.Array:
    """Whether the pilots also enter the estimate.

    They do not if the error comes from the spread of values. The basis was chosen by the spread of
    the pilots, so this spread is too small (errors of a Frobenius norm were 1.11 standard errors
    with the pilots and 1.04 without).
    """
    return _is_whole(growth.lanczos) | (statistic.least <= _PILOTS)


def _is_whole(lanczos: krylov.Lanczos) -> jax.Array:
    return lanczos.num_products >= tree.size(lanczos.vector)
