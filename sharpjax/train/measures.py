"""Measures of a `Compare` stage: between models, of the outputs that they stored, and of rows.

A distance is a function `distance(a, b, label)` of the outputs of two models, [N, K] each, and the
labels of these examples, [N]. A model that stored no outputs, because it turned non-finite, or
whose outputs are not finite, has no row and is no partner of another. Outputs for other examples,
or for the same examples in another order, are refused.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from sharpjax.data import Examples
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.train.evaluators import split_of
from sharpjax.train.plan import Member, View
from sharpjax.train.results import Of, exact, of

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
Found = Iterator[tuple[str, Member, str, Of, Estimate]]
Model = tuple[str, Member]


@dataclasses.dataclass(frozen=True)
class Between:
    """For each model of `arms`, its mean distance to other models, which a subclass names.

    Cost: a distance for each pair. Memory: the outputs of the arms.

    Attributes:
        metric: name of the metric in the rows.
        arms: the arms whose models get rows. The stage must read these and the arms of the
            partners.
        outputs: the evaluator that stored the logits, for the first examples of `split`.
    """

    metric: str
    distance: Distance
    arms: tuple[str, ...]
    outputs: str = "outputs"
    split: str = "test"

    @property
    def name(self) -> str:
        return self.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def partners(
        self, view: View, arm: str, member: Member
    ) -> Iterable[tuple[Of, Sequence[Model]]]:
        """The further coordinates of each row of a model, and the models it is compared with."""
        raise NotImplementedError

    def __call__(self, view: View) -> Found:
        @functools.cache
        def logits(arm: str, member: Member) -> np.ndarray | None:
            return stored_logits(view, arm, member, self.outputs)

        for arm in self.arms:
            for member in view.members(arm):
                if (own := logits(arm, member)) is None:
                    continue
                for further, models in self.partners(view, arm, member):
                    beside = {model: logits(*model) for model in models}
                    beside = {model: its for model, its in beside.items() if its is not None}
                    label = labels_of(
                        self.metric, view, [(arm, member), *beside], self.split, len(own)
                    )
                    found = [self.distance(own, its, label) for its in beside.values()]
                    if found:
                        yield arm, member, self.metric, further, exact(np.mean(found))


@dataclasses.dataclass(frozen=True)
class Within(Between):
    """Between models of one arm: for each model the mean over all others, or a row for each pair.

    Attributes:
        by_pair: give a row of `{"pair": [i, j]}` for each pair, for `Quantity(...,
            over=("pair",))`. i and j are seeds, or the names of members that have further
            coordinates.
    """

    by_pair: bool = False

    def partners(
        self, view: View, arm: str, member: Member
    ) -> Iterable[tuple[Of, Sequence[Model]]]:
        members = view.members(arm)
        if not self.by_pair:
            return [((), [(arm, other) for other in members if other != member])]
        name = {m: m.key if m.of else m.seed for m in members}
        later = members[members.index(member) + 1 :]
        return [(of(pair=(name[member], name[m])), [(arm, m)]) for m in later]


@dataclasses.dataclass(frozen=True)
class ToReference(Between):
    """To the models of the same seed in another arm; without a `reference`, to its own teachers.

    Attributes:
        by_seed: give one row for each seed, without further coordinates: the mean over its models.
    """

    reference: str = ""
    by_seed: bool = False

    def __call__(self, view: View) -> Found:
        if not self.by_seed:
            yield from super().__call__(view)
            return
        values: dict[tuple[str, int], list[Any]] = {}
        for arm, member, _, _, found in super().__call__(view):
            values.setdefault((arm, member.seed), []).append(found.value)
        for (arm, seed), own in values.items():
            yield arm, Member(seed), self.metric, (), exact(np.mean(own))

    def partners(
        self, view: View, arm: str, member: Member
    ) -> Iterable[tuple[Of, Sequence[Model]]]:
        if self.reference:
            there = [(self.reference, m) for m in view.members(self.reference)]
            return [((), [x for x in there if x[1].seed == member.seed and x != (arm, member)])]
        refs = member.teacher.refs if member.teacher else ()
        if early := [ref for ref in refs if ref.at != "end"]:
            raise UserError(
                f"plan: {self.metric} compares outputs at the ends of arms, and a teacher of arm "
                f"'{arm}' is at {early[0].at!r}; make a derived arm of it, and name that."
            )
        return [((), [(ref.arm, Member(ref.seed, ref.of)) for ref in refs])]


@dataclasses.dataclass(frozen=True)
class Across(Between):
    """To all models of each other arm, as rows of `{"to": arm}`."""

    def partners(
        self, view: View, arm: str, member: Member
    ) -> Iterable[tuple[Of, Sequence[Model]]]:
        others = (name for name in self.arms if name != arm)
        return [(of(to=name), [(name, m) for m in view.members(name)]) for name in others]


@dataclasses.dataclass(frozen=True)
class MeanRank:
    """The rank of each arm among all arms, averaged over metrics; 1 is best. It compares models
    that differ only in the arm. Equal arms share the mean of their ranks.

    If an arm lacks the value of a metric for a model, no arm has a row of that model.

    Attributes:
        over: the metrics, taken at the last step of the arm, each with the direction that is
            better.
    """

    metric: str
    arms: tuple[str, ...]
    over: tuple[tuple[str, Literal["less", "greater"]], ...]

    @property
    def name(self) -> str:
        return self.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def __call__(self, view: View) -> Found:
        tables = [[at_end(view, arm, metric) for arm in self.arms] for metric, _ in self.over]
        for member in view.members(self.arms[0]):
            key = member.seed, member.of
            values = np.array([[own.get(key, np.nan) for own in table] for table in tables])
            if np.isnan(values).any():
                continue
            signs = [[-1.0 if direction == "greater" else 1.0] for _, direction in self.over]
            ranks = stats.rankdata(signs * values, axis=1).mean(axis=0)
            for arm, rank in zip(self.arms, ranks, strict=True):
                yield arm, Member(*key), self.metric, (), exact(rank)


def stored_logits(
    view: View, arm: str, member: Member, outputs: str = "outputs"
) -> np.ndarray | None:
    """The logits that a model stored, [N, K]; None if there are none or not all are finite."""
    found = view.arrays(arm, outputs, member).get("logits")
    return found if found is not None and np.isfinite(found).all() else None


def labels_of(
    metric: str, view: View, models: Sequence[Model], split: str, count: int
) -> np.ndarray:
    """The labels of the first `count` examples of a split, which must be the same for all models.

    Raises:
        UserError: they differ in inputs, labels or order.
    """
    first, *others = models
    own = split_of(view.data(*first), split)
    for other in others:
        beside = split_of(view.data(*other), split)
        if beside is not own and not _equal(own, beside, count):
            (arm, member), (name, its) = first, other
            raise UserError(
                f"plan: {metric} compares arm '{arm}', member {member.key}, with arm '{name}', "
                f"member {its.key}, and their first {count} examples of the split '{split}' are "
                "not the same; give both arms the same data."
            )
    return np.asarray(own.label)[:count]


def _equal(a: Examples, b: Examples, count: int) -> bool:
    sides = zip(a[:2], b[:2], strict=True)
    return all(np.array_equal(np.asarray(x)[:count], np.asarray(y)[:count]) for x, y in sides)


def at_end(view: View, arm: str, metric: str) -> dict[tuple[int, Of], float]:
    """The values of a metric at the last step of an arm, by seed and further coordinates. Missing
    values are left out."""
    rows: list[dict[str, Any]] = view.rows(arm)
    last = max((row["step"] for row in rows), default=0)
    return {
        (row["seed"], of(**row["of"])): row["value"]
        for row in rows
        if row["metric"] == metric and row["step"] == last and row["value"] is not None
    }
