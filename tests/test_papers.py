"""The registry of the seven papers: all 50 hypotheses, as the papers' page lists them."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.protocol import wording
from sharpjax.protocol.canonical import canonical_json, from_dict, to_dict
from sharpjax.protocol.claims import (
    Composite,
    Quantity,
    arms,
    check,
    contrasts,
    families,
    quantities,
)
from sharpjax.protocol.judging.corrections import levels
from sharpjax.protocol.judging.verdicts import decide
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples
from sharpjax.studies.papers import (
    HYPOTHESES,
    PAPERS,
    paper1,
    paper2,
    paper3,
    paper4,
    paper5,
    paper6,
    paper7,
)

stats: Any = scipy.stats  # whose annotations do not know its results' fields

# Frozen: how firm the details of each claim are in its paper.
STATUS = {
    "H1.1": "firm", "H1.2": "firm", "H1.3": "firm", "H1.4": "firm", "H1.5": "firm",
    "H1.6": "partial", "H1.7": "partial", "H1.8": "weak", "H1.9": "weak", "H1.10": "weak",
    "H1.11": "weak",
    "H2.1": "partial", "H2.2": "partial", "H2.3": "partial", "H2.4": "partial", "H2.5": "partial",
    "H2.6": "partial",
    "H3.1": "firm", "H3.2": "firm", "H3.3": "firm", "H3.4": "firm", "H3.5": "firm",
    "H3.6": "firm", "H3.7": "firm",
    "H4.1": "weak", "H4.2": "weak", "H4.3": "design", "H4.4": "design", "H4.5": "design",
    "H5.1": "partial", "H5.2": "partial", "H5.3": "partial", "H5.4": "weak", "H5.5": "weak",
    "H5.6": "partial",
    "H6.1": "firm", "H6.2": "firm", "H6.3": "firm", "H6.4": "firm", "H6.5": "firm",
    "H6.6": "firm", "H6.7": "firm", "H6.8": "firm", "H6.9": "weak",
    "H7.1": "firm", "H7.2": "firm", "H7.3": "firm", "H7.4": "firm", "H7.5": "partial",
    "H7.6": "firm",
}  # fmt: skip
BY_ID = {h.id: h for h in HYPOTHESES}


def test_all_fifty_in_order_with_their_certainty():
    assert [(h.id, h.status) for h in HYPOTHESES] == list(STATUS.items())
    assert len(STATUS) == 50


def test_they_can_be_decided():
    check(HYPOTHESES)
    used = {c.test for h in HYPOTHESES for c in contrasts(h)}
    assert used <= catalog.TESTS.keys() and len(used) > 15


@pytest.mark.parametrize("one", HYPOTHESES, ids=lambda h: h.id)
def test_each_says_what_a_reader_needs(one):
    assert one.claim.endswith(".") and one.source and one.refuted_if
    if one.status != "design":
        papers = (paper1, paper2, paper3, paper5, paper6, paper7)
        built = [h for paper in papers for h in paper.HYPOTHESES]
        assert one.missing.endswith(".") != (one in built), "only these can be run"
        assert one.reference or one.uncertain
    assert bool(one.contrasts) == (one.id not in ("H4.1", "H4.2"))
    assert one.refuted_by == "never" or not one.refuting or one.id == "H6.9"
    assert one.refuted_by != "never" or one.refuting or not one.contrasts
    for contrast in contrasts(one):
        assert wording.describe(contrast)
        for quantity in quantities(contrast):
            assert quantity.metric.count("/") >= 1
        for arm in (arm for group in contrast.groups for arm in arms(group)):
            assert arm.replace("-", "").replace("_", "").isalnum()
    assert from_dict(json.loads(canonical_json(to_dict(one)))) == one


def test_seeds_that_diverged_are_not_left_out():
    assert {h.diverged for h in HYPOTHESES} == {"inconclusive"}


def test_what_can_be_run():
    runnable = [h.id for h in HYPOTHESES if not h.missing]
    counts = {1: 11, 2: 6, 3: 7, 4: 5, 5: 6, 6: 9, 7: 6}
    every = [f"H{paper}.{i + 1}" for paper, count in counts.items() for i in range(count)]
    assert runnable == [id for id in every if id not in ("H4.1", "H4.2")]


def test_families_of_paper_1():
    """ECE, corruption and disagreement of one condition are corrected together, and so are the
    three measures of sharpness; gap and accuracy are not corrected."""
    members = {}
    for h in HYPOTHESES[:7]:
        for contrast, family in families(h):
            key = canonical_json(to_dict(dataclasses.replace(contrast, family=None)))
            members.setdefault((family, h.correction), set()).add(key)
    assert len(HYPOTHESES[0].contrasts) == 15
    sizes = {f: len(m) for (f, _), m in members.items()}
    assert sizes["safety cifar10-vit-aug_sam"] == 3
    assert sizes["sharpness cifar10-vit-aug_sam"] == 3
    assert sizes["sharpness cifar10-vit-aug_sam (refuting)"] == 3
    assert sizes["H1.2 gap cifar10-vit-aug_sam"] == sizes["H1.2 accuracy cifar10-vit-wd"] == 1
    assert {c for (f, c) in members if f.startswith("safety")} == {"by"}


def test_cells_are_arguments():
    few = paper1.hypotheses(("aug",), ("resnet20",), ("digits",))
    assert [h.id for h in few] == [h.id for h in paper1.HYPOTHESES]
    assert {g for c in contrasts(few[0]) for g in c.groups} == {
        "digits-resnet20-aug", "digits-resnet20-base"
    }  # fmt: skip
    for other in (
        paper5.hypotheses(("lenet",), ("mnist", "digits")),
        paper6.hypotheses(("lenet",), ("mnist", "digits"), ("lenet",)),
        paper7.hypotheses(("lenet",), ("mnist",)),
    ):
        check(other)


def test_paper_3_is_what_its_table_says():
    first = BY_ID["H3.1"]
    cells = list(contrasts(first))
    pairs = {c.groups for c in cells}
    assert len(cells) == len(pairs) == 12 and first.combine == "all"
    assert ("add97-svd_12-50", "add97-dense-50") in pairs
    assert {c.direction for c in cells} == {"less"}
    (trend,) = contrasts(BY_ID["H3.3"])
    assert trend.groups == tuple(f"add97-svd_{rank}-50" for rank in (100, 50, 25, 12))
    assert {task for task in paper3.BUDGETS} == {"add97", "add67", "sub97"}
    seventh = {a.split("-")[0] for c in contrasts(BY_ID["H3.7"]) for g in c.groups for a in arms(g)}
    assert seventh == {"add67", "sub97"}


# Mean epochs of table 1, and their standard errors over ten models.
TABLE = {
    "dense": ((37886.4, 789.3), (15302.7, 759.8), (8049.8, 436.1)),
    "svd_100": ((15270.0, 1066.7), (4144.9, 527.5), (494.7, 134.7)),
    "svd_50": ((11827.9, 1114.6), (3511.5, 367.8), (720.2, 179.9)),
    "svd_25": ((3646.2, 366.5), (548.0, 93.1), (233.8, 118.5)),
    "svd_12": ((754.2, 259.6), (446.8, 251.0), (182.2, 42.3)),
}
NUM_PARAMS = {"dense": 91_107, "svd_100": 127_419, "svd_50": 63_595, "svd_25": 31_683,
              "svd_12": 15_955}  # fmt: skip


def paper_3_rows():
    """Ten models with the mean and standard error of the table, from a gamma law."""
    rng = np.random.default_rng(3)
    rows = []
    for model, cells in TABLE.items():
        for fraction, (mean, error) in zip(paper3.FRACTIONS, cells, strict=True):
            drawn = rng.gamma((mean / error) ** 2 / 10, 1, 10)
            drawn = mean + (drawn - drawn.mean()) / drawn.std(ddof=1) * error * np.sqrt(10)
            best = np.where(model == "dense", 0.9999 + 0.00005 * rng.random(10), 1.0)
            counts = np.full(10, NUM_PARAMS[model])
            metrics = (paper3.EPOCH.metric, paper3.ACCURACY.metric, paper3.NUM_PARAMS.metric)
            for metric, values in zip(metrics, (drawn, best, counts), strict=True):
                rows += [
                    {"study": "s", "arm": paper3.arm("add97", model, fraction), "seed": seed,
                     "step": paper3.BUDGETS["add97"][fraction], "of": {}, "metric": metric,
                     "value": float(value), "standard_error": 0.0}
                    for seed, value in enumerate(values)
                ]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def paper_3():
    found = decide(paper3.HYPOTHESES, paper_3_rows(), seeds=range(10), detectable=None)
    return {j.hypothesis.id: j for j in found}


def test_paper_3_decides_its_own_table(paper_3):
    """With numbers like the table's, what the paper says of them is what comes out."""
    for (model, fraction), cell in paper3.TABLE_1.items():
        assert cell[2:] == TABLE[model][paper3.FRACTIONS.index(fraction)]
    for name in ("H3.1", "H3.3", "H3.4", "H3.5", "H3.6"):
        assert paper_3[name].verdict == "supported", paper_3[name].reason
    ratios = [f.result.effect for f in paper_3["H3.2"].findings[:3]]
    assert 1 - np.array(ratios) == pytest.approx([0.9800, 0.9708, 0.9774], abs=2e-4)
    effect = paper_3["H3.4"].findings[0].result.effect
    assert effect == pytest.approx(0.9506 - 0.6317, abs=2e-4)
    assert paper_3["H3.7"].verdict == "not run"
    assert "there are no rows of arm 'add67-svd_100-50'" in paper_3["H3.7"].reason


