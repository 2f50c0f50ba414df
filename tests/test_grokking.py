"""Paper 3 as a study: its config, its arms, what it asks, and a run through the door."""

import importlib.util
import io
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from sharpjax import catalog, schema, tree, workdir
from sharpjax.data import modular
from sharpjax.errors import UserError
from sharpjax.protocol.claims import check, contrasts
from sharpjax.protocol.judging.verdicts import decide
from sharpjax.report.markdown import text as escaped
from sharpjax.runs import console, study, verify
from sharpjax.studies import __main__ as command
from sharpjax.studies.grokking import asks, shows
from sharpjax.studies.grokking import plan as grokking
from sharpjax.studies.papers import paper3
from sharpjax.train import epochs, planning
from tests.commands import assert_one_line, launch, launch_probed, read_rows, studies
from tests.runs import listing

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "grokking.py"
SMOKE = "--config=configs/grokking.py:smoke"
FORMS = (
    "",
    "table1",
    "table1_80",
    "mod67",
    "mod67_80",
    "subtraction",
    "subtraction_50",
    "paper",
    "quick",
    "temperature",
    "smoke",
    "temperature_smoke",
)


def module():
    spec = importlib.util.spec_from_file_location("grokking_config", CONFIG)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def stages(made):
    """The trained arms by name."""
    return planning.arms(study.plan_of(made))


def metrics_of(made):
    plan = study.plan_of(made)
    return {metric for arm in planning.arms(plan) for metric in planning.metrics(plan, arm)}


def config(form="smoke", **changes):
    made = module().get_config(form)
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made


