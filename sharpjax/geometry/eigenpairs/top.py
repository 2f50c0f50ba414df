"""Extreme eigenpairs of an operator, each with what is known of its error."""

import dataclasses
import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.geometry.eigenpairs import completeness, starts, tracking
from sharpjax.geometry.eigenpairs.certificate import certify
from sharpjax.geometry.eigenpairs.convergence import Search, SearchStep, Which, is_met
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.search import solve
from sharpjax.geometry.lanczos import krylov, lanes, recurrence, ritz
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator, linearize
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.status import Status, tells_unknown


@solver
def top_eigenpairs(
    operator: Operator,
    *,
    key: jax.Array,
    k: int = 1,
    which: Which = "LA",
    tol: float | jax.Array = 1e-3,
    vector_tol: float | jax.Array | None = None,
    guards: int = 2,
    max_products: int | None = None,
    basis_size: int | None = None,
    vectors: bool = True,
    start: Eigenpairs | None = None,
    verify: bool = False,
) -> Eigenpairs:
    """The k extreme eigenvalues of an operator, and their vectors, by Lanczos.

    It stops when they have converged, after some 10 to 14 products for k = 1 and 3 k to 4 k for
    k >= 10 on networks; smallest values take several times as many.

    **What `converged[i]` promises**: an eigenvalue lies within `max(tol |value_i|, 10 eps |A|)` of
    `value_i`, where `|A|` is the largest Ritz value in magnitude and `eps` the noise of one product
    (6e-7 in float32). The residual `r_i`, or `r_i^2 / gap_i`, is within that threshold; `gap_i` is
    the distance to the nearest Ritz value outside of i's cluster, less that value's own residual.
    Values nearer than their residuals are one cluster, and `r_i^2` in the second bound is then the
    sum over the cluster. All values before i have converged, too, in this step and the three before
    it, and so have now `guards` values beyond the k, each by its own `r^2 / gap` and to the
    accuracy of the last of the k. Without guards and persistence (`guards=0` leaves out both), a
    pair 1 % apart at the top is certified wrong in 80 of 100 runs; with them in none of 300. It is
    not promised that none was skipped: the second copy of a multiple eigenvalue cannot be seen from
    one start, and of a pair .6 % apart at place 3 one was passed over in 3 of 150 runs.

    **`verify=True`** searches again, from random vectors in the complement of what was found, until
    such a pass finds nothing that belongs among the k: multiple eigenvalues then come as often as
    they are there. Each pass takes the products of a search of its own. `verification` says what
    was done, and at which distance beyond the k a value still had a chance of 1e-3 to stay hidden.

    **`start=`** takes an earlier result, of another checkpoint or from `subsample_start`. The
    search begins with its vectors, with two more that it carries, and with one random direction,
    and takes about half the products of one from nothing (k + 2 at the least). It follows values
    that change places; every 20th is a search from nothing, as is one that has not converged in 16
    + 4 k products. What is new at the top and orthogonal to all that is carried is not met before.

    With `vector_tol` the vectors are as good, too: a value good to 1e-3 may carry a vector that is
    .3 off.

    Products that are noisier than their type, as those of a model that computes in bfloat16 or of a
    loss whose terms cancel, are noticed, by what of a product lies in the basis and should not
    (without a basis, along the vector before): no error is less than what such noise moves a value
    by, and a `tol` below it is not met. Of 1,800 runs with noise of 1e-6 to 1e-2 of `|A|` none was
    certified wrong. After restarts, one further product checks the residuals of all k vectors
    together (`residuals` are not less than what it shows).

    Memory, beside the linearisation and 3 vectors: a basis of 16 + 4 k vectors, doubled when it is
    full; inside a trace it cannot grow and has `max_products`. `basis_size` bounds it: a full
    basis is replaced by its outermost Ritz vectors (thick restart, with half as many more in
    between), which costs some more products. `basis_size=0` keeps no basis but two vectors,
    for values at the ends only. On CPU, do not call it inside your own jit if the loss convolves
    (`sharpjax.loops`).

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the random start.
        k: how many, at most the number of parameters.
        which: "LA" the largest, descending; "SA" the smallest, ascending; "LM" the largest in
            magnitude, by descending magnitude; "BE" both ends, ceil(k / 2) from the top and
            floor(k / 2) from the bottom, descending.
        tol: relative error of values that is asked for; may be traced.
        vector_tol: `vector_errors` that are asked for; None asks nothing of vectors.
        guards: values beyond the k (at each end for "BE") that must converge, too. They take most
            of the products where they lie in a dense part of the spectrum.
        max_products: products at the most, at least k; default 64 + 8 k. Values that have not
            converged by then are marked, and `status` is `NOT_CONVERGED`.
        basis_size: vectors of the basis at the most, rounded up to a multiple of 4; at least k and
            the guards and 4. None lets it grow, which takes the fewest products. 0 keeps none: then
            vectors=False, and k=1, or k=2 for "BE". Without a basis copies of converged values
            appear (Paige, 1972); of values as near to each other as their residuals only the
            outermost is counted, so that no copy passes for a guard.
        vectors: False leaves them out; this costs no accuracy.
        start: an earlier result with vectors, for the same k and `which` and for parameters of the
            same structure.
        verify: also look for what one start cannot see. Keeps vectors meanwhile.

    Raises:
        UserError: an argument does not fit.

    References: Parlett, The Symmetric Eigenvalue Problem, 1998, chapters 11 and 13; Wu and Simon,
    SIAM J. Matrix Anal. Appl. 22, 2000 (thick restart); Cullum and Willoughby, Lanczos Algorithms
    for Large Symmetric Eigenvalue Computations, 1985 (without a basis).

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 6.0) * w**2) / 2
    >>> pairs = top_eigenpairs(hessian(loss, jnp.ones(5), jnp.ones(8)), key=jax.random.key(0), k=2)
    >>> pairs.values.round(4).tolist(), pairs.converged.tolist()
    ([5.0, 4.0], [True, True])
    """
    check_operator("top_eigenpairs", operator)
    size = tree.size(operator.like)
    caller = "top_eigenpairs"
    k = whole_number(caller, "k", k)
    guards = whole_number(caller, "guards", guards, least=0)
    if k > size:
        raise UserError(f"top_eigenpairs: k={k} of an operator on {size} parameters; k <= {size}.")
    if which not in get_args(Which):
        raise unknown("which", which, get_args(Which))
    if not isinstance(tol, Tracer) and not (jnp.ndim(tol) == 0 and 0 <= tol < math.inf):
        raise UserError(f"top_eigenpairs: tol must be a number >= 0, got {tol}.")
    if not isinstance(vector_tol, Tracer | None) and not (
        jnp.ndim(vector_tol) == 0 and 0 < vector_tol < math.inf
    ):
        raise UserError(
            f"top_eigenpairs: vector_tol must be a number > 0 or None, got {vector_tol}."
        )
    limit = 64 + 8 * k
    if max_products is not None:
        limit = whole_number(caller, "max_products", max_products)
    if limit < k:
        raise UserError(
            f"top_eigenpairs: max_products={limit} cannot give k={k} values; each takes one "
            f"product at least, and 3 k + 10 are usual."
        )
    key = check_key("top_eigenpairs", key)
    step = SearchStep(k, which, guards)
    rows = _check_basis_size(step, basis_size, vectors, size)

    _check_vectors_kept(verify, start, basis_size)
    begun = None if start is None else starts.begin_from(caller, start, operator.like, k, which)
    product = linearize(operator)
    # What is asked for beside the search changes none of its numbers.
    for_start, for_verification = (jax.random.fold_in(key, i) for i in (1, 2))
    search_anew = _Anew(step, rows, limit, vectors or verify or begun is not None)
    vector_tol = math.inf if vector_tol is None else vector_tol
    given = (product, operator.like, key, tol, vector_tol)
    if begun is None:
        pairs = search_anew(*given)
    else:
        pairs = _track(search_anew, begun, for_start, given)
    if verify:
        pairs, found = completeness.verify(
            *(step, product, pairs),
            key=for_verification,
            like=operator.like,
            tol=tol,
            vector_tol=vector_tol,
            max_products=limit,
        )
        tracking_step = SearchStep(k, which, starts.GUARDS)
        carrying = _merge(tracking_step, pairs.carried, pairs, found.num_passes > 1)
        pairs = pairs._replace(verification=found, carried=carrying)
    return pairs if vectors else pairs._replace(vectors=None, carried=None)


