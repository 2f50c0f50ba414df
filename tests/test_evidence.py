"""What a seal proves: each way to cheat ends in a sentence at the top of the page."""

import dataclasses
import html
import json
import os
import pathlib
import shutil

import pytest
from etils import epath

from sharpjax import catalog, workdir
from sharpjax.protocol.judging import verdicts
from sharpjax.protocol.seals import registration
from sharpjax.provenance import imports, machine, sources
from sharpjax.runs import conclude, record, register, report, standing, study, verify
from tests import registered
from tests.registered import begin, config, opened, refused
from tests.runs import hypothesis, reseal, row


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path):
    return registered.ask(monkeypatch, tmp_path)


def at(monkeypatch, day):
    """From now on it is another day: times are kept to the second."""
    monkeypatch.setattr(workdir, "timestamp", lambda: f"2026-01-{day:02}T00:00:00+00:00")
    monkeypatch.setattr(workdir.journal, "timestamp", workdir.timestamp)


def sealed(path, made=None):
    registered.register(path, made or config())
    begin(path, made or config(), finish=True)
    return path


def go_on(path, made=None):
    """The same command again, on a folder that lost its DONE."""
    made = made or config()
    with opened(path, made) as run:
        register.begin(made, run, name="sam_cifar-smoke", say=lambda line: None)
        registered.seal(run, made)


def page(path, name):
    text = html.unescape((pathlib.Path(path) / name).read_text())
    return text.replace("\\", "").replace("<wbr>", "")


def assert_caught(path, *words):
    """One sentence, at the top of the page, and a failed `verify`."""
    problems = verify.verify(path).problems
    assert any(all(word in line for word in words) for line in problems), problems
    report.write(epath.Path(path))
    for name in ("report.html", "report.md"):
        text = page(path, name)
        top = text[: text.index("is lower under SAM")]
        assert all(word in top for word in words), (name, words)


def edit(path, value):
    """Other values in the last rows of an arm, as somebody might wish them."""
    text = path.read_text()
    changed = text.replace('"value":0.5', f'"value":{value}')
    assert changed != text
    path.write_text(changed)


def test_nothing_is_wrong_with_a_registered_run(tmp_path):
    assert verify.verify(sealed(tmp_path / "run")).problems == ()
    assert registered.found(tmp_path / "run").failures == ()


# Results first, registration afterwards.


def begun(path, monkeypatch):
    """A run that has results and no registration; then they are moved aside, and it is sealed."""
    at(monkeypatch, 1)
    with opened(path, config()) as run:
        registered.write(run, config())
    aside = path.with_name("aside")
    aside.mkdir()
    for name in ("metrics", "journal.jsonl", "processes.json", "environment.json"):
        shutil.move(path / name, aside / name)
    at(monkeypatch, 2)
    registered.register(path, config())
    return aside


def test_results_first_registration_after(tmp_path, monkeypatch):
    path = tmp_path / "run"
    aside = begun(path, monkeypatch)
    for entry in aside.iterdir():
        shutil.move(entry, path / entry.name)
    edit(path / "metrics" / "sam" / "8.jsonl", 0.1)
    go_on(path)
    assert_caught(path, "registered 2026-01-02", "after the run had begun (2026-01-01")
    assert_caught(path, "Process 1 ran under none")
    assert_caught(path, "journal.jsonl, line 1, does not follow from the registration")


def test_rows_alone_are_moved_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    aside = begun(path, monkeypatch)
    shutil.move(aside / "metrics", path / "metrics")
    for name in ("processes.json", "environment.json"):
        (path / name).write_text("[]")
    with opened(path, config()) as run:
        manifest = {"study": "sharpness", "registration": standing.read(path).seal}
        run.seal(manifest | {"code": study.code_of(config())})
    assert_caught(path, "no journal.jsonl: which process wrote which rows is not recorded")
    assert_caught(path, "processes.json names no process")


def test_a_registration_from_the_future(tmp_path, monkeypatch):
    path = tmp_path / "run"
    at(monkeypatch, 3)
    registered.register(path, config())
    at(monkeypatch, 1)
    begin(path, config(), finish=True)
    assert_caught(path, "registered 2026-01-03", "after the run had begun")
    assert_caught(path, "which has not come yet")


# Rows that no process of the run wrote.


