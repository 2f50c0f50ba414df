"""Extreme eigenpairs of an operator, each with bounds on its error."""

import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.geometry.accuracy import number_of
from sharpjax.geometry.eigenpairs import completeness, warm_start
from sharpjax.geometry.eigenpairs.certificate import certify, count_errors
from sharpjax.geometry.eigenpairs.convergence import SearchStep, Which
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.search import finish, solve
from sharpjax.geometry.lanczos import krylov, lanes, packing, recurrence
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators import differences
from sharpjax.geometry.operators.algebra import Operator, linearize
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.status import tells_unknown


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
    """The k extreme eigenvalues of an operator and their eigenvectors, by Lanczos.

    If `converged[i]` is true, an eigenvalue lies within `max(tol |values[i]|, 10 eps |A|)` of
    `values[i]`; `eps` is the noise of one product, 6e-7 in float32. All values before it have then
    converged too, and the values next to the k are known well enough to tell them apart. Only
    `verify=True` finds the copies of a multiple eigenvalue. docs/geometry.md, "How eigenvalues are
    certified", explains these certificates and says how often they failed.

    On networks a search takes 10 to 14 products for k = 1, and 3 k to 4 k for k >= 10. The smallest
    eigenvalues take several times as many.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 6.0) * w**2) / 2
    >>> pairs = top_eigenpairs(hessian(loss, jnp.ones(5), jnp.ones(8)), key=jax.random.key(0), k=2)
    >>> pairs.values.round(4).tolist(), pairs.converged.tolist()
    ([5.0, 4.0], [True, True])

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the random start.
        k: number of eigenvalues, at most the number of parameters.
        which: "LA" the largest, descending; "SA" the smallest, ascending; "LM" the largest in
            magnitude, by descending magnitude; "BE" both ends, ceil(k / 2) from the top and
            floor(k / 2) from the bottom, descending.
        tol: requested relative error of the values; may be traced.
        vector_tol: requested bound on `vector_errors`; None puts no condition on the vectors. (A
            value accurate to 1e-3 may come with a vector that is off by .3.)
        guards: number of values beyond the k (at each end for "BE") that must also converge in a
            search from a random vector. 0 also skips the extra steps that check that values
            persist.
        max_products: limit on the products of one search, at least k; default 64 + 8 k. Values that
            have not converged by then are marked, and `status` is `NOT_CONVERGED`.
        basis_size: largest number of basis vectors, rounded up to a multiple of 4; at least k plus
            the guards plus 4. A full basis of this size is restarted. None lets the basis grow,
            which takes the fewest products. 0 stores no basis: this needs vectors=False, and k=1,
            or k=2 for "BE".
        vectors: False omits the eigenvectors from the result; this costs no accuracy.
        start: an earlier result with vectors, for the same k and `which` and for parameters of the
            same structure: from another checkpoint or from `subsample_start`. The search then takes
            about half the products (at least k + 2) and certifies less: it misses an eigenvalue
            that is new among the k if its vector is orthogonal to all carried vectors. Such a value
            stays missing until the next search from a random vector, which is every 20th.
        verify: search again, from random vectors in the complement of the vectors found, until a
            pass finds nothing that belongs among the k. Each pass takes as many products as a
            search of its own; `verification` reports the passes.

    Raises:
        UserError: an argument does not fit.

    Memory, besides the linearisation and 3 vectors: a basis of 16 + 4 k vectors that is doubled
    when it is full, or a basis of `basis_size` vectors. Inside a trace the basis cannot grow and
    has `max_products` vectors. On CPU, do not call this function inside your own jit if the loss
    convolves (`sharpjax.loops`).

    References: Parlett, The Symmetric Eigenvalue Problem, 1998, chapters 11 and 13; Wu and Simon,
    SIAM J. Matrix Anal. Appl. 22, 2000 (thick restart); Cullum and Willoughby, Lanczos Algorithms
    for Large Symmetric Eigenvalue Computations, 1985 (without a basis).
    """
    caller = "top_eigenpairs"
    check_operator(caller, operator)
    key = check_key(caller, key)
    like, size = operator.like, tree.size(operator.like)
    k = whole_number(caller, "k", k)
    if k > size:
        raise UserError(f"{caller}: k={k} of an operator on {size} parameters; k <= {size}.")
    if which not in get_args(Which):
        raise unknown("which", which, get_args(Which))
    step = SearchStep(k, which, whole_number(caller, "guards", guards, least=0))
    _check_tolerances(tol, vector_tol)
    limit = 64 + 8 * k
    if max_products is not None:
        limit = whole_number(caller, "max_products", max_products)
    if limit < k:
        raise UserError(
            f"{caller}: max_products={limit} cannot give k={k} values; each takes one product at "
            f"least, and 3 k + 10 are usual."
        )
    rows = _check_basis_size(step, basis_size, vectors, size)
    _check_vectors_kept(operator, verify, start, basis_size)
    begun = None if start is None else warm_start.check(caller, start, like, k, which)

    product = differences.unchecked(linearize(operator))
    error_of = differences.error_of(product)
    packed = packing.of(like, (product, key, tol, vector_tol, begun))
    if packed is not None:
        product, like = packed.product(product), packed.like
        if begun is not None:
            begun = begun._replace(vectors=packed.store(begun.vectors))
    accuracy = {"tol": tol, "vector_tol": math.inf if vector_tol is None else vector_tol}
    kept = vectors or verify or begun is not None or error_of is not None
    from_nothing = functools.partial(
        *(_search, step, rows, limit, kept),
        *(product, like, key),
        **accuracy,
    )
    # Options beside this search, such as `start` or `verify`, change none of its numbers.
    if begun is None:
        pairs = from_nothing()
    else:
        for_start = jax.random.fold_in(key, 1)
        options = {"key": for_start, "like": like, "max_products": limit, **accuracy}
        pairs, again = warm_start.follow(product, begun, k=k, which=which, **options)
        if loops.is_traced(again):
            pairs = jax.lax.cond(
                lanes.any_lane(again), lambda: _choose(again, from_nothing(), pairs), lambda: pairs
            )
        elif again:
            pairs = _choose(again, from_nothing(), pairs)
    if verify:
        for_verification = jax.random.fold_in(key, 2)
        options = {"key": for_verification, "like": like, "max_products": limit, **accuracy}
        pairs, found = completeness.verify(step, product, pairs, **options)
        carried = warm_start.merge(step, pairs.carried, pairs, found.num_passes > 1)
        pairs = pairs._replace(verification=found, carried=carried)
    if not vectors and error_of is None:
        return pairs._replace(vectors=None, carried=None)
    if packed is not None:
        pairs = _unpacked(packed, pairs)
    if error_of is not None:
        pairs = count_errors(pairs, error_of, **accuracy)
    return pairs if vectors else pairs._replace(vectors=None, carried=None)


