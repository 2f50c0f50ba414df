"""Turns rows of the results table into the numbers that one contrast compares."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError, nearest
from sharpjax.protocol import claims
from sharpjax.protocol.canonical import canonical_json
from sharpjax.protocol.claims import Contrast, Diverged, Hypothesis, Quantity
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.catalog import Test
from sharpjax.protocol.tests.result import Samples

Row = Mapping[str, Any]
ALIVE = "train/alive"  # 0 from the step at which a seed turned non-finite

# What identifies a unit: the index of its arm in the group, its seed, and further coordinates as
# canonical JSON.
Unit = tuple[Any, ...]
Values = dict[Unit, float | None]


class Gathered(NamedTuple):
    """The numbers of one contrast.

    Attributes:
        samples: the numbers that are there; None if there is nothing to compare.
        gap: what is missing, as sentences; '' if nothing is.
        left_out: what a rule stated beforehand left out, counted, as sentences.
    """

    samples: Samples | None
    gap: str = ""
    left_out: str = ""


class Table(NamedTuple):
    """Rows by arm and metric, the last step of each arm, and its seeds at each step."""

    rows: Mapping[tuple[str, str], Sequence[Row]]
    last: Mapping[str, int]
    seeds: Mapping[tuple[str, int], set[int]]


def table(rows: Iterable[Row] | Table) -> Table:
    """Index rows, once for all contrasts.

    Raises:
        UserError: two rows hold the same metric of the same model, because runs with the same seeds
            were put together.
    """
    if isinstance(rows, Table):
        return rows
    index: dict[tuple[str, str], list[Row]] = {}
    last: dict[str, int] = {}
    seeds: dict[tuple[str, int], set[int]] = {}
    seen = set()
    for row in rows:
        of = canonical_json(row["of"]) if row["of"] else ""
        key = (row["study"], row["arm"], row["seed"], row["step"], row["metric"], of)
        if key in seen:
            where = f" of {of}" if of else ""
            raise UserError(
                f"duplicated rows: arm '{row['arm']}' has {row['metric']}{where} of seed "
                f"{row['seed']} at step {row['step']} twice; give each run once."
            )
        seen.add(key)
        index.setdefault((row["arm"], row["metric"]), []).append(row)
        last[row["arm"]] = max(last.get(row["arm"], 0), row["step"])
        seeds.setdefault((row["arm"], row["step"]), set()).add(row["seed"])
    return Table(index, last, seeds)


def gather(
    rows: Iterable[Row] | Table,
    contrast: Contrast,
    *,
    seeds: Sequence[int] | None = None,
    diverged: Diverged = "inconclusive",
) -> Gathered:
    """The samples of one contrast.

    Units of paired and correlated groups are aligned by seed and further coordinates. If a group
    has several units of one seed (layers, pooled arms), `clusters` holds the seed of each unit: of
    the aligned units, or of one group's units after the other's. For a correlation, `arms` holds
    the arm of each unit. What a model gives after it turned non-finite does not count as a
    measurement.

    Args:
        rows: the results table, or its `table`.
        seeds: the registered ones. Rows of other seeds are left out, and a registered seed that is
            missing is a gap. None: the seeds that have rows.
        diverged: as `Hypothesis.diverged`.

    Raises:
        UserError: rows are duplicated.

    >>> def row(arm, seed, value):
    ...     return {"study": "s", "arm": arm, "seed": seed, "step": 9, "of": {},
    ...             "metric": "test/loss", "value": value}
    >>> rows = [row("sam", 0, 0.2), row("sam", 1, 0.3), row("sgd", 1, 0.5), row("sgd", 0, 0.4)]
    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "paired-t")
    >>> gather(rows, loss).samples.groups
    (array([0.2, 0.3]), array([0.4, 0.5]))
    >>> gather(rows[:3], loss).gap
    "test/loss is missing in arm 'sgd' seed 0."
    """
    index, said, samples = table(rows), _Said([], [], diverged), None
    test = catalog.TESTS[contrast.test]
    asked = zip(contrast.groups, claims.quantities(contrast), strict=True)
    sides = [_Side(index, group, quantity, seeds) for group, quantity in asked]
    try:
        if test.kind == "pairwise":
            samples = _squares(sides, seeds, said)
        else:
            samples = _vectors(sides, test, seeds, said)
    except _Nothing as nothing:
        if not said.gaps:
            said.gaps.append(str(nothing))
    return Gathered(samples, _sentences(said.gaps), _sentences(said.left_out))


def resting_on(rows: Iterable[Row] | Table, hypotheses: Iterable[Hypothesis]) -> Iterator[Row]:
    """The rows on which the verdicts on some hypotheses rest; a row may come more than once."""
    index = table(rows)
    for contrast in (c for h in hypotheses for c in claims.contrasts(h)):
        for group, quantity in zip(contrast.groups, claims.quantities(contrast), strict=True):
            names = filter(None, (quantity.metric, quantity.seen))
            for arm, name in itertools.product(claims.arms(group), names):
                step = index.last.get(arm) if quantity.at == "last" else quantity.at
                for row in index.rows.get((arm, name), ()):
                    if row["step"] == step and quantity.of.items() <= row["of"].items():
                        yield row


class _Nothing(Exception):
    """There is nothing to compare; the message says why."""


class _Said(NamedTuple):
    gaps: list[str]
    left_out: list[str]
    diverged: Diverged

    def gap(self, words: str, names: Sequence[str], more: str = "") -> None:
        if names:
            self.gaps.append(f"{words} {_some(names)}{more}")

    def without(self, metric: str, names: Sequence[str]) -> None:
        if names:
            self.left_out.append(f"{len(names)} without {metric}: {_some(names)}")

    def death(self, names: Iterable[str]) -> None:
        if models := list(dict.fromkeys(names)):
            words = f"{len(models)} turned non-finite in training: {_some(models)}"
            (self.left_out if self.diverged == "left out" else self.gaps).append(words)


class _Side:
    """One group of a contrast, its quantity, and its models that turned non-finite by that step."""

    def __init__(self, index: Table, group: str, quantity: Quantity, seeds: Sequence[int] | None):
        self.group, self.arms, self.quantity = group, claims.arms(group), quantity
        # Sorted, so that units pair whatever the order in which a quantity names their coordinates.
        self.further = sorted({*quantity.over} - {"seed"})
        self._index, self._seeds = index, None if seeds is None else frozenset(seeds)
        self.deaths = [
            (place, row)
            for place, arm in enumerate(self.arms)
            for row in index.rows.get((arm, ALIVE), ())
            if row["value"] == 0
            and row["step"] <= self._step(arm)
            and all(row["of"].get(key, value) == value for key, value in quantity.of.items())
            and self._counts(row)
        ]

    def _step(self, arm: str) -> int:
        at = self.quantity.at
        return at if isinstance(at, int) else self._index.last.get(arm, 0)

    def _counts(self, row: Row) -> bool:
        return self._seeds is None or row["seed"] in self._seeds

    def rows(self, metric: str) -> Iterator[tuple[int, Row]]:
        """Each row of a metric with the index of its arm, without models that turned non-finite."""
        for place, arm in enumerate(self.arms):
            dead = [] if metric == ALIVE else [row for at, row in self.deaths if at == place]
            for row in self._rows_of(arm, metric):
                if not any(
                    row["seed"] == model["seed"] and row["of"].items() >= model["of"].items()
                    for model in dead
                ):
                    yield place, row

    def _rows_of(self, arm: str, metric: str) -> list[Row]:
        index, of = self._index, self.quantity.of
        if arm not in index.last:
            raise _Nothing(f"there are no rows of arm '{arm}'{nearest(arm, sorted(index.last))}")
        rows = index.rows.get((arm, metric), ())
        there = [row for row in rows if row["step"] == self._step(arm)]
        chosen = [row for row in there if all(row["of"].get(k) == v for k, v in of.items())]
        if chosen or self.quantity.optional:
            return [row for row in chosen if self._counts(row)]
        if there:
            raise _Nothing(f"arm '{arm}' has no {metric} of {canonical_json(of)}.")
        if rows:
            steps = ", ".join(map(str, sorted({row["step"] for row in rows})[-5:]))
            last = ", its last" if self.quantity.at == "last" else ""
            raise _Nothing(
                f"arm '{arm}' has no {metric} at step {self._step(arm)}{last}; it has some at "
                f"{steps}."
            )
        known = sorted({name for owner, name in index.rows if owner == arm})
        some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        hint = nearest(metric, known) or f"; it has {some}."
        raise _Nothing(f"arm '{arm}' has no metric '{metric}'{hint}")

    def values(self, metric: str) -> Values:
        """The values by unit; None if not finite."""
        values: Values = {}
        for place, row in self.rows(metric):
            arm, of = self.arms[place], row["of"]
            for key in self.further:
                if key not in of:
                    raise _Nothing(f"a row of {metric} (arm '{arm}') has no coordinate '{key}'.")
            unit = (place, row["seed"], *(canonical_json(of[key]) for key in self.further))
            if unit in values:
                raise _Nothing(
                    f"{metric} of arm '{arm}', seed {row['seed']}, has several values for one "
                    f"unit; its coordinates ({', '.join(sorted(of)) or 'none'}) must be in `of` or "
                    f"`over` of the quantity."
                )
            values[unit] = _finite(row["value"])
        return values

    def look(self, values: Values, wanted: Iterable[int], said: _Said) -> None:
        """Record values that are not finite, diverged models, and wanted seeds without a value."""
        metric, there = self.quantity.metric, {unit[:2] for unit in values}
        bad = sorted({unit[:2] for unit, value in values.items() if value is None})
        said.gap(f"{metric} is not finite in", self.names(bad))
        if metric != ALIVE:
            models = [
                (place, row["seed"], *([canonical_json(row["of"])] if row["of"] else []))
                for place, row in self.deaths
            ]
            said.death(self.names(models))
        dead = {(place, row["seed"]) for place, row in self.deaths}
        ran = [self._index.seeds.get((arm, self._step(arm)), set()) for arm in self.arms]
        optional = self.quantity.optional
        if optional and self._seeds is None:
            wanted = set().union(*ran)
        places = range(len(self.arms))
        lacking = [(p, s) for s in sorted(wanted) for p in places if (p, s) not in there | dead]
        without = [unit for unit in lacking if optional and unit[1] in ran[unit[0]]]
        said.without(metric, self.names(without))
        said.gap(f"{metric} is missing in", self.names(u for u in lacking if u not in without))

    def look_for_pairs(self, values: Values, whole: set[Unit], said: _Said) -> None:
        """Record which units (layers) of its seeds this group lacks although another group has
        them."""
        metric, there = self.quantity.metric, {unit[:2] for unit in values}
        lacking = sorted(unit for unit in whole - values.keys() if unit[:2] in there)
        if self.quantity.optional:
            said.without(metric, self.names(lacking))
        else:
            names = self.names(unit for unit in lacking if not self._has_died(unit))
            said.gap(f"{metric} is missing in", names, ", and pairs need it")

    def _has_died(self, unit: Unit) -> bool:
        own = dict(zip(self.further, unit[2:], strict=True))
        return any(
            unit[:2] == (place, row["seed"])
            and all(own.get(k) in (None, canonical_json(v)) for k, v in row["of"].items())
            for place, row in self.deaths
        )

    def names(self, units: Iterable[Unit]) -> list[str]:
        return [f"arm '{self.arms[u[0]]}' seed {' '.join(map(str, u[1:]))}" for u in units]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _vectors(
    sides: Sequence[_Side], test: Test, seeds: Sequence[int] | None, said: _Said
) -> Samples:
    """One vector for each group."""
    groups = [side.values(side.quantity.metric) for side in sides]
    common = {unit[1] for values in groups for unit in values} if test.aligned else ()
    wanted = common if seeds is None else seeds
    for side, values in zip(sides, groups, strict=True):
        side.look(values, wanted, said)
    units = [sorted(u for u, value in values.items() if value is not None) for values in groups]
    if test.aligned:
        for side, values in zip(sides, groups, strict=True):
            side.look_for_pairs(values, set().union(*groups), said)
        units = [sorted(set(units[0]).intersection(*units[1:]))] * len(groups)
    seen, clusters, over = None, None, None
    if test.kind == "times":
        seen, units = _seen(sides, units, said)
    arrays = []
    for side, values, own in zip(sides, groups, units, strict=True):
        if not own:
            raise _Nothing(f"there is no value of '{side.group}' to compare.")
        arrays.append(np.array([values[unit] for unit in own], np.float64))
    labels = [[unit[1] for unit in own] for own in (units[:1] if test.aligned else units)]
    several = any(len(set(own)) < len(own) for own in labels)  # units of one seed
    if several and not all(side.quantity.independent for side in sides):
        clusters = np.concatenate(labels)
    if test.kind == "correlation":
        over = np.array([sides[0].arms[unit[0]] for unit in units[0]])
    return Samples(tuple(arrays), seen, clusters, over)


def _seen(
    sides: Sequence[_Side], units: Sequence[Sequence[Unit]], said: _Said
) -> tuple[tuple[np.ndarray, ...], list[list[Unit]]]:
    """Whether each time ended in the event. Units for which that is not known are dropped."""
    flags, kept = [], []
    for side, there in zip(sides, units, strict=True):
        name = side.quantity.seen or ""
        values = side.values(name)
        odd = [value for value in values.values() if value not in (0.0, 1.0, None)]
        if odd:
            raise _Nothing(f"{name} says whether an event was seen: 0 or 1, not {odd[0]:g}.")
        known = [unit for unit in there if values.get(unit) is not None]
        said.gap(f"{name} is missing in", side.names(u for u in there if u not in known))
        kept.append(known)
        flags.append(np.array([values[unit] == 1.0 for unit in known], bool))
    return tuple(flags), kept


def _squares(sides: Sequence[_Side], seeds: Sequence[int] | None, said: _Said) -> Samples:
    """One square array for each group, over the models for which all groups have every pair.

    A pair given in one order counts for both orders.
    """
    groups = []
    for side in sides:
        pairs, dead = _pairs(side), {row["seed"] for _, row in side.deaths}
        said.death(side.names((0, seed) for seed in sorted(dead)))
        models = sorted(({i for pair in pairs for i in pair} if seeds is None else {*seeds}) - dead)
        lacking = {(i, j) for i in models for j in models if i != j and pairs.get((i, j)) is None}
        named = [f"pair {list(pair)} of arm '{side.group}'" for pair in sorted(lacking)]
        said.gap(f"{side.quantity.metric} is missing in", named)
        while lacking:  # leave out the model with the most missing pairs
            worst = max(models, key=lambda m: sum(m in pair for pair in lacking))
            models.remove(worst)
            lacking = {pair for pair in lacking if worst not in pair}
        groups.append((pairs, models))
    common = [m for m in groups[0][1] if all(m in models for _, models in groups)]
    differ = any(len(models) != len(common) for _, models in groups)
    if differ and not said.gaps and not said.left_out:
        said.gaps.append(f"the groups have different models; {len(common)} are in all")
    if len(common) < 3:
        raise _Nothing(f"{len(common)} models are too few for pairs of them.")
    arrays = [
        np.array([[np.nan if i == j else pairs[i, j] for j in common] for i in common])
        for pairs, _ in groups
    ]
    return Samples(tuple(arrays))


def _pairs(side: _Side) -> dict[tuple[int, int], float | None]:
    given: dict[tuple[int, int], float | None] = {}
    metric = side.quantity.metric
    for _, row in side.rows(metric):
        pair = row["of"].get("pair")
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise _Nothing(f"a row of {metric} (arm '{side.group}') has no pair of models.")
        if (key := (pair[0], pair[1])) in given:
            raise _Nothing(f"{metric} of arm '{side.group}' has pair {list(pair)} twice.")
        given[key] = _finite(row["value"])
    return {(j, i): value for (i, j), value in given.items()} | given


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _sentences(parts: Iterable[str]) -> str:
    text = "; ".join(dict.fromkeys(part.rstrip(".") for part in parts))
    return text if not text or text.endswith("?") else f"{text}."
