"""Tables and figures: both conventions side by side, during training and at its end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sharpjax import plots
from sharpjax.plots import Figure, Panel, last_of, n_of, series_of
from sharpjax.protocol.canonical import canonical_json
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.runs.study import Arrays
from sharpjax.train.results import Row

_RHO = {"rho": "0.005"}
_AUTHORS = ("authors/mean", _RHO, "authors' statistic, ρ = 0.005")
# Metric, its further coordinates, and label.
SHOWN: Sequence[tuple[str, Mapping[str, str], str]] = (
    _AUTHORS,
    ("authors/first_order", {}, "√(2/π) |g| / √P"),
    ("defined/lambda_1", {}, "λ₁ of the Hessian"),
    ("defined/trace", {}, "trace of the Hessian"),
    ("defined/average_sharpness", {"rho": "0.05"}, "average sharpness, ρ = 0.05"),
    ("defined/worst_case_sharpness", {}, "worst case, ρ = 0.05"),
    ("defined/fisher_rao", {}, "Fisher-Rao norm"),
    ("defined/relative_flatness", {}, "relative flatness"),
)
ERRORS = (("fit/test_mse", "test MSE"), ("fit/test_relative", "test MSE / variance"))


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm: test error, and sharpness in every convention, at the end."""
    found = {(one.arm, one.metric, one.of): one for one in summarize_last(rows) if one.n}
    columns = [(metric, {}, label) for metric, label in ERRORS] + list(SHOWN)

    def cell(arm: str, metric: str, of: Mapping[str, str]) -> str:
        one = found.get((arm, metric, canonical_json(of)))
        return f"{one.mean:.3g} ± {one.standard_error:.2g}" if one else ""

    arms = dict.fromkeys(row["arm"] for row in rows)
    table = Table(
        "Test error, and sharpness by the authors' statistic (of the mean squared error) and by "
        "the definitions (of half of it), at the last step: mean ± standard error over starts.",
        ("surface", *(label for *_, label in columns)),
        tuple((arm, *(cell(arm, m, of) for m, of, _ in columns)) for arm in arms),
    )
    return (table,)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """Test error and sharpness during training; the authors' statistic against the definitions; and
    sharpness against test error."""
    error = series_of(rows, "fit/test_mse")
    panels = [
        Panel(label, _from_half(series), log=True)
        for metric, of, label in (("fit/test_mse", {}, "test MSE"), *SHOWN)
        if (series := series_of(rows, metric, of))
    ]
    if error:
        yield Figure(
            "along_steps",
            "Test error and sharpness against steps, step 0 drawn at 1/2: a thin line for each "
            f"start, and their median; {n_of(error)}.",
            lambda: plots.lines(panels, xlabel="step", log=True),
            ("fit/test_mse",),
        )
    metric, of, name = _AUTHORS
    if authors := last_of(rows, metric, of):
        beside = [
            (label, ends, name, authors)
            for metric, of, label in SHOWN[1:]
            if (ends := last_of(rows, metric, of))
        ]
        yield Figure(
            "conventions",
            "The authors' statistic against the definitions, at the end: a point for each start; "
            f"{n_of(authors)}.",
            lambda: plots.scatter(beside, log=(True, True)),
            ("authors/mean",),
        )
        against = [
            (label, ends, "test MSE / variance", last_of(rows, "fit/test_relative"))
            for metric, of, label in SHOWN
            if (ends := last_of(rows, metric, of))
        ]
        yield Figure(
            "sharpness_and_error",
            "Test error over the variance of the heights against sharpness, at the end: a point "
            f"for each start; {n_of(authors)}.",
            lambda: plots.scatter(against, log=(True, True)),
            ("fit/test_relative",),
        )


def _from_half(series: Any) -> Any:
    """Moves step 0 to 1/2, because a logarithmic axis has no 0."""
    return {
        arm: {seed: (x.clip(0.5), y) for seed, (x, y) in own.items()} for arm, own in series.items()
    }
