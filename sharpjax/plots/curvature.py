"""Pictures: of a run, from its rows, and of curvature, from the results of `sharpjax.geometry`.

Each returns a matplotlib figure. matplotlib is imported when a picture is drawn, and draws to files
alone.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.errors import UserError
from sharpjax.geometry.density import Density
from sharpjax.geometry.spectrum import Eigenpairs
from sharpjax.protocol.summary import mean_and_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

# Okabe and Ito's palette: told apart in print and by the colour-blind.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")

_ENDS = "grok/epochs"  # of a seed that stopped before its arm's last step


def draw_all(rows: Iterable[Row]) -> Iterator[tuple[str, bytes]]:
    """Every picture that the rows allow: its name, and the bytes of a PNG."""
    rows = list(rows)
    for draw in (curves, stability, sharpness_accuracy):
        figure = draw(rows)
        if figure is not None:
            yield draw.__name__, png(figure)


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curves(rows: Iterable[Row]) -> "Figure | None":
    """Loss on the training batches and test accuracy against steps: mean and standard error."""
    rows = _measured(rows)
    panels = (("train/loss", "training loss"), ("test/accuracy", "test accuracy"))
    figure, axes = _figure(len(panels))
    for axis, (metric, label) in zip(axes, panels, strict=True):
        _lines(axis, rows, metric)
        axis.set(xlabel="step", ylabel=label)
    axes[0].set_yscale("log")
    axes[-1].legend(frameon=False)
    return figure


def stability(rows: Iterable[Row]) -> "Figure | None":
    """Learning rate times the top Hessian eigenvalue, beside 2 (Cohen et al., arXiv 2103.00065).

    2 is the edge of stability of gradient descent without momentum. With momentum beta it lies at
    2 (1 + beta), and under small batches the product stays below: the line is a landmark, no law.
    """
    rows = _measured(rows)
    metric = _first_set(rows, "hessian/lambda_1")
    if metric is None:
        return None
    rates = {
        (row["arm"], row["seed"], row["step"]): row["value"]
        for row in rows
        if row["metric"] == "train/learning_rate"
    }
    products = [
        {**row, "value": row["value"] * rates[key]}
        for row in rows
        if row["metric"] == metric and (key := (row["arm"], row["seed"], row["step"])) in rates
    ]
    figure, (axis,) = _figure(1)
    _lines(axis, products, metric)
    axis.axhline(2, color="black", linewidth=1, linestyle="--", label="2")
    axis.set(xlabel="step", ylabel="learning rate × λ₁ of the Hessian")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return figure


def sharpness_accuracy(rows: Iterable[Row]) -> "Figure | None":
    """Adaptive sharpness and the top eigenvalue against test accuracy, a point for each seed."""
    rows = _measured(rows)
    names = (
        ("adaptive_sharpness", "adaptive sharpness (worst case)"),
        ("hessian/lambda_1", "λ₁ of the Hessian"),
    )
    metrics = [(_first_set(rows, name), label) for name, label in names]
    metrics = [(metric, label) for metric, label in metrics if metric]
    if not metrics:
        return None
    figure, axes = _figure(len(metrics))
    accuracy = _last(rows, "test/accuracy")
    for axis, (metric, label) in zip(axes, metrics, strict=True):
        values = _last(rows, metric)
        for i, arm in enumerate(_arms(rows)):
            seeds = sorted(values[arm].keys() & accuracy[arm].keys())
            axis.scatter(
                [values[arm][seed] for seed in seeds],
                [accuracy[arm][seed] for seed in seeds],
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                label=arm,
            )
        axis.set(xlabel=label, ylabel="test accuracy")
    axes[-1].legend(frameon=False)
    return figure


def accuracy_by_epoch(curves: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "Figure":
    """Training accuracy, dashed, and test accuracy against epochs on a logarithmic axis, as the
    paper on decomposed learning draws them (OpenReview LVuzwpMovE).

    A thin line for each seed, to its own end, and a thick one for their mean, in which a seed that
    is done counts as it ended.

    Args:
        curves: by arm, for each seed `train_accuracy` and `test_accuracy`, [its epochs].

    Raises:
        UserError: there is no epoch to draw.
    """
    longest = max((len(c["test_accuracy"]) for seeds in curves.values() for c in seeds), default=0)
    if not longest:
        raise UserError("plots.accuracy_by_epoch: there is no epoch to draw.")
    # Some hundreds are as many as a picture can show.
    shown = np.unique(np.geomspace(1, longest, 400).round().astype(int))
    figure, (axis,) = _figure(1)
    for i, (arm, seeds) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        for name, style, label in (("train_accuracy", "--", None), ("test_accuracy", "-", arm)):
            lines = [np.asarray(one[name], float) for one in seeds if len(one[name])]
            for line in lines:
                own = np.append(shown[shown < len(line)], len(line))
                axis.plot(own, line[own - 1], style, color=color, lw=0.5, alpha=0.4)
            if lines:
                ends = shown[shown <= max(map(len, lines))]
                mean = np.mean([line[np.minimum(ends, len(line)) - 1] for line in lines], axis=0)
                axis.plot(ends, mean, style, color=color, lw=1.8, label=label)
    axis.set(xscale="log", xlabel="epoch", ylabel="accuracy (dashed: training)", ylim=(0, 1.02))
    axis.legend(frameon=False)
    return figure


def measure_by_epoch(rows: Iterable[Row], metrics: Mapping[str, str]) -> "Figure | None":
    """Measures along training against epochs, both axes logarithmic: a thin line for each seed,
    and their mean where all are there.

    The last point of a seed lies at its own end, `grok/epochs`, where its arm has that. Epoch 0,
    before the first, is drawn at 1/2.

    Args:
        rows: of the arms to be compared; their steps are epochs.
        metrics: name and label of each panel; those that no row has are left out.
    """
    rows = [row for row in _measured(rows) if not row["of"]]
    metrics = {m: label for m, label in metrics.items() if any(r["metric"] == m for r in rows)}
    if not metrics:
        return None
    ends = {(r["arm"], r["seed"], r["step"]): r["value"] for r in rows if r["metric"] == _ENDS}
    figure, axes = _figure(len(metrics))
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        for i, arm in enumerate(_arms(rows)):
            lines: dict[int, dict[float, float]] = defaultdict(dict)
            for row in sorted(rows, key=lambda row: row["step"]):
                if row["arm"] == arm and row["metric"] == metric:
                    epoch = ends.get((arm, row["seed"], row["step"]), row["step"])
                    lines[row["seed"]][max(epoch, 0.5)] = row["value"]
            color = COLORS[i % len(COLORS)]
            for line in lines.values():
                axis.plot(*zip(*line.items(), strict=True), color=color, lw=0.5, alpha=0.5)
            common = sorted(set.intersection(*map(set, lines.values()))) if lines else []
            mean = [np.mean([line[epoch] for line in lines.values()]) for epoch in common]
            marker = MARKERS[i % len(MARKERS)]
            axis.plot(common, mean, color=color, lw=1.8, marker=marker, ms=3, label=arm)
        axis.set(xscale="log", yscale="log", xlabel="epoch", ylabel=label)
    axes[-1].legend(frameon=False)
    return figure


def spectrum(pairs: Eigenpairs | Mapping[str, Eigenpairs]) -> "Figure":
    """Eigenvalues in their order, with their error bounds; hollow where one has not converged.

    The axis is logarithmic where all values are positive and more than tenfold apart.

    Args:
        pairs: from `top_eigenpairs`, of one model; or several by name, such as checkpoints.

    Raises:
        UserError: there is nothing to draw, or it is a population.
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
    figure, (axis,) = _figure(1)
    for i, (name, found) in enumerate(named.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        # A little apart, so that none hides another.
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
    """The density of the eigenvalues on a logarithmic axis, with its band and its atoms.

    The line is the density without the atoms, the band two standard errors of the probes to each
    side. An atom is a stem as high as the peak of one eigenvalue is on this axis, and the axis ends
    a little below that height: there is nothing between one eigenvalue and none. (Ghorbani,
    Krishnan and Xiao, arXiv 1901.10159, draw it so, without band.)

    Args:
        found: from `spectral_density`, of one model.
        sigma: width of the kernel, as in `Density.evaluate`.
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
    grid = found.grid(num_points, sigma=sigma)
    curve = found.evaluate(grid, sigma, atoms=False)
    value, error = np.asarray(curve.value), 2 * np.asarray(curve.standard_error)
    single = 1 / (float(found.size) * sigma * np.sqrt(2 * np.pi))
    floor = single / 3
    figure, (axis,) = _figure(1)
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

    Gradient descent that is stable has it below that line; with heavy-ball momentum beta, below
    2 (1 + beta) / learning rate. Under small batches it stays below: a landmark, no law.

    Args:
        steps: (T,).
        eigenvalues: (T,), or (T, k) for several, from the largest on.
        learning_rate: one number, or (T,) for a schedule.
        errors: as `eigenvalues`: half widths of a band. Default: none.
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
    figure, (axis,) = _figure(1)
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


def _measured(rows: Iterable[Row]) -> list[Row]:
    """Without the values that were not finite."""
    return [row for row in rows if row["value"] is not None]


def _figure(num_panels: int) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * num_panels, 3.4), layout="constrained", dpi=150)
    axes = list(np.atleast_1d(figure.subplots(1, num_panels)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(axis: Any, rows: Sequence[Row], metric: str) -> None:
    for i, arm in enumerate(_arms(rows)):
        by_step = defaultdict(list)
        for row in rows:
            if row["arm"] == arm and row["metric"] == metric:
                by_step[row["step"]].append(row["value"])
        if not by_step:
            continue
        steps = sorted(by_step)
        mean, error, _ = np.array([mean_and_standard_error(by_step[s]) for s in steps]).T
        color = COLORS[i % len(COLORS)]
        axis.plot(steps, mean, color=color, label=arm, marker=MARKERS[i % len(MARKERS)], ms=3)
        axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, lw=0)


def _arms(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _last(rows: list[Row], metric: str) -> dict[str, dict[int, float]]:
    """Of each arm and seed the value at its last step."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row["step"]):
        if row["metric"] == metric:
            values[row["arm"]][row["seed"]] = row["value"]
    return values


def _first_set(rows: list[Row], quantity: str) -> str | None:
    """The metric of a quantity on the first measurement set."""
    pattern = re.compile(rf"train\[:\d+\]/{re.escape(quantity)}")
    return next((row["metric"] for row in rows if pattern.fullmatch(row["metric"])), None)
