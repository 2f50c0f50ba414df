"""What is sealed before a run holds it, and says so wherever it does not."""

import dataclasses
import hashlib
import json
import subprocess

import pytest
from etils import epath

from sharpjax import workdir
from sharpjax.provenance import sources
from sharpjax.runs import standing, study, verify
from tests.commands import assert_one_line, launch
from tests.registered import ask, begin, config, found, opened, refused, register
from tests.runs import hypothesis, listing, reseal, row


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path):
    return ask(monkeypatch, tmp_path)


def test_what_is_sealed(tmp_path):
    lines = register(tmp_path / "run", config())
    sealed = json.loads((tmp_path / "run" / "registration.json").read_text())
    own = {name: value for name, value in sealed.items() if name != "seal"}
    text = json.dumps(own, sort_keys=True, separators=(",", ":"))
    assert sealed["seal"] == hashlib.sha256(text.encode()).hexdigest()
    assert f"seal {sealed['seal']}" in lines
    assert sealed["seeds"] == [0, 1, 2, 3] and set(sealed["arms"]) == {"sam", "sgd", "sgd_2x"}
    assert sealed["arms"]["sgd"]["optim"]["rho"] == 0.0
    assert sealed["config_digest"] == workdir.config_digest(config().to_dict())
    assert sealed["hypotheses"][0]["id"] == "T.1"
    assert sealed["digests"]["code"] == sources.code_digest()
    assert sealed["digests"]["analysis"] == sources.analysis_digest(["paired-t"])
    assert sealed["digests"] | study.digests_of(config()) == sealed["digests"]
    assert sealed["plan"]["stages"][0]["arm"] == "sam"
    assert sealed["data"]["digits"].keys() == {"train", "test"}
    assert sealed["environment"]["packages"]["jax"] and sealed["environment"]["platform"] == "cpu"
    assert sealed["power"][0]["hypothesis"] == "T.1" and sealed["time"].endswith("+00:00")
    assert sealed["commit"] == (sources.commit().commit or "")
    assert "test/nll" in lines and "Seen with" in lines
    assert "cp " in lines and "official/sam_cifar-smoke.json" in lines
    assert not (tmp_path / "run" / "metrics").exists()


def test_a_test_that_cannot_reject_is_said(tmp_path, asked):
    weak = dataclasses.replace(asked[0].contrasts[0], test="wilcoxon", direction="two-sided")
    asked[0] = dataclasses.replace(asked[0], contrasts=(weak,))
    lines = register(tmp_path / "run", config())
    assert "warning: T.1: " in lines and "below 0.125" in lines
    never = next(i for i, line in enumerate(lines) if "T.1 can never be supported" in line)
    assert never < next(i for i, line in enumerate(lines) if line.startswith("seal "))


def test_comparisons_that_see_as_little_are_warned_of_once(tmp_path, asked):
    weak = dataclasses.replace(asked[0].contrasts[0], test="wilcoxon", direction="two-sided")
    other = dataclasses.replace(weak, groups=("sgd_2x", "sgd"))
    asked[0] = dataclasses.replace(asked[0], contrasts=(weak, other))
    lines = register(tmp_path / "run", config())
    (line,) = [x for x in lines if x.startswith("warning: T.1: ")]
    assert "sam" in line and "(and 1 more of its comparisons)" in line
    assert sum(x.startswith("│ T.1") for x in lines) == 1
    assert "and 1 more" in " ".join(" ".join(lines).split())


def test_a_second_time_says_that_it_is_there(tmp_path):
    register(tmp_path / "run", config())
    before = listing(tmp_path / "run")
    lines = register(tmp_path / "run", config())
    assert "registered already" in lines and "nothing was changed" in lines
    assert f"seal {json.loads(before['registration.json'])['seal']}" in lines
    assert listing(tmp_path / "run") == before


def test_a_run_goes_on_under_its_registration(tmp_path):
    path = tmp_path / "run"
    register(path, config())
    lines = begin(path, config(), finish=True)
    assert "registered 2" in lines and "unregistered" not in lines
    assert verify.verify(path).problems == ()
    assert not any("analysis" in line for line in found(path).caveats)
    assert begin(path, config()) == []  # done: nothing is begun


def test_an_unregistered_run_says_so(tmp_path, asked):
    lines = begin(tmp_path / "run", config(), finish=True)
    assert lines == ["unregistered: everything is exploratory"]
    assert "Unregistered: everything is exploratory." in verify.verify(tmp_path / "run").notes
    assert "results" in refused(register, tmp_path / "run", config())
    asked.clear()
    assert "has no hypotheses; unregistered" in begin(tmp_path / "other", config())
    message = refused(register, tmp_path / "third", config())
    assert "study 'sharpness' has no hypotheses" in message


def test_what_has_been_seen_cannot_be_registered(tmp_path):
    path = tmp_path / "run"
    with opened(path, config()) as run:
        run.append("sam", [row("sam", 0, 4)])
    before = listing(path)
    assert "what has been seen cannot be registered" in refused(register, path, config())
    assert listing(path) == before


def test_another_question_is_refused_with_the_difference(tmp_path, asked):
    path = tmp_path / "run"
    register(path, config())
    before = listing(path)
    assert "optim.rho is 0.05 there and 0.1 here" in refused(begin, path, config(rho=0.1))
    asked[0] = hypothesis(direction="greater")
    for action in (begin, register):
        message = refused(action, path, config())
        assert '.direction: "less" registered, "greater" now' in message
    asked[0] = hypothesis(alpha=0.1)
    assert "alpha: 0.05 registered, 0.1 now" in refused(begin, path, config())
    asked.append(hypothesis("T.2", "test/ece"))
    assert "T.1" in refused(begin, path, config())
    assert listing(path) == before


def test_bad_hypotheses_are_refused_before_anything_is_sealed(tmp_path, asked):
    for wrong, words in (
        (hypothesis(alpha=0.0), "alpha"),
        (hypothesis(metric=""), "metric"),
    ):
        asked[:] = [wrong]
        assert words in refused(register, tmp_path / "run", config())
    asked[:] = [hypothesis(), hypothesis()]
    assert "T.1" in refused(register, tmp_path / "run", config())
    assert not (tmp_path / "run" / "registration.json").exists()


@pytest.mark.parametrize("field", ["seal", "time", "seeds", "dirty"])
def test_a_seal_that_was_tampered_with(tmp_path, field):
    path = tmp_path / "run"
    register(path, config())
    file = path / "registration.json"
    document = json.loads(file.read_text())
    document[field] = {"seal": "0" * 64, "time": "", "seeds": [0, 1, 2], "dirty": None}[field]
    if field == "dirty":
        document["dirty"] = not json.loads(file.read_text())["dirty"]
    file.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n")
    before = listing(path)
    assert "was changed after it was sealed" in refused(begin, path, config())
    assert "was changed after it was sealed" in refused(register, path, config())
    assert listing(path) == before


# Official registrations.


def official(tmp_path, made=None, name="sam_cifar-smoke"):
    made = made or config()
    register(tmp_path / f"first-{name}", made)
    content = (tmp_path / f"first-{name}" / "registration.json").read_bytes()
    (tmp_path / "official" / f"{name}.json").write_bytes(content)
    return content


def test_a_fresh_run_takes_over_the_official_registration(tmp_path):
    content = official(tmp_path)
    lines = begin(tmp_path / "run", config(), finish=True)
    assert "takes over" in lines and "official/sam_cifar-smoke.json" in lines
    assert (tmp_path / "run" / "registration.json").read_bytes() == content
    assert verify.verify(tmp_path / "run").problems == ()
    lines = register(tmp_path / "second", config())
    assert "takes over" in lines and "official once committed" not in lines
    assert (tmp_path / "second" / "registration.json").read_bytes() == content


def test_another_config_does_not_take_it_over_and_says_why(tmp_path):
    official(tmp_path)
    lines = begin(tmp_path / "run", config(rho=0.1))
    assert "unregistered: everything is exploratory (" in lines
    assert "rho: 0.05 registered, 0.1 now" in lines
    assert not (tmp_path / "run" / "registration.json").exists()


def test_a_run_that_has_begun_takes_nothing_over(tmp_path):
    with opened(tmp_path / "run", config()) as run:
        run.append("sam", [row("sam", 0, 4)])
    official(tmp_path)
    assert begin(tmp_path / "run", config()) == ["unregistered: everything is exploratory"]


def test_fewer_seeds_run_under_it(tmp_path):
    official(tmp_path)
    fewer = config(seeds=(0, 2))
    lines = begin(tmp_path / "run", fewer, finish=True)
    assert "2 of 4 registered seeds are not run" in lines and "inconclusive" in lines
    found = verify.verify(tmp_path / "run")
    assert found.problems == () and "2 of 4 registered seeds were run" in found.notes
    assert "unregistered" in begin(tmp_path / "other", config(seeds=(0, 9)))


def test_a_damaged_official_registration_is_not_taken_over(tmp_path):
    content = official(tmp_path)
    path = tmp_path / "official" / "sam_cifar-smoke.json"
    path.write_bytes(content.replace(b'"seeds":[0,1,2,3]', b'"seeds":[0,1,2,4]'))
    assert "was changed after it was sealed" in refused(begin, tmp_path / "run", config())


@pytest.mark.parametrize("change", [
    lambda content: content.replace(b'"study":', b'"study": '),
    lambda content: content[:200],
    lambda content: b"",
])  # fmt: skip
def test_an_official_registration_that_does_not_name_its_study_is_not_passed_over(tmp_path, change):
    content = official(tmp_path)
    path = tmp_path / "official" / "sam_cifar-smoke.json"
    path.write_bytes(change(content))
    assert path.read_bytes() != content
    assert "is damaged" in refused(begin, tmp_path / "run", config())


def test_a_registration_of_another_study_is_not_read(tmp_path):
    official(tmp_path)
    (tmp_path / "official" / "other.json").write_text('{"study":"grokking","seal":"none"}')
    assert "takes over" in begin(tmp_path / "run", config())


# Sources that change.


def test_another_analysis_marks_verdicts(tmp_path, monkeypatch):
    path = tmp_path / "run"
    register(path, config())
    begin(path, config(), finish=True)
    folder = epath.Path(path)
    monkeypatch.setattr(sources, "code_digest", lambda: "c" * 64)
    assert not any("analysis" in line for line in found(path).caveats)
    monkeypatch.setattr(sources, "analysis_digest", lambda tests: "a" * 64)
    (line,) = (line for line in found(path).caveats if "analysis" in line)
    assert "(aaaaaaaaaaaa) is not the one that was registered" in line
    # An amendment after the data takes nothing back, and is named.
    monkeypatch.setattr(workdir, "timestamp", lambda: "2999-01-01T00:00:00+00:00")
    amendment = standing.amend(folder, "  a bug in the ranks  ")
    assert amendment.reason == "a bug in the ranks" and amendment.analysis == "a" * 64
    (line,) = (line for line in found(path).caveats if "analysis" in line)
    assert f"it was amended {amendment.time}, after the run had begun" in line
    assert verify.verify(path).problems == ()


def test_an_amendment_before_the_data_registers_the_change(tmp_path, monkeypatch):
    path = tmp_path / "run"
    register(path, config())
    monkeypatch.setattr(sources, "analysis_digest", lambda tests: "a" * 64)
    lines = begin(path, config())
    assert "the code that decides has changed since it was registered" in lines
    standing.amend(epath.Path(path), "a bug in the ranks")
    assert "changed" not in begin(path, config(), finish=True)
    assert found(path).failures == () and verify.verify(path).problems == ()
    assert not any("analysis" in line for line in found(path).caveats)


