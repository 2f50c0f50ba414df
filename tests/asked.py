"""That what a study asks is measured by its plan, and can be decided by its seeds."""

import pytest

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.protocol.claims import check, families, quantities
from sharpjax.protocol.judging.corrections import levels
from sharpjax.runs import study
from sharpjax.train import planning


def assert_measured_and_decidable(config, *, smallest_p):
    """Every metric is one of its arms, and each family can reject at some level."""
    asked = [h for h in study.hypotheses_of(config) if not h.missing]
    plan = study.plan_of(config)
    there = {arm: {*planning.metrics(plan, arm)} for arm in planning.arms(plan)}
    check(asked, arms=tuple(there), metrics=set().union(*there.values()))
    members = {}
    for hypothesis in asked:
        for contrast, family in families(hypothesis):
            members.setdefault(family, []).append((contrast, hypothesis))
            for quantity, group in zip(quantities(contrast), contrast.groups, strict=True):
                for arm in group.split("|"):
                    assert quantity.metric in there[arm], (hypothesis.id, quantity.metric, arm)
    for family, own in members.items():
        hypothesis = own[0][1]
        count = len({repr(contrast) for contrast, _ in own})
        assert levels(hypothesis.alpha, count, hypothesis.correction)[0] >= smallest_p, family
    return [hypothesis.id for hypothesis in asked]


def assert_named_after_its_data(made, name):
    """An arm with another data set or model than its name says is refused, and told the name.

    Args:
        made: a config that can be changed.
        name: of one of its arms, of CIFAR-10.
    """
    schema.check(made, {})
    with made.unlocked():
        made.arms[name].update({"data": {"name": "fashion_mnist", "num_train": 4_000}})
    with pytest.raises(UserError) as error:
        schema.check(made, {})
    expected = name.replace("cifar10", "fashion_mnist")
    for words in (f"config.arms.{name} has config.data.name=fashion_mnist", f"name it {expected}",
                  "give it the data set cifar10."):  # fmt: skip
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    with made.unlocked():
        made.arms[name].update({"data": {"name": "cifar10"}, "model": {"name": "small_conv"}})
    with pytest.raises(UserError, match=f"config.arms.{name} has config.model.name=small_conv"):
        schema.check(made, {})
    with made.unlocked():
        _, net, condition = name.split("-")
        made.arms[f"cifar10-my_{net}-{condition}"] = made.arms[name]
        del made.arms[name]
    schema.check(made, {})
