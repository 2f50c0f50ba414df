"""A report of the curvature of a model, in one call."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import check_error
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.top import top_eigenpairs
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.spectra import density, logdet, quadrature
from sharpjax.geometry.spectra.logdet import LogDeterminant
from sharpjax.geometry.status import Status, tells_unknown

_USUAL_ERROR = 0.03  # default relative error of the trace


class CurvatureReport(NamedTuple):
    """The curvature of a model; `print` it.

    Attributes:
        top: the k largest eigenvalues, with bounds on their errors.
        smallest, smallest_residual: the smallest Ritz value found, and how near to it an eigenvalue
            lies. This Ritz value bounds the smallest eigenvalue from above.
        trace: with its standard error.
        frobenius: `|A|_F`, with its standard error.
        density: of all eigenvalues; the converged values of `top` are its atoms.
        logdet: `log det (A + damping)`, or None.
        num_products: int32, all products.
        status: `Status`, int32, of everything but `logdet`, which has its own status.
    """

    top: Eigenpairs
    smallest: jax.Array
    smallest_residual: jax.Array
    trace: Estimate
    frobenius: Estimate
    density: density.Density
    logdet: LogDeterminant | None
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`lambda_i` and `lambda_i_residual` as in `top_eigenpairs`, `lambda_min`, `trace`,
        `frobenius`, `logdet` if there is one, and `num_products`, the total.

        The `standard_error` of `lambda_min` is its residual.
        """
        count = self.num_products
        products = count.astype(self.smallest.dtype)
        found = self.top.estimates() | {
            "lambda_min": Estimate(self.smallest, self.smallest_residual, count),
            "trace": self.trace,
            "frobenius": self.frobenius,
        }
        if self.logdet is not None:
            found |= self.logdet.estimates()
        return found | {"num_products": Estimate(products, jnp.zeros_like(products), count)}

    def summary(self) -> str:
        """The report as a text table; a `UserError` if it holds a population (vmap)."""
        if np.ndim(self.status):
            raise UserError(
                "CurvatureReport.summary: this is a population; take one member, such as "
                "jax.tree.map(lambda x: x[0], report)."
            )
        status = Status(int(self.status)).name.replace("_", " ").lower()
        size = f"{int(self.density.size):,}"
        rows = [f"curvature on {size} parameters, {int(self.num_products)} products, {status}"]
        top = self.top
        for i, value in enumerate(np.asarray(top.values)):
            mark = f"+- {top.value_errors[i]:.1e}" if top.converged[i] else "   not converged"
            rows.append(f"  lambda_{i + 1:<9} {value:12.5g} {mark}")
        rows.append(f"  {'lambda_min':<16} {self.smallest:12.5g} +- {self.smallest_residual:.1e}")
        for name in ("trace", "frobenius"):
            value, error, _ = getattr(self, name)
            rows.append(f"  {name:<16} {value:12.5g} +- {error:.1e}")
        if self.logdet is not None:
            value, error = self.logdet.value, self.logdet.standard_error
            status = Status(int(self.logdet.status))
            note = "" if status == Status.OK else f" {status.name.replace('_', ' ').lower()}"
            rows.append(f"  {'logdet':<16} {value:12.5g} +- {error:.1e}{note}")
        return "\n".join(rows)

    def __str__(self) -> str:
        return self.summary()


