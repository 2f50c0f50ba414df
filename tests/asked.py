"""That what a study asks is measured by its plan, and can be decided by its seeds."""

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