def made(means, *, spread=0.01, seeds=10):
    """Rows of each arm and metric: its mean times 1 + noise that all arms of a seed share half."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=seeds)
    rows = []
    for (arm, metric), mean in means.items():
        values = mean * (1 + spread * (shared + rng.normal(size=seeds)))
        if metric == paper1.DISAGREEMENT.metric:
            rows += pairs(arm, metric, (values[:, None] + values[None, :]) / 2)
            continue
        rows += [row(arm, metric, seed, value) for seed, value in enumerate(values)]
    return rows


def row(arm, metric, seed, value, of=None):
    return {"study": "s", "arm": arm, "seed": seed, "step": 1, "of": of or {}, "metric": metric,
            "value": float(value), "standard_error": 0.0}  # fmt: skip


def pairs(arm, metric, values):
    """Rows of each two seeds."""
    each = itertools.combinations(range(len(values)), 2)
    return [row(arm, metric, i, values[i, j], {"pair": [i, j]}) for i, j in each]


def words(asked, rows):
    asked = [dataclasses.replace(h, missing="") for h in asked]
    found = decide(asked, rows, seeds=range(10), detectable=None)
    return {j.hypothesis.id: j.verdict for j in found}


def paper_1_means(sharpness=2.0, better=True):
    """Every condition is sharper than Base by a factor, and better or worse in all else."""
    good = {"test/accuracy": 0.9, "test/corrupted_accuracy": 0.7}
    bad = {"test/gap": 0.1, "test/ece": 0.05, "test/disagreement": 0.2}
    means = {}
    for condition in ("base", *paper1.CONDITIONS):
        arm, up = f"digits-lenet-{condition}", condition != "base"
        for name in paper1.SHARPNESS:
            means[arm, f"train/{name}"] = sharpness if up else 1.0
        for values, sign in ((good, 1), (bad, -1)):
            for metric, value in values.items():
                means[arm, metric] = value * (1 + (0.2 if up else 0) * sign * (1 if better else -1))
    return means


@pytest.mark.parametrize(
    ("sharpness", "better", "expected"),
    [
        (2.0, True, ["supported"] * 7),
        (0.5, True, ["refuted", *["supported"] * 4, "refuted", "refuted"]),
        (2.0, False, ["supported", *["refuted"] * 4, "inconclusive", "inconclusive"]),
    ],
)
def test_directions_of_paper_1(sharpness, better, expected):
    asked = paper1.hypotheses(architectures=("lenet",), data_sets=("digits",))[:7]
    found = words(asked, made(paper_1_means(sharpness, better)))
    assert list(found.values()) == expected


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_disagreement_of_conditions_that_do_not_differ(noise):
    """Under its null, H1.5 rejects no more often than its level says.

    The disagreement of models i and j is a_i + a_j + noise e_ij with normal a and e, drawn alike in
    both conditions. Without e the difference of means is twice that of ten independent a, and the
    test is Student's to the letter; what e adds the jackknife does not under-estimate (Efron and
    Stein, Annals of Statistics 9, 1981). Bounds are five binomial standard errors from the level,
    and from the 0.20 of the signed-rank test of the seeds' means, which share their pairs.
    """
    asked = dataclasses.replace(paper1.hypotheses(("aug",), ("n",), ("d",))[4], missing="")
    (contrast,) = contrasts(asked)
    studies, seeds = 1_000, 10
    generator, rejected, of_means = np.random.default_rng(0), 0, 0
    for _ in range(studies):
        rows, means = [], []
        for arm in contrast.groups:
            own, both = generator.normal(size=seeds), generator.normal(size=(seeds, seeds))
            values = own[:, None] + own[None, :] + noise * (both + both.T) / math.sqrt(2)
            rows += pairs(arm, paper1.DISAGREEMENT.metric, values)
            means.append((values.sum(1) - np.diag(values)) / (seeds - 1))
        (judgement,) = decide([asked], rows, seeds=range(seeds), detectable=None)
        rejected += judgement.verdict == "supported"
        of_means += stats.wilcoxon(*means, alternative=contrast.direction).pvalue <= 0.05

    def bound(rate):
        return 5 * math.sqrt(rate * (1 - rate) / studies)

    assert rejected / studies <= 0.05 + bound(0.05)
    assert of_means / studies >= 0.2 - bound(0.2)


def test_ranks_over_seeds_are_of_what_each_seed_has():
    """H1.10 tests mean ranks over seeds: disagreement, whose seeds share pairs, is not in them."""
    asked = [q for h in paper1.HYPOTHESES[1:5] for c in contrasts(h) for q in quantities(c)]
    assert set(paper1.RANKED) == {q.metric for q in asked if q.over == ("seed",)}
    assert set(paper1.BETTER) - set(paper1.RANKED) == {"test/disagreement"}
    best = paper1.HYPOTHESES[9]
    assert all(c.quantity == Quantity("test/mean_rank") for c in contrasts(best))


def test_arms_that_share_seeds_are_compared_seed_by_seed():
    """Where arms have start, order of data or teacher in common, the test knows of it.

    'auc' takes the seeds for clusters. Papers 3 and 4 are as they were registered.
    """
    for one in (h for paper in PAPERS if paper not in (paper3, paper4) for h in paper.HYPOTHESES):
        for contrast in contrasts(one):
            kind = catalog.TESTS[contrast.test].kind
            paired = kind not in ("independent", "many", "times") or contrast.test == "auc"
            assert paired, f"{one.id}: {wording.describe(contrast)}"


def test_ten_seeds_can_reject_in_every_family():
    """The least p of a signed-rank test of ten pairs, and of units in ten clusters, is 2^-10 on
    one side. In a larger family no numbers could ever be significant."""
    for one in (h for paper in PAPERS if paper not in (paper3, paper4) for h in paper.HYPOTHESES):
        members = {}
        for contrast, family in families(one):
            key = canonical_json(to_dict(contrast))
            members.setdefault(family, {})[key] = contrast.direction
        for family, directions in members.items():
            floor = 2.0**-10 * (2 if "two-sided" in directions.values() else 1)
            assert levels(one.alpha, len(directions), one.correction)[0] >= floor, family


@pytest.mark.parametrize(("within", "expected"), [(0, "supported"), (1, "inconclusive")])
def test_signs_of_two_measures_do_not_make_one_that_turns(within, expected):
    """H1.9 is of one measure: negative over the conditions, and positive within one of them."""
    conditions, table = ("base", "aug", "wd"), []
    for place, condition in enumerate(conditions):
        for seed in range(10):
            found = {"test/gap": place + 0.01 * seed}
            for number, name in enumerate(paper1.SHARPNESS):
                over, inside = -1 if number == 0 else 0, 1 if number == within else -1
                found[f"train/{name}"] = over * place + 0.01 * inside * seed
            arm = f"d-n-{condition}"
            table += [row(arm, metric, seed, value) for metric, value in found.items()]
    asked = paper1.hypotheses(conditions[1:], ("n",), ("d",), ())[8]
    assert words([asked], table) == {"H1.9": expected}


# Means of the report's tables: training loss, error, ECE, scaled ECE, weight norm, Fisher-Rao norm,
# relative flatness, the same scaled, noise sharpness.
PAPER_6 = {
    "cifar10": {
        "baseline-es": (0.9, 14.4, 11.0, 7.5, 49.3, 0.8, 2.2, 3.8, 1.2),
        "augmentation-es": (7.0, 11.1, 6.6, 2.7, 51.5, 2.3, 12.1, 13.2, 6.6),
        "dropout-es": (0.8, 13.9, 11.0, 7.6, 39.1, 0.8, 1.2, 2.9, 2.8),
        "weight_decay-es": (18.0, 18.2, 10.8, 2.9, 33.2, 3.9, 4.5, 6.2, 9.2),
        "baseline": (0.5, 14.0, 10.8, 7.4, 49.1, 0.4, 2.2, 3.8, 1.7),
        "augmentation": (6.4, 10.6, 6.0, 2.2, 49.6, 2.2, 12.2, 13.3, 3.2),
        "dropout": (0.6, 13.4, 10.5, 7.1, 38.3, 0.6, 1.2, 2.8, 0.9),
        "weight_decay": (11.2, 16.2, 8.9, 2.4, 34.4, 2.7, 4.5, 6.1, 13.5),
    },
    "cifar100": {
        "baseline-es": (0.3, 49.9, 38.4, 27.1, 768.3, 0.6, 4.4, 19.7, 0.4),
        "augmentation-es": (36.0, 39.5, 20.0, 6.1, 693.6, 5.4, 78.4, 71.7, 6.5),
        "dropout-es": (1.1, 47.4, 36.2, 24.9, 700.2, 1.1, 6.9, 17.0, 1.2),
        "weight_decay-es": (57.5, 49.8, 25.0, 5.9, 170.3, 6.7, 28.2, 32.3, 25.0),
        "baseline": (0.6, 49.5, 37.6, 26.0, 752.3, 0.8, 4.4, 19.7, 0.8),
        "augmentation": (38.5, 38.7, 18.0, 4.6, 661.5, 5.2, 78.3, 71.7, 6.3),
        "dropout": (1.4, 47.1, 35.5, 24.0, 681.3, 1.1, 6.9, 17.0, 1.1),
        "weight_decay": (55.1, 49.5, 23.6, 5.1, 181.7, 6.3, 28.2, 32.3, 24.5),
    },
}
PAPER_6_METRICS = (
    "train/nll", "test/error", "test/ece", "test/scaled/ece", "train/weight_norm",
    "train/fisher_rao_norm", "train/relative_flatness", "train/scaled/relative_flatness",
    "train/noise_sharpness",
)  # fmt: skip
LOG_IGS = {"baseline": -1.9, "augmentation": 0.9, "dropout": -2.5, "weight_decay": 1.5}


def paper_6_rows():
    means = {}
    for data, arms_of in PAPER_6.items():
        for arm, values in arms_of.items():
            name = f"{data}-vgg19-{arm}"
            means |= {(name, m): v for m, v in zip(PAPER_6_METRICS, values, strict=True)}
            means[name, "test/ece_reduction"] = 1 - values[3] / values[2]
            if arm.endswith("-es"):  # of CIFAR-100 it was not measured: as on CIFAR-10
                means[name, "train/igs"] = 10 ** LOG_IGS[arm.removesuffix("-es")]
    return made(means, spread=0.02)


def test_paper_6_decides_its_own_tables():
    found = words(paper6.HYPOTHESES[2:7], paper_6_rows())
    assert found == {f"H6.{i}": "supported" for i in (3, 4, 5, 6, 7)}


def test_paper_6_says_the_numbers_of_its_tables():
    """What is shown beside ours is what the tables give, to their last digit."""
    table = {
        arm: {m: v / 100 if m in ("test/error", "test/ece", "test/scaled/ece") else v
              for m, v in zip(PAPER_6_METRICS, values, strict=True)}
        for data, own in PAPER_6.items()
        for arm, values in {f"{data}-vgg19-{name}": v for name, v in own.items()}.items()
    }  # fmt: skip
    found = {}
    for name in ("H6.3", "H6.4", "H6.5", "H6.6"):
        for c in contrasts(BY_ID[name]):
            sides = zip(c.groups, quantities(c), strict=True)
            means = [table[arm].get(q.metric, np.nan) for arm, q in sides]
            if len(means) == 4:
                expected = np.log(means[0] / means[1]) - np.log(means[2] / means[3])
            else:
                expected = means[0] - means[1]
            if c.reported is not None:
                assert c.reported == pytest.approx(expected, abs=1e-4)
                found[name] = found.get(name, 0) + 1
    assert found == {"H6.3": 4, "H6.4": 12, "H6.5": 4, "H6.6": 24}
    (scaling, _) = contrasts(BY_ID["H6.7"])
    assert scaling.reported is None  # pooled arms have no difference of means to compare with


def test_paper_6_says_its_correlations():
    """Those of the report are of the eight means of CIFAR-10, and of four of igs."""
    own, columns = PAPER_6["cifar10"], {m: i for i, m in enumerate(PAPER_6_METRICS)}
    said = {}
    for one in (BY_ID[name] for name in ("H6.1", "H6.2", "H6.8")):
        for c in (c for c in contrasts(one) if c.reported is not None):
            x, y = (q.metric for q in quantities(c))
            assert {arm.split("-")[0] for arm in arms(c.groups[0])} == {"cifar10"}
            said[x, y] = c.reported
            if x in columns:
                points = [(values[columns[x]], values[columns[y]]) for values in own.values()]
            else:
                points = [(LOG_IGS[r], own[f"{r}-es"][columns[y]]) for r in LOG_IGS]
            rho = stats.spearmanr(*np.transpose(points)).statistic
            assert c.reported == pytest.approx(rho, abs=0.01), (x, y)
    assert said == paper6.CORRELATIONS


# The report's rho and its two-sided p, over eight means of CIFAR-10 (four of igs): papers.md, 6.
PAPER_6_RHO = {
    ("train/weight_norm", "test/error"): (-0.738, 0.037),
    ("train/relative_flatness", "test/error"): (-0.206, 0.62),
    ("train/fisher_rao_norm", "test/error"): (0.335, 0.42),
    ("train/noise_sharpness", "test/error"): (0.310, 0.46),
    ("train/noise_sharpness", "train/nll"): (0.857, 0.007),
    ("train/relative_flatness", "train/nll"): (0.667, 0.071),
    ("train/fisher_rao_norm", "train/nll"): (0.994, 0.0),
    ("train/relative_flatness", "test/ece"): (-0.748, 0.033),
    ("train/scaled/relative_flatness", "test/scaled/ece"): (-0.778, 0.023),
    ("train/fisher_rao_norm", "test/ece"): (-0.339, 0.41),
    ("train/noise_sharpness", "test/ece"): (-0.410, 0.31),
    ("test/ece", "test/error"): (0.542, 0.17),
    ("test/scaled/ece", "test/error"): (0.238, 0.57),
    ("train/igs", "test/ece"): (-0.738, 0.26),
    ("train/igs", "test/scaled/ece"): (-0.800, 0.20),
    ("train/igs", "test/error"): (0.4, 0.6),
    ("train/igs", "train/nll"): (1.0, 0.01),
}


@pytest.mark.parametrize("test", ["spearman", "spearman-over-arms"])
@pytest.mark.parametrize(("x", "y"), PAPER_6_RHO)
def test_correlations_of_the_eight_published_means(test, x, y):
    """Our rho is the report's to three digits. Its p are from a t-distribution, ours from all
    orders: within .03 over eight means. Over four of 24 orders none is below 1 / 12, and what the
    report calls p < .01 is that."""
    columns = {metric: i for i, metric in enumerate(PAPER_6_METRICS)}
    own = PAPER_6["cifar10"]
    arms_of = [name for name in own if "igs" not in x or name.endswith("-es")]

    def values(metric):
        if metric == "train/igs":
            return np.array([LOG_IGS[name.removesuffix("-es")] for name in arms_of])
        return np.array([float(own[name][columns[metric]]) for name in arms_of])

    found = catalog.run(test, Samples((values(x), values(y))), alternative="two-sided")
    rho, p = PAPER_6_RHO[x, y]
    assert found.effect == pytest.approx(rho, abs=6e-4)
    if len(arms_of) == 8:
        assert found.p == pytest.approx(p, abs=0.03)
    else:
        assert found.p >= 1 / 12 - 1e-9 and (found.p < 0.1) == (p < 0.05)


def test_numbers_of_a_paper_are_of_its_own_cells():
    (order,) = contrasts(BY_ID["H5.6"])
    assert order.reported == pytest.approx(0.263 - 0.251)
    for other in (
        paper5.hypotheses(("vit_narrow",), ("cifar10",), reordered="vit_narrow"),
        paper5.hypotheses(("vit",), ("mnist",)),
        paper6.hypotheses(("vgg_narrow",), classes=("vgg_narrow",)),
        paper6.hypotheses(("vgg19",), ("mnist", "digits"), ("vgg19",)),
    ):
        assert {c.reported for one in other for c in contrasts(one)} == {None}


@pytest.mark.slow
def test_paper_6_correlations_of_its_own_tables():
    """What the report says of its tables comes out of them, but for H6.1: given these eight arms,
    three of the five measures do rise with the error on CIFAR-10 (rho 0.3 to 0.4 in the report),
    which its test of eight means is too weak to see."""
    asked = [paper6.HYPOTHESES[i] for i in (0, 1, 7)]
    assert words(asked, paper_6_rows()) == {
        "H6.1": "refuted", "H6.2": "supported", "H6.8": "supported"
    }  # fmt: skip


def test_one_definition_of_a_critical_layer_is_sealed():
    assert paper2.CRITICAL_DROP == 0.02
    for one in paper2.HYPOTHESES[:2]:
        assert "2 points of accuracy or more" in one.uncertain


def test_a_net_without_a_critical_layer_is_no_gap():
    """H2.1 and H2.2 are decided where all layers of some seed are robust."""
    generator, table = np.random.default_rng(0), []
    for arm, seed, layer in itertools.product(("n-reinit", "n-rerandom"), range(10), range(6)):
        kind = "critical" if layer < 2 and seed != 3 else "robust"
        value, change = generator.normal(4.0, 0.5), generator.normal(0.5, 0.1)
        found = {"value": value, "change": change, "absolute_change": abs(change)}
        for name, number in found.items():
            table.append(row(arm, f"{kind}/alpha/{name}", seed, number, {"layer": str(layer)}))
    asked = paper2.hypotheses(("n",), ("alpha",), {"n": ()})[:2]
    asked = [dataclasses.replace(h, missing="") for h in asked]
    for judgement in decide(asked, table, seeds=range(10), detectable=None):
        for finding in judgement.findings:
            assert "Fewer units" not in finding.reason and finding.verdict != "not run"
    assert words(asked, table)["H2.1"] == "supported"
    robust = [one for one in table if not (one["seed"] == 3 and one["of"]["layer"] == "5")]
    assert words(asked, robust) == words(asked, table), "as many layers as there are"


PAPER_7 = {
    "float16": 0.02, "int8": 0.03, "pruned_10": 0.05, "pruned_30": 0.1, "pruned_50": 0.2,
    "pruned_70": 0.5, "pruned_90": 1.2, "independent": 1.0,
    **{f"{mode}_{w}": 1.0 for mode in ("kd", "kd_paper") for w in (10, 50, 90)},
}  # fmt: skip


def paper_7_means(initial=0.3, **changes):
    means = {
        (f"digits-lenet-{method}", f"base/{d}"): distance
        for method, distance in (PAPER_7 | changes).items()
        for d in paper7.DISTANCES
    }
    return means | {("digits-lenet-pruned_90", "init/activation_distance"): initial}


@pytest.mark.parametrize(
    ("changes", "refuted"),
    [
        ({}, set()),
        ({"int8": 0.7}, {"H7.1"}),
        ({"pruned_50": 1.4}, {"H7.2"}),
        ({"kd_10": 0.5, "kd_50": 0.5, "kd_90": 0.5}, {"H7.3"}),
        ({"initial": 2.0}, {"H7.5"}),
        ({"kd_10": 1.3, "kd_90": 0.7}, {"H7.4"}),
        ({"int8": 1.4, "pruned_50": 1.2, "kd_50": 1.1}, {"H7.1", "H7.2", "H7.6"}),
    ],
)
def test_directions_of_paper_7(changes, refuted):
    found = words(paper7.hypotheses(("lenet",), ("digits",)), made(paper_7_means(**changes)))
    assert {name for name, verdict in found.items() if verdict == "refuted"} == refuted
    if not refuted:
        assert set(found.values()) == {"supported"}


PAPER_5 = {"siddo": 1.0, "disdo": 1.1, "uniform_90": 1.1, "gaussian_90": 1.1, "kd_90": 0.8}


def paper_5_means(kd=0.8, noise=0.95, wrong=0.3, other=0.5):
    means = {}
    for net, data in (("vit", "a"), ("vit", "b")):
        for condition, distance in (PAPER_5 | {"kd_90": kd if data == "a" else other}).items():
            arm = f"{data}-{net}-{condition}"
            means |= {(arm, f"teacher/{d}"): distance for d in paper5.DISTANCES}
            means[arm, "test/accuracy"] = noise if "_90" in condition else 0.95
        means[f"{data}-{net}-kd_90", "test/accuracy"] = 0.95
        means[f"{data}-{net}-kd_90", "wrong/excess_agreement"] = wrong
        means[f"{data}-{net}-kd_90", "right/excess_agreement"] = 0.1
    return means


@pytest.mark.parametrize(
    ("changes", "refuted"),
    [
        ({}, {"H5.6"}),  # the made numbers have DISDO farther, against the blog
        ({"kd": 0.3, "other": 0.8}, {"H5.2", "H5.6"}),
        ({"kd": 1.5}, {"H5.1", "H5.6"}),
        ({"noise": 0.9}, {"H5.3", "H5.6"}),
        ({"wrong": 0.05}, {"H5.5", "H5.6"}),
        ({"other": 0.8}, {"H5.4", "H5.6"}),
    ],
)
def test_directions_of_paper_5(changes, refuted):
    asked = paper5.hypotheses(("vit",), ("a", "b"), (90,))
    found = words(asked, made(paper_5_means(**changes), spread=0.002))
    assert {name for name, verdict in found.items() if verdict == "refuted"} == refuted
    if not changes:
        assert {verdict for name, verdict in found.items() if name != "H5.6"} == {"supported"}


def test_directions_of_paper_4():
    """Rates as they should be support H4.3; a registered analysis that does not hold refutes it."""
    table = []

    def rate(arm, share, n=2_000):
        ones = round(share * n)
        table.extend(
            {"study": "s", "arm": arm, "seed": i % 2, "step": 0, "of": {"study": i},
             "metric": "study/rejected", "value": float(i < ones), "standard_error": 0.0}
            for i in range(n)
        )  # fmt: skip

    def verdict(registered, flexible):
        table.clear()
        rate("registered", registered)
        rate("flexible", flexible)
        (judgement,) = decide([BY_ID["H4.3"]], table, seeds=(0, 1), detectable=None)
        return judgement.verdict

    assert verdict(0.045, 0.2) == "supported"
    assert verdict(0.07, 0.2) == "refuted"
    assert verdict(0.045, 0.03) == "refuted"
    assert verdict(0.058, 0.2) == "inconclusive"


def test_refutations_have_names():
    for h in HYPOTHESES:
        for member in h.refuting:
            assert not isinstance(member, Composite) or member.name


def test_paper_4_names_only_arms_that_its_study_has():
    groups = {g for h in paper4.HYPOTHESES for c in contrasts(h) for g in c.groups}
    assert groups == {"registered", "flexible", "planned", "small", "complete", "significant_only"}