# The whole of it, through the door.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = launch(SMOKE, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run(finished):
    folder, said = finished
    assert all(words in said for words in ("generalised", "add7-svd_50-80", "Q.3"))
    assert workdir.verify(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    arm = manifest["arms"]["add7-svd_50-80"]
    assert set(arm["epochs"]) == {"0", "1"} and arm["population"] == "loop"
    assert list(manifest["data"]) == ["+ mod 7, 0.8"], "one split for all models"
    data = manifest["data"]["+ mod 7, 0.8"]
    assert data["spec"]["operation"] == "+" and data["spec"]["train_fraction"] == 0.8
    assert data["digests"]["0"].keys() == {"train", "test"}
    assert data["digests"]["0"] != data["digests"]["1"], "each seed has its own"
    assert manifest["arm_order"] == ["add7-dense-80", "add7-svd_50-80"]
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert figures == {"accuracy-add7-80.png", "sharpness-add7-80.png", "captions.json"}
    captions = json.loads((folder / "figures" / "captions.json").read_text())
    report = (folder / "report.md").read_text()
    assert all(f"![{escaped(own['caption'])}]" in report for own in captions.values())
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "epoch, paper" in html and "| generalised |" in markdown
    assert "add7-80. Training accuracy (dashed)" in html


def test_curves_are_those_of_each_seed(finished):
    folder, _ = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = {(r["arm"], r["seed"], r["metric"]): r["value"]
            for r in read_rows(folder) if r["step"] == 12}  # fmt: skip
    for arm, recorded in manifest["arms"].items():
        curves = np.load(folder / "arrays" / arm / "12" / "curves.npz")
        kinds = {f"{part}_{what}" for part in ("train", "test") for what in ("loss", "accuracy")}
        assert set(curves) == {f"{seed}.{kind}" for seed in (0, 1) for kind in kinds}
        for name, curve in curves.items():
            seed, kind = name.split(".")
            assert len(curve) == recorded["epochs"][seed] and np.isfinite(curve).all()
            assert curve[-1] == np.float32(rows[arm, int(seed), kind.replace("_", "/")])


def test_rows_are_those_of_the_docstrings(finished):
    rows = read_rows(finished[0])
    last = {r["metric"] for r in rows if r["step"] == 12}
    for metric in (m for m in last if m.startswith(("grok/", "model/"))):
        assert metric in paper3.__doc__ or metric in grokking.__doc__
    assert {q.metric for q in (paper3.EPOCH, paper3.ACCURACY, paper3.NUM_PARAMS)} <= last
    assert {r["step"] for r in rows} == {0, 1, 10, 12}
    assert {r["metric"] for r in rows} == metrics_of(config()), "it says what it measures"
    early = {r["metric"] for r in rows if r["step"] == 10}
    assert early == {m for m in last if not m.startswith(("grok/", "model/", "train/alive"))}


def test_the_door_refuses_before_anything_heavy_is_imported():
    done = launch_probed(SMOKE, "--config.data.operation=/", "--config.data.modulus=9")
    assert done.stdout.strip().endswith("imported:")
    done.stdout = ""
    assert_one_line(done, 2, "config.data.modulus=9", "9 = 3 x 3", "prime")


# What can be done with it.


def test_a_replay_is_the_same_to_the_bit(finished):
    folder, _ = finished
    done = studies("replay", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arm add7-dense-80: epochs 1 to 1 of 12" in done.stdout
    assert "not compared" not in done.stdout
    rows = sum(r["step"] <= 1 for r in read_rows(folder))
    compared = rows + 2 * 2  # digests at the start and after the first epoch, of two arms
    assert 0 < rows and f"the same: {compared} rows and digests agree" in done.stdout


def test_a_replay_trains_one_epoch_of_each_seed(finished, monkeypatch, capsys):
    trained, advance = [], epochs.advance

    def counting(*operands, num_epochs, lanes):
        trained.append(num_epochs)
        return advance(*operands, num_epochs=num_epochs, lanes=lanes)

    monkeypatch.setattr(epochs, "advance", counting)
    before = listing(finished[0])
    assert command.main(["replay", str(finished[0]), "--steps=1"]) == 0
    assert trained == [1] * 4
    assert "the same: " in capsys.readouterr().out and listing(finished[0]) == before


def test_measures_are_taken_again(finished, tmp_path):
    path = shutil.copytree(finished[0], tmp_path / "run")
    trusted = ("measure", str(path), "--trust-checkpoints", "--name=again")
    assert command.main([*trusted, "--set", "trajectory.num_examples=16"]) == 0
    lines = (path / "exploratory" / "again" / "rows.jsonl").read_text().splitlines()
    again = {(r["arm"], r["seed"], r["metric"]): r for r in map(json.loads, lines)}
    recorded = {(r["arm"], r["seed"], r["metric"]): r["value"]
                for r in read_rows(path) if r["step"] == 12}  # fmt: skip
    measured = {m for _, _, m in again}
    assert {r["step"] for r in again.values()} == {12}
    assert {m for m in measured if m.startswith("train[")} == {
        m.replace(":32]", ":16]") for _, _, m in recorded if m.startswith("train[")
    }
    unchanged = {key for key in again if not key[2].startswith("train[")}
    assert {m for _, _, m in unchanged} > {"grok/epochs", "grok/delay", "model/num_params"}
    for key in unchanged:
        here, there = again[key]["value"], recorded[key]
        assert here is there is None or here == pytest.approx(there, rel=1e-5)
    assert verify.verify(path).problems == ()


def test_other_commands(finished, tmp_path, capsys):
    path = shutil.copytree(finished[0], tmp_path / "run")
    report = (path / "report.html").read_bytes()
    assert command.main(["list", str(tmp_path)]) == 0
    assert "grokking, 2 seeds; sealed 2" in capsys.readouterr().out
    assert command.main(["report", str(path)]) == command.main(["verify", str(path)]) == 0
    assert len((path / "report.html").read_bytes()) == pytest.approx(len(report), rel=0.01)
    assert "every byte is as it was sealed" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is nothing to amend"):
        command.main(["amend", str(path), "--reason=none"])
    assert command.main(["export", str(path), "--format=md"]) == 0
    assert "| metric | add7-dense-80 | add7-svd\\_50-80 |" in capsys.readouterr().out


# Configs.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__operation": "/", "data__modulus": 15}, ("modulus=15", "15 = 3 x 5", "prime")),
        ({"data__train_fraction": 1.0}, ("train_fraction=1.0", "(0, 1)")),
        ({"data__train_fraction": 0.0}, ("train_fraction=0.0", "(0, 1)")),
        ({"data__train_fraction": 0.999}, ("leaves none to test",)),
        ({"data__modulus": 1}, ("modulus=1", "from 2")),
        ({"data__operation": "plus"}, ("unknown operation 'plus'", "x^2+y")),
        ({"data__operation": "s5"}, ("modulus=7", "120")),
        ({"model__rank_fraction": 0.1}, ("leaves rank 0 of a matrix with 8", "0.125 or more")),
        ({"model__rank_fraction": 1.5}, ("rank_fraction=1.5", "(0, 1]")),
        ({"model__name": "resnet18"}, ("unknown model 'resnet18'", "token_mlp")),
        ({"train__batch_size": 41}, ("batch_size=41", "40 training examples")),
        ({"evaluate__trajectory__num_examples": 41}, ("num_examples=41", "40 training")),
        ({"evaluate__trajectory__num_frequencies": 4}, ("num_frequencies=4", "there are 3")),
        ({"arms": {"baseline": {}}}, ("config.arms.baseline", "as add97-dense-80")),
        ({"train__loss_dtype": "float16"}, ("loss_dtype='float16'", "float64")),
    ],
)
def test_bad_input_is_one_line(changes, words):
    with pytest.raises(UserError) as error:
        schema.check(config(**changes).lock(), {})
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"modulus": 67}, "add67-dense-80"),
        ({"operation": "-"}, "sub97-dense-80"),
        ({"operation": "x^2+y"}, "other97-dense-80"),
        ({"train_fraction": 0.5}, "add97-dense-50"),
        ({"train_fraction": 0.285}, "add97-dense-28_5"),
    ],
)
def test_an_arm_is_named_after_what_it_trains_on(changes, name):
    """Else `add97-dense-80` would be judged as the paper's addition modulo 97."""
    made = config("table1_80")
    with made.unlocked():
        made.arms["add97-dense-80"].data = made.data.to_dict() | changes
    with pytest.raises(UserError, match=f"config.arms.add97-dense-80 has .*; name it {name}, or"):
        schema.check(made.lock(), {})
    with made.unlocked():
        made.arms = {name: made.arms["add97-dense-80"]}
    schema.check(made.lock(), {})


