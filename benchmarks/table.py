"""From measurements to the page and the file of results."""

import datetime
import json
import statistics

from benchmarks.targets import Lack, Results, duration, megabytes, plain, targets
from benchmarks.workloads import HERE

KNOWN = {
    ("W3", "curvlinops", "product"): "it differentiates `jacrev` forward, which in PyTorch 2.13 is "
    "wrong in the weights of `layer_norm` (`grad` in its place is right)",
}


def problems(store, tasks) -> list[str]:
    """Answers further off than they may be, and peers that failed."""
    found = []
    for line in store.find(task="agreement"):
        known = (line["workload"], line["entry"], line["method"]) in KNOWN
        if line["error"] > 1e-4 and not known:
            found.append(
                f"{line['workload']} {line['entry']} {line['method']}: {line['error']:.1e} off"
            )
    for task in tasks:
        for entry in task.entries:
            key = {"workload": task.workload, "task": task.name, "entry": entry.name}
            lines = [x for x in store.find(**key) if x.get("rep", -1) >= 0]
            failed = [x for x in store.find(**key) if x.get("failed")]
            if not lines and failed and "has no" not in failed[-1]["reason"]:
                found.append(f"{task.workload} {task.name} {entry.name}: {failed[-1]['reason']}")
            if task.allowed is None or entry.peer == "pyhessian" and task.name != "exact_trace":
                continue  # its own tolerances promise less; the table shows its errors
            worst = max((abs(x["error"]) for x in lines if x["error"] is not None), default=0)
            if not worst <= task.allowed:
                found.append(
                    f"{task.workload} {task.name} {entry.name}: error {worst:.1e}, "
                    f"at most {task.allowed:.1e} is allowed"
                )
    return found


