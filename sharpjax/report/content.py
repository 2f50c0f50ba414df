"""All that a report shows of one run, collected and checked. Nothing is read or written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sharpjax.errors import UserError
from sharpjax.protocol.attrition import Funnel
from sharpjax.protocol.claims import Hypothesis, contrasts, quantities
from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.protocol.seals.amendments import Amendment
from sharpjax.protocol.seals.registration import Registration
from sharpjax.protocol.summary import Summary, summarize_last
from sharpjax.report.blocks import Picture, Table

_PNG = b"\x89PNG\r\n\x1a\n"
# Larger pictures are not embedded, since the page would open slowly. They stay beside the page.
_LARGEST_PICTURE = 4 << 20
EXPLORATORY = "exploratory"

__all__ = ["Command", "Content", "Picture", "Table", "make", "metrics_of"]


class Command(NamedTuple):
    """A shell command, and what it does."""

    purpose: str
    line: str


@dataclass(frozen=True)
class Content:
    """What a report shows. Without a registration all of it is exploratory."""

    title: str  # what the study asks, in words
    config: Mapping[str, Any]
    judgements: tuple[Judgement, ...]  # of the registered hypotheses; unregistered: of all
    source: str = ""  # the config file and its form
    arms: tuple[str, ...] = ()  # in the plan's order
    registration: Registration | None = None
    warnings: tuple[str, ...] = ()  # sentences that a reader must know before the verdicts
    exploratory: tuple[Judgement, ...] = ()  # in a registered run, of what was not registered
    funnel: tuple[Funnel, ...] = ()
    metrics: tuple[Summary, ...] = ()
    later: tuple[Summary, ...] = ()  # of measures that were taken after the run was finished
    rows: bytes | None = None  # all results as CSV; None: too large for a page
    tables: tuple[Table, ...] = ()  # the study's own
    pictures: tuple[Picture, ...] = ()
    amendments: tuple[Amendment, ...] = ()
    place: str = ""  # the file of the registration in the repository, and since when it is there
    environment: tuple[Mapping[str, Any], ...] = ()  # of each process that worked on the run
    processes: tuple[Mapping[str, Any], ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()
    seen: Mapping[str, str] = field(default_factory=dict)  # by id, if data had been seen: the tag

    @property
    def is_registered(self) -> bool:
        return self.registration is not None

    def tag(self, judgement: Judgement) -> str:
        """What data of a hypothesis had been seen when it was registered; '' for none. Without a
        registration it is `EXPLORATORY`."""
        return self.seen.get(judgement.hypothesis.id, "") if self.is_registered else EXPLORATORY


def make(
    *,
    judgements: Sequence[Judgement],
    results: Iterable[Mapping[str, Any]] = (),
    later_results: Iterable[Mapping[str, Any]] = (),
    arms: Sequence[str] = (),
    registration: Registration | None = None,
    warnings: Sequence[str] = (),
    figures: Mapping[str, bytes] | None = None,
    captions: Mapping[str, Any] | None = None,
    **others: Any,
) -> Content:
    """The content of a report.

    Args:
        judgements: of every registered hypothesis; those of others are shown as exploratory.
        results, later_results: rows of the run, and of measures taken after it was finished.
        arms: their order; further arms follow as they appear in `results`.
        figures: bytes of PNG files by name.
        captions: by name, a text, or a table of `caption` and `metrics`. Their order is that of the
            pictures.
        others: further attributes of `Content`.

    Raises:
        UserError: a registered hypothesis has no judgement or several, or its judgement is of a
            different hypothesis with the same id; without a registration, an id has several.
    """
    first, rest = tuple(judgements), ()
    asked = [j.hypothesis for j in first]
    if registration is not None:
        asked = registration.hypotheses
        first = tuple(j for h in asked for j in judgements if j.hypothesis.id == h.id)
        rest = tuple(j for j in judgements if j.hypothesis.id not in {h.id for h in asked})
    for hypothesis in asked:
        found = [j.hypothesis for j in first if j.hypothesis.id == hypothesis.id]
        if found != [hypothesis]:
            what = f"has {len(found)} verdicts; each has one"
            what = "is not as it was registered" if len(found) == 1 else what
            raise UserError(f"report: hypothesis {hypothesis.id} {what}.")
    metrics = tuple(summarize_last(results, arms))
    order = tuple(dict.fromkeys((*arms, *(m.arm for m in metrics))))
    return Content(
        judgements=first,
        exploratory=rest,
        registration=registration,
        # The page itself says that a run is not registered.
        warnings=tuple(w for w in warnings if not w.lower().startswith("unregistered")),
        arms=order,
        metrics=metrics,
        later=tuple(summarize_last(later_results, order)),
        pictures=_pictures(figures or {}, captions or {}),
        **others,
    )


def metrics_of(hypotheses: Iterable[Hypothesis]) -> dict[str, tuple[str, ...]]:
    """The ids of the hypotheses that use each metric."""
    found: dict[str, dict[str, None]] = {}
    for hypothesis in hypotheses:
        for contrast in contrasts(hypothesis):
            for quantity in quantities(contrast):
                for metric in filter(None, (quantity.metric, quantity.seen)):
                    found.setdefault(metric, {})[hypothesis.id] = None
    return {metric: tuple(ids) for metric, ids in found.items()}


def _pictures(figures: Mapping[str, bytes], captions: Mapping[str, Any]) -> tuple[Picture, ...]:
    found = []
    for name in dict.fromkeys((*(n for n in captions if n in figures), *figures)):
        png, about = figures[name], captions.get(name)
        fields = about if isinstance(about, Mapping) else {"caption": about}
        caption, metrics = fields.get("caption"), fields.get("metrics")
        fits = png.startswith(_PNG) and len(png) <= _LARGEST_PICTURE
        found.append(
            Picture(
                name,
                caption if isinstance(caption, str) else name.replace("_", " "),
                png if fits else None,
                frozenset(map(str, metrics)) if isinstance(metrics, list | tuple) else frozenset(),
            )
        )
    return tuple(found)
