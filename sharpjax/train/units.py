"""Stages that train nothing, done unit by unit: each unit is published whole, or done again.

A unit is a derived model, a measure that compares arms, or a drawn seed. The number of a unit names
the segment of its rows and the folder of its arrays. A run that was killed goes on with the first
unit that was not published.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sharpjax import runtime
from sharpjax.data import Splits
from sharpjax.errors import UserError
from sharpjax.train import planning
from sharpjax.train.library import STATE, arrays_of
from sharpjax.train.plan import Compare, Derive, Draw, Member, Plan, Ref, Subject
from sharpjax.train.results import Of, Results, Row, exact, joined, row, rows_of
from sharpjax.train.state import TrainState
from sharpjax.train.streams import stream
from sharpjax.train.task import Setting


def derive(setting: Setting, stage: Derive) -> None:
    """Makes the models of a derived arm, and measures each.

    Raises:
        UserError: the transform returns other models than `stage.outputs` names, or a state of
            another structure.
    """
    done, each = setting.run.resume_units(stage.arm), len(stage.outputs)
    for i, member in enumerate(planning.members(setting.plan, stage.source)):
        if (i + 1) * each <= done:
            continue
        ref = Ref(stage.source, member.seed, member.of, stage.at)
        source = setting.library.subject(ref)
        for number, (of, state) in enumerate(_made(stage, source), i * each):
            if number >= done:
                own = Ref(stage.arm, member.seed, joined(member.of, of))
                with setting.interrupt.abortable():
                    rows = _derived(setting, own, source, state, number)
                setting.run.publish_unit(stage.arm, number, rows)
                setting.progress.report(f"{stage.arm}  model {Member(own.seed, own.of).key}")
    number = len(planning.members(setting.plan, stage.arm))
    setting.say(f"{stage.arm}: {number} models made of {stage.source}")


def _made(stage: Derive, source: Subject) -> Iterator[tuple[Of, TrainState]]:
    """The models that the transform makes of one model. A non-finite source, or a result that is
    not finite, is marked as not alive."""
    if not bool(source.state.alive):
        yield from ((of, source.state) for of in stage.outputs)
        return
    found = stage.transform(source, stream(source.seed, f"derive/{stage.arm}"))
    for expected, one in itertools.zip_longest(stage.outputs, found):
        if one is None or one[0] != expected:
            raise UserError(
                f"plan: the transform of arm '{stage.arm}' gives {one and one[0]} where "
                f"Derive.outputs names {expected}."
            )
        there, here = ((s.params, s.variables) for s in (source.state, one[1]))
        if _shapes(there) != _shapes(here):
            raise UserError(
                f"plan: the transform of arm '{stage.arm}' returns a state of another structure."
            )
        alive = one[1].alive & all(np.isfinite(x).all() for x in jax.tree.leaves(here))
        yield one[0], dataclasses.replace(one[1], alive=alive)


def _derived(
    setting: Setting, own: Ref, source: Subject, state: TrainState, number: int
) -> list[Row]:
    """Stores and measures one derived model. If it is not finite, only this fact is a row."""
    stage, key = planning.arms(setting.plan)[own.arm], Member(own.seed, own.of).key
    assert isinstance(stage, Derive)
    step, publish = planning.last_step(setting.plan, own.arm), setting.run.publish_arrays
    if planning.kept(setting.plan, own.arm):
        publish(own.arm, number, f"{STATE}-{key}", arrays_of(state, source.step))
    if not bool(state.alive):
        dead = Results({("train/alive", ()): exact(False)})
        return list(rows_of(setting.study, own.arm, own.seed, step, dead, own.of))
    subject = setting.library.seen(own, source.step, state, source)
    splits = setting.split(planning.source_of(setting.plan, own.arm).data, own.seed)
    rows = []
    for evaluator in stage.evaluators:
        draw = jax.random.fold_in(stream(own.seed, f"evaluate/{evaluator.name}"), source.step)
        with setting.progress.timed(evaluator.kind):
            _, found = evaluator(evaluator.init(subject, splits), subject, splits, draw)
        rows += rows_of(setting.study, own.arm, own.seed, step, found, own.of)
        if found.arrays:
            arrays = {f"{key}.{name}": array for name, array in found.arrays.items()}
            publish(own.arm, number, evaluator.name, arrays)
    return rows


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


class _View:
    """`plan.View` of a run's folder."""

    def __init__(self, setting: Setting, stage: Compare):
        self._setting, self._stage = setting, stage

    def members(self, arm: str) -> tuple[Member, ...]:
        return planning.members(self._plan(arm), arm)

    def rows(self, arm: str) -> list[Row]:
        self._plan(arm)
        return self._setting.library.rows(arm)

    def arrays(self, arm: str, name: str, member: Member) -> Mapping[str, np.ndarray]:
        self._plan(arm)
        return self._setting.library.arrays(arm, name, member)

    def trajectory(self, arm: str, name: str, member: Member) -> Mapping[str, np.ndarray]:
        self._plan(arm)
        return self._setting.library.trajectory(arm, name, member)

    def data(self, arm: str, member: Member) -> Splits:
        return self._setting.split(planning.source_of(self._plan(arm), arm).data, member.seed)

    def _plan(self, arm: str) -> Plan:
        if arm not in self._stage.reads:
            raise UserError(
                f"plan: '{self._stage.name}' looks at arm '{arm}', which it does not read."
            )
        return self._setting.plan


def compare(setting: Setting, stage: Compare) -> None:
    """Takes the measures of a stage that compares arms."""
    done = setting.run.resume_units(stage.name)
    view = _View(setting, stage)
    for number, measure in enumerate(stage.measures):
        if number < done:
            continue
        with setting.interrupt.abortable(), setting.progress.timed("comparison"):
            rows = [
                row(
                    setting.study, arm, member.seed, planning.last_step(setting.plan, arm),
                    metric, estimate, joined(member.of, of),
                )
                for arm, member, metric, of, estimate in measure(view)
            ]  # fmt: skip
        if strangers := {r["arm"] for r in rows} - set(stage.reads):
            raise UserError(
                f"plan: '{stage.name}' gives rows of '{min(strangers)}', an arm it does not read."
            )
        setting.run.publish_unit(stage.name, number, rows)
    setting.say(f"{stage.name}: {len(stage.measures)} measures of {', '.join(stage.reads)}")


def draw(setting: Setting, stage: Draw) -> None:
    """Draws the seeds that are still missing."""
    done = setting.run.resume_units(stage.arm)
    left = stage.seeds[done:]
    with _mapper(min(runtime.cores(), len(left)) if stage.parallel else 1) as mapped:
        with setting.progress.timed("drawing", len(left)):
            each = zip(left, mapped(stage.fn, left), strict=True)
            for number, (seed, found) in enumerate(each, done):
                setting.interrupt.check()
                rows = [
                    row(setting.study, stage.arm, seed, 0, metric, exact(value), of)
                    for (metric, of), value in found.items()
                ]
                setting.run.publish_unit(stage.arm, number, rows)
    setting.say(f"{stage.arm}: {stage.says or f'{len(stage.seeds)} seeds'}")


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Any]]:
    """A `map` that keeps the order, over separate processes; the built-in one for one worker."""
    if workers <= 1:
        yield map
        return
    # Not forked: jax has started threads, and a forked child could wait for them forever.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_be_a_worker
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _be_a_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends when the parent ends, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