def test_rows_are_edited_and_the_run_is_sealed_again(tmp_path):
    path = sealed(tmp_path / "run")
    edit(path / "metrics" / "sam" / "8.jsonl", 0.1)
    (path / "DONE").unlink()
    go_on(path)
    assert_caught(path, "metrics/sam/8.jsonl is not what process 1 wrote")


def test_rows_lie_where_a_kill_leaves_them(tmp_path):
    """Of a process that is dead nothing is taken that no checkpoint stands for."""
    path = sealed(tmp_path / "run")
    edit(path / "metrics" / "sam" / "8.jsonl", 0.1)
    os.rename(path / "metrics" / "sam" / "8.jsonl", path / "metrics" / "sam" / "growing.jsonl")
    (path / "metrics" / "other").mkdir()
    planted = workdir.lines_of([row("sgd", 0, 9)])
    (path / "metrics" / "other" / "growing.jsonl").write_text(planted)
    (path / "DONE").unlink()
    with opened(path, config()) as run:
        with record.recorded(run, study.code_of(config()), {}, lambda line: None):
            pass  # all arms are at their end
        registered.seal(run, config())
    assert {r["step"] for r in workdir.rows_in(path / "results.jsonl")} == {8}
    assert_caught(path, "metrics/sam/8.jsonl, which process 1 wrote, is missing")


def test_what_a_process_dropped_is_not_missed(tmp_path):
    path = tmp_path / "run"
    registered.register(path, config())
    with opened(path, config()) as run:
        registered.write(run, config(), also=lambda: stopped_at_9(run))
    with opened(path, config()) as run:
        with record.recorded(run, study.code_of(config()), {}, lambda line: None):
            run.discard_after("sam", 8)
        registered.seal(run, config())
    assert not (path / "metrics" / "sam" / "9.jsonl").exists()
    assert verify.verify(path).problems == ()


def stopped_at_9(run):
    """Rows are published; the process is killed before it has written their checkpoint."""
    run.append("sam", [row("sam", 0, 9)])
    run.publish_segment("sam", 9)


def test_rows_of_another_arm(tmp_path):
    path = tmp_path / "run"
    registered.register(path, config())
    with opened(path, config()) as run:
        registered.write(run, config())
    other = workdir.lines_of([row("sgd", 9, 9)])
    (path / "metrics" / "sam" / "9.jsonl").write_text(other)
    go_on(path)
    assert_caught(path, "metrics/sam/9.jsonl was written by none of the run's processes")
    assert_caught(path, "metrics/sam/9.jsonl holds a row of arm ", "sgd")


def test_a_segment_is_taken_out(tmp_path):
    path = sealed(tmp_path / "run")
    (path / "metrics" / "sgd" / "8.jsonl").unlink()
    (path / "DONE").unlink()
    go_on(path)
    assert_caught(path, "metrics/sgd/8.jsonl, which process 1 wrote, is missing")


def test_the_journal_is_shortened(tmp_path):
    path = sealed(tmp_path / "run")
    lines = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (path / "journal.jsonl").write_bytes(b"".join(lines[1:]))
    reseal(path)
    assert_caught(path, "journal.jsonl, line 1, does not follow")


def test_a_process_is_struck_off(tmp_path):
    path = sealed(tmp_path / "run")
    (path / "processes.json").write_text("[]")
    reseal(path)
    assert_caught(path, "Rows were written by process 1, which processes.json does not name")


# Another registration.


def rewritten(path, **changes):
    """The registration with other fields, sealed anew as if it had always been so."""
    there = standing.read(path)
    other = dataclasses.replace(there, seal="", **changes)
    other = dataclasses.replace(
        other, digests=there.digests._replace(design=registration.asked(other))
    )
    other = dataclasses.replace(other, seal=registration.seal(other))
    (path / "registration.json").write_text(registration.to_json(other))
    return other


def test_the_correction_is_changed_in_a_finished_folder(tmp_path):
    path = sealed(tmp_path / "run")
    there = standing.read(path)
    easier = tuple(dataclasses.replace(h, alpha=0.5) for h in there.hypotheses)
    other = rewritten(path, hypotheses=easier)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"registration": other.seal}))
    reseal(path)
    assert_caught(path, "Process 1 ran under the registration with seal", there.seal[:12])
    assert_caught(path, "journal.jsonl, line 1, does not follow from the registration")


