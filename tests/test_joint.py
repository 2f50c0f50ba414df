"""What is registered whole and run form by form is judged over runs of the forms, and says so."""

import dataclasses
import json
import pathlib
import re
import shutil
import time

import pytest

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.report.record import circumstances
from sharpjax.runs import conclude, joint, listing, read, record, report, standing, study, verify
from sharpjax.runs import register as registering
from sharpjax.studies import __main__ as command
from tests import registered
from tests.runs import redo, reseal, rewrite_journal, row

RHO = {"a0": 0.0, "a1": 0.1, "b0": 0.2, "b1": 0.3, "c0": 0.4}
LOSS = Quantity("test/nll")


def contrast(*arms):
    return Contrast(LOSS, arms, "less", "paired-t", family="all")


PAIRS = {"T.a": ("a0", "a1"), "T.b": ("b0", "b1"), "T.ab": ("a0", "b1"), "T.c": ("a0", "c0")}
WHOLE = tuple(
    Hypothesis(id, f"{id} is lower.", (contrast(*pair),), correction="holm", family="all")
    for id, pair in PAIRS.items()
)


def config(*arms, seeds=(0, 1, 2, 3), **changes):
    made = registered.config(seeds).copy_and_resolve_references().unlock()
    made.arms = {arm: {"optim": {"rho": RHO[arm]}} for arm in arms}
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made.lock()


def asked_of(made):
    """What can be asked of the arms that there are."""
    return tuple(h for h in WHOLE if set(PAIRS[h.id]) <= set(made.arms))


def register(path, made):
    lines = registered.Lines()
    with registered.opened(path, made) as run:
        registering.register(made, run, name="tiny", say=lines)
    return lines


