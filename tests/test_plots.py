"""Pictures draw what they were given, and refuse what they cannot draw."""

import importlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.lines import Line2D

from sharpjax import plots
from sharpjax.errors import UserError
from sharpjax.geometry import Eigenpairs, Landscape, Slices
from sharpjax.geometry.spectra.density import Density
from sharpjax.plots import Panel, Surface, style
from sharpjax.plots.line import average


def pairs(values=(30.0, 10.0, 2.0), converged=(True, True, False)):
    values = jnp.asarray(values)
    fields = dict.fromkeys(Eigenpairs._fields, jnp.abs(values) / 100)
    fields |= {"values": values, "vectors": None, "converged": jnp.asarray(converged)}
    return Eigenpairs(**fields)


def spectrum_of(atoms=(8.0, jnp.nan, 5.0)):
    """Two probes of three products, of 100 eigenvalues."""
    nodes = jnp.array([[-1.0, 0.0, 2.0], [-0.8, 0.1, 2.1]])
    weights = jnp.array([[0.3, 0.5, 0.2], [0.3, 0.6, 0.1]])
    counts = jnp.int32(2), jnp.int32(6), jnp.int32(0)
    return Density(nodes, weights, 0 * nodes, jnp.asarray(atoms), jnp.float32(100), *counts)


def png(figure):
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert out.getvalue()[:8] == b"\x89PNG\r\n\x1a\n" and len(out.getvalue()) > 5000
    return figure.axes[0]


def labels(axis):
    legend = axis.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_spectrum():
    axis = png(plots.spectrum(pairs()))
    assert axis.get_yscale() == "log" and axis.get_xlabel() == "rank"
    full, hollow = (
        line for line in axis.lines if len(line.get_xdata()) and line.get_marker() == "o"
    )
    assert full.get_ydata().tolist() == [30, 10] and hollow.get_ydata().tolist() == [2]
    assert hollow.get_markerfacecolor() == "white"
    negative = png(plots.spectrum(pairs((3.0, 1.0, -2.0))))
    assert negative.get_yscale() == "linear"
    several = png(plots.spectrum({"SGD": pairs(), "SAM": pairs((20.0, 5.0, 1.0))}))
    assert "SGD" in labels(several) and "SAM (not converged)" in labels(several)


def test_density():
    found = spectrum_of()
    axis = png(plots.density(found, sigma=0.2))
    assert axis.get_yscale() == "log" and axis.get_ylabel() == "density"
    assert labels(axis) == ["± 2 s.e.", "density", "atoms"]
    curve, atoms = axis.lines
    grid = jnp.asarray(curve.get_xdata())
    expected = found.evaluate(grid, 0.2, atoms=False).value
    visible = expected > 2 * axis.get_ylim()[0]
    np.testing.assert_allclose(curve.get_ydata()[visible], expected[visible], rtol=1e-4)
    assert np.isfinite(curve.get_ydata()).all() and visible.sum() > 300
    # One eigenvalue of a hundred under a kernel of that width.
    assert atoms.get_xdata().tolist() == [8, 5]
    np.testing.assert_allclose(atoms.get_ydata(), 0.01 / (0.2 * np.sqrt(2 * np.pi)), rtol=1e-5)
    low, high = axis.get_ylim()
    assert low < atoms.get_ydata()[0] < high and curve.get_ydata().max() < high
    assert labels(png(plots.density(spectrum_of(atoms=()))))[-1] == "density"


def test_curvature_along_training():
    steps = np.arange(5)
    values = np.stack([[1.0, 5, 9, 10, 10], [1.0, 2, 3, 4, 5]], axis=1)
    figure = plots.curvature_along_training(steps, values, learning_rate=0.2, errors=values / 10)
    axis = png(figure)
    assert labels(axis) == ["λ₁", "λ₂", "2 / learning rate"]
    assert axis.lines[0].get_ydata().tolist() == values[:, 0].tolist()
    assert axis.lines[-1].get_ydata().tolist() == [10] * 5
    schedule = np.array([0.1, 0.2, 0.2, 0.4, 0.4])
    axis = png(
        plots.curvature_along_training(steps, values[:, 0], learning_rate=schedule, momentum=0.5)
    )
    np.testing.assert_allclose(axis.lines[-1].get_ydata(), 3 / schedule)
    assert labels(axis) == ["λ₁", "3 / learning rate"]


