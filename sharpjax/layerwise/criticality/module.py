"""Module criticality: how far, and with how much noise, a layer can move towards its start."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry import landscape
from sharpjax.geometry.loss import checks
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.operators.blocks import Groups
from sharpjax.geometry.status import Status
from sharpjax.layerwise.criticality.replacement import taken

_ALPHAS = tuple(i / 10 for i in range(11))
_SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Curve(NamedTuple):
    """The loss with one layer between its initial and its trained values.

    Attributes:
        alpha: [A], the positions: 0 is initial, 1 trained.
        loss: [A], with all other layers as trained.
        distance: |theta_F - theta_0| of the layer.
    """

    alpha: np.ndarray
    loss: np.ndarray
    distance: float


class ModuleCriticality(NamedTuple):
    """The criticality of one layer on a grid.

    Attributes:
        value: mu, the least alpha^2 distance^2 / sigma^2 on the grid with a mean loss of at most
            `epsilon`; infinity if there is no such point. NaN if this is not known: a parameter is
            not finite, or no mean loss is at most `epsilon` and one is NaN.
        alpha, sigma: the grid point of `value`; NaN if there is none. If several are equal, the one
            with the least alpha, then the largest sigma.
        low, high: `value` if all mean losses were two standard errors lower, and higher: the
            uncertainty from the draws. NaN with a single draw.
        at_edge: whether sigma is the largest of the grid, so that a larger one might be allowed,
            too.
        distance: |theta_F - theta_0| of the layer.
        loss, standard_error: [A, S], the mean over the draws, and its error.
        alphas, sigmas: [A], [S], the grid.
        epsilon: the largest allowed mean loss.
        status: `geometry.Status`; `NON_FINITE` if a parameter, or a loss on the grid, is not
            finite. A mean loss of NaN counts as above `epsilon`. `geometry.check` raises for this
            status.
    """

    value: float
    alpha: float
    sigma: float
    low: float
    high: float
    at_edge: bool
    distance: float
    loss: np.ndarray
    standard_error: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    epsilon: float
    status: jax.Array


def interpolation(
    loss: Any,
    params: Any,
    initial: Any,
    layer: str,
    batch: Any,
    *,
    alphas: Any = _ALPHAS,
    groups: Groups | None = None,
    microbatch_size: int | None = None,
) -> Curve:
    """The loss along the line of one layer from its initial to its trained values:

        L(theta_0 + alpha (theta_F - theta_0) of the layer, theta_F of all others).

    The loss can be any function of parameters and batch: an error rate gives the curve of errors.
    With BatchNorm in evaluation mode, the statistics are always those that the loss holds.

    Cost: one value of the loss for each position; one program for all positions and layers.

    Args:
        loss, batch, microbatch_size: as in `geometry.landscape`.
        params, initial: trained and initial parameters, trees of one structure.
        layer, groups: as in `replaced`.
        alphas: positions, by default 0, 0.1, ..., 1; values outside [0, 1] extrapolate.

    Raises:
        UserError: an unknown layer, initial values of another structure, positions that are not
            finite numbers; anything that `landscape` refuses, such as parameters that are not
            floats.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w["a"] ** 2) + w["b"]
    >>> initial = {"a": jnp.zeros(2), "b": jnp.float32(0)}
    >>> trained = {"a": jnp.ones(2), "b": jnp.float32(1)}
    >>> interpolation(loss, trained, initial, "a", jnp.ones(1), alphas=[0, 0.5, 1]).loss.tolist()
    [1.0, 1.5, 3.0]
    """
    caller = "criticality.interpolation"
    alphas = _grid(caller, "alphas", alphas, "a list of finite numbers", -np.inf)
    batch = _checked_batch(caller, loss, params, batch, microbatch_size)
    start, way, distance = _way(caller, params, initial, layer, groups)
    found = landscape(loss, start, batch, way, x=alphas, microbatch_size=microbatch_size)
    return Curve(np.asarray(found.x), np.asarray(found.values), distance)


def module_criticality(
    loss: Any,
    params: Any,
    initial: Any,
    layer: str,
    batch: Any,
    *,
    epsilon: float,
    key: jax.Array,
    alphas: Any = _ALPHAS,
    sigmas: Any = _SIGMAS,
    num_draws: int = 10,
    groups: Groups | None = None,
    microbatch_size: int | None = None,
) -> ModuleCriticality:
    """The criticality of a layer (Chatterji, Neyshabur and Sedghi, arXiv 1912.00528):

        mu = min alpha^2 |theta_F - theta_0|^2 / sigma^2   over alpha and sigma in [0, 1] with
        E_u L(theta_0 + alpha (theta_F - theta_0) + u, theta_F of all others) <= epsilon

    Here theta_F and theta_0 are the layer's trained and initial values, and u is normal with
    standard deviation sigma in each entry. mu is 0 if the mean loss is small enough with noise
    around the initial values. The minimum is over a grid, so it is an upper bound of the true
    minimum. The mean is over draws, with the same normal numbers at every point of the grid. The
    criticality of a network is the sum over its layers.

    Cost: A S D values of the loss, 1,100 by default; one program for all layers. Memory: three
    copies of the parameters, and the activations of one microbatch.

    Args:
        loss: the paper uses the error rate on training data; any `loss(params, batch)` works.
        params, initial, layer, groups, batch, microbatch_size: as in `interpolation`.
        epsilon: the largest allowed mean loss.
        key: of the draws.
        alphas: grid of alpha, in [0, 1].
        sigmas: grid of sigma, in (0, 1], in units of the parameters.
        num_draws: D.

    Raises:
        UserError: as in `interpolation`; a grid outside its bounds, an epsilon that is not finite.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w["a"] ** 2)
    >>> initial, trained, key = {"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, jax.random.key(0)
    >>> found = module_criticality(loss, trained, initial, "a", jnp.ones(1), epsilon=0.1, key=key)
    >>> found.value, found.alpha  # at its start this layer does best
    (0.0, 0.0)
    """
    caller = "criticality.module_criticality"
    key, count = check_key(caller, key), whole_number(caller, "num_draws", num_draws)
    epsilon = float(_numbers(caller, "epsilon", epsilon, "a finite number, of the loss", ndim=0))
    alphas = _grid(caller, "alphas", alphas, "a list of numbers in [0, 1]", 0, 1)
    least = np.nextafter(0, 1)
    sigmas = _grid(caller, "sigmas", sigmas, "a list of numbers in (0, 1]", least, 1)
    batch = _checked_batch(caller, loss, params, batch, microbatch_size)
    start, way, distance = _way(caller, params, initial, layer, groups)
    noiseless = tree.zeros_like(start)
    draws, statuses = [], []
    for own in jax.random.split(key, count):
        noise = taken(caller, noiseless, layer, tree.random_normal(own, start), groups)
        found = landscape(
            loss, start, batch, [way, noise], x=alphas, y=sigmas, microbatch_size=microbatch_size
        )
        draws.append(np.asarray(found.values, np.float64))
        statuses.append(int(found.status))
    with np.errstate(invalid="ignore"):  # of losses that are not finite; the status reports them
        mean = np.mean(draws, axis=0)
        spread = np.std(draws, axis=0, ddof=1) if count > 1 else np.full_like(mean, np.nan)
        error = spread / count**0.5
        costs = (alphas[:, None] * distance / sigmas) ** 2
        twice = np.where(np.isfinite(mean), 2 * error, 0)
    value, alpha, sigma = _least(mean, costs, alphas, sigmas, epsilon)
    low, high = (
        _least(mean + sign * twice, costs, alphas, sigmas, epsilon)[0] if count > 1 else np.nan
        for sign in (-1, 1)
    )
    if not (np.isfinite(distance) and _are_finite(start)):
        statuses.append(int(Status.NON_FINITE))
        value = alpha = sigma = low = high = np.nan
    return ModuleCriticality(
        value, alpha, sigma, low, high, bool(sigma == sigmas.max()), distance, mean, error,
        alphas, sigmas, epsilon, jnp.int32(max(statuses)),
    )  # fmt: skip


def _least(
    loss: np.ndarray, costs: np.ndarray, alphas: np.ndarray, sigmas: np.ndarray, epsilon: float
) -> tuple[float, float, float]:
    borne = loss <= epsilon  # NaN is not
    if not borne.any():
        return np.nan if np.isnan(loss).any() else np.inf, np.nan, np.nan
    places = np.argwhere(borne)
    i, j = min(places, key=lambda p: (costs[tuple(p)], alphas[p[0]], -sigmas[p[1]]))
    return float(costs[i, j]), float(alphas[i]), float(sigmas[j])


def _way(
    caller: str, params: Any, initial: Any, layer: str, groups: Groups | None
) -> tuple[Any, Any, float]:
    """The model with the layer at its start; the way from there to the trained one; its length."""
    start = taken(caller, params, layer, initial, groups, argument="initial")
    way = jax.tree.map(lambda a, b: tree.widen(a) - tree.widen(b), params, start)
    return start, way, _norm(way)


def _norm(way: Any) -> float:
    """The Euclidean norm, computed so that no square over- or underflows."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(way)]
    largest = float(np.max([np.max(np.abs(leaf), initial=0) for leaf in leaves]))
    if not 0 < largest < np.inf:
        return largest
    parts = (np.sum(np.square(leaf.astype(np.float64) / largest)) for leaf in leaves)
    return largest * float(np.sqrt(sum(parts)))


def _are_finite(params: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree.widen(params)))


