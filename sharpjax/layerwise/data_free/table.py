"""The data-free metrics of all layers of a network, or of many networks, in one table."""

import enum
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax.errors import UserError
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.layerwise.data_free import layers as found_in
from sharpjax.layerwise.data_free import marchenko_pastur, power_law
from sharpjax.layerwise.data_free.convention import (
    SCALE_FREE,
    Convention,
    check_convention,
    other_rule_below,
)
from sharpjax.layerwise.data_free.eigenvalues import (
    LEAST,
    MOST,
    eigenvalues,
    log_power_sum,
    moments,
)
from sharpjax.layerwise.data_free.goodness_of_fit import goodness_of_fit
from sharpjax.layerwise.data_free.randomised import Randomised, randomised

_EPS = float(np.finfo(np.float64).eps)
OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0  # limits of alpha in WeightWatcher's warnings


class Status(enum.IntEnum):
    """The outcome for a layer. With any status but OK, numbers that do not exist are NaN."""

    OK = 0
    NOT_A_MATRIX = 1
    """Fewer than two axes, or an empty array: no numbers."""
    NOT_FINITE = 2
    """NaN or infinite weights: no numbers."""
    TOO_FEW = 3
    """Fewer eigenvalues than `min_evals`: no numbers."""
    LOW_RANK = 4
    """Fewer eigenvalues above the floor than `min_kept`: no power law."""
    NO_TAIL = 5
    """All eigenvalues above the floor are equal up to rounding: no power law."""
    OUT_OF_RANGE = 6
    """The largest weight is above 1e100 or below 1e-100, so squares leave float64: no numbers."""
    OTHER_RULE = 7
    """Fewer than 20 eigenvalues above the floor, with `WEIGHTWATCHER`: the program fits alpha, D,
    xmin and sigma by another rule, so these numbers, and those computed from them, differ."""


class Metrics(NamedTuple):
    """Columns of the table, float64 [L], or [B, L] for a population; formulas in `docs/layers.md`.

    Attributes, by the names of WeightWatcher if it has one:
        alpha, D, xmin, sigma, num_pl_spikes: of the power law, `power_law.PowerLaw`.
        alpha_weighted: alpha log10 lambda_max, also called alpha-hat.
        log_alpha_norm: log10 sum lambda^alpha.
        norm .. condition_number: `eigenvalues.moments`.
        sigma_mp .. mp_softrank: `marchenko_pastur.Bulk`.
        max_rand_eval .. ww_maxdist: `randomised.Randomised`; NaN without a key.
        p_value, p_error, alpha_low, alpha_high: `goodness_of_fit`; NaN if not requested.
        hill: `power_law.hill` of the upper tenth of the eigenvalues above 0, at least two.
        kurtosis: of the entries, 3 for a normal distribution.
    """

    alpha: Any
    D: Any
    xmin: Any
    sigma: Any
    num_pl_spikes: Any
    alpha_weighted: Any
    log_alpha_norm: Any
    norm: Any
    log_norm: Any
    spectral_norm: Any
    log_spectral_norm: Any
    stable_rank: Any
    matrix_rank: Any
    rank_loss: Any
    weak_rank_loss: Any
    entropy: Any
    xmax: Any
    sv_max: Any
    sv_min: Any
    detX_num: Any
    detX_val: Any
    nuclear_norm: Any
    effective_rank: Any
    participation_ratio: Any
    condition_number: Any
    sigma_mp: Any
    bulk_min: Any
    bulk_max: Any
    num_spikes: Any
    mp_softrank: Any
    max_rand_eval: Any
    rand_distance: Any
    ww_softrank: Any
    ww_maxdist: Any
    p_value: Any
    p_error: Any
    alpha_low: Any
    alpha_high: Any
    hill: Any
    kurtosis: Any