@dataclasses.dataclass(frozen=True)
class _Anew:
    """A search from a random vector.

    Attributes:
        rows: of the basis at the most; None: it may grow; 0: there is none.
        limit: products at the most.
    """

    step: SearchStep
    rows: int | None
    limit: int
    vectors: bool

    def __call__(self, product, like, key, tol, vector_tol) -> Eigenpairs:
        step, rows, limit, size = self.step, self.rows, self.limit, tree.size(like)
        inputs = (like, product, key, tol, vector_tol)
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(inputs))
        bounded = rows is not None and 0 < krylov.num_rows(rows) < min(limit, size)
        if rows != 0 and not bounded:
            limit = min(limit, size)
        # Inside a trace a basis cannot grow.
        room = limit if traced else min(size, 16 + 4 * step.k)
        if rows is not None and bounded:
            room = rows
        begin = recurrence.start if rows == 0 else krylov.start
        search = solve(
            *(step, product, begin(key, like, krylov.num_rows(room))),
            tol=tol,
            vector_tol=vector_tol,
            max_products=limit - bounded,  # one is for the certificate
            bounded=bounded,
        )
        error, used = 0.0, 0
        if bounded and (traced or search.state.kept > 0):
            error, used = certify(step, search, product, key, search.state.kept > 0)
        return _finish(step, self.vectors, search, error, used)


