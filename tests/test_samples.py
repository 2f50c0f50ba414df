"""The numbers that a contrast compares: aligned, complete, or said to be neither."""

from typing import Any

import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Quantity
from sharpjax.protocol.samples import gather
from tests.protocol_cases import LOSS, contrast, rows

A, B = [0.1, 0.2, 0.3], [1.1, 1.2, 1.3]
BOTH = rows("sam", A) + rows("sgd", B)


def whole(table, one, **options) -> Any:
    samples, gap, left_out = gather(table, one, **options)
    assert gap == left_out == ""
    return samples


def incomplete(table, one, **options) -> tuple[str, Any]:
    samples, gap, left_out = gather(table, one, **options)
    assert gap and "\n" not in gap and not left_out
    return gap, samples


def lists(found):
    return [group.tolist() for group in found.groups]


def test_pairs_are_aligned_by_seed_whatever_the_order_of_rows():
    found = whole(rows("sam", A[::-1], seeds=[2, 1, 0]) + rows("sgd", B), contrast())
    assert lists(found) == [A, B]
    assert found.clusters is None and found.seen is None
    assert all(group.dtype == np.float64 for group in found.groups)


def test_each_arm_ends_at_its_own_last_step():
    early = rows("sgd", [9, 9, 9], step=9) + rows("sgd", B, step=18)
    assert lists(whole(rows("sam", A) + early, contrast())) == [A, B]
    at = contrast(quantity=Quantity("test/loss", at=9))
    assert lists(whole(rows("sam", A) + early, at)) == [A, [9, 9, 9]]


def test_a_metric_that_was_not_taken_at_the_end():
    later = BOTH + rows("sgd", B, "train/loss", step=20)
    reason, there = incomplete(later, contrast())
    assert reason == "arm 'sgd' has no test/loss at step 20, its last; it has some at 9."
    assert there is None


def test_independent_groups_may_differ_in_size():
    found = whole(rows("sam", A) + rows("sgd", B[:2]), contrast(test="welch"))
    assert lists(found) == [A, B[:2]]


def test_missing_seeds_are_named_and_the_rest_is_kept():
    table = rows("sam", A) + rows("sgd", B[:2])
    reason, there = incomplete(table, contrast())
    assert reason == "test/loss is missing in arm 'sgd' seed 2."
    assert lists(there) == [A[:2], B[:2]]
    reason, there = incomplete(BOTH, contrast(test="welch"), seeds=range(8))
    assert "test/loss is missing in arm 'sam' seed 3, arm 'sam' seed 4, arm 'sam' seed 5" in reason
    assert "and 2 more" in reason
    assert lists(there) == [A, B]


def test_seeds_that_died_are_said_to_have():
    table = rows("sam", A) + rows("sgd", B[:2]) + rows("sgd", [1, 1, 0], "train/alive")
    reason, _ = incomplete(table, contrast())
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 2."


def test_what_a_seed_gives_after_it_died_is_no_measurement():
    table = BOTH + rows("sgd", [1, 1, 0], "train/alive")
    reason, there = incomplete(table, contrast())
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 2."
    assert lists(there) == [A[:2], B[:2]]
    later = BOTH + rows("sgd", [1, 1, 0], "train/alive", step=99)
    at_9 = Quantity("test/loss", at=9)
    assert lists(whole(later, contrast(quantity=at_9))) == [A, B]
    alive = Quantity("train/alive")
    assert lists(whole(table, contrast(("sgd",), quantity=alive, test="binomial"))) == [[1, 1, 0]]


