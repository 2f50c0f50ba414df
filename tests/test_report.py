"""The summary over seeds, and the table on the console."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sharpjax.protocol import summary
from sharpjax.protocol.canonical import canonical_json
from sharpjax.report import words
from sharpjax.runs.console import print_table


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


def printed(rows, width=140):
    text = io.StringIO()
    print_table(rows, Console(file=text, width=width))
    return text.getvalue()


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
    mean, error, n = summary.mean_and_standard_error([])
    assert math.isnan(mean) and math.isnan(error) and n == 0


COORDINATES = st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, "x"]), max_size=3)


@given(
    st.lists(COORDINATES, min_size=1, max_size=5, unique_by=canonical_json),
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=4),
)
def test_coordinates_are_no_further_seeds(places, values):
    """Two seeds of three layers are n = 2 for each layer, not n = 6."""
    rows = [
        {**row("sgd", seed, step, "m", value + shift), "of": of}
        for shift, of in enumerate(places)
        for seed, value in enumerate(values)
        for step in (shift, 7)
    ]
    found = summary.summarize_last(rows)
    assert [s.of for s in found] == [canonical_json(of) for of in places]
    for shift, s in enumerate(found):
        x = np.array(values) + shift
        assert s[3:] == (7, *summary.mean_and_standard_error(x), 0, True)
        assert s.n == len(values)
        # Rounding of a sum of n terms; the spread is at most that of the values.
        assert abs(s.mean - x.mean()) <= len(x) * np.finfo(float).eps * abs(x).max()


def test_a_series_that_ends_early_is_summarised_where_it_ends():
    rows = [row("sgd", 0, step, "often", float(step)) for step in (1, 2)]
    rows += [{**row("sgd", seed, 1, "rarely", 5.0), "of": {"layer": "a"}} for seed in range(3)]
    often, rarely = summary.summarize_last(rows)
    assert (often.step, often.at_end, often.name) == (2, True, "often")
    assert (rarely.step, rarely.at_end, rarely.name) == (1, False, 'rarely {"layer":"a"}')
    assert words.over_seeds(rarely) == "5 (3) at step 1"


def test_pairs_of_models_have_no_naive_standard_error():
    """Pairs share their models: the naive error is several times too small."""
    pairs = [(i, j) for i in range(4) for j in range(4) if i < j]
    rows = [
        {**row("sgd", i, 1, "m", None if i == 2 else float(i + j)), "of": {"pair": [i, j]}}
        for i, j in pairs
    ]
    (found,) = summary.summarize_last(rows)
    assert found.n == 4 and math.isnan(found.standard_error) and found.missing == 1
    assert found.mean == pytest.approx(np.mean([1, 2, 3, 3, 4]))
    assert words.over_seeds(found) == "2.6 (4) 1 not finite"
    lost = [{**r, "value": None if 3 in r["of"]["pair"] else r["value"]} for r in rows]
    (found,) = summary.summarize_last(lost)  # model 3 has no value, so three models are left
    assert found.n == 3 and found.missing == 3


def test_arms_keep_their_order():
    rows = [row(arm, 0, 1, metric, 1.0) for arm in ("sgd", "base", "sam") for metric in "nm"]
    assert summary.grid(summary.summarize_last(rows)).arms == ("sgd", "base", "sam")
    ordered = summary.grid(summary.summarize_last(sorted(rows, key=str), ("sam", "sgd")))
    assert ordered.arms == ("sam", "sgd", "base") and set(ordered.lines) == {"m", "n"}
    lines = printed(rows).splitlines()
    (head,) = (line for line in lines if "metric" in line)
    assert head.index("sgd") < head.index("base") < head.index("sam")


def test_the_table_gives_mean_standard_error_and_n():
    text = printed(a_run())
    line = next(x for x in text.splitlines() if "train[:64]/hessian/lambda_1" in x)
    assert "1.00 ± 0.58 (3)" in line and "2.00 ± 0.58 (3)" in line
    assert "train[64:128]" not in text


def test_the_second_table_gives_the_spread_over_sets():
    text = printed(a_run(num_sets=4))
    assert "over 4 disjoint measurement sets" in text
    line = text.split("disjoint")[1].split("hessian/lambda_1")[1].splitlines()[0]
    # Set means of sgd are 1, 5, 9, 13: mean 7, standard deviation sqrt(80/3).
    assert "7.0 ± 5.2" in line and "8.0 ± 5.2" in line
    assert "disjoint" not in printed(a_run(num_sets=1))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("num_arms", [2, 15, 36])
def test_the_table_is_whole_at_any_width(num_arms, width):
    """Every arm, every metric and every number, and no line is longer than the terminal."""
    arms = [f"resnet18-{i}" for i in range(num_arms)]
    metrics = ["train/loss", "test/accuracy", "train[:512]/hessian/lambda_1", "a/b/c/d"]
    rows = [
        {**row(arm, seed, 1, metric, 100.0 * i + j + seed), "of": of}
        for i, arm in enumerate(arms)
        for j, metric in enumerate(metrics)
        for of in ([{}, {"layer": "head"}] if metric == "a/b/c/d" else [{}])
        for seed in (0, 1)
    ]
    text = printed(rows, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    lines = {arm: [x for x in text.splitlines() if f"{arm} " in x] for arm in arms}
    for i, arm in enumerate(arms):
        for j in range(len(metrics)):
            mean = words.mean_and_error(100.0 * i + j + 0.5, 0.5)
            where = text if num_arms == 2 else "".join(lines[arm])
            assert where.count(f" {mean} (2) ") == 1 + (j == 3)
    assert "lambda_1" in text and '{"layer":"head"}' in text


def test_metrics_of_very_many_coordinates_are_counted():
    rows = [{**row("sgd", 0, 1, "norm", 1.0), "of": {"layer": i}} for i in range(20)]
    text = printed([*rows, row("sgd", 0, 1, "norm", 2.0)])
    assert "norm: 20 coordinates, in the report" in text and "2 (1)" in text
    assert '"layer"' not in text
