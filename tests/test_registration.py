"""A seal holds every field; what follows when something differs; amendments only grow."""

import dataclasses
import hashlib
import json

import pytest

from sharpjax.errors import UserError
from sharpjax.protocol.canonical import canonical_json
from sharpjax.protocol.planning import power
from sharpjax.protocol.seals import amendments, registration
from sharpjax.protocol.seals.registration import (
    Digests,
    Registration,
    compare,
    differences,
    from_json,
    register,
    to_json,
)
from tests.protocol_cases import contrast, hypothesis

ARMS = {"sgd": {"optim": {"rho": 0.0}, "train": {"epochs": 8}},
        "sam": {"optim": {"rho": 0.05}, "train": {"epochs": 8}}}  # fmt: skip
PLAN = {"type": "Plan", "stages": [{"type": "Train", "epochs": 8}]}
DATA = {"digits": {"train": "7" * 64}}
ASKED = (
    hypothesis(id="S.1", family="S", correction="holm"),
    hypothesis(contrast(direction="greater"), id="S.2", family="S", correction="holm"),
)


def registered(**changes):
    fields = {
        "study": "sharpness", "config_digest": "c" * 64, "arms": ARMS, "seeds": tuple(range(8)),
        "measurements": {"test": {"every_epochs": 1}}, "hypotheses": ASKED, "analysis": "a" * 64,
        "code": "b" * 64, "measures": "9" * 64,
        "plan": PLAN, "data": DATA, "power": ({"hypothesis": "S.1", "smallest_p": 0.0039},),
        "time": "2026-11-25T01:00:00+00:00", "commit": "d" * 40, "dirty": False,
        "environment": {"packages": {"numpy": "2.0"}},
    }  # fmt: skip
    return register(**(fields | changes))


def refused(text, **options):
    with pytest.raises(UserError) as error:
        from_json(text, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_reads_back_as_it_was():
    text = to_json(registered())
    assert text.count("\n") == 1 and from_json(text) == registered() == from_json(text.encode())
    assert to_json(from_json(text)) == text


def test_the_seal_is_the_sum_of_all_else():
    document = json.loads(to_json(registered()))
    seal = document.pop("seal")
    assert hashlib.sha256(canonical_json(document).encode()).hexdigest() == seal


def test_tuples_and_order_of_keys_do_not_change_the_seal():
    turned = {name: dict(reversed(arm.items())) for name, arm in reversed(ARMS.items())}
    assert registered(arms=turned, seeds=list(range(8))).seal == registered().seal


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Registration)])
def test_no_field_changes_unseen(field):
    document = json.loads(to_json(registered()))
    old = document[field]
    new = {str: "e" * 64, bool: True, int: 1, list: [], dict: {}}[type(old)]
    if field == "digests":
        new = old | {"code": "e" * 64}
    assert new != old
    assert refused(canonical_json(document | {field: new}) + "\n")
    again = dict(document)
    del again[field]
    assert "does not have the fields" in refused(canonical_json(again) + "\n")


def test_a_tampered_seal_is_said_to_be_one():
    document = json.loads(to_json(registered()))
    document["hypotheses"][0]["alpha"] = 0.1
    message = refused(canonical_json(document) + "\n", name="runs/x/registration.json")
    assert message.startswith("runs/x/registration.json was changed after it was sealed: its seal")


def test_a_seal_made_again_over_another_question_is_found():
    """Who seals anew must name the digest of what is asked, too."""
    one = registered()
    other = dataclasses.replace(one, seeds=(0, 1))
    other = dataclasses.replace(other, seal=registration.seal(other))
    assert "its design digest is not that of what it asks" in refused(to_json(other))