def test_another_seal_than_the_official_one(tmp_path):
    """Even where every sum and name is made anew, the repository holds another."""
    registered.register(tmp_path / "first", config())
    official = tmp_path / "official" / "sam_cifar-smoke.json"
    shutil.copy(tmp_path / "first" / "registration.json", official)
    path = tmp_path / "run"
    registered.register(path, config())
    assert standing.read(path).seal == standing.read_file(official).seal  # taken over
    rewritten(path, time="2026-01-01T00:00:00+00:00")
    begin(path, config(), finish=True)
    assert_caught(path, "in the repository (sam_cifar-smoke.json) has another seal")


def test_a_changed_schema_is_another_design(tmp_path, monkeypatch):
    """A default that changes under a registration is refused, though no field names it."""
    path = tmp_path / "run"
    registered.register(path, config())
    plan_of = study.plan_of

    def longer(made):
        plan = plan_of(made)
        first = dataclasses.replace(plan.stages[0], epochs=plan.stages[0].epochs + 1)
        return plan._replace(stages=(first, *plan.stages[1:]))

    monkeypatch.setattr(study, "plan_of", longer)
    differs = "plan.stages[0].epochs: 2 registered, 3 now"
    assert differs in refused(begin, path, config())
    fewer = register.held(standing.read(path), config(seeds=(0, 2)))
    assert differs in fewer.refused and fewer.missing_seeds == (1, 3)


# Other code.


def changed(monkeypatch, tmp_path, *modules, old="", new=""):
    """From now on the sources of these modules are others: longer, or with `new` for `old`."""
    there = imports.source_of

    def source_of(name):
        path = there(name)
        if name not in modules or path is None:
            return path
        copy, text = tmp_path / path.name, path.read_text()
        assert old in text
        copy.write_text(text.replace(old, new) if old else text + "\n# another\n")
        return copy

    monkeypatch.setattr(imports, "source_of", source_of)


def test_the_code_of_a_metric_is_changed_before_the_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    registered.register(path, config())
    changed(monkeypatch, tmp_path, "sharpjax.metrics.calibration")
    assert "the code that makes the numbers has changed" in begin(path, config(), finish=True)
    monkeypatch.undo()
    assert_caught(path, "not made by the code that was registered: process 1")


def test_how_a_test_is_called_is_part_of_the_analysis(tmp_path, monkeypatch):
    """`run` and its checks stand beside the table of tests, which counts by its entries."""
    module, before = "sharpjax.protocol.tests.catalog", study.digests_of(config())["analysis"]
    with monkeypatch.context() as other:
        changed(other, tmp_path, module, old='"error of the fit', new='"the error of the fit')
        assert study.digests_of(config())["analysis"] == before  # of a test that is not named
    with monkeypatch.context() as other:
        changed(other, tmp_path, module, old="GRANULATED = (", new="run = None\nGRANULATED = (")
        assert study.digests_of(config())["analysis"] != before
    changed(monkeypatch, tmp_path, module, old="clusters = None", new="pass")
    assert study.digests_of(config())["analysis"] != before


@pytest.mark.parametrize(
    ("digest", "name", "seen"),
    [
        ("measures", "sharpjax.geometry.estimators.trace", True),
        ("measures", "sharpjax.train.steps", True),
        ("measures", "sharpjax.nn.conv", True),
        ("measures", "sharpjax.runs.loading", True),
        ("measures", "sharpjax.driver.drive", True),
        ("measures", "sharpjax.driver.progress", False),
        ("measures", "sharpjax.driver.checkpoint", True),
        ("measures", "sharpjax.runs.run", True),
        ("measures", "sharpjax.workdir.run", True),
        ("measures", "sharpjax.workdir.rows", True),
        ("measures", "sharpjax.workdir.lease", False),
        ("measures", "sharpjax.report.words", False),
        ("measures", "sharpjax.studies.sharpness.shows", False),
        ("measures", "sharpjax.protocol.judging.rules", False),
        ("analysis", "sharpjax.runs.conclude", True),
        ("analysis", "sharpjax.runs.read", True),
        ("analysis", "sharpjax.workdir.rows", True),
        ("analysis", "sharpjax.protocol.judging.rules", True),
        ("analysis", "sharpjax.protocol.samples", True),
        ("analysis", "sharpjax.protocol.tests.t_tests", True),
        ("analysis", "sharpjax.protocol.tests.question", True),
        ("analysis", "sharpjax.protocol.tests.trend", False),
        ("analysis", "sharpjax.protocol.planning.power", False),
        ("analysis", "sharpjax.protocol.wording", False),
        ("analysis", "sharpjax.metrics.calibration", False),
    ],
)
def test_what_the_digests_cover(tmp_path, monkeypatch, digest, name, seen):
    before = study.digests_of(config())[digest]
    assert imports.source_of(name) is not None
    changed(monkeypatch, tmp_path, name)
    assert (study.digests_of(config())[digest] != before) == seen


