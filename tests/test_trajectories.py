"""Models as functions along their training: distances of states, and the pictures of them."""

import numpy as np
import pytest
from scipy import special

from sharpjax import plots
from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.metrics.embedding import classical_mds
from sharpjax.metrics.trajectory import by_model, distances, stacked
from tests.test_plots import entries, png


def training(number=7, size=30, num_classes=4, seed=0):
    """Logits [E, N, K] that grow and turn."""
    rng = np.random.default_rng(seed)
    start, end = rng.normal(size=(2, size, num_classes))
    t = np.linspace(0, 1, number)[:, None, None]
    return (1 - t) * start + 3 * t * end


def test_distances_are_those_of_pairs():
    logits, others = training(), training(3, seed=1)
    for kind, distance in (
        ("activation", functional.activation_distance),
        ("sqrt_jensen_shannon", lambda a, b, _=None: np.sqrt(functional.jensen_shannon(a, b))),
        ("disagreement", functional.disagreement),
    ):
        want = functional.pairwise(list(logits), distance)
        np.fill_diagonal(want, 0.0)
        np.testing.assert_allclose(distances(logits, kind=kind), want, rtol=1e-10)
        want = [[distance(a, b) for b in others] for a in logits]
        np.testing.assert_allclose(distances(logits, others, kind=kind), want, rtol=1e-10)


@pytest.mark.parametrize("kind", ["activation", "sqrt_jensen_shannon", "disagreement"])
def test_each_is_a_metric(kind):
    """The divergence itself is none: of a coin's 0, 1/2 and 1 it is log 2 > 2 * 0.2158."""
    far = distances(np.concatenate([training(), 5 * training(seed=2)]), kind=kind)
    assert (far == far.T).all() and (np.diag(far) == 0).all()
    detour = (far[:, :, None] + far[None]).min(axis=1)
    assert (far <= detour + 1e-12).all()
    coins = np.array([[[99.0, 0.0]], [[0.0, 0.0]], [[0.0, 99.0]]])
    squares = distances(coins, kind="sqrt_jensen_shannon") ** 2
    assert squares[0, 2] > squares[0, 1] + squares[1, 2] + 0.2


def test_the_root_of_the_divergence_is_euclidean_in_some_space():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(25, 4, 3)) * rng.uniform(0.1, 30, size=(25, 1, 1))
    assert classical_mds(distances(logits, kind="sqrt_jensen_shannon")).negative < 1e-12
    assert classical_mds(distances(logits, kind="disagreement")).negative > 1e-3


def test_a_state_that_is_not_finite_is_nowhere():
    logits = training(4)
    logits[2, 0, 0] = np.inf
    found = distances(logits)
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    assert np.isfinite(found[np.ix_([0, 1, 3], [0, 1, 3])]).all()


def test_models_are_stacked_and_taken_apart():
    outputs = {("sgd", 0): training(3), ("sam", 0): training(5)}
    every = stacked(outputs)
    again = by_model(every, outputs)
    assert list(again) == list(outputs)
    assert all((again[name] == outputs[name]).all() for name in outputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: distances(x[0]), r"logits is \[30, 4\]; give \[P, N, K\]"),
        (lambda x: distances(special.softmax(x, axis=-1)), "distances: these are probabilities"),
        (
            lambda x: distances(special.softmax(x, axis=-1).astype(np.float16)),
            "distances: these are probabilities",
        ),
        (lambda x: distances(x, x[:, 1:]), r"states of shapes .* of the same examples"),
        (lambda x: distances(x, kind="l2"), "kind='l2'; give one of activation"),
        (lambda x: stacked({"a": x, "b": x[:, 1:]}), "stacked: outputs of 2 models"),
        (lambda x: stacked({}), "stacked: outputs of 0 models"),
        (lambda x: by_model(x[1:], {"a": x}), "6 points, and the outputs are of 7 states"),
        (lambda x: plots.trajectories({}), "trajectories: there is no finite point"),
        (lambda x: plots.trajectories({"a": {3: x}}), r"arm 'a', seed 3: a path must be \[E, 2\]"),
        (lambda x: plots.distances(x[0], {"a": [1, 2]}, label=""), "states of 1 models, 2 in all"),
        (lambda x: plots.distances([[np.nan]], {"a": [1]}, label=""), "no finite value"),
        (lambda x: plots.distances([[-1.0]], {"a": [1]}, label=""), "a distance of -1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message) as error:
        call(training())
    assert "\n" not in str(error.value)


def test_a_landscape_of_trajectories():
    paths = {
        "sgd": {0: [[0.0, 0.0], [1.0, 1.0], [2.0, np.nan]], 1: [[0.0, 1.0], [3.0, 1.0]]},
        "sam": {0: [[1.0, 0.0], [2.0, 5.0]], 1: [[np.nan, 0.0]]},
    }
    figure = plots.trajectories(paths, share=[0.71, 0.2])
    axis = png(figure)
    assert entries(figure) == ("n = 1 to 2 seeds", ["sgd (n = 2)", "sam (n = 1)", "start"])
    drawn = [line.get_xydata().tolist() for line in axis.lines if len(line.get_xydata())]
    one, other, sgd_ends, third, sam_ends, starts = drawn
    assert one == [[0, 0], [1, 1]] and third == [[1, 0], [2, 5]]
    assert sgd_ends == [[1, 1], [3, 1]] and sam_ends == [[2, 5]]
    assert starts == [[0, 0], [0, 1], [1, 0]]
    assert axis.get_xlabel() == "first axis, 71%" and axis.get_aspect() == 1


def test_distances_of_many_states():
    sizes = {"sgd 0": 30, "sam 0": 25}
    states = {name: range(1, size + 1) for name, size in sizes.items()}
    values = np.abs(np.subtract.outer(np.arange(55.0), np.arange(55.0)))
    values[3, 4] = np.nan
    axis = png(plots.distances(values, states, label="activation distance"))
    (image,) = axis.images
    np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
    assert (image.norm.vmin, image.norm.vmax) == (0, 54) and not axis.texts
    assert [line.get_xdata()[0] for line in axis.lines[::2]] == [29.5]
    ticks = dict(zip(axis.get_yticks(), axis.get_yticklabels(), strict=True))
    assert len(ticks) <= 17 and ticks[0].get_text() == ticks[30].get_text() == "1"
    assert [label.get_text() for label in axis.get_xticklabels()] == list(sizes)
    many = png(plots.distances(values, {f"m{i}": range(11) for i in range(5)}, label="d"))
    assert [label.get_text() for label in many.get_yticklabels()] == [f"m{i}" for i in range(5)]
    assert many.get_yticks().tolist() == [5, 16, 27, 38, 49]
