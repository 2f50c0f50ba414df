"""Study 1: what SAM finds, and how sharp it is.

Train each arm, measure accuracy, calibration, curvature and sharpness on the way, and print one
table.
"""

import functools
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from sharpjax import catalog, data, nn, optim, tree, workdir
from sharpjax.report.console import print_table
from sharpjax.runs import conclude, draw, record, schema
from sharpjax.runs.schema import Config
from sharpjax.studies.sharpness import asks as sam
from sharpjax.studies.sharpness import shows
from sharpjax.train import interrupt, loop, population
from sharpjax.train.evaluators import Data, Geometry, TestSet
from sharpjax.train.progress import Progress, duration
from sharpjax.train.step import SeedStep, Shared

hypotheses = sam.hypotheses


def run(config: Config, folder: workdir.Run) -> None:
    """Run the study in `folder`, or go on with it, and print its table."""
    console = Console(highlight=False, soft_wrap=True)
    if folder.is_done:
        console.print(f"{folder.path} is complete; nothing to run")
    else:
        _run(config, folder, console)
    print_table(folder.rows())
    conclude.print_verdicts(config, folder)
    console.print(f"figures, rows and checkpoints: {folder.path}")


def _run(config: Config, folder: workdir.Run, console: Console) -> None:
    started = time.time()

    def say(line: str) -> None:
        console.print(f"[{duration(time.time() - started)}] {line}", markup=False)

    resolved = schema.resolve_arms(config)
    dataset = data.load(
        config.data.name,
        data_dir=config.data.data_dir,
        manual_dir=config.data.manual_dir,
        num_train=config.data.num_train,
    )
    split = on_device(dataset)
    arms = [make_arm(config, name, arm, dataset) for name, arm in resolved.items()]
    device = jax.devices()[0]
    say(
        f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), "
        f"jax {jax.__version__}; {dataset.name}: {len(dataset.train_label)} training and "
        f"{len(dataset.test_label)} test examples"
    )
    for arm in arms:
        say(
            f"arm {arm.name}: {len(arm.seeds)} seeds, {arm.epochs} epochs of "
            f"{arm.steps_per_epoch} steps, {arm.gradients_per_step} gradient(s) a step, "
            f"seeds by {arm.layout.mode}"
        )
    say("compiling; the first step of each arm takes longest")
    progress = Progress(sum((arm.work() for arm in arms), Counter()), say)
    with (
        record.recorded(folder, config.study, progress.seconds, say),
        interrupt.handled() as signals,
    ):
        outcomes = {
            arm.name: loop.train(arm, split, folder, interrupt=signals, progress=progress, say=say)
            | {"population": arm.layout.mode, "mesh": dict(arm.layout.mesh.shape)}
            for arm in arms
        }
    draw.draw(folder, shows.figures(folder.rows(), lambda arm, name: {}), say)
    folder.seal(
        record.manifest(config.to_dict(), folder)
        | {
            "data": {"name": dataset.name, "digests": dataset.digests},
            "arms": outcomes,
            "seconds_of_last_process": progress.seconds | {"total": time.time() - started},
        }
    )
    conclude.write_report(folder.path, leased=True)
    for name, outcome in outcomes.items():
        for seed, step in outcome["stopped"].items():
            say(f"arm {name}: seed {seed} turned non-finite at step {step} and was frozen there")
    say(f"done: {progress.shares()}")


def make_arm(config: Config, name: str, arm: Config, dataset: data.Dataset) -> loop.Arm:
    """The arm as the training loop takes it, from its resolved config."""
    known = catalog.DATA_SETS[dataset.name]
    num_train = len(dataset.train_label)
    steps_per_epoch = num_train // arm.train.batch_size
    epochs = arm.train.epochs * arm.train.epoch_factor
    model = nn.build(
        arm.model.name,
        num_classes=dataset.num_classes,
        width=arm.model.width,
        dtype=jnp.dtype(arm.model.dtype),
    )
    optimizer = optim.from_config(
        arm.optim,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        batch_size=arm.train.batch_size,
    )
    layout = population.choose_layout(
        arm.train.population,
        model,
        dataset.train_image.shape[1:],
        num_seeds=len(config.seeds),
        batch_size=arm.train.batch_size,
    )
    step = SeedStep(
        model=model,
        optimizer=optimizer,
        batch_size=arm.train.batch_size,
        label_smoothing=arm.train.label_smoothing,
        pad=known.pad if arm.data.augment else 0,
        flip=known.flip and arm.data.augment,
        placement=layout.batch,
    )
    return loop.Arm(
        study=config.study,
        name=name,
        seeds=tuple(config.seeds),
        step=step,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        layout=layout,
        evaluators=evaluators(arm, model, dataset.train_image.shape[1:]),
    )


def evaluators(arm: Config, model: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The test set; the first measurement set at its period; the further disjoint ones at the
    end."""
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *shape))
    )
    tree.select(shapes["params"], arm.evaluate.geometry.where)  # refused now, not after training
    test, curvature = arm.evaluate.test, arm.evaluate.geometry.to_dict()
    num_sets, period = curvature.pop("num_sets"), curvature.pop("every_epochs")
    sets = tuple(
        Geometry(
            model=model,
            first=i * curvature["num_examples"],
            every_epochs=0 if i else period,
            **curvature,
        )
        for i in range(num_sets)
    )
    return TestSet(model, **test.to_dict()), *sets


def on_device(dataset: data.Dataset) -> Data:
    """Both splits as bytes on the device, with the training split's normalisation."""
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)
    return Data(
        train=Shared(jnp.asarray(dataset.train_image), jnp.asarray(dataset.train_label), mean, std),
        test=Shared(jnp.asarray(dataset.test_image), jnp.asarray(dataset.test_label), mean, std),
    )