def _checked_batch(
    caller: str, loss: Any, params: Any, batch: Any, microbatch_size: int | None
) -> Any:
    """The batch in the form `landscape` takes; errors of its checks name `caller`."""
    batch = checks.as_batch(caller, batch)
    checks.check_problem(caller, loss, params, batch, microbatch_size, "value")
    return batch


def _grid(
    caller: str, name: str, given: Any, asked: str, least: float, largest: float = np.inf
) -> np.ndarray:
    found = _numbers(caller, name, given, asked, ndim=1)
    if not found.size or np.any((found < least) | (found > largest)):
        raise UserError(f"{caller}: {name}={_shown(given)}; give {asked}.")
    return found


def _numbers(caller: str, name: str, given: Any, asked: str, *, ndim: int) -> np.ndarray:
    """Finite numbers in float64, in an array of `ndim` axes."""
    try:
        found = np.asarray(given)
        good = found.ndim == ndim and found.dtype != bool and found.dtype.kind not in "USOc"
        found = found.astype(np.float64) if good else None
    except (TypeError, ValueError):
        found = None
    if found is None or not np.isfinite(found).all():
        raise UserError(f"{caller}: {name}={_shown(given)}; give {asked}.")
    return found


def _shown(given: Any) -> str:
    return " ".join(repr(given).split())