def run(path, made, shift=0.0, registers=True):
    """A registered run of some arms: `a0` lowest, `c0` highest, in every seed."""
    if registers:
        register(path, made)
    with registered.opened(path, made) as opened:
        with record.recorded(opened, study.code_of(made), {}, lambda line: None):
            for arm in made.arms:
                values = [(s, RHO[arm] + 0.01 * s**2 * (1 + RHO[arm]) + shift) for s in made.seeds]
                opened.append(arm, [row(arm, s, 8, value=value) for s, value in values])
                opened.publish_segment(arm, 8)
        registered.seal(opened, made)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The form of `a` was run before the whole was registered, that of `b` after it; `c` never."""
    base = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "hypotheses_of", asked_of)
        patch.setattr(standing, "OFFICIAL", base / "official")
        patch.setattr(standing, "PUBLISHED", base / "results")
        run(base / "a", config("a0", "a1"))
        register(base / "whole", config(*RHO))
        time.sleep(1.1)  # times have seconds
        run(base / "b", config("b0", "b1"))
        yield base


@pytest.fixture
def base(made, tmp_path):
    return pathlib.Path(shutil.copytree(made, tmp_path / "runs"))


def judge(base, *names, whole="whole"):
    return command.main(["report", *(str(base / n) for n in names), "--joint", str(base / whole)])


def refused(base, *names, whole="whole"):
    before = {p: p.read_bytes() for p in (base / whole).iterdir() if p.is_file()}
    with pytest.raises(UserError) as error:
        judge(base, *names, whole=whole)
    assert "\n" not in str(error.value)
    assert before == {p: p.read_bytes() for p in (base / whole).iterdir() if p.is_file()}
    return str(error.value)


def content(base):
    return report.content_of(read.read(base / "whole"))


def test_all_that_was_registered_is_judged_over_the_runs(base, capsys):
    assert judge(base, "a", "b") == 0
    found = content(base)
    words = conclude.words(found.judgements)
    assert words == {"T.a": "supported", "T.b": "supported", "T.ab": "supported", "T.c": "not run"}
    kept = json.loads((base / "whole" / "joint.json").read_text())
    assert kept["verdicts"] == words and list(kept["runs"]) == ["../a", "../b"]
    assert found.is_registered and found.registration.hypotheses == WHOLE
    assert listing.state(base / "whole").split("; ")[1] == "judged over other runs"
    assert command.main(["verify", str(base / "whole")]) == 0


def test_the_page_names_the_data_of_all_runs(base):
    def having(name, **sets):
        own = {key: {"spec": {"name": key, "num_train": n}} for key, n in sets.items()}
        return read.read(base / name)._replace(manifest={"data": own})

    found = report.data_of([having("a", mnist=9, cifar=5), having("b", cifar=5, mnist=8)])
    assert {name: own["spec"]["num_train"] for name, own in found.items()} == {
        "mnist": 9, "cifar": 5, "mnist, b": 8,
    }  # fmt: skip
    judge(base, "a", "b")
    shown = dict(circumstances(dataclasses.replace(content(base), manifest={"data": found})))
    assert shown["Data"].count("mnist") == 2 and "num_train 8" in shown["Data"]


def test_a_family_is_corrected_as_it_was_registered(base):
    """Alone `T.a` is one of one; together one of four, three of which have the same t by the way
    the values are made (so p to rounding), and one, without numbers, p = 1."""
    judge(base, "a", "b")
    alone = report.content_of(read.read(base / "a")).judgements[0].findings[0]
    together = content(base).judgements[0].findings[0]
    assert together.result.p == alone.result.p == alone.adjusted_p
    assert together.adjusted_p == pytest.approx(4 * alone.adjusted_p, rel=1e-6)


def test_seeds_are_paired_over_runs(base):
    judge(base, "a", "b")
    pairs = content(base).judgements[2].findings[0].samples.groups
    assert [len(side) for side in pairs] == [4, 4]
    assert (pairs[0] < pairs[1]).all(), "of one seed each"
    assert pairs[0].tolist() == [0.01 * s**2 for s in range(4)]


def test_the_page_says_first_what_was_seen_and_what_is_missing(base):
    judge(base, "a", "b")
    found = content(base)
    assert found.seen == {"T.a": joint.SEEN, "T.ab": joint.IN_PART, "T.c": joint.IN_PART}
    over, seal, gaps = found.warnings[:3]
    assert "2 runs of forms" in over and "a, b" in over
    assert "2 of 5 arms had been run (a)" in seal
    assert "Seen before: T.a; seen in part: T.ab (1 of its 2 arms), T.c (1 of its 2 arms)" in seal
    assert "not seen: T.b" in seal
    assert "No run here has 1 of the arms" in gaps and "c0" in gaps and "T.c (1)" in gaps
    text = (base / "whole" / "report.md").read_text()
    assert text.index("Judged over 2 runs") < text.index("4 hypotheses:")
    assert "**supported** (seen in part)" in text and "**supported** (seen before)" in text
    assert f"--joint {base / 'whole'}" in text


def test_the_index_holds_it_beside_its_runs(base):
    judge(base, "a", "b")
    assert command.main(["index", str(base)]) == 0
    text = (base / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| T.ab |"))
    assert "**supported** (seen in part)" in line and "(whole/report.html)" in line
    assert "Judged over 2 runs of forms" in text


def test_what_is_published_is_sealed_as_seen(made, tmp_path, monkeypatch):
    """So that a form that is run again later does not count as unseen."""
    results = tmp_path / "results"
    results.mkdir()
    shutil.copytree(made / "b", results / "first-of-b")
    shutil.copytree(made / "a", results / "no-arm-of-it")
    monkeypatch.setattr(standing, "PUBLISHED", results)
    lines = register(tmp_path / "whole", config("b0", "b1", "c0"))
    assert "published already, and sealed as seen: 2 of its arms, in first-of-b" in lines
    there = standing.read(tmp_path / "whole")
    assert there.environment["seen"] == {"first-of-b": ["b0", "b1"]}
    run(tmp_path / "again", config("b0", "b1"))
    judge(tmp_path, "again")
    found = content(tmp_path)
    assert found.seen == {"T.b": joint.SEEN}
    assert "2 of 3 arms had been run (first-of-b" in found.warnings[1]
    # Arms that are made of others are named by the manifest alone; a form that is judged over
    # runs has none of its own.
    manifest = results / "first-of-b" / "manifest.json"
    kept = json.loads(manifest.read_text()) | {"arm_order": ["b0", "b1", "c0"]}
    manifest.write_text(json.dumps(kept))
    redo(manifest.parent)
    shutil.copytree(made / "whole", results / "whole")
    lines = register(tmp_path / "more", config("b0", "b1", "c0"))
    assert "published already, and sealed as seen: 3 of its arms, in first-of-b" in lines
    assert "in whole" not in lines
    other = register(tmp_path / "other", config("b0", "b1", seeds=(7, 8, 9)))
    assert "sealed as seen" not in other, "of these seeds nothing was seen"


def test_other_code_is_said(base):
    judge(base, "a", "b")
    assert not any("not all made by the code" in line for line in content(base).warnings)
    path = base / "a" / "processes.json"
    processes = json.loads(path.read_text())
    # What measures differs from form to form, since their nets do; all of the code is the same.
    processes[0]["code"]["measures"] = "1" * 64
    path.write_text(workdir.json_file(processes))
    assert not any("not all made by the code" in line for line in content(base).warnings)
    processes[0]["code"]["sources"] = "0" * 64
    path.write_text(workdir.json_file(processes))
    said = next(line for line in content(base).warnings if "not all made by the code" in line)
    assert f"{'0' * 12} a" in said


def test_arms_that_are_made_of_others_are_there(base):
    """They are none of the config's, and the manifest names them."""
    whole, runs = read.read(base / "whole"), [read.read(base / name) for name in "ab"]
    assert any("No run here has" in line for line in joint.of(whole, runs).warnings)
    runs[1] = runs[1]._replace(manifest=runs[1].manifest | {"arm_order": ["b0", "b1", "c0"]})
    assert not any("No run here has" in line for line in joint.of(whole, runs).warnings)


