"""`python -m sharpjax.studies` on a whole registered run: it finds, repeats, adds and exports."""

import csv
import importlib.util
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from configs import sam_cifar
from sharpjax import tree, workdir
from sharpjax.errors import UserError, printable
from sharpjax.report import words
from sharpjax.runs import export, read, register, report, standing, study, verify, weights
from sharpjax.runs import run as runner
from sharpjax.studies import __main__ as command
from tests.commands import ROOT, assert_one_line, environment, studies
from tests.runs import flips, hypothesis, listing, reseal, rewrite_journal


def config():
    made = sam_cifar.get_config("smoke")
    made.arms = {"sam": {}, "sgd": {"optim": {"rho": 0.0}}}
    made.data.num_train = 128
    made.model = {"name": "mlp", "width": 4, "dtype": "float32"}
    made.evaluate.geometry.update(
        {"every_epochs": 2, "num_sets": 1, "max_products": 4, "max_probes": 4, "adaptive_steps": 1}
    )
    return made.lock()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A registered run, amended, with reports; made in this process, on its devices."""
    path = tmp_path_factory.mktemp("whole") / "run"
    made = config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "hypotheses_of", lambda config: (hypothesis(),))
        patch.setattr(standing, "OFFICIAL", pathlib.Path("/nonexistent"))
        patch.setattr(sys, "argv", ["launch.py", "--config=configs/sam_cifar.py:smoke"])
        with workdir.open_run(path, config=made.to_dict(), overrides={}) as run:
            register.register(made, run, name="tiny", say=lambda line: None)
        with workdir.open_run(path, config=made.to_dict(), overrides={}) as run:
            register.begin(made, run, name="tiny", say=lambda line: None)
            runner.run(made, study.plan_of(made), run)
    assert command.main(["amend", str(path), "--reason=a typo in a docstring"]) == 0
    return path


@pytest.fixture
def path(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


def run(capsys, *arguments):
    """Exit code and output of a command in this process."""
    capsys.readouterr()
    code = command.main([str(a) for a in arguments])
    out = capsys.readouterr().out
    assert all(printable(line) == line for line in out.splitlines())
    return code, out


def refused(*arguments):
    with pytest.raises(UserError) as error:
        command.main([str(a) for a in arguments])
    assert "\n" not in str(error.value)
    return str(error.value)


# Verify.


def test_a_whole_run_is_as_it_was_sealed(whole, capsys):
    before = listing(whole)
    code, out = run(capsys, "verify", whole)
    seal = json.loads((whole / "registration.json").read_text())["seal"]
    assert code == 0 and "every byte is as it was sealed" in out and f"seal {seal}" in out
    assert "a typo in a docstring" in out and "unregistered" not in out
    assert listing(whole) == before


def test_one_flipped_byte_anywhere_is_found(path):
    names = set()
    for name, position in flips(path):
        problems = verify.verify(path).problems
        assert problems, (name, position)
        names.add(name)
    kinds = {"DONE", "manifest.json", "derived.json", "config.json", "overrides.json"}
    kinds |= {"registration.json", "amendments.jsonl", "environment.json", "processes.json"}
    kinds |= {"results.jsonl", "report.html", "report.md", "figures/curves.png"}
    kinds |= {"metrics/sam/4.jsonl", "arrays/sam/4/params_sha256.npz"}
    kinds |= {"checkpoints/sam/4/SHA256SUMS", "checkpoints/sam/4/structure.json"}
    assert names >= kinds and names == {
        n for n, c in listing(path).items() if c not in (b"", False)
    }
    assert verify.verify(path).problems == ()


def test_verify_says_what_differs(path, capsys):
    (path / "report.html").write_text("")
    (path / "notes.txt").write_text("")
    code, out = run(capsys, "verify", path)
    assert code == 1
    assert f"{path}: notes.txt is listed nowhere\n" in out
    assert f"{path}: report.html differs from its SHA-256\n" in out
    assert "NOT as it was sealed: 2 problem(s)" in out


# The manifest.


def test_the_manifest_says_what_was_run(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["config"] == json.loads((whole / "config.json").read_text())
    assert manifest["config_digest"] == workdir.config_digest(config().to_dict())
    assert manifest["seeds"] == [0, 1] and manifest["study"] == "sharpness"
    seal = json.loads((whole / "registration.json").read_text())["seal"]
    assert manifest["registration"] == seal
    code = manifest["code"]
    assert set(code) == {"commit", "dirty", "diff", "sources", "analysis", "measures"}
    (machine,) = manifest["environments"]
    assert machine["device_count"] == 4 and machine["platform"] == "cpu"
    assert machine["packages"].keys() >= {"jax", "jaxlib", "flax", "optax", "numpy", "ml-dtypes"}
    assert "--xla_force_host_platform_device_count=4" in machine["variables"]["XLA_FLAGS"]
    assert machine["settings"]["jax_default_prng_impl"] == "threefry2x32"
    assert machine["settings"]["jax_threefry_partitionable"] is True
    (process,) = manifest["processes"]
    assert process["outcome"] == "finished" and process["code"] == code
    assert process["started"] <= process["ended"] and process["peak_bytes"]["host"] > 2**20
    assert process["seconds"]["total"] > process["seconds"]["training"] > 0
    assert process["command"] == ["launch.py", "--config=configs/sam_cifar.py:smoke"]
    assert manifest["data"]["digits"]["digests"].keys() == {"train", "test"}
    assert manifest["data"]["digits"]["spec"]["num_train"] == 128
    assert manifest["arm_order"] == ["sam", "sgd"]
    assert {"params_at_start", "params_at_end"} < set(manifest["arms"]["sam"])


def test_digests_of_parameters_are_kept_where_they_can_be_compared(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    for arm in ("sam", "sgd"):
        there = workdir.load_arrays(
            workdir.files.epath.Path(whole / "arrays" / arm / "4" / "params_sha256.npz")
        )
        hexadecimal = {seed: digest.tobytes().hex() for seed, digest in there.items()}
        assert hexadecimal == manifest["arms"][arm]["params_at_end"]
        assert (whole / "arrays" / arm / "2" / "params_sha256.npz").exists()


# Replay.


def test_a_replay_is_the_same_to_the_bit_and_writes_nothing(whole, capsys):
    before = listing(whole)
    code, out = run(capsys, "replay", whole, "--steps=4")
    assert code == 0 and "arm sam: steps 1 to 4 of 4" in out and "not compared" not in out
    compared = int(out.split("the same: ")[1].split()[0])
    rows = (whole / "results.jsonl").read_bytes().count(b"\n")
    assert compared == rows + 2 * 4  # digests at start, end, steps 2 and 4 of two arms
    assert listing(whole) == before
    assert "of the 4 rows that verdicts rest on, 4 were compared\n" in out
    code, out = run(capsys, "replay", whole)
    assert "of the 4 rows that verdicts rest on, 0 were compared; --steps=all compares all" in out


def test_a_replay_finds_numbers_that_were_never_computed(path, capsys):
    for name in ("results.jsonl", "metrics/sgd/2.jsonl"):
        lines = [json.loads(line) for line in (path / name).read_text().splitlines()]
        for line in lines:
            if (line["arm"], line["seed"], line["step"]) == ("sgd", 1, 2):
                if line["metric"] == "test/nll":
                    line["value"] = float(np.nextafter(line["value"], 9.0))
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (path / name).write_text(text)
    rewrite_journal(path)
    reseal(path)
    assert verify.verify(path).problems == ()  # who makes every sum anew is found by a replay alone
    code, out = run(capsys, "replay", path)
    assert code == 1 and "arm sgd, seed 1, step 2: test/nll is " in out
    assert "NOT the same: 1 of " in out


def test_elsewhere_a_replay_compares_losses_within_a_tolerance(path, capsys):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["environments"][0]["device_kind"] = "abacus"
    (path / "manifest.json").write_text(json.dumps(manifest))
    reseal(path)
    code, out = run(capsys, "replay", path)
    assert code == 0
    assert 'within 5%: the run was on another machine: device_kind is "abacus" there' in out


def test_a_replay_needs_the_same_data(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["data"]["digits"]["digests"]["train"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    reseal(path)
    assert "the data 'digits' here are not what" in refused("replay", path)


# Measure.


def test_the_measures_of_the_run_itself_are_measured_again(path, capsys):
    assert "--trust-checkpoints" in refused("measure", path)
    sealed = {n: c for n, c in listing(path).items() if n != "derived.json"}
    code, out = run(capsys, "measure", path, "--trust-checkpoints", "--name=again")
    assert code == 0 and "exploratory" in out
    after = listing(path)
    assert {n: after[n] for n in sealed} == sealed  # nothing of the run was touched
    added = {n for n in after.keys() - sealed.keys() if after[n]}
    assert added == {
        "exploratory/again/rows.jsonl",
        "exploratory/again/measure.json",
        "derived.json",
    }
    recorded = {
        (r["arm"], r["seed"], r["metric"]): (r["value"], r["standard_error"])
        for r in map(json.loads, (path / "results.jsonl").read_text().splitlines())
        if r["step"] == 4
    }
    again = list(map(json.loads, (path / "exploratory/again/rows.jsonl").read_text().splitlines()))
    assert len(again) > 40 and {r["metric"] for r in again} > {"test/nll"}
    for r in again:
        assert recorded[r["arm"], r["seed"], r["metric"]] == (r["value"], r["standard_error"])
    about = json.loads((path / "exploratory/again/measure.json").read_text())
    assert about["label"].startswith("exploratory") and about["steps"] == {"sam": 4, "sgd": 4}

    assert "exploratory/again" in refused("measure", path, "--trust-checkpoints", "--name=again")
    code, out = run(capsys, "verify", path)
    assert code == 0 and "measures that were taken later" in out
    rows = path / "exploratory/again/rows.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"0.", b"1.", 1))
    assert verify.verify(path).problems == (
        "exploratory/again/rows.jsonl differs from its SHA-256",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "geometry.num_exmples=3"], "no field 'geometry.num_exmples'"),
        (["--set", "geometry.num_examples"], "FIELD=VALUE"),
        (["--set", "geometry.num_examples=x"], "a int is wanted"),
        (["--set", "geometry.num_examples=0"], "num_examples=0"),
        (["--set", "geometry.tol=__import__('os')"], "a float is wanted"),
        (["--set", "test=3"], "--set test=3"),
        (["--name=../x"], "letters, digits"),
    ],
)
def test_measures_that_cannot_be(whole, arguments, words):
    before = listing(whole)
    assert words in refused("measure", whole, "--trust-checkpoints", *arguments)
    assert listing(whole) == before


def test_a_checkpoint_of_other_parameters_is_not_measured(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["arms"]["sam"]["params_at_end"]["0"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    reseal(path)
    assert "other parameters than the manifest" in refused("measure", path, "--trust-checkpoints")


# Export.


def test_the_long_table_as_csv(whole, tmp_path, capsys):
    code, out = run(capsys, "export", whole)
    assert code == 0
    found = list(csv.DictReader(out.splitlines()))
    rows = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert len(found) == len(rows) > 100 and list(found[0]) == list(workdir.COLUMNS)
    for a, b in zip(found, rows, strict=True):
        assert a["value"] == ("" if b["value"] is None else repr(b["value"]))
        assert json.loads(a["of"]) == b["of"] and a["metric"] == b["metric"]
    target = tmp_path / "x.csv"
    assert run(capsys, "export", whole, f"--output={target}")[0] == 0
    assert target.read_text() == out
    assert "is there" in refused("export", whole, f"--output={target}")
    assert target.read_text() == out
    assert "cannot be written" in refused("export", whole, f"--output={tmp_path}/no/x.csv")


def test_means_for_a_paper(whole, capsys):
    _, out = run(capsys, "export", whole, "--format=md")
    head, _, *body = out.splitlines()
    assert head == "| metric | sam | sgd |"
    line = next(line for line in body if "test/nll" in line)
    values = [
        r["value"]
        for r in map(json.loads, (whole / "results.jsonl").read_text().splitlines())
        if (r["arm"], r["step"], r["metric"]) == ("sam", 4, "test/nll")
    ]
    error = abs(values[0] - values[1]) / 2
    assert line.split(" | ")[1] == f"{words.mean_and_error(np.mean(values), error)} (2)"
    assert any(r"train\[:64\]/hessian/lambda\_1 " in line for line in body)
    _, out = run(capsys, "export", whole, "--format=tex")
    assert out.startswith("\\begin{tabular}{lrr}\n\\toprule\nmetric & sam & sgd \\\\\n")
    assert r"train[:64]/hessian/lambda\_1 & " in out and r" $\pm$ " in out


def test_a_table_for_a_paper_keeps_coordinates_and_arms_as_they_are():
    row = {"study": "s", "metric": "m", "step": 1, "standard_error": None}
    rows = [
        row | {"arm": arm, "seed": seed, "of": {"layer": layer}, "value": -1.0 - seed - layer}
        for arm in ("sgd", "base")
        for seed in (0, 1)
        for layer in range(3)
    ]
    text = export.as_tex(rows).decode()
    assert "metric & sgd & base" in text and text.count(r"$-$1.50 $\pm$ 0.50 (2)") == 2
    assert text.count("(2)") == 6 and "(6)" not in text


def test_names_that_other_tools_would_obey():
    row = {"study": "s", "arm": "=cmd()", "seed": 0, "step": 1, "of": {"layer": "a|b"}}
    row |= {"metric": r"a_%\input{x}|", "value": 0.5, "standard_error": None}
    assert "'=cmd()" in export.as_csv([row]).decode()
    markdown = export.as_markdown([row]).decode()
    assert r"a\_%\\input\{x\}\|" in markdown and r'"a\|b"' in markdown
    tex = export.as_tex([row]).decode()
    assert r"a\_\%\textbackslash{}input\{x\}|" in tex


def test_parquet(whole, tmp_path, capsys):
    if importlib.util.find_spec("pyarrow") is None:
        assert "needs pyarrow" in refused("export", whole, "--format=parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "x.parquet"
    assert run(capsys, "export", whole, "--format=parquet", f"--output={target}")[0] == 0
    table = parquet.read_table(target).to_pylist()
    assert len(table) == (whole / "results.jsonl").read_bytes().count(b"\n")


# Layers.


def test_layers_of_a_checkpoint(whole, capsys):
    before = listing(whole)
    manifest = json.loads((whole / "manifest.json").read_text())
    options = "--trust-checkpoints", "--layer=*"
    code, out = run(capsys, "layers", whole, *options)
    assert code == 0 and out.startswith(f"{whole}: arm sam, seed 0, step 4 of 4; scale-free; ")
    assert "other arms: sgd; other seeds: 1" in out
    assert "Dense_0/bias: not a matrix" in out and "Dense_0/kernel: too few" in out
    for arm, seed in itertools.product(("sam", "sgd"), ("0", "1")):
        found = weights.weights(whole, arm=arm, model=seed, trust_checkpoints=True)
        digest = tree.digest((found.params, {}))
        assert digest == manifest["arms"][arm]["params_at_end"][seed], (arm, seed)
        start = weights.weights(whole, arm=arm, model=seed, step="start").params
        assert tree.digest((start, {})) == manifest["arms"][arm]["params_at_start"][seed]
    code, own = run(capsys, "layers", whole / "checkpoints" / "sgd" / "4", *options, "--seed=1")
    assert code == 0 and ": arm sgd, seed 1, step 4 of 4;" in own
    assert listing(whole) == before


def test_layers_of_what_is_not_there(whole, path):
    trust = "--trust-checkpoints"
    assert "give --trust-checkpoints" in refused("layers", whole)
    assert "no arm 'sgdd'; did you mean 'sgd'?" in refused("layers", whole, "--arm=sgdd")
    assert "of seed '7'. There are: 0, 1." in refused("layers", whole, "--seed=7", trust)
    assert "its checkpoints are of the steps 2, 4" in refused("layers", whole, "--step=3", trust)
    assert "give a step, or one of" in refused("layers", whole, "--step=x", trust)
    assert "holds no state 'best'" in refused("layers", whole, "--step=best", trust)
    deep = whole / "checkpoints" / "sam" / "4"
    assert "names another" in refused("layers", deep, "--arm=sgd")
    assert "is no checkpoint: name" in refused("layers", whole / "metrics")
    (path / "checkpoints" / "sam" / "4" / "structure.json").write_text("{}")
    assert "is damaged: structure.json" in refused("layers", path, trust)
    shutil.rmtree(path / "checkpoints")
    assert "what is published holds no weights" in refused("layers", path, trust)


# Amend, report, list.


def test_an_amendment_is_added_and_nothing_else(path, capsys):
    before = listing(path)
    code, out = run(capsys, "amend", path, "--reason=ranks\nwere wrong \x1b[2J")
    assert code == 0 and "ranks\\nwere wrong" in out
    after = listing(path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"amendments.jsonl", "derived.json"}
    assert after["amendments.jsonl"].startswith(before["amendments.jsonl"])
    assert verify.verify(path).problems == ()
    (path / "figures" / "curves.png").write_bytes(b"")
    run(capsys, "amend", path, "--reason=more")
    assert verify.verify(path).problems == ("figures/curves.png differs from its SHA-256",)


def test_a_report_is_made_again(path, capsys):
    for name in ("report.html", "report.md"):
        (path / name).unlink()
    workdir.write_derived(workdir.files.epath.Path(path))
    code, out = run(capsys, "report", path)
    assert code == 0 and "report.html" in out
    assert verify.verify(path).problems == ()
    text = (path / "report.md").read_text()
    assert "T.1" in text and "test/nll is lower under SAM" in text
    assert "a typo in a docstring" in text


def test_a_figure_that_is_too_long_for_a_page_stays_beside_it(path, tmp_path, monkeypatch):
    there = pathlib.Path(shutil.copytree(path, tmp_path / "copy")) / "figures"
    sizes = {file.stem: file.stat().st_size for file in there.glob("*.png")}
    monkeypatch.setattr(report, "MAX_FIGURE_BYTES", sorted(sizes.values())[-1] - 1)
    pictures = {p.name: p.png for p in report.content_of(read.read(there.parent)).pictures}
    assert [n for n, png in pictures.items() if png is None] == [max(sizes, key=sizes.get)]


def test_an_overview_of_several_runs(path, tmp_path, capsys):
    other = shutil.copytree(path, tmp_path / "other")
    before = listing(path)
    code, out = run(capsys, "report", path, other)
    assert code == 0 and f"{tmp_path}/overview.html" in out and listing(path) == before
    text = (tmp_path / "overview.md").read_text()
    assert all(f"H{paper}.1" in text for paper in range(1, 8)) and "not yet run" in text
    assert "T.1" in text and "run/report.html" in text and "other/report.html" in text
    assert "named twice" in refused("report", path, path)
    apart = shutil.copytree(path, tmp_path / "apart" / "third")
    assert "name one by --output" in refused("report", path, apart)
    assert run(capsys, "report", apart, f"--output={tmp_path}/page")[0] == 0
    assert "../apart/third/report.html" in (tmp_path / "page" / "overview.html").read_text()
    (other / "results.jsonl").write_text("")
    assert "is not as it was sealed: results.jsonl" in refused("report", path, other)


def test_an_index_of_the_runs_in_a_folder(path, tmp_path, capsys):
    shutil.copytree(path, tmp_path / "other")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "report.md").write_text("# Another shape")
    (tmp_path / "notes.txt").write_text("no run")
    code, out = run(capsys, "index", tmp_path)
    assert code == 0 and "older: not listed: " in out and out.endswith("README.md: 3 runs\n")
    text, page = ((tmp_path / name).read_text() for name in ("README.md", "index.html"))
    assert "[other](other/report.html), [rows](other/results.jsonl)" in text
    assert "[older](older/report.md)" in text and "holds no config.json" in text
    assert "H7.1" in text and "T.1" in text and "notes" not in text
    assert 'href="other/report.html"' in page and page.startswith("<!DOCTYPE html>")
    assert run(capsys, "index", tmp_path)[0] == 0 and (tmp_path / "README.md").read_text() == text
    assert "is no folder" in refused("index", tmp_path / "nowhere")


def test_an_index_lists_what_is_finished_and_sound(path, tmp_path, capsys):
    """Verdicts of half a run are none, and one strange folder does not hide the others."""
    half = pathlib.Path(shutil.copytree(path, tmp_path / "half"))
    (half / "DONE").unlink()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"study": "foo"}')
    (strange / "DONE").write_text("")
    code, out = run(capsys, "index", tmp_path)
    assert code == 0 and "half: not listed: " in out and "strange: not listed: " in out
    text = (tmp_path / "README.md").read_text()
    assert "is not finished" in text and "half: **" not in text and "run/report.html" in text


@pytest.mark.parametrize("name", ["README.md", "index.html"])
def test_an_index_overwrites_no_page_of_another(path, name, capsys):
    own = path.parent / name
    own.write_text("# My thesis")
    assert f"holds a {name} that `index` did not write" in refused("index", path.parent)
    assert own.read_text() == "# My thesis"
    other = {"README.md": "index.html", "index.html": "README.md"}[name]
    assert not (path.parent / other).exists()


@pytest.mark.parametrize("left", ["changed", "missing", "half-written"])
def test_a_report_that_was_interrupted_is_made_again(path, left, capsys):
    page = path / "report.html"
    if left == "changed":  # new pages, and a kill before their sums
        page.write_text("<!DOCTYPE html>")
    elif left == "missing":
        page.unlink()
    else:
        (path / "report.html.tmp").write_text("<!DOC")
    assert run(capsys, "verify", path)[0] == 1
    assert run(capsys, "report", path)[0] == 0
    assert run(capsys, "verify", path)[0] == 0
    (path / "results.jsonl").write_text("")
    assert "is not as it was sealed" in refused("report", path)


def test_a_run_that_was_killed_before_its_report_makes_it(path):
    for name in workdir.REPORTS:
        (path / name).unlink()
    made = config()
    with workdir.open_run(path, config=made.to_dict(), overrides={}) as done:
        runner.run(made, study.plan_of(made), done)
    assert all((path / name).exists() for name in workdir.REPORTS)
    assert verify.sound(path)


@pytest.mark.parametrize("row", [{"value": 10**20 - 1}, {"metric": "\\ud800"}])
def test_rows_that_cannot_be_used_are_no_stack_trace(path, row, capsys):
    lines = (path / "results.jsonl").read_text().splitlines()
    changed = workdir.canonical_json(json.loads(lines[0]) | row).replace("\\\\ud800", "\\ud800")
    for file in [path / "results.jsonl", *path.glob("metrics/*/*.jsonl")]:
        file.write_text(file.read_text().replace(lines[0], changed))
    rewrite_journal(path)
    reseal(path)
    code, out = run(capsys, "verify", path)
    assert code == 1 and "a row that cannot be used" in out
    assert "a row that cannot be used" in refused("report", path)


def test_a_replay_that_compares_nothing_is_no_success(path, monkeypatch, capsys):
    from sharpjax.runs import replay

    nothing = replay.Replay(0, (), (0, 5), is_bitwise=False)
    monkeypatch.setattr(replay, "replay", lambda *given, **options: nothing)
    code, out = run(capsys, "replay", path)
    assert code == 1 and "NOT compared" in out and "--steps=all" not in out


def test_a_list_of_runs(whole, capsys):
    code, out = run(capsys, "list", whole.parent)
    assert code == 0 and "sharpness" in out and "configs/sam_cifar.py" in out
    assert "run " in out and "registered (" in out and "sealed 2" in out
    assert "none" in run(capsys, "list", whole.parent / "nowhere")[1]


# The command line.

LIGHT = """
import sys
from sharpjax.studies import __main__ as command
for arguments in (["list"], ["verify", sys.argv[1]], ["export", sys.argv[1]]):
    assert command.main(arguments) == 0
