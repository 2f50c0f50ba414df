"""States that stages leave for later ones: how they are stored, and found by reference."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.train import planning
from sharpjax.train.plan import Member, Plan, Ref, Subject, Train
from sharpjax.train.results import Row
from sharpjax.train.state import TrainState, fresh

STATE, BEST = "state", "best"
_STATE_FILE = re.compile(rf"({STATE}|{BEST})-\d")
_ABOUT = ("alive", "step")


def arrays_of(state: TrainState, step: int) -> dict[str, np.ndarray]:
    """A state as a file holds it: params and variables by name, `alive`, and the step."""
    tree = {"params": state.params, "variables": state.variables}
    about = {"alive": np.asarray(state.alive), "step": np.asarray(step, np.int64)}
    return {name: np.asarray(leaf) for name, leaf in _named(tree).items()} | about


def is_state(name: str) -> bool:
    """Whether a file holds a model, judged by its name in the folder of a run.

    >>> is_state("arrays/sam/8/best-3.npz"), is_state("arrays/sam/8/outputs.npz")
    (True, False)
    """
    folder, _, file = name.rpartition("/")
    return folder.startswith(f"{workdir.ARRAYS}/") and bool(_STATE_FILE.match(file))


def state_of(arrays: Mapping[str, np.ndarray], like: TrainState, where: str) -> TrainState:
    """The state that a file holds, without optimiser state and tally.

    Raises:
        UserError: its structure is not that of `like`.
    """
    tree = {"params": like.params, "variables": like.variables}
    names = list(_named(tree))
    leaves = jax.tree.leaves(tree)
    same = set(names) == set(arrays) - set(_ABOUT) and all(
        (arrays[name].shape, arrays[name].dtype) == (leaf.shape, leaf.dtype)
        for name, leaf in zip(names, leaves, strict=True)
    )
    if not same:
        raise UserError(f"{where} holds a state of another structure than its model has.")
    found = [jnp.asarray(arrays[name]) for name in names]
    tree = jax.tree.unflatten(jax.tree.structure(tree), found)
    state = fresh(tree["params"], tree["variables"], (), ())
    return dataclasses.replace(state, alive=jnp.asarray(arrays["alive"], bool))


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


class Library:
    """The results of a plan's stages in the folder of a run. `rows(arm)` gives an arm's rows."""

    def __init__(self, plan: Plan, folder: epath.Path, rows: Callable[[str], list[Row]]):
        self._plan, self._folder, self.rows = plan, folder, rows
        self._found = functools.lru_cache(maxsize=64)(self._find)

    def arrays(self, arm: str, name: str, member: Member) -> dict[str, np.ndarray]:
        """The arrays that evaluator `name` stored for a model at the end of its arm, if any."""
        return self._stored(self._path(Ref(arm, member.seed, member.of), name), member)

    def trajectory(self, arm: str, name: str, member: Member) -> dict[str, np.ndarray]:
        """The arrays that the evaluator `name` stored for a model at each step that it was due,
        with a leading axis of steps, and `step`, [S]; empty if there are none. A model that turned
        non-finite has no further steps. A derived model has one step.

        Raises:
            UserError: an array does not have the same shape at all steps.
        """
        found: dict[int, dict[str, np.ndarray]] = {}
        if isinstance(planning.arms(self._plan)[arm], Train):
            folder = self._folder / workdir.ARRAYS / arm
            names = [path.name for path in folder.iterdir()] if folder.exists() else []
            for step in sorted(int(n) for n in names if n.isascii() and n.isdecimal()):
                found[step] = self._stored(folder / str(step) / f"{name}.npz", member)
        else:
            found[planning.last_step(self._plan, arm)] = self.arrays(arm, name, member)
        found = {step: arrays for step, arrays in found.items() if arrays}
        if len({tuple((n, x.shape) for n, x in arrays.items()) for arrays in found.values()}) > 1:
            raise UserError(
                f"'{self._folder}': what '{name}' stored of arm '{arm}', member {member.key}, has "
                "not the same shape at all steps; read the steps one by one."
            )
        names = next(iter(found.values()), {})
        every = {n: np.stack([arrays[n] for arrays in found.values()]) for n in names}
        return every | ({"step": np.array(list(found))} if found else {})

    def state(self, ref: Ref) -> TrainState:
        """The state that a reference names. A state from before the first step is computed anew.

        Raises:
            UserError: it is missing, or its structure is not that of its model.
        """
        return self._found(ref)[0]

    def start(self, stage: Train, member: Member) -> TrainState:
        """The state of a member before its first step, with a fresh optimiser."""
        if member.start is not None:
            loaded = self.state(member.start)
        else:
            loaded = _initial(
                stage.step, planning.example_of(self._plan, stage), member.stream("init")
            )
        params = loaded.params
        if member.mask is not None:  # pruned weights start at 0 and stay 0
            mask = self.state(member.mask).params
            params = jax.tree.map(lambda w, m: jnp.where(m != 0, w, 0), params, mask)
        begun = stage.step.begin(params, loaded.variables)
        # A model that starts from a non-finite one takes no step.
        stopped_at = jnp.where(loaded.alive, begun.stopped_at, 0)
        return dataclasses.replace(begun, alive=loaded.alive, stopped_at=stopped_at)

    def subject(self, ref: Ref) -> Subject:
        """A state with its model and its origin."""
        state, step = self._found(ref)
        return self.seen(ref, step, state)

    def seen(
        self, ref: Ref, step: int, state: TrainState, source: Subject | None = None
    ) -> Subject:
        """A model in the form that evaluators and transforms get."""
        trained = planning.source_of(self._plan, ref.arm)
        member = planning.origin(self._plan, ref)
        taught = member.teacher.refs if member.teacher else ()
        return Subject(
            seed=ref.seed,
            of=ref.of,
            step=step,
            model=trained.step.model,
            state=state,
            at=lambda which: self.state(Ref(trained.arm, member.seed, member.of, which)),
            teacher=self.subject(taught[0]) if taught else None,
            source=source,
        )

    def _stored(self, file: epath.Path, member: Member) -> dict[str, np.ndarray]:
        found, prefix = workdir.load_arrays(file) if file.exists() else {}, f"{member.key}."
        return {n.removeprefix(prefix): x for n, x in found.items() if n.startswith(prefix)}

    def _find(self, ref: Ref) -> tuple[TrainState, int]:
        """A state, and the number of steps that it was trained for."""
        trained = planning.source_of(self._plan, ref.arm)
        if ref.at == "start":
            return self.start(trained, planning.origin(self._plan, ref)), 0
        example = planning.example_of(self._plan, trained)
        like = jax.eval_shape(lambda: trained.step.init(example, jax.random.key(0)))
        kind, key = BEST if ref.at == "best" else STATE, Member(ref.seed, ref.of).key
        path = self._path(ref, f"{kind}-{key}")
        if not path.exists():
            raise UserError(
                f"'{self._folder}' holds no state {ref.at!r} of arm '{ref.arm}', member {key}."
            )
        arrays = workdir.load_arrays(path)
        return state_of(arrays, like, str(path)), int(arrays["step"])

    def _path(self, ref: Ref, name: str) -> epath.Path:
        """The file of a model: in the folder of its step, or of its number in a derived arm."""
        if isinstance(planning.arms(self._plan)[ref.arm], Train):
            last = planning.last_step(self._plan, ref.arm)
            place = ref.at if isinstance(ref.at, int) else last
        else:
            place = planning.number(self._plan, ref)
        return self._folder / workdir.ARRAYS / ref.arm / str(place) / f"{name}.npz"


@functools.partial(jax.jit, static_argnums=0)
def _initial(step: Any, example: jax.Array, key: jax.Array) -> TrainState:
    return step.init(example, key)
