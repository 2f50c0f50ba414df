"""A published folder is a run without its weights: it verifies, and can be reported."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.provenance import sources
from sharpjax.runs import evidence, joint, publish, read, report, standing, verify
from tests import registered
from tests.commands import ROOT
from tests.registered import begin, config, opened, refused
from tests.runs import listing


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path):
    return registered.ask(monkeypatch, tmp_path)


@pytest.fixture
def path(tmp_path):
    """A registered run with rows, arrays and a checkpoint."""
    path, made = tmp_path / "run", config()
    registered.register(path, made)
    large = {"0.logits": np.random.default_rng(0).random(200_000)}
    with opened(path, made) as run:

        def also():
            run.publish_arrays("sam", 8, "outputs", {"0.logits": np.arange(12.0)})
            run.publish_arrays("sam", 8, "large", large)
            run.publish_arrays("sam", 8, "best-0", {"params.kernel": np.arange(12.0)})

        registered.write(run, made, also)
        folder = run.path / "checkpoints" / "sam" / "8"
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "data").write_bytes(b"weights")
        workdir.write_sums(folder)
        registered.seal(run, made)
    return path


def published(path, name="published"):
    target = path.with_name(name)
    lines = registered.Lines()
    publish.publish(path, str(target), lines)
    assert len(lines) == 1 and "left out: 3 files" in lines
    return target


def test_it_verifies_and_reports(path):
    before = listing(path)
    target = published(path)
    assert listing(path) == before
    assert verify.verify(target).problems == verify.verify(path).problems == ()
    for name in ("DONE", "manifest.json", "registration.json", "journal.jsonl", "results.jsonl"):
        assert (target / name).read_bytes() == (path / name).read_bytes()
    there = {name for name in listing(target) if (target / name).is_file()}
    assert {"report.html", "report.md", "arrays/sam/8/outputs.npz", "left_out.json"} <= there
    assert not any(name.startswith("checkpoints") for name in there)
    left_out = json.loads((target / "left_out.json").read_text())["files"]
    assert left_out.keys() == {
        "checkpoints/sam/8/SHA256SUMS", "arrays/sam/8/large.npz", "arrays/sam/8/best-0.npz",
    }  # fmt: skip
    assert "a checkpoint" in left_out["checkpoints/sam/8/SHA256SUMS"]["why"]
    report.report([str(target)], None, lambda line: None)
    assert verify.verify(target).problems == ()
    again = published(target, "again")  # a published folder can be moved on
    assert verify.verify(again).problems == ()


def test_a_published_folder_is_moved_on_where_there_is_more_room(path, monkeypatch):
    target = published(path)
    monkeypatch.setattr(publish, "MOST_BYTES", 2**22)
    again = published(target, "again")
    assert not (again / "arrays/sam/8/large.npz").exists()
    assert verify.verify(again).problems == ()


def test_a_run_without_registration(tmp_path):
    path = tmp_path / "run"
    begin(path, config(), finish=True)
    publish.publish(path, str(tmp_path / "published"), lambda line: None)
    assert verify.verify(tmp_path / "published").problems == ()


@pytest.mark.parametrize("name", ["results.jsonl", "metrics/sam/8.jsonl", "journal.jsonl"])
def test_what_verdicts_rest_on_cannot_be_left_out(path, name):
    target = published(path)
    entry = json.loads((target / "manifest.json").read_text())["files"][name]
    listed = json.loads((target / "left_out.json").read_text())
    listed["files"][name] = entry | {"why": "it is large"}
    (target / name).unlink()
    (target / "left_out.json").write_text(workdir.json_file(listed))
    workdir.write_derived(workdir.files.epath.Path(target))
    assert f"{name} is missing" in verify.verify(target).problems


def test_what_is_left_out_is_what_was_sealed(path):
    target = published(path)
    listed = json.loads((target / "left_out.json").read_text())
    listed["files"]["arrays/sam/8/large.npz"]["sha256"] = "0" * 64
    (target / "left_out.json").write_text(workdir.json_file(listed))
    workdir.write_derived(workdir.files.epath.Path(target))
    assert "arrays/sam/8/large.npz is missing" in verify.verify(target).problems
    (target / "left_out.json").write_text("[]")
    assert any("left_out.json" in line for line in verify.verify(target).problems)


def test_what_it_refuses(path, tmp_path):
    (tmp_path / "there").mkdir()
    message = refused(publish.publish, path, str(tmp_path / "there"), print)
    assert "is there already; name a new folder" in message
    unfinished = pathlib.Path(shutil.copytree(path, tmp_path / "unfinished"))
    (unfinished / "DONE").unlink()
    assert refused(publish.publish, unfinished, str(tmp_path / "x"), print)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), UserError("no page")])
def test_it_leaves_no_half_of_a_folder(path, tmp_path, monkeypatch, error):
    def write(*given, **options):
        raise error

    monkeypatch.setattr(report, "write", write)
    message = refused(publish.publish, path, str(tmp_path / "published"), print)
    assert "No space left" in message or "no page" in message
    assert not (tmp_path / "published").exists()


RESULTS = ROOT / "docs" / "results"
JUDGED = sorted(path.parent for path in RESULTS.glob("*/joint.json"))
PARTS = {part.name for path in JUDGED for part in read.joined(epath.Path(path))}
PUBLISHED = sorted(path.parent for path in RESULTS.glob("*/left_out.json"))


def place_of(path):
    """Where the repository holds the registration of a folder."""
    return evidence.place(standing.read(path))


@pytest.mark.parametrize(
    "path", [path for path in PUBLISHED if path.name not in PARTS], ids=lambda path: path.name
)
def test_the_published_results_verify(path, monkeypatch):
    monkeypatch.undo()  # with the studies and the registrations of the repository
    assert verify.verify(path).problems == ()
    assert "in the repository since" in place_of(path) or not git()


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.name)
def test_what_was_judged_together_verifies(path, monkeypatch):
    """And each of its runs by itself, which is a part of it."""
    monkeypatch.undo()
    assert joint.check(path).problems == ()
    folders = (path, *read.joined(epath.Path(path)))
    assert all("in the repository since" in place_of(one) for one in folders) or not git()


def git():
    return sources.commit().commit
