"""From rows of the results table to the numbers that one contrast compares."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError, nearest
from sharpjax.protocol.canonical import canonical_json
from sharpjax.protocol.claims import Contrast, Quantity, arms, quantities
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.catalog import Kind
from sharpjax.protocol.tests.result import Samples

Row = Mapping[str, Any]
ALIVE = "train/alive"  # 0 from the step on at which a seed turned non-finite

# What tells one unit from the next: the place of its arm in the group, its seed, and further
# coordinates as canonical JSON.
Unit = tuple[Any, ...]
Values = dict[Unit, float | None]


class Incomplete(UserError):
    """A contrast whose numbers are not all there.

    `samples` holds those that are; None where there is nothing to compare.
    """

    def __init__(self, reason: str, samples: Samples | None = None):
        super().__init__(reason)
        self.samples = samples


class Table(NamedTuple):
    """Rows by arm and metric, and the last step of each arm."""

    rows: Mapping[tuple[str, str], Sequence[Row]]
    last: Mapping[str, int]


def table(rows: Iterable[Row] | Table) -> Table:
    """Index rows, once for all contrasts.

    Raises:
        UserError: two rows say the same thing of the same model: runs were put together that hold
            the same seeds.
    """
    if isinstance(rows, Table):
        return rows
    index: dict[tuple[str, str], list[Row]] = {}
    last: dict[str, int] = {}
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
    return Table(index, last)


def gather(
    rows: Iterable[Row] | Table,
    contrast: Contrast,
    *,
    seeds: Sequence[int] | None = None,
    kind: Kind | None = None,
) -> Samples:
    """The samples of one contrast.

    Units of paired and correlated groups are aligned by seed and further coordinates. Where a group
    has several units of one seed (layers; arms that are pooled), `clusters` holds the seeds: of
    the aligned units, or of those of one group after the other.

    Args:
        rows: the results table, or its `table`.
        seeds: those that were registered: rows of others are left out, and where one of these is
            missing the samples are incomplete. None: those that there are.
        kind: how the test's samples are gathered; None: as `protocol.tests.catalog` says.

    Raises:
        Incomplete: a metric, an arm, a seed, or a finite value is missing; names it, and carries
            the samples that are there.
        UserError: rows are duplicated.

    >>> def row(arm, seed, value):
    ...     return {"study": "s", "arm": arm, "seed": seed, "step": 9, "of": {},
    ...             "metric": "test/loss", "value": value}
    >>> rows = [row("sam", 0, 0.2), row("sam", 1, 0.3), row("sgd", 1, 0.5), row("sgd", 0, 0.4)]
    >>> gather(rows, Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "paired-t")).groups
    (array([0.2, 0.3]), array([0.4, 0.5]))
    """
    index = table(rows)
    chosen = None if seeds is None else frozenset(seeds)
    kind = kind or catalog.TESTS[contrast.test].kind
    sides = list(zip(contrast.groups, quantities(contrast), strict=True))
    if kind == "pairwise":
        return _matrices(index, sides, seeds)
    groups = [_values(index, group, quantity, chosen) for group, quantity in sides]
    gaps = [_not_finite(index, g, q, v) for (g, q), v in zip(sides, groups, strict=True)]
    aligned = kind in ("paired", "many-paired", "correlation")
    wanted = seeds
    if aligned and seeds is None:
        wanted = sorted({unit[1] for values in groups for unit in values})
    if wanted is not None:
        for (group, quantity), values in zip(sides, groups, strict=True):
            gaps.append(_missing_seeds(index, group, quantity, values, wanted))
    units = [sorted(u for u, value in values.items() if value is not None) for values in groups]
    if aligned:
        common = set(units[0]).intersection(*units[1:])
        gaps.append(_unpaired(sides, groups))
        units = [sorted(common)] * len(groups)
    seen = None
    if kind == "times":
        seen, units = _seen(index, sides, units, chosen, gaps)
    reason = _joined(gaps)
    if not all(units):
        nothing = next(g for g, u in zip(contrast.groups, units, strict=True) if not u)
        raise Incomplete(reason or f"there is no value of '{nothing}' to compare.")
    samples = Samples(
        tuple(_array(values, u) for values, u in zip(groups, units, strict=True)),
        seen,
        None if sides[0][1].independent else _clusters(units[:1] if aligned else units),
    )
    if reason:
        raise Incomplete(reason, samples)
    return samples


def _array(values: Values, units: Iterable[Unit]) -> np.ndarray:
    return np.array([values[unit] for unit in units], np.float64)


def _clusters(groups: Sequence[Sequence[Unit]]) -> np.ndarray | None:
    seeds = [[unit[1] for unit in units] for units in groups]
    together = any(len(set(own)) < len(own) for own in seeds)
    return np.concatenate(seeds) if together else None


def _rows_of(index: Table, arm: str, quantity: Quantity, metric: str) -> list[Row]:
    """The rows of one arm that a quantity means.

    Those of a model that has turned non-finite by then are of its last finite state, and left out.
    """
    if arm not in index.last:
        known = sorted(index.last)
        raise Incomplete(f"there are no rows of arm '{arm}'{nearest(arm, known) or '.'}")
    if (arm, metric) not in index.rows:
        known = sorted({name for owner, name in index.rows if owner == arm})
        raise Incomplete(f"arm '{arm}' has no metric '{metric}'{_known(metric, known)}")
    rows = index.rows[arm, metric]
    step = index.last[arm] if quantity.at == "last" else quantity.at
    there = [row for row in rows if row["step"] == step]
    if not there:
        steps = ", ".join(map(str, sorted({row["step"] for row in rows})[-5:]))
        last = ", its last" if quantity.at == "last" else ""
        raise Incomplete(
            f"arm '{arm}' has no {metric} at step {step}{last}; it has some at {steps}."
        )
    wanted = quantity.of.items()
    chosen = [row for row in there if all(row["of"].get(name) == v for name, v in wanted)]
    if not chosen:
        raise Incomplete(f"arm '{arm}' has no {metric} of {canonical_json(quantity.of)}.")
    if metric == ALIVE:
        return chosen
    dead = _deaths(index, arm, quantity)
    return [row for row in chosen if not any(_is_of(row, model) for model in dead)]


def _is_of(row: Row, model: Row) -> bool:
    """Whether a row is of the model that another one is of: one seed may have several."""
    own = row["of"].items() >= model["of"].items()
    return own and row["seed"] == model["seed"]


def _known(name: str, known: Sequence[str]) -> str:
    hint = nearest(name, known)
    some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return hint or f"; it has {some}."


def _values(
    index: Table,
    group: str,
    quantity: Quantity,
    seeds: Collection[int] | None,
    metric: str | None = None,
) -> Values:
    """The values of one group by unit, None where not finite."""
    name = metric or quantity.metric
    values: Values = {}
    for position, arm in enumerate(arms(group)):
        for row in _rows_of(index, arm, quantity, name):
            if seeds is not None and row["seed"] not in seeds:
                continue
            further = [key for key in quantity.over if key != "seed"]
            for key in further:
                if key not in row["of"]:
                    raise Incomplete(f"a row of {name} (arm '{arm}') has no coordinate '{key}'.")
            unit = (position, row["seed"], *(canonical_json(row["of"][key]) for key in further))
            if unit in values:
                coordinates = ", ".join(sorted(row["of"])) or "none"
                raise Incomplete(
                    f"{name} of arm '{arm}', seed {row['seed']}, has several values for one unit; "
                    f"its coordinates ({coordinates}) must be in `of` or `over` of the quantity."
                )
            value = row["value"]
            values[unit] = float(value) if value is not None and np.isfinite(value) else None
    return values


def _not_finite(index: Table, group: str, quantity: Quantity, values: Values) -> str:
    bad = sorted({_model(group, unit) for unit, value in values.items() if value is None})
    if not bad:
        return ""
    return f"{quantity.metric} is not finite in {_some(bad)}"


def _missing_seeds(
    index: Table, group: str, quantity: Quantity, values: Values, seeds: Sequence[int]
) -> str:
    there = {unit[:2] for unit in values}
    places = range(len(arms(group)))
    lacking = [(place, seed) for place in places for seed in seeds if (place, seed) not in there]
    names = [_model(group, unit) for unit in lacking]
    died = [
        (place, row) for place, arm in enumerate(arms(group))
        for row in _deaths(index, arm, quantity)
    ]  # fmt: skip
    # Of a seed with several models one may be left.
    alone = {
        f"{_model(group, (place, row['seed']))} {canonical_json(row['of'])}"
        for place, row in died
        if (place, row["seed"]) in there and row["seed"] in seeds and quantity.metric != ALIVE
    }
    if not names and not alone:
        return ""
    dead = {(place, row["seed"]) for place, row in died} & set(lacking)
    words = f"{quantity.metric} is missing in {_some([*names, *sorted(alone)])}"
    if dead or alone:
        words += f" ({len(dead) + len(alone)} of them turned non-finite in training)"
    return words


def _deaths(index: Table, arm: str, quantity: Quantity) -> list[Row]:
    """Rows that say of a model which a quantity means that it was dead by then."""
    step = index.last.get(arm, 0) if quantity.at == "last" else quantity.at
    own = quantity.of.items()
    return [
        row
        for row in index.rows.get((arm, ALIVE), ())
        if row["value"] == 0
        and row["step"] <= step
        and all(row["of"].get(name, value) == value for name, value in own)
    ]


def _unpaired(sides: Sequence[tuple[str, Quantity]], groups: Sequence[Values]) -> str:
    """Units beyond the seed (layers) that one group has and another lacks."""
    whole = set().union(*groups)
    for (group, quantity), values in zip(sides, groups, strict=True):
        seeds_there = {unit[:2] for unit in values}
        lacking = sorted(u for u in whole - values.keys() if u[:2] in seeds_there)
        if lacking:
            names = [f"{_model(group, u)} {' '.join(u[2:])}" for u in lacking]
            return f"{quantity.metric} is missing in {_some(names)}, and the pairs need it"
    return ""


def _model(group: str, unit: Unit) -> str:
    return f"arm '{arms(group)[unit[0]]}' seed {unit[1]}"


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _joined(gaps: Iterable[str]) -> str:
    text = "; ".join(dict.fromkeys(gap for gap in gaps if gap))
    return f"{text}." if text else ""


def _seen(
    index: Table,
    sides: Sequence[tuple[str, Quantity]],
    units: Sequence[Sequence[Unit]],
    seeds: Collection[int] | None,
    gaps: list[str],
) -> tuple[tuple[np.ndarray, ...], list[list[Unit]]]:
    """Whether each time ended in the event; units of which that is not known are dropped."""
    flags, kept = [], []
    for (group, quantity), there in zip(sides, units, strict=True):
        values = _values(index, group, quantity, seeds, quantity.seen)
        odd = [value for value in values.values() if value not in (0.0, 1.0, None)]
        if odd:
            raise Incomplete(
                f"{quantity.seen} says whether an event was seen: 0 or 1, not {odd[0]:g}."
            )
        known = [unit for unit in there if values.get(unit) is not None]
        if len(known) < len(there):
            lost = [_model(group, unit) for unit in there if values.get(unit) is None]
            gaps.append(f"{quantity.seen} is missing in {_some(lost)}")
        kept.append(known)
        flags.append(np.array([values[unit] == 1.0 for unit in known], bool))
    return tuple(flags), kept


def _matrices(
    index: Table, sides: Sequence[tuple[str, Quantity]], seeds: Sequence[int] | None
) -> Samples:
    """One square array for each group, over the models that all groups have whole.

    A pair that is given one way holds both ways.
    """
    gaps, groups = [], []
    for group, quantity in sides:
        pairs = _pairs(index, group, quantity)
        models = sorted({i for pair in pairs for i in pair}) if seeds is None else list(seeds)
        whole = [(i, j) for i in models for j in models if i != j]
        lacking = {pair for pair in whole if pairs.get(pair) is None}
        if lacking:
            named = [f"pair {list(pair)} of arm '{group}'" for pair in sorted(lacking)]
            gaps.append(f"{quantity.metric} is missing in {_some(named)}")
        while lacking:  # leave out the model that most pairs lack
            worst = max(models, key=lambda m: sum(m in pair for pair in lacking))
            models.remove(worst)
            lacking = {pair for pair in lacking if worst not in pair}
        groups.append((pairs, models))
    common = [m for m in groups[0][1] if all(m in models for _, models in groups)]
    if any(len(models) != len(common) for _, models in groups) and not gaps:
        gaps.append(f"the groups have different models; {len(common)} are in all")
    if len(common) < 3:
        raise Incomplete(_joined(gaps) or f"{len(common)} models are too few for pairs of them.")
    arrays = []
    for pairs, _ in groups:
        array = np.full((len(common), len(common)), np.nan)
        for i, first in enumerate(common):
            for j, second in enumerate(common):
                if i != j:
                    array[i, j] = pairs[first, second]
        arrays.append(array)
    samples = Samples(tuple(arrays))
    if gaps:
        raise Incomplete(_joined(gaps), samples)
    return samples


def _pairs(index: Table, group: str, quantity: Quantity) -> dict[tuple[int, int], float | None]:
    given: dict[tuple[int, int], float | None] = {}
    for row in _rows_of(index, group, quantity, quantity.metric):
        pair = row["of"].get("pair")
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise Incomplete(f"a row of {quantity.metric} (arm '{group}') has no pair of models.")
        key = (pair[0], pair[1])
        if key in given:
            raise Incomplete(f"{quantity.metric} of arm '{group}' has pair {list(pair)} twice.")
        value = row["value"]
        given[key] = float(value) if value is not None and np.isfinite(value) else None
    return {(j, i): value for (i, j), value in given.items()} | given
