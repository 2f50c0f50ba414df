"""What is declared of each metric of outputs holds, and what is declared not to hold does not."""

import itertools
import math

import numpy as np
import pytest

from sharpjax.metrics.functional import METRICS

NAMES = list(METRICS)


def random(seed, num_examples=4, num_classes=6, ties=False):
    """Three models and labels; of the middle one half is that of either other."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, num_examples, num_classes)) * rng.choice([0.3, 1, 10])
    if ties:
        a, b, c = (np.round(2 * x / abs(a).max()) for x in (a, b, c))
    if seed % 2:
        b = np.where(np.arange(num_examples)[:, None] % 2, a, c)
    return a, b, c, rng.integers(0, num_classes, num_examples)


def opposite(num_classes):
    """Two that always differ, each right on half, and with reversed orders."""
    order = 100.0 * np.arange(num_classes)
    a = np.stack([order, -order])
    return a, -a, np.full(2, num_classes - 1)


def crafted():
    """Errors of their own, the middle one's both; certainties, the middle one between them."""
    errors = [np.eye(6)[list(x)] for x in ((1, 0, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0))]
    yield *errors, np.zeros(4, int)
    one, other = 100 * np.eye(6)[:1], 100 * np.eye(6)[1:2]
    yield one, (one + other) / 2, other, np.zeros(1, int)
    # Errors alike with the middle one, and with each other hardly.
    yield *(np.eye(6)[list(x)] for x in ((1, 1, 1), (1, 2, 1), (2, 2, 1))), np.zeros(3, int)


def triples():
    yield from (random(seed) for seed in range(60))
    yield from (random(seed, 1) for seed in range(20))
    yield from (random(seed, 2, ties=True) for seed in range(60))
    yield from crafted()


def pool():
    """Pairs of models with labels, the extreme ones too."""
    for a, b, c, label in triples():
        yield from ((x, y, label) for x, y in ((a, b), (a, c), (a, a)))
    for num_classes in (5, 6, 10):
        a, b, label = opposite(num_classes)
        yield from ((a, b, label), (b, a, label))
        yield a[:1], b[:1], label[:1]
        yield b[:1], a[:1], label[:1]
    yield np.eye(6)[[0, 1]], np.eye(6)[[1, 0]], np.zeros(2, int)


def values(name, given):
    found = np.array([METRICS[name].fn(*x) for x in given])
    return found[~np.isnan(found)]


@pytest.mark.parametrize("name", NAMES)
def test_range(name):
    metric = METRICS[name]
    found = values(name, pool())
    assert len(found) > 50
    assert found.min() >= metric.low - 1e-12 and found.max() <= metric.high + 1e-12
    # The ends are reached, but those that only many classes come near to.
    if name == "rank_biased_overlap":
        assert found.min() < 0.52
    elif name == "chance_corrected_agreement":  # -1 asks for two classes
        two = np.array([[1.0, 0], [0, 1]])
        assert metric.fn(two, two[::-1], np.zeros(2, int)) == metric.low
    else:
        assert found.min() == pytest.approx(metric.low, abs=1e-12)
    if math.isfinite(metric.high):
        assert found.max() == pytest.approx(metric.high, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_direction_and_equal_outputs(name):
    metric = METRICS[name]
    equal = values(name, ((a, a, label) for a, _, _, label in triples()))
    np.testing.assert_allclose(equal, metric.of_equal, atol=1e-12)
    end, sign = (metric.high, -1) if metric.larger_is_more_similar else (metric.low, 1)
    assert metric.of_equal == end
    others = values(name, ((a, c, label) for a, _, c, label in triples()))
    assert np.all(sign * (others - end) >= -1e-12) and np.any(sign * (others - end) > 0.01)


@pytest.mark.parametrize("name", NAMES)
def test_symmetry(name):
    fn = METRICS[name].fn
    forth, back = np.array([(fn(a, c, y), fn(c, a, y)) for a, _, c, y in triples()]).T
    same = np.isclose(forth, back, rtol=1e-12, atol=1e-14, equal_nan=True)
    assert same.all() == METRICS[name].symmetric


@pytest.mark.parametrize("name", NAMES)
def test_the_triangle_inequality(name):
    metric = METRICS[name]

    def holds(a, b, c, label):
        sides = [metric.fn(*x, label) for x in ((a, c), (a, b), (b, c))]
        back = metric.fn(c, a, label)
        if np.isnan([*sides, back]).any():
            return True
        rounding = 1e-12 * (1 + abs(sides[0]))
        equal = abs(sides[0] - back) <= rounding and metric.of_equal == 0
        return equal and sides[0] <= sides[1] + sides[2] + rounding

    found = [holds(*x[:3], x[3]) for x in triples()]
    assert all(found) == metric.is_metric


def shifted(rng, a, c, label):
    return *(x + rng.normal(size=(len(x), 1)) for x in (a, c)), label


def scaled(rng, a, c, label):
    return *(x * rng.uniform(0.1, 0.8) for x in (a, c)), label


def classes_exchanged(rng, a, c, label):
    order = rng.permutation(a.shape[1])
    return a[:, order], c[:, order], np.argsort(order)[label]


def examples_exchanged(rng, a, c, label):
    order = rng.permutation(len(a))
    return a[order], c[order], label[order]


CHANGES = {
    "shift": shifted,
    "scale": scaled,
    "classes": classes_exchanged,
    "examples": examples_exchanged,
}


@pytest.mark.parametrize(("name", "change"), itertools.product(NAMES, CHANGES))
def test_invariances(name, change):
    """No outputs are equal here: rankings put equal ones in the order of the classes."""
    metric, rng = METRICS[name], np.random.default_rng(0)
    given = [(a, c, label) for a, _, c, label in (random(seed, 20) for seed in range(8))]
    before = np.array([metric.fn(*x) for x in given])
    after = np.array([metric.fn(*CHANGES[change](rng, *x)) for x in given])
    same = np.isclose(before, after, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert np.isfinite(before).any()
    assert same.all() == (change in metric.invariant_to)
    if change not in metric.invariant_to:
        assert np.nanmax(abs(before - after)) > 1e-3


def test_keys_are_the_names_of_functions():
    assert {n for n, m in METRICS.items() if m.fn.__name__ != n} == {"jsd"}
    for metric in METRICS.values():
        assert "<" not in metric.fn.__qualname__  # a plan writes it down by this name
