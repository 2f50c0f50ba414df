"""Paper 3 as a study: decomposed learning against grokking (OpenReview LVuzwpMovE, H3.1 to H3.7).

Each arm is a condition: a task, a model and a share of the pairs to train on. Every seed draws its
own split, initial weights and order of examples; arms of one task and fraction share the split of a
seed, and decomposed models start as the decomposition of the dense model of the same seed. A seed
is trained until its first test accuracy of 100 per cent, or to the end of the budget.

The `step` of a row is an epoch. At the budget's last, for every seed, whenever it stopped:

    grok/*                            as `papers.paper3` says
    grok/epochs                       epochs that the seed was trained for: the time of the event
                                      that `grok/reached_full_test_accuracy` says was seen or not
    model/num_params, train/alive
    train/accuracy, train/loss        of the seed's last epoch, over the batches as they came
    test/accuracy, test/loss          after it
    the measures of `train.trajectory`, of the last state

At a few epochs before it the same without `grok/`, `model/` and `train/alive`, of the seeds that
are still learning.
"""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from sharpjax import catalog, workdir
from sharpjax.data import modular
from sharpjax.nn.svd import Decomposition
from sharpjax.optim import OptimizerSpec
from sharpjax.report.console import study_table
from sharpjax.report.content import Table
from sharpjax.runs import conclude, draw, record, schema
from sharpjax.runs.schema import Config
from sharpjax.studies.grokking import asks as grokking_hypotheses
from sharpjax.studies.grokking import shows as grokking_table
from sharpjax.train import condition, epoch_population, interrupt
from sharpjax.train.condition import Condition
from sharpjax.train.epochs import Epoch, Examples
from sharpjax.train.progress import Progress, duration
from sharpjax.train.streams import stream
from sharpjax.train.trajectory import Trajectory, epochs_measured

Data = dict[int, modular.ModularData]  # by seed


def hypotheses(config: Config) -> tuple:
    """Those of paper 3, what the arms leave out said; survival and curvature beside them."""
    budgets = {name: arm.train.epochs for name, arm in schema.resolve_arms(config).items()}
    return grokking_hypotheses.asked_of(budgets, _measured(config))


def metrics(config: Config) -> tuple[str, ...]:
    """What a run of this config measures."""
    in_factors = config.evaluate.trajectory.in_factors
    return grokking_hypotheses.metrics(_measured(config), in_factors=in_factors)


def tables(rows: Iterable[workdir.Row]) -> tuple[Table, ...]:
    """What the report shows beside the metrics."""
    return (grokking_table.beside_the_paper(rows),)


def _measured(config: Config) -> str:
    return f"train[:{config.evaluate.trajectory.num_examples}]"


def run(config: Config, folder: workdir.Run) -> None:
    """Run the study in `folder`, or go on with it, and print its table beside the paper's."""
    console = Console(highlight=False, soft_wrap=True)
    if folder.is_done:
        console.print(f"{folder.path} is complete; nothing to run")
    else:
        _run(config, folder, console)
    wide = Console(width=None if console.is_terminal else 140, highlight=False)
    for table in tables(folder.rows()):
        wide.print(study_table(table))
    conclude.print_verdicts(config, folder)
    console.print(f"figures, rows, curves and checkpoints: {folder.path}")


