"""Functional similarity of two models: closed forms, oracles, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial import distance as scipy_distance
from sklearn.metrics import cohen_kappa_score

from sharpjax import metrics
from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.metrics.functional import METRICS, confidence
from sharpjax.metrics.functional.outputs import Outputs

SOFT = [name for name, metric in METRICS.items() if metric.formula.guarded]


def draw(num_examples=300, num_classes=6, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, num_examples, num_classes)) * 2
    label = rng.integers(0, num_classes, num_examples)
    return *(np.round(z) if ties else z), label


def classifier(rng, label, num_classes, accuracy):
    """Predictions that are right at this rate, and else any other class alike."""
    wrong = (label + rng.integers(1, num_classes, len(label))) % num_classes
    return np.eye(num_classes)[np.where(rng.uniform(size=len(label)) < accuracy, label, wrong)]


def test_opposite_certainties():
    a, b = np.array([[800.0, 0.0, 0.0]]), np.array([[0.0, 800.0, 0.0]])
    known = {"activation_distance": math.sqrt(2), "l1": 2, "total_variation": 1, "jsd": math.log(2),
             "cosine_similarity": 0, "cosine_distance": 1, "disagreement": 1, "kl": 800,
             "kl_reverse": 800, "jeffreys": 1600}  # fmt: skip
    for name, value in known.items():
        assert METRICS[name].fn(a, b) == pytest.approx(value, rel=1e-12), name
        assert METRICS[name].fn(a, a) == METRICS[name].of_equal, name


def test_divergences_against_scipy():
    a, b, _ = draw()
    p, q = special.softmax(a, axis=1), special.softmax(b, axis=1)
    want = np.mean(scipy_distance.jensenshannon(p, q, axis=1) ** 2)
    assert functional.jensen_shannon(a, b) == pytest.approx(want, rel=1e-10)
    forward, reverse = (np.mean([stats.entropy(x, y) for x, y in zip(*o, strict=True)])
                        for o in ((p, q), (q, p)))  # fmt: skip
    assert functional.kl(a, b) == pytest.approx(forward, rel=1e-10)
    assert functional.kl_reverse(a, b) == pytest.approx(reverse, rel=1e-10)
    assert functional.jeffreys(a, b) == pytest.approx(forward + reverse, rel=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_the_root_of_jsd_is_a_metric_of_one_example(seed):
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, 1, 4)) * rng.choice([0.1, 1, 10])
    middle = np.log((special.softmax(a) + special.softmax(c)) / 2)
    for between in (b, middle):
        root = [math.sqrt(functional.jensen_shannon(*x)) for x in
                ((a, c), (a, between), (between, c))]  # fmt: skip
        assert root[0] <= (root[1] + root[2]) * (1 + 1e-12)


def test_distances_by_hand():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.1, 0.9], [0.9, 0.1]])
    found = {n: METRICS[n].fn(np.log(p), np.log(q), np.zeros(2, int)) for n in SOFT}
    assert found["l1"] == pytest.approx(0.4) and found["total_variation"] == pytest.approx(0.2)
    assert found["activation_distance"] == pytest.approx(math.sqrt(0.32) / 2)
    cosine = 0.5 / math.sqrt(0.5 * 0.82)
    assert found["cosine_similarity"] == pytest.approx((cosine + 1) / 2)
    flat = np.vdot(p, q) / np.linalg.norm(p) / np.linalg.norm(q)
    assert abs(flat - found["cosine_similarity"]) > 0.005
    for fn, want in (
        (functional.cosine_similarity, flat),
        (functional.cosine_distance, 1 - flat),
    ):
        assert fn(np.log(p), np.log(q), flatten=True) == pytest.approx(want)
        assert fn(p, q, probs=True, flatten=True) == pytest.approx(want)
    a, b, _ = draw()
    want = np.mean([scipy_distance.euclidean(x, y) for x, y in zip(a, b, strict=True)])
    assert functional.activation_distance(a, b, space="logits") == pytest.approx(want)
    # No softmax is taken there, so probabilities are as good as any other values.
    found = functional.activation_distance(p, q, space="logits")
    assert found == functional.activation_distance(p, q, probs=True)
    assert functional.logit_rmse(a, b) == pytest.approx(np.sqrt(np.mean((a - b) ** 2)))


def test_the_cosine_distance_of_near_predictions_keeps_its_digits():
    e = 1e-7
    p, q = np.array([[0.5 + e, 0.5 - e]]), np.array([[0.5, 0.5]])
    # 1 - 1/sqrt(1 + 4 e^2) = 2 e^2 to a relative e^2; e itself is known to 1e-16 / e.
    assert functional.cosine_distance(p, q, probs=True) == pytest.approx(2 * e**2, rel=1e-8)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_independent_classifiers(num_classes):
    """Disagreement 1 - [u v + (1 - u)(1 - v)/(K - 1)], and no agreement beyond chance."""
    rng, n, (u, v) = np.random.default_rng(3), 200_000, (0.7, 0.85)
    label = rng.integers(0, num_classes, n)
    a, b = (classifier(rng, label, num_classes, accuracy) for accuracy in (u, v))
    want = 1 - (u * v + (1 - u) * (1 - v) / (num_classes - 1))
    error = 6 * math.sqrt(0.25 / n)
    assert abs(functional.disagreement(a, b) - want) < error
    # The estimates of both accuracies are in it, and 1 - chance is above 0.25.
    assert abs(functional.chance_corrected_agreement(a, b, label)) < 4 * error / want
    assert abs(functional.error_consistency(a, b, label)) < 4 * error / 0.25
    assert abs(functional.error_inconsistency(a, b, label) - (u + v - 2 * u * v)) < error
    assert abs(functional.negative_flip_rate(a, b, label) - u * (1 - v)) < error
    assert abs(functional.positive_flip_rate(a, b, label) - v * (1 - u)) < error
    assert abs(functional.accuracy_difference(a, b, label) - 0.15) < 2 * error
    if num_classes > 2:
        apart = (num_classes - 2) / (num_classes - 1)
        shared = (1 - u) * (1 - v) * n
        assert abs(functional.error_ratio(a, b, label) / (apart / (1 - apart)) - 1) < 12 / np.sqrt(
            shared
        )


@pytest.mark.parametrize("num_classes", [2, 5, 6, 9])
def test_reversed_orders(num_classes):
    a = np.random.default_rng(0).permuted(np.tile(np.arange(num_classes), (50, 1)), axis=1) * 1.0
    found = {n: METRICS[n].fn(a, -a) for n in ("rank_disagreement", "footrule", "kendall_distance")}
    odd = num_classes % 2
    assert found["rank_disagreement"] == pytest.approx(1 - odd / num_classes)
    assert found["footrule"] == pytest.approx(1) == found["kendall_distance"]
    assert functional.spearman(a, -a) == pytest.approx(-1)
    k = num_classes // 2
    assert functional.top_k_agreement(a, -a, k=k) == 0
    assert functional.top_k_agreement(a, -a, k=num_classes) == 1


def test_random_orders_share_1_in_k_ranks():
    a, b, _ = draw(20_000, 10)
    # The variance of the number of fixed points of a permutation is 1.
    assert abs(functional.rank_disagreement(a, b) - 0.9) < 6 / 10 / math.sqrt(20_000)
    assert abs(functional.top_k_agreement(a, b, k=3) - 0.3) < 6 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_of_ranks_against_scipy(ties):
    a, b, _ = draw(ties=ties)
    assert (len(np.unique(a[0])) < 6) == ties
    for fn, oracle in (
        (lambda a, b: 1 - 2 * functional.kendall_distance(a, b), stats.kendalltau),
        (functional.spearman, stats.spearmanr),
    ):
        want = np.mean([oracle(x, y).statistic for x, y in zip(a, b, strict=True)])
        assert fn(a, b) == pytest.approx(want, abs=1e-12)


def test_equal_outputs_rank_by_class():
    tied, first = np.zeros((1, 4)), np.array([[4.0, 3.0, 2.0, 1.0]])
    for fn in (functional.rank_disagreement, functional.footrule, functional.disagreement):
        assert fn(tied, first) == 0
    assert functional.top_k_agreement(tied, first, k=2) == 1
    # Of a row without any order there is no correlation.
    assert np.isnan(functional.spearman(tied, first))
    assert np.isnan(functional.kendall_distance(tied, first))


def test_overlap_is_the_mean_agreement_over_depths():
    a, b, _ = draw(50, 7)
    p, orders = 0.8, [np.argsort(-x, axis=1) for x in (a, b)]
    want = 0.0
    for x, y in zip(*orders, strict=True):
        agreement = [len({*x[:d]} & {*y[:d]}) / d for d in range(1, 8)]
        want += (1 - p) * sum(p**d * share for d, share in enumerate(agreement)) + p**7
    found = functional.rank_biased_overlap(a, b, persistence=p)
    assert found == pytest.approx(want / 50, rel=1e-12)
    assert functional.rank_biased_overlap(a, a, persistence=p) == pytest.approx(1, rel=1e-12)
    top = functional.top_k_agreement(a, b, k=1)
    assert top == pytest.approx(1 - functional.disagreement(a, b))


def test_consistency_of_errors_against_scikit_learn():
    a, b, label = draw(num_classes=3)
    right = [np.argmax(x, axis=1) == label for x in (a, b)]
    found = functional.error_consistency(a, b, label)
    assert found == pytest.approx(cohen_kappa_score(*right), rel=1e-12)
    assert functional.error_consistency(a, a, label) == 1
    perfect = np.eye(3)[label]
    for fn in (functional.error_consistency, functional.chance_corrected_agreement,
               functional.normalized_disagreement, functional.error_ratio):  # fmt: skip
        assert np.isnan(fn(perfect, perfect, label))


def test_measures_of_correctness_are_those_of_five_shares():
    a, b, label = draw(num_classes=3)
    s = functional.joint_shares(a, b, label)
    assert sum(s) == pytest.approx(1)
    assert functional.error_inconsistency(a, b, label) == pytest.approx(s.only_a + s.only_b)
    assert functional.error_ratio(a, b, label) == pytest.approx(s.wrong_apart / s.wrong_alike)
    assert functional.negative_flip_rate(a, b, label) == s.only_a
    assert functional.accuracy_difference(a, b, label) == pytest.approx(abs(s.only_a - s.only_b))
    differ = s.only_a + s.only_b + s.wrong_apart
    assert functional.disagreement(a, b) == pytest.approx(differ)
    own = 1 - s.both_right - s.only_a, 1 - s.both_right - s.only_b
    for by, error in (("a", own[0]), ("b", own[1]), ("mean", sum(own) / 2)):
        found = functional.normalized_disagreement(a, b, label, error_of=by)
        assert found == pytest.approx(differ / error)


@pytest.mark.parametrize("num_bins", [1, 2, 15])
def test_the_difference_of_two_calibration_errors(num_bins):
    """As each of both is summed in float32. No confidence lies within its rounding of an edge."""
    a, b, label = draw()
    a, b = np.float32(a), np.float32(b)
    inner_edge = np.arange(1, num_bins) / num_bins
    for x in (a, b):
        confidence = special.softmax(x, axis=1).max(axis=1)
        assert (abs(confidence[:, None] - inner_edge) > 1e-6).all()
    errors = []
    for x in (a, b):
        totals = metrics.update(metrics.init(num_bins), x, label, np.ones(len(x)))
        errors.append(float(metrics.compute(totals)["ece"].value))
    found = functional.calibration_difference(a, b, label, num_bins=num_bins)
    assert found > 1e-3
    # Of each error at most 16 roundings of numbers up to 1: the softmax of 6 classes (a difference,
    # exp, five sums, a quotient), the gap, compensated sums and their quotient.
    assert found == pytest.approx(abs(errors[0] - errors[1]), abs=2 * 16 * 2.0**-24)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    """.2 is the edge of bins 3 and 4 of 15: there are two gaps of .2 and -.75, and not one."""
    sure = np.array([[0.2] * 5, [0.25, 0.25, 0.25, 0.25, 0.0]])
    right = np.array([[1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]])  # an error of 1/2
    label = np.array([1, 0])
    found = functional.calibration_difference(sure, right, label, probs=True)
    assert found == pytest.approx(abs((0.2 + 0.75) / 2 - 0.5), rel=1e-12)
    # In float32 too, in which 10 times the rounded 1/100 is not 1/10.

    def gaps(z):
        return confidence.binned(100).terms(Outputs(z, 0), Outputs(z, 0))

    for run in (gaps, jax.jit(gaps)):
        assert np.flatnonzero(np.ravel(run(jnp.zeros((1, 10))))).tolist() == [9, 109]


@pytest.mark.parametrize("name", METRICS)
def test_what_predicts_nothing_has_no_value(name):
    a, b, label = draw()
    fn = METRICS[name].fn
    for bad in (np.nan, np.inf, -np.inf):
        broken = b.copy()
        broken[3, 2] = bad
        with pytest.raises(UserError, match="b is not finite in 1 of .* first is number 3"):
            fn(a, broken, label)
        with pytest.raises(UserError, match="a is not finite"):
            fn(broken, a, label)
    assert np.isnan(fn(a[:0], b[:0], label[:0]))


@pytest.mark.parametrize("name", SOFT)
def test_probabilities_and_logits_are_told_apart(name):
    fn = METRICS[name].fn
    a, b, label = draw()
    p, q = special.softmax(a, axis=1), special.softmax(b, axis=1)
    assert fn(p, q, label, probs=True) == pytest.approx(fn(a, b, label), rel=1e-9)
    for dtype in (np.float64, np.float32, np.float16):
        with pytest.raises(
            UserError, match=r"functional\.\w+: these are prob.*probs=True"
        ) as error:
            fn(p.astype(dtype), b.astype(dtype), label)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="probs=True, and these are no probabilities"):
        fn(p, b, label, probs=True)
    # Rows of 0 and 1 are both: logits of a hard choice, and its probabilities.
    hard = np.eye(6)[:4]
    for probs in (False, True):
        assert np.isfinite(fn(hard, hard, np.zeros(4, int), probs=probs))


def test_probabilities_of_0():
    p, q = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert functional.kl(p, q, probs=True) == pytest.approx(math.log(2))
    assert functional.kl(q, p, probs=True) == np.inf == functional.jeffreys(p, q, probs=True)
    assert functional.kl(p, p, probs=True) == 0
    want = (math.log(4 / 3) + math.log(2 / 3) / 2 + math.log(2) / 2) / 2
    assert functional.jensen_shannon(p, q, probs=True) == pytest.approx(want)


@pytest.mark.parametrize("name", METRICS)
def test_what_does_not_fit_is_named(name):
    metric = METRICS[name]
    a, b, label = draw()
    for given in ((a, b[:9], label), (a, b[:, :5], label), (a, b, label[:9]), (a[0], b[0], label)):
        with pytest.raises(UserError, match=r"functional\.\w+: a is .* of the same examples and"):
            metric.fn(*given)
    with pytest.raises(UserError, match="of one class"):
        metric.fn(a[:, :1], b[:, :1], label)
    if metric.reads_labels:
        for bad in (label + 1, label - 6):
            with pytest.raises(UserError, match="a label is no class: from 0 to 5"):
                metric.fn(a, b, bad)
        with pytest.raises(UserError, match="label is float64; give integers"):
            metric.fn(a, b, label * 1.0)


def test_options_that_there_are_not():
    a, b, label = draw()
    for call, said in (
        (lambda: functional.top_k_agreement(a, b, k=7), "7 classes or more, and .* have 6"),
        (lambda: functional.top_k_agreement(a, b, k=0), "k must be a whole number >= 1, got 0"),
        (lambda: functional.top_k_agreement(a[:, :4], b[:, :4]), "5 classes or more, .* a k of 4"),
        (lambda: functional.rank_biased_overlap(a, b, persistence=1.0), "persistence=1.0; give"),
        (lambda: functional.activation_distance(a, b, space="logit"), "mean 'logits'"),
        (lambda: functional.normalized_disagreement(a, b, label, error_of="c"), "unknown error_of"),
        (lambda: functional.error_ratio(a, b, None), "it reads labels; give label"),
        (lambda: functional.calibration_difference(a, b, label, num_bins=0), "whole number >= 1"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_a_student_that_copies_what_a_teacher_gets_wrong():
    rng, n, k = np.random.default_rng(0), 60_000, 5
    label = rng.integers(0, k, n)
    teacher, control = (classifier(rng, label, k, accuracy) for accuracy in (0.6, 0.8))
    wrong = np.argmax(teacher, axis=1) != label
    copied = wrong & (rng.uniform(size=n) < 0.5)
    student = np.where(copied[:, None], teacher, classifier(rng, label, k, 0.8))
    found = functional.transfer_asymmetry(student, teacher, control, label)
    # A control shares an error by chance in 0.2/4; half of the students' are copied.
    error = 6 * math.sqrt(0.5 / (0.4 * n))
    assert abs(found.wrong - 0.5 * (1 - 0.05)) < error and abs(found.right) < error
    assert found.asymmetry == found.wrong - found.right
    assert (found.num_wrong, found.num_right) == (wrong.sum(), n - wrong.sum())
    same = functional.transfer_asymmetry(control, teacher, control, label)
    assert same[:3] == (0, 0, 0)


def test_where_there_is_no_asymmetry():
    a, b, label = draw()
    perfect = np.eye(6)[label]
    found = functional.transfer_asymmetry(a, perfect, b, label)
    assert np.isnan(found.wrong) and np.isnan(found.asymmetry) and found.num_wrong == 0
    assert found.right == pytest.approx(
        np.mean(a.argmax(1) == label) - np.mean(b.argmax(1) == label)
    )
    for given, said in (
        ((a * np.nan, a, b, label), "student is not finite"),
        ((a[:9], a, b, label), "student is .*, teacher .* of the same examples"),
        ((a, a, b[:, :3], label), "control is"),
        ((a, a, b, label + 1), "a label is no class"),
    ):
        with pytest.raises(UserError, match=said):
            functional.transfer_asymmetry(*given)