# What somebody might try.


def test_a_run_is_given_once(base):
    shutil.copytree(base / "a", base / "copy")
    assert "a and a both have the arm a0" in refused(base, "a", "a")
    assert "copy and a both have the arm a0" in refused(base, "a", "b", "copy")


def test_two_forms_with_one_arm_are_refused(base):
    run(base / "a1", config("a1", "b0", "b1"), shift=0.5)
    assert "a1 and a both have the arm a1" in refused(base, "a", "a1")


def test_a_run_of_other_arms_is_refused(base):
    other = config("a0", "a1", optim__learning_rate=0.5)
    run(base / "rate", other)
    said = refused(base, "rate", "b")
    assert "another arm a0" in said and "optim.learning_rate is" in said and "0.5 here" in said
    register(base / "small", config("b0", "b1"))
    assert "a has the arm a0, which is none" in refused(base, "a", whole="small")
    run(base / "seeds", config("a0", "a1", seeds=(0, 1, 2)))
    assert "has the seeds [0, 1, 2], and not [0, 1, 2, 3]" in refused(base, "seeds", "b")


def test_a_run_of_another_study_is_refused(base, monkeypatch):
    run(base / "other", config("a0", "a1"))
    there = standing.read(base / "other")
    strange = there.__class__(**vars(there) | {"study": "surfaces"})
    read_before = standing.read
    monkeypatch.setattr(
        standing, "read", lambda p: strange if pathlib.Path(p).name == "other" else read_before(p)
    )
    monkeypatch.setattr(verify, "verify", lambda path: verify.Verification((), ()))
    assert "no registered run of the study 'sharpness'" in refused(base, "other", "b")


def test_an_edited_row_is_refused_and_found_afterwards(base):
    judge(base, "a", "b")
    for path in [base / "a" / "results.jsonl", *(base / "a" / "metrics" / "a0").iterdir()]:
        path.write_text(path.read_text().replace('"value":0.01', '"value":-9.0'))
    assert "a does not pass verify" in refused(base, "a", "b")
    assert joint.check(base / "whole").problems
    assert command.main(["verify", str(base / "whole")]) == 1
    rewrite_journal(base / "a")
    reseal(base / "a")  # all sums computed anew: what was judged was another manifest
    problems = joint.check(base / "whole").problems
    assert problems[0] == "a is not the run that was judged"


def test_an_unregistered_or_unfinished_run_is_refused(base):
    (base / "a" / "registration.json").unlink()
    assert "a does not pass verify" in refused(base, "a", "b")
    run(base / "free", config("a0", "a1"), registers=False)
    assert "free is unregistered" in refused(base, "free", "b")
    (base / "b" / "DONE").unlink()
    assert "b does not pass verify" in refused(base, "b")