# Of arms and seeds.


def arms(number):
    return [f"arm {i:02}" for i in range(number, 0, -1)]  # not in the order of their names


def entries(figure):
    """Title and texts of the legend right of the axes."""
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def thick(axis):
    return [line for line in axis.lines if line.get_linewidth() >= 1.4]


def thin(axis):
    return [line for line in axis.lines if line.get_linewidth() < 1]


def curves(number, seeds=3, length=20):
    return {
        arm: {seed: (np.arange(length), np.full(length, i + seed)) for seed in range(seeds)}
        for i, arm in enumerate(arms(number))
    }


def test_styles_can_be_told_apart_with_and_without_colours():
    known = list(style.styles(arms(36)).values())
    for fields in (("color", "marker"), ("marker", "fill"), ("marker", "dash")):
        assert len({tuple(str(getattr(s, f)) for f in fields) for s in known}) == 36
    assert known[:5] == list(style.styles(arms(5)).values())  # more arms change no style
    for s in known:
        Line2D([0], [0], ls=s.dash, **s.marked)
    with pytest.raises(UserError, match="37 arms cannot be told apart.*draw several"):
        style.styles(arms(37))


@pytest.mark.parametrize("number", [1, 6, 15, 36])
def test_lines_show_every_arm_and_seed(number):
    figure = plots.lines([Panel("a", curves(number)), Panel("b", curves(number))], xlabel="step")
    png(figure)
    assert entries(figure) == ("n = 3 seeds", arms(number))
    for axis in figure.axes:
        assert [line.get_ydata()[0] for line in thick(axis)] == [i + 1 for i in range(number)]
        assert sorted(line.get_ydata()[0] for line in thin(axis)) == sorted(
            i + seed for i in range(number) for seed in range(3)
        )
        assert all(line.get_xdata().tolist() == list(range(20)) for line in axis.lines)
        drawn = {(str(x.get_color()), x.get_marker(), x.get_fillstyle()) for x in thick(axis)}
        assert len(drawn) == number


def test_means_of_curves_of_different_lengths():
    short, long = ([1, 2], [0.0, 2.0]), ([1, 2, 4], [4.0, 4.0, 10.0])
    for rule, expected in (
        ("all", [(1, 2), (2, 3)]),
        ("present", [(1, 2), (2, 3), (4, 10)]),
        ("held", [(1, 2), (2, 3), (4, 6)]),
    ):
        x, mean, error = average([tuple(map(np.array, c)) for c in (short, long)], rule)
        assert list(zip(x.tolist(), mean.tolist(), strict=True)) == expected
        # Of two values the standard error is half their distance; of one there is none.
        assert error.tolist() == [2, 1, *{"all": [], "present": [0], "held": [4]}[rule]]
        figure = plots.lines([Panel("y", {"a": {0: short, 1: long}})], xlabel="x", mean=rule)
        (line,) = thick(figure.axes[0])
        assert line.get_xydata().tolist() == [list(pair) for pair in expected]
        assert [len(seed.get_xdata()) for seed in thin(figure.axes[0])] == [2, 3]


def test_on_a_logarithmic_axis_the_thick_line_is_the_median():
    """The mean of these would lie above nine of ten seeds."""
    seeds = {seed: ([1, 2], [1.0, 2.0]) for seed in range(9)} | {9: ([1, 2], [1e4, 2e4])}
    figure = plots.lines([Panel("y", {"a": seeds}, log=True)], xlabel="x")
    (line,) = thick(figure.axes[0])
    assert line.get_xydata().tolist() == [[1, 1], [2, 2]]


def test_lines_with_all_that_a_panel_can_have():
    found = curves(2) | {"one": {7: ([3], [np.inf])}}
    panel = Panel("y", found, dashed=curves(2), limits=(0, None), references={"edge": 2.0})
    figure = plots.lines([panel], xlabel="x", band=True)
    axis = png(figure)
    title, names = entries(figure)
    assert names == ["arm 02", "arm 01", "edge"]  # nothing finite of the third
    edge = next(line for line in axis.lines if line.get_label() == "edge")
    assert set(edge.get_ydata()) == {2} and axis.get_ylim()[0] == 0
    assert {line.get_linestyle() for line in thick(axis)} == {"-", "--"}
    band = axis.collections[0].get_paths()[0].vertices
    # 0, 1, 2 have a standard deviation of 1.
    np.testing.assert_allclose(
        [band[:, 1].min(), band[:, 1].max()], [1 - 3**-0.5, 1 + 3**-0.5], rtol=1e-12
    )


