"""Paper 5 as a study: what students take over from a teacher (OpenReview Cgo73ZnAQc).

Arms: `<data set>-<net>-<condition>`. The models of `...-teacher` are trained first. Those of the
other conditions are compared with the teacher of their seed, and learn from it if `distill.teacher`
says so. `distill.start` and `distill.order` say whether the initial weights and the order of data
are the teacher's ('same') or different ones, which all arms of a seed share.

All metrics are measured at the end. Distances and excess agreement use the first
`evaluate.test.num_outputs` test images.

    test/accuracy, test/ece, test/nll               on the whole test set
    teacher/activation_distance, cosine_distance, jsd, disagreement, l1
                                                    to the teacher of the seed
    wrong/excess_agreement, right/excess_agreement  of students that a model teaches; the control is
                                                    the siddo model of the same seed and size

The outputs for the first `evaluate.trajectory.num_examples` test images are stored before training
and after each epoch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sharpjax import data, schema
from sharpjax.metrics import functional
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.distillation import asks, shows
from sharpjax.studies.distillation.schema import TEACHER, control_of
from sharpjax.studies.papers import cells
from sharpjax.train import configured
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.measures import Found, ToReference, labels_of, stored_logits
from sharpjax.train.plan import (
    Compare,
    Evaluator,
    Member,
    Plan,
    Stage,
    Train,
    View,
    When,
)
from sharpjax.train.results import exact

DISTANCES: Mapping[str, Any] = {
    "teacher/activation_distance": functional.activation_distance,
    "teacher/cosine_distance": functional.cosine_distance,
    "teacher/jsd": functional.jensen_shannon,
    "teacher/disagreement": functional.disagreement,
    "teacher/l1": functional.l1,
}


def plan(config: Config) -> Plan:
    """An arm for each arm of the config, and for each net a stage that compares the arms.

    Raises:
        UserError: a model cannot be built.
    """
    specs: dict[str, data.DataSpec] = {}
    stages: list[Stage] = []
    places: dict[str, list[str]] = {}
    arms = schema.complete_arms(config)
    for name, arm in arms.items():
        place = "-".join(cells.place(name))
        key, spec = configured.images(arm, specs, name)
        teacher = f"{place}-{TEACHER}"
        members = tuple(configured.member(seed, arm, teacher) for seed in config.seeds)
        stages.append(
            Train(
                arm=name,
                members=members,
                data=key,
                step=configured.steps(arm, spec),
                epochs=arm.train.epochs,
                checkpoint_epochs=arm.train.checkpoint_epochs,
                evaluators=tuple(_evaluators(arm)),
                population=arm.train.population,
            )
        )
        places.setdefault(place, []).append(name)
    for place, names in places.items():
        teacher = f"{place}-{TEACHER}"
        if teacher not in names:
            continue
        others = tuple(name for name in names if name != teacher)
        measures: list[Any] = [
            ToReference(metric, distance, others, reference=teacher)
            for metric, distance in DISTANCES.items()
        ]
        students: dict[str, list[str]] = {}  # by their controls
        for name in others:
            control = control_of(name)
            if arms[name].distill.teacher == "model" and control in names and name != control:
                students.setdefault(control, []).append(name)
        measures += [ExcessAgreement(tuple(n), teacher, own) for own, n in students.items()]
        stages.append(Compare(f"compared-{place}", tuple(names), tuple(measures)))
    return Plan(specs, tuple(stages))


def _evaluators(arm: Config) -> list[Evaluator]:
    test, few = arm.evaluate.test, arm.evaluate.trajectory.num_examples
    found: list[Evaluator] = [
        SplitMetrics(test.batch_size, test.num_bins, When()),
        Outputs(When(), num_examples=test.num_outputs, batch_size=test.batch_size),
    ]
    if few:
        each = When(start=True, every_epochs=1)
        found.append(Outputs(each, num_examples=few, batch_size=few, name=shows.TRAJECTORY))
    return found


@dataclasses.dataclass(frozen=True)
class ExcessAgreement:
    """How much more often a student predicts as its teacher does than a control of its seed does.
    Counted separately for examples on which the teacher is wrong and on which it is right:
    `functional.transfer_asymmetry`."""

    arms: tuple[str, ...]
    teacher: str
    control: str

    @property
    def name(self) -> str:
        return f"excess-agreement-{self.control}"

    @property
    def metrics(self) -> tuple[str, ...]:
        return asks.EXCESS

    def __call__(self, view: View) -> Found:
        for arm in self.arms:
            for member in view.members(arm):
                models = ((arm, member), *((a, Member(member.seed)) for a in self._beside))
                found = [x for m in models if (x := self._logits(view, *m)) is not None]
                if len(found) < len(models):
                    continue
                student, teacher, control = found
                label = labels_of(self.name, view, models, "test", len(student))
                excess = functional.transfer_asymmetry(student, teacher, control, label)
                for metric, value in zip(self.metrics, (excess.wrong, excess.right), strict=True):
                    yield arm, member, metric, (), exact(value)

    @property
    def _beside(self) -> tuple[str, str]:
        return self.teacher, self.control

    def _logits(self, view: View, arm: str, member: Member) -> np.ndarray | None:
        there = next((m for m in view.members(arm) if (m.seed, m.of) == member[:2]), None)
        return None if there is None else stored_logits(view, arm, there)


STUDY = Study(plan, asks.hypotheses, tables=shows.tables, figures=shows.figures)