def test_what_is_judged_was_registered_and_has_no_rows(base):
    assert "has rows of its own" in refused(base, "a", whole="b")
    (base / "whole" / "registration.json").unlink()
    assert "nothing is registered in" in refused(base, "a", "b")


def test_verdicts_that_were_edited_are_found(base):
    judge(base, "a", "b")
    path = base / "whole" / "joint.json"
    kept = json.loads(path.read_text())
    kept["verdicts"]["T.c"] = "supported"
    path.write_text(json.dumps(kept))
    assert joint.check(base / "whole").problems == (
        "T.c is supported in the folder, and not run by the analysis here.",
    )


def test_an_amendment_after_the_runs_is_late(base, capsys, monkeypatch):
    """Whoever changes the analysis when the runs are seen cannot amend it away."""
    judge(base, "a", "b")
    now = {"analysis": "9" * 64, "measures": "8" * 64, "code": "7" * 64}
    monkeypatch.setattr(standing, "analysis_here", lambda there: now["analysis"])
    monkeypatch.setattr(standing.sources, "digests", lambda *given: now)
    for later in (False, True):
        if later:
            assert command.main(["amend", str(base / "whole"), "--reason", "a typo"]) == 0
        (said,) = (line for line in content(base).warnings if "not the one that was" in line)
        assert ("it was amended" in said) == later
        capsys.readouterr()
        assert command.main(["verify", str(base / "whole")]) == 0
        assert "not the one that was registered" in capsys.readouterr().out
    path = base / "a" / "processes.json"
    processes = json.loads(path.read_text())
    processes[0]["code"] |= {"measures": now["measures"], "sources": now["code"]}
    path.write_text(workdir.json_file(processes))
    assert any("not all made by the code" in line for line in content(base).warnings)


def test_an_edited_config_is_refused_and_found_afterwards(base):
    judge(base, "a", "b")
    path = base / "whole" / "config.json"
    path.write_text(workdir.json_file(json.loads(path.read_text()) | {"seeds": [7, 8, 9]}))
    assert "is not the config that was registered" in refused(base, "a", "b")
    assert "is not the config that was registered" in joint.check(base / "whole").problems[0]


def test_edited_rows_are_said_by_the_index_and_not_exported(base, capsys):
    """Even where no verdict changes."""
    judge(base, "a", "b")
    path = base / "b" / "results.jsonl"
    path.write_text(path.read_text().replace('"standard_error":', '"standard_error": '))
    assert command.main(["index", str(base)]) == 0
    text = (base / "README.md").read_text()
    assert re.search(r"b is damaged: results.jsonl .* \| b, whole", text)
    with pytest.raises(UserError, match="is damaged: results.jsonl"):
        command.main(["export", str(base / "whole")])


def test_it_is_exported_as_what_it_is(base, capsys):
    judge(base, "a", "b")
    capsys.readouterr()
    assert command.main(["export", str(base / "whole")]) == 0
    shown = capsys.readouterr()
    assert "sharpness,b0,3" in shown.out and not shown.err


def test_the_form_is_not_run_in_its_folder(base):
    judge(base, "a", "b")
    with registered.opened(base / "whole", config(*RHO)) as opened:
        with pytest.raises(UserError, match="is judged over other runs .* another --workdir"):
            registering.begin(config(*RHO), opened, name="tiny")


@pytest.mark.parametrize(
    "text", ["[]", '{"runs": {}}', '{"runs": {"../a": 1}}', '{"runs": {"../no": ""}}', "{"]
)
def test_a_damaged_list_is_named(base, text):
    judge(base, "a", "b")
    (base / "whole" / "joint.json").write_text(text)
    with pytest.raises(UserError):
        command.main(["verify", str(base / "whole")])


def test_a_list_without_verdicts_is_damaged(base):
    judge(base, "a", "b")
    path = base / "whole" / "joint.json"
    path.write_text(json.dumps({"runs": json.loads(path.read_text())["runs"]}))
    assert joint.check(base / "whole").problems == ("joint.json holds no verdicts",)
