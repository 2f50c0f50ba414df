"""A run's folder: what it refuses, what survives a kill, and that no byte of it changes unseen."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from sharpjax import workdir
from sharpjax.errors import RunFailed, UserError
from sharpjax.workdir import files, lease, seal

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = {"study": "sharpness", "seeds": (0, 1), "optim": {"rho": 0.05, "name": "sgd"}, "arms": {}}


def row(arm, step, value=0.5, seed=0, metric="test/accuracy", of=None, error=0.0):
    coordinates = {"study": "s", "arm": arm, "seed": seed, "step": step, "of": of or {}}
    return coordinates | {"metric": metric, "value": value, "standard_error": error}


def opened(path, config=None, overrides=None):
    return workdir.open_run(path, config=config or CONFIG, overrides=overrides or {})


def refused(path, config=None):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as error, opened(path, config):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def listing(folder):
    """Every file and folder with its bytes, links as links."""
    entries = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        entries[name] = path.read_bytes() if path.is_file() else path.is_symlink()
    return entries


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs [1]*" / "säm 2"


@pytest.fixture
def object_store(monkeypatch):
    """`gs://` in memory, with whole puts and no locks, renames or appending."""

    class Store(MemoryFileSystem):
        store = {}
        pseudo_dirs = [""]
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).removeprefix("gs:/").replace("//", "/"))

        def mv(self, *arguments, **options):
            raise AssertionError("an object store cannot rename")

        def _open(self, path, mode="rb", **options):
            assert "a" not in mode, "an object store cannot append"
            return super()._open(path, mode, **options)

    store = Store()
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: store)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    return store


def test_nothing_heavy_is_imported():
    code = "import sys; from sharpjax import workdir; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not {"jax", "numpy", "orbax", "flax", "fsspec"} & set(done.stdout.split()), done.stderr


# Configs.


def test_the_digest_is_of_the_values_alone():
    digest = workdir.config_digest(CONFIG)
    turned = {"arms": {}, "optim": {"name": "sgd", "rho": 0.05}} | CONFIG | {"seeds": [0, 1]}
    assert digest == workdir.config_digest(turned)
    text = '{"arms":{},"optim":{"name":"sgd","rho":0.05},"seeds":[0,1],"study":"sharpness"}'
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    for change in ({"seeds": (1, 0)}, {"optim": {"rho": 0.05}}, {"arms": {"a": {}}}, {"x": None}):
        assert digest != workdir.config_digest(CONFIG | change)


def test_the_digest_names_the_field_that_json_cannot_hold():
    with pytest.raises(UserError, match="optim.rho is nan; give a finite number"):
        workdir.config_digest({"optim": {"rho": float("nan")}})
    with pytest.raises(UserError, match="data.seed is a int64"):
        workdir.config_digest({"data": {"seed": np.int64(1)}})
    with pytest.raises(UserError, match="data.cut is a tuple"):
        workdir.config_digest({"data": {"cut": (1.0, float("inf"))}})


# Opening.


def test_a_new_folder_holds_what_was_asked_for(path):
    with opened(path, overrides={"optim.rho": 0.05}) as run:
        assert not run.is_done and run.rows() == []
        assert os.fspath(run.path) == str(path)
    assert sorted(listing(path)) == ["config.json", "lease", "overrides.json"]
    assert json.loads((path / "config.json").read_text()) == CONFIG | {"seeds": [0, 1]}
    assert json.loads((path / "overrides.json").read_text()) == {"optim.rho": 0.05}
    with opened(path, CONFIG | {"seeds": [0, 1]}, overrides={}):
        pass
    assert json.loads((path / "overrides.json").read_text()) == {"optim.rho": 0.05}


def test_relative_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, found in (("runs/x", "runs/x"), ("~/x", "home/x")):
        with opened(given) as run:
            assert os.fspath(run.path) == str(tmp_path / found)


def test_another_config_is_shown_field_by_field(path):
    with opened(path):
        pass
    before = listing(path)
    other = {"study": "sharpness", "seeds": (0,), "optim": {"rho": 0.1, "m": 8}, "arms": {}}
    message = refused(path, other)
    assert listing(path) == before
    for words in (
        f"workdir '{path}' holds a run of another config: optim.m is not there and 8 here; ",
        'optim.name is "sgd" there and not here',
        "optim.rho is 0.05 there and 0.1 here",
        "seeds is [0, 1] there and [0] here. Give another --workdir",
    ):
        assert words in message
    many = refused(path, {f"field{i:02}": "x" * 100 for i in range(20)})
    assert "; and 17 more. Give" in many and "x" * 60 not in many
    # 1, 1.0 and true are three configs, as they are three digests.
    with opened(path.parent / "one", {"x": 1}):
        pass
    assert "x is 1 there and 1.0 here" in refused(path.parent / "one", {"x": 1.0})
    assert "x is 1 there and true here" in refused(path.parent / "one", {"x": True})


def test_foreign_folders_and_files_are_left_alone(path):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("x")
    before = listing(path)
    assert "holds thesis.tex but no config.json" in refused(path)
    assert listing(path) == before
    file = path / "thesis.tex"
    assert "is a file" in refused(file)
    assert "cannot be written: Not a directory" in refused(file / "run")
    assert listing(path) == before


def test_an_empty_folder_will_do(path):
    path.mkdir(parents=True)
    with opened(path):
        pass
    assert (path / "config.json").exists()


def test_what_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    assert "cannot be written: File name too long" in refused(tmp_path / "a" / "b" / ("c" * 300))
    assert listing(tmp_path) == {}

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sharpjax.workdir.opening.publish", full)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        assert "cannot be written: No space left on device" in refused(path)
        assert listing(tmp_path) == {"empty": False}
    monkeypatch.undo()

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lease.fcntl, "flock", no_locks)
    assert "its file system has no locks" in refused(tmp_path / "a" / "b")
    assert listing(tmp_path) == {"empty": False}


@contextlib.contextmanager
def as_nobody():
    """Without the rights of root, who may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_folders_without_permission_to_write():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with opened(folder / "stopped"):
            pass
        sealed(folder / "done")
        before = listing(folder)
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with as_nobody():
            assert "cannot be written: Permission denied" in refused(folder / "new" / "run")
            assert "cannot be written: Permission denied" in refused(folder / "stopped")
            with opened(folder / "done") as run:
                assert run.is_done and len(run.rows()) == 12
            assert workdir.verify(folder / "done") == []
        (folder / "done" / "config.json").chmod(0)
        (folder / "stopped").chmod(0)
        with as_nobody():
            assert "config.json cannot be read: Permission denied" in refused(folder / "done")
            assert "stopped' cannot be read: Permission denied" in refused(folder / "stopped")
        for path in paths:
            path.chmod(0o755)
        assert listing(folder) == before


