"""Whole runs through the command line: what they leave, and what stops them."""

import json
import os
import re
import signal

import pytest

from sharpjax import workdir
from tests.commands import assert_one_line, launch, read_rows, start_until

# One arm, small enough to run often: an MLP whose two seeds train as one array program, or a
# convolutional net whose seeds take turns on CPU.
TINY = """
from configs import sam_cifar

def get_config(model="mlp"):
    config = sam_cifar.get_config("smoke")
    config.arms = {"sam": {}}
    config.model = {"name": model, "width": 4, "dtype": "float32"}
    config.train.epochs = 6
    config.evaluate.geometry.update(
        {"every_epochs": 3, "num_sets": 1, "max_products": 6, "max_probes": 4}
        | {"microbatch_size": 64, "adaptive_m": 64}  # what compiles fast
    )
    return config
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return f"--config={path}"


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run of each kind, by the model's name."""
    folders = {}
    for model in ("mlp", "small_conv"):
        folders[model] = tmp_path_factory.mktemp("whole") / model
        done = launch(f"{tiny}:{model}", f"--workdir={folders[model]}")
        assert done.returncode == 0, done.stderr
    return folders


def outcome(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["arms"], (folder / "results.jsonl").read_bytes()


def wait_for(process, pattern):
    """Read the output up to the first line that matches."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError(f"no line matched {pattern}:\n{''.join(lines)}")


def test_the_smoke_form_end_to_end(tmp_path):
    folder = tmp_path / "run"
    command = ("--config=configs/sam_cifar.py:smoke", f"--workdir={folder}")
    done = launch(*command, XLA_FLAGS="")  # compiled as for a user
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    line = next(x for x in done.stdout.splitlines() if "train[:64]/hessian/lambda_1 " in x)
    assert line.count("±") == line.count("(2)") == 3
    assert "over 2 disjoint measurement sets" in done.stdout
    assert done.stdout.count("SmallConv(num_classes=10, width=4): 1,626 parameters") == 1
    assert re.search(
        r"training \d+%, evaluation \d+%, geometry \d+%, checkpoints \d+%", done.stdout
    )

    assert workdir.verify(folder) == []
    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.json", "overrides.json", "manifest.json", "derived.json", "DONE"}
    assert names >= {"metrics", "results.jsonl", "checkpoints", "figures", "environment.json"}
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "curves.png",
        "stability.png",
        "sharpness_accuracy.png",
        "captions.json",
    }
    rows = read_rows(folder)
    metrics = {row["metric"] for row in rows if row["arm"] == "sam"}
    assert metrics >= {"test/accuracy", "test/nll", "test/ece", "train/sam/cosine"}
    quantities = (
        "hessian/lambda_1",
        "hessian/lambda_1_residual",
        "hessian/trace",
        "directional_curvature",
        "adaptive_sharpness",
        "sam_sharpness",
        "gradient_norm",
    )
    assert metrics >= {f"train[:64]/{q}" for q in quantities}
    assert metrics >= {f"train[64:128]/{q}" for q in quantities}
    assert {row["seed"] for row in rows} == {0, 1}
    last = {row["arm"]: row["step"] for row in sorted(rows, key=lambda row: row["step"])}
    assert last == {"sgd": 8, "sam": 8, "sgd_2x": 16}
    trace = [r for r in rows if r["metric"] == "train[:64]/hessian/trace"]
    assert all(r["standard_error"] > 0 for r in trace)

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["digits"]["digests"].keys() == {"train", "test"}
    assert manifest["arm_order"] == ["sam", "sgd", "sgd_2x"]
    assert manifest["seconds_of_last_process"]["geometry"] > 0
    starts = [arm["params_at_start"] for arm in manifest["arms"].values()]
    assert starts[0] == starts[1] == starts[2]  # arms of one seed start at the same weights
    assert manifest["arms"]["sam"]["params_at_end"] != manifest["arms"]["sgd"]["params_at_end"]

    again = launch(*command)
    assert again.returncode == 0 and "is complete; nothing to run" in again.stdout
    assert (
        again.stdout.splitlines()[1:]
        == done.stdout.splitlines()[-len(again.stdout.splitlines()) + 1 :]
    )


def finish(command, folder, whole):
    """Let the run end: its last process, and the numbers of the one that nothing stopped."""
    done = launch(*command)
    assert done.returncode == 0, done.stderr
    assert outcome(folder) == outcome(whole)
    assert workdir.verify(folder) == []
    for step in ("4", "12", "20", "24"):  # of parameters, by whichever process reached the step
        name = f"arrays/sam/{step}/params_sha256.npz"
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    return done


def outcomes(folder):
    processes = json.loads((folder / "processes.json").read_text())
    return [process["outcome"] for process in processes]


# Where each process of one run is killed: as it compiles, by a checkpoint, between evaluation and
# checkpoint, and by the end. Each goes on from what the one before has left.
KILLS = {
    "mlp": ("compiling", r"step 4/24", r"step 12/24 +train/loss", r"step 20/24"),
    "small_conv": (r"step 8/24",),
}


@pytest.mark.parametrize("model", KILLS)
def test_a_killed_run_ends_as_if_it_had_not_been(model, tiny, whole, tmp_path):
    folder = tmp_path / "run"
    command = (f"{tiny}:{model}", f"--workdir={folder}")
    for pattern in KILLS[model]:
        with start_until(pattern, *command) as process:
            wait_for(process, pattern)
            if pattern == "compiling":
                second = launch(*command)
                assert_one_line(second, 2, str(folder), "in use")
            process.kill()
        assert not (folder / "DONE").exists()
    finish(command, folder, whole[model])
    *killed, last = outcomes(folder)
    written = [pattern for pattern in KILLS[model] if pattern != "compiling"]  # it wrote nothing
    assert last == "finished" and killed == ["killed"] * len(written)


def stop(command, pattern, signum):
    """Send a signal at the first line that matches; what was said before and after."""
    with start_until(pattern, *command) as process:
        before = wait_for(process, pattern)
        # It says the line before it stops: a SIGCONT that came first would be lost.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        process.send_signal(signum)
        process.send_signal(signal.SIGCONT)
        after = process.stdout.read()
    assert process.returncode == 128 + signum
    assert re.search(r"sam: stopped and saved at step \d+; the same command goes on", after)
    assert "Traceback" not in after
    return before


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_newest(folder, damage):
    """Damage the largest file of the newest checkpoint; its step."""
    steps = folder / "checkpoints" / "sam"
    sound = [p for p in steps.iterdir() if p.name.isdecimal() and not workdir.damage(p)]
    newest = max(sound, key=lambda p: int(p.name))
    files = [p for p in newest.rglob("*") if p.is_file() and p.name != "SHA256SUMS"]
    damage(max(files, key=lambda p: p.stat().st_size))
    return newest.name


def assert_fell_back(said, step):
    assert f"checkpoint {step} is damaged" in said
    assert "falling back" in said


def test_a_stopped_run_goes_on_even_from_damaged_checkpoints(tiny, whole, tmp_path):
    """One run in four processes: each stop says so, and each damage is said and gone round."""
    folder = tmp_path / "run"
    command = (f"{tiny}:mlp", f"--workdir={folder}")
    stop(command, "step 8/24", signal.SIGINT)
    said = stop(command, "step 16/24", signal.SIGTERM)
    assert "going on from step" in said and "damaged" not in said
    damaged = damage_newest(folder, damage_flip)
    said = stop(command, "step 20/24", signal.SIGTERM)
    assert_fell_back(said, damaged)
    damaged = damage_newest(folder, damage_truncate)
    done = finish(command, folder, whole["mlp"])
    assert_fell_back(done.stdout, damaged)
    assert outcomes(folder) == ["stopped"] * 3 + ["finished"]
    processes = json.loads((folder / "processes.json").read_text())
    assert all(process["seconds"]["total"] > 0 for process in processes)


def test_every_seed_non_finite(tiny, tmp_path):
    done = launch(f"{tiny}:mlp", f"--workdir={tmp_path}", "--config.optim.learning_rate=1e30")
    assert_one_line(done, 1, "arm 'sam'", "every seed", "non-finite", "between steps")
    assert not (tmp_path / "DONE").exists()


def test_the_workdir_of_another_config(tiny, whole):
    before = outcome(whole["mlp"])
    done = launch(f"{tiny}:mlp", f"--workdir={whole['mlp']}", "--config.optim.rho=.2")
    assert_one_line(done, 2, "optim.rho is 0.05 there and 0.2 here")
    assert outcome(whole["mlp"]) == before


def test_a_foreign_or_unwritable_workdir(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    done = launch(f"{tiny}:mlp", f"--workdir={tmp_path}")
    assert_one_line(done, 2, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    done = launch(f"{tiny}:mlp", f"--workdir={tmp_path / 'thesis.tex' / 'run'}")
    assert_one_line(done, 2, "thesis.tex")
    done = launch(f"{tiny}:mlp", "--workdir=/proc/run")
    assert_one_line(done, 2, "/proc/run")


def test_an_unknown_leaf(tiny, tmp_path):
    done = launch(
        f"{tiny}:mlp", f"--workdir={tmp_path}", "--config.evaluate.geometry.where=Conv_9/*"
    )
    assert_one_line(done, 2, "Conv_9/*", "nearest", "path_names")


def test_prepared_data_that_are_damaged(tiny, tmp_path):
    version = tmp_path / "data" / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{")  # and nothing else
    done = launch(
        f"{tiny}:mlp",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.name=mnist",
        f"--config.data.data_dir={tmp_path / 'data'}",
    )
    assert_one_line(done, 2, str(version), "cannot be read", "delete that folder")
    assert (version / "dataset_info.json").read_text() == "{"


def test_rows_are_those_of_the_uninterrupted_run(whole):
    rows = read_rows(whole["mlp"])
    assert {r["step"] for r in rows if r["metric"] == "test/accuracy"} == {4, 8, 12, 16, 20, 24}
    curvature = [r for r in rows if r["metric"] == "train[:64]/hessian/lambda_1"]
    assert {r["step"] for r in curvature} == {12, 24}
    assert len(curvature) == 4 and len({r["value"] for r in curvature}) == 4
