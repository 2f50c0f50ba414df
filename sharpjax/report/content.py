"""All that a report shows of one run, put together and checked; nothing is read or written."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sharpjax.protocol.attrition import Funnel
from sharpjax.protocol.claims import Hypothesis, contrasts, quantities
from sharpjax.protocol.judging.verdicts import Judgement, require_all
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.seals.registration import Registration
from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report import fields, words

_PNG = b"\x89PNG\r\n\x1a\n"
# A page that embeds more than this opens slowly; what is larger stays beside it.
_LARGEST_PICTURE = 4 << 20


# Of the manifest: what has a place of its own in the report.
_SHOWN = ("files", "config", "environment", "processes")
UNREGISTERED = (
    "Unregistered: everything here is exploratory. What was asked was not sealed before the data "
    "were seen, so no verdict below confirms anything."
)


class Picture(NamedTuple):
    """A figure of the run; `png` is None where it is too large, or no PNG, to be embedded."""

    name: str
    caption: str
    png: bytes | None


class Table(NamedTuple):
    """What a study shows beside its metrics, as texts; the first column names the rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Command(NamedTuple):
    """A line for a shell, and what it does."""

    purpose: str
    line: str


@dataclass(frozen=True)
class Content:
    """What the pages show, in their order.

    Attributes:
        title: names the run.
        config: all of it.
        arms: names of the arms, in the plan's order.
        registration: what was sealed; None: nothing was registered, so that everything is
            exploratory.
        warnings: what a reader must know before the verdicts, as that the analysis was changed.
        judgements: of the registered hypotheses, in their order; of an unregistered run, of all.
        exploratory: of hypotheses that were not registered, in a registered run.
        funnel: of each arm.
        metrics: every metric over its seeds.
        registered_metrics: metric -> ids of the registered hypotheses that rest on it.
        later: metrics of measures that were taken of the finished run.
        environment, processes: of each process that worked on the run.
        tables: the study's own.
        pictures, amendments, manifest, commands: as they are.
    """

    title: str
    config: Mapping[str, Any]
    judgements: tuple[Judgement, ...]
    arms: tuple[str, ...] = ()
    registration: Registration | None = None
    warnings: tuple[str, ...] = ()
    exploratory: tuple[Judgement, ...] = ()
    funnel: tuple[Funnel, ...] = ()
    metrics: tuple[Summary, ...] = ()
    registered_metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    later: tuple[Summary, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    amendments: tuple[Amendment, ...] = ()
    environment: tuple[Mapping[str, Any], ...] = ()
    processes: tuple[Mapping[str, Any], ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()

    @property
    def is_registered(self) -> bool:
        return self.registration is not None

    @property
    def asked(self) -> list[tuple[str, str]]:
        """What was asked and when it was sealed, as names and texts."""
        sealed = self.registration
        pairs = [
            ("Study", str(self.config.get("study") or "")),
            ("Arms", _arms(self.config.get("arms"), self.arms)),
            ("Seeds", str(self.config.get("seeds", "")).strip("[()]")),
        ]
        if sealed is not None:
            dirty = ", with changes that were not committed" if sealed.dirty else ""
            amended = f"{words.many(len(self.amendments), 'amendment')}, below"
            pairs += [
                ("Sealed", words.moment(sealed.time)),
                ("Seal", sealed.seal),
                ("Commit", (sealed.commit or "unknown") + dirty),
                ("Amendments", amended if self.amendments else "none"),
            ]
        return pairs

    @property
    def digests(self) -> list[tuple[str, Any]]:
        """Those of the registration, and what the manifest says beside its list of files."""
        pairs: list[tuple[str, Any]] = []
        if (sealed := self.registration) is not None:
            pairs += [("Seal", sealed.seal), ("Config", sealed.config_digest)]
            pairs += [(fields.title(name), x) for name, x in sealed.digests._asdict().items()]
        known = {name: value for name, value in self.manifest.items() if name not in _SHOWN}
        return pairs + list(fields.flatten(known).items())


def make(
    *,
    title: str,
    config: Mapping[str, Any],
    judgements: Sequence[Judgement],
    rows: Iterable[Mapping[str, Any]] = (),
    arms: Sequence[str] = (),
    registration: Registration | None = None,
    later_rows: Iterable[Mapping[str, Any]] = (),
    tables: Sequence[Table] = (),
    figures: Mapping[str, bytes] | None = None,
    captions: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    funnel: Sequence[Funnel] = (),
    amendments: Sequence[Amendment] = (),
    environment: Sequence[Mapping[str, Any]] = (),
    processes: Sequence[Mapping[str, Any]] = (),
    manifest: Mapping[str, Any] | None = None,
    commands: Sequence[Command] = (),
) -> Content:
    """The content of a report.

    Args:
        title: names the run.
        config: all of it.
        judgements: of every registered hypothesis, and of others, which are shown as exploratory.
        rows: of the results, as `workdir.Run.rows` gives them.
        arms: the order of the arms; those that it does not name follow as they appear in `rows`.
        registration: what was sealed; None: an unregistered run.
        later_rows: of measures that were taken of the finished run.
        tables: the study's own.
        figures: bytes of PNG files by name.
        captions: what is on them, by name; its order is that of the pictures.
        warnings: lines that stand above the verdicts.
        funnel: what became of the planned runs, as `protocol.attrition` counts them.
        amendments: as `protocol.seals.amendments` reads them.
        environment, processes, manifest: what the files of these names hold.
        commands: how to run it again; `commands_for` makes them.

    Raises:
        UserError: a registered hypothesis has no judgement, a hypothesis has two, or one that was
            judged differs from the registered one of its id.
    """
    first, others = tuple(judgements), ()
    if registration is None:
        require_all([j.hypothesis for j in first], first)
    else:
        asked = registration.hypotheses
        first = tuple(j for h in asked for j in judgements if j.hypothesis.id == h.id)
        require_all(asked, first)
        others = tuple(j for j in judgements if j.hypothesis.id not in {h.id for h in asked})
    metrics = tuple(summarize_last(rows, arms))
    order = tuple(dict.fromkeys((*arms, *(m.arm for m in metrics))))
    return Content(
        title=title,
        config=config,
        judgements=first,
        arms=order,
        registration=registration,
        # The page says so itself of a run that is not registered.
        warnings=tuple(w for w in warnings if not w.lower().startswith("unregistered")),
        exploratory=others,
        funnel=tuple(funnel),
        metrics=metrics,
        registered_metrics={} if registration is None else metrics_of(j.hypothesis for j in first),
        later=tuple(summarize_last(later_rows, order)),
        tables=tuple(tables),
        pictures=_pictures(figures or {}, captions or {}),
        amendments=tuple(amendments),
        environment=tuple(environment),
        processes=tuple(processes),
        manifest=manifest or {},
        commands=tuple(commands),
    )


def metrics_of(hypotheses: Iterable[Hypothesis]) -> dict[str, tuple[str, ...]]:
    """Which hypotheses rest on a metric."""
    found: dict[str, dict[str, None]] = {}
    for hypothesis in hypotheses:
        for contrast in contrasts(hypothesis):
            for quantity in quantities(contrast):
                for metric in filter(None, (quantity.metric, quantity.seen)):
                    found.setdefault(metric, {})[hypothesis.id] = None
    return {metric: tuple(ids) for metric, ids in found.items()}


def commands_for(
    config: str,
    overrides: Mapping[str, Any],
    *,
    folder: str,
    is_registered: bool = False,
    commit: str = "",
) -> tuple[Command, ...]:
    """The lines that make the run again and check it.

    >>> commands_for("configs/sam_cifar.py:quick", {"optim.rho": 0.1}, folder="runs/a")[0].line
    'python launch.py --config=configs/sam_cifar.py:quick --config.optim.rho=0.1'
    """
    flags = [f"--config={config}"]
    flags += [f"--config.{name}={value}" for name, value in overrides.items()]
    launch = shlex.join(["python", "launch.py", *flags])
    studies = "python -m sharpjax.studies"
    again = Command("Run it again, in a new folder", launch)
    if not is_registered:
        first = [again]
    else:
        first = [Command("Register it: seals what is asked", f"{launch} --register"), again]
    if commit:
        first.insert(0, Command("The code as it was", shlex.join(["git", "checkout", commit])))
    path = shlex.quote(folder)
    return (
        *first,
        Command("Check every byte of this run", f"{studies} verify {path}"),
        Command("Train some steps anew and compare them", f"{studies} replay {path}"),
        Command("Make this report again", f"{studies} report {path}"),
    )


def _arms(arms: Any, order: Sequence[str]) -> str:
    """Each arm with what it changes.

    >>> _arms({"sam": {}, "sgd": {"optim": {"rho": 0.0}}}, order=("sgd",))
    'sgd (optim.rho = 0.0); sam'
    """
    parts = []
    known = arms if isinstance(arms, Mapping) else {}
    for name in dict.fromkeys((*(name for name in order if name in known), *known)):
        changes = known[name]
        flat = fields.flatten(changes) if isinstance(changes, Mapping) else {}
        inside = ", ".join(f"{k} = {v}" for k, v in flat.items())
        parts.append(f"{name} ({inside})" if inside else str(name))
    return "; ".join(parts)


def _pictures(figures: Mapping[str, bytes], captions: Mapping[str, str]) -> tuple[Picture, ...]:
    found = []
    for name in dict.fromkeys((*(n for n in captions if n in figures), *figures)):
        png, caption = figures[name], captions.get(name) or name.replace("_", " ")
        fits = png.startswith(_PNG) and len(png) <= _LARGEST_PICTURE
        found.append(Picture(name, caption, png if fits else None))
    return tuple(found)
