"""Checkpoints come back to the bit, or are not believed."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from sharpjax import tree
from sharpjax.driver import checkpoint
from sharpjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    opt_state: Any
    alive: jax.Array


class Saved(NamedTuple):
    population: Any
    carries: dict[str, list[Any]]
    settled: jax.Array


def state(number):
    params = {
        "Dense_0": {"kernel": jnp.arange(12.0).reshape(3, 4) / 7 + number, "bias": jnp.ones(4)},
        "empty": {},
        "half": jnp.full(3, 1 / 3 + number, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.sgd(optax.constant_schedule(0.1), momentum=0.9))
    return State(params, optimizer.init(params), jnp.asarray(number % 2 == 0))


def saved(number, mode="loop"):
    """What a run keeps: seeds as a tuple or as lanes over four devices, and carries."""
    members = [state(number + i) for i in range(4)]
    if mode == "loop":
        population = tuple(members[:2])
    else:
        mesh = jax.make_mesh((4,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
        population = jax.device_put(tree.stack(members), jax.NamedSharding(mesh, jax.P("seed")))
    carries = {
        "test": [(), ()],
        "train[:64]": [{"start": jnp.ones(3) * number, "key": jax.random.key(number)}, None],
    }
    return Saved(population, carries, jnp.ones((), bool))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert tree.digest(a) == tree.digest(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.sharding == y.sharding


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "checkpoints" / "sam")


@pytest.fixture
def said():
    return []


def save(folder, *steps, mode="loop"):
    with checkpoint.opened(folder, print) as checkpoints:
        for step in steps:
            checkpoints.save(step, saved(step, mode))


def restore(folder, said, mode="loop"):
    with checkpoint.opened(folder, said.append) as checkpoints:
        return checkpoints.restore(saved(0, mode)) or (None, None)


def steps(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("mode", ["loop", "lanes"])
def test_a_state_comes_back_to_the_bit_and_to_its_place(folder, said, mode):
    assert restore(folder, said, mode) == (None, None)
    save(folder, 7, mode=mode)
    step, restored = restore(folder, said, mode)
    assert step == 7 and said == []
    assert_same(restored, saved(7, mode))


def test_the_last_two_are_kept_and_a_step_can_be_written_again(folder, said):
    save(folder, 0, 5, 10)
    assert steps(folder) == ["10", "5"]
    with checkpoint.opened(folder, said.append) as checkpoints:
        checkpoints.save(10, saved(11))
    assert steps(folder) == ["10", "5"]
    step, restored = restore(folder, said)
    assert step == 10 and said == []
    assert_same(restored, saved(11))


def test_sums_are_what_sha256sum_reads(folder):
    save(folder, 5)
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder / "5")
    assert done.returncode == 0


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"flipped": flip, "truncated": truncate, "missing": lambda path: path.unlink()}


def test_any_damage_to_any_file_falls_back_and_says_so(folder, said, tmp_path):
    save(folder, 5, 10)
    files = [p for p in pathlib.Path(folder / "10").rglob("*") if p.is_file() and p.stat().st_size]
    names = [p.relative_to(folder / "10") for p in files]
    assert {pathlib.Path(n) for n in ("SHA256SUMS", "structure.json")} < set(names)
    assert len(names) > 6
    for number, name in enumerate(names):
        damage = list(DAMAGES)[number % 3]
        copy = epath.Path(shutil.copytree(folder, tmp_path / str(number) / "sam"))
        DAMAGES[damage](copy / "10" / name)
        said.clear()
        checkpoint._remove_damaged(copy, said.append)
        assert len(said) == 1, (damage, name)
        assert said[0].startswith("sam: checkpoint 10 is damaged (")
        assert said[0].endswith("): falling back to checkpoint 5")
        assert steps(copy) == ["5"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_restored(folder, said, damage):
    save(folder, 5, 10)
    largest = max(
        (p for p in pathlib.Path(folder / "10" / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    DAMAGES[damage](largest)
    step, restored = restore(folder, said)
    assert step == 5 and len(said) == 1
    assert_same(restored, saved(5))
    save(folder, 10)
    assert restore(folder, said)[0] == 10 and len(said) == 1


def test_a_stray_file_or_a_link_is_damage(folder, said):
    save(folder, 5, 10)
    (folder / "10" / "notes.txt").write_text("x")
    file = folder / "5" / "structure.json"
    os.rename(file, folder / "structure.json")
    os.symlink(folder / "structure.json", file)
    assert restore(folder, said) == (None, None)
    assert said == [
        "sam: checkpoint 10 is damaged (notes.txt is listed nowhere): there is no other",
        "sam: checkpoint 5 is damaged (structure.json is a link): there is no other",
    ]


def test_an_older_one_half_removed_changes_nothing(folder, said):
    save(folder, 5, 10)
    (folder / "5" / "SHA256SUMS").unlink()
    assert restore(folder, said)[0] == 10
    assert len(said) == 1 and said[0].endswith("it is removed, and checkpoint 10 is newer")
    assert steps(folder) == ["10"]


def test_all_damaged_is_none_and_the_run_starts_anew(folder, said):
    save(folder, 5, 10)
    for step in ("5", "10"):
        (folder / step / "SHA256SUMS").unlink()
    assert restore(folder, said) == (None, None)
    assert [line.split(":")[1] for line in said] == [
        " checkpoint 10 is damaged (SHA256SUMS is missing)",
        " checkpoint 5 is damaged (SHA256SUMS is missing)",
    ]
    save(folder, 0)
    assert restore(folder, said)[0] == 0


def test_another_structure_is_one_line_and_nothing_is_lost(folder, said):
    save(folder, 5)
    like = saved(0)
    member = like.population[0]
    params = {**member.params, "Dense_0": {"kernel": jnp.ones((3, 5)), "scale": jnp.ones(4)}}
    other = like._replace(
        population=(dataclasses.replace(member, params=params), like.population[1]),
        carries={**like.carries, "more": [()]},
    )
    with checkpoint.opened(folder, said.append) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(other)
        with pytest.raises(UserError, match="population/0/alive"):
            checkpoints.restore(saved(0, "lanes"))
    assert restore(folder, said)[0] == 5
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and str(folder / "5") in message
    for words in (
        'carries/more is not there and "list" here',
        'population/0/params/Dense_0/kernel is "float32[3, 4]" there and "float32[3, 5]" here',
        "--workdir",
    ):
        assert words in message, message


def test_leaves_that_would_come_back_as_others_are_refused(folder):
    with checkpoint.opened(folder, print) as checkpoints:
        with pytest.raises(ValueError, match="'x' is ndarray"):
            checkpoints.save(0, {"x": np.ones(3)})
        with pytest.raises(ValueError, match="'y/0' is a weakly typed array"):
            checkpoints.save(0, {"y": [jnp.asarray(1.0)]})
        assert checkpoints.restore({"x": jnp.ones(3)}) is None


KILLED = """
    import os, signal, sys
    sys.path[:0] = [{root!r}, {tests!r}]
    import conftest, test_checkpoint
    from etils import epath
    from sharpjax.driver import checkpoint

    def kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_at_commit(old, new, rename=os.rename, **options):
        return kill() if str(new).endswith("/10") else rename(old, new, **options)

    with checkpoint.opened(epath.Path(sys.argv[1]), print) as checkpoints:
        checkpoints.save(5, test_checkpoint.saved(5))
        if sys.argv[2] == "while it is replaced":
            checkpoints.save(10, test_checkpoint.saved(9))
        if sys.argv[2] == "before the sums are written":
            checkpoints._write_sums = kill
        else:
            os.rename = kill_at_commit
        checkpoints.save(10, test_checkpoint.saved(10))
"""


@pytest.mark.parametrize(
    "moment", ["before Orbax is done", "before the sums are written", "while it is replaced"]
)
def test_a_kill_in_mid_save_leaves_the_one_before(folder, said, moment):
    code = textwrap.dedent(KILLED).format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code, folder, moment], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(steps(folder)) == 2
    step, restored = restore(folder, said)
    assert step == 5
    assert_same(restored, saved(5))
    assert len(said) == (moment == "before the sums are written")
    assert steps(folder) == ["5"]


QUIET = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    import conftest, test_checkpoint
    from absl import app
    from etils import epath

    def main(argv):
        folder = epath.Path(argv[1])
        test_checkpoint.save(folder, 0, 5, 10)
        test_checkpoint.save(folder, 15, mode="lanes")
        assert test_checkpoint.restore(folder, [], "lanes")[0] == 15

    app.run(main)
"""


def test_nothing_is_printed_under_absl(folder):
    code = textwrap.dedent(QUIET).format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
