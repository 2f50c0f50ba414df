"""The summary over seeds, the table on the console, the figures."""

import doctest
import io
import math

import numpy as np
import pytest
from rich.console import Console

from sharpjax import plots
from sharpjax.protocol import summary
from sharpjax.report.console import print_table


def row(arm, seed, step, metric, value):
    names = ("study", "arm", "seed", "step", "of", "metric", "value", "standard_error")
    return dict(zip(names, ("sharpness", arm, seed, step, {}, metric, value, None), strict=True))


def a_run(num_sets=2):
    """Two arms of three seeds, measured at two steps; `sam` runs for longer."""
    rows = []
    for arm, last, shift in (("sgd", 10, 0.0), ("sam", 20, 1.0)):
        for seed in range(3):
            for step in (last // 2, last):
                rows.append(row(arm, seed, step, "train/loss", 1 / step))
                rows.append(row(arm, seed, step, "train/learning_rate", 0.5))
                rows.append(row(arm, seed, step, "test/accuracy", 0.8 + 0.01 * seed))
                rows.append(row(arm, seed, step, "train[:64]/hessian/lambda_1", shift + seed))
                rows.append(row(arm, seed, step, "train[:64]/adaptive_sharpness", shift + 2 * seed))
            for i in range(1, num_sets):
                name = f"train[{64 * i}:{64 * (i + 1)}]/hessian/lambda_1"
                rows.append(row(arm, seed, last, name, shift + seed + 4 * i))
    return rows


def printed(rows):
    text = io.StringIO()
    print_table(rows, Console(file=text, width=140))
    return text.getvalue()


def test_examples():
    assert doctest.testmod(summary).failed == 0


def test_summary_is_of_the_last_step_of_each_arm():
    found = {(s.arm, s.metric): s for s in summary.summarize_last(a_run())}
    got = found["sgd", "train[:64]/hessian/lambda_1"]
    assert (got.mean, got.n) == (1.0, 3)
    assert got.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found["sam", "train/loss"].mean == pytest.approx(1 / 20)


def test_missing_values_do_not_count():
    rows = [*a_run(), row("sgd", 3, 10, "test/accuracy", None)]
    found = {(s.arm, s.metric): s for s in summary.summarize_last(rows)}
    assert found["sgd", "test/accuracy"].n == 3


def test_one_seed_has_no_standard_error():
    mean, error, n = summary.mean_and_standard_error([2.0])
    assert (mean, n) == (2.0, 1) and math.isnan(error)


def test_the_table_gives_mean_standard_error_and_n():
    text = printed(a_run())
    line = next(x for x in text.splitlines() if "train[:64]/hessian/lambda_1" in x)
    assert "1 ± 0.58 (3)" in line and "2 ± 0.58 (3)" in line
    assert "train[64:128]" not in text


def test_the_second_table_gives_the_spread_over_sets():
    text = printed(a_run(num_sets=4))
    assert "over 4 disjoint measurement sets" in text
    line = text.split("disjoint")[1].split("hessian/lambda_1")[1].splitlines()[0]
    # Set means of sgd are 1, 5, 9, 13: mean 7, standard deviation sqrt(80/3).
    assert "7 ± 5.2" in line and "8 ± 5.2" in line
    assert "disjoint" not in printed(a_run(num_sets=1))


def test_every_figure_shows_every_arm():
    for draw in (plots.curves, plots.stability, plots.sharpness_accuracy):
        labels = draw(a_run()).axes[-1].get_legend_handles_labels()[1]
        assert {"sgd", "sam"} <= set(labels)


def test_pictures_are_png():
    pictures = dict(plots.draw_all(a_run()))
    assert set(pictures) == {"curves", "stability", "sharpness_accuracy"}
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_stability_is_learning_rate_times_lambda_beside_2():
    axis = plots.stability(a_run()).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    np.testing.assert_allclose(lines["sam"].get_ydata(), 0.5 * 2.0)
    assert lines["sam"].get_xdata().tolist() == [10, 20]
    assert set(lines["2"].get_ydata()) == {2}


def test_points_are_the_seeds_at_the_end():
    axis = plots.sharpness_accuracy(a_run()).axes[0]
    sgd = axis.collections[0].get_offsets()
    np.testing.assert_allclose(sgd, [[0, 0.8], [2, 0.81], [4, 0.82]])


def test_figures_leave_out_what_was_not_measured():
    rows = [r for r in a_run() if not r["metric"].startswith("train[")]
    assert set(dict(plots.draw_all(rows))) == {"curves"}
    rows = [r if r["seed"] else {**r, "value": None} for r in a_run()]
    points = plots.sharpness_accuracy(rows).axes[0].collections[0].get_offsets()
    assert len(points) == 2