print("imported:", *(m for m in ("jax", "flax", "orbax", "matplotlib") if m in sys.modules))
"""


def test_looking_at_a_run_imports_nothing_heavy(whole):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(whole)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


def test_the_command_as_a_person_gives_it(whole, path):
    done = studies("verify", whole)
    assert done.returncode == 0 and done.stderr == ""
    (path / "DONE").write_text("")
    done = studies("verify", path)
    assert done.returncode == 1 and "manifest.json differs from the SHA-256 in DONE" in done.stdout
    assert_one_line(studies("export", path), 2, "is damaged")


MISTAKES = {
    "command": (["verfy"], ["'verfy'", "did you mean 'verify'", "replay"]),
    "nothing": (["verify"], ["required: folder", "verify --help"]),
    "format": (["export", "x", "--format=xls"], ["'xls'", "csv"]),
    "steps": (["replay", "x", "--steps=0"], ["'0' is no whole number of 1 or more"]),
    "reason": (["amend", "x"], ["--reason"]),
    "flag": (["verify", "x", "--fast"], ["--fast"]),
    "folder": (["verify", "/nonexistent"], ["'/nonexistent' does not exist"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    arguments, words = MISTAKES[name]
    message = refused(*arguments)
    assert all(word in message for word in words), message


def test_help_names_every_command(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in command.COMMANDS)
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as leave:
            command.main([name, "--help"])
        assert leave.value.code == 0 and "folder" in capsys.readouterr().out