@solver
def curvature_report(
    operator: Operator,
    *,
    key: jax.Array,
    k: int | None = None,
    tol: float | jax.Array = 1e-3,
    relative_error: float | jax.Array | None = None,
    num_steps: int = 48,
    num_probes: int = 3,
    max_trace_products: int = 100,
    damping: float | jax.Array | None = None,
    vectors: bool = False,
    probes_per_product: int = 1,
) -> CurvatureReport:
    """Both ends of the spectrum, trace, Frobenius norm, density and log-determinant of one model.

    Use it for a first look, or if you need several of these quantities: they share their products.
    `print` the result for a table.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.linspace(-1.0, 9.0, 101) * w**2) / 2
    >>> operator = hessian(loss, jnp.ones(101), jnp.ones(8))
    >>> report = curvature_report(operator, key=jax.random.key(0), k=2)
    >>> [round(float(x), 2) for x in (*report.top.values, report.smallest)]
    [9.0, 8.9, -1.0]
    >>> bool(abs(report.trace.value - 404) < 3 * report.trace.standard_error < 40)
    True

    One Lanczos run with a basis gives the k largest eigenvalues, as `top_eigenpairs` does. Probes
    in the complement of their vectors give the density, the smallest eigenvalue, the Frobenius norm
    and the log-determinant. Further probes of one product each then refine the trace until its
    error is small enough. The eigenpairs of the first run add no variance.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the start and the probes.
        k: number of largest eigenvalues, less than the number of parameters; default 10, or as many
            as that allows.
        tol: relative error of these eigenvalues, as in `top_eigenpairs`.
        relative_error: requested error of the trace. If it is given and not reached (for instance
            because the trace is near zero), `status` is `NOT_CONVERGED`. By default the probes stop
            at 0.03; if they do not reach it, `status` does not change, and the standard error shows
            what they reached.
        num_steps: products for each probe of the density, at least 4. On networks the smallest
            eigenvalue takes 30 to 50; its residual shows how well it is known.
        num_probes: number of probes of the density.
        max_trace_products: limit on the further products for the trace, one for each probe.
        damping: number added to A for the log-determinant; None omits the log-determinant.
        vectors: whether to keep the eigenvectors.
        probes_per_product: as in `spectral_density`.

    Raises:
        UserError: an argument does not fit.

    Cost: about `3 k + 10` products, plus `num_steps * num_probes`, plus the further probes. Memory:
    the basis of `top_eigenpairs`, then k + 3 vectors. On CPU, do not call this function inside your
    own jit if the loss convolves (`sharpjax.loops`).
    """
    caller = "curvature_report"
    check_operator(caller, operator)
    size = tree.size(operator.like)
    if size == 1:
        raise UserError(
            f"{caller}: one parameter has one eigenvalue, and nothing beside it to probe. Take "
            f"top_eigenpairs(operator, key=key, k=1)."
        )
    k = min(10, size - 1) if k is None else whole_number(caller, "k", k)
    if k >= size:
        raise UserError(
            f"{caller}: k={k} of {size} eigenvalues leave nothing to probe; k < {size}."
        )
    num_steps = whole_number(caller, "num_steps", num_steps, least=4)
    num_probes = whole_number(caller, "num_probes", num_probes)
    further = whole_number(caller, "max_trace_products", max_trace_products, least=0)
    width = whole_number(caller, "probes_per_product", probes_per_product)
    if num_probes % width:
        raise UserError(
            f"{caller}: probes_per_product={width} does not divide num_probes={num_probes}."
        )
    check_error(caller, "tol", tol)
    check_error(caller, "relative_error", relative_error)
    check_error(caller, "damping", damping)
    key = check_key(caller, key)
    keys, to_accuracy = _split(key), relative_error is not None
    relative_error = _USUAL_ERROR if relative_error is None else relative_error

    top = top_eigenpairs(operator, key=keys[0], k=k, tol=tol)
    frame, atoms = density.keep_converged(top)
    probed = quadrature.run(
        *(operator, keys[1]),
        num_steps=num_steps,
        num_probes=num_probes,
        probes_per_product=width,
        frame=frame,
    )
    targets = _begin_trace(probed, atoms, relative_error)
    more = None
    if further:
        more = quadrature.run(
            *(operator, keys[2]),
            num_steps=1,
            num_probes=further,
            frame=frame,
            criterion=_trace_is_within,
            targets=targets,
        )
    return _finish(size, vectors, to_accuracy, top, atoms, probed, more, targets, damping)


