"""How a claim of a paper is written down: what is compared, the votes, and the hypothesis."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity
from sharpjax.protocol.tests.result import Alternative

Part = Contrast | Composite


def ask(
    title: str,
    members: Composite | Iterable[Part],
    where: str,
    *,
    source: str,
    refuting: Composite | Iterable[Part] = (),
    **more: Any,
) -> Hypothesis:
    """The hypothesis of a title, which holds its id and its claim.

    Args:
        title: id, a space, and claim.
        members: all must be supported and any can refute, unless a composite says otherwise.
        where: the place of the claim in its source.
        source: the paper.
        refuting: one statement that refutes the claim, or several.
        more: further fields of `Hypothesis`.

    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "welch")
    >>> one = ask("S.1 It is lower.", most([loss]), "table 1", source="A paper", status="weak")
    >>> one.id, one.claim, one.combine, one.refuted_by, one.source
    ('S.1', 'It is lower.', 'majority', 'never', 'A paper; table 1')
    """
    id, claim = title.split(" ", 1)
    whole = members if isinstance(members, Composite) else Composite(tuple(members))
    against = (refuting,) if isinstance(refuting, Composite) else tuple(refuting)
    return Hypothesis(
        id, claim, whole.members, whole.supported_by, whole.refuted_by,
        source=f"{source}; {where}", refuting=against, **more,
    )  # fmt: skip


def vote(members: Iterable[Part], name: str = "") -> Composite:
    """A majority of the members supports or refutes it."""
    return Composite(tuple(members), "majority", "majority", name)


def most(members: Iterable[Part], name: str = "") -> Composite:
    """A majority of the members supports it. None refutes it; `refuting` says what does."""
    return Composite(tuple(members), "majority", "never", name)


def all_of(members: Iterable[Part], name: str = "") -> Composite:
    """All members must support it. Members cannot refute it; `refuting` says what does."""
    return Composite(tuple(members), "all", "never", name)


def any_of(members: Iterable[Part], name: str = "") -> Composite:
    """One member is enough to support it. Members cannot refute it."""
    return Composite(tuple(members), "any", "never", name)


def in_family(members: Iterable[Part], family: str) -> tuple[Part, ...]:
    """The same members, with all their contrasts corrected together.

    >>> loss = Contrast(Quantity("test/loss"), ("sam", "sgd"), "less", "welch")
    >>> in_family([vote([loss])], "net")[0].members[0].family
    'net'
    """
    return tuple(
        replace(m, members=in_family(m.members, family))
        if isinstance(m, Composite)
        else replace(m, family=family)
        for m in members
    )


def same_arm(
    group: str, metrics: Iterable[str | Quantity], direction: Alternative, test: str, **more: Any
) -> Contrast:
    """Several quantities of one group: two that correlate, or a model before and after."""
    sides = tuple(m if isinstance(m, Quantity) else Quantity(m) for m in metrics)
    return Contrast(sides, (group,) * len(sides), direction, test, **more)


def equal(
    quantity: Quantity, groups: tuple[str, ...], test: str, margin: float, null: float | None = None
) -> Contrast:
    """The effect lies within a margin of `null`."""
    return Contrast(quantity, groups, "two-sided", test, margin, null, within=True)


def names(*parts: Iterable[str]) -> tuple[str, ...]:
    """Names of arms, or of places, which are the beginnings of names of arms.

    >>> names(["mnist", "digits"], ["vit"], ["sam", "sgd"])
    ('mnist-vit-sam', 'mnist-vit-sgd', 'digits-vit-sam', 'digits-vit-sgd')
    """
    return tuple(map("-".join, itertools.product(*parts)))
