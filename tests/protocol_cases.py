"""Rows and hypotheses that the tests of `protocol` share."""

from typing import Any

from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity

LOSS = Quantity("test/loss")
SEEDS = range(8)


def rows(arm, values, metric="test/loss", *, step=9, of=None, seeds=None):
    """One row for each seed."""
    seeds = range(len(values)) if seeds is None else seeds
    return [
        {
            "study": "s", "arm": arm, "seed": seed, "step": step, "of": of or {}, "metric": metric,
            "value": value, "standard_error": 0.0,
        }
        for seed, value in zip(seeds, values, strict=True)
    ]  # fmt: skip


def contrast(
    groups=("sam", "sgd"), direction: Any = "less", test="wilcoxon", quantity: Any = LOSS, **fields
):
    return Contrast(quantity, groups, direction, test, **fields)


def hypothesis(*members, id="S.1", **fields):
    return Hypothesis(id, "A claim.", members or (contrast(),), **fields)