def test_a_long_curve_is_drawn_by_some_of_its_points_and_both_ends():
    x = np.arange(1, 40_001)
    for log in (False, True):
        axis = plots.lines([Panel("y", {"a": {0: (x, x)}})], xlabel="x", log=log).axes[0]
        shown = thin(axis)[0].get_xdata()
        assert len(shown) <= 401 and (shown[0], shown[-1]) == (1, 40_000)
        assert (shown == thin(axis)[0].get_ydata()).all()
        steps = np.diff(np.log(shown[shown > 1000]) if log else shown)
        assert steps.max() <= 1.1 * np.median(steps) + 1e-9
        assert axis.get_xscale() == ("log" if log else "linear")


def test_a_logarithmic_axis_needs_something_positive():
    one = {"a": {0: ([1, 2], [-1.0, 0.0])}}
    assert plots.lines([Panel("y", one, log=True)], xlabel="x").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("number", [2, 15, 36])
def test_points_show_every_seed_the_mean_and_its_interval(number):
    values = {arm: {s: 10.0 * i + s for s in (0, 1, 2)} for i, arm in enumerate(arms(number))}
    values[arms(number)[1]][3] = np.nan
    figure = plots.points({"loss": values, "error": values}, references={"chance": 0.5})
    axis = png(figure)
    assert [label.get_text() for label in axis.get_yticklabels()] == arms(number)
    assert axis.get_ylim() == (number - 0.5, -0.5)  # the first arm on top
    title, names = entries(figure)
    assert title == "n = 3 seeds" and names[-1] == "chance" and "95 %" in names[1]
    groups = axis.lines[: 3 * number]
    for i in range(number):
        dots, bar, mean = groups[3 * i : 3 * i + 3]
        assert dots.get_xdata().tolist() == [10 * i, 10 * i + 1, 10 * i + 2]
        assert (mean.get_xdata(), mean.get_ydata()) == ([10 * i + 1], [i])
        # t(.975; 2) = 4.30265 (tables); the standard error of 0, 1, 2 is 1 / sqrt(3).
        np.testing.assert_allclose(
            bar.get_xdata(), 10 * i + 1 + np.array([-1, 1]) * 4.30265 / 3**0.5, atol=1e-5
        )


def test_points_take_intervals_and_say_where_n_differs():
    values = {"a": {0: 1.0, 1: 3.0}, "b": {0: 5.0}}
    figure = plots.points({"x": values}, intervals={"x": {"b": (4.0, 7.0)}}, interval="bootstrap")
    axis = png(figure)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a (n = 2)", "b (n = 1)"]
    assert entries(figure)[0] == "n = 1 to 2 seeds"
    assert axis.lines[4].get_xdata().tolist() == [4, 7]
    alone = plots.points({"x": {"b": {0: 5.0}}}).axes[0]
    assert np.isnan(alone.lines[1].get_xdata()).all()  # one seed has no interval


def test_scatter():
    x = {"sgd": {0: 1.0, 1: 2.0, 2: np.nan}, "sam": {0: 3.0, 5: 1.0}}
    y = {"sam": {0: 30.0, 1: 40.0}, "sgd": {1: 20.0, 0: 10.0, 2: 5.0}}
    figure = plots.scatter([("x", x, "y", y), ("z", y, "y", y)], log=(True, False))
    axis = png(figure)
    sgd, sam = axis.lines
    assert sgd.get_xydata().tolist() == [[1, 10], [2, 20]]
    assert sam.get_xydata().tolist() == [[3, 30]]
    assert entries(figure) == ("n = 2 to 3 seeds", ["sgd (n = 3)", "sam (n = 2)"])
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "x"
    lined = plots.scatter([("x", x, "y", y), ("z", y, "y", y)], references={"chance": 25.0})
    assert [list(one.lines[-1].get_ydata()) for one in lined.axes] == [[25, 25], [25, 25]]
    assert entries(lined)[1][-1] == "chance"
    assert len(entries(plots.scatter([("x", {a: {0: 1.0} for a in arms(36)}, "y",
                                       {a: {0: 1.0} for a in arms(36)})]))[1]) == 36  # fmt: skip


