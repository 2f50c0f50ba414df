"""Print what a run would do, take and register, without doing it: `launch.py --dry_run`.

No step is trained, no data are loaded, no folder is made. Each distinct model is traced; the rest
is computed from shapes and from the plan.
"""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from sharpjax import flops, tree
from sharpjax.driver import checkpoint
from sharpjax.report.words import amount, many
from sharpjax.runs import models, register
from sharpjax.runs.console import plain_table, width
from sharpjax.runs.models import Model
from sharpjax.runs.standing import UNREGISTERED
from sharpjax.runs.study import hypotheses_of, plan_of
from sharpjax.schema import Config
from sharpjax.train import planning
from sharpjax.train.plan import Compare, Cost, Derive, Draw, Plan, Stage, Train

COUNTED = (
    "FLOPs of matrix products and convolutions, a multiplication and an addition as two: a "
    "gradient as 3 forward passes, a step of SAM as 2 gradients, an evaluator as what it says it "
    "costs at the most. Not counted: all that works element by element, teachers{}. A model that "
    "ends early takes less.\n"
)
LEFT_OUT = (
    "Left out on the device: gradients and temporaries; data copied for models side by side; "
    "evaluators, of which a search for eigenvalues holds as many vectors as it takes products. "
    "Left out on the disk: rows, figures, small arrays, what evaluators carry on in checkpoints.\n"
)

Passes = Mapping[str, flops.Count]


class Work(NamedTuple):
    """The work of a stage: `steps` and `gradients` of one model, the rest of all its models.

    `epochs` are those of each model. `training` and `evaluation` are in FLOPs. The last four are in
    bytes: `states` on the device, `checkpoints`, `kept` and `outputs` on the disk.
    """

    models: int = 0
    epochs: int = 0
    steps: int = 0
    gradients: int = 0
    training: float = 0
    evaluation: float = 0
    states: int = 0
    checkpoints: int = 0
    kept: int = 0
    outputs: int = 0


def show(config: Config, *, name: str, folder: str, console: Console | None = None) -> None:
    """Print what the run of a config would do.

    Args:
        name: of the config and its form, as for `register.register`.
        folder: of the run.

    Raises:
        UserError: the plan cannot be run, or its hypotheses cannot be registered.
    """
    console = console or Console(width=width(), highlight=False, markup=False)
    plan = plan_of(config)
    found = models.distinct(plan)
    passes = _passes(plan, found)
    work = {planning.name_of(s): _work(plan, s, found, passes) for s in planning.ordered(plan)}
    there = "exists" if os.path.exists(os.path.expanduser(folder)) else "does not exist yet"
    console.print(f"study '{config.study}' in {folder}, which {there}\n")

    def section(title: str, heads: str, lines: Iterable[tuple[str, ...]], left: int) -> None:
        console.print(title, plain_table(heads.split("; "), lines, left=left), "")

    heads = "stage; models; epochs; steps; gradients; training; evaluation"
    section("PLAN: steps and gradients of one model, FLOPs of all", heads, _stages(plan, work), 1)
    if found:
        evaluators = (e for s in plan.stages for e in getattr(s, "evaluators", ()))
        silent = sorted({e.name for e in evaluators if not hasattr(e, "cost")})
        console.print(COUNTED.format("".join(f", evaluator '{name}'" for name in silent)))
        heads = "model; arms; parameters; FLOPs"
        section("MODELS: FLOPs of a forward pass of one batch", heads, _models(found, passes), 2)
        section("SIZES", "where; what; of; bytes", _sizes(plan, work, passes), 3)
        console.print(LEFT_OUT)
    hypotheses = hypotheses_of(config)
    stands = UNREGISTERED
    if hypotheses:
        lines = [(h.id, "no" if h.missing else "yes", h.missing or h.claim) for h in hypotheses]
        section("REGISTRATION", "hypothesis; asked; claim, or why it is not asked", lines, 3)
        stands = register.foreseen(config, name)
    console.print(f"{many(len(hypotheses), 'hypothesis')}; a fresh run: {stands}")


def _passes(plan: Plan, found: Iterable[Model]) -> Passes:
    """For each arm, the cost of a forward pass of its model on one batch."""
    by_arm = {}
    for model in found:
        sizes = {arm: planning.source_of(plan, arm).step.batch_size for arm in model.arms}
        counted = {size: models.forward(model, size) for size in set(sizes.values())}
        by_arm |= {arm: counted[size] for arm, size in sizes.items()}
    return by_arm