def test_a_study_of_somebody_else_has_one_digest_wherever_it_lies(tmp_path, monkeypatch):
    def digest(place, value):
        package = tmp_path / place / "a_study"
        package.mkdir(parents=True)
        (package / "plan.py").write_text("from . import parts\n")
        (package / "parts.py").write_text(f"PARTS = {value}\n")
        monkeypatch.setattr(imports, "_package", lambda name: package)
        forget()
        return sources.measures_digest("a_study", frozenset())

    def forget():
        imports.source_of.cache_clear()
        imports.imported.cache_clear()

    monkeypatch.setitem(catalog.STUDIES, "a_study", "a_study")
    try:
        here = digest("here", 3)
        assert digest("else/where", 3) == here
        assert digest("changed", 4) != here
    finally:
        forget()


def test_the_path_that_concludes_is_changed_before_the_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    registered.register(path, config())
    decide = verdicts.decide
    monkeypatch.setattr(
        conclude,
        "decide",
        lambda *given, **options: tuple(
            found._replace(verdict="refuted") for found in decide(*given, **options)
        ),
    )
    changed(monkeypatch, tmp_path, "sharpjax.runs.conclude")
    assert "the code that decides has changed" in begin(path, config(), finish=True)
    monkeypatch.undo()
    monkeypatch.setattr(study, "hypotheses_of", lambda made: (hypothesis(),))
    assert_caught(path, "not reached by the analysis that was registered")
    # And who decides with sound code finds other verdicts than the folder's.
    assert_caught(path, "T.1 is refuted in the folder")


def test_the_path_that_concludes_is_changed_after_the_run(tmp_path, monkeypatch):
    path = sealed(tmp_path / "run")
    decide = verdicts.decide
    monkeypatch.setattr(
        conclude,
        "decide",
        lambda *given, **options: tuple(
            found._replace(verdict="refuted") for found in decide(*given, **options)
        ),
    )
    changed(monkeypatch, tmp_path, "sharpjax.runs.conclude")
    assert_caught(path, "refuted by the analysis here")
    assert "is not the one that was registered" in (path / "report.md").read_text()


def test_an_amendment_after_the_data_takes_nothing_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    at(monkeypatch, 1)
    registered.register(path, config())
    changed(monkeypatch, tmp_path, "sharpjax.protocol.judging.rules")
    begin(path, config(), finish=True)
    at(monkeypatch, 2)
    standing.amend(epath.Path(path), "typo")
    assert_caught(path, "not reached by the analysis that was registered")


def test_an_amendment_is_written_after_the_data_by_a_clock_set_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    at(monkeypatch, 1)
    registered.register(path, config())
    changed(monkeypatch, tmp_path, "sharpjax.protocol.judging.rules")
    at(monkeypatch, 3)
    begin(path, config(), finish=True)
    at(monkeypatch, 2)
    standing.amend(epath.Path(path), "typo")
    assert_caught(path, "not reached by the analysis that was registered")


def test_other_data_are_refused_before_anything_is_trained(tmp_path):
    path = tmp_path / "run"
    registered.register(path, config())
    digests = dict(standing.read(path).data)
    standing.hold_data(epath.Path(path), digests)
    digests["digits"] = digests["digits"] | {"test": "0" * 64}
    message = refused(standing.hold_data, epath.Path(path), digests)
    assert "data 'digits'.test" in message


