"""Judgements as a study would make them, written by hand: what the tests of reports show."""

import dataclasses
import math

import numpy as np

from sharpjax.protocol.attrition import Funnel
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.judging.shown import Difference, Interval
from sharpjax.protocol.judging.verdicts import Finding, Judgement
from sharpjax.protocol.seals import registration
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.tests.result import Samples, TestResult
from sharpjax.report import content, describe, html, markdown
from sharpjax.runs.report import commands_for

NAN = math.nan
HOSTILE = "</style><script>alert(1)</script>\u202e\x00\ud800 | `x` **b** [a](javascript:alert(1))"

LAMBDA = Quantity("train[:512]/hessian/lambda_1")
ERROR = Quantity("test/error")


def numbers(seed, mean, spread, n=8):
    return np.random.default_rng(seed).normal(mean, spread, n)


def finding(
    verdict="supported",
    *,
    groups=("sam", "sgd"),
    arrays=None,
    quantity=LAMBDA,
    direction="less",
    test="mean",
    margin=None,
    null=None,
    effect=-27.0,
    interval=(-45.0, -9.0),
    p=0.0078,
    adjusted=0.031,
    least=0.0039,
    detectable=21.0,
    seen=None,
    reported=None,
    difference=None,
):
    contrast = Contrast(
        quantity, groups, direction, test, margin=margin, null=null, reported=reported
    )
    if arrays is None:
        arrays = tuple(numbers(i, 80 + 20 * i, 12) for i in range(len(groups)))
    result = TestResult(
        effect, lambda confidence: interval, p, 1 - p, least, tuple(len(a) for a in arrays)
    )
    reason = f"{verdict}, as its interval shows"
    decided = {"supported": adjusted, "refuted": 1 - p}
    return Finding(
        contrast, verdict, reason, Samples(arrays, seen), result, adjusted, detectable,
        interval=Interval(0.95, *interval), decided_by=decided.get(verdict),
        difference=difference and Difference(difference[0], Interval(0.95, *difference[1:])),
    )  # fmt: skip


def not_run(quantity=ERROR, reason="no rows of 'test/error' in arm sam"):
    contrast = Contrast(quantity, ("sam", "sgd"), "less", "wilcoxon")
    return Finding(contrast, "not run", reason)


def judgement(id, claim, *findings, verdict=None, reason=None, **fields):
    verdict = verdict or findings[0].verdict
    reason = reason or (findings[0].reason if findings else "what it needs is not built")
    fields.setdefault("contrasts", tuple(f.contrast for f in findings))
    return Judgement(Hypothesis(id, claim, **fields), verdict, reason, tuple(findings))


def five():
    """One of each verdict."""
    family = {"family": "S", "correction": "holm", "source": "arXiv 2010.01412, section 4"}
    reference = {
        "reference": "λ₁ 24.2 under SAM against 62.9 under SGD, WideResNet-28-10 (figure 3)",
        "refuted_if": "it is larger, significantly",
    }
    return (
        judgement("S.1", "SAM ends where the largest eigenvalue is smaller.",
                  finding(reported=-38.7),
                  **family, **reference,
                  reason="p = 0.031 after Holm over 4 contrasts; sam is 27 below sgd [9, 45]."),
        judgement("S.2", "SAM ends with a smaller test error.",
                  finding("refuted", quantity=ERROR, effect=0.0046, interval=(0.0012, 0.008),
                          p=0.99, adjusted=1.0, detectable=0.004,
                          arrays=(numbers(3, 0.0299, 0.003), numbers(4, 0.0253, 0.003))),
                  **family, uncertain="which recipe"),
        judgement("S.3", "Augmentation changes calibration by less than half a point.",
                  finding("equivalent", test="tost", direction="two-sided", margin=0.005,
                          groups=("augmented", "plain"), quantity=Quantity("test/ece"),
                          effect=0.0007, interval=(-0.0016, 0.003), p=0.002, adjusted=NAN,
                          least=0.0, detectable=NAN,
                          arrays=(numbers(5, 0.0155, 0.002), numbers(6, 0.0148, 0.002, 7))),
                  status="partial"),
        judgement("S.4", "SAM beats SGD of equal compute.",
                  finding("inconclusive", groups=("sam", "sgd_2x"), test="wilcoxon", effect=0.33,
                          interval=(NAN, NAN), p=0.23, adjusted=0.23, detectable=0.9,
                          difference=(4.1, -2.5, 10.7), reported=12.5),
                  status="weak"),
        judgement("S.5", "It is so on another data set.", not_run(),
                  status="design", missing="a second data set"),
    )  # fmt: skip