def test_a_line_joins_the_means_that_no_other_beats():
    """b lies behind a, which takes less and has more; c and d are of no use once e is there."""
    x = {"a": {0: 1.0, 1: 3.0}, "b": {0: 3.0}, "c": {0: 9.0}, "d": {0: 8.0}, "e": {0: 8.0}}
    y = {"a": {0: 4.0, 1: 6.0}, "b": {0: 4.0}, "c": {0: 6.0}, "d": {0: 5.5}, "e": {0: 7.0}}
    less = {arm: {seed: -value for seed, value in own.items()} for arm, own in y.items()}
    panels = [("size", x, "y", y), ("size", x, "-y", less)]
    figure = plots.scatter(panels, better=("greater", "less"))
    for axis, sign in zip(figure.axes, (1, -1), strict=True):
        (front,) = (line for line in axis.lines if line.get_linestyle() == "-")
        np.testing.assert_array_equal(front.get_xydata(), [[2.0, sign * 5.0], [8.0, sign * 7.0]])


def test_matrix():
    values = np.array([[1.0, -2.5, np.nan], [0.001, 3e5, 0.0]])
    figure = plots.matrix(values, ["r0", "r1"], ["c0", "c1", "c2"], label="gap; n = 4", center=0)
    axis = png(figure)
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts == {(0, 0): "1", (1, 0): "−2.5", (0, 1): "0.001", (1, 1): "3e+05", (2, 1): "0"}
    (image,) = axis.images
    np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
    assert (image.norm.vmin, image.norm.vmax) == (-3e5, 3e5)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["c0", "c1", "c2"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["r0", "r1"]
    assert figure.axes[1].get_ylabel() == "gap; n = 4"
    for number in (1, 15, 36):
        square = np.arange(1.0, number**2 + 1).reshape(number, number)
        drawn = plots.matrix(square, arms(number), arms(number), label="x", log=number > 1)
        assert len(png(drawn).texts) == number**2


def test_landscape():
    x, y = np.linspace(-1, 1, 9), np.linspace(0, 2, 7)
    bowl = Surface(x, y, 1 + x**2 + y[:, None] ** 2)
    figure = plots.landscape({"sgd": bowl, "sam": bowl._replace(values=2 * bowl.values)},
                             label="loss", log=True)  # fmt: skip
    png(figure)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["sgd", "sam"]
    levels = [axis.collections[0].levels for axis in figure.axes[:2]]
    np.testing.assert_array_equal(*levels)  # the same colours mean the same
    assert (levels[0][0], levels[0][-1]) == (1, 12)
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[0, 0]]
    png(plots.landscape({"plane": Surface(x, y, np.zeros((7, 9)))}, label="loss"))


def test_a_landscape_says_its_scale_and_shows_a_path():
    x, y = np.linspace(-1, 1, 5), np.linspace(0, 2, 7)
    values = 1 + x[:, None] ** 2 + y  # as `geometry` has it, [len(x), len(y)]
    found = Landscape(values, x, y, np.array([2.5, 0.125]), np.float32(0.25), np.int32(0))
    path = [[0.5, 3.0], [0.5, 1.0], [0.0, 0.0]]
    figure = plots.landscape({"sgd": found}, label="loss", log=True, paths={"sgd": path})
    axis = png(figure)
    words = "first direction, |d| = 2.5", "second direction, |d| = 0.125, cosine 0.25"
    assert (axis.get_xlabel(), axis.get_ylabel()) == words
    assert figure.axes[1].get_ylabel() == "loss, logarithmic"
    assert axis.lines[1].get_xydata().tolist() == path and axis.get_ylim() == (0, 2)
    levels = axis.collections[0].levels
    assert (levels[0], levels[-1]) == (1, 4)
    for paths in ({"sam": path}, {"sgd": [[0.0, 1.0, 2.0]]}):
        with pytest.raises(UserError, match="plots.landscape: path"):
            plots.landscape({"sgd": found}, label="loss", paths=paths)