def test_a_rank_of_0_is_refused_before_training():
    made = config()
    made.arms["add7-svd_50-80"].model = {"rank_fraction": 0.05, "layers": "embed/*"}
    schema.check(made.lock(), {})
    with pytest.raises(UserError, match="leaves rank 0 of embed/embedding"):
        study.plan_of(made)


def test_the_schema_knows_the_operations():
    there = {name: (o.divides, o.size) for name, o in modular.OPERATIONS.items()}
    assert there == catalog.OPERATIONS


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    made = config(form).lock()
    schema.check(made, {})
    asked = grokking.hypotheses(made)
    check(asked)
    runnable = [h for h in asked if not h.missing]
    check(runnable, arms=tuple(made.arms), metrics=metrics_of(made))
    with pytest.raises(ValueError, match="known: "):
        module().get_config("none")


def test_arms_are_those_of_the_paper():
    made = module()
    assert {t: dict(b) for t, b in paper3.BUDGETS.items()} == made.BUDGETS
    assert set(made.MODELS) == {paper3.DENSE, *paper3.MODELS}
    published = {"dense": 91_107, "svd_100": 127_419, "svd_50": 63_595, "svd_25": 31_683,
                 "svd_12": 15_955}  # fmt: skip
    table = config("")
    sizes = {}
    plan = study.plan_of(table)
    for name, one in planning.arms(plan).items():
        task, model, fraction = name.split("-")
        assert one.epochs == paper3.BUDGETS[task][int(fraction)]
        assert plan.data[one.data].train_fraction == int(fraction) / 100
        assert all(10 in e.when.steps(one.epochs, 1) for e in one.evaluators[:-1])
        assert 10 in one.rows.steps(one.epochs, 1)
        tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        params = jax.eval_shape(one.step.model.init, jax.random.key(0), tokens)["params"]
        sizes.setdefault(model, set()).add(tree.size(params))
    assert sizes == {model: {size} for model, size in published.items()}
    adam = one.step.optimizer
    assert (adam.learning_rate, adam.momentum, adam.b2) == (1e-3, 0.9, 0.98)
    assert adam.weight_decay == 0.01 and one.step.batch_size == 512