def kinds():
    """What is drawn in other ways: trends, shares, times, pairs of models, correlations."""
    square = np.full((6, 6), NAN)
    for i in range(6):
        for j in range(6):
            if i != j:
                square[i, j] = 0.1 + 0.01 * i + 0.02 * j
    levels = tuple(f"noise {i / 10}" for i in range(11))
    many = tuple(finding(f, effect=e, interval=(e - 9, e + 9), groups=(a, "base"))
                 for f, e, a in (("supported", -27.0, "base_sam"), ("inconclusive", 4.0, "aug"),
                                 ("refuted", 31.0, "aug_sam"), ("supported", -12.0, "wd"),
                                 ("inconclusive", -2.0, "wd_sam")))  # fmt: skip
    whole = Composite(tuple(f.contrast for f in many), "majority", "majority", name="resnet18")
    return (
        judgement("H1.1", "Regularised minima are sharper than the baseline.", *many,
                  contrasts=(whole,), verdict="inconclusive", reason="2 of 5 contrasts supported"),
        judgement("H1.11", "Sharpness falls with the train loss under memorisation.",
                  finding(groups=levels, test="jonckheere", direction="greater", effect=0.6,
                          interval=(0.3, 0.8),
                          arrays=tuple(numbers(i, 90 - 3 * i, 5, 10) for i in range(11)))),
        judgement("H4.3", "A registered analysis keeps its false-positive rate.",
                  finding(groups=("registered",), test="binomial", null=0.05, effect=0.0496,
                          interval=(0.0455, 0.0540), least=0.0,
                          arrays=((np.arange(10_000) < 496).astype(float),))),
        judgement("H3.1", "Decomposed layers shorten the time to generalise.",
                  finding(groups=("svd", "dense"), test="log-rank", effect=-2_000.0,
                          interval=(-math.inf, -400.0), arrays=(10 ** numbers(1, 3, 0.3, 10),
                                                               10 ** numbers(2, 4.2, 0.4, 10)),
                          seen=(np.arange(10) < 9, np.arange(10) < 6))),
        judgement("H1.5", "Models of one condition are alike.",
                  finding(groups=("sam", "sgd"), test="pairwise-difference",
                          arrays=(square, square + 0.04))),
        judgement("H1.8", "Sharpness and generalisation gap go against each other.",
                  finding("inconclusive", groups=("sgd|sam|sgd_2x",) * 2, test="spearman",
                          quantity=(LAMBDA, Quantity("test/gap")), effect=-0.21,
                          interval=(-0.55, 0.17), arrays=(numbers(1, 80, 20, 60),
                                                          numbers(2, 0.1, 0.02, 60)))),
    )  # fmt: skip


def rows(arms=("sgd", "sam"), metrics=("train/loss", "test/error", LAMBDA.metric), seeds=3):
    return [
        {
            "study": "sharpness", "arm": arm, "seed": seed, "step": step, "of": {},
            "metric": metric, "value": 0.1 * a + seed + step / 10 + len(metric),
            "standard_error": 0.0,
        }
        for a, arm in enumerate(arms) for metric in metrics for seed in range(seeds)
        for step in (1, 2)
    ]  # fmt: skip


