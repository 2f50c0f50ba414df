"""Hypotheses as data: what is compared, how, and what would count as an answer."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sharpjax.errors import UserError, unknown
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.catalog import Test
from sharpjax.protocol.tests.result import Alternative

Correction = Literal["none", "holm", "bh", "by"]
Certainty = Literal["firm", "partial", "weak", "design"]
Diverged = Literal["inconclusive", "left out"]


@dataclass(frozen=True)
class Quantity:
    """Which rows of the results table hold the numbers.

    Attributes:
        metric: the rows' `metric`, such as `train[:512]/hessian/lambda_1`.
        at: 'last' (the last step of each arm), or a step.
        of: further coordinates that a row's `of` must have, such as `{"severity": 5}`.
        over: the coordinates that identify a unit: 'seed', and keys of `of` such as 'layer'.
            ('pair',) means rows whose `of` has `{"pair": [i, j]}`: one square array over the
            models.
        seen: for times: the metric that is 1 if the event was seen, 0 if the unit was censored.
        independent: the units of one seed are independent draws (simulated studies); otherwise they
            are a cluster (layers of one model). All quantities of a contrast must say the same.
        optional: a seed may have no unit (none of its layers is critical). Such a seed is counted
            and reported, and does not count as missing.
    """

    metric: str
    at: str | int = "last"
    of: Mapping[str, Any] = field(default_factory=dict)
    over: tuple[str, ...] = ("seed",)
    seen: str | None = None
    independent: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Contrast:
    """One comparison and its test.

    Attributes:
        quantity: one for all groups, or one for each group (the two sides of a correlation, a model
            before and after).
        groups: names of arms, in the order of the claim; `a|b` is one group that pools two arms.
        direction: of the first group against the others: 'greater', 'less', 'two-sided'. For a
            trend, 'greater' means that the first group is the largest and values fall along the
            groups. Tests of equivalence take 'two-sided'.
        test: a name in `protocol.tests.catalog.TESTS`.
        margin: the smallest effect of interest, in the units of the test's effect. None: none was
            named, so nothing can be found equivalent.
        null: the effect under the null hypothesis; None: the test's own.
        family: name of the family of contrasts that are corrected together; None: the hypothesis's.
        within: the claim is that the effect lies within `margin` of `null`, whatever the test. The
            test's intervals decide it, and `direction` is 'two-sided'.
        reported: the source's own number, shown beside ours. For a comparison of means or of ranks
            it is the first mean less the second, else it is in the units of the test's effect.
    """

    quantity: Quantity | tuple[Quantity, ...]
    groups: tuple[str, ...]
    direction: Alternative
    test: str
    margin: float | None = None
    null: float | None = None
    family: str | None = None
    within: bool = False
    reported: float | None = None


@dataclass(frozen=True)
class Composite:
    """Contrasts or composites that are answered together.

    Attributes:
        supported_by: how many members must be supported: 'all', 'any', 'majority' (more than half)
            or a number.
        refuted_by: how many members must be refuted for the whole to be refuted; also 'never'.
    """

    members: tuple["Contrast | Composite", ...]
    supported_by: str | int = "all"
    refuted_by: str | int = "any"
    name: str = ""


@dataclass(frozen=True)
class Hypothesis:
    """A claim that a study is to decide.

    Attributes:
        id: `H1.1` of the papers, or a study's own, such as `S.1`.
        claim: one sentence.
        contrasts, combine, refuted_by: as `Composite.members`, `.supported_by`, `.refuted_by`.
        refuting: further statements; if one of them is supported, the claim is refuted. They are
            for claims whose refutation has a threshold or a test of its own.
        family: name of the family of contrasts that are corrected together, also across hypotheses;
            '': this hypothesis's own. Statements in `refuting` are a separate family, because claim
            and refutation cannot both hold.
        correction, alpha: of the family. They are the same in all its members, and so is
            `diverged`.
        source: the paper (arXiv id or OpenReview id) and the place of the claim in it.
        status: how firm the claim's details are in the source.
        reference: the source's own number, for a reader to compare with ours; '' if it has none.
        refuted_if: the refutation in words.
        uncertain: what the source leaves open.
        missing: what must be built before it can be run; '' if it can be run.
        diverged: how seeds that turned non-finite in training count. 'inconclusive': as missing
            seeds; 'left out': the others decide, and the number of those left out is reported.
    """

    id: str
    claim: str
    contrasts: tuple[Contrast | Composite, ...]
    combine: str | int = "all"
    refuted_by: str | int = "any"
    family: str = ""
    correction: Correction = "none"
    alpha: float = 0.05
    source: str = ""
    status: Certainty = "firm"
    reference: str = ""
    refuted_if: str = ""
    uncertain: str = ""
    missing: str = ""
    refuting: tuple[Contrast | Composite, ...] = ()
    diverged: Diverged = "inconclusive"


def contrasts(member: Contrast | Composite | Hypothesis) -> Iterator[Contrast]:
    """Every contrast of a hypothesis or of a part of it, depth first, `refuting` last.

    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "welch")
    >>> len(list(contrasts(Hypothesis("S.1", "Lower.", (loss, Composite((loss, loss)))))))
    3
    """
    return (part for part in _parts(member) if isinstance(part, Contrast))


def _parts(member: Contrast | Composite | Hypothesis) -> Iterator[Contrast | Composite]:
    if not isinstance(member, Hypothesis):
        yield member
    if isinstance(member, Contrast):
        return
    inside = member.members if isinstance(member, Composite) else member.contrasts + member.refuting
    for part in inside:
        yield from _parts(part)


def tests_of(hypotheses: Iterable[Hypothesis]) -> tuple[str, ...]:
    """The tests that hypotheses name, each once."""
    return tuple(dict.fromkeys(c.test for h in hypotheses for c in contrasts(h)))


def quantities(contrast: Contrast) -> tuple[Quantity, ...]:
    """The quantity of each group."""
    if isinstance(contrast.quantity, Quantity):
        return (contrast.quantity,) * len(contrast.groups)
    return contrast.quantity


def arms(group: str) -> tuple[str, ...]:
    """The arms that a group pools.

    >>> arms("sgd|sam")
    ('sgd', 'sam')
    """
    return tuple(group.split("|"))


def families(hypothesis: Hypothesis) -> Iterator[tuple[Contrast, str]]:
    """Each contrast, in the order of `contrasts`, with the name of its family."""
    for members, suffix in ((hypothesis.contrasts, ""), (hypothesis.refuting, " (refuting)")):
        for contrast in contrasts(Composite(members)):
            yield contrast, (contrast.family or hypothesis.family or hypothesis.id) + suffix


def check(
    hypotheses: Iterable[Hypothesis],
    *,
    arms: Collection[str] | None = None,
    metrics: Collection[str] | None = None,
    sealed: bool = False,
) -> None:
    """Refuse hypotheses that could not be decided, or that chance alone would decide.

    Args:
        arms, metrics: the names that the study has; None: not known, so any name passes.
        sealed: the hypotheses were registered, possibly before there were rules against what
            chance, or no numbers at all, would decide. These rules are then not applied.

    Raises:
        UserError: names the hypothesis and what is wrong with it.

    >>> check([Hypothesis("S.1", "Lower.", (), alpha=1.5)])
    Traceback (most recent call last):
        ...
    sharpjax.errors.UserError: hypothesis S.1: alpha=1.5; give a number between 0 and 1.
    """
    ids: set[str] = set()
    first_of: dict[str, Hypothesis] = {}
    for hypothesis in hypotheses:
        if hypothesis.id in ids:
            raise UserError(f"two hypotheses have the id {hypothesis.id}; an id names one claim.")
        ids.add(hypothesis.id)
        try:
            _check_hypothesis(hypothesis)
            for contrast in contrasts(hypothesis):
                _check_contrast(contrast)
                if not sealed:
                    _check_decidable(contrast)
                _check_names(contrast, arms, metrics)
            if not sealed:
                _check_chance(hypothesis)
        except UserError as error:
            raise UserError(f"hypothesis {hypothesis.id or '(no id)'}: {error}") from None
        for _, family in families(hypothesis):
            other = first_of.setdefault(family, hypothesis)
            for name in ("correction", "alpha", "diverged"):
                mine, theirs = getattr(hypothesis, name), getattr(other, name)
                if mine != theirs:
                    raise UserError(
                        f"family '{family}' has two rules for {name}: {theirs} in {other.id} and "
                        f"{mine} in {hypothesis.id}; give both hypotheses one, or two families."
                    )


def _check_hypothesis(hypothesis: Hypothesis) -> None:
    """Check everything that does not belong to a single contrast."""
    if not hypothesis.id.strip():
        raise UserError("id is empty; give one, as S.1.")
    if not _is_number(hypothesis.alpha) or not 0 < hypothesis.alpha < 1:
        raise UserError(f"alpha={hypothesis.alpha!r}; give a number between 0 and 1.")
    for what, given, words in (
        ("correction", hypothesis.correction, Correction),
        ("status", hypothesis.status, Certainty),
        ("rule for diverged seeds", hypothesis.diverged, Diverged),
    ):
        if given not in get_args(words):
            raise unknown(what, str(given), get_args(words))
    if not hypothesis.contrasts:
        if not hypothesis.missing:
            raise UserError("it has no contrast; give one, or say in `missing` why there is none.")
        return
    whole = Composite(hypothesis.contrasts, hypothesis.combine, hypothesis.refuted_by)
    for part in (part for member in (whole, *hypothesis.refuting) for part in _parts(member)):
        if isinstance(part, Composite):
            _check_composite(part, "combine" if part is whole else "supported_by")


def _check_composite(composite: Composite, rule: str) -> None:
    size = len(composite.members)
    if not size:
        raise UserError(f"composite '{composite.name}' has no members.")
    rules = {rule: composite.supported_by, "refuted_by": composite.refuted_by}
    for name, value in rules.items():
        words = ("all", "any", "majority", *(["never"] if name == "refuted_by" else []))
        number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= size
        if value not in words and not number:
            raise UserError(
                f"{name}={value!r}; give 'all', 'any', 'majority' or a number 1 to {size}."
            )


def _check_chance(hypothesis: Hypothesis) -> None:
    """Refuse what any one of several parts supports, or refutes, at alpha without correction.

    There may be one refuting contrast for each way in which a contrast of the claim can be wrong: a
    claim of equality has two. These are as many as refute a claim by default (`refuted_by='any'`).
    """
    if hypothesis.correction != "none":
        return
    whole = Composite(hypothesis.contrasts, hypothesis.combine)

    def share(size: int) -> str:
        most = min(size * hypothesis.alpha, 1)
        return f"without correction: chance alone would decide up to {most:.0%} of studies"

    for part in (part for member in (whole, *hypothesis.refuting) for part in _parts(member)):
        if isinstance(part, Composite) and part.supported_by in ("any", 1):
            if (size := len(part.members)) > 1:
                name = f"composite '{part.name}'" if part.name else "it"
                raise UserError(
                    f"any one of {size} parts supports {name}, {share(size)}; give "
                    f"correction='holm', or let 'all' or the 'majority' of them support it."
                )
    ways = sum(2 if _is_equality(contrast) else 1 for contrast in contrasts(whole))
    single = sum(isinstance(part, Contrast) for part in hypothesis.refuting)
    if single > max(ways, 1):
        raise UserError(
            f"any one of {single} `refuting` contrasts refutes it, {share(single)}; give "
            f"correction='holm', or join them by a composite of which 'all' are needed."
        )


def _is_equality(contrast: Contrast) -> bool:
    return contrast.within or catalog.TESTS[contrast.test].equivalence


def _check_contrast(contrast: Contrast) -> None:
    name, margin, count = contrast.test, contrast.margin, len(contrast.groups)
    if name not in catalog.TESTS:
        raise unknown("test", name, catalog.TESTS)
    test = catalog.TESTS[name]
    least, most = test.groups
    if not least <= count <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise UserError(f"test '{name}' takes {wanted} groups, not {count}.")
    if contrast.direction not in get_args(Alternative):
        raise unknown("direction", str(contrast.direction), get_args(Alternative))
    if not isinstance(contrast.quantity, Quantity) and len(contrast.quantity) != count:
        raise UserError(
            f"{len(contrast.quantity)} quantities for {count} groups; give one of all, or one each."
        )
    if test.equivalence and contrast.within:
        raise UserError(f"test '{name}' is one of equivalence already; leave `within` out.")
    if (test.equivalence or contrast.within) and contrast.direction != "two-sided":
        raise UserError(
            f"a claim of equivalence (test '{name}') has no direction; give 'two-sided', "
            f"not '{contrast.direction}'."
        )
    if margin is None and (test.margin or contrast.within):
        raise UserError(f"test '{name}' needs a margin, the smallest effect of interest.")
    if margin is not None and not (_is_number(margin) and margin > 0):
        raise UserError(f"margin={margin!r}; give a finite number above 0.")
    for field_, value in (("null", contrast.null), ("reported", contrast.reported)):
        if value is not None and not _is_number(value):
            raise UserError(f"{field_}={value!r}; give a finite number.")
    for quantity in quantities(contrast):
        _check_quantity(quantity, test)
    sizes = [len(arms(group)) for group in contrast.groups]
    if test.kind == "pairwise" and set(sizes) != {1}:
        raise UserError(f"test '{name}' compares models of one arm; a group pools several.")
    if test.aligned and len(set(sizes)) > 1:
        raise UserError(f"groups {', '.join(contrast.groups)} pool different numbers of arms.")
    if test.aligned and len({frozenset(quantity.over) for quantity in quantities(contrast)}) > 1:
        units = " and ".join(f"{q.metric} over={q.over!r}" for q in quantities(contrast))
        raise UserError(
            f"test '{name}' pairs the units of its quantities, which differ: {units}; give all "
            f"the same `over` (a single one of them is chosen by `of`)."
        )


def _check_decidable(contrast: Contrast) -> None:
    """Refuse what no numbers could decide, or what they would decide by construction."""
    name, test = contrast.test, catalog.TESTS[contrast.test]
    null = test.null if contrast.null is None else contrast.null
    if contrast.direction not in test.directions:
        allowed = " or ".join(repr(way) for way in test.directions)
        raise UserError(f"test '{name}' takes no '{contrast.direction}'; give {allowed}.")
    if contrast.within and not test.interval:
        raise UserError(
            f"test '{name}' gives no interval, so nothing is ever found within a margin; compare "
            f"pairs of groups by a test that gives one, as welch or paired-t."
        )
    try:
        test.check_null(null)
    except UserError as error:
        raise UserError(f"test '{name}': {error}") from None
    low, high = test.bounds
    if contrast.margin is not None and contrast.margin >= max(null - low, high - null):
        raise UserError(
            f"margin={contrast.margin:g} of test '{name}' says nothing: its effect always lies "
            f"between {low:g} and {high:g}, and so within {contrast.margin:g} of {null:g}; give a "
            f"margin below {max(null - low, high - null):g}."
        )
    if len({quantity.independent for quantity in quantities(contrast)}) > 1:
        said = " and ".join(f"{q.metric} {q.independent}" for q in quantities(contrast))
        raise UserError(
            f"`independent` of its quantities differs: {said}; give all True if the units of one "
            f"seed are independent draws, else all False."
        )
    sizes = [len(arms(group)) for group in contrast.groups]
    several = any(
        not quantity.independent and (len(quantity.over) > 1 or size > 1)
        for size, quantity in zip(sizes, quantities(contrast), strict=True)
    )
    if several and not test.clusters:
        raise UserError(
            f"test '{name}' needs independent units, and a seed has several here (layers, "
            f"pooled arms); take a paired test, auc or a correlation, or say that they are "
            f"`independent`."
        )


def _check_quantity(quantity: Quantity, test: Test) -> None:
    metric, at, over, of = quantity.metric, quantity.at, quantity.over, quantity.of
    pairs = test.kind == "pairwise"
    if not metric:
        raise UserError("a quantity has no metric; name one, as test/accuracy.")
    if at != "last" and (not isinstance(at, int) or isinstance(at, bool) or at < 0):
        raise UserError(f"at={at!r} of {metric}; give 'last' or a step.")
    if (over == ("pair",)) != pairs:
        raise UserError("over=('pair',) and pairwise tests go together.")
    if quantity.optional and pairs:
        raise UserError(f"{metric}: units of pairwise tests are models, none is optional.")
    if not pairs and ("seed" not in over or "pair" in over):
        raise UserError(f"over={over!r} of {metric}; 'seed' must be among them.")
    if (quantity.seen is not None) != (test.kind == "times"):
        raise UserError(f"{metric}: `seen` and tests of times go together.")
    try:
        plain = json.loads(json.dumps(of, allow_nan=False)) == of
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise UserError(f"of={of!r} of {metric} is not plain JSON.")


def _check_names(
    contrast: Contrast, known_arms: Collection[str] | None, metrics: Collection[str] | None
) -> None:
    names = [arm for group in contrast.groups for arm in arms(group)]
    measured = [name for q in quantities(contrast) for name in (q.metric, q.seen) if name]
    for what, given, known in (("arm", names, known_arms), ("metric", measured, metrics)):
        for name in given:
            if known is not None and name not in known:
                raise unknown(what, name, known)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
