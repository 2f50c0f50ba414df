"""A paper's hypotheses, asked of the arms, data sets and nets that a config has."""

import dataclasses
import doctest

from sharpjax.protocol.hypotheses import Composite, check
from sharpjax.studies.papers import cells, paper7
from tests.protocol_cases import contrast, hypothesis


def test_docstrings():
    assert doctest.testmod(cells).failed == 0


def built(asked):
    """As if what they need were built."""
    return tuple(dataclasses.replace(h, missing="") for h in asked)


def test_a_part_counts_no_more_than_it_has():
    """Claims that count their members stay decidable where few are left."""
    two_of = Composite(
        tuple(contrast((arm, "a-n-base")) for arm in ("a-n-x", "a-n-y", "b-n-z")), 2, 3, name="c"
    )
    whole = hypothesis(two_of, contrast(("b-n-z", "b-n-base")), combine=2, refuted_by="never")
    said, part = cells.asked_of(("a-n-x", "a-n-base"), [whole])
    assert (
        said.missing == "This config has no a-n-y and 2 more of its arms; other forms of it have."
    )
    assert (part.id, part.claim) == ("S.1 a-n", "A claim: a alone (1 of 4 comparisons).")
    (member,) = part.contrasts
    assert isinstance(member, Composite)
    assert (member.supported_by, member.refuted_by, part.combine) == (1, 1, 1)
    assert part.refuted_by == "never"
    check([said, part])


def test_families_of_a_part_are_its_own():
    other = contrast(("b-n-x", "b-n-y"), family="F")
    whole = hypothesis(contrast(("a-n-x", "a-n-y"), family="F"), other, family="S")
    _, part = cells.asked_of(("a-n-x", "a-n-y"), [whole])
    assert (part.family, part.contrasts[0].family) == ("S (part)", "F (part)")
    assert cells.asked_of(("a-n-x", "a-n-y", "b-n-x", "b-n-y"), [whole]) == (whole,)


def test_what_has_no_arm_or_is_not_built_has_no_part():
    (said,) = cells.asked_of((), built(paper7.HYPOTHESES[:1]))
    assert said.missing.startswith("This config has no cifar10-lenet-float16 and")
    assert cells.asked_of(("cifar10-lenet-int8",), paper7.HYPOTHESES) == paper7.HYPOTHESES


def test_an_arm_that_differs_is_lacking():
    why = "a-n-x is short."
    said, *parts = cells.asked_of(
        ("a-n-x", "a-n-y"), [hypothesis(contrast(("a-n-x", "a-n-y")))], differs={"a-n-x": why}
    )
    assert said.missing == why and not parts


def test_asked_of_other_nets_the_papers_own_stay_open():
    narrow = built(paper7.hypotheses(("lenet_narrow",)))
    there = {arm for h in narrow for arm in cells.arms_of(h)}
    asked = (
        *cells.asked_of(there, built(paper7.HYPOTHESES)),
        *cells.asked_of(there, cells.of_others(narrow, "narrow", "narrow nets")),
    )
    check(asked)
    check([h for h in asked if not h.missing], arms=there)
    assert [h.id for h in asked if h.missing] == [f"H7.{i}" for i in range(1, 7)]
    assert [h.id for h in asked if not h.missing] == [f"H7.{i} narrow" for i in range(1, 7)]
    assert asked[6].claim == "Quantised models are functionally the base model (narrow nets)."