def test_slices():
    x = np.linspace(-1, 1, 5)
    values = np.arange(1, 12.0)[:, None] * x**2
    found = Slices(values, x, values.mean(0), values.std(0), np.int32(0))
    figure = plots.slices({"sgd": found}, label="loss", expected={"sgd": 6 * x**2})
    axis = png(figure)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 6 * x**2)
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0, 10)  # at x = 1: 2 to 10 of 1 to 11
    assert entries(figure) == ("mean, and 80% of directions",
                               ["sgd, 11 directions", "by curvature"])  # fmt: skip
    for options in ({"share": 1.0}, {"expected": {"sam": x}}, {"expected": {"sgd": x[1:]}}):
        with pytest.raises(UserError, match="plots.slices"):
            plots.slices({"sgd": found}, label="loss", **options)


def test_profiles():
    x = np.linspace(-1, 1, 5)
    figure = plots.profiles({"sgd": {0: (x, x**2), 1: (x, 3 * x**2)}}, label="loss")
    axis = png(figure)
    np.testing.assert_allclose(thick(axis)[0].get_ydata(), 2 * x**2)
    assert entries(figure) == ("n = 2 seeds", ["sgd"])


def test_series_of_rows():
    def row(arm, seed, step, value, metric="m", **of):
        return {"arm": arm, "seed": seed, "step": step, "metric": metric, "of": of, "value": value}

    rows = [row("b", 1, 9, 3.0), row("b", 1, 3, 2.0), row("a", 0, 3, 1.0), row("a", 0, 9, None),
            row("a", 0, 9, 7.0, layer=1), row("a", 0, 9, 8.0, metric="train[:64]/x"),
            row("a", 0, 9, 8.0, metric="train[64:128]/x")]  # fmt: skip
    found = plots.series_of(rows, "m")
    assert list(found) == ["b", "a"]
    assert [part.tolist() for part in found["b"][1]] == [[3, 9], [2, 3]]
    assert plots.last_of(rows, "m") == {"b": {1: 3.0}, "a": {0: 1.0}}
    assert plots.last_of(rows, "m", {"layer": 1}) == {"a": {0: 7.0}}
    assert plots.first_set(rows[::-1], "x") == "train[:64]/x"
    assert plots.first_set(rows, "y") is None


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.spectrum(3), "spectrum: give the eigenpairs of one model.*got a int"),
        (
            lambda: plots.spectrum(jax.tree.map(lambda x: x[None], pairs())),
            r"got a population \(Eigenpairs\)",
        ),
        (lambda: plots.spectrum(pairs([np.nan] * 3)), "there is no finite eigenvalue"),
        (lambda: plots.spectrum({}), "there is no finite eigenvalue"),
        (lambda: plots.density(pairs()), "density: give the spectral_density of one model"),
        (
            lambda: plots.density(spectrum_of()._replace(nodes=jnp.full((2, 3), jnp.nan))),
            "not finite; look at its status",
        ),
        (
            lambda: plots.curvature_along_training([1, 2], [1.0], learning_rate=1),
            r"steps must be \(T,\).*got \(2,\) and \(1,\)",
        ),
        (
            lambda: plots.curvature_along_training([1], [1.0], learning_rate=0.0),
            "learning_rate must be one number > 0",
        ),
        (
            lambda: plots.curvature_along_training([1], [1.0], learning_rate=1, errors=[1, 2]),
            r"errors have shape \(2,\), eigenvalues \(1,\)",
        ),
        (
            lambda: plots.lines([Panel("y", {"a": {0: ([1], [np.nan])}})], xlabel="x"),
            "lines: there is no finite point",
        ),
        (
            lambda: plots.lines([Panel("y", {"a": {4: ([1, 2], [1.0])}})], xlabel="x"),
            r"lines: arm 'a', seed 4: x and y must be of one length; got shapes \(2,\) and \(1,\)",
        ),
        (lambda: plots.points({"x": {"a": {}}}), "points: there is no finite value"),
        (
            lambda: plots.scatter([("x", {"a": {0: 1.0}}, "y", {"a": {1: 1.0}})]),
            "scatter: there is no seed with two finite values",
        ),
        (
            lambda: plots.matrix([[1.0]], ["a"], ["b", "c"], label=""),
            r"matrix: 1 names of rows and 2 of columns, and values of shape \(1, 1\)",
        ),
        (
            lambda: plots.matrix([[np.nan]], ["a"], ["b"], label=""),
            "matrix: there is no finite value",
        ),
        (
            lambda: plots.matrix([[0.0]], ["a"], ["b"], label="", log=True),
            "matrix: log=True needs values > 0; got 0",
        ),
        (
            lambda: plots.matrix([[1.0]], ["a"], ["b"], label="", log=True, center=0),
            "matrix: log=True has no center",
        ),
        (
            lambda: plots.landscape({"a": Surface([0, 1], [0, 1], [[1, 2]])}, label=""),
            r"landscape: 'a': x \[W\], y \[H\] and values.*got shapes \(2,\), \(2,\) and \(1, 2\)",
        ),
        (
            lambda: plots.landscape({"a": Surface([0, 1], [0, 1], np.eye(2))}, label="", log=True),
            "landscape: log=True needs values > 0; got 0",
        ),
        (lambda: plots.landscape({}, label=""), "landscape: there is no finite value"),
    ],
)
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(UserError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("low", "high"), [(0.22, 1.6), (3.2e-6, 4e-5), (0.004, 3e3)])
def test_labels_of_a_logarithmic_axis_are_apart(low, high):
    arms = {"a": {0: low}, "b": {0: high}, "c": {0: -1.0}}
    drawn = plots.points({"x": arms}, log=True)
    (axis,) = drawn.axes
    drawn.draw_without_rendering()
    low, high = axis.get_xlim()
    assert low > 0  # what is not positive has no place
    labels = [x for x in axis.get_xticklabels(which="both") if x.get_text()]
    boxes = [x.get_window_extent() for x in labels if low <= x.get_position()[0] <= high]
    assert len(boxes) >= 2
    boxes = sorted(boxes, key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_layer_spectra(monkeypatch):
    tail = (1 - np.arange(50) / 50) ** -0.5
    laws = {f"layer_{i}": plots.LayerLaw(tail, 3.0, 1.0, 2.5, 3.5) for i in range(60)}
    laws |= {"zero": plots.LayerLaw(np.zeros(4)), "nan": plots.LayerLaw(np.full(4, np.nan))}
    figure = plots.layer_spectra(dict(list(laws.items())[-4:]))
    first, *others = figure.axes
    png(figure)
    assert [axis.get_title() for axis in others] == [
        f"layer_{i}\nalpha = 3.00, xmin = 1" for i in (58, 59)
    ]
    points = next(line for line in first.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_ydata(), [3, 3, np.nan, np.nan])
    assert [list(s[:, 1]) for s in first.collections[0].get_segments()] == [[2.5, 3.5]] * 2
    module = importlib.import_module("sharpjax.plots.layer_spectrum")
    monkeypatch.setattr(module, "MOST_PANELS", 4)
    assert len(plots.layer_spectra(laws).axes) == 4
    with pytest.raises(UserError, match="no layer to draw"):
        plots.layer_spectra({})


def test_layer_spectrum():
    values = np.append((1 - np.arange(50) / 50) ** -0.5, 0.0)
    axis = png(plots.layer_spectrum(values, alpha=3.0, xmin=1.0, edge=4.0, name="hidden/kernel"))
    assert axis.get_xscale() == axis.get_yscale() == "log"
    fit, start, edge = axis.lines
    x, y = fit.get_data()
    # 50 of the 51 eigenvalues follow 2 x^-3 from 1 on.
    np.testing.assert_allclose(y, 50 / 51 * 2 * x**-3.0)
    assert list(start.get_xdata()) == [1, 1] and list(edge.get_xdata()) == [4, 4]
    texts = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert texts[0] == "50 eigenvalues above 0, 1 at 0" and "alpha = 3.00" in texts
    png(plots.layer_spectrum(np.ones(4), alpha=float("nan"), xmin=float("nan")))
    for bad in ([1.0, np.nan], [0.0, 1.0]):
        with pytest.raises(UserError, match="plots.layer_spectrum"):
            plots.layer_spectrum(bad)
    with pytest.raises(UserError, match="neither"):
        plots.layer_spectrum(values, alpha=2.0)