def registered(judgements, **fields):
    """Sealed as it is: what `registration.register` checks is not of interest here."""
    planned = {"n": [8, 8], "alpha": 0.05, "power": {"1.0": 0.66}}
    given = {
        "study": "sharpness",
        "config_digest": "c0" * 32,
        "arms": {"sgd": {}, "sam": {}},
        "seeds": (0, 1, 2),
        "measurements": {},
        "hypotheses": tuple(j.hypothesis for j in judgements),
        "digests": registration.Digests("a1" * 32, "b2" * 32, "c3" * 32, "d4" * 32),
        "power": (
            planned | {"hypothesis": "S.1", "contrast": "sam less than sgd", "smallest_p": 0.0039,
                       "detectable": 1.16, "power_at_margin": 0.055, "equivalent": 0.0,
                       "equivalent_likely": 80, "warning": ""},
            planned | {"hypothesis": "S.2", "contrast": "sam less than sgd", "smallest_p": 0.0625,
                       "detectable": None, "warning": "no p can be below 0.0625"},
        ),
        "time": "2026-11-24T20:15:00+00:00",
        "commit": "dbf272e0c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f6",
        "dirty": False,
        "environment": {},
    }  # fmt: skip
    unsealed = registration.Registration(**(given | fields))
    return dataclasses.replace(unsealed, seal=registration.seal(unsealed))


CONFIG = {
    "study": "sharpness",
    "seeds": [0, 1, 2],
    "arms": {"sgd": {"optim": {"rho": 0.0}}, "sam": {}},
    "optim": {"name": "sgd", "rho": 0.05},
}


def full(judgements=None, **fields):
    """A registered run with everything in it."""
    judgements = five() if judgements is None else judgements
    later = rows(metrics=("train/hessian/trace",))
    given = {
        "title": "SAM against SGD on handwritten digits",
        "source": "configs/sam_cifar.py:quick",
        "config": CONFIG,
        "judgements": judgements,
        "registration": registered(judgements),
        "results": rows(),
        "later_results": later,
        "figures": {"curves": png(640, 240)},
        "captions": {"curves": "Training loss and test accuracy against steps; n = 3 seeds."},
        "funnel": (
            Funnel("sgd", 8, 8, 0),
            Funnel("sam", 8, 6, 2, ("seed 3 turned non-finite", "seed 5 has no rows")),
        ),
        "amendments": (
            Amendment("a sign was wrong", "2026-11-25", "d4" * 32, "e5" * 32, "f6" * 32, "f" * 64),
        ),
        "environment": (
            {"python": "3.11.7", "packages": {"jax": "0.10.1", "sharpjax": "0.1.0"},
             "processor": "EPYC", "device_kind": "H100", "device_count": 8},
        ),
        "processes": (
            {"command": ["launch.py"], "code": {"commit": "d" * 40}, "seconds": {"total": 38.2},
             "started": "2026-11-24T20:15:01+00:00", "ended": "2026-11-24T20:16:01+00:00"},
        ),
        "manifest": {
            "format": 1,
            "code": {"commit": "d" * 40},
            "data": {"digits": {"spec": {"kind": "Images", "name": "digits"}, "digests": {}}},
            "times": {"started": "2026-11-24T20:15:01+00:00"},
            "files": {"results.jsonl": {"bytes": 12_345, "sha256": "ab" * 32}},
        },
        "commands": commands_for(
            "configs/sam_cifar.py:quick", {"optim.rho": 0.1}, folder="runs/a b", is_registered=True
        ),
    }  # fmt: skip
    return content.make(**(given | fields))


def as_html(made):
    return html.render(describe.page(made))


def as_markdown(made):
    return markdown.render(describe.page(made))


def png(width, height):
    """A picture of two colours."""
    import io

    from PIL import Image

    image = Image.new("RGB", (width, height), "#ffffff")
    image.paste("#0072B2", (40, 40, width - 40, height - 40))
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()