def _track(search_anew: _Anew, begun: starts.Start, key, given) -> Eigenpairs:
    """A search from what an earlier one carries, and one from nothing where that does not do."""
    product, like, _, tol, vector_tol = given
    step = search_anew.step
    followed, carried, again = tracking.follow(
        *(product, begun),
        key=key,
        like=like,
        k=step.k,
        which=step.which,
        tol=tol,
        vector_tol=vector_tol,
    )
    followed = followed._replace(carried=carried)
    if isinstance(again, Tracer):
        return jax.lax.cond(
            lanes.any_lane(again),
            lambda: tracking.choose(again, search_anew(*given), followed),
            lambda: followed,
        )
    return tracking.choose(again, search_anew(*given), followed) if again else followed


def _check_vectors_kept(verify: bool, start, basis_size) -> None:
    for name, asked in (("verify=True", verify), ("start=", start is not None)):
        if asked and basis_size == 0:
            raise UserError(
                f"top_eigenpairs: {name} needs the vectors that basis_size=0 does not keep; give "
                f"None, or the number of vectors that there is memory for."
            )


def _check_basis_size(step: SearchStep, basis_size, vectors, size) -> int | None:
    if basis_size is None:
        return None
    rows = whole_number("top_eigenpairs", "basis_size", basis_size, least=0)
    if rows == 0:
        if vectors or step.k != len([n for n in step.ends if n]):
            raise UserError(
                f"top_eigenpairs: basis_size=0 keeps no vectors, and tells no copy of a value from "
                f"a second one: ask for vectors=False, and for k=1, or for k=2 of which='BE'; got "
                f"vectors={vectors}, k={step.k}, which={step.which!r}."
            )
        return 0
    if rows < min(step.least_rows, size):
        raise UserError(
            f"top_eigenpairs: basis_size={rows} leaves no room to restart k={step.k} values and "
            f"{sum(step.tested) - step.k} guards; give {step.least_rows} or more, 0 for extreme "
            f"values without a basis, or None for a basis that grows."
        )
    return rows


@tells_unknown
@functools.partial(jax.jit, static_argnames=("step", "vectors"))
def _finish(step, vectors, search: Search, error, used) -> Eigenpairs:
    state = search.state
    found = ritz.bound(state, error)
    places, exist = step.places(state, found, step.tested)
    wanted, known = step.wanted(places), step.wanted(exist) & state.finite
    converged = step.converged(search.passes) & known & is_met(search, found)[wanted]
    status = jnp.where(jnp.all(converged), Status.OK, Status.NOT_CONVERGED)
    if isinstance(state, krylov.Lanczos):
        status = jnp.where(state.broken & ~jnp.all(converged), Status.BREAKDOWN, status)
    status = jnp.where(state.finite, status, Status.NON_FINITE)

    def pick(x):
        return jnp.where(known, x[wanted], jnp.nan)

    found_vectors, carried = None, None
    if vectors:
        found_vectors = krylov.combine_rows(state.basis, found.weights[:, wanted])
        carried = starts.carried(step.k, step.which, state)
    return Eigenpairs(
        values=pick(found.values),
        vectors=found_vectors,
        residuals=pick(found.residuals),
        value_errors=pick(found.value_errors),
        vector_errors=pick(found.vector_errors),
        converged=converged,
        num_products=state.num_products + used,
        status=status.astype(jnp.int32),
        carried=carried,
    )


_merge = jax.jit(starts.merge, static_argnames="step")
