"""The toy study that `docs/design.md` adds: it runs through the door, and is short."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from sharpjax import catalog, workdir
from sharpjax.data import builders, upstream
from sharpjax.runs import publish, read, replay, verify
from sharpjax.studies import __main__ as command
from tests.commands import ROOT, assert_one_line, launch, read_rows
from tests.runs import reseal, rewrite_journal

CONFIG = "--config=examples/pruning/config.py"
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning") / "run"
    few = (f"--config.seeds={SEEDS}", "--config.train.epochs=2", "--config.data.num_train=256")
    done = launch(CONFIG, *few, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_it_is_short():
    files = (ROOT / "examples" / "pruning").glob("*.py")
    assert sum(len(path.read_text().splitlines()) for path in files) < 90


def test_every_stage_left_its_rows(finished):
    rows = read_rows(finished)
    of_arm = {arm: [r for r in rows if r["arm"] == arm] for arm in ("adam", "sgd", "pruned")}
    assert {r["of"]["pruned"] for r in of_arm["pruned"]} == {50, 90}
    # A derived model's rows stand at the last step of the arm that it is made of.
    last = max(r["step"] for r in of_arm["adam"])
    assert {r["step"] for r in of_arm["pruned"]} == {last} == {8}
    assert {r["seed"] for r in of_arm["pruned"]} == set(SEEDS)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["arm_order"] == ["adam", "sgd", "pruned"]


def test_pairs_disagree_as_often_as_their_outputs_do(finished):
    pairs = [r for r in read_rows(finished) if r["metric"] == "test/disagreement"]
    assert len(pairs) == 2 * 3
    for row in pairs:
        path = finished / "arrays" / row["arm"] / str(row["step"]) / "outputs.npz"
        with np.load(pathlib.Path(path)) as arrays:
            a, b = (arrays[f"{seed}.logits"] for seed in row["of"]["pair"])
        assert a.shape == (360, 10) and a.dtype == np.float32
        assert row["value"] == np.mean(np.argmax(a, 1) != np.argmax(b, 1))


def test_it_verifies_and_replays_like_any_other(finished, monkeypatch, capsys):
    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    assert workdir.verify(finished) == []
    assert command.main(["replay", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "arm adam: steps 1 to 4 of 8" in out and "the same: " in out


@pytest.mark.parametrize("stage", ["pruned", "pairs"])
def test_rows_of_stages_that_train_nothing_are_checked(stage, finished, tmp_path, monkeypatch):
    """A number that was never computed: not in one file alone, and no replay finds it."""
    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    path = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    segment = path / "metrics" / stage / "0.jsonl"
    first = json.loads(segment.read_text().splitlines()[0])
    assert first["metric"].startswith("test/")
    for name, words in (
        (f"metrics/{stage}/0.jsonl", "results.jsonl is not what metrics/ holds"),
        ("results.jsonl", "metrics/pairs/0.jsonl is not what process 1 wrote"),
    ):
        words = words.replace("pairs", stage)
        lines = [json.loads(line) for line in (path / name).read_text().splitlines()]
        changed = [line | {"value": line["value"] + 1} if line == first else line for line in lines]
        (path / name).write_text(workdir.lines_of(changed))
        reseal(path)
        (found, *more) = verify.verify(path).problems
        assert found.startswith(words) and len(more) <= 1
    # Who makes every sum anew is found where the row is computed from what is stored.
    rewrite_journal(path)
    reseal(path)
    problems = verify.verify(path).problems
    if stage == "pairs":
        assert problems[0].startswith("computed again from what is stored: arm ")
    else:
        assert problems == ()
    assert command.main(["replay", str(path)]) == 1
    (difference,) = replay.replay(read.read(path), say=lambda line: None).differences
    assert difference.startswith(f"arm {first['arm']}, seed {first['seed']}, step 8: test/")


def test_outputs_that_do_not_give_the_rows_are_found(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    path = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    file = path / "arrays" / "adam" / "8" / "outputs.npz"
    with np.load(file) as arrays:
        held = dict(arrays)
    held["0.logits"] = np.roll(held["0.logits"], 1, axis=0)
    workdir.publish(workdir.files.epath.Path(file), workdir.arrays.npz(held))
    rewrite_journal(path)
    reseal(path)
    problems = verify.verify(path).problems
    assert len(problems) == 2  # of the pairs (0, 1) and (0, 2)
    assert all("computed again from what is stored: arm adam" in line for line in problems)


@pytest.mark.parametrize("most", [publish.MOST_BYTES, 100])
def test_a_published_folder_says_what_it_cannot_compare(most, finished, tmp_path, monkeypatch):
    """It has no states; and where it has no outputs, rows that compare arms are not doubted."""
    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    monkeypatch.setattr(publish, "MOST_BYTES", most)
    target = tmp_path / "published"
    publish.publish(finished, str(target), lambda line: None)
    assert list(finished.rglob("state-*.npz")) and not list(target.rglob("state-*.npz"))
    found = verify.verify(target)
    assert found.problems == ()
    said = [note for note in found.notes if "'pairs' were not computed again" in note]
    assert len(said) == (most == 100) and all("adam" in line for line in said)


def test_verify_fetches_no_data(finished, monkeypatch):
    asked = []

    def compare_again(run):
        with pytest.raises(upstream.DownloadFailed, match="verify downloads nothing"):
            upstream.download(builders.MNIST.UPSTREAM[0], None)
        asked.append(run)
        return [], []

    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    monkeypatch.setattr(replay, "compare_again", compare_again)
    assert verify.verify(finished).problems == () and asked


def test_its_trained_arms_are_measured_again(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.STUDIES, "pruning", "examples.pruning")
    path = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    assert command.main(["measure", str(path), "--trust-checkpoints", "--name=again"]) == 0
    lines = (path / "exploratory" / "again" / "rows.jsonl").read_text().splitlines()
    again, recorded = (
        {(r["arm"], r["seed"]): r["value"] for r in rows if r["metric"] == "test/accuracy"}
        for rows in (map(json.loads, lines), (r for r in read_rows(path) if not r["of"]))
    )
    assert {arm for arm, _ in again} == {"adam", "sgd"} and len(again) == 2 * len(SEEDS)
    # On other devices one of the 360 answers may be another.
    assert again == pytest.approx(recorded, abs=1 / 360 + 1e-6)
    assert verify.verify(path).problems == ()


def test_a_typo_is_one_line():
    assert_one_line(launch(CONFIG, "--config.prune.percnt=(1,)"), 2, "did you mean 'percent'")
    done = launch(CONFIG, "--config.prune.percent=(0, 100)")
    assert_one_line(done, 2, "config.prune.percent=(0, 100)", "percentages, as (50, 90)")
