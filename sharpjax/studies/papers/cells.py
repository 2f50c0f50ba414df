"""A paper's hypotheses, asked of what a config has.

A hypothesis spans cells, such as data sets and nets. A config with fewer arms cannot answer it. The
hypothesis then says what is lacking, and the same is asked of the cells that are present, under a
separate id such as `H3.1 add97-80`. Hypotheses about nets other than the paper's also get a
separate id.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sharpjax import catalog
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity, arms, contrasts
from sharpjax.schema import Config

Part = Contrast | Composite | Hypothesis
# The suffix and the words of hypotheses about the paper's nets that are trained otherwise.
OTHER = ("other", "images or widths other than the paper's")
_Row = TypeVar("_Row", bound=Mapping[str, Any])
_Value = TypeVar("_Value")


def place(arm: str) -> tuple[str, ...]:
    """Data set and net of an arm.

    >>> place("cifar10-vgg19-augmentation-es")
    ('cifar10', 'vgg19')
    """
    return tuple(arm.split("-")[:2])


def having(arms: Collection[str], *conditions: str) -> tuple[str, ...]:
    """The places that have an arm of each of these conditions.

    >>> having(["cifar10-vit-siddo", "cifar10-vit-kd_90", "mnist-vit-siddo"], "siddo", "kd_90")
    ('cifar10-vit',)
    """
    places = dict.fromkeys("-".join(place(arm)) for arm in arms)
    return tuple(p for p in places if all(f"{p}-{c}" in arms for c in conditions))


def by_place(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    """The rows of each data set and net.

    >>> list(by_place([{"arm": "cifar10-vit-siddo"}, {"arm": "cifar10-vit-kd_90"}]))
    ['cifar10-vit']
    """
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault("-".join(place(row["arm"])), []).append(row)
    return found


def by_condition(values: Mapping[str, _Value], order: Sequence[str]) -> dict[str, _Value]:
    """The values of the arms of one place, by condition: their names without data set and net.

    Args:
        values: by the names of arms.
        order: beginnings of conditions. The longest that fits gives the place; others come last.

    >>> found = {"mnist-vit-kd_90": 3, "mnist-vit-new": 4, "mnist-vit-kd_10": 2, "mnist-vit-kd": 1}
    >>> by_condition(found, ("kd", "kd_"))
    {'kd': 1, 'kd_10': 2, 'kd_90': 3, 'new': 4}
    """
    by_name = {arm.split("-", 2)[2]: value for arm, value in values.items()}

    def rank(name: str) -> tuple[int, str]:
        fits = [i for i, start in enumerate(order) if name.startswith(start)]
        return max(fits, key=lambda i: len(order[i]), default=len(order)), name

    return {name: by_name[name] for name in sorted(by_name, key=rank)}


def other_set_up(arm: Config, *, validated: int = 0, net: Mapping[str, int | None] = {}) -> str:
    """What an arm with the name of one of the paper's has that the paper has not: fewer images or
    images of another size, or a net of another width or depth; '' if nothing.

    The name itself says data set and net (`schema.blocks.check_place`).

    Args:
        arm: complete.
        validated: how many training images the paper sets aside.
        net: width and depth of the paper's net; 0, the default, is the usual one of the model, and
            None leaves it open.
    """
    known = catalog.DATA_SETS[arm.data.name].num_train
    trained = arm.data.num_train or known - arm.data.num_validation
    if trained + validated < known:
        most = f"{known - validated:,}" if validated else "all"
        return f"The paper trains on {most} images, and this form on {trained:,}."
    if size := arm.data.get("image_size", 0):
        return f"The paper's images have the size of the data set, and this form's {size} x {size}."
    for field in ("width", "depth"):
        wanted, own = net.get(field, 0), arm.model.get(field, 0)
        if wanted is not None and own != wanted:
            both = (wanted, own)
            theirs, ours = (f"a {field} of {n}" if n else f"its usual {field}" for n in both)
            return f"The paper's net has {theirs}, and this form's {ours}."
    return ""


def differing(
    arms: Mapping[str, Config],
    there: Iterable[str],
    *,
    validated: int = 0,
    nets: Mapping[str, Mapping[str, int | None]] = {},
) -> dict[str, str]:
    """The `differs` of `asked_of`: for each arm of a place with another set-up, how that differs.

    Changed labels and dropout are conditions, unless every arm of a place has them.

    Args:
        arms: that are trained, by name.
        there: these, and those that are made from them.
        validated: as in `other_set_up`.
        nets: as in `other_set_up`, by the net in the name; others have the usual width and depth.
    """
    places: dict[tuple[str, ...], list[Config]] = {}
    for name, arm in arms.items():
        places.setdefault(place(name), []).append(arm)
    found = {}
    for at, own in places.items():
        each = (other_set_up(a, validated=validated, net=nets.get(at[1], {})) for a in own)
        why = next(filter(None, each), "")
        if not why and all(a.data.get("label_noise", 0) for a in own):
            why = "The paper trains on the labels of the data set, and this form changes some."
        if not why and all(a.model.get("dropout", 0) for a in own):
            why = "The paper's net has no dropout, and each of this form's has."
        found[at] = why
    return {name: why for name in there if (why := found.get(place(name)))}


def asked_of(
    there: Collection[str],
    hypotheses: Iterable[Hypothesis],
    *,
    cell: Callable[[str], tuple[str, ...]] = place,
    differs: Mapping[str, str] | None = None,
) -> tuple[Hypothesis, ...]:
    """All hypotheses, each with what keeps it from being asked; then parts of those that cannot be
    asked.

    Families are corrected within a part. A hypothesis that was already missing something, or of
    which no comparison is left, has no part.

    Args:
        there: the arms of the config.
        hypotheses: the paper's.
        cell: where an arm belongs, from coarse to fine; a part is named by the cells of its arms.
        differs: for arms that are present but differ from the paper's, a sentence that says how;
            they count as lacking.

    >>> from sharpjax.studies.papers import paper3
    >>> arms = [f"add97-{model}-80" for model in ("dense", *paper3.MODELS)]
    >>> asked = asked_of(arms, paper3.HYPOTHESES, cell=lambda arm: tuple(arm.split("-")[::2]))
    >>> [hypothesis.id for hypothesis in asked if not hypothesis.missing]
    ['H3.1 add97-80', 'H3.2 add97-80', 'H3.5 add97-80', 'H3.6 add97-80']
    """
    differs = differs or {}
    good = [name for name in there if name not in differs]
    whole = [(h, _said(h, there, differs)) for h in hypotheses]
    parts = (_part(h, good, cell) for h, said in whole if said.missing and not h.missing)
    return (*(said for _, said in whole), *filter(None, parts))


def of_others(hypotheses: Iterable[Hypothesis], suffix: str, words: str) -> tuple[Hypothesis, ...]:
    """Hypotheses over cells that are not the paper's: `H5.1 narrow`, and the claim `(words)`.

    The paper's own hypotheses stay beside them, and are not run until their own cells are.
    """
    return tuple(
        dataclasses.replace(
            hypothesis,
            id=f"{hypothesis.id} {suffix}",
            claim=f"{hypothesis.claim[:-1]} ({words}).",
            family=hypothesis.family and f"{hypothesis.family} {suffix}",
        )
        for hypothesis in hypotheses
    )


def measured_as(
    hypotheses: Iterable[Hypothesis], metrics: Mapping[str, str]
) -> tuple[Hypothesis, ...]:
    """Hypotheses with metrics renamed to those of a study, such as of a measurement set."""
    return tuple(
        dataclasses.replace(
            hypothesis,
            contrasts=_renamed(hypothesis.contrasts, metrics),
            refuting=_renamed(hypothesis.refuting, metrics),
        )
        for hypothesis in hypotheses
    )


def _renamed(members: Iterable[Contrast | Composite], metrics: Mapping[str, str]) -> tuple:
    def named(quantity: Quantity) -> Quantity:
        return dataclasses.replace(quantity, metric=metrics.get(quantity.metric, quantity.metric))

    kept = []
    for member in members:
        if isinstance(member, Composite):
            kept.append(dataclasses.replace(member, members=_renamed(member.members, metrics)))
        else:
            given = member.quantity
            own = named(given) if isinstance(given, Quantity) else tuple(map(named, given))
            kept.append(dataclasses.replace(member, quantity=own))
    return tuple(kept)


def arms_of(part: Part) -> tuple[str, ...]:
    """The arms that a hypothesis, or a part of one, needs."""
    groups = (group for contrast in contrasts(part) for group in contrast.groups)
    return tuple(dict.fromkeys(name for group in groups for name in arms(group)))


def _said(hypothesis: Hypothesis, there: Collection[str], differs: Mapping[str, str]) -> Hypothesis:
    """The hypothesis, with what keeps it from being asked."""
    if hypothesis.missing:
        return hypothesis
    needed = arms_of(hypothesis)
    lacking = [name for name in needed if name not in there]
    why = next((differs[name] for name in needed if name in differs), "")
    if lacking:
        more = f" and {len(lacking) - 1} more of its arms" if len(lacking) > 1 else ""
        why = f"This config has no {lacking[0]}{more}; other forms of it have."
    return dataclasses.replace(hypothesis, missing=why)


def _part(
    hypothesis: Hypothesis, there: Collection[str], cell: Callable[[str], tuple[str, ...]]
) -> Hypothesis | None:
    """The hypothesis with only the comparisons whose arms are present; None if there are none."""
    whole = Composite(hypothesis.contrasts, hypothesis.combine, hypothesis.refuted_by)
    kept = _those_of([whole], there)
    if not kept:
        return None
    (part,) = kept
    left, total = (len(list(contrasts(one))) for one in (part, whole))
    where: dict[str, set[str]] = {}
    for outer, *inner in map(cell, arms_of(part)):
        where.setdefault(outer, set()).update(inner)
    cells = " ".join(
        "-".join((outer, "/".join(sorted(of)))) if of else outer for outer, of in where.items()
    )
    every = {cell(name)[0] for name in arms_of(hypothesis)}
    alone = f": {' and '.join(where)} alone" if len(where) < len(every) else ""
    return dataclasses.replace(
        hypothesis,
        id=f"{hypothesis.id} {cells}",
        claim=f"{hypothesis.claim[:-1]}{alone} ({left} of {total} comparisons).",
        contrasts=part.members,
        combine=part.supported_by,
        refuted_by=part.refuted_by,
        family=hypothesis.family and f"{hypothesis.family} (part)",
        refuting=_those_of(hypothesis.refuting, there),
        refuted_if=f"{hypothesis.refuted_if}; of the comparisons that there are",
    )


def _those_of(members: Iterable[Contrast | Composite], there: Collection[str]) -> tuple:
    kept = []
    for member in members:
        if isinstance(member, Composite):
            if inside := _those_of(member.members, there):
                rules = (member.supported_by, member.refuted_by)
                supported_by, refuted_by = (_at_most(rule, len(inside)) for rule in rules)
                kept.append(Composite(inside, supported_by, refuted_by, member.name))
        elif all(name in there for name in arms_of(member)):
            family = member.family and f"{member.family} (part)"
            kept.append(dataclasses.replace(member, family=family))
    return tuple(kept)


def _at_most(rule: str | int, size: int) -> str | int:
    return rule if isinstance(rule, str) else min(rule, size)
