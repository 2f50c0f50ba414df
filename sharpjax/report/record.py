"""Parts of the report about the run: seeds, metrics, power, machine, config and digests."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from sharpjax.driver.progress import duration
from sharpjax.protocol.summary import Summary, grid
from sharpjax.report import blocks, words
from sharpjax.report.blocks import Block, Cell, Column, Span, Text
from sharpjax.report.content import Content, metrics_of

_MOST_ROWS = 2_000
_MOST_PROCESSES = 20
_DIGEST = re.compile("[0-9a-f]{40,}")
_ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")
_OPENREVIEW = re.compile(r"\bOpenReview ([\w-]{6,16})")
# Metrics of the cost and the convergence of measures.
_COST = re.compile(r"(^|/)(num_\w+|\w*converged|\w*seconds|flops|\w+_residual|\w+_error)$")
# Entries of the manifest that the report shows elsewhere.
_SHOWN = ("files", "config", "environment", "environments", "processes")


def funnel(content: Content) -> Iterator[Block]:
    names = ("planned", "done", "failed")
    columns = [Column("Arm", "name"), *(Column(n.title(), "number") for n in names),
               Column("Why", "words")]  # fmt: skip
    rows = [
        [f.arm, *(Cell(f"{n:,}", n) for n in f[1:4]),
         "; ".join(f.reasons[:20]) + ("; …" if len(f.reasons) > 20 else "")]
        for f in content.funnel
    ]  # fmt: skip
    total = ", ".join(f"{sum(getattr(f, n) for f in content.funnel):,} {n}" for n in names)
    if rows:
        caption = f"Runs, one seed of one arm each: {total}"
        yield blocks.Table(caption, columns, rows, sortable=True).compact()


def metrics(content: Content) -> Iterator[Block]:
    """Tables of results, training, and cost. In each, metrics of hypotheses come first."""
    rest_on = metrics_of(j.hypothesis for j in content.judgements if content.is_registered)
    groups: dict[str, list[Summary]] = {"Results": [], "Training": [], "Cost and convergence": []}
    for found in sorted(content.metrics, key=lambda found: found.metric not in rest_on):
        group = "Training" if found.metric.startswith("train/") else "Results"
        is_cost = _COST.search(found.metric) and found.metric not in rest_on
        groups["Cost and convergence" if is_cost else group].append(found)
    for name, group in groups.items():
        if group:
            caption = f"{name}: mean ± standard error over seeds (n), at the last step of each arm"
            table = metric_table(group, caption, content.arms, rest_on)
            yield table._replace(searchable=True)
    if content.rows is not None:
        yield blocks.Download("results.csv", "text/csv", content.rows)


def metric_table(
    found: Sequence[Summary],
    caption: str,
    arms: Sequence[str],
    rest_on: Mapping[str, Sequence[str]] | None = None,
) -> blocks.Table:
    """A line for each metric and its coordinates, a column for each arm.

    Args:
        rest_on: for each metric, the hypotheses that use it; None leaves out the column.
    """
    present, lines = grid(found)
    arms = [arm for arm in arms if arm in present]
    if len(lines) > _MOST_ROWS:
        caption += f"; the first {_MOST_ROWS:,} of {len(lines):,}, all are in results.jsonl"
    columns = [Column("Metric", "name"), *(Column(arm, "number") for arm in arms)]
    rows = []
    for name, cells in list(lines.items())[:_MOST_ROWS]:
        each = (cells.get(arm) for arm in arms)
        row = [name, *(Cell(words.over_seeds(s), s.mean if s else "nan") for s in each)]
        if rest_on is not None:
            ids = rest_on.get(next(iter(cells.values())).metric)
            row.append(", ".join(ids) if ids else Span("exploratory", "minor"))
        rows.append(row)
    columns += [] if rest_on is None else [Column("Asked by", "words")]
    return blocks.Table(caption, columns, rows, sortable=True)


def amendments(content: Content) -> Iterator[Block]:
    for amendment in content.amendments:
        fields = amendment._asdict() | {"time": words.moment(amendment.time)}
        yield blocks.Facts([(title(name), value(text)) for name, text in fields.items()])


def power(rows: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    if rows:
        yield power_table(rows, "For the seeds that were registered")


def power_table(rows: Sequence[Mapping[str, Any]], caption: str) -> blocks.Table:
    """The planned power of each contrast, from `protocol.planning.power`."""
    numbers = {
        "Level": "alpha", "Smallest p": "smallest_p", "Power at 1 sd": "1.0",
        "Seen with power 0.8, sd": "detectable", "Power at the margin": "power_at_margin",
        "Chance of equivalent": "equivalent", "Units it needs": "equivalent_likely",
    }  # fmt: skip
    columns = [
        Column("Hypothesis", "id"), Column("Contrast", "words"), Column("n", "number"),
        *(Column(name, "number") for name in numbers), Column("Warning", "words"),
    ]  # fmt: skip
    lines = []
    for row in rows[:_MOST_ROWS]:
        powers, n, cluster = (row.get(name) for name in ("power", "n", "cluster"))
        known = {**powers, **row} if isinstance(powers, Mapping) else row
        values = (known.get(name) for name in numbers.values())
        lines.append(
            [
                *(str(row.get(name) or "") for name in ("hypothesis", "contrast")),
                (", ".join(map(str, n)) if isinstance(n, list | tuple) else "")
                + (f" of {cluster}" if _is_amount(cluster) and cluster > 1 else ""),
                *(Cell(words.number(x, 3), x) if _is_amount(x) else words.MISSING for x in values),
                str(row.get("warning") or ""),
            ]
        )
    return blocks.Table(caption, columns, lines, sortable=True).compact()


def planned(row: Mapping[str, Any]) -> str:
    """The planned power of a contrast in one line.

    >>> planned({"power_at_margin": 0.055, "equivalent": 0.0, "equivalent_likely": 80})
    "power 0.055 at the margin; chance of 'equivalent' 0, and 0.8 from 80 units on"
    """
    margin, chance, units = (
        row.get(name) for name in ("power_at_margin", "equivalent", "equivalent_likely")
    )
    parts = []
    if _is_amount(margin):
        parts.append(f"power {words.number(margin, 3)} at the margin")
    if _is_amount(chance):
        later = f", and 0.8 from {units} units on" if _is_amount(units) else ""
        parts.append(f"chance of 'equivalent' {words.number(chance, 3)}{later}")
    return "; ".join(parts)


def circumstances(content: Content) -> Iterator[tuple[str, Text]]:
    """Study, data, hardware, time and cost of the run."""
    study = str(content.config.get("study") or "")
    yield "Study", f"{study} ({content.source})" if content.source else study
    data = content.manifest.get("data")
    named = data.values() if isinstance(data, Mapping) else ()
    specs = [x.get("spec") for x in named if isinstance(x, Mapping)]
    if not (specs := [x for x in specs if isinstance(x, Mapping)]):
        own = content.config.get("data")
        specs = [own] if isinstance(own, Mapping) else []
    yield "Data", "; ".join(map(_in_a_line, specs[:_MOST_PROCESSES]))
    machines = dict.fromkeys(map(_machine, content.environment))
    yield "Hardware", "; ".join(filter(None, machines))
    if began := started(content):
        ended = max((str(p.get("ended") or "") for p in content.processes), default="")
        yield "Run", " to ".join(map(words.moment, filter(None, (began, ended))))
    yield "Cost", cost(content.processes)


def started(content: Content) -> str:
    """When the first process started; '' if that is not known."""
    times = [str(p["started"]) for p in content.processes if p.get("started")]
    return min(times, default="")


def commit(content: Content) -> str:
    """The commit of the code that ran; '' if it is not known."""
    code = content.manifest.get("code")
    return str((code.get("commit") if isinstance(code, Mapping) else None) or "")


def cost(processes: Sequence[Mapping[str, Any]]) -> str:
    """Wall time, number of processes, and the largest memory that one of them used.

    >>> cost([{"seconds": {"total": 3.2}, "peak_bytes": {"host": 2e9}}, {"seconds": None}])
    '3.2s in 2 processes, 1 of them without record; 2 GB of memory'
    """
    used = [p["seconds"].get("total") for p in processes if isinstance(p.get("seconds"), Mapping)]
    peaks = [p["peak_bytes"] for p in processes if isinstance(p.get("peak_bytes"), Mapping)]
    known = [x for x in used if _is_amount(x)]
    if not known:
        return ""
    total = sum(known)
    time = duration(total) if total >= 10 else f"{total:.2g}s"
    text = f"{time} in {words.many(len(processes), 'process')}"
    if lost := len(processes) - len(known):
        text += f", {lost} of them without record"
    most = [x for peak in peaks for x in peak.values() if _is_amount(x)]
    return text + (f"; {words.amount(max(most), 'B')} of memory" if most else "")


def _is_amount(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be shown. Files may hold any value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300


def _in_a_line(fields: Mapping[str, Any]) -> str:
    """
    >>> _in_a_line({"kind": "Images", "name": "digits", "num_train": 256, "size": 0, "flip": True})
    'digits (num_train 256, flip)'
    """
    flat = {name: x for name, x in flatten(fields).items() if x not in (0, "", None, False)}
    kind = flat.pop("kind", "")
    head = str(flat.pop("name", kind))
    rest = ", ".join(name if x is True else f"{name} {x}" for name, x in flat.items())
    return f"{head} ({rest})" if head and rest else head or rest


def _machine(environment: Mapping[str, Any]) -> str:
    processor, device = (environment.get(name) for name in ("processor", "device_kind"))
    count = environment.get("device_count")
    devices = f"{count} × {device}" if device and device != "cpu" else ""
    return ", ".join(str(x) for x in (devices, processor) if x)


def cite(content: Content) -> Iterator[Block]:
    """BibTeX entries of this code and of the papers that the hypotheses name."""
    version = next((v for e in content.environment for n, v in flatten(e).items()
                    if n == "packages.sharpjax"), "")  # fmt: skip
    fields = {
        "author": "{The sharpjax authors}",
        "title": "sharpjax",
        "version": version,
        "note": f"commit {commit(content)}" if commit(content) else "",
    }
    yield blocks.Code(_bibtex("software", "sharpjax", fields), "bibtex")
    said = " ".join([content.title, *(j.hypothesis.source for j in content.judgements)])
    for number in dict.fromkeys(_ARXIV.findall(said)):
        fields = {"eprint": number, "archivePrefix": "arXiv",
                  "url": f"https://arxiv.org/abs/{number}"}  # fmt: skip
        yield blocks.Code(_bibtex("misc", f"arXiv:{number}", fields), "bibtex")
    for number in dict.fromkeys(_OPENREVIEW.findall(said)):
        fields = {"url": f"https://openreview.net/forum?id={number}"}
        yield blocks.Code(_bibtex("misc", f"openreview:{number}", fields), "bibtex")


def _bibtex(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = [f"  {name} = {{{x}}}," for name, x in fields.items() if x]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def again(content: Content) -> Iterator[Block]:
    pairs = [(_one_line(c.purpose), _one_line(c.line)) for c in content.commands]
    if pairs:
        yield blocks.Code("\n\n".join(f"# {purpose}\n{line}" for purpose, line in pairs), "sh")


def environment(content: Content) -> Iterator[Block]:
    kinds = (("Environment", content.environment), ("What was run", content.processes))
    for name, found in kinds:
        if found:
            yield _side_by_side(f"{name} of each process, in their order", found)


def _side_by_side(caption: str, found: Sequence[Mapping[str, Any]]) -> blocks.Table:
    """A table with a column for each of several tables of fields."""
    flat = [flatten(table) for table in found[:_MOST_PROCESSES]]
    names = list(dict.fromkeys(name for table in flat for name in table))[:_MOST_ROWS]
    columns = [Column("Field", "name"), *(Column(f"{i + 1}", "words") for i in range(len(flat)))]
    return blocks.Table(
        caption, columns, [[n, *(value(t.get(n, "")) for t in flat)] for n in names]
    )


def config(content: Content) -> Iterator[Block]:
    fields = list(flatten(content.config).items())[:_MOST_ROWS]
    if fields:
        lines = (f"{name} = {json.dumps(value, default=str)}" for name, value in fields)
        yield blocks.Code("\n".join(map(_one_line, lines)))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def digests(content: Content) -> Iterator[Block]:
    """Digests of the registration, further entries of the manifest, and the list of its files."""
    pairs: list[tuple[str, Text]] = []
    if (sealed := content.registration) is not None:
        pairs += [("Seal", value(sealed.seal)), ("Config", value(sealed.config_digest))]
        pairs += [(title(name), value(x)) for name, x in sealed.digests._asdict().items()]
    known = {name: x for name, x in content.manifest.items() if name not in _SHOWN}
    pairs += [(name, value(x)) for name, x in flatten(known).items()]
    if pairs:
        yield blocks.Facts(pairs[:_MOST_ROWS])
    files = content.manifest.get("files") or {}
    rows = [
        [name, Cell(f"{entry['bytes']:,}", entry["bytes"]), Span(entry["sha256"], "code")]
        for name, entry in sorted(files.items())[:_MOST_ROWS]
    ]
    columns = (Column("File", "name"), Column("Bytes", "number"), Column("SHA-256", "words"))
    if rows:
        listed = blocks.Table(words.many(len(files), "sealed file"), columns, rows, sortable=True)
        yield blocks.Folded("Every sealed file", [listed])


def value(value: Any) -> Text:
    """A value as text; a hexadecimal digest is set as code.

    >>> value("5f" * 20).kind, value("deed"), value(3)
    ('code', 'deed', '3')
    """
    text = str(value)
    return Span(text, "code") if _DIGEST.fullmatch(text) else text


def title(name: str) -> str:
    """
    >>> title("smallest_p")
    'Smallest p'
    """
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table, with dotted names.

    >>> flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)})
    {'a.b': 1, 'd': (1, 2)}
    """
    flat = {}
    for name, value in table.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat
