"""Paper 4 as a study: simulated studies, analysed by the code that analyses real ones."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest

from sharpjax import runtime, schema, workdir
from sharpjax.errors import UserError
from sharpjax.protocol.judging.verdicts import decide
from sharpjax.protocol.tests.catalog import TESTS, run
from sharpjax.protocol.tests.result import Samples
from sharpjax.runs import run as runner
from sharpjax.runs import study
from sharpjax.studies import __main__ as command
from sharpjax.studies.papers import paper4
from sharpjax.studies.reproducibility import plan as reproducibility
from sharpjax.studies.reproducibility import simulate as simulated_studies
from sharpjax.studies.reproducibility.schema import PAIRED_TESTS
from sharpjax.studies.reproducibility.schema import TESTS as UNPAIRED_TESTS
from sharpjax.studies.reproducibility.simulate import Setting
from tests.commands import assert_one_line, launch, launch_probed, read_rows, studies
from tests.runs import reseal

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "reproducibility.py"
SMOKE = "--config=configs/reproducibility.py:smoke"
SETTING = Setting(
    studies=20,
    registry=10,
    effect=0.0,
    n=10,
    metrics=1,
    correlation=0.5,
    test="welch",
    alpha=0.05,
    first_look=10,
    publish="all",
    each_study=True,
)


def config(form="smoke", **changes):
    spec = importlib.util.spec_from_file_location("reproducibility_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(form)
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made


def rows_of(now, seed, arm="a"):
    """The rows of one seed of an arm."""
    found = simulated_studies.study_values(now, seed)
    return [
        {"arm": arm, "seed": seed, "step": 0, "of": dict(of), "metric": metric, "value": value}
        | {"study": "reproducibility", "standard_error": 0.0}
        for (metric, of), value in found.items()
    ]


def values(rows, metric, arm="a"):
    return [r["value"] for r in rows if r["metric"] == metric and r["arm"] == arm]


# The whole of it, through the door.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    registered = launch(SMOKE, f"--workdir={folder}", "--register")
    done = launch(SMOKE, f"--workdir={folder}")
    assert registered.returncode == done.returncode == 0, registered.stderr + done.stderr
    return folder, registered.stdout, done.stdout


def test_runs_registered(finished):
    folder, registered, done = finished
    assert "H4.1 will not be run" in " ".join(registered.split())
    assert "rejected" in done and "significant_only" in done
    assert workdir.verify(folder) == []
    sealed = json.loads((folder / "registration.json").read_text())
    assert json.loads((folder / "manifest.json").read_text())["registration"] == sealed["seal"]
    assert [h["id"] for h in sealed["hypotheses"]] == ["H4.1", "H4.2", "H4.3", "H4.4", "H4.5"]


def test_rows_are_those_of_the_docstring(finished):
    rows = read_rows(finished[0])
    assert {r["metric"] for r in rows} == {
        *("study/rejected", "seed/rejection_rate", "seed/exaggeration"),
        *("registry/estimate", "registry/truth", "registry/bias"),
    }
    for metric in {r["metric"] for r in rows}:
        assert metric in reproducibility.__doc__
    assert {r["arm"] for r in rows if r["metric"] == "study/rejected"} == {
        *("registered", "flexible", "planned", "small")
    }
    assert len(values(rows, "study/rejected", "planned")) == 40
    assert "seed/exaggeration" not in {r["metric"] for r in rows if r["arm"] == "registered"}
    for arm in ("registered", "small"):
        for seed in (0, 1):
            chosen = [r for r in rows if r["arm"] == arm and r["seed"] == seed]
            assert np.mean(values(chosen, "study/rejected", arm)) == pytest.approx(
                values(chosen, "seed/rejection_rate", arm)[0]
            )


def test_every_hypothesis_is_answered(finished):
    rows = read_rows(finished[0])
    asked = reproducibility.hypotheses(config())
    judgements = decide(asked, rows, seeds=(0, 1))
    verdicts = {j.hypothesis.id: j.verdict for j in judgements}
    assert verdicts["H4.1"] == verdicts["H4.2"] == "not run"
    assert set(verdicts) == {f"H4.{i}" for i in range(1, 6)}
    assert all(j.reason for j in judgements)
    assert "bibliographic" in judgements[0].reason
    # Nothing that they compare is missing from the rows but what was not significant.
    for finding in (f for j in judgements for f in j.findings):
        assert "no metric" not in finding.reason and "no rows" not in finding.reason


@pytest.mark.slow
def test_ten_thousand_studies_answer_the_paper(tmp_path):
    """The trial before the registration, less the two arms that no hypothesis asks of: 40 s."""
    rows, seeds = [], range(20)
    for name, arm in schema.resolve_arms(config("")).items():
        now = simulated_studies.setting(arm)
        if name not in ("metrics_only", "looks_only"):
            for seed in seeds:
                rows += rows_of(now, seed, name)
    judgements = decide(reproducibility.hypotheses(config("")), rows, seeds=seeds)
    assert [j.verdict for j in judgements] == ["not run"] * 2 + ["supported"] * 3


# What can be done with it.


def test_a_replay_draws_every_study_again(finished):
    folder, rows = finished[0], read_rows(finished[0])
    done = studies("replay", folder)
    assert done.returncode == 0 and "not compared" not in done.stdout, done.stdout + done.stderr
    assert "arm registered: whole" in done.stdout
    assert f"the same: {len(rows)} rows and digests agree" in done.stdout


def test_a_replay_elsewhere_finds_numbers_that_were_never_drawn(finished, tmp_path, capsys):
    path = pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["environments"][0]["device_kind"] = "abacus"
    (path / "manifest.json").write_text(json.dumps(manifest))
    reseal(path)
    assert command.main(["replay", str(path)]) == 0
    assert f"the same: {len(read_rows(path))} rows" in capsys.readouterr().out
    for name in ("results.jsonl", "metrics/planned/0.jsonl"):
        lines = [json.loads(line) for line in (path / name).read_text().splitlines()]
        for line in lines:
            if (line["arm"], line["seed"], line["metric"]) == ("planned", 0, "seed/rejection_rate"):
                line["value"] += 0.1
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (path / name).write_text(text)
    reseal(path)
    assert command.main(["replay", str(path)]) == 1
    assert "NOT the same: 1 of" in capsys.readouterr().out


def test_other_commands(finished, tmp_path, capsys):
    path = pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))
    with pytest.raises(UserError, match="trains no models, so there are none to measure"):
        command.main(["measure", str(path), "--trust-checkpoints"])
    assert command.main(["amend", str(path), "--reason=none"]) == 0
    assert command.main(["report", str(path)]) == command.main(["verify", str(path)]) == 0
    assert "none" in (path / "report.md").read_text()
    assert command.main(["list", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "every byte is as it was sealed" in said and "reproducibility, 2 seeds; sealed" in said
    assert command.main(["export", str(path), "--format=tex"]) == 0
    assert "significant\\_only" in capsys.readouterr().out


# The simulation.


def test_registered_keeps_alpha_and_flexible_does_not():
    now = SETTING._replace(studies=1000)
    registered = simulated_studies.simulate(now, 0).rejected.mean()
    flexible = simulated_studies.simulate(now._replace(metrics=5, first_look=5), 0).rejected.mean()
    assert abs(registered - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 1000)
    assert flexible > 0.25


def test_n_is_planned():
    arm = schema.resolve_arms(config())["planned"]
    assert simulated_studies.setting(arm).n == 64  # d = .5, power .8
    arm = schema.resolve_arms(config(design__power=0.5))["planned"]
    assert simulated_studies.setting(arm).n < 40


def test_significant_estimates_exaggerate():
    now = SETTING._replace(studies=400, effect=0.5, registry=100)
    every = rows_of(now, 0)
    some = rows_of(now._replace(publish="significant"), 0)
    assert values(every, "seed/exaggeration")[0] > 1.5
    assert abs(np.mean(values(every, "registry/bias"))) < 4 * np.sqrt(2 / 10 / 400)
    assert min(values(some, "registry/bias")) > 0.3
    assert values(some, "registry/truth") == [0.5] * 4
    # The same studies, whatever is published of them.
    assert values(every, "study/rejected") == values(some, "study/rejected")


def test_nothing_published_is_missing():
    now = SETTING._replace(studies=2, registry=1, n=2, first_look=2, publish="significant")
    rows = rows_of(now, 3)
    rejected = values(rows, "study/rejected")
    assert rejected == [0.0, 0.0]
    assert np.isnan(values(rows, "registry/bias")).all()


@pytest.mark.parametrize("test", [*UNPAIRED_TESTS, *PAIRED_TESTS])
def test_decides_as_the_test_does(test):
    """The registered path, through rows and verdicts, against the test on the numbers."""
    now = SETTING._replace(studies=6, test=test, effect=1.0)
    assert (TESTS[test].kind == "paired") == (test in PAIRED_TESTS)
    outcome = simulated_studies.simulate(now, 0)
    for i, drawn in enumerate(simulated_studies.draw(now, 0)):
        result = run(test, Samples(tuple(drawn[0])), alternative="two-sided")
        assert outcome.rejected[i] == (result.p <= 0.05)
        assert outcome.estimate[i] == pytest.approx(drawn[0, 0].mean() - drawn[0, 1].mean())
        if test in ("welch", "paired-t"):
            assert outcome.estimate[i] == result.effect  # to the bit
    assert 0 < outcome.rejected.sum()


def test_estimates_are_in_units_of_the_truth_whatever_the_test():
    """Cliff's delta and the rank-biserial correlation of a true effect of 2 are at most 1."""
    for test in ("mann-whitney", "wilcoxon"):
        now = SETTING._replace(studies=40, registry=40, effect=2.0, test=test)
        (bias,) = values(rows_of(now, 0), "registry/bias")
        assert abs(bias) < 4 * np.sqrt(2 / 10 / 40)


def test_draws_what_was_designed():
    now = SETTING._replace(studies=4000, metrics=2, effect=0.3, correlation=0.7)
    drawn = simulated_studies.draw(now, 1)
    assert drawn.shape == (4000, 2, 2, 10)
    assert abs(drawn[:, :, 0].mean() - 0.3) < 0.01 and abs(drawn[:, :, 1].mean()) < 0.01
    assert abs(np.corrcoef(drawn[:, 0, 1].ravel(), drawn[:, 1, 1].ravel())[0, 1] - 0.7) < 0.02
    assert abs(np.corrcoef(drawn[:, 0, 0].ravel(), drawn[:, 0, 1].ravel())[0, 1]) < 0.02
    pairs = simulated_studies.draw(now._replace(test="wilcoxon"), 1)[:, 0]
    assert abs((pairs[:, 0] - pairs[:, 1]).std() - 1) < 0.02


@pytest.mark.parametrize("test", ["welch", "mann-whitney"])
def test_flexible_takes_the_first_that_is_significant(test):
    now = SETTING._replace(n=8, metrics=3, first_look=5, test=test)
    noise = np.random.default_rng(0).standard_normal((3, 2, 8))
    quiet = np.zeros_like(noise) + noise * 1e-3
    quiet[:, 0] = quiet[:, 1][:, ::-1]  # equal means in both groups at the end
    rejected, effect = simulated_studies.flexible(quiet, now._replace(first_look=8))
    assert not rejected and effect == pytest.approx(0.0, abs=1e-12)
    shifted = quiet.copy()
    shifted[2, 0, :6] += 5.0  # the last metric, seen at the first look
    rejected, effect = simulated_studies.flexible(shifted, now)
    assert rejected
    assert effect == pytest.approx((shifted[2, 0, :5] - shifted[2, 1, :5]).mean())


def test_seeds_are_streams():
    first, again = (simulated_studies.draw(SETTING, 0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, simulated_studies.draw(SETTING, 1)).any()
    other = simulated_studies.draw(SETTING._replace(effect=0.5), 0)
    assert not np.isclose(first[:, :, 1], other[:, :, 1]).any()


def test_what_an_arm_may_measure_is_known():
    for now in (SETTING, SETTING._replace(effect=1.0, each_study=False, registry=5)):
        found = simulated_studies.study_values(now, 0)
        assert {metric for metric, _ in found} <= set(simulated_studies.METRICS)
        assert len(found) == sum(
            (now.each_study * now.studies, 1, now.effect > 0, 3 * now.studies // now.registry)
        )


# The run.


def run_in(folder, made):
    """Run in this process; the bytes of the results."""
    with workdir.open_run(folder, config=made.to_dict(), overrides={}) as run:
        runner.run(made, study.plan_of(made), run)
    return (folder / "results.jsonl").read_bytes()


def counted(monkeypatch, stop_at=None):
    """The arms whose seeds are drawn, in turn; at the last seed of `stop_at` it fails."""
    drawn, study_values = [], simulated_studies.study_values

    def counting(now, seed):
        name = next(n for n, arm in schema.complete_arms(config()).items()
                    if simulated_studies.setting(arm) == now)  # fmt: skip
        if name == stop_at and seed == config().seeds[-1]:
            raise KeyboardInterrupt
        drawn.append((name, seed))
        return study_values(now, seed)

    monkeypatch.setattr(reproducibility, "study_values", counting)
    return drawn


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    whole = run_in(tmp_path / "whole", config())
    with monkeypatch.context() as patch:
        before = counted(patch, stop_at="planned")
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "part", config())
    after = counted(monkeypatch)
    assert run_in(tmp_path / "part", config()) == whole
    every = [(name, seed) for name in sorted(config().arms) for seed in config().seeds]
    assert before + after == every and after[0] == ("planned", config().seeds[-1])
    capsys.readouterr()
    assert run_in(tmp_path / "part", config()) == whole
    assert "nothing to run" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_change_nothing(tmp_path, monkeypatch):
    """Nor do they where some arms were done before."""
    alone = run_in(tmp_path / "alone", config())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stop_at="planned")
        run_in(tmp_path / "two", config())
    monkeypatch.setattr(reproducibility, "FEW", 0)
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    assert run_in(tmp_path / "two", config()) == alone


def test_few_studies_start_no_processes():
    def parallel(made):
        return {stage.parallel for stage in study.plan_of(made).stages}

    assert parallel(config()) == {False} and parallel(config("")) == {True}


def test_units_for_the_power_table():
    assert reproducibility.units(config("")) == {"study": 500, "registry": 5}


def test_hypotheses_are_about_the_level_and_the_power_of_the_config():
    changes = {"analysis__alpha": 0.01, "design__power": 0.97}
    asked = {h.id: h for h in reproducibility.hypotheses(config(**changes))}
    nulls = [c.null for c in asked["H4.3"].contrasts]
    assert nulls == [0.01 + 0.01, 0.01] and "above 0.01," in asked["H4.3"].refuted_if
    assert asked["H4.4"].contrasts[0].null == 0.97 and "0.92 to 1.02" in asked["H4.4"].refuted_if
    # A share of more than 1 cannot be tested for.
    assert [c.null for c in asked["H4.4"].refuting] == [0.97 - 0.05, None]
    made = config()
    with made.unlocked():
        made.arms.flexible.analysis.alpha = 0.1
    one = next(h for h in reproducibility.hypotheses(made) if h.id == "H4.3")
    assert [c.null for c in one.contrasts] == [0.05 + 0.01, 0.1]
    assert one.refuted_if.endswith("above 0.05, or the flexible one below 0.1")
    assert reproducibility.hypotheses(config("")) == paper4.HYPOTHESES


# Configs.


@pytest.mark.parametrize("form", ["", "quick", "smoke"])
def test_forms_are_valid(form):
    made = config(form)
    schema.check(made, {})
    names = {arm for h in reproducibility.hypotheses(made) for c in h.contrasts for arm in c.groups}
    assert names <= set(made.arms)
    if form == "":
        assert made.simulate.studies * len(made.seeds) >= 10_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"simulate__registry": 7}, ["simulate.registry=7", "does not divide", "studies=20"]),
        ({"simulate__studies": 0}, ["simulate.studies=0", "1 or more"]),
        ({"design__n": 0}, ["design.n=0", "design.effect=0.0"]),
        ({"design__n": 1}, ["design.n=1", "2 or more"]),
        ({"design__effect": -0.5}, ["design.effect=-0.5", "0 or more"]),
        ({"design__correlation": 1.0}, ["design.correlation=1.0", "[0, 1)"]),
        ({"design__power": 0.01}, ["arm 'planned'", "design.power=0.01", "analysis.alpha=0.05"]),
        ({"analysis__alpha": 1.0}, ["analysis.alpha=1.0", "(0, 1)"]),
        ({"analysis__test": "welsh"}, ["analysis.test='welsh'", "welch, mann-whitney"]),
        ({"analysis__first_look": 11}, ["analysis.first_look=11", "2 to 10"]),
        ({"analysis__publish": "none"}, ["analysis.publish='none'", "all, significant"]),
    ],
)
def test_bad_configs_are_one_line(changes, words):
    with pytest.raises(UserError) as error:
        schema.check(config(**changes), {})
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_first_look_after_the_planned_n_is_refused():
    """The n is known when the plan is made; before, no look would have been taken at all."""
    made = config()
    with made.unlocked():
        made.arms.planned.analysis = {"first_look": 80}
    schema.check(made, {})
    with pytest.raises(UserError) as error:
        reproducibility.plan(made)
    for word in ("arm 'planned'", "analysis.first_look=80", "is 64", "2 to 64"):
        assert word in str(error.value)


def test_bad_structure():
    made = config()
    with made.unlocked():
        made.arms.small.simulate = {"studies": 10}
    with pytest.raises(UserError, match="all arms have the same simulate"):
        schema.check(made, {})
    made = config()
    with made.unlocked():
        made.design.effet = 0.5
    with pytest.raises(UserError, match=r"'design.effet'; did you mean 'design.effect'"):
        schema.check(made, {})
    made = config()
    with made.unlocked():
        del made.analysis
    with pytest.raises(UserError, match="config has no 'analysis'"):
        schema.check(made, {})


def test_a_mistake_costs_no_import():
    done = launch_probed(SMOKE, "--config.design.n=1")
    assert_one_line(done, 2, "config.design.n=1")
    assert done.stdout.strip().splitlines()[-1] == "imported:"
