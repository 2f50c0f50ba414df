"""Paper 4 as a study: does registration keep what it promises? (arXiv 2510.11595, H4.3 to H4.5.)

Studies are simulated, and each is analysed by this package's own `protocol`, as a real one is. An
arm is a design and a way to analyse and publish it:

    registered        no effect; one contrast on the primary metric, decided by `protocol.verdicts`
    flexible          no effect; several metrics, and a look after every further seed: the first
                      significant test is the result
    metrics_only, looks_only        each of the two liberties alone (explanation, not a hypothesis)
    planned           a true effect, n seeds a group as `protocol.power` plans them
    small             the same effect, 3 seeds a group
    complete          an effect that n = 10 often misses; a registry pools every study
    significant_only  the same studies; the registry holds only those that were significant

A seed of the config is one independent stream of `simulate.studies` simulated studies; arms of one
design see the same studies. Rows, all at step 0:

    metric                  of                value
    study/rejected          {"study": i}      1 where study i rejected its null, else 0
                                              (Quantity(..., over=("seed", "study"),
                                              independent=True))
    seed/rejection_rate     {}                their mean over the studies of one seed
    seed/exaggeration       {}                mean estimate of the seed's significant studies over
                                              the true effect; missing where none was significant,
                                              no row where there is no effect
    registry/estimate       {"registry": r}   mean estimate of the published studies among
                                              `analysis.registry` consecutive ones
    registry/truth          {"registry": r}   the true effect
    registry/bias           {"registry": r}   estimate - truth; with the estimate missing where
                                              nothing was published
                                              (Quantity(..., over=("seed", "registry"),
                                              independent=True))

Only arms with `evaluate.each_study` write `study/rejected`: registered, flexible, planned, small.
The other arms' rates are in `seed/rejection_rate`.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sharpjax import workdir
from sharpjax.protocol.hypotheses import Hypothesis
from sharpjax.protocol.summary import summarize_last
from sharpjax.runs import conclude, record, schema
from sharpjax.runs.schema import Config
from sharpjax.studies.papers import paper4
from sharpjax.studies.reproducibility.simulate import Setting, num_rows, setting, study_rows
from sharpjax.train import interrupt
from sharpjax.train.progress import duration

# Fewer simulated studies than this are not worth the start of further processes.
FEW = 5_000


def hypotheses(config: Config) -> tuple[Hypothesis, ...]:
    """All of paper 4; those that need bibliographic data say so."""
    return paper4.HYPOTHESES


def units(config: Config) -> dict[str, int]:
    """How many values of each further coordinate a seed has, for `protocol.power.table`."""
    studies = config.simulate.studies
    return {"study": studies, "registry": studies // config.simulate.registry}


def run(config: Config, folder: workdir.Run) -> None:
    """Run the study in `folder`, or go on with it, and print its table."""
    console = Console(highlight=False, soft_wrap=True)
    if folder.is_done:
        console.print(f"{folder.path} is complete; nothing to run")
    else:
        _run(config, folder, console)
    console.print(summary(folder.rows()))
    conclude.print_verdicts(config, folder)
    console.print(f"rows: {folder.path}")


def _run(config: Config, folder: workdir.Run, console: Console) -> None:
    started = time.monotonic()
    seconds: dict[str, float] = {}

    def say(line: str) -> None:
        console.print(f"[{duration(time.monotonic() - started)}] {line}", markup=False)

    arms = {name: setting(arm) for name, arm in schema.resolve_arms(config).items()}
    total = len(config.seeds) * sum(now.studies for now in arms.values())
    with (
        record.recorded(folder, config.study, seconds, say),
        interrupt.handled() as signals,
        _mapper(processes(total, len(config.seeds))) as mapped,
    ):
        for name, now in arms.items():
            begun = time.monotonic()
            if is_complete(folder, name, now, config.seeds):
                say(f"arm {name}: done before")
                continue
            folder.discard_after(name, None)
            rows: list[dict[str, Any]] = []
            task = functools.partial(study_rows, config.study, name, now)
            for part in mapped(task, config.seeds):
                signals.check()
                rows += part
            folder.append(name, rows)
            folder.publish_segment(name, 0)
            seconds[name] = time.monotonic() - begun
            say(f"arm {name}: {len(config.seeds) * now.studies:,} studies, {_words(now)}")
    settings = {name: now._asdict() for name, now in arms.items()}
    folder.seal(record.manifest(config.to_dict(), folder) | {"arms": settings})
    conclude.write_report(folder.path, leased=True)
    say("done")


def summary(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One line for each arm: mean and standard error over seeds, or over registries."""
    # Registries are independent, within a seed as between seeds: their mean is over all of them.
    pooled = ({**row, "of": {}} for row in rows)
    cells = {(s.arm, s.metric): s for s in summarize_last(pooled) if s.n}
    table = Table(title="mean ± standard error", title_justify="left")
    table.add_column("arm")
    for _, heading in _SHOWN:
        table.add_column(heading, justify="right")
    for arm in dict.fromkeys(arm for arm, _ in cells):
        found = [cells.get((arm, metric)) for metric, _ in _SHOWN]
        table.add_row(arm, *(f"{s.mean:.4f} ± {s.standard_error:.4f}" if s else "" for s in found))
    return table


_SHOWN = (
    ("seed/rejection_rate", "rejected"),
    ("seed/exaggeration", "significant estimate / truth"),
    ("registry/bias", "pooled estimate - truth"),
)


def is_complete(folder: workdir.Run, arm: str, now: Setting, seeds: Sequence[int]) -> bool:
    """Whether all rows of an arm are there."""
    return len(folder.rows(arm)) == len(seeds) * num_rows(now)


def processes(studies: int, tasks: int) -> int:
    """How many processes simulate; what they find does not depend on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 if studies < FEW else min(cores or 1, tasks)


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Any]]:
    """`map`, in order, over processes of its own; the built-in one for a single one."""
    if workers == 1:
        yield map
        return
    # Not forked: jax has threads by now, and a forked child could wait for them for ever.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_be_a_worker
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _be_a_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _words(now: Setting) -> str:
    parts = [f"{now.test}, {now.n} and {now.n} seeds, effect {now.effect:g}"]
    if now.metrics > 1:
        parts.append(f"best of {now.metrics} metrics")
    if now.first_look < now.n:
        parts.append(f"looks from {now.first_look} seeds on")
    if now.publish == "significant":
        parts.append("only significant ones published")
    return ", ".join(parts)
