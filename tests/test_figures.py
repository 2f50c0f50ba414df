"""The figures of the studies: what is on them, and that names and captions say so."""

import json
import types

import numpy as np
import pytest
from etils import epath

from sharpjax import plots
from sharpjax.errors import UserError
from sharpjax.runs import draw
from sharpjax.studies.grokking import shows as grokking
from sharpjax.studies.sharpness import shows as sharpness
from tests.test_report import a_run, row


def drawn(figures):
    """By name, after a look at each caption and picture."""
    found = {}
    for figure in figures:
        assert figure.caption.endswith(("seed.", "seeds.")) and "n = " in figure.caption
        found[figure.name] = figure.draw()
        assert plots.png(found[figure.name])[:4] == b"\x89PNG"
    return found


def no_arrays(arm, name):
    raise AssertionError("nothing was to be read")


def thick(axis):
    return [line for line in axis.lines if line.get_linewidth() > 1.4]


# Study 1.


def test_every_figure_shows_every_arm_in_the_order_of_the_rows():
    found = drawn(sharpness.figures(a_run(), no_arrays))
    assert list(found) == ["curves", "stability", "sharpness_accuracy"]
    for figure in found.values():
        (legend,) = figure.legends
        assert [t.get_text() for t in legend.get_texts()][:2] == ["sgd", "sam"]
        assert legend.get_title().get_text() == "n = 3 seeds"


def test_stability_is_learning_rate_times_lambda_beside_2():
    axis = drawn(sharpness.figures(a_run(), no_arrays))["stability"].axes[0]
    sgd, sam = thick(axis)
    np.testing.assert_allclose(sam.get_ydata(), 0.5 * 2.0)
    assert sam.get_xdata().tolist() == [10, 20]
    (edge,) = (line for line in axis.lines if line.get_label() == "2")
    assert set(edge.get_ydata()) == {2}


def test_points_are_the_seeds_at_the_end():
    axis = drawn(sharpness.figures(a_run(), no_arrays))["sharpness_accuracy"].axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0, 0.8], [2, 0.81], [4, 0.82]])


def test_figures_leave_out_what_was_not_measured():
    rows = [r for r in a_run() if not r["metric"].startswith("train[")]
    assert set(drawn(sharpness.figures(rows, no_arrays))) == {"curves"}
    rows = [r if r["seed"] else {**r, "value": None} for r in a_run()]
    axis = drawn(sharpness.figures(rows, no_arrays))["sharpness_accuracy"].axes[0]
    assert len(axis.lines[0].get_xydata()) == 2
    assert list(sharpness.figures([], no_arrays)) == []


# Study 3.


def curves_of(length):
    train = np.minimum(1, np.arange(1, length + 1) / 20).astype(np.float32)
    return {"train_accuracy": train, "test_accuracy": (train**8).astype(np.float32)}


def grokked():
    """Two arms of two seeds, of which the first has done after 40 epochs."""
    rows = []
    for arm in ("add97-svd_12-80", "add97-dense-80", "sub97-dense-80"):
        for seed, end in ((0, 40), (1, 300)):
            for step in (0, 10, 100, 1000):
                if step < end or step == 1000:
                    rows.append(row(arm, seed, step, "train[:64]/hessian/trace", 1.0 + seed))
            rows.append(row(arm, seed, 1000, "grok/epochs", end))
    return rows


def test_accuracy_by_epoch():
    lengths = {"add97-svd_12-80": (30, 500), "add97-dense-80": (9, 9), "sub97-dense-80": (9, 9)}

    def arrays(arm, name):
        assert name == "curves"
        return dict(enumerate(map(curves_of, lengths[arm])))

    found = drawn(grokking.figures(grokked(), arrays))
    assert list(found) == [
        "accuracy-add97-80", "sharpness-add97-80", "accuracy-sub97-80", "sharpness-sub97-80",
    ]  # fmt: skip
    (axis,) = found["accuracy-add97-80"].axes
    assert axis.get_xscale() == "log"
    lines = thick(axis)
    assert [line.get_linestyle() for line in lines] == ["--", "-", "--", "-"]
    # The seed that ended at epoch 30 counts as it ended: at 1.
    assert lines[1].get_xdata()[-1] == 500 and lines[1].get_ydata()[-1] == 1
    assert lines[3].get_xdata()[-1] == 9
    (legend,) = found["accuracy-add97-80"].legends
    assert [t.get_text() for t in legend.get_texts()] == ["add97-svd_12-80", "add97-dense-80"]


def test_accuracy_without_epochs():
    figure = next(grokking.figures(grokked(), lambda arm, name: {}))
    with pytest.raises(UserError, match="no finite point"):
        figure.draw()


def test_measures_by_epoch():
    figures = {f.name: f for f in grokking.figures(grokked(), no_arrays)}
    (axis,) = figures["sharpness-add97-80"].draw().axes
    first, second, mean = axis.lines[:3]
    assert first.get_xdata().tolist() == [0.5, 10, 40]
    assert second.get_xdata().tolist() == [0.5, 10, 100, 300]
    assert mean.get_xdata().tolist() == [0.5, 10] and mean.get_ydata().tolist() == [1.5, 1.5]
    assert "trace of the Hessian" in axis.get_ylabel()
    rows = [r for r in grokked() if r["metric"] == "grok/epochs"]
    assert [f.name for f in grokking.figures(rows, no_arrays)] == [
        "accuracy-add97-80", "accuracy-sub97-80",
    ]  # fmt: skip


# What a run does with them.


def test_a_figure_that_cannot_be_drawn_is_said_and_left_out(tmp_path):
    def figures():
        yield plots.Figure("b", "The second by name; n = 1 seed.", lambda: plots.matrix(
            [[1.0]], ["r"], ["c"], label="x"))  # fmt: skip
        yield plots.Figure("broken", "Nothing.", lambda: plots.points({"x": {}}))
        yield plots.Figure("a", "The first by name; n = 1 seed.", lambda: plots.matrix(
            [[2.0]], ["r"], ["c"], label="x"))  # fmt: skip
        raise KeyError("no such metric")

    said = []
    folder = epath.Path(tmp_path)
    draw.draw(types.SimpleNamespace(path=folder), figures(), said.append)
    assert [line.split(" could not be drawn: ")[0] for line in said] == ["broken", "a figure"]
    assert "UserError: plots.points" in said[0] and "KeyError" in said[1]
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"a.png", "b.png", "captions.json"}
    captions = json.loads((folder / "figures" / "captions.json").read_text())
    assert list(captions.items()) == [  # in the study's order
        ("b", "The second by name; n = 1 seed."),
        ("a", "The first by name; n = 1 seed."),
    ]