def test_decomposed_models_start_as_the_dense_one():
    """Of the same seed: at full rank the same function, to rounding."""
    table = config("table1_80", seeds=(100,))
    models = [stages(table)[f"add97-{m}-80"].step.model for m in ("dense", "svd_100")]
    tokens = jnp.array([[3, 97, 5, 98], [9, 97, 0, 98]], jnp.int32)
    logits = [jax.jit(m.init_with_output)(jax.random.key(0), tokens)[0] for m in models]
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)


# What is asked.


def row(arm, seed, step, metric, value):
    names = ("study", "arm", "seed", "step", "of", "metric", "value", "standard_error")
    return dict(zip(names, ("grokking", arm, seed, step, {}, metric, value, 0.0), strict=True))


def made_rows(times, budgets, seeds=range(5), sharp=None):
    """An arm's seeds with times around a mean; None: none has generalised by the budget."""
    rng = np.random.default_rng(0)
    rows = []
    for arm, mean in times.items():
        for seed in seeds:
            seen = mean is not None
            time = round(mean * rng.uniform(0.8, 1.2)) if seen else budgets[arm]
            last = {
                "grok/epochs": time,
                "grok/epoch_of_best_test_accuracy": time if seen else round(0.9 * time),
                "grok/reached_full_test_accuracy": seen,
                "grok/best_test_accuracy": 1.0 if seen else 0.97,
                "model/num_params": 91_107 if "dense" in arm else 15_955,
                "train/alive": 1,
            }
            rows += [row(arm, seed, budgets[arm], m, float(v)) for m, v in last.items()]
            value = rng.uniform(1, 2) * (sharp or {}).get(arm, 1)
            rows.append(row(arm, seed, 10, "train[:512]/hessian/lambda_1", value))
            rows.append(row(arm, seed, 10, "train[:512]/adaptive_sharpness", value))
            rows.append(row(arm, seed, 10, "test/accuracy", rng.uniform(0.01, 0.03)))
    return rows


def verdicts(form, times, seeds=range(5), **more):
    made = config(form)
    budgets = {name: arm.train.epochs for name, arm in schema.resolve_arms(made).items()}
    rows = made_rows(times, budgets, seeds, **more)
    found = decide(grokking.hypotheses(made), rows, seeds=seeds, detectable=None)
    return {j.hypothesis.id: j.verdict for j in found}


QUICK = {"add97-dense-80": None, "add97-svd_25-80": 240, "add97-svd_12-80": 180}


def test_quick_compares_times_that_are_censored():
    found = verdicts("quick", QUICK, sharp={"add97-svd_12-80": 10})
    assert {h for h, v in found.items() if v != "not run"} == {"Q.1", "Q.2", "C.1", "C.2"}
    assert found["Q.1"] == found["Q.2"] == found["C.1"] == "supported"
    assert found["C.2"] == "refuted"
    later = verdicts("quick", {"add97-dense-80": 100, "add97-svd_25-80": None,
                               "add97-svd_12-80": None})  # fmt: skip
    assert later["Q.1"] == later["Q.2"] == "refuted"
    assert later["C.1"] == later["C.2"] == "inconclusive"
    flat = verdicts("quick", QUICK, sharp={"add97-svd_12-80": 0.1})
    assert flat["C.1"] == flat["C.2"] == "supported"


def test_a_column_is_asked_its_part():
    """Of the whole it says what is lacking."""
    times = {f"add97-{m}-80": t for m, t in zip(
        ("dense", "svd_100", "svd_50", "svd_25", "svd_12"), (8050, 495, 720, 234, 182), strict=True
    )}  # fmt: skip
    found = verdicts("table1_80", times)
    assert {h for h, v in found.items() if h.startswith("H3") and v != "not run"} == {
        f"H3.{i} add97-80" for i in (1, 2, 5, 6)
    }
    assert found["H3.1 add97-80"] == "supported"
    asked = {h.id: h for h in grokking.hypotheses(config("table1_80"))}
    assert "no add97-svd_100-50 and 9 more" in asked["H3.1"].missing
    assert len(list(contrasts(asked["H3.1 add97-80"]))) == 4