def test_every_flipped_byte_is_found():
    data = bytearray(to_json(registered()).encode())
    for place in range(0, len(data), 7):
        for flip in (1, 32):  # 32: upper and lower case
            data[place] ^= flip
            assert refused(bytes(data))
            data[place] ^= flip
    assert from_json(bytes(data)) == registered()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", "\ud800", '"' * 9, "[" * 100_000,
        '{"format": 1}', b"\xff\xfe", b"{}" * (9 << 20), "9" * 5_000,
        to_json(registered()) + "\n", " " + to_json(registered()), to_json(registered())[:-1],
        to_json(registered()).replace('"dirty":false', '"dirty":true,"dirty":false'),
        to_json(registered()).replace("0.0039", "3.9e-3"),
        to_json(registered()).replace("0.0039", "NaN"),
        to_json(registered()).replace('"format":2', '"format":true'),
        to_json(registered()).replace('"seeds":[0,', '"seeds":[false,'),
    ],
)  # fmt: skip
def test_hostile_text(text):
    assert refused(text).startswith("registration.json is damaged: ")


def test_a_later_format_is_said_to_be_one():
    text = to_json(registered()).replace('"format":2', '"format":3')
    assert "its format is 3, and this program reads 2" in refused(text)


def test_bad_hypotheses_are_not_sealed():
    with pytest.raises(UserError, match="two hypotheses have the id S.1"):
        registered(hypotheses=(ASKED[0], ASKED[0]))
    with pytest.raises(UserError, match="must be plain JSON"):
        registered(environment={"x": {1, 2}})
    with pytest.raises(UserError, match="must be plain JSON"):
        registered(arms=ARMS | {"x": {"rho": float("nan")}})


def test_power_tables_can_be_sealed():
    rows = [row.as_json() for row in power.table(ASKED, range(8))]
    sealed = registered(power=rows)
    assert from_json(to_json(sealed)).power == tuple(sealed.power) and len(rows) == 2


def test_the_question_has_one_digest_anywhere():
    one, other = registered(), registered(time="later", commit="e" * 40, environment={}, dirty=True)
    assert one.digests.design == other.digests.design
    assert one.seal != other.seal
    assert differences(one, other) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "other"}, 'study: "sharpness" registered, "other" now'),
        ({"seeds": (*range(8), 9)}, "seeds: [0,1,2,3,4,5,6,7] registered, [0,1,2,3,4,5,6,7,9] now"),
        ({"seeds": (0, 1, 2, 3, 4, 5, 6, 9)}, "seeds[7]: 7 registered, 9 now"),
        ({"arms": ARMS | {"sam": {"optim": {"rho": 0.1}, "train": {"epochs": 8}}}},
         "arms.sam.optim.rho: 0.05 registered, 0.1 now"),
        ({"arms": ARMS | {"new": {}}}, "arms.new: absent registered, {} now"),
        ({"measurements": {}}, 'measurements.test: {"every_epochs":1} registered, absent now'),
        ({"hypotheses": (ASKED[0], dataclasses.replace(ASKED[1], claim="B."))},
         'hypothesis S.2.claim: "A claim." registered, "B." now'),
        ({"hypotheses": (dataclasses.replace(ASKED[0], contrasts=(contrast(test="welch"),)),
                         ASKED[1])},
         'hypothesis S.1.contrasts[0].test: "wilcoxon" registered, "welch" now'),
        ({"hypotheses": ASKED[:1]}, "hypothesis S.2: "),
        ({"hypotheses": ASKED[::-1]}, "the hypotheses are in another order"),
        ({"config_digest": "e" * 64}, "config digest: cccccccccccc registered, eeeeeeeeeeee now"),
    ],
)  # fmt: skip
def test_what_was_asked_may_not_change(change, words):
    now = registered(**change)
    (found,) = differences(registered(), now)
    assert found.startswith(words)
    standing = compare(registered(), now)
    assert words in standing.refused and "\n" not in standing.refused
    assert standing.missing_seeds == ()


def test_sources_that_differ_do_not_refuse():
    assert compare(registered(), registered()) == ("", ())
    others = {"analysis": "e" * 64, "code": "f" * 64, "measures": "1" * 64}
    assert compare(registered(), registered(**others)) == ("", ())
    design = registered().digests.design
    assert registered().digests == Digests(design, "a" * 64, "9" * 64, "b" * 64)
    assert registered(**others).digests.design == design