def write(store, plans, hardware: str, environment: dict) -> None:
    results = Results(store)
    rows = [target.row(results) for target in targets()]
    date = datetime.date.today().isoformat()
    lines = [x for x in store.lines if "task" in x]
    sessions = {x["session"] for x in lines}
    nets = {
        plan.workload.name: {
            "title": plan.workload.title,
            "parameters": plan.workload.size,
            "data": plan.workload.data,
            "examples": len(plan.workload.batch["label"]),
            "digest": plan.workload.digest,
            "truth": {k: v for k, v in plan.truth.items() if k != "eigenvalues"},
        }
        for plan, _ in plans
    }
    found = {
        "date": date,
        **environment,
        "sessions": len(sessions),
        "workloads": nets,
        "targets": rows,
        "measurements": [{k: v for k, v in x.items() if k != "stamp"} for x in lines],
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{hardware}.json").write_text(json.dumps(found, indent=1) + "\n")
    text = page(results, rows, plans, environment, date, len(sessions))
    (folder / f"{hardware}.md").write_text(text)


def page(results, rows, plans, environment, date, sessions) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    counts = [sum(row["met"] is met for row in rows) for met in (True, False, None)]
    out = [
        f"# Benchmarks: {environment['device']}, {environment['cores']} cores",
        "",
        f"Measured on {date}, {environment['platform']}, Python {environment['python']}; "
        f"{versions}. Written by `make bench`; do not edit.",
        "",
        "Float32 without TF32; peers take turns in each repetition; medians of the repetitions, "
        f"in {sessions} process{'es' if sessions > 1 else ''}. Errors are measured against float64 "
        "by "
        "code of the benchmarks' own, not taken from what a library reports. Compilation is not in "
        "the times; the last column below has the first call of a fresh process, with it.",
        "",
        f"## Targets: {counts[0]} met, {counts[1]} missed, {counts[2]} not measured",
        "",
        "Pairs are ours / theirs. Ratios to peers in torch move with the processor: beside each is "
        "the best float32 matrix product of JAX and of torch in the same run, and it is judged at "
        "equal rate, which is the ratio times the rate of torch over that of JAX.",
        "",
        "| work | what | target | measured | matrices in JAX / torch | at equal rate | | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = None
    for row in rows:
        verdict = {True: "met", False: "**missed**", None: "not measured"}[row["met"]]
        value = "" if row["measured"] is None else f"{row['measured']:.3g}"
        work = "" if row["work"] == last else row["work"]
        last = row["work"]
        beside = "|"
        if row["rates"] is not None:
            ours, theirs = (x / 1e9 for x in row["rates"])
            beside = f"{ours:.0f} / {theirs:.0f} GF/s | {row['at_equal_rate']:.3g}"
        out.append(
            f"| {work} | {row['what']} | {row['sense']} {row['asked']:g} | {value} | {beside} "
            f"| {verdict} | {plain(row['remark'])} |"
        )
    out += ["", "## Measurements", ""]
    for plan, tasks in plans:
        net = plan.workload
        size = len(net.batch["label"])
        out += [
            f"### {net.name}: {net.title}, n = {net.size:,}, {size} examples ({net.data})",
            "",
            "| task | peer | median | least, most | products | error | first call |",
            "|---|---|---|---|---|---|---|",
        ]
        for task in tasks:
            out += measured(results.store, task)
        out += (
            [""]
            + agreement(results.store, net.name)
            + share_of_rate(results, net.name)
            + resident(results, net.name)
        )
    return "\n".join(out).rstrip() + "\n"


def measured(store, task) -> list[str]:
    out, title = [], task.title
    for entry in task.entries:
        key = {"workload": task.workload, "task": task.name, "entry": entry.name}
        lines = [x for x in store.find(**key) if x.get("rep", -1) >= 0]
        if not lines:
            reasons = [x["reason"] for x in store.find(**key) if x.get("failed")]
            if reasons:
                reason = plain(reasons[-1])
                out.append(f"| {title} | {entry.name} | {reason} | | | | |")
                title = ""
            continue
        seconds = sorted(x["seconds"] for x in lines)
        products = {x["products"] for x in lines if x["products"] is not None}
        span = "" if not products else f"{min(products):g}"
        if len(products) > 1:
            span += f" to {max(products):g}"
        off = [abs(x["error"]) for x in lines if x["error"] is not None]
        first = store.find(**key, rep=-1)
        out.append(
            f"| {title} | {entry.name} | {duration(statistics.median(seconds))} "
            f"| {duration(seconds[0])}, {duration(seconds[-1])} | {'' if task.counts else span} "
            f"| {f'{max(off):.1e}' if off else ''} "
            f"| {duration(first[0]['seconds']) if first else ''} |"
        )
        title = ""
    return out


def agreement(store, net) -> list[str]:
    lines = store.find(workload=net, task="agreement")
    if not lines:
        return []
    known = [x for x in lines if (net, x["entry"], x["method"]) in KNOWN]
    worst = max(x["error"] for x in lines if x not in known)
    text = f"Gradients and products of all peers agree with float64 to {worst:.0e}"
    for x in known:
        reason = KNOWN[net, x["entry"], x["method"]]
        text += f", but for the {x['method']} of {x['entry']}, {x['error']:.0e} off: {reason}"
    return [text + ".", ""]


def share_of_rate(results, net) -> list[str]:
    found = results.store.find(workload=net, task="flops")
    if not found:
        return []
    line = found[-1]
    out = [
        f"Operations: gradient {line['gradient'] / 1e9:.2f} GF, Hessian product from scratch "
        f"{line['product'] / 1e9:.2f} GF, inside a solve {line['in_solve'] / 1e9:.2f} GF. "
        f"Best float32 matrix product in this run: {line['rate'] / 1e9:.0f} GF/s."
    ]
    try:
        seconds = results.seconds(net, "product", "sharpjax")
        share = line["in_solve"] / seconds / line["rate"]
        out[0] += f" A product inside a solve reaches {100 * share:.0f} % of it."
    except Lack:
        pass
    return [*out, ""]


def resident(results, net) -> list[str]:
    lines = [x for x in results.store.find(workload=net, task="memory") if "rss" in x["what"]]
    temporaries = [
        x
        for x in results.store.find(workload=net, task="memory")
        if x["what"] in ("top", "top10", "density")
    ]
    out = []
    if temporaries:
        out += ["| XLA temporaries of a solve | peer | bytes |", "|---|---|---|"]
        for x in sorted(temporaries, key=lambda x: x["what"]):
            out.append(f"| {x['what']} | {x['entry']} | {megabytes(x['bytes'])} |")
        out.append("")
    if lines:
        out += [
            "| fresh process | peer | peak resident memory | before the call |",
            "|---|---|---|---|",
        ]
        for x in lines:
            what = x["what"].split(":")[1]
            found = f"{megabytes(x['bytes'])} | {megabytes(x['before'])}"
            out.append(f"| {what} | {x['entry']} | {found} |")
        out.append("")
    return out