def _unpacked(packed: packing.Packing, pairs: Eigenpairs) -> Eigenpairs:
    carried = pairs.carried
    if carried is not None:
        carried = carried._replace(vectors=packed.read(carried.vectors))
    return pairs._replace(vectors=packed.read(pairs.vectors), carried=carried)


def _search(step, rows, limit, vectors, product, like, key, *, tol, vector_tol) -> Eigenpairs:
    """A search from a random vector, with a basis of `rows`; None: it may grow; 0: no basis."""
    size = tree.size(like)
    traced = loops.is_traced((like, product, key, tol, vector_tol))
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
    return _finish(step, vectors, search, error, used)


@tells_unknown
@functools.partial(loops.compiled_quickly, static_argnames=("step", "vectors"))
def _finish(step, vectors, search, error, used) -> Eigenpairs:
    pairs = finish(step, vectors, search, error, used)
    return pairs._replace(carried=warm_start.carry(step, search.state)) if vectors else pairs


@jax.jit
def _choose(again: jax.Array, anew: Eigenpairs, followed: Eigenpairs) -> Eigenpairs:
    """`anew` where `again` holds, else `followed`; `num_products` counts both searches."""
    chosen = jax.tree.map(lambda a, b: jnp.where(again, a, b), anew, followed)
    count = followed.num_products + jnp.where(again, anew.num_products, 0)
    return chosen._replace(num_products=count)


def _check_tolerances(tol, vector_tol) -> None:
    if not isinstance(tol, Tracer) and not 0 <= number_of(tol) < math.inf:
        raise UserError(f"top_eigenpairs: tol must be a number >= 0, got {tol}.")
    if not isinstance(vector_tol, Tracer | None) and not 0 < number_of(vector_tol) < math.inf:
        raise UserError(
            f"top_eigenpairs: vector_tol must be a number > 0 or None, got {vector_tol}."
        )


def _check_vectors_kept(operator, verify: bool, start, basis_size) -> None:
    asks = {
        "verify=True": verify,
        "start=": start is not None,
        "product='difference'": differences.holds(operator),
    }
    for name, asked in asks.items():
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