def test_a_failed_publication_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = files.epath.Path(tmp_path / "file")
    workdir.publish(path, b"old")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        workdir.publish(path, b"new")
    assert listing(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("content", [b"", b'{"study": "sha', b"[]", b"\xff\xfe", b"null"])
def test_a_broken_config_file_is_not_guessed_at(path, content):
    with opened(path) as run:
        run.append("sam", [row("sam", 1)])
    (path / "config.json").write_bytes(content)
    before = listing(path)
    assert f"{path}/config.json is damaged" in refused(path)
    assert listing(path) == before


def test_a_kill_while_the_folder_is_begun_can_be_gone_on_from(path):
    path.mkdir(parents=True)
    for begun in (["lease"], ["lease", "config.json.tmp"]):
        for name in begun:
            (path / name).write_text("{")
        with opened(path):
            assert "config.json.tmp" not in listing(path)
        (path / "overrides.json").unlink()
        with opened(path):
            assert "overrides.json" in listing(path)
        shutil.rmtree(path)
        path.mkdir()


# The lease on a disk.


def test_two_runs_at_once(path):
    with opened(path) as run:
        run.append("sam", [row("sam", 1)])
        before = listing(path)
        assert f"is in use by process {os.getpid()} on " in refused(path)
        assert listing(path) == before
    with opened(path):
        pass


def test_the_kernel_frees_the_lease_of_a_killed_run(path):
    code = textwrap.dedent(f"""
        import sys, time
        from sharpjax import workdir
        with workdir.open_run({str(path)!r}, config={CONFIG!r}, overrides={{}}):
            print("open", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        assert f"is in use by process {other.pid} on " in refused(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        with opened(path):
            pass


# Rows and arrays.


def test_numbers_come_back_to_the_bit_and_the_rest_as_none(path):
    rng = np.random.default_rng(0)
    exact = [float(x) for x in rng.normal(size=50) * 10.0 ** rng.integers(-300, 300, size=50)]
    exact += [float(np.float32(0.1)), 5e-324, -0.0, 1.7976931348623157e308]
    other = [float("nan"), float("inf"), float("-inf"), None]
    values = exact + other
    rows = [row("sam", i, value, error=value) for i, value in enumerate(values)]
    with opened(path) as run:
        run.append("sam", rows)
        growing = run.rows()
        run.publish_segment("sam", len(values))
        assert run.rows() == growing
        run.seal({})
        assert run.rows() == growing
    for name in ("value", "standard_error"):
        assert [r[name] for r in growing] == exact + [None] * 4
    assert str(growing[52]["value"]) == "-0.0"
    for line in (path / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_rows_have_the_columns_and_only_these(path):
    with opened(path) as run:
        for bad in ({**row("sam", 0), "note": "x"}, {"arm": "sam", "step": 0}):
            with pytest.raises(ValueError, match="standard_error"):
                run.append("sam", [row("sam", 0), bad])
        assert run.rows() == []


def test_rows_are_sorted_by_their_columns(path):
    rows = [
        row(arm, step, seed=seed, metric=metric, of=of)
        for arm in ("sam", "sgd")
        for seed in (0, 1, 10)
        for step in (0, 5, 10)
        for of in ({}, {"layer": "Dense_0"}, {"pair": [0, 3], "set": 1})
        for metric in ("test/accuracy", "test/nll")
    ]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    with opened(path) as run:
        for arm in ("sgd", "sam"):
            run.append(arm, [r for r in shuffled if r["arm"] == arm])
        assert run.rows() == rows
        assert run.rows("sgd") == rows[len(rows) // 2 :] and run.rows("adam") == []
        run.seal({})
        assert run.rows() == rows and run.rows("sgd") == rows[len(rows) // 2 :]
    assert (path / "results.jsonl").read_text().splitlines()[4] == (
        '{"study":"s","arm":"sam","seed":0,"step":0,"of":{"pair":[0,3],"set":1},'
        '"metric":"test/accuracy","value":0.5,"standard_error":0.0}'
    )


def test_segments_are_closed_and_the_growing_one_grows_by_lines(path):
    with opened(path) as run:
        run.publish_segment("sam", 0)
        assert not (path / "metrics").exists()
        run.append("sam", [row("sam", 1)])
        growing = path / "metrics" / "sam" / "growing.jsonl"
        assert len(growing.read_bytes().splitlines()) == 1
        run.append("sam", [row("sam", 2), row("sam", 3)])
        assert len(growing.read_bytes().splitlines()) == 3
        content = growing.read_bytes()
        run.publish_segment("sam", 3)
        assert listing(path / "metrics") == {"sam": False, "sam/3.jsonl": content}
        run.append("sam", [row("sam", 4)])
        with pytest.raises(ValueError, match="is published"):
            run.publish_segment("sam", 3)
        assert [r["step"] for r in run.rows()] == [1, 2, 3, 4]


def test_a_torn_last_line_is_forgotten(path):
    with opened(path) as run:
        run.append("sam", [row("sam", 1), row("sam", 2)])
    growing = path / "metrics" / "sam" / "growing.jsonl"
    whole = growing.read_bytes()
    for cut in (1, 20, len(whole) // 2 - 1, len(whole) - 1):
        growing.write_bytes(whole[:-cut])
        with opened(path) as run:
            kept = 1 if cut < len(whole) // 2 else 0
            assert [r["step"] for r in run.rows()] == [1, 2][:kept]
            run.append("sam", [row("sam", 9)])
            assert [r["step"] for r in run.rows()] == [1, 2][:kept] + [9]


def test_rows_after_the_last_checkpoint_are_made_again(path):
    """No segment holds them, so nothing says which process wrote them."""
    with opened(path) as run:
        fill(run)
    with opened(path) as run:
        assert len(run.rows()) == 6
        run.enter(2)
        assert [r["step"] for r in run.rows()] == [5, 10, 15, 20]


def test_files_not_yet_renamed_are_removed_and_others_are_not(path):
    with opened(path) as run:
        fill(run)
    left = ["manifest.json.tmp", "metrics/sam/7.jsonl.tmp", "arrays/sam/5/x.npz.tmp"]
    ours = ["notes.tmp", "metrics/.DS_Store", "checkpoints/sam/5/x.tmp"]
    before = listing(path)
    for name in left + ours:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("half a fi")
    with opened(path) as run:
        assert len(run.rows()) == 6
        added = listing(path).keys() - before.keys()
    assert {name for name in added if (path / name).is_file()} == set(ours)


def test_a_broken_line_in_a_segment_is_one_line(path):
    with opened(path) as run:
        run.append("sam", [row("sam", 1)])
        run.publish_segment("sam", 1)
        segment = path / "metrics" / "sam" / "1.jsonl"
        segment.write_bytes(segment.read_bytes()[:-5])
        with pytest.raises(UserError, match="1.jsonl is damaged"):
            run.rows()


def test_arrays_are_files_that_numpy_reads(path):
    arrays = {
        "value": np.arange(6, dtype=np.float32).reshape(2, 3),
        "file": np.array(True),
        "empty": np.zeros((0, 4), np.int64),
    }
    with opened(path) as run:
        run.publish_arrays("sam", 5, "train[:64]/density-0", arrays)
        file = path / "arrays" / "sam" / "5" / "train[:64]" / "density-0.npz"
        with np.load(file) as loaded:
            assert set(loaded) == set(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(loaded[name], array, strict=True)
        before = file.read_bytes()
        time.sleep(0.01)
        run.publish_arrays("sam", 5, "train[:64]/density-0", dict(reversed(arrays.items())))
        assert file.read_bytes() == before
        with pytest.raises(ValueError):
            run.publish_arrays("sam", 5, "objects", {"x": np.array([{}])})
        with pytest.raises(ValueError, match="'x' is bfloat16; give it as float32"):
            run.publish_arrays("sam", 5, "half", {"x": np.zeros(2, ml_dtypes.bfloat16)})
        for name in ("../x", "/x", "a//b", "", ".", "x.tmp/y"):
            with pytest.raises(ValueError, match="cannot name"):
                run.publish_arrays("sam", 5, name, arrays)
        for arm in ("", "..", "a/b"):
            with pytest.raises(ValueError, match="cannot name"):
                run.append(arm, [row(arm, 1)])
        assert [n for n in listing(path) if n.endswith(".npz")] == [str(file.relative_to(path))]


def fill(run, arm="sam", until=30):
    """Segments that end at 10, 20, ..., rows at 5, 10, 15, ..., the last of them still growing."""
    for step in range(5, until + 1, 5):
        run.publish_arrays(arm, step, "x", {"value": np.full(2, step)})
        run.append(arm, [row(arm, step)])
        if step % 10 == 0 and step < until:
            run.publish_segment(arm, step)


@pytest.mark.parametrize("last", [None, 0, 10, 20, 25, 30])
def test_going_on_drops_what_is_later(path, last):
    with opened(path) as run:
        fill(run)
        fill(run, "sgd")
    with opened(path) as run:
        run.discard_after("sam", last)
        kept = [s for s in range(5, 31, 5) if s <= (last or 0)]
        assert [r["step"] for r in run.rows("sam")] == [s for s in kept if s <= 20]
        assert sorted(map(int, os.listdir(path / "arrays" / "sam"))) == kept
        assert len(run.rows("sgd")) == 6 and len(os.listdir(path / "arrays" / "sgd")) == 6
        before = listing(path)
        run.discard_after("sam", last)
        run.discard_after("new", None)
        assert listing(path) == before
        dropped = {e.file for e in workdir.journal.read(run.path) if not e.sha256}
        arrays = [f"arrays/sam/{s}/x.npz" for s in range(5, 31, 5) if s not in kept]
        assert dropped == {*arrays, *(f"metrics/sam/{s}.jsonl" for s in (10, 20) if s not in kept)}


@pytest.mark.parametrize("writes", ["publish_segment", "publish_arrays", "publish_unit"])
def test_a_kill_between_the_journal_and_the_file(path, writes, monkeypatch):
    """The line is there and the file is not, at a step that the next process may never write."""

    def killed(*paths):
        raise KeyboardInterrupt

    with opened(path) as run:
        fill(run, until=20)
        run.append("sam", [row("sam", 25)])
        arguments = {"publish_segment": (), "publish_arrays": ("y", {}), "publish_unit": ([],)}
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                getattr(run, writes)("sam", 25, *arguments[writes])
    with opened(path) as run:
        run.discard_after("sam", 20)
        run.discard_after("sam", 20)
        entries = workdir.journal.read(run.path)
        sums = workdir.sums_of(run.path, workdir.METRICS, workdir.ARRAYS)
        assert list(workdir.journal.differences(entries, sums)) == []
        assert sum(not e.sha256 and "/25" in e.file for e in entries) == 1


def test_a_checkpoint_before_the_evaluation_of_its_step(path):
    with opened(path) as run:
        run.append("sam", [row("sam", 5)])
        run.publish_segment("sam", 9)  # the run is stopped at step 10, and saved as it is
        run.publish_arrays("sam", 10, "x", {})
        run.append("sam", [row("sam", 10)])
        run.publish_segment("sam", 10)  # and killed before this checkpoint is written
    with opened(path) as run:
        run.discard_after("sam", 9)
        assert [r["step"] for r in run.rows()] == [5] and not os.listdir(path / "arrays" / "sam")


# The seal.


def sealed(path):
    """A finished run with everything a run has."""
    with opened(path, overrides={"optim.rho": 0.05}) as run:
        for arm in ("sgd", "sam"):
            fill(run, arm)
            folder = run.path / "checkpoints" / arm / "30"
            (folder / "state").mkdir(parents=True)
            (folder / "state" / "data").write_bytes(b"weights of " + arm.encode())
            workdir.write_sums(folder)
        (run.path / "figures").mkdir()
        (run.path / "figures" / "curves.png").write_bytes(b"picture")
        (run.path / "report.md").write_text("report")
        run.seal({"seconds": {"training": 1.5}})
        assert run.is_done and len(run.rows()) == 12
        with pytest.raises(ValueError, match="sealed"):
            run.append("sam", [row("sam", 40)])
        with pytest.raises(ValueError, match="sealed"):
            run.seal({})
    return path


def test_the_seal_lists_every_file(path):
    sealed(path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["seconds"] == {"training": 1.5}
    assert set(manifest["times"]) == {"started", "sealed"}
    assert manifest["times"]["started"] <= manifest["times"]["sealed"]
    names = {n for n, content in listing(path).items() if isinstance(content, bytes)}
    outside = {"lease", "manifest.json", "derived.json", "DONE", "report.md", "figures/curves.png"}
    outside |= {n for n in names if n.startswith("checkpoints/") and n.endswith("/data")}
    assert set(manifest["files"]) == names - outside
    assert {"metrics/sam/30.jsonl", "checkpoints/sgd/30/SHA256SUMS"} < set(manifest["files"])
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    assert (path / "DONE").read_text() == digest + "\n"
    assert workdir.verify(path) == []


def test_a_finished_run_is_read_by_many_and_changed_by_none(path):
    sealed(path)
    before = listing(path)
    with opened(path) as one, opened(path) as two:
        assert one.is_done and one.rows() == two.rows() and len(one.rows("sam")) == 6
        with pytest.raises(ValueError, match="sealed"):
            one.publish_arrays("sam", 1, "x", {})
    assert "another config" in refused(path, CONFIG | {"seeds": (3,)})
    assert listing(path) == before


def test_two_equal_runs_have_equal_results(path, monkeypatch):
    now = workdir.timestamp()
    monkeypatch.setattr(workdir.journal, "timestamp", lambda: now)
    monkeypatch.setattr(workdir, "timestamp", lambda: now)
    one, two = sealed(path / "one"), sealed(path / "two")
    names = {n for n in listing(one) if n not in ("lease", "manifest.json", "DONE")}
    for name in names:
        if (one / name).is_file():
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_every_flipped_byte_is_found(path):
    sealed(path)
    found = 0
    for name, content in listing(path).items():
        if not isinstance(content, bytes) or name == "lease":
            assert not content  # empty, now that nobody holds it
            continue
        for position in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[position] ^= 1
            (path / name).write_bytes(bytes(flipped))
            differences = workdir.verify(path)
            assert differences, (name, position)
            assert all("\n" not in line for line in differences)
            found += 1
        (path / name).write_bytes(content)
    assert found > 60 and workdir.verify(path) == []


def test_verify_says_what_is_wrong(path, tmp_path):
    sealed(path)

    def differences(change):
        copy = pathlib.Path(shutil.copytree(path, tmp_path / "copy"))
        change(copy)
        lines = workdir.verify(copy)
        shutil.rmtree(copy)
        return lines

    def link(copy):
        os.rename(copy / "arrays", copy / "figures" / "arrays")
        os.symlink(copy / "figures" / "arrays", copy / "arrays")

    arrays = sorted(n for n in listing(path) if n.endswith(".npz"))
    changes = [
        (lambda c: (c / "DONE").unlink(), ["DONE is missing: the run was not finished"]),
        (lambda c: (c / "manifest.json").unlink(), ["manifest.json is missing"]),
        (lambda c: (c / "derived.json").unlink(), ["derived.json is missing or damaged"]),
        (lambda c: (c / "results.jsonl").unlink(), ["results.jsonl is missing"]),
        (lambda c: (c / "notes.txt").write_text(""), ["notes.txt is listed nowhere"]),
        (lambda c: (c / "report.md").unlink(), ["report.md is missing"]),
        (lambda c: (c / "report.html").write_text(""), ["report.html is listed nowhere"]),
        (
            lambda c: (c / "arrays" / "sam" / "5" / "x.npz").write_bytes(b""),
            [f"arrays/sam/5/x.npz has 0 bytes instead of {(path / arrays[0]).stat().st_size}"],
        ),
        (
            lambda c: (c / "checkpoints" / "sam" / "30" / "state" / "data").write_bytes(b""),
            ["checkpoints/sam/30: state/data differs from its SHA-256"],
        ),
        (
            lambda c: (c / "checkpoints" / "sam" / "30" / "more").write_bytes(b""),
            ["checkpoints/sam/30: more is listed nowhere"],
        ),
        (
            lambda c: (c / "checkpoints" / "sam" / "20").write_bytes(b""),
            ["checkpoints/sam/20 is listed nowhere"],
        ),
        (
            link,
            ["arrays is a link"]
            + [f"{name} is missing" for name in arrays]
            + [f"figures/{name} is listed nowhere" for name in arrays],
        ),
        (lambda c: (c / "lease").unlink(), []),
        (lambda c: (c / "exploratory").mkdir(), []),
    ]
    for change, expected in changes:
        assert differences(change) == expected
    assert workdir.verify(path) == []


def test_a_damaged_seal_is_one_line_at_the_door(path):
    sealed(path)
    for name, words in (
        ("manifest.json", "manifest.json differs from the SHA-256 in DONE"),
        ("results.jsonl", "results.jsonl differs from its SHA-256"),
        ("DONE", "manifest.json differs from the SHA-256 in DONE"),
    ):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        before = listing(path)
        message = refused(path)
        assert f"workdir '{path}' is damaged: {words}. " in message and "DONE" in message
        assert listing(path) == before
        (path / name).write_bytes(content)
    (path / "manifest.json").unlink()
    assert "manifest.json is missing" in refused(path)
    # The way out that the message names.
    (path / "DONE").unlink()
    with opened(path) as run:
        assert len(run.rows()) == 12
        run.seal({})
    assert workdir.verify(path) == []


def test_a_kill_while_sealing_is_sealed_again(path, monkeypatch):
    with opened(path) as run:
        fill(run)
        with monkeypatch.context() as patch:
            patch.setattr("sharpjax.workdir.seal.write_derived", lambda folder: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.seal({})
        assert not run.is_done
    with opened(path) as run:
        assert not run.is_done and len(run.rows()) == 6
        run.seal({})
    assert workdir.verify(path) == []


def test_the_manifest_is_strict(path):
    with opened(path) as run:
        for extra in ({"files": {}}, {"loss": float("nan")}):
            with pytest.raises(ValueError):
                run.seal(extra)
        assert not (path / "DONE").exists()


# An object store, which has neither locks nor renames.


def test_a_run_on_an_object_store(object_store, path):
    where = "gs://bucket/runs/sam"

    def names():
        return {str(p).removeprefix("/bucket/runs/sam/") for p in object_store.store}

    with opened(where) as run:
        assert names() == {"config.json", "overrides.json", "lease"}
        fill(run)
        assert len(run.rows()) == 6 and "metrics/sam/growing.jsonl" not in names()
    assert "lease" not in names()
    assert "another config" in refused(where, CONFIG | {"seeds": (3,)})
    with opened(where) as run:
        # Rows of the growing segment are lost with their process, and made again.
        assert [r["step"] for r in run.rows()] == [5, 10, 15, 20]
        run.discard_after("sam", 10)
        assert [r["step"] for r in run.rows()] == [5, 10]
        assert "arrays/sam/15/x.npz" not in names()
        for step in range(15, 31, 5):
            run.publish_arrays("sam", step, "x", {"value": np.full(2, step)})
            run.append("sam", [row("sam", step)])
        folder = run.path / "checkpoints" / "sam" / "30"
        (folder / "data").write_bytes(b"weights")
        workdir.write_sums(folder)
        run.seal({})
    assert workdir.verify(where) == []
    with opened(where) as run:
        assert run.is_done and len(run.rows()) == 6
    with opened(path) as run:
        fill(run)
        run.seal({})
    disk = (path / "results.jsonl").read_bytes()
    assert object_store.cat("gs://bucket/runs/sam/results.jsonl") == disk
    object_store.pipe("gs://bucket/runs/sam/checkpoints/sam/30/data", b"other")
    assert workdir.verify(where) == ["checkpoints/sam/30: data differs from its SHA-256"]
    object_store.pipe("gs://bucket/thesis/a.tex", b"x")
    assert "holds a.tex but no config.json" in refused("gs://bucket/thesis")


def test_two_runs_at_once_on_an_object_store(object_store, monkeypatch):
    where = "gs://bucket/run"
    with opened(where):
        assert f"in use by process {os.getpid()} on " in refused(where)
    with opened(where):
        # One that died: its object stays until it expires.
        other = json.loads(object_store.cat(f"{where}/lease"))
    object_store.pipe(f"{where}/lease", json.dumps(other).encode())
    assert "in use" in refused(where)
    object_store.pipe(f"{where}/lease", json.dumps(other | {"expires": time.time() - 1}).encode())
    with opened(where):
        pass
    # Two that start at once: the later writer has it.
    settled = threading.Event()

    def overtaken(seconds):
        if not settled.is_set():
            object_store.pipe(f"{where}/lease", json.dumps(other).encode())

    monkeypatch.setattr(lease.time, "sleep", overtaken)
    assert "in use" in refused(where)


def test_a_lease_is_renewed_and_its_loss_stops_the_writer(object_store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    where = "gs://bucket/run"

    def current():
        return json.loads(object_store.cat(f"{where}/lease"))

    def wait_until(condition):
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.01)
        pytest.fail("nothing happened for ten seconds")

    with opened(where) as run:
        first = current()
        wait_until(lambda: current()["expires"] > first["expires"])
        assert current()["token"] == first["token"]
        run.append("sam", [row("sam", 1)])
        stolen = first | {"token": "another"}
        wait_until(
            lambda: object_store.pipe(f"{where}/lease", json.dumps(stolen).encode()) or lost(run)
        )
        with pytest.raises(RunFailed, match="lease could not be renewed"):
            run.publish_segment("sam", 1)
    assert current() == stolen
    assert not object_store.exists(f"{where}/metrics")


def lost(run):
    try:
        run.append("sam", [])
    except RunFailed:
        return True
    return False


def test_a_lease_that_cannot_be_renewed_expires(object_store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    where = "gs://bucket/run"
    with opened(where) as run:
        monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.2)

        def offline(path):
            raise ConnectionError("no network")

        time.sleep(0.1)
        monkeypatch.setattr(lease, "_read", offline)
        for _ in range(1000):
            if lost(run):
                break
            time.sleep(0.01)
        assert lost(run)


# What is added to a finished run.


def test_later_measures_are_added_and_never_replaced(path):
    folder = files.epath.Path(sealed(path))
    before = listing(path)
    workdir.add(folder, {"more/rows.jsonl": b"", "more/x.json": b"{}"})
    after = listing(path)
    assert {n for n in after if after[n] != before.get(n)} - {
        "exploratory",
        "exploratory/more",
    } == {
        "exploratory/more/rows.jsonl",
        "exploratory/more/x.json",
        "derived.json",
    }
    assert workdir.verify(path) == []
    with pytest.raises(UserError, match=r"more/x.json is there; give another --name"):
        workdir.add(folder, {"more/y.json": b"", "more/x.json": b"[]"})
    assert listing(path) == after
    (path / "exploratory" / "more" / "x.json").write_bytes(b"[]")
    assert workdir.verify(path) == ["exploratory/more/x.json differs from its SHA-256"]
    (path / "exploratory" / "more" / "x.json").unlink()
    assert workdir.verify(path) == ["exploratory/more/x.json is missing"]


def test_new_reports_do_not_seal_damage_elsewhere(path):
    folder = files.epath.Path(sealed(path))
    (path / "figures" / "curves.png").write_bytes(b"forged")
    workdir.replace_reports(folder, {"report.md": b"new", "report.html": b"page"})
    assert (path / "report.md").read_bytes() == b"new"
    assert workdir.verify(path) == ["figures/curves.png differs from its SHA-256"]
    workdir.write_derived(folder)  # that is what who makes the figures again calls
    assert workdir.verify(path) == []
    with pytest.raises(ValueError, match="no reports"):
        workdir.replace_reports(folder, {"config.json": b""})


def test_amendments_grow_beside_the_seal(path):
    folder = files.epath.Path(sealed(path))
    for line in (b"one\n", b"two\n"):
        workdir.append_amendment(folder, lambda there, line=line: there + line)
        assert workdir.verify(path) == []
    assert (path / "amendments.jsonl").read_bytes() == b"one\ntwo\n"
    (path / "amendments.jsonl").write_bytes(b"one\n")
    assert workdir.verify(path) == ["amendments.jsonl differs from its SHA-256"]

    def refuse(there):
        raise UserError("a broken chain")

    before = listing(path)
    with pytest.raises(UserError, match="a broken chain"):
        workdir.append_amendment(folder, refuse)
    assert listing(path) == before


def test_nothing_is_added_while_a_run_is_under_way(path):
    with opened(path) as run:
        before = listing(path)
        with pytest.raises(UserError, match="is in use by process"):
            workdir.add(run.path, {"more/rows.jsonl": b""})
        assert listing(path) == before


def test_a_registration_is_sealed(path):
    with opened(path) as run:
        workdir.publish(run.path / "registration.json", b"{}")
        run.seal({})
    assert "registration.json" in json.loads((path / "manifest.json").read_text())["files"]
    assert workdir.verify(path) == []
    (path / "registration.json").write_bytes(b"[]")
    assert workdir.verify(path) == ["registration.json differs from its SHA-256"]
    assert set(seal.SEALED) & set(seal.LATER) == set()


def test_rows_of_other_types_are_not_written(path):
    with opened(path) as run:
        for wrong in ({"seed": "0"}, {"step": 1.0}, {"value": "1"}, {"value": True}, {"metric": 3}):
            with pytest.raises((ValueError, TypeError)):
                run.append("sam", [row("sam", 1) | wrong])
        assert run.rows() == []


def test_a_manifest_is_read_by_its_sum(path):
    folder = files.epath.Path(sealed(path))
    assert workdir.read_manifest(folder)["seconds"] == {"training": 1.5}
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes() + b" ")
    with pytest.raises(UserError, match="manifest.json differs from the SHA-256 in DONE"):
        workdir.read_manifest(folder)
    (path / "DONE").unlink()
    with pytest.raises(UserError, match="the run was not finished"):
        workdir.read_manifest(folder)
