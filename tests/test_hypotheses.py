"""Hypotheses that could not be decided are refused; those that can survive JSON to the bit."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpjax.errors import UserError
from sharpjax.protocol import canonical, claims
from sharpjax.protocol.canonical import canonical_json, from_dict, to_dict
from sharpjax.protocol.claims import Composite, Contrast, Hypothesis, Quantity, check
from sharpjax.protocol.judging import verdicts
from sharpjax.protocol.seals import registration
from sharpjax.runs import standing
from sharpjax.studies import papers
from tests.protocol_cases import LOSS, contrast, hypothesis


def refused(*given, **options):
    with pytest.raises(UserError) as error:
        check(given, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_hypotheses_pass():
    times = Quantity("grok/epoch", seen="grok/seen")
    pairs = Quantity("test/jsd", over=("pair",))
    check(
        [
            hypothesis(id="S.1", family="S", correction="holm"),
            hypothesis(contrast(test="tost", direction="two-sided", margin=0.1), id="S.2"),
            hypothesis(contrast(test="mean", direction="two-sided", margin=0.1, within=True,
                                groups=("sam",)), id="S.3"),
            hypothesis(contrast(test="log-rank", quantity=times), id="S.4"),
            hypothesis(contrast(test="pairwise-difference", quantity=pairs), id="S.5"),
            hypothesis(Composite((contrast(), contrast()), 1, "never"), id="S.6", combine="any",
                       correction="holm"),
            hypothesis(id="S.7", refuting=(contrast(direction="greater"),)),
            hypothesis(contrast(quantity=(layers("seed", "layer"), layers("layer", "seed"))),
                       id="S.9"),
            hypothesis(contrast(quantity=(layers("seed", "layer"), LOSS), test="auc"), id="S.10"),
            Hypothesis("S.8", "Nobody can.", (), missing="There is no data."),
        ],
        arms=["sam", "sgd"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": 0.0}, "alpha=0.0; give a number between 0 and 1"),
        ({"alpha": 1.0}, "alpha=1.0;"),
        ({"alpha": float("nan")}, "alpha=nan;"),
        ({"alpha": True}, "alpha=True;"),
        ({"correction": "hol"}, "unknown correction 'hol'; did you mean 'holm'?"),
        ({"status": "sure"}, "unknown status 'sure'"),
        ({"diverged": "dropped"}, "unknown rule for diverged seeds 'dropped'"),
        ({"contrasts": ()}, "it has no contrast"),
        ({"combine": "most"}, "combine='most'; give 'all', 'any', 'majority' or a number 1 to 1"),
        ({"combine": 2}, "combine=2;"),
        ({"combine": True}, "combine=True;"),
        ({"combine": "never"}, "combine='never';"),
        ({"refuted_by": 0}, "refuted_by=0;"),
        ({"contrasts": (Composite((), name="empty"),)}, "composite 'empty' has no members"),
        ({"refuting": (Composite((contrast(),), supported_by=3),)}, "supported_by=3;"),
    ],
)
def test_wrong_hypotheses(wrong, words):
    message = refused(dataclasses.replace(hypothesis(), **wrong))
    assert message.startswith("hypothesis S.1: ")
    assert words in message


@pytest.mark.parametrize("one_is_enough", ["any", 1])
def test_what_chance_alone_would_decide(one_is_enough):
    """Of three contrasts one comes out at .05 by chance in up to 3 * .05, whatever refutes it."""
    three = tuple(contrast(quantity=Quantity(f"test/{i}")) for i in range(3))
    either = hypothesis(*three, combine=one_is_enough, refuted_by="any")
    for refuted_by in ("any", 1, "majority", "all", "never"):
        message = refused(dataclasses.replace(either, refuted_by=refuted_by))
        assert message.startswith("hypothesis S.1: any one of 3 parts supports it, without corr")
        assert "up to 15% of studies" in message and "give correction='holm'" in message
    inner = Composite(three, one_is_enough, 1, "either")
    assert "composite 'either'" in refused(hypothesis(inner))
    assert "composite 'either'" in refused(hypothesis(contrast(), refuting=(inner,)))
    check([either], sealed=True)  # an old registration is still read and judged
    verdicts.decide([either], [], seeds=range(3))
    for field, value in {"correction": "holm", "combine": "all"}.items():
        check([dataclasses.replace(either, **{field: value})])
    check([hypothesis(three[0], combine="any")])


def test_what_chance_alone_would_refute():
    """One refutation for each way in which the claim can be wrong; more need a correction."""
    against = tuple(
        contrast(quantity=Quantity(f"test/{i}"), direction="greater") for i in range(19)
    )
    many = hypothesis(refuting=against)
    message = refused(many)
    assert "any one of 19 `refuting` contrasts refutes it, without correction" in message
    assert "up to 95% of studies" in message and "give correction='holm'" in message
    check([many], sealed=True)
    for fields in (
        {"correction": "holm"},
        {"refuting": (Composite(against),)},
        {"contrasts": against},
        {"refuting": against[:1]},
    ):
        check([dataclasses.replace(many, **fields)])
    equal = contrast(direction="two-sided", margin=0.5, within=True)
    check([hypothesis(equal, refuting=against[:2])])
    assert "any one of 3 `refuting`" in refused(hypothesis(equal, refuting=against[:3]))


def test_no_hypothesis_of_a_paper_or_of_a_registration_is_decided_by_chance():
    check(papers.HYPOTHESES)
    official = sorted(standing.OFFICIAL.glob("*.json"))
    assert len(official) >= 10
    for path in official:
        check(registration.from_json(path.read_bytes(), path.name).hypotheses)


def layers(*over: str):
    return Quantity("test/loss", over=over)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (contrast(test="wilcoxn"), "unknown test 'wilcoxn'; did you mean 'wilcoxon'?"),
        (contrast(direction="smaller"), "unknown direction 'smaller'"),
        (contrast(groups=("a", "b", "c")), "test 'wilcoxon' takes 1 to 2 groups, not 3"),
        (contrast(test="welch", groups=("a",)), "test 'welch' takes 2 groups, not 1"),
        (contrast(quantity=(LOSS,)), "1 quantities for 2 groups"),
        (contrast(test="tost", direction="two-sided"), "'tost' needs a margin"),
        (contrast(test="non-inferiority"), "'non-inferiority' needs a margin"),
        (contrast(direction="two-sided", within=True), "'wilcoxon' needs a margin"),
        (contrast(test="tost", margin=0.1), "has no direction; give 'two-sided', not 'less'"),
        (contrast(within=True, margin=0.1), "has no direction"),
        (contrast(test="tost", direction="two-sided", margin=0.1, within=True), "is one of equiv"),
        (contrast(margin=-0.1), "margin=-0.1; give a finite number above 0"),
        (contrast(margin=0.0), "margin=0.0;"),
        (contrast(margin=float("inf")), "margin=inf;"),
        (contrast(null=float("nan")), "null=nan;"),
        (contrast(reported=float("inf")), "reported=inf;"),
        (contrast(groups=("a|b", "c")), "pool different numbers of arms"),
        (
            contrast(("a", "a"), test="spearman", quantity=(layers("seed", "layer"), LOSS)),
            "which differ: test/loss over=('seed', 'layer') and test/loss over=('seed',); give all",
        ),
        (contrast(quantity=(LOSS, layers("seed", "layer"))), "pairs the units of its quantities"),
        (contrast(quantity=Quantity("")), "has no metric"),
        (
            contrast(quantity=Quantity("x/y", at="first")),
            "at='first' of x/y; give 'last' or a step",
        ),
        (contrast(quantity=Quantity("x/y", at=-1)), "at=-1"),
        (contrast(quantity=layers("layer")), "'seed' must be among them"),
        (contrast(quantity=layers("pair")), "go together"),
        (contrast(test="pairwise-difference"), "go together"),
        (
            contrast(("a|b", "c|d"), test="pairwise-difference", quantity=layers("pair")),
            "pools sev",
        ),
        (
            contrast(
                test="pairwise-difference",
                quantity=dataclasses.replace(layers("pair"), optional=True),
            ),
            "none is optional",
        ),
        (contrast(test="log-rank"), "`seen` and tests of times go together"),
        (contrast(quantity=Quantity("x/y", seen="x/seen")), "`seen` and tests of times"),
        (contrast(quantity=Quantity("x/y", of={"pair": (0, 1)})), "is not plain JSON"),
        (contrast(quantity=Quantity("x/y", of={"a": float("nan")})), "is not plain JSON"),
        (contrast(quantity=Quantity("x/y", of={"a": object()})), "is not plain JSON"),
    ],
)
def test_wrong_contrasts(wrong, words):
    assert words in refused(hypothesis(wrong))
    assert words in refused(hypothesis(contrast(), refuting=(Composite((wrong,)),)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            contrast(direction="two-sided", margin=1.01, within=True),
            "margin=1.01 of test 'wilcoxon' says nothing: its effect always lies between -1 and 1, "
            "and so within 1.01 of 0; give a margin below 1.",
        ),
        (contrast(test="mann-whitney", margin=1.0), "give a margin below 1."),
        (contrast(test="auc", margin=0.5), "within 0.5 of 0.5; give a margin below 0.5."),
        (contrast(test="spearman", null=-0.5, margin=1.5), "within 1.5 of -0.5; give a margin be"),
        (contrast(test="kruskal-wallis"), "'kruskal-wallis' takes no 'less'; give 'two-sided'."),
        (contrast(test="friedman", direction="greater"), "'friedman' takes no 'greater'"),
        (
            contrast(test="friedman", direction="two-sided", margin=0.5, within=True),
            "test 'friedman' gives no interval, so nothing is ever found within a margin",
        ),
        (
            contrast(test="kruskal-wallis", direction="two-sided", null=0.3),
            "test 'kruskal-wallis': null=0.3; its only null is 0.",
        ),
        (
            contrast(test="non-inferiority", direction="two-sided", margin=0.1),
            "takes no 'two-sided'; give 'greater' or 'less'.",
        ),
        (contrast(null=2.0), "test 'wilcoxon': null=2.0; give a number between -1 and 1."),
        (contrast(test="ratio-of-means", null=0.0), "null=0.0; give a number between 0 and inf."),
        (
            contrast(test="auc", quantity=(Quantity("a/b", independent=True), LOSS)),
            "`independent` of its quantities differs: a/b True and test/loss False; give all True",
        ),
    ],
)
def test_what_no_numbers_could_decide_or_all_would(wrong, words):
    assert words in refused(hypothesis(wrong))
    assert words in refused(hypothesis(contrast(), refuting=(Composite((wrong,)),)))
    check([hypothesis(wrong)], sealed=True)  # an old registration is still read and judged
    verdicts.decide([hypothesis(wrong)], [], seeds=range(3))


@pytest.mark.parametrize(
    "fields",
    [
        {"margin": 0.99},
        {"test": "spearman", "null": -0.5, "margin": 1.4},
        {"test": "ratio-of-means", "margin": 5.0},
        {"test": "welch", "margin": 100.0},
    ],
)
def test_margins_that_leave_something_out(fields):
    check([hypothesis(contrast(direction="two-sided", **fields))])


@pytest.mark.parametrize(
    "one",
    [
        contrast(test="mann-whitney", quantity=layers("seed", "layer")),
        contrast(("a|b", "c"), test="welch"),
    ],
)
def test_clusters_where_a_test_takes_none(one):
    assert "needs independent units, and a seed has several here" in refused(hypothesis(one))
    check([hypothesis(one)], sealed=True)
    quantity = dataclasses.replace(one.quantity, independent=True)
    check([hypothesis(dataclasses.replace(one, quantity=quantity))])


def test_names_are_checked_where_they_are_known():
    assert "unknown arm 'sam'" in refused(hypothesis(), arms=["sgd", "sgd_2x"])
    assert "unknown arm 'c'" in refused(hypothesis(contrast(("a|c", "b|a"))), arms=["a", "b"])
    message = refused(hypothesis(), metrics=["test/los", "test/accuracy"])
    assert "unknown metric 'test/loss'; did you mean 'test/los'?" in message
    check([hypothesis()], arms=["sam", "sgd"], metrics=["test/loss"])


def test_one_id_names_one_hypothesis():
    assert "two hypotheses have the id S.1" in refused(hypothesis(), hypothesis())


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 0.01), ("correction", "by"), ("diverged", "left out")]
)
def test_a_family_has_one_rule(name, value):
    first = hypothesis(id="S.1", family="S", correction="holm")
    second = dataclasses.replace(first, id="S.2", **{name: value})
    message = refused(first, second)
    assert message.startswith(f"family 'S' has two rules for {name}") and "S.1" in message
    check([first, dataclasses.replace(second, family="T")])
    # A contrast may name the family too.
    other = hypothesis(contrast(family="S"), id="S.3", alpha=0.01)
    assert "family 'S' has two" in refused(first, other)


def test_families_of_refutations_are_apart():
    both = hypothesis(refuting=(contrast(family="F"),), family="S")
    assert [family for _, family in claims.families(both)] == ["S", "F (refuting)"]


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.dictionaries(names, st.integers() | names | st.lists(st.integers()), max_size=2)
some_quantities = st.builds(
    Quantity, names, st.just("last") | st.integers(0), plain, st.just(("seed", "layer")),
    st.none() | names, st.booleans(), st.booleans(),
)  # fmt: skip
groups = st.lists(names, min_size=1, max_size=3).map(tuple)
some_contrasts = st.builds(
    Contrast, some_quantities | st.lists(some_quantities, min_size=1, max_size=2).map(tuple),
    groups, st.sampled_from(["less", "greater"]), names, numbers, numbers, st.none() | names,
    st.booleans(), numbers,
)  # fmt: skip
members = st.recursive(
    some_contrasts,
    lambda inner: st.builds(
        Composite, st.lists(inner, min_size=1, max_size=3).map(tuple), st.just("all") | st.just(2)
    ),
    max_leaves=4,
)
some_hypotheses = st.builds(
    Hypothesis, names, names, st.lists(members, max_size=3).map(tuple),
    refuting=st.lists(members, max_size=2).map(tuple), alpha=st.floats(0.001, 0.5),
    diverged=st.sampled_from(["inconclusive", "left out"]),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(some_hypotheses)
def test_a_dict_and_back_is_the_same(one):
    text = canonical_json(to_dict(one))
    back = from_dict(json.loads(text))
    assert back == one
    assert canonical_json(to_dict(back)) == text


def test_whole_numbers_and_reals_read_alike():
    one, other = hypothesis(contrast(margin=1)), hypothesis(contrast(margin=1.0))
    assert canonical_json(to_dict(one)) == canonical_json(to_dict(other))


def test_every_field_is_in_the_digest():
    base = hypothesis(contrast(margin=0.1))
    digests = {canonical.digest(to_dict(base))}
    for field in dataclasses.fields(Hypothesis):
        value = getattr(base, field.name)
        other = {str: "left out", float: 0.01, tuple: (contrast(), contrast())}[type(value)]
        digests.add(canonical.digest(to_dict(dataclasses.replace(base, **{field.name: other}))))
    for field, other in {
        "quantity": Quantity("a/b"), "groups": ("x", "y"), "direction": "greater", "test": "welch",
        "margin": 0.2, "null": 0.3, "family": "F", "within": True, "reported": 0.5,
    }.items():  # fmt: skip
        changed = dataclasses.replace(base.contrasts[0], **{field: other})
        digests.add(canonical.digest(to_dict(hypothesis(changed))))
    for field, other in {
        "metric": "x/y", "at": 3, "of": {"a": 1}, "over": ("seed", "layer"), "seen": "a/c",
        "independent": True, "optional": True,
    }.items():  # fmt: skip
        changed = contrast(margin=0.1, quantity=dataclasses.replace(LOSS, **{field: other}))
        digests.add(canonical.digest(to_dict(hypothesis(changed))))
    assert len(digests) == 1 + len(dataclasses.fields(Hypothesis)) + 9 + 7


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("alpha",), "0.05", "field 'alpha' of a hypothesis is '0.05'"),
        (("alpha",), True, "field 'alpha' of a hypothesis is True"),
        (("claim",), 3, "field 'claim' of a hypothesis is 3"),
        (("contrasts",), {}, "field 'contrasts' of a hypothesis is {}"),
        (("contrasts", 0), "x", "a contrast is a table of fields, not 'x'"),
        (("contrasts", 0, "groups"), "ab", "field 'groups' of a contrast"),
        (("contrasts", 0, "groups"), [1], "field 'groups' of a contrast is 1"),
        (("contrasts", 0, "quantity"), 7, "a quantity is a table of fields, not 7"),
        (("contrasts", 0, "quantity", "at"), True, "field 'at' of a quantity is True"),
        (("contrasts", 0, "within"), 1, "field 'within' of a contrast is 1"),
        (("contrasts", 0, "marign"), 1, "a contrast has no field 'marign'; did you mean 'margin'?"),
    ],
)
def test_damaged_dicts(path, value, words):
    document = to_dict(hypothesis())
    node = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        from_dict(document)
    assert words in str(error.value)


@dataclasses.dataclass(frozen=True)
class Later(Hypothesis):
    """With fields that the first registrations lack."""

    note: str = ""
    of: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LaterQuantity(Quantity):
    unit: str = ""


def test_a_later_field_is_written_where_it_is_used(monkeypatch):
    monkeypatch.setattr(canonical, "Hypothesis", Later)
    monkeypatch.setattr(canonical, "Quantity", LaterQuantity)
    then, loss = to_dict(hypothesis()), LaterQuantity("test/loss")
    now = Later("S.1", "A claim.", (contrast(quantity=loss),))
    assert canonical_json(to_dict(now)) == canonical_json(then)
    assert from_dict(then) == now  # a file of the first format
    used = dataclasses.replace(
        now, note="x", contrasts=(contrast(quantity=LaterQuantity("a", unit="m")),)
    )
    document = to_dict(used)
    assert document["note"] == "x" and document["contrasts"][0]["quantity"]["unit"] == "m"
    assert "of" not in document and from_dict(document) == used
    with pytest.raises(UserError, match="field 'note' of a later is 3"):
        from_dict(document | {"note": 3})


def test_fields_that_came_later_stay_out_of_what_does_not_use_them():
    document = to_dict(hypothesis())
    assert "diverged" not in document and "reported" not in document["contrasts"][0]
    assert "optional" not in document["contrasts"][0]["quantity"]


def test_a_missing_field_is_named():
    document = to_dict(hypothesis())
    del document["alpha"]
    with pytest.raises(UserError, match="a hypothesis lacks the field 'alpha'"):
        from_dict(document)