def test_plans_and_data_may_not_change():
    other = {"type": "Plan", "stages": [{"type": "Train", "epochs": 9}]}
    (found,) = differences(registered(), registered(plan=other))
    assert found == "plan.stages[0].epochs: 8 registered, 9 now"
    (found,) = differences(registered(), registered(data={"digits": {"train": "8" * 64}}))
    assert found.startswith("data 'digits'.train: ")
    assert not differences(registered(), registered(data={}))  # not looked at
    # Of data that each seed draws, those of the seeds that are run.
    drawn = {"pairs": {"0": {"train": "5" * 64}, "1": {"train": "6" * 64}}}
    there = registered(data=drawn)
    assert not registration.different_data(there.data, {"pairs": {"1": {"train": "6" * 64}}})
    assert registration.different_data(there.data, {"pairs": {"1": {"train": "5" * 64}}})
    assert registration.different_data(there.data, {"others": {"train": "5" * 64}})


SEAL = registered().seal


def amended(data=b"", reason="a sign was wrong", analysis="1" * 64, time="2026-11-25"):
    return amendments.append(
        data,
        seal=SEAL,
        reason=reason,
        time=time,
        analysis=analysis,
        code="2" * 64,
        measures="4" * 64,
    )


CHAIN = amended(amended(amended(), "another"), "a third", analysis="3" * 64)


def test_amendments_are_a_chain():
    lines = CHAIN.splitlines()
    found = amendments.read(CHAIN, seal=SEAL)
    assert [a.reason for a in found] == ["a sign was wrong", "another", "a third"]
    assert [a.previous for a in found] == [
        SEAL, *(hashlib.sha256(line).hexdigest() for line in lines[:2])
    ]  # fmt: skip
    assert amendments.read(b"", seal=SEAL) == ()
    assert CHAIN.startswith(amended())  # what was there stays


def test_amendments_name_digests():
    found = amendments.read(amended(CHAIN, analysis="5" * 64, time="2026-11-27"), seal=SEAL)
    assert amendments.named(found, "analysis") == {digit * 64 for digit in "135"}
    ends = [amendments.end(CHAIN[: CHAIN.index(b"\n") + 1]), amendments.end(CHAIN), "e" * 64, ""]
    assert [len(amendments.until(found, end)) for end in ends] == [1, 3, 0, 0]
    assert amendments.named(found, "measures") == {"4" * 64}
    assert amendments.named((), "analysis") == set()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (CHAIN.replace(b"another", b"anothre"), "line 3, does not follow line 2"),
        (CHAIN.replace(b"sign", b"sing"), "line 2, does not follow line 1"),
        (b"".join(CHAIN.splitlines(True)[1:]), "line 1, does not follow the registration"),
        (b"".join(CHAIN.splitlines(True)[i] for i in (0, 2)), "line 2, does not follow line 1"),
        (b"".join(CHAIN.splitlines(True)[i] for i in (0, 2, 1)), "line 2, does not follow"),
        (CHAIN[:-1], "ends in the middle of a line"),
        (CHAIN + b"{}\n", "line 4, is damaged"),
        (CHAIN + b"\n", "line 4, is damaged"),
        (CHAIN.replace(b'"time":', b'"time": '), "line 1, is damaged"),
        (b"\xff\n", "line 1, is damaged"),
        (b"[" * 100_000 + b"\n", "line 1, is damaged"),
        (b"x" * (17 << 20), "more than 16 MiB"),
    ],
)
def test_broken_chains(data, words):
    with pytest.raises(UserError) as error:
        amendments.read(data, seal=SEAL, name="amendments.jsonl")
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError):
        amended(data)


def test_amendments_of_another_registration():
    with pytest.raises(UserError, match="line 1, does not follow the registration"):
        amendments.read(CHAIN, seal="0" * 64)


def test_an_amendment_needs_a_reason():
    with pytest.raises(UserError, match="an amendment needs a reason"):
        amended(reason=" \n")
    assert amendments.read(amended(reason="two\nlines "), seal=SEAL)[0].reason == "two\nlines"