def test_one_of_several_models_of_a_seed_that_turned_non_finite():
    def copies(values, metric="test/loss", arm="sgd"):
        return [
            row | {"of": {"copy": i}}
            for i, own in enumerate(values)
            for row in rows(arm, own, metric)
        ]

    table = (
        copies([A, B]) + copies([[1, 0, 1], [1, 1, 1]], "train/alive") + copies([A, B], arm="sam")
    )
    other = contrast(quantity=Quantity("test/loss", of={"copy": 1}))
    assert lists(whole(table, other)) == [B, B]
    reason, there = incomplete(table, contrast(quantity=Quantity("test/loss", of={"copy": 0})))
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 1 {\"copy\":0}."
    assert len(there.groups[0]) == 2
    each = Quantity("test/loss", over=("seed", "copy"))
    reason, there = incomplete(table, contrast(quantity=each, test="welch"), seeds=[0, 1, 2])
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 1 {\"copy\":0}."
    assert sorted(map(len, there.groups)) == [5, 6]
    reason, there = incomplete(table, contrast(quantity=each))
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 1 {\"copy\":0}."
    assert lists(there)[0] == [0.1, 1.1, 1.2, 0.3, 1.3]  # and its pair is gone


DEAD = BOTH + rows("sgd", [1, 0, 1], "train/alive") + rows("sam", [0, 1, 1], "train/alive")


@pytest.mark.parametrize("seeds", [None, range(3)])
def test_dead_seeds_are_never_left_out_without_a_word(seeds):
    """Registered or not, paired or not: what diverged may well be what did worst."""
    for test, kept in {"wilcoxon": [A[2:], B[2:]], "welch": [A[1:], [B[0], B[2]]]}.items():
        reason, there = incomplete(DEAD, contrast(test=test), seeds=seeds)
        assert reason == (
            "1 turned non-finite in training: arm 'sam' seed 0; "
            "1 turned non-finite in training: arm 'sgd' seed 1."
        )
        assert lists(there) == kept


@pytest.mark.parametrize("seeds", [None, range(3)])
def test_dead_seeds_are_left_out_where_that_was_the_rule(seeds):
    samples, gap, left_out = gather(DEAD, contrast(), seeds=seeds, diverged="left out")
    assert gap == "" and lists(samples) == [A[2:], B[2:]]
    assert "arm 'sam' seed 0" in left_out and "arm 'sgd' seed 1" in left_out
    # Other seeds that lack are a gap all the same.
    _, gap, left_out = gather(DEAD, contrast(), seeds=range(4), diverged="left out")
    assert gap == (
        "test/loss is missing in arm 'sam' seed 3; test/loss is missing in arm 'sgd' seed 3."
    )
    gone = BOTH + rows("sgd", [0, 0, 0], "train/alive")
    samples, gap, left_out = gather(gone, contrast(), diverged="left out")
    assert samples is None and gap == "there is no value of 'sam' to compare."
    assert left_out.startswith("3 turned non-finite in training: arm 'sgd' seed 0")


def test_seeds_that_were_not_registered_do_not_count():
    assert lists(whole(BOTH, contrast(), seeds=[0, 2])) == [[0.1, 0.3], [1.1, 1.3]]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value):
    table = rows("sam", [0.1, value, 0.3]) + rows("sgd", B)
    reason, there = incomplete(table, contrast())
    assert reason == "test/loss is not finite in arm 'sam' seed 1."
    assert lists(there) == [[0.1, 0.3], [1.1, 1.3]]  # the pair is gone
    _, there = incomplete(table, contrast(test="welch"))
    assert lists(there) == [[0.1, 0.3], B]


def test_nothing_left():
    reason, there = incomplete(rows("sam", [None]) + rows("sgd", [1.0]), contrast())
    assert "not finite" in reason and there is None
    reason, there = incomplete(BOTH, contrast(), seeds=[7])
    assert "seed 7" in reason and there is None


def test_duplicated_rows_are_refused():
    again = BOTH + rows("sam", [0.2], seeds=[1])
    with pytest.raises(UserError, match="duplicated rows: arm 'sam' has test/loss of seed 1 at st"):
        whole(again, contrast())
    apart = BOTH + rows("sam", A, of={"severity": 1})
    assert whole(apart[:6], contrast())
    with pytest.raises(UserError, match="severity"):
        whole(apart + apart[-1:], contrast())


def test_unknown_names_say_what_there_is():
    reason, _ = incomplete(BOTH, contrast(quantity=Quantity("test/los")))
    assert reason == "arm 'sam' has no metric 'test/los'; did you mean 'test/loss'?"
    reason, _ = incomplete(BOTH, contrast(quantity=Quantity("calibration")))
    assert reason == "arm 'sam' has no metric 'calibration'; it has test/loss."
    reason, _ = incomplete(BOTH, contrast(groups=("sma", "sgd")))
    assert reason == "there are no rows of arm 'sma'; did you mean 'sam'?"


def severities(arm, values):
    return [r for s, v in values.items() for r in rows(arm, v, of={"severity": s})]


def test_coordinates_choose_rows():
    table = severities("sam", {1: A, 5: B}) + severities("sgd", {1: B, 5: A})
    five = contrast(quantity=Quantity("test/loss", of={"severity": 5}))
    assert lists(whole(table, five)) == [B, A]
    reason, there = incomplete(table, contrast())
    assert "several values for one unit; its coordinates (severity)" in reason and there is None
    six = contrast(quantity=Quantity("test/loss", of={"severity": 6}))
    assert incomplete(table, six)[0] == "arm 'sam' has no test/loss of {\"severity\":6}."
    other = contrast(quantity=Quantity("test/loss", over=("seed", "layer")))
    assert "has no coordinate 'layer'" in incomplete(table, other)[0]


LAYERS = Quantity("test/loss", over=("seed", "layer"))


def of_layers(arm, values, **options):
    return [r for name, v in values.items() for r in rows(arm, v, of={"layer": name}, **options)]


def test_layers_of_a_seed_are_a_cluster():
    table = of_layers("sam", {"a": A, "b": B}) + of_layers("sgd", {"b": [3, 4, 5], "a": [6, 7, 8]})
    found = whole(table, contrast(quantity=LAYERS))
    assert lists(found) == [[0.1, 1.1, 0.2, 1.2, 0.3, 1.3], [6, 3, 7, 4, 8, 5]]
    assert found.clusters is not None and found.clusters.tolist() == [0, 0, 1, 1, 2, 2]
    # Independent groups: labels of one group's units after the other's.
    found = whole(table, contrast(quantity=LAYERS, test="auc"))
    assert found.clusters is not None and len(found.clusters) == 12
    few = of_layers("sam", {"a": A, "b": B}) + of_layers("sgd", {"a": A})
    found = whole(few, contrast(quantity=LAYERS, test="auc"))
    assert found.clusters is not None and found.clusters.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    drawn = Quantity("test/loss", over=("seed", "layer"), independent=True)
    assert whole(table, contrast(quantity=drawn)).clusters is None
    for mixed in ((drawn, LAYERS), (LAYERS, drawn)):  # a registration older than today's rules
        assert whole(table, contrast(quantity=mixed)).clusters is not None
        assert whole(table, contrast(quantity=mixed, test="auc")).clusters is not None


def test_a_layer_without_its_pair_is_named():
    table = of_layers("sam", {"a": A, "b": B}) + of_layers("sgd", {"a": A})
    reason, there = incomplete(table, contrast(quantity=LAYERS))
    assert reason.startswith("test/loss is missing in arm 'sgd' seed 0 \"b\"")
    assert reason.endswith("and pairs need it.")
    assert lists(there) == [A, A]


def test_units_pair_whatever_the_order_of_their_coordinates():
    table = [
        row
        for layer in range(2)
        for head in range(3)
        for arm, shift in (("sam", 0.0), ("sgd", 1.0))
        for row in rows(arm, [shift + 3 * layer + head], of={"layer": layer, "head": head})
    ]
    orders = (("seed", "layer", "head"), ("head", "seed", "layer"))
    one, other = (tuple(Quantity("test/loss", over=over) for over in orders[::i]) for i in (1, -1))
    found = whole(table, contrast(quantity=one))
    np.testing.assert_allclose(found.groups[1] - found.groups[0], np.ones(6))
    assert lists(whole(table, contrast(quantity=other))) == lists(found)


MAYBE = Quantity("test/critical", over=("seed", "layer"), optional=True)


@pytest.mark.parametrize("seeds", [None, range(3)])
def test_a_seed_without_a_unit_is_counted_where_that_may_be(seeds):
    table = of_layers("sam", {"a": A}) + of_layers("sam", {"a": [7]}, metric="test/critical")
    table += of_layers("sam", {"b": [8]}, metric="test/critical", seeds=[1])
    one = contrast(("sam",), quantity=MAYBE, test="mean")
    samples, gap, left_out = gather(table, one, seeds=seeds)
    assert lists(samples) == [[7, 8]] and gap == ""
    assert left_out == "1 without test/critical: arm 'sam' seed 2."
    strict = contrast(("sam",), quantity=LAYERS, test="mean")
    assert "missing in arm 'sam' seed 3" in incomplete(table, strict, seeds=range(4))[0]
    # A seed that never ran is a gap, and a value that is not finite.
    _, gap, left_out = gather(table, one, seeds=range(4))
    assert gap == "test/critical is missing in arm 'sam' seed 3."
    bad = table + of_layers("sam", {"a": [None]}, metric="test/critical", seeds=[2])
    assert gather(bad, one).gap == "test/critical is not finite in arm 'sam' seed 2."
    samples, gap, _ = gather(table[:3], one, seeds=range(3))
    assert samples is None and gap == "there is no value of 'sam' to compare."


def test_a_layer_without_a_pair_where_that_may_be():
    table = of_layers("sam", {"a": A, "b": B}, metric="test/critical")
    table += of_layers("sgd", {"a": A}, metric="test/critical")
    samples, gap, left_out = gather(table, contrast(quantity=MAYBE))
    assert lists(samples) == [A, A] and gap == ""
    assert left_out.startswith("3 without test/critical: arm 'sgd' seed 0 \"b\"")


def test_arms_are_pooled():
    gap = rows("sam", [5, 6, 7], "test/gap") + rows("sgd", [8, 9, 10], "test/gap")
    sides = (LOSS, Quantity("test/gap"))
    pooled = contrast(("sam|sgd", "sam|sgd"), test="spearman", quantity=sides)
    found = whole(BOTH + gap, pooled)
    assert lists(found) == [A + B, [5, 6, 7, 8, 9, 10]]
    assert found.clusters is not None and found.clusters.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.arms.tolist() == ["sam"] * 3 + ["sgd"] * 3
    assert whole(BOTH + gap, contrast(("sam|sgd", "sam|sgd"))).arms is None  # pairs have none
    alone = contrast(("sam", "sam"), test="spearman", quantity=sides)
    assert whole(BOTH + gap, alone).arms.tolist() == ["sam"] * 3
    reason, there = incomplete(BOTH + gap[:-1], pooled)
    assert reason == "test/gap is missing in arm 'sgd' seed 2." and len(there.groups[0]) == 5


def test_two_quantities_of_one_arm_are_paired():
    sides = (Quantity("test/scaled"), LOSS)
    table = BOTH + rows("sam", [3, 2, 1], "test/scaled")
    assert lists(whole(table, contrast(("sam", "sam"), quantity=sides))) == [[3, 2, 1], A]


TIMES = Quantity("test/loss", seen="test/seen")


def test_censoring():
    table = BOTH + rows("sam", [1, 0, 1], "test/seen") + rows("sgd", [0, 0, 0], "test/seen")
    found = whole(table, contrast(test="log-rank", quantity=TIMES))
    assert found.seen is not None
    assert [flags.tolist() for flags in found.seen] == [[True, False, True], [False] * 3]
    reason, there = incomplete(table[:-1], contrast(test="log-rank", quantity=TIMES))
    assert reason == "test/seen is missing in arm 'sgd' seed 2."
    assert [len(g) for g in there.groups] == [len(s) for s in there.seen] == [3, 2]
    odd = BOTH + rows("sam", [1, 2, 1], "test/seen") + rows("sgd", [0, 0, 0], "test/seen")
    assert "0 or 1, not 2" in incomplete(odd, contrast(test="log-rank", quantity=TIMES))[0]


PAIRS = Quantity("test/jsd", over=("pair",))


def pairs(arm, models, value, *, both=False, skip=()):
    return [
        row
        for i in models
        for j in models
        if (i < j or (both and i != j)) and (i, j) not in skip
        for row in rows(arm, [value(i, j)], "test/jsd", of={"pair": [i, j]}, seeds=[i])
    ]


def test_square_arrays():
    one = contrast(test="pairwise-difference", quantity=PAIRS)
    table = pairs("sam", range(4), lambda i, j: 10 * i + j)
    table += pairs("sgd", range(4), lambda i, j: i - j, both=True)
    first, second = whole(table, one, seeds=range(4)).groups
    assert first[1, 3] == first[3, 1] == 13  # given one way
    assert second[1, 3] == -second[3, 1] == -2  # given both ways
    assert np.isnan(np.diag(first)).all() and np.isfinite(first).sum() == 12


def test_missing_pairs_leave_out_the_model_they_lack():
    one = contrast(test="pairwise-difference", quantity=PAIRS)
    table = pairs("sam", range(5), lambda i, j: i + j)
    table += pairs("sgd", range(5), lambda i, j: i + j, skip={(1, 3), (0, 3)})
    reason, there = incomplete(table, one, seeds=range(5))
    assert "test/jsd is missing in pair [0, 3] of arm 'sgd'" in reason
    assert [g.shape for g in there.groups] == [(4, 4), (4, 4)]
    assert there.groups[0][2, 3] == 2 + 4  # models 0, 1, 2, 4 are left
    reason, there = incomplete(table, one, seeds=range(6))
    assert "[0, 5]" in reason and there is not None


def test_dead_models_are_in_no_pair():
    one = contrast(test="pairwise-difference", quantity=PAIRS)
    table = [r for arm in ("sam", "sgd") for r in pairs(arm, range(5), lambda i, j: i + j)]
    table += rows("sgd", [1, 1, 1, 1, 0], "train/alive")
    reason, there = incomplete(table, one, seeds=range(5))
    assert reason == "1 turned non-finite in training: arm 'sgd' seed 4."
    assert [g.shape for g in there.groups] == [(4, 4), (4, 4)]
    samples, gap, left_out = gather(table, one, seeds=range(5), diverged="left out")
    assert gap == "" and left_out == reason and samples.groups[0].shape == (4, 4)


def test_rows_that_are_no_pairs():
    one = contrast(test="pairwise-difference", quantity=PAIRS)
    bad = rows("sam", [1.0], "test/jsd") + rows("sgd", [1.0], "test/jsd")
    assert "has no pair of models" in incomplete(bad, one)[0]
    twice = pairs("sam", range(3), lambda i, j: 1.0)
    twice += rows("sam", [1.0], "test/jsd", of={"pair": [0, 1]}, seeds=[1])
    assert "has pair [0, 1] twice" in incomplete(twice, one)[0]
    few = [r for arm in ("sam", "sgd") for r in pairs(arm, range(2), lambda i, j: 1.0)]
    reason, there = incomplete(few, one)
    assert "too few" in reason and there is None
