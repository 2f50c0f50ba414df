"""The density of the eigenvalues, with its standard error."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import check_error
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_key, check_number, check_operator
from sharpjax.geometry.spectra import quadrature
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

_MIN_PROBES = 2
_GRID = 128  # points at which the error is computed during probing
_WIDTHS = 100  # widths of the default kernel in the range of the nodes
_CHUNK = 64  # points of a grid computed at a time, to save memory


class Curve(NamedTuple):
    """A function on a grid, and its standard error; both have the shape of the grid."""

    value: jax.Array
    standard_error: jax.Array


class Density(NamedTuple):
    """A spectrum as nodes with weights, and some eigenvalues known individually (atoms).

    Attributes:
        nodes, weights: (N, m), N probes of m products. The weights of a probe sum to 1; those of
            rows not probed and nodes not reached are 0.
        residuals: (N, m); an eigenvalue lies this near to the node; at least the noise of products.
        atoms: (k,), the eigenvalues known individually, each a share `1 / size` of the spectrum.
            NaN marks one that had not converged; it counts as part of the probed spectrum.
        size: the number of eigenvalues.
        num_probes, num_products: int32.
        status: `Status`, int32.
    """

    nodes: jax.Array
    weights: jax.Array
    residuals: jax.Array
    atoms: jax.Array
    size: jax.Array
    num_probes: jax.Array
    num_products: jax.Array
    status: jax.Array

    def width(self) -> jax.Array:
        """The default width of the kernel: a hundredth of the range of the nodes."""
        return _default_width(self)

    def grid(
        self,
        num_points: int = 512,
        *,
        sigma: float | jax.Array | None = None,
        atoms: bool = True,
    ) -> jax.Array:
        """A grid, (num_points,), over nodes and atoms and four kernel widths beyond each end.

        Args:
            num_points: number of points.
            sigma: as in `evaluate`, or 0.
            atoms: as in `evaluate`; False covers the nodes only.
        """
        caller = "Density.grid"
        num_points = whole_number(caller, "num_points", num_points)
        return _grid(num_points, atoms, self, _check_width(caller, sigma, or_zero=True))

    def evaluate(
        self,
        grid: jax.typing.ArrayLike,
        sigma: float | jax.Array | None = None,
        *,
        atoms: bool = True,
    ) -> Curve:
        """The density `1/n sum_i g(x - lambda_i)` with a normal kernel g; its integral is 1.

        `size` times the density is a number of eigenvalues per unit.

        Args:
            grid: any shape.
            sigma: standard deviation of the kernel, > 0; default `width()`. A traced one that is
                not gives NaN.
            atoms: False omits the individually known eigenvalues, for figures that draw them
                separately; the integral is then less than 1.

        Returns:
            The density and its standard error, which is that of the probes alone. It includes
            neither the bias of the kernel, which widens anything narrower than sigma, nor that of
            the quadrature. m products give m nodes: if sigma is below their distance, the density
            is a row of spikes, and once values have converged, rounding decides where these lie.
        """
        sigma = _check_width("Density.evaluate", sigma)
        return _evaluate(_normal_density, atoms, self, grid, sigma)

    def cumulative(self, grid: jax.typing.ArrayLike, sigma: float | jax.Array = 0.0) -> Curve:
        """The share of eigenvalues up to x, including atoms; sigma as in `evaluate`, or 0."""
        sigma = _check_width("Density.cumulative", sigma, or_zero=True)
        return _evaluate(_normal_share, True, self, grid, sigma)

    def trace_of(self, fn: Callable[[jax.Array], jax.Array]) -> Estimate:
        """`tr f(A)` for an elementwise f; the quadrature is exact for polynomials of degree < 2 m.

        The standard error comes from the nodes. Its lower bound is the error due to one eigenvalue
        at the node theta where f is furthest from the mean, `sqrt(2 / N) |f(theta) - mean|`. This
        bound is needed because a few probes do not show the size of a dominant eigenvalue. Without
        it, an error of nominal rate .95 covered in .76 of runs for one probe and .89 for four; with
        it, in .99 and more.

        >>> from sharpjax.geometry import hessian
        >>> def loss(w, batch):
        ...     return jnp.mean(batch) * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * w**2) / 2
        >>> operator = hessian(loss, jnp.ones(3), jnp.ones(8))
        >>> found = spectral_density(operator, key=jax.random.key(0), num_probes=512)
        >>> squares = found.trace_of(jnp.square)
        >>> bool(abs(squares.value - 14) < 3 * squares.standard_error < 1)
        True
        """
        return _trace_of(self, fn(self.nodes), fn(self.atoms))

    def estimates(self) -> dict[str, Estimate]:
        """`trace`, and `frobenius`, the root of the sum of the squared eigenvalues."""
        return _estimates(self)


@solver
def spectral_density(
    operator: Operator,
    *,
    key: jax.Array,
    num_steps: int = 64,
    num_probes: int = 4,
    relative_error: float | jax.Array | None = None,
    atoms: Eigenpairs | None = None,
    probes_per_product: int = 1,
) -> Density:
    """The density of the eigenvalues of an operator, with its standard error.

    Use it to picture the whole spectrum, and for `tr f(A)` of any f (`Density.trace_of`). To
    resolve the largest eigenvalues individually, find them with `top_eigenpairs` and pass them as
    `atoms`.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(-500.0, 500.0) * w**2) / 2
    >>> operator = hessian(loss, jnp.ones(1000), jnp.ones(8))
    >>> found = spectral_density(operator, key=jax.random.key(0))
    >>> half = found.cumulative(jnp.float32(0))
    >>> bool(abs(half.value - 0.5) < 3 * half.standard_error), int(found.num_products)
    (True, 256)

    The method is stochastic Lanczos quadrature. Each probe is a uniform direction u with m Lanczos
    steps from it. The Ritz values and weights give `u' f(A) u = sum_k w_k f(theta_k)`, with mean
    `tr f(A) / n`. One probe has the variance `2 / (n + 2) (tr f(A)^2 / n - (tr f(A) / n)^2)`, which
    the same nodes estimate. On a network of 1e6 parameters one probe gives the bulk to one part in
    a thousand. Several probes are useful for rare eigenvalues and for small n.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes; probe i depends only on the key and on i.
        num_steps: m, products for each probe.
        num_probes: limit on the probes.
        relative_error: stop when the integral of the standard error of the density is at most this
            share of the integral of the density, at the default width of the kernel. This is
            checked after each probe (or group that shares a product), from two probes on. If it is
            not reached, `status` is `NOT_CONVERGED`.
        atoms: eigenvalues with vectors, as `top_eigenpairs` returns them; those that have not
            converged are ignored. The others are removed from the probes and added exactly. So they
            add no variance, and the rest is resolved on its own scale.
        probes_per_product: number of probes that share one vmapped product; divides `num_probes`.
            Values above 1 pay on accelerators, where launches limit small products; not on CPU.

    Raises:
        UserError: an argument does not fit.

    Cost: `num_steps * num_probes` products, fewer if a probe exhausts its space. Memory: three
    vectors for each of `probes_per_product`, and those of `atoms`. No basis is stored and nothing
    is reorthogonalised; up to rounding, the density is the same. On CPU, do not call this function
    inside your own jit if the loss convolves (`sharpjax.loops`).

    References: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017; Ghorbani, Krishnan and
    Xiao, arXiv 1901.10159.
    """
    caller = "spectral_density"
    check_operator(caller, operator)
    num_steps = whole_number(caller, "num_steps", num_steps)
    num_probes = whole_number(caller, "num_probes", num_probes)
    width = whole_number(caller, "probes_per_product", probes_per_product)
    if num_probes % width:
        raise UserError(
            f"{caller}: probes_per_product={width} does not divide num_probes={num_probes}."
        )
    check_error(caller, "relative_error", relative_error)
    key = check_key(caller, key)
    check_atoms(caller, operator, atoms)
    frame, values = (None, None) if atoms is None else keep_converged(atoms)
    probed = quadrature.run(
        *(operator, key),
        num_steps=num_steps,
        num_probes=num_probes,
        probes_per_product=width,
        frame=frame,
        criterion=None if relative_error is None else _is_within,
        targets=() if relative_error is None else jnp.asarray(relative_error),
    )
    return from_probes(relative_error is not None, tree.size(operator.like), probed, values)


def check_atoms(caller: str, operator: Operator, atoms: Eigenpairs | None) -> None:
    """Refuses eigenpairs that cannot be removed from the probes.

    Raises:
        UserError: names `caller`.
    """
    if atoms is None:
        return
    if not isinstance(atoms, Eigenpairs) or atoms.vectors is None:
        raise UserError(
            f"{caller}: atoms must be eigenpairs with their vectors, such as "
            f"top_eigenpairs(operator, key=key, k=10); got "
            f"{type(atoms).__name__}{' without vectors' * isinstance(atoms, Eigenpairs)}."
        )
    first = jax.eval_shape(functools.partial(tree.index, i=0), atoms.vectors)
    like = jax.eval_shape(tree.widen, operator.like)
    tree.check_same_structure(caller, "atoms.vectors[0]", first, like)
    if len(atoms.values) >= tree.size(like):
        raise UserError(
            f"{caller}: atoms hold {len(atoms.values)} of {tree.size(like)} eigenvalues; there is "
            f"nothing left to probe."
        )


@tells_unknown
@jax.jit
def keep_converged(atoms: Eigenpairs) -> tuple[Params, jax.Array]:
    """Vectors and values; for a pair that has not converged, a zero vector and the value NaN."""
    ok = atoms.converged

    def leaf(v):
        return jnp.where(ok.reshape(-1, *(1,) * (v.ndim - 1)), v, 0)

    return jax.tree.map(leaf, atoms.vectors), jnp.where(ok, atoms.values, jnp.nan)


@functools.partial(jax.jit, static_argnames=("has_target", "size"))
def from_probes(
    has_target: bool, size: int, probed: quadrature.Probed, values: jax.Array | None
) -> Density:
    """The density from probes and individually known eigenvalues `values`; NaN marks an absent one.

    `has_target`: whether `probed.met` decides the status.
    """
    met = probed.met if has_target else probed.finite
    met &= units.has_digits(units.power_of_two(probed.nodes))
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(probed.finite, status, Status.NON_FINITE)
    # A probe that met a NaN tells nothing.
    nodes = jnp.where(probed.finite, probed.nodes, jnp.nan)
    zero = jnp.zeros_like(probed.dimension)
    return Density(
        nodes=nodes,
        weights=probed.weights,
        residuals=probed.residuals,
        atoms=jnp.full(0, zero) if values is None else values,
        size=zero + float(size),
        num_probes=probed.num_probes,
        num_products=probed.num_products,
        status=status.astype(jnp.int32),
    )


def _probed(density: Density) -> quadrature.Probed:
    known = jnp.sum(~jnp.isnan(density.atoms)).astype(density.size.dtype)
    return quadrature.Probed(
        nodes=density.nodes,
        weights=density.weights,
        residuals=density.residuals,
        alpha=density.nodes,
        beta=density.nodes,
        dimension=density.size - known,
        num_probes=density.num_probes,
        num_products=density.num_products,
        finite=density.status != Status.NON_FINITE,
        met=density.status == Status.OK,
    )


def _check_width(caller, sigma, *, or_zero=False):
    if sigma is not None:
        check_number(caller, "sigma", sigma, or_zero=or_zero)
    return sigma


def _width(probed: quadrature.Probed) -> jax.Array:
    low, high = quadrature.extent(probed)
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    # A spectrum of one point has no range: then its size is used, or 1 if it is zero.
    narrow = high - low <= 1e-5 * size
    span = jnp.where(narrow, jnp.where(size > 0, size, 1), high - low)
    return span / _WIDTHS


def _is_within(probed: quadrature.Probed, relative_error) -> jax.Array:
    sigma = _width(probed)
    low, high = quadrature.extent(probed)
    unit = jnp.linspace(0, 1, _GRID, dtype=sigma.dtype)
    grid = low - 4 * sigma + unit * (high - low + 8 * sigma)

    def error(x):
        values = _normal_density(x - probed.nodes, sigma)
        return quadrature.mean_and_error(probed, values)[1]

    total = jnp.mean(jax.lax.map(error, grid, batch_size=16)) * (high - low + 8 * sigma)
    enough = probed.num_probes >= _MIN_PROBES
    return enough & (total <= relative_error.astype(total.dtype))


@jax.jit
def _default_width(density: Density) -> jax.Array:
    return _width(_probed(density))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grid(num_points, atoms, density: Density, sigma) -> jax.Array:
    probed = _probed(density)
    low, high = quadrature.extent(probed)
    if atoms:
        known = ~jnp.isnan(density.atoms)
        low = jnp.minimum(low, jnp.min(density.atoms, where=known, initial=jnp.inf))
        high = jnp.maximum(high, jnp.max(density.atoms, where=known, initial=-jnp.inf))
    margin = 4 * (_width(probed) if sigma is None else sigma)
    return jnp.linspace(low - margin, high + margin, num_points)


@jax.jit
def _trace_of(density: Density, nodes, atoms) -> Estimate:
    """From the values of f at the nodes and at the atoms."""
    probed = _probed(density)
    mean, error = quadrature.mean_and_error(probed, nodes)
    error = jnp.maximum(probed.dimension * error, quadrature.least_error(probed, nodes, mean))
    known = jnp.where(jnp.isnan(density.atoms), 0, atoms)
    return Estimate(probed.dimension * mean + jnp.sum(known), error, density.num_products)


@jax.jit
def _estimates(density: Density) -> dict[str, Estimate]:
    unit = units.known(units.power_of_two((density.nodes, jnp.nan_to_num(density.atoms))))
    squares = density.trace_of(lambda x: jnp.square(x / unit))
    root = jnp.sqrt(squares.value)
    error = squares.standard_error / jnp.where(root > 0, 2 * root, 1)
    return {
        "trace": density.trace_of(lambda x: x),
        "frobenius": Estimate(root * unit, error * unit, density.num_products),
    }


@functools.partial(jax.jit, static_argnames=("kernel", "atoms"))
def _evaluate(kernel, atoms, density: Density, grid, sigma) -> Curve:
    probed = _probed(density)
    sigma = jnp.asarray(_width(probed) if sigma is None else sigma, density.nodes.dtype)
    sigma = jnp.where(sigma >= 0, sigma, jnp.nan)  # a traced one could not be checked
    share = probed.dimension / density.size

    def at(x):
        mean, error = quadrature.mean_and_error(probed, kernel(x - density.nodes, sigma))
        value = share * mean
        if atoms:
            known = jnp.where(jnp.isnan(density.atoms), 0, kernel(x - density.atoms, sigma))
            value = value + jnp.sum(known) / density.size
        return Curve(value, share * error)

    grid = jnp.asarray(grid, density.nodes.dtype)
    points = jnp.ravel(grid)
    found = jax.lax.map(at, points, batch_size=min(_CHUNK, max(1, points.size)))
    return jax.tree.map(lambda y: y.reshape(grid.shape), found)


def _normal_density(distance, sigma):
    return jnp.exp(-jnp.square(distance / sigma) / 2) / (sigma * math.sqrt(2 * math.pi))


def _normal_share(distance, sigma):
    soft = jax.scipy.special.ndtr(distance / jnp.where(sigma == 0, 1, sigma))
    return jnp.where(sigma == 0, (distance >= 0).astype(distance.dtype), soft)
