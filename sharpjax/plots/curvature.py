"""Plots of curvature from `sharpjax.geometry`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError
from sharpjax.geometry.eigenpairs.top import Eigenpairs
from sharpjax.geometry.spectra.density import Density
from sharpjax.plots import figure as figures
from sharpjax.plots.style import COLORS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectrum(pairs: Eigenpairs | Mapping[str, Eigenpairs]) -> "Figure":
    """Eigenvalues by rank, with error bounds. Markers of values that have not converged are hollow.

    The axis is logarithmic if all values are positive and the largest is more than 10 times the
    smallest.

    Args:
        pairs: from `top_eigenpairs`, of one model; or several by name, such as checkpoints.

    Raises:
        UserError: there is nothing to draw, or an entry is not the eigenpairs of one model.
    """
    named = dict(pairs) if isinstance(pairs, Mapping) else {"": pairs}
    for found in named.values():
        if not isinstance(found, Eigenpairs) or np.ndim(found.values) != 1:
            raise UserError(
                "plots.spectrum: give the eigenpairs of one model, or several by name; got "
                f"{_describe(found)}."
            )
    finite = [np.asarray(p.values)[np.isfinite(p.values)] for p in named.values()]
    values = np.concatenate([*finite, []])
    if not values.size:
        raise UserError("plots.spectrum: there is no finite eigenvalue to draw.")
    figure, (axis,) = figures.axes()
    for i, (name, found) in enumerate(named.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        # Shifted a little, so that no marker hides another.
        ranks = np.arange(1, len(found.values) + 1) + 0.15 * (i - (len(named) - 1) / 2)
        converged = np.asarray(found.converged)
        errors = np.where(converged, found.value_errors, found.residuals)
        for ok, fill in ((converged, color), (~converged, "white")):
            if ok.any():
                axis.errorbar(
                    *(ranks[ok], np.asarray(found.values)[ok], errors[ok]),
                    color=color,
                    fmt=marker,
                    markerfacecolor=fill,
                    markersize=4,
                    capsize=2,
                    label=name + ("" if fill == color else " (not converged)"),
                )
    if values.min() > 0 and values.max() > 10 * values.min():
        axis.set_yscale("log")
    else:
        axis.axhline(0, color="black", linewidth=0.5)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="rank", ylabel="eigenvalue")
    _legend(axis)
    return figure


def density(found: Density, *, sigma: float | None = None, num_points: int = 1024) -> "Figure":
    """The density of the eigenvalues on a logarithmic axis, with its error band and its atoms.

    The line is the density without the atoms. The band is two standard errors over probes to each
    side. An atom is a stem as high as the peak of a single eigenvalue. The axis starts at a third
    of that height: less than one eigenvalue is none. Ghorbani, Krishnan and Xiao (arXiv 1901.10159)
    draw densities this way, without the band.

    Args:
        found: from `spectral_density`, of one model.
        sigma: width of the kernel, as in `Density.evaluate`; default: `Density.width`.
        num_points: of the grid.

    Raises:
        UserError: it is not the density of one model, or not finite.
    """
    if not isinstance(found, Density) or np.ndim(found.nodes) != 2:
        raise UserError(
            f"plots.density: give the spectral_density of one model; got {_describe(found)}."
        )
    if not np.isfinite(found.nodes).all():
        raise UserError("plots.density: the density is not finite; look at its status.")
    sigma = float(found.width() if sigma is None else sigma)
    grid = found.grid(num_points, sigma=sigma, atoms=False)
    curve = found.evaluate(grid, sigma, atoms=False)
    value, error = np.asarray(curve.value), 2 * np.asarray(curve.standard_error)
    single = 1 / (float(found.size) * sigma * np.sqrt(2 * np.pi))
    floor = single / 3
    figure, (axis,) = figures.axes()
    low, high = np.maximum(value - error, floor), np.maximum(value + error, floor)
    axis.fill_between(grid, low, high, color=COLORS[0], alpha=0.25, lw=0, label="± 2 s.e.")
    axis.plot(grid, np.maximum(value, floor), color=COLORS[0], lw=1.2, label="density")
    atoms = np.asarray(found.atoms)
    atoms = atoms[np.isfinite(atoms)]
    if atoms.size:
        axis.vlines(atoms, floor, single, color=COLORS[1], lw=1)
        axis.plot(atoms, np.full_like(atoms, single), "o", color=COLORS[1], ms=3, label="atoms")
    axis.set_yscale("log")
    axis.set_ylim(floor, 3 * max(value.max(), single))
    axis.set(xlabel="eigenvalue", ylabel="density")
    axis.legend(frameon=False)
    return figure


def curvature_along_training(
    steps: Any,
    eigenvalues: Any,
    *,
    learning_rate: Any,
    errors: Any = None,
    momentum: float = 0.0,
) -> "Figure":
    """The top eigenvalue along training beside 2 / learning rate (Cohen et al., arXiv 2103.00065).

    Gradient descent is stable if the eigenvalue is below that line, or, with heavy-ball momentum
    beta, below 2 (1 + beta) / learning rate. With small batches the eigenvalue stays below: then
    the line is a reference, not a law.

    Args:
        steps: (T,).
        eigenvalues: (T,), or (T, k) for several, from the largest on.
        learning_rate: one number, or (T,) for a schedule.
        errors: half widths of a band, in the shape of `eigenvalues`. Default: no band.
        momentum: beta.

    Raises:
        UserError: lengths differ, or a learning rate is not positive.
    """
    caller = "plots.curvature_along_training"
    steps, values = np.asarray(steps, float), np.asarray(eigenvalues, float)
    if steps.ndim != 1 or not steps.size or values.ndim not in (1, 2) or len(values) != len(steps):
        raise UserError(
            f"{caller}: steps must be (T,) and eigenvalues (T,) or (T, k) with T >= 1; got "
            f"{steps.shape} and {values.shape}."
        )
    bands = np.zeros_like(values) if errors is None else np.asarray(errors, float)
    if bands.shape != values.shape:
        raise UserError(f"{caller}: errors have shape {bands.shape}, eigenvalues {values.shape}.")
    rates = np.asarray(learning_rate, float)
    if rates.shape not in ((), steps.shape) or not (rates > 0).all():
        raise UserError(
            f"{caller}: learning_rate must be one number > 0, or one for each of the "
            f"{len(steps)} steps; got shape {rates.shape}, least {rates.min(initial=np.inf):g}."
        )
    figure, (axis,) = figures.axes()
    for i, (line, band) in enumerate(_columns(values, bands)):
        color = COLORS[i % len(COLORS)]
        marker = MARKERS[i % len(MARKERS)] if len(steps) <= 50 else None
        axis.plot(steps, line, color=color, marker=marker, ms=3, lw=1.2, label=_lambda(i + 1))
        if errors is not None:
            axis.fill_between(steps, line - band, line + band, color=color, alpha=0.2, lw=0)
    edge = np.broadcast_to(2 * (1 + momentum) / rates, steps.shape)
    name = f"{2 * (1 + momentum):g} / learning rate"
    axis.plot(steps, edge, color="black", linewidth=1, linestyle="--", label=name)
    axis.set(xlabel="step", ylabel="eigenvalue of the Hessian")
    axis.legend(frameon=False)
    return figure


def _columns(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    return zip(*(np.atleast_2d(x.T) for x in arrays), strict=True)


def _lambda(rank: int) -> str:
    return "λ" + str(rank).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _describe(found: Any) -> str:
    kind = type(found).__name__
    return f"a population ({kind})" if isinstance(found, Eigenpairs | Density) else f"a {kind}"


def _legend(axis: Any) -> None:
    if any(axis.get_legend_handles_labels()[1]):
        axis.legend(frameon=False)