def _work(plan: Plan, stage: Stage, found: Iterable[Model], passes: Passes) -> Work:
    if isinstance(stage, Draw | Compare):
        return Work(len(stage.seeds) if isinstance(stage, Draw) else 0)
    source = planning.source_of(plan, stage.arm)
    model = next(model for model in found if source.arm in model.arms)
    spec, step = plan.data[source.data], source.step
    count = len(planning.members(plan, stage.arm))
    total, per_epoch = planning.num_steps(plan, source), step.steps_per_epoch(spec.num_train)
    forward = passes[source.arm].flops / step.batch_size
    weights = count * _bytes((model.params, model.variables))
    evaluated = outputs = 0
    for evaluator in stage.evaluators:
        calls = len(evaluator.when.steps(total, per_epoch)) if isinstance(stage, Train) else 1
        cost = getattr(evaluator, "cost", lambda spec: Cost())(spec)
        evaluated += calls * count * cost.forwards
        outputs += calls * count * cost.stored
    kept = planning.kept(plan, stage.arm)
    own = Work(count, evaluation=evaluated * forward, kept=weights * len(kept), outputs=outputs)
    if isinstance(stage, Derive):
        return own
    epoch, best = step.cost(spec), weights * (stage.best is not None)
    record = stage.epochs * count * epoch.stored
    states = best + count * _bytes(jax.eval_shape(step.begin, model.params, model.variables))
    saved = min(checkpoint.KEEP, max(1, -(-stage.epochs // stage.checkpoint_epochs)))
    snapshots = stage.snapshots.when.steps(total, per_epoch) if stage.snapshots else frozenset()
    at_end = "end" in kept and total not in snapshots
    return own._replace(
        epochs=stage.epochs,
        steps=round(stage.epochs * epoch.gradients / step.gradients),
        gradients=stage.epochs * epoch.gradients,
        training=stage.epochs * count * epoch.forwards * forward,
        states=states,
        checkpoints=saved * (states + record),
        kept=(len(snapshots) + at_end) * weights + best,
        outputs=outputs + record,
    )


def _stages(plan: Plan, work: Mapping[str, Work]) -> Iterable[tuple[str, ...]]:
    for stage in planning.ordered(plan):
        name, reads = planning.name_of(stage), ", ".join(planning.reads(stage))
        does = {Derive: f" of {reads}", Compare: f" compares {reads}", Draw: " draws"}
        counts = (f"{x:,}" if x else "" for x in work[name][:4])
        yield name + does.get(type(stage), ""), *counts, *map(amount, work[name][4:6])
    total = _total(work)
    yield "all", f"{total.models:,}", "", "", "", amount(total.training), amount(total.evaluation)


def _models(found: Iterable[Model], passes: Passes) -> Iterable[tuple[str, ...]]:
    for model in found:
        passed = ", ".join(dict.fromkeys(amount(passes[arm].flops) for arm in model.arms))
        size = f"{tree.size(model.params):,}"
        yield models.named(model.module), ", ".join(model.arms), size, passed


def _sizes(plan: Plan, work: Mapping[str, Work], passes: Passes) -> Iterable[tuple[str, ...]]:
    """Sizes in memory and on disk. Device memory is that of the arm whose states are largest, since
    arms are trained one after another.

    Activations are counted as twice the outputs of products: before and after the operation that
    follows. XLA's own plans (float32, CPU) for a gradient of ResNet-20, LeNet, MLP and a small conv
    net take 1.0, .93, .75 and 1.35 times that.
    """
    arm = max(passes, key=lambda arm: work[arm].states)
    count, data = work[arm].models, 0
    for name, spec in plan.data.items():
        seeds = planning.seeds(plan, name) if spec.is_per_seed else (0,)
        example = math.prod(spec.input_shape) * np.dtype(spec.input_dtype).itemsize + 4
        data += len(seeds) * example * (spec.num_train + spec.num_test + spec.num_validation)
    one, size = 2 * passes[arm].output_bytes, planning.source_of(plan, arm).step.batch_size
    disk = _total(work)
    for where, what, of, number in (
        ("device", "states", f"{many(count, 'model')} of {arm}, and optimisers", work[arm].states),
        ("", "data", f"{many(len(plan.data), 'set')}, all splits and seeds", data),
        ("", "activations", f"one model, a batch of {size}, about", one),
        ("", "", "all models of the arm side by side", one * count),
        ("disk", "checkpoints", f"of each arm the last {checkpoint.KEEP}", disk.checkpoints),
        ("", "states", "snapshots, best, read by later stages", disk.kept),
        ("", "outputs", "logits and curves", disk.outputs),
    ):
        yield where, what, of, amount(number, "B") or "none"


def _total(work: Mapping[str, Work]) -> Work:
    return Work(*(sum(each) for each in zip(*work.values(), strict=True)))


def _bytes(shapes: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