class Table(NamedTuple):
    """A row for each layer.

    Attributes:
        names: of the layers, in the order of the leaves of the parameters.
        kinds: 'dense', 'embedding', 'attention', 'convolution', 'stack', 'none'.
        N, M: longer and shorter side of the matrices of a layer, [L].
        Q: N / M.
        num_evals: number of eigenvalues of a layer, M for each of its matrices.
        status: `Status`, int32 [L], or [B, L] for a population.
        metrics: the columns.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    N: np.ndarray
    M: np.ndarray
    Q: np.ndarray
    num_evals: np.ndarray
    status: np.ndarray
    metrics: Metrics

    def member(self, i: int) -> "Table":
        """The table of one member of a population."""
        columns = (column[i] for column in self.metrics)
        return self._replace(status=self.status[i], metrics=Metrics(*columns))

    def summary(self) -> dict[str, Any]:
        """The mean of each column over the layers in which it is finite; NaN if there are none."""
        means = {}
        for name, column in self.metrics._asdict().items():
            there = np.isfinite(column)
            count = there.sum(axis=-1)
            total = np.where(there, column, 0).sum(axis=-1)
            means[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]
        return means


def data_free(
    params: Any,
    *,
    layers: Sequence[str] | str | None = None,
    convention: Convention = SCALE_FREE,
    key: jax.Array | None = None,
    num_samples: int = 0,
    population: bool = False,
) -> Table:
    """Every data-free metric of every layer of a network, computed in float64.

    Layers of one shape, and those of all members of a population, form one batch of one program. A
    call inside `jit` is refused; use the building blocks `eigenvalues` and `power_law.fit` there.

    Cost: a singular value decomposition of each matrix (two with a key), and the fits, some 10 ms
    for 5,000 eigenvalues. Programs are compiled once for each shape.

    Args:
        params: any tree of weights: Linen, NNX, plain dictionaries, factors of `sharpjax.nn.svd`.
            Layers are the leaves named `kernel` or `embedding`; in a tree without these names, all
            arrays of two axes or more. A kernel of more than two axes is a convolution, read as one
            matrix [in, out] for each position of its window, or a projection of attention, read as
            one matrix.
        layers: globs on the names of `sharpjax.tree.path_names(params)`, instead of that rule.
        convention: `SCALE_FREE`, `WEIGHTWATCHER`, or your own.
        key: for the columns that shuffle or resample; without it they are NaN.
        num_samples: of the bootstrap of alpha, see `goodness_of_fit`; 0 for none.
        population: whether each leaf has an axis of members, or of checkpoints, in front.

    Raises:
        UserError: no layer, a glob that matches none, weights that are not floats, leaves of a
            population with different lengths, samples without a key, no key or several, anything
            but a `Convention`. A layer without numbers raises nothing; its `status` says why.

    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (40, 20)), "bias": jnp.ones(20)}
    >>> table = data_free(params)
    >>> table.names, table.num_evals.tolist(), Status(table.status[0]).name
    (('kernel',), [20], 'OK')
    >>> print(table.metrics.norm.round() == round(float(jnp.sum(params["kernel"] ** 2))))
    [ True]
    """
    key = _check(params, key, num_samples, convention, population)
    axes = int(population)
    members = _members(params) if population else 1
    rows = found_in.find("data_free", params, layers, axes=axes)
    made: list[Any] = [None] * len(rows)
    for places in _groups(rows, convention):
        layer = rows[places[0]]
        batch = np.stack([found_in.matrices(rows[i], axes=axes) for i in places])
        batch = batch.reshape(len(places) * members, *layer.matrices)
        keys = None if key is None else _keys(key, places, members)
        done = _of_group(batch, keys, _static(layer, convention), num_samples)
        done = [np.reshape(column, (len(places), members)) for column in done]
        for j, i in enumerate(places):
            made[i] = [column[j] for column in done]
    columns = [np.stack(column, axis=-1) for column in zip(*made, strict=True)]
    if not population:
        columns = [column[0] for column in columns]
    status, *values = columns
    sides = np.array([sorted(layer.matrices[1:]) for layer in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(sides[:, 0] > 0, sides[:, 1] / sides[:, 0], np.nan)
    return Table(
        names=tuple(layer.name for layer in rows),
        kinds=tuple(layer.kind for layer in rows),
        N=sides[:, 1],
        M=sides[:, 0],
        Q=ratio,
        num_evals=np.array([layer.matrices[0] * min(layer.matrices[1:]) for layer in rows]),
        status=status.astype(np.int32),
        metrics=Metrics(*values),
    )


class _Static(NamedTuple):
    """What a program is compiled for, besides the shape.

    Attributes:
        resolution: eigenvalues with a smaller relative difference count as equal. Rounding each
            weight by eps / 2 moves s by at most eps / 2 ||W||_F (Weyl's inequality). So if all M
            eigenvalues are equal, they then differ by 2 eps sqrt(M). Twice this is taken, with
            N >= M in place of M, for the rounding when the weights were computed. For types
            narrower than float32 this bound would hide tails. There 2 eps is added, for independent
            roundings: with ||dW|| = 2 eps / sqrt(12) s the eigenvalues differ by 1.2 eps.
    """

    factor: float
    eps: float
    resolution: float
    convention: Convention


def _static(layer: found_in.Layer, convention: Convention) -> _Static:
    factor = convention.convolution_factor if layer.kind == "convolution" else 1.0
    wide = jnp.promote_types(layer.dtype, jnp.float32)
    eps = float(jnp.finfo(wide).eps)
    resolution = max(4 * math.sqrt(max(layer.matrices[1:])) * eps, 1e3 * _EPS)
    if wide != layer.dtype:
        resolution += 2 * float(jnp.finfo(layer.dtype).eps)
    if convention.floor is not None:
        eps = _EPS
    return _Static(factor, eps, resolution, convention)


def _groups(rows: list[found_in.Layer], convention: Convention) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, layer in enumerate(rows):
        groups.setdefault((layer.matrices, _static(layer, convention)), []).append(i)
    return list(groups.values())


def _keys(key: jax.Array, places: list[int], members: int) -> jax.Array:
    """A key for each layer and member. It depends on the place in the table, not on the group."""
    each = [jax.random.split(jax.random.fold_in(key, i), members) for i in places]
    return jnp.concatenate(each)


def _of_group(batch: np.ndarray, keys: Any, static: _Static, num_samples: int) -> list[np.ndarray]:
    """Status and columns of a batch of layers, [b] each."""
    b, k, m, n = batch.shape
    nothing = [np.full(b, np.nan)] * len(Metrics._fields)
    if not k * m * n:
        return [np.full(b, Status.NOT_A_MATRIX), *nothing]
    if k * min(m, n) < static.convention.min_evals:
        finite = np.isfinite(batch).all(axis=(1, 2, 3))
        return [np.where(finite, Status.TOO_FEW, Status.NOT_FINITE), *nothing]
    with jax.enable_x64(True):
        status, columns = _rows(batch, keys, static=static, num_samples=num_samples)
    return [np.asarray(status), *map(np.asarray, columns)]


@functools.partial(jax.jit, static_argnames=("static", "num_samples"))
def _rows(batch, keys, *, static, num_samples):
    def row(inputs):
        matrices, key = inputs
        return _row(matrices, key, static, num_samples)

    return jax.lax.map(row, (batch, keys))


def _row(matrices, key, static, num_samples):
    """Status and columns of one layer, [k, m, n]."""
    convention = static.convention
    finite = jnp.all(jnp.isfinite(matrices))
    peak = jnp.max(jnp.abs(matrices))
    in_range = (peak == 0) | ((peak >= LEAST) & (peak <= MOST))
    matrices = jnp.where(finite & in_range, matrices, 0)
    longest, shortest = max(matrices.shape[1:]), min(matrices.shape[1:])
    values = eigenvalues(matrices, static.factor)
    rounding = (longest * static.eps) ** 2 * values[-1]
    above = jnp.where(values > rounding, values, 0)  # what remains of zero eigenvalues is rounding
    floor = convention.floor
    if floor is None:
        floor, values = rounding, above
    law = power_law.fit(values, floor, resolution=static.resolution)
    enough = law.num_kept >= convention.min_kept
    law = jax.tree.map(lambda x: jnp.where(enough, x, jnp.nan), law)
    found = law._asdict() | moments(values, longest=longest, eps=static.eps)
    found["num_pl_spikes"] = jnp.where(law.num_tail > 0, law.num_tail, jnp.nan)
    found["alpha_weighted"] = law.alpha * found["log_spectral_norm"]
    found["log_alpha_norm"] = log_power_sum(values, law.alpha)
    if convention.bulk == "median":
        longest, slices = _live(static.factor * jnp.square(matrices), rounding)
        shortest = shortest * matrices.shape[0] / slices
        bulk = marchenko_pastur.fit_median(above, longest=longest, shortest=shortest)
        many = jnp.sum(above > 0) >= convention.min_kept
        bulk = jax.tree.map(lambda x: jnp.where(many, x, jnp.nan), bulk)
    else:
        bulk = marchenko_pastur.fit_density(values, longest=longest, shortest=shortest)
    found |= bulk._asdict()
    found["hill"] = power_law.hill_of_tenth(values, static.resolution)
    found["kurtosis"] = _kurtosis(matrices)
    if key is None:
        found |= dict.fromkeys(Randomised._fields, jnp.nan)
    else:
        found |= randomised(jax.random.fold_in(key, 0), matrices, static.factor)._asdict()
    names = ("p_value", "p_error", "alpha_low", "alpha_high")
    found |= dict.fromkeys(names, jnp.nan)
    if num_samples and key is not None:
        fitted = goodness_of_fit(
            jax.random.fold_in(key, 1),
            values,
            floor,
            num_samples=num_samples,
            resolution=static.resolution,
        )
        found |= {name: jnp.where(enough, getattr(fitted, name), jnp.nan) for name in names}
    zero = values[-1] <= 0
    without = ("norm", "spectral_norm", "xmax", "sv_max", "sv_min", "nuclear_norm")
    counts = ("matrix_rank", "rank_loss", "weak_rank_loss", "log_norm", "log_spectral_norm")
    columns = []
    for name in Metrics._fields:
        # A layer of zeros has norms and ranks; quotients by its norm are not defined.
        defined = finite & in_range & (~zero | (name in without + counts))
        columns.append(jnp.where(defined, found[name], jnp.nan).astype(matrices.dtype))
    status = jnp.select(
        [
            ~finite,
            ~in_range,
            ~enough | zero,
            jnp.isnan(law.alpha),
            law.num_kept < other_rule_below(convention),
        ],
        [
            Status.NOT_FINITE,
            Status.OUT_OF_RANGE,
            Status.LOW_RANK,
            Status.NO_TAIL,
            Status.OTHER_RULE,
        ],
        Status.OK,
    )
    return status, columns


def _live(squares, rounding):
    """From the squared entries of k matrices [k, m, n]: the longer side without rows and columns of
    zeros, and how many matrices are not 0."""
    sides = [jnp.sum(jnp.any(jnp.sum(squares, axis) > rounding, axis=0)) for axis in (1, 2)]
    return jnp.maximum(*sides), jnp.sum(jnp.sum(squares, axis=(1, 2)) > rounding)


def _kurtosis(matrices):
    centred = matrices - jnp.mean(matrices)
    centred /= jnp.max(jnp.abs(centred))
    return jnp.mean(centred**4) / jnp.square(jnp.mean(centred**2))


def _members(params: Any) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or not all(lengths):
        raise UserError(
            "data_free: population=True, but the first axes of the leaves have lengths "
            f"{sorted(map(str, lengths))}; stack the members with `sharpjax.tree.stack`."
        )
    return lengths.pop() or 0


def _check(params: Any, key: Any, num_samples: Any, convention: Any, population: Any) -> Any:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        raise UserError(
            "data_free: called while it was traced (`jit`, `vmap`, `grad`); it batches layers "
            "itself, and members with population=True. Inside a trace use "
            "`data_free.eigenvalues` and `data_free.power_law.fit`."
        )
    if isinstance(num_samples, bool) or not isinstance(num_samples, int | np.integer):
        raise UserError(f"data_free: num_samples must be a whole number, got {num_samples!r}.")
    if num_samples and not num_samples >= 20:
        raise UserError(f"data_free: num_samples={num_samples}; give 0 for none, or 20 or more.")
    if num_samples and key is None:
        raise UserError("data_free: num_samples asks for random samples; give a key.")
    check_convention("data_free", convention)
    if not isinstance(population, bool):
        raise UserError(f"data_free: population must be True or False, got {population!r}.")
    return None if key is None else check_key("data_free", key)
