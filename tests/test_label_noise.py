"""Noisy labels: exact counts, always another class, and the same for the same seed."""

from typing import Any

import numpy as np
import pytest

from sharpjax.data import Examples, label_noise
from sharpjax.data.label_noise import noisy


def examples(num, num_classes=10, seed=0):
    label = np.random.default_rng(seed).integers(0, num_classes, num, dtype=np.int32)
    return Examples(np.arange(num, dtype=np.float32)[:, None], label)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize(
    ("share", "num", "count"),
    [
        (0.1, 1_000, 100),
        (0.29, 100, 29),
        (0.5, 3, 2),
        (0.25, 2, 1),
        (0.35, 10, 4),
        (0.999, 1_000, 999),
    ],
)
def test_exactly_so_many_labels_are_of_another_class(share, num, count, num_classes):
    for seed in range(5):
        true = examples(num, num_classes)
        result = noisy(true, share=share, num_classes=num_classes, seed=seed, kind="other")
        assert (result.label != true.label).sum() == count  # .29 as it is written, halves up
        np.testing.assert_array_equal(result.true_label, true.label)
        np.testing.assert_array_equal(result.input, true.input)
        narrow: Any = np.float32(share)  # the same decimal number
        again = noisy(true, share=narrow, num_classes=num_classes, seed=seed, kind="other")
        np.testing.assert_array_equal(again.label, result.label)
        assert result.label.dtype == np.int32
        assert result.label.min() >= 0 and result.label.max() < num_classes


def test_nothing_is_changed_in_place():
    true = examples(50)
    before = true.label.copy()
    noisy(true, share=0.9, num_classes=10, seed=0, kind="other")
    np.testing.assert_array_equal(true.label, before)


def test_no_noise_is_the_examples_themselves():
    true = examples(5)
    assert noisy(true, share=0.0, num_classes=10, seed=0, kind="other") is true


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_more_noise_keeps_what_less_has_replaced(kind):
    true = examples(500)
    shares = (0.1, 0.4, 0.8) + ((1.0,) if kind == "uniform" else ())
    levels = [noisy(true, share=s, num_classes=10, seed=3, kind=kind).label for s in shares]
    for less, more in zip(levels, levels[1:], strict=False):
        changed = less != true.label
        np.testing.assert_array_equal(less[changed], more[changed])
        assert (more != true.label).sum() > changed.sum()


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_the_seed_decides(kind):
    def label(seed):
        return noisy(examples(300), share=0.5, num_classes=10, seed=seed, kind=kind).label

    np.testing.assert_array_equal(label(1), label(1))
    assert (label(1) != label(2)).any()


@pytest.mark.parametrize(("kind", "classes"), [("other", 9), ("uniform", 10)])
def test_new_classes_come_up_equally_often(kind, classes):
    """Given the seed this is a fixed number: chi-squared, 99.9 % of it below."""
    num = 90_000
    true = Examples(np.zeros((num, 1), np.float32), np.full(num, 4, np.int32))
    share = 0.999 if kind == "other" else 1.0
    new = noisy(true, share=share, num_classes=10, seed=0, kind=kind).label
    count = np.bincount(new, minlength=10).astype(float)
    if kind == "other":
        assert count[4] == 90  # those that were not replaced
        count = np.delete(count, 4)
    expected = count.sum() / classes
    limit = {9: 26.1, 10: 27.9}[classes]
    assert ((count - expected) ** 2 / expected).sum() < limit


def test_the_stream_is_known():
    # A golden value: a change of it changes every result with noisy labels.
    true = Examples(np.zeros((8, 1), np.float32), np.arange(8, dtype=np.int32))
    label = noisy(true, share=0.5, num_classes=8, seed=0, kind="other").label
    assert label.tolist() == GOLDEN


GOLDEN = [0, 4, 7, 3, 4, 5, 3, 2]
