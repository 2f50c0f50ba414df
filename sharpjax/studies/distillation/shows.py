"""Tables and figures: accuracies, distances to the teacher, and paths of functions in training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.metrics import embedding, trajectory
from sharpjax.plots import Figure, last_of, n_of
from sharpjax.protocol.summary import summarize_last
from sharpjax.report.content import Table
from sharpjax.report.words import mean_of
from sharpjax.runs.study import Arrays
from sharpjax.studies.distillation.schema import SIZES, TEACHER, control_of
from sharpjax.studies.papers import cells
from sharpjax.train.results import Row

TRAJECTORY = "trajectory"  # the evaluator that stores outputs after each epoch
CAPTION = (
    "Means ± standard errors over seeds at the end: accuracy, distances to the teacher of the seed "
    "(in brackets over that of siddo: the same start, order and size, and no teacher), and how "
    "much oftener a student predicts as its teacher does than siddo, where the teacher is wrong "
    "and where it is right."
)
# The order of conditions, named without the weight of the teacher.
ORDER = (
    TEACHER, "siddo", "disdo", "kd", "kd_paper", "constant_paper", "permuted", "shuffled",
    "entropy", "uniform", "gaussian",
)  # fmt: skip
# Metric: heading, and whether its ratio to that of siddo is shown.
COLUMNS = {
    "test/accuracy": ("accuracy", False),
    "test/ece": ("ECE", False),
    "teacher/activation_distance": ("activation distance", True),
    "teacher/jsd": ("JSD", True),
    "teacher/disagreement": ("disagreement", True),
    "wrong/excess_agreement": ("excess, wrong", False),
    "right/excess_agreement": ("excess, right", False),
}


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """A row per arm."""
    found = {(s.arm, s.metric): s for s in summarize_last(rows) if s.n}

    def cell(arm: str, metric: str, over: bool) -> str:
        own = found.get((arm, metric))
        if own is None:
            return ""
        control = found.get((control_of(arm), metric)) if over else None
        return mean_of(own) + (f" ({own.mean / control.mean:.2f})" if control else "")

    arms = [
        f"{place}-{condition}"
        for place, own in cells.by_place(rows).items()
        for condition in cells.by_condition({row["arm"]: None for row in own}, ORDER)
    ]
    lines = tuple((arm, *(cell(arm, m, over) for m, (_, over) in COLUMNS.items())) for arm in arms)
    return (Table(CAPTION, ("arm", *(words for words, _ in COLUMNS.values())), lines),)


def figures(rows: Sequence[Row], arrays: Arrays) -> Iterator[Figure]:
    """For each data set and net: distances to the teacher, alone and against accuracy.

    If outputs were stored during training, the path to the teacher too.
    """
    for place, own in cells.by_place(rows).items():
        panels = {
            label: cells.by_condition(values, ORDER)
            for metric, (label, over) in COLUMNS.items()
            if over and (values := last_of(own, metric))
        }
        if panels:
            yield Figure(
                f"distances-{place}",
                f"{place}. Distances of the models of each condition to the teacher of their seed, "
                f"on test images: a dot for each seed, their mean and its interval; "
                f"{n_of(next(iter(panels.values())))}.",
                lambda panels=panels: plots.points(panels),
                tuple(metric for metric, (_, over) in COLUMNS.items() if over),
            )
            yield _against_accuracy(place, own, *next(iter(panels.items())))
        logits = _along_training(place, dict.fromkeys(row["arm"] for row in own), arrays)
        if TEACHER in logits:
            yield from _ways(place, logits)


def _against_accuracy(
    place: str, rows: Sequence[Row], label: str, distances: Mapping[str, Any]
) -> Figure:
    accuracy = cells.by_condition(last_of(rows, "test/accuracy"), ORDER)
    at_0 = {TEACHER: dict.fromkeys(accuracy.get(TEACHER, ()), 0.0)}
    return Figure(
        f"accuracy-{place}",
        f"{place}. Accuracy of the models of each condition on the test set against their {label} "
        f"to the teacher of their seed, which is 0 of the teachers; {n_of(accuracy)}.",
        lambda: plots.scatter(
            [(f"{label} to the teacher", {**at_0, **distances}, "test accuracy", accuracy)]
        ),
        ("test/accuracy",),
    )


def _along_training(
    place: str, arms: Iterable[str], arrays: Arrays
) -> dict[str, dict[str, np.ndarray]]:
    """Logits before the first and after each epoch, [E, N, K], by condition and seed."""
    found = {arm: arrays(arm, TRAJECTORY, every_step=True) for arm in arms}
    return {
        condition: {seed: one["logits"] for seed, one in by_seed.items()}
        for condition, by_seed in cells.by_condition(found, ORDER).items()
        if by_seed
    }


def _ways(place: str, logits: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Figure]:
    """How far models are from the teacher's last state at each epoch, and the plane of one seed.

    Conditions whose outputs are of other images than the teacher's are left out.
    """
    teachers = logits[TEACHER]
    _, number, _ = next(iter(teachers.values())).shape
    same = {
        condition: {s: x for s, x in by_seed.items() if s in teachers and x.shape[1] == number}
        for condition, by_seed in logits.items()
    }
    same = {condition: by_seed for condition, by_seed in same.items() if by_seed}
    left_out = ", ".join(condition for condition in logits if condition not in same)
    without = f"; without {left_out} (no outputs for these images)" if left_out else ""
    yield Figure(
        f"approach-{place}",
        f"{place}. Activation distance of models along training to their teacher as it ended, on "
        f"{number:,} test images: a thin line for each seed, a thick one for their mean; of the "
        f"teacher itself the distance to its own end{without}; {n_of(same)}.",
        lambda: _approach(same, teachers),
        ("teacher/activation_distance",),
    )
    seed = next((s for s in teachers if all(s in by_seed for by_seed in same.values())), None)
    if seed is not None:
        own = {condition: by_seed[seed] for condition, by_seed in same.items()}
        elsewhere = [name for name in own if name == "disdo" or name.endswith(SIZES)]
        but = f", but {' and '.join(elsewhere)}" if elsewhere else ""
        yield Figure(
            f"landscape-{place}",
            f"{place}. Models as functions along training: each point one epoch of a model of seed "
            f"{seed}, as far apart as a plane can show how their outputs on {number:,} test images "
            "differ (classical scaling of the root of the Jensen-Shannon divergence; beside each "
            "axis its share of the variation: points that touch may differ in all the rest). All "
            f"begin in the same weights{but}{without}; n = 1 seed.",
            lambda: _landscape(own),
        )


def _approach(
    logits: Mapping[str, Mapping[str, np.ndarray]], teachers: Mapping[str, np.ndarray]
) -> Any:
    """Distances to the teacher's last state, epoch by epoch."""
    ways = {
        condition: {
            seed: (np.arange(len(x)), trajectory.distances(x, teachers[seed][-1:])[:, 0])
            for seed, x in by_seed.items()
        }
        for condition, by_seed in logits.items()
    }
    panel = plots.Panel(f"activation distance to the {TEACHER}'s end", ways)
    return plots.lines([panel], xlabel="epoch")


def _landscape(logits: Mapping[str, np.ndarray]) -> Any:
    """The states of several models in a plane."""
    far = trajectory.distances(trajectory.stacked(logits), kind="sqrt_jensen_shannon")
    found = embedding.classical_mds(far)
    paths = trajectory.by_model(found.points, logits)
    return plots.trajectories(
        {name: {0: path} for name, path in paths.items()},
        xlabel="first axis, root of JSD",
        ylabel="second axis, root of JSD",
        share=found.share.tolist(),
    )