def test_the_manifest_is_edited(tmp_path):
    """What it says of verdicts, data and processes is compared with all that says so, too."""
    path = sealed(tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    zeros = {name: "0" * 64 for name in standing.read(path).data["digits"]}
    edited = {"verdicts": {"T.1": "refuted"}, "data": {"digits": {"digests": zeros}}}
    edited["processes"] = [manifest["processes"][0] | {"ended": "2999-01-01T00:00:00+00:00"}]
    edited["environments"] = [manifest["environments"][0] | {"processor": "another"}]
    (path / "manifest.json").write_text(json.dumps(manifest | edited))
    reseal(path)
    assert_caught(path, "T.1 is refuted in the folder, and supported by the analysis here")
    assert_caught(path, "The data were not those that were registered: data 'digits'.test")
    assert_caught(path, "processes.json is not what manifest.json holds of the run's processes")
    assert_caught(path, "environment.json is not what manifest.json holds of the run's env")


@pytest.mark.parametrize(
    "name", ["config_digest", "code", "processes", "environments", "data", "verdicts"]
)
def test_the_manifest_says_less(tmp_path, name):
    path = sealed(tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[name]
    (path / "manifest.json").write_text(json.dumps(manifest))
    reseal(path)
    assert_caught(path, "manifest.json says nothing of: ", name)


def test_a_config_without_seeds_and_arms_is_no_traceback(tmp_path):
    path = tmp_path / "run"
    begin(path, config(), finish=True)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"config_digest": None}))
    for seeds in (None, [[]], 3):
        (path / "config.json").write_text(json.dumps({"study": "sharpness", "seeds": seeds}))
        reseal(path)
        assert verify.verify(path).problems


def test_rows_of_a_seed_that_was_registered_and_not_run(tmp_path):
    registered.register(tmp_path / "whole", config())
    shutil.copy(
        tmp_path / "whole" / "registration.json", tmp_path / "official" / "sam_cifar-smoke.json"
    )
    path, made = tmp_path / "run", config(seeds=(0, 1, 2))
    begin(path, made)
    with opened(path, made) as run:
        registered.write(run, made)
        run.append("sam", [row("sam", 3, 9)])
        run.publish_segment("sam", 9)
    go_on(path, made)
    assert_caught(path, "metrics/sam/9.jsonl holds a row of seed 3", "registered and not run")


def test_other_settings_of_jax_are_said(tmp_path, monkeypatch):
    path = tmp_path / "run"
    registered.register(path, config())
    environment = machine.environment()
    settings = environment["settings"] | {"jax_enable_x64": "both"}
    monkeypatch.setattr(machine, "environment", lambda: environment | {"settings": settings})
    begin(path, config(), finish=True)
    found = [line for line in registered.found(path).caveats if "settings of jax" in line]
    assert len(found) == 1 and 'jax_enable_x64 is false there and "both" here' in found[0]


def test_what_cannot_be_prevented_is_said(tmp_path, monkeypatch):
    """A registration that no commit of the repository holds is believed on its own word alone."""
    path = sealed(tmp_path / "run")
    assert any("this folder alone says" in line for line in registered.found(path).caveats)
    shutil.copy(path / "registration.json", tmp_path / "official" / "sam_cifar-smoke.json")
    assert any(
        "is in no commit (sam_cifar-smoke" in line for line in registered.found(path).caveats
    )
    assert any("sam_cifar-smoke.json" in line for line in verify.verify(path).notes)
    report.write(epath.Path(path))
    assert "sam_cifar-smoke.json, which is not committed" in page(path, "report.html")
    monkeypatch.setattr(sources, "added", lambda path: "0123456 (2026-01-01)")
    assert not any("this folder alone" in line for line in registered.found(path).caveats)


def test_rows_of_a_process_lie_within_its_time(tmp_path, monkeypatch):
    path = sealed(tmp_path / "run")
    processes = json.loads((path / "processes.json").read_text())
    processes[0]["started"] = "2999-01-01T00:00:00+00:00"
    (path / "processes.json").write_text(json.dumps(processes))
    reseal(path)
    assert_caught(path, "Rows of process 1 were written before it started")


def test_a_row_that_names_another_study(tmp_path):
    path = tmp_path / "run"
    registered.register(path, config())
    with opened(path, config()) as run:
        registered.write(run, config())
        run.append("sam", [row("sam", 0, 9) | {"study": "other"}])
        run.publish_segment("sam", 9)
    go_on(path)
    assert_caught(path, "metrics/sam/9.jsonl holds a row of study ", "which is none of the run")
