"""Two trained arms, one that is made of the first by pruning, and a measure of pairs of models."""

from sharpjax import data, nn, optim, schema
from sharpjax.metrics.functional import disagreement
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.runs.study import Study
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.measures import Within
from sharpjax.train.plan import Compare, Derive, Member, Plan, Train, When
from sharpjax.train.pruning import Prune
from sharpjax.train.steps import Steps

MEASURED = (SplitMetrics(batch_size=500, num_bins=15, when=When()), Outputs(When()))
ACCURACY = "test/accuracy"


def plan(config):
    stages, members = [], tuple(map(Member, config.seeds))
    for name, arm in schema.complete_arms(config).items():
        spec = data.Images(**{n: x for n, x in arm.data.to_dict().items() if n != "augment"})
        size, epochs = arm.train.batch_size, arm.train.epochs
        steps = {"steps_per_epoch": spec.num_train // size}
        steps["total_steps"] = epochs * steps["steps_per_epoch"]
        optimizer = optim.from_config(arm.optim, batch_size=size, **steps)
        step = Steps(nn.from_config(arm.model, num_classes=spec.num_classes), optimizer, size)
        stages.append(Train(name, members, "images", step, epochs, 1, MEASURED))
    first, second = (stage.arm for stage in stages)
    prune = Prune(config.prune.percent, scope="trainable")
    stages.append(Derive("pruned", first, prune, MEASURED, outputs=prune.outputs))
    pairs = Within("test/disagreement", disagreement, (first, second), by_pair=True)
    stages.append(Compare("pairs", (first, second), (pairs,)))
    return Plan({"images": spec}, tuple(stages))


def hypotheses(config):
    most = {"pruned": max(config.prune.percent)}
    groups = next(iter(config.arms)), "pruned"
    quantities = Quantity(ACCURACY), Quantity(ACCURACY, of=most)
    claim = "Pruning most of the weights costs accuracy."
    return (Hypothesis("P.1", claim, (Contrast(quantities, groups, "greater", "wilcoxon"),)),)


STUDY = Study(plan, hypotheses)
