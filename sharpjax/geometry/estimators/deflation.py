"""Deflation: part of an operator known exactly, and random probes of the rest.

With an orthonormal basis Q of a small space, `tr A = tr Q'AQ + tr P A P`, `P = I - Q Q'`, and the
probes' variance falls from `2 |A|_F^2` to `2 |P A P|_F^2` (Meyer, Musco, Musco and Woodruff,
arXiv 2010.09649). Q spans the Krylov space of a random vector, one product for each of its own.

How far it is worth to grow is not known beforehand (Persson, Cortinovis and Kressner, arXiv
2109.10659). A few probes taken first tell, and no product is lost on it: the products `P A P z`
follow from `A z` and from `q`, `P A q` of each new vector alone, so `|P A P|_F` is seen at each
step, and these probes serve in the estimate of a trace, too.

They also tell how exact the exact part is. Products with noise, `A v + e(v)`, are those of no
symmetric matrix, and for a normal z that e does not know `E (z'(A q + e) - q'A z)^2 = |e|^2`, in
whichever direction e lies: no product is taken for it.
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
_WORTH = 20  # a basis is begun where so many probes would be needed beyond the pilots
_PATIENCE = 5  # vectors without gain after which growing ends


def run(
    statistic: Statistic,
    key: jax.Array,
    operator: Operator,
    *,
    accuracy: Accuracy,
    max_products: int,
    basis_size: int,
) -> tuple[Probing, jax.Array]:
    """A few probes, a basis as far as it pays, and probes of what is left.

    Args:
        basis_size: vectors in the basis at the most; 0: probes alone.

    Returns:
        The probes, and the number of products that the basis took.
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
    # The basis is given on: there may be no room for two.
    basis, growth = growth.lanczos.basis, _without_basis(growth)
    state, left, used, reached = _probe_complement(statistic, basis, state, growth)
    if not traced:
        left = 0 if accuracy.is_asked and reached else int(left)
    if traced or left:
        state = probe(statistic, state, product, max_probes=left)
    return state, used


class Growth(NamedTuple):
    """A basis that grows.

    Attributes:
        lanczos: the basis.
        unit: of the operator, for all that follows.
        probes, products: the pilots `z` and `P A P z`, leaves (_PILOTS, *shape).
        exact, sums: of the statistic, the sums over the pilots.
        best: the least of the scores so far.
        since: the products since then.
        count: int32, of the pilots.
        max_products: int32.
        accuracy: what is asked for.
        done: growing further does not pay, or cannot be.
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
    """One product for the basis, for `sharpjax.loops.iterate`, and the test if it was the last."""

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
        # By two less than their number: the variance of what so few of them tell the size of.
        noise = jnp.sum(squares) / (_PILOTS - 2)
        exact = self.statistic.deflate(state.exact, q, b, noise)
        state = state._replace(lanczos=lanczos, products=products, exact=exact, sums=sums)
        return judge(self.statistic, state)


def judge(statistic: Statistic, state: Growth) -> Growth:
    """Whether the last product brought the end nearer.

    The score is the number of products needed in all, less those allowed, where this is negative;
    else the variance that is left when all are used. It falls where a product saves more than
    itself.
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
    """`(I - qq') B (I - qq') z` from `B z`, where `b = B q`, and `z'b - q'B z`."""
    part = tree.vdot(q, probe)
    product = tree.add_scaled(product, -part, b)
    along = tree.vdot(q, product)
    asymmetry = tree.vdot(probe, b) - part * overlap - along
    return tree.add_scaled(product, -along, q), asymmetry


@functools.partial(jax.jit, static_argnums=0)
def _steps_worth_taking(statistic, state: Probing, max_products, basis_size) -> jax.Array:
    """The products a basis may take; 0 where the pilots say that few probes more will do."""
    _, error, allowed = hutchinson.estimate(statistic, state)
    limit = jnp.asarray(max_products, error.dtype)
    ratio = jnp.where(allowed > 0, error / jnp.where(allowed > 0, allowed, 1), limit)
    needed = jnp.maximum(_PILOTS * jnp.square(ratio), statistic.least)
    pays = state.finite & (error > 0) & (jnp.minimum(needed, limit) >= _PILOTS + _WORTH)
    most = jnp.minimum(basis_size, tree.countable(state.probe))
    spared = 0 if statistic.least <= _PILOTS else statistic.least  # for probes after the basis
    most = jnp.minimum(most, max_products - _PILOTS - spared)
    return jnp.where(pays, most, 0).astype(jnp.int32)


@functools.partial(loops.compiled_quickly, static_argnums=(0, 1))
def _begin(statistic, keep, key, like, accuracy) -> tuple[Probing, jax.Array, jax.Array]:
    """No probe taken yet, a key for the basis, and 0, the products that none takes."""
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
    """Probes of what is left, how many more are allowed, how many products are no probes of it,
    and whether what was asked for is reached."""
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
    """Whether the pilots serve in the estimate, too.

    Where the error comes from the spread of values, they do not: the basis was chosen by theirs,
    so that it is too small (errors of a Frobenius norm were 1.11 standard errors with them, 1.04
    without).
    """
    return _is_whole(growth.lanczos) | (statistic.least <= _PILOTS)


def _is_whole(lanczos: krylov.Lanczos) -> jax.Array:
    return lanczos.num_products >= tree.size(lanczos.vector)