def _run(config: Config, folder: workdir.Run, console: Console) -> None:
    started = time.time()

    def say(line: str) -> None:
        console.print(f"[{duration(time.time() - started)}] {line}", markup=False)

    arms = schema.resolve_arms(config)
    data = split_of(arms, config.seeds)
    conditions = [make_condition(config, name, arm) for name, arm in arms.items()]
    device = jax.devices()[0]
    say(
        f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), "
        f"jax {jax.__version__}; {len(conditions)} arms of {len(config.seeds)} seeds, by "
        f"{conditions[0].layout.mode}"
    )
    totals = Counter[str]()
    for one in conditions:
        totals += one.work(range(1, one.budget + 1))
    progress = Progress(totals, say)
    with (
        record.recorded(folder, config.study, progress.seconds, say),
        interrupt.handled() as signals,
    ):
        outcomes = {
            one.name: condition.train(
                one,
                [examples(data[one.name][seed]) for seed in one.seeds],
                folder,
                interrupt=signals,
                progress=progress,
                say=say,
            )
            | {"population": one.layout.mode, "mesh": dict(one.layout.mesh.shape)}
            for one in conditions
        }
    arms_by_name = {one.name: one for one in conditions}
    figures = grokking_table.figures(
        folder.rows(), lambda arm, name: curves_of(folder, arms_by_name[arm], name)
    )
    draw.draw(folder, figures, say)
    folder.seal(
        record.manifest(config.to_dict(), folder)
        | {
            "data": {
                name: {str(seed): split.digests for seed, split in by_seed.items()}
                for name, by_seed in data.items()
            },
            "arms": outcomes,
            "seconds_of_last_process": progress.seconds | {"total": time.time() - started},
        }
    )
    conclude.write_report(folder.path, leased=True)
    for name, outcome in outcomes.items():
        for seed, epoch in outcome["stopped"].items():
            say(f"arm {name}: seed {seed} turned non-finite after epoch {epoch} and was frozen")
    say(f"done: {progress.shares()}")


def curves_of(folder: workdir.Run, one: Condition, name: str) -> dict[int, dict[str, np.ndarray]]:
    """The arrays of a name at the end of a finished arm, by seed."""
    base = folder.path / workdir.ARRAYS / one.name / str(one.budget)
    return {seed: workdir.load_arrays(base / f"{name}-{seed}.npz") for seed in one.seeds}


def split_of(arms: dict[str, Config], seeds: tuple[int, ...]) -> dict[str, Data]:
    """The data of each arm and seed; those of one task and fraction are the same objects."""
    known: dict[tuple, Data] = {}
    found = {}
    for name, arm in arms.items():
        key = (arm.data.operation, arm.data.modulus, arm.data.train_fraction)
        if key not in known:
            known[key] = {
                seed: modular.load(
                    arm.data.operation,
                    modulus=arm.data.modulus,
                    train_fraction=arm.data.train_fraction,
                    key=stream(seed, "split"),
                )
                for seed in seeds
            }
        found[name] = known[key]
    return found


def examples(data: modular.ModularData) -> Examples:
    """A split on the device."""
    return Examples(*map(jnp.asarray, (*data.train, *data.test)))


def make_condition(config: Config, name: str, arm: Config) -> Condition:
    """The arm as it is trained, from its resolved config.

    Raises:
        UserError: a rank fraction leaves nothing of a matrix; a glob matches none.
    """
    classes = arm.data.modulus + 2
    ranks = arm.model.rank_fraction
    decompose = Decomposition(ranks, arm.model.layers) if ranks else None
    width = {"width": arm.model.width} if arm.model.width else {}
    make = catalog.resolve(catalog.TOKEN_MODELS[arm.model.name])
    model = make(num_classes=classes, decompose=decompose, **width)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    jax.eval_shape(model.init, jax.random.key(0), tokens)  # refused now, not hours later
    optimizer = OptimizerSpec(
        "adamw",
        learning_rate=arm.optim.learning_rate,
        momentum=arm.optim.b1,
        b2=arm.optim.b2,
        weight_decay=arm.optim.weight_decay,
    )
    measures: dict[str, Any] = arm.evaluate.trajectory.to_dict()
    per_decade = measures.pop("per_decade")
    numbers = not modular.OPERATIONS[arm.data.operation].size  # permutations have no frequencies
    return Condition(
        study=config.study,
        name=name,
        seeds=tuple(config.seeds),
        step=Epoch(model, optimizer, arm.train.batch_size, arm.train.loss_dtype),
        budget=arm.train.epochs,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        measured=epochs_measured(arm.train.epochs, per_decade),
        trajectory=Trajectory(model, modulus=arm.data.modulus if numbers else 0, **measures),
        layout=epoch_population.choose_layout(arm.train.population, num_seeds=len(config.seeds)),
    )