def test_each_form_asks_what_its_arms_allow():
    runnable = {
        form: [h.id for h in grokking.hypotheses(config(form)) if not h.missing] for form in FORMS
    }
    survival = [f"Q.{i}" for i in (1, 2, 3, 4)]
    curvature = [f"C.{i}" for i in (1, 2, 3, 4)]
    assert runnable[""] == [*(f"H3.{i}" for i in range(1, 7)), *survival, *curvature]
    assert runnable["mod67"] == ["H3.7 add67-50/65/80", *survival, *curvature]
    assert runnable["subtraction"] == ["H3.7 sub97-50/65/80", "D.1", *survival, *curvature]
    assert not any(h.startswith(("C.3", "C.4")) for h in runnable["table1_80"])
    assert runnable["paper"] == [*(f"H3.{i}" for i in range(1, 8)), "D.1", *survival, *curvature]
    controls = [h for h in runnable["temperature"] if h not in runnable["table1_80"]]
    assert controls == ["L.1", "L.2", "L.3"] and set(runnable["table1_80"]) < set(
        runnable["temperature"]
    )
    assert runnable["temperature_smoke"] == ["Q.3", "L.1", "L.2"]
    assert runnable["quick"] == ["Q.1", "Q.2", "C.1", "C.2"]
    assert runnable["smoke"] == ["Q.3"]


def test_the_whole_paper_has_the_arms_of_its_columns():
    """To the digest of each arm, so that a column's run is a part of it."""
    whole = {name: arm.to_dict() for name, arm in schema.resolve_arms(config("paper")).items()}
    tables = ("table1", "mod67", "subtraction")
    forms = [f"{table}_{fraction}" for table in tables for fraction in (50, 65, 80)]
    assert len(forms) == 9
    parts = [schema.resolve_arms(config(form)) for form in forms]
    assert whole == {name: arm.to_dict() for part in parts for name, arm in part.items()}
    assert len(whole) == 45 == sum(map(len, parts))
    seeds = {tuple(config(form).seeds) for form in (*forms, "paper")}
    assert len(seeds) == 1
    others = {*config("temperature").seeds, *config("quick").seeds}
    assert others.isdisjoint(*seeds)


def test_the_parts_of_a_column_are_its_arms():
    column = {n: arm.to_dict() for n, arm in schema.resolve_arms(config("mod67_50")).items()}
    parts = [config(f"mod67_50_{model}") for model in module().MODELS]
    found = [(n, arm.to_dict()) for part in parts for n, arm in schema.resolve_arms(part).items()]
    assert dict(found) == column and len(found) == len(column) == 5
    assert {tuple(part.seeds) for part in parts} == {tuple(config("mod67_50").seeds)}


# Is it the scale of the logits?


def test_a_temperature_divides_the_logits_and_nothing_else():
    made = stages(config("temperature"))
    dense, matched = (made[f"add97-{m}-80"].step for m in ("dense", "dense_as_25"))
    tokens = jnp.array([[3, 97, 5, 98], [9, 97, 0, 98]], jnp.int32)
    (plain, own), (divided, same) = (
        jax.jit(step.model.init_with_output)(jax.random.key(3), tokens) for step in (dense, matched)
    )
    temperature = matched.model.temperature
    assert temperature == module().TEMPERATURES["25"] > 1
    np.testing.assert_allclose(divided * temperature, plain, rtol=4e-7)  # two roundings
    assert all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (own, same)), strict=True)
    )
    assert dense == stages(config("table1_80"))["add97-dense-80"].step
    made = config("temperature_smoke", model__name="transformer").lock()
    with pytest.raises(UserError, match="model.temperature=2.0: 'transformer' has none"):
        schema.check(made, {})


def test_temperatures_make_the_logits_start_as_large_as_those_of_the_factors():
    """On other draws than the 40 of the config. d = s_dense - T s_svd has mean 0 but for the error
    of T, so that |mean d| exceeds 6 sd(d) sqrt(1/8 + 1/40) once in 1,000 (a t of 7 degrees of
    freedom); T has two decimals."""
    made = stages(config("temperature"))
    x, y = (grid.ravel()[::17] for grid in np.meshgrid(np.arange(97), np.arange(97)))
    tokens = jnp.asarray(np.stack([x, 0 * x + 97, y, 0 * x + 98], 1), jnp.int32)

    def scales(name):
        model = made[f"add97-{name}-80"].step.model

        @jax.jit
        def scale(key):
            params = model.init(key, tokens[:1])["params"]
            return grokking.logit_scale(model, params, tokens)

        return np.array([float(scale(jax.random.key(key))) for key in range(8)])

    dense = scales("dense")
    for rank, temperature in module().TEMPERATURES.items():
        svd = scales(f"svd_{rank}")
        d = dense - temperature * svd
        error = d.std(ddof=1) * np.sqrt(1 / 8 + 1 / 40)
        assert abs(d.mean()) < 6 * error + 0.005 * svd.mean()
        assert dense.mean() > 2 * svd.mean(), "or there would be nothing to match"


