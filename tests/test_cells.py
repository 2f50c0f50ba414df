"""A paper's hypotheses, asked of the arms, data sets and nets that a config has."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from sharpjax.protocol.claims import Composite, check, contrasts
from sharpjax.studies.papers import cells, paper1, paper2, paper5, paper6, paper7
from tests.protocol_cases import contrast, hypothesis


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
    lacking = tuple(dataclasses.replace(h, missing="Not built.") for h in paper2.HYPOTHESES)
    assert cells.asked_of(("mnist-mlp-reinit",), lacking) == lacking


def test_an_arm_that_differs_is_lacking():
    why = "a-n-x is short."
    said, *parts = cells.asked_of(
        ("a-n-x", "a-n-y"), [hypothesis(contrast(("a-n-x", "a-n-y")))], differs={"a-n-x": why}
    )
    assert said.missing == why and not parts


def test_another_set_up_is_said():
    """Fewer images than the paper's, or another net, in any arm of a place."""

    def arm(**own):
        data = {"name": "cifar10", "num_train": 0, "num_validation": 0} | own
        model = {name: data.pop(name, 0) for name in ("width", "depth", "dropout")}
        return ConfigDict({"data": data, "model": {"name": "vgg19", **model}})

    fewer = "The paper trains on all images, and this form on {}."
    assert cells.other_set_up(arm()) == cells.other_set_up(arm(num_train=50_000)) == ""
    assert cells.other_set_up(arm(num_train=3_000)) == fewer.format("3,000")
    assert cells.other_set_up(arm(num_validation=10_000)) == fewer.format("40,000")
    assert cells.other_set_up(arm(num_validation=5_000), validated=5_000) == ""
    assert cells.other_set_up(arm(num_train=4_000), validated=5_000) == (
        "The paper trains on 45,000 images, and this form on 4,000."
    )
    said = "The paper's net has {}, and this form's {}."
    assert cells.other_set_up(arm(width=8)) == said.format("its usual width", "a width of 8")
    assert cells.other_set_up(arm(width=0), net={"width": 768}) == said.format(
        "a width of 768", "its usual width"
    )
    assert cells.other_set_up(arm(width=8), net={"width": None}) == ""
    arms = {"a-n-x": arm(width=7), "a-n-y": arm(width=7, num_train=9), "b-n-x": arm(width=7)}
    there = ("a-n-x", "a-n-x-es", "b-n-x", "b-m-x")
    differs = cells.differing(arms | {"b-m-x": arm()}, there, nets={"n": {"width": 7}})
    assert differs == dict.fromkeys(there[:2], fewer.format("9"))
    assert cells.other_set_up(arm(depth=4)) == said.format("its usual depth", "a depth of 4")
    assert cells.other_set_up(arm(depth=4), net={"depth": 4}) == ""
    assert cells.other_set_up(arm(image_size=64)).endswith("and this form's 64 x 64.")


@pytest.mark.parametrize("block, field", [("data", "label_noise"), ("model", "dropout")])
def test_a_condition_that_every_arm_has_is_the_set_up(block, field):
    def arm(value):
        config = {
            "data": {"name": "mnist", "num_train": 0, "num_validation": 0},
            "model": {"name": "mlp", "width": 0},
        }
        config[block][field] = value
        return ConfigDict(config)

    names = ("a-n-x", "a-n-y")
    for values, differ in (((0.0, 0.5), ()), ((0.2, 0.5), names)):
        arms = dict(zip(names, map(arm, values), strict=True))
        assert tuple(cells.differing(arms, names)) == differ


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


ASKED = {
    1: lambda nets, data: paper1.hypotheses(
        architectures=nets, data_sets=data, memorised=[f"{data[0]}-{nets[0]}"]
    ),
    2: lambda nets, data: paper2.hypotheses(
        [f"{d}-{n}" for d in data for n in nets],
        layers={f"{d}-{n}": ("a", "b") for d in data for n in nets},
    ),
    5: lambda nets, data: paper5.hypotheses(nets, data, reordered=nets[-1]),
    6: lambda nets, data: paper6.hypotheses(nets, data, nets),
    7: lambda nets, data: paper7.hypotheses(nets, data),
}


@pytest.mark.parametrize("paper", ASKED)
@pytest.mark.parametrize("num_data", [1, 2, 3])
@pytest.mark.parametrize("num_nets", [1, 2, 3])
def test_any_subset_can_be_asked(paper, num_nets, num_data):
    nets = ("resnet_narrow", "vgg_narrow", "vit_narrow")[:num_nets]
    data = ("cifar10", "cifar100", "mnist")[:num_data]
    found = ASKED[paper](nets, data)
    whole = {1: paper1, 2: paper2, 5: paper5, 6: paper6, 7: paper7}[paper].HYPOTHESES
    assert [h.id for h in found] == [h.id for h in whole]
    check(found)
    empty = {h.id for h in found if not h.contrasts}
    assert empty == ({"H5.4", "H6.5"} & {h.id for h in whole} if num_data == 1 else set())
    there = {arm for h in found for arm in cells.arms_of(h)}
    assert {arm.split("-")[1] for arm in there} == set(nets), "no net but these"
    assert {arm.split("-")[0] for arm in there} <= set(data)
    # Beside the paper's own, and again of the first data set and net alone.
    few = {arm for arm in there if cells.place(arm) == (data[0], nets[0])}
    own = cells.of_others([h if not h.contrasts else built([h])[0] for h in found], "narrow", "x")
    for arms in (there, few):
        asked = (*cells.asked_of(arms, built(whole)), *cells.asked_of(arms, own))
        check(asked)
        check([h for h in asked if not h.missing], arms=arms)
        assert any(" narrow" in h.id and not h.missing for h in asked)
        assert all(h.missing for h in asked[: len(whole)])


def test_each_papers_claims_cover_what_they_are_asked_of():
    (memory,) = (h for h in ASKED[1](("a", "b"), ("x", "y")) if h.id == "H1.11")
    assert {cells.place(arm) for arm in cells.arms_of(memory)} == {("x", "a")}
    (order,) = (h for h in ASKED[5](("a", "b"), ("x",)) if h.id == "H5.6")
    assert cells.arms_of(order) == ("x-b-siddo", "x-b-disdo")
    layers = {"n": ("one",), "m": ("one", "two")}
    (chance,) = (h for h in paper2.hypotheses(("n", "m"), layers=layers) if h.id == "H2.5")
    assert [(c.groups, c.quantity.of["layer"]) for c in contrasts(chance)] == [
        (("n-init",), "one"), (("m-init",), "one"), (("m-init",), "two")
    ]  # fmt: skip
    steady = [h for h in paper7.hypotheses(("a", "b"), ("x", "y"), ("b",)) if h.id == "H7.6"]
    assert {cells.place(arm) for arm in cells.arms_of(steady[0])} == {("x", "a"), ("y", "a")}