class _Moments(NamedTuple):
    """Moments from the first product of each probe.

    Attributes:
        count: number of probes.
        values, squares: sums of `u'Au` and `|Au|^2`, in units of `unit`.
        unit: a power of two.
        furthest: how far from the mean an eigenvalue was found, times the root of 2.
        known: the sum of the atoms.
        relative_error: the requested error.
    """

    count: jax.Array
    values: jax.Array
    squares: jax.Array
    unit: jax.Array
    furthest: jax.Array
    known: jax.Array
    relative_error: jax.Array


def _add_moments(probed: quadrature.Probed, moments: _Moments) -> _Moments:
    used = jnp.arange(len(probed.alpha), dtype=jnp.int32) < probed.num_probes
    alpha, beta = (jnp.where(used, x[:, 0] / moments.unit, 0) for x in (probed.alpha, probed.beta))
    return moments._replace(
        count=moments.count + probed.num_probes.astype(alpha.dtype),
        values=moments.values + jnp.sum(alpha),
        squares=moments.squares + jnp.sum(jnp.square(alpha) + jnp.square(beta)),
    )


def _trace(dimension, moments: _Moments) -> tuple[jax.Array, jax.Array]:
    mean = moments.values / moments.count
    spread = jnp.maximum(moments.squares / moments.count - jnp.square(mean), 0)
    error = jnp.sqrt(2 * spread / ((dimension + 2) * moments.count))
    unit = moments.unit * dimension
    # As in `Density.trace_of`: a few probes do not show how large a single eigenvalue is.
    least = moments.furthest / jnp.sqrt(moments.count)
    return unit * mean + moments.known, jnp.maximum(unit * error, least)


def _trace_is_within(probed: quadrature.Probed, targets: _Moments) -> jax.Array:
    value, error = _trace(probed.dimension, _add_moments(probed, targets))
    return error <= targets.relative_error * jnp.abs(value)


@jax.jit
def _split(key):
    return tuple(jax.random.split(key, 3))


@jax.jit
def _begin_trace(probed, atoms, relative_error) -> _Moments:
    zero = jnp.zeros_like(probed.dimension)
    known = jnp.sum(jnp.where(jnp.isnan(atoms), 0, atoms))
    unit = units.known(units.power_of_two((probed.alpha[:, 0], probed.beta[:, 0])))
    mean, _ = quadrature.mean_and_error(probed, probed.nodes)
    furthest = quadrature.least_error(probed, probed.nodes, mean)
    furthest *= jnp.sqrt(probed.num_probes.astype(zero.dtype))
    target = jnp.asarray(relative_error, zero.dtype)
    moments = _Moments(zero, zero, zero, unit, furthest, known, target)
    return _add_moments(probed, moments)


@tells_unknown
@functools.partial(jax.jit, static_argnames=("size", "vectors", "to_accuracy"))
def _finish(
    size, vectors, to_accuracy, top, atoms, probed, more, targets, damping
) -> CurvatureReport:
    moments, num_products = targets, top.num_products + probed.num_products
    finite = probed.finite
    if more is not None:
        moments = _add_moments(more, targets)
        num_products = num_products + more.num_products
        finite = finite & more.finite
    value, error = _trace(probed.dimension, moments)
    met = error <= targets.relative_error * jnp.abs(value)
    shape = density.from_probes(False, size, probed, atoms)
    status = jnp.where(met | (not to_accuracy), Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(finite, status, Status.NON_FINITE)
    status = jnp.maximum(status, top.status)
    log = None
    if damping is not None:
        none = (jnp.zeros_like(value),) * 2
        log = logdet.from_probes(False, probed, atoms, damping, none)
    smallest, residual = quadrature.lowest(probed)
    return CurvatureReport(
        top=top if vectors else top._replace(vectors=None),
        smallest=smallest,
        smallest_residual=residual,
        trace=Estimate(value, error, num_products),
        frobenius=shape.estimates()["frobenius"]._replace(num_evaluations=num_products),
        density=shape,
        logdet=log,
        num_products=num_products,
        status=status.astype(jnp.int32),
    )