def test_the_scale_of_logits_is_that_of_the_docstring():
    (measure,) = (e for e in stages(config("temperature_smoke"))["add7-dense-80"].evaluators
                  if isinstance(e, grokking.LogitScale))  # fmt: skip
    assert not any(isinstance(e, grokking.LogitScale)
                   for e in stages(config("smoke"))["add7-dense-80"].evaluators)  # fmt: skip
    z = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

    class Looked:
        def apply(self, variables, tokens):
            return variables["params"][tokens[:, 0]] + 7.0  # what all share counts for nothing

    tokens = jnp.arange(6)[:, None]
    train, test = SimpleNamespace(input=tokens[:4]), SimpleNamespace(input=tokens[4:])
    subject = SimpleNamespace(model=Looked(), state=SimpleNamespace(params=jnp.asarray(z)))
    data = SimpleNamespace(train=train, test=test)
    _, found = measure((), subject, data, jax.random.key(0))
    expected = np.sqrt(np.mean((z - z.mean(1, keepdims=True)) ** 2))
    ((_, estimate),) = found.rows.items()
    np.testing.assert_allclose(estimate.value, expected, rtol=1e-5)


def test_the_control_tells_the_scale_from_the_rest():
    base = {"dense": 7000, "svd_100": 400, "svd_50": 400, "svd_25": 140, "svd_12": 400}

    def words(of_25, of_12):
        times = base | {"dense_as_25": of_25, "dense_as_12": of_12}
        times = {f"add97-{model}-80": time for model, time in times.items()}
        found = verdicts("temperature", times, range(10))
        return found["L.1"], found["L.2"]

    assert words(6500, 6500) == ("refuted", "supported")
    assert words(140, 400)[0] == "supported"
    assert words(1000, 1000) == ("supported", "supported")
    assert words(50, 50) == ("supported", "refuted")


def test_another_budget_than_the_papers_is_said():
    made = config("table1_80")
    made.arms["add97-dense-80"].train.epochs = 500
    budgets = {name: arm.train.epochs for name, arm in schema.resolve_arms(made).items()}
    asked = {h.id: h for h in asks.asked_of(budgets, "train[:512]")}
    assert not any(name.endswith("add97-80") for name in asked), "all need the dense model"
    assert not any(name.startswith("Q.") for name in asked), "nothing is watched equally long"
    full = {n: a.train.epochs for n, a in schema.resolve_arms(config("")).items()}
    asked = {h.id: h for h in asks.asked_of(full | {"add97-dense-80": 500}, "train[:512]")}
    assert "add97-dense-80 has 500 epochs and not the paper's 10,000" in asked["H3.1"].missing
    assert not asked["H3.3"].missing
    assert len(list(contrasts(asked["H3.1 add97-50/65"]))) == 8


# What is shown.


def test_the_table_stands_beside_the_papers():
    rows = made_rows(QUICK, dict.fromkeys(QUICK, 600))
    text = io.StringIO()
    (table,) = shows.tables(rows)
    Console(file=text, width=160).print(console.table(table))
    lines = {line.split()[1]: line for line in text.getvalue().splitlines() if "add97" in line}
    assert "8049.8 ± 436.1" in lines["add97-dense-80"] and "540.0 ± 0.0" in lines["add97-dense-80"]
    assert "0 of 5" in lines["add97-dense-80"] and "99.973 ± 0.015" in lines["add97-dense-80"]
    assert "182.2 ± 42.3" in lines["add97-svd_12-80"] and "5 of 5" in lines["add97-svd_12-80"]
    assert "15,955" in lines["add97-svd_12-80"]