def test_amendments_are_a_chain(tmp_path):
    path = tmp_path / "run"
    register(path, config())
    folder = epath.Path(path)
    for reason in ("one", "two", "three"):
        standing.amend(folder, reason)
    seal = standing.read(folder).seal
    lines = (path / "amendments.jsonl").read_bytes().splitlines()
    previous = [seal, *(hashlib.sha256(line).hexdigest() for line in lines)]
    assert [json.loads(line)["previous"] for line in lines] == previous[:3]
    begin(path, config(), finish=True)
    assert verify.verify(path).problems == ()
    for changed in (
        [lines[1], lines[2]],
        [lines[0], lines[2]],
        [lines[0].replace(b"one", b"ONE"), *lines[1:]],
        [lines[1], lines[0], lines[2]],
    ):
        (path / "amendments.jsonl").write_bytes(b"\n".join(changed) + b"\n")
        problems = verify.verify(path).problems
        assert any("does not follow" in line for line in problems), problems
        assert "does not follow" in refused(standing.amend, folder, "four")


def test_amendments_need_a_registration_and_a_reason(tmp_path):
    begin(tmp_path / "run", config())
    assert "nothing to amend" in refused(standing.amend, epath.Path(tmp_path / "run"), "x")
    register(tmp_path / "other", config())
    before = listing(tmp_path / "other")
    assert "needs a reason" in refused(standing.amend, epath.Path(tmp_path / "other"), " \n")
    assert listing(tmp_path / "other") == before


# The chain from the manifest.


def test_verify_holds_the_folder_to_its_registration(tmp_path):
    path, other = tmp_path / "run", tmp_path / "other"
    for folder, made in ((path, config()), (other, config(rho=0.1))):
        register(folder, made)
        begin(folder, made, finish=True)
    mine = (path / "registration.json").read_bytes()
    (path / "registration.json").write_bytes((other / "registration.json").read_bytes())
    assert verify.verify(path).problems[0].startswith("registration.json ")
    reseal(path)
    assert verify.verify(path).problems == (
        "registration.json has another seal than the manifest names",
        "config.json is not the config that was registered",
    )
    (path / "registration.json").unlink()
    reseal(path)
    problems = verify.verify(path).problems
    assert "registration.json is missing" in problems
    assert "registration.json is missing, and the manifest names a seal" in problems
    (path / "registration.json").write_bytes(mine)
    reseal(path)
    assert verify.verify(path).problems == ()


# Sources.


def test_the_digest_of_sources_is_of_names_and_bytes(tmp_path):
    def digest(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        return sources.digest({path.name: path for path in folder.iterdir()})

    assert digest(a="x", b="y") == digest(b="y", a="x")
    different = [digest(a="x", b="y"), digest(a="x", c="y"), digest(a="xy", b=""), digest(a="x")]
    assert len(set(different)) == 4


def test_git_is_asked_for_the_repository_of_the_sources_alone(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b@c"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    package = tmp_path / "sharpjax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    ask = sources.commit.__wrapped__
    assert ask() == (None, None, None)
    git("init", "-q")
    assert ask() == (None, None, None)  # a repository that does not follow these sources
    git("add", ".")
    git("commit", "-q", "-m", "x")
    clean = ask()
    assert clean.commit and len(clean.commit) == 40 and clean[1:] == (False, None)
    (package / "__init__.py").write_text("1")
    changed = ask()
    assert changed.dirty and changed.commit == clean.commit
    (package / "new.py").write_text("1")
    assert len({changed.diff, ask().diff, None}) == 3
    before = ask().diff
    (package / "new.py").write_text("2")
    assert ask().diff != before


# Through the door.


def test_the_command_registers_then_runs_under_it(tmp_path, monkeypatch):
    path = tmp_path / "run"
    command = ("--config=configs/reproducibility.py:smoke", f"--workdir={path}")
    done = launch(*command, "--register")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    sealed = json.loads((path / "registration.json").read_text())
    assert f"seal {sealed['seal']}" in done.stdout and "H4.1 will not be run" in done.stdout
    assert not (path / "metrics").exists()
    before = listing(path)
    other = launch(*command, "--config.seeds=(0,1,2)")
    assert_one_line(other, 2, "seeds is [0, 1] there and [0, 1, 2] here")
    assert listing(path) == before
    done = launch(*command)
    assert done.returncode == 0, done.stderr
    assert f"registered {sealed['time']}, seal {sealed['seal'][:12]}" in done.stdout
    assert verify.verify(path).problems == ()
    assert json.loads((path / "manifest.json").read_text())["registration"] == sealed["seal"]
