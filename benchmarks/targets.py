"""The targets: for each what was asked, what was measured, and whether it was met. Ratios are of
medians over the repetitions of one task, in which the peers took turns."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

NETS = {"W1": "dense", "W1t": "dense, tanh", "W2": "conv", "W3": "transformer"}


# Whose speed depends on another matrix rate than ours.
IN_TORCH = ("pyhessian", "curvlinops", "edge_of_stability", "eigenthings")


class Lack(Exception):
    """What a target needs has not been measured."""


class Results:
    """Medians of what the store holds."""

    def __init__(self, store):
        self.store = store

    def lines(self, workload, task, peer, label="") -> list[dict]:
        """Of the entry of a peer whose name holds the label."""
        found = [
            x
            for x in self.store.find(workload=workload, task=task)
            if x["entry"].split(" ")[0] == peer and label in x["entry"]
        ]
        timed = [x for x in found if x.get("rep", -1) >= 0]
        if not timed:
            failed = [x["reason"] for x in found if x.get("failed")]
            raise Lack(failed[-1] if failed else f"{workload} {task} {peer} was not run")
        names = {x["entry"] for x in timed}
        if len(names) > 1:  # settings were found anew: the last ones count
            timed = [x for x in timed if x["entry"] == timed[-1]["entry"]]
        return timed

    def seconds(self, *entry) -> float:
        return statistics.median(x["seconds"] for x in self.lines(*entry))

    def products(self, *entry) -> float:
        return statistics.median(x["products"] for x in self.lines(*entry))

    def worst(self, *entry) -> float:
        return max(abs(x["error"]) for x in self.lines(*entry))

    def spread(self, *entry) -> float:
        """Root mean square error over the repetitions."""
        return statistics.mean(x["error"] ** 2 for x in self.lines(*entry)) ** 0.5

    def first(self, *entry) -> float:
        """The first call in a fresh process."""
        workload, task, *_ = entry
        name = self.lines(*entry)[-1]["entry"]
        found = self.store.find(workload=workload, task=task, entry=name, rep=-1)
        if not found:
            raise Lack(f"the first call of {workload} {task} {name} was not measured")
        return found[-1]["seconds"]

    def rates(self, workload) -> tuple[float, float]:
        """Of matrix products in JAX and in torch, medians over the sessions."""
        found = self.store.find(workload=workload, task="rates")
        if not found:
            raise Lack(f"matrix rates beside {workload} were not measured")
        return tuple(statistics.median(x[name] for x in found) for name in ("jax", "torch"))

    def bytes(self, workload, what, entry) -> dict:
        found = self.store.find(workload=workload, task="memory", what=what, entry=entry)
        if not found:
            raise Lack(f"memory of {what}, {entry}, was not measured")
        return found[-1]


@dataclasses.dataclass(frozen=True)
class Target:
    """`measure(results)` gives the number and a remark; "at least" or "at most" `asked`.

    A ratio to a peer in torch is judged at equal rate: times the matrix rate of torch over that of
    JAX, both measured beside it.
    """

    work: str
    what: str
    sense: str
    asked: float
    measure: Callable[[Results], tuple[float, str]]
    net: str = "W1"

    @property
    def in_torch(self) -> bool:
        counted = self.work.startswith("tracking") or "products" in self.what
        text = f"{self.work} {self.what}".lower()
        return not counted and any(name in text for name in IN_TORCH)

    def row(self, results: Results) -> dict[str, Any]:
        found = {"work": self.work, "what": self.what, "sense": self.sense, "asked": self.asked}
        found |= {"rates": None, "at_equal_rate": None}
        try:
            value, remark = self.measure(results)
        except Lack as error:
            return found | {"measured": None, "met": None, "remark": str(error)}
        judged = value
        if self.in_torch:
            try:
                jax, torch = results.rates(self.net)
                judged = value * torch / jax
                found |= {"rates": [jax, torch], "at_equal_rate": judged}
            except Lack as error:
                remark += f"; not at equal rate: {error}"
        met = judged >= self.asked if self.sense == "at least" else judged <= self.asked
        return found | {"measured": value, "met": met, "remark": remark}


def targets() -> list[Target]:
    found = []

    def add(work, what, sense, asked, measure, net="W1"):
        found.append(Target(work, what, sense, asked, measure, net))

    work = "one product inside a solve, in gradients of JAX"
    for net, hessian in (("W1", 1.6), ("W2", 2.0), ("W3", 2.0)):
        what = f"Hessian, {NETS[net]}"
        add(work, what, "at most", hessian, lambda r, net=net: in_gradients(r, net, "product"))
        what = f"Gauss-Newton, {NETS[net]}"
        add(work, what, "at most", 1.33, lambda r, net=net: in_gradients(r, net, "gauss_newton"))

    work = "exact traces"
    what = "Hessian of a ReLU net, certified, against PyHessian at 1 %"
    add(work, what, "at least", 40, exact_against_pyhessian)
    for net, task in (("W1", "exact_trace"), ("W1t", "gauss_newton_trace")):
        what = f"Gauss-Newton, {NETS[net]}, in gradients"
        add(
            work, what, "at most", 2, lambda r, net=net, task=task: exact_in_gradients(r, net, task)
        )

    work = "trace of other nets, against PyHessian at the same standard error"
    for net, share in (("W1t", "1 %"), ("W3", "3 %")):
        for label, name in ((f"{share}", "probes"), ("control", "Gauss-Newton as control")):
            what = f"{NETS[net]}, to {share}, {name}"
            add(
                *(work, what, "at least", 3.5),
                lambda r, net=net, x=label: sampled_trace(r, net, x),
                net,
            )

    work = "largest eigenvalue, true error 1e-3, guards on"
    for peer, label, asked in (
        ("pyhessian", "same error", 2.5),
        ("edge_of_stability", "", 6),
        ("curvlinops", "", 6),
    ):
        what = f"dense, against {peer} {label}".strip()
        add(
            *(work, what, "at least", asked),
            lambda r, peer=peer, label=label: faster(r, "W1", "top1", "", peer, label),
        )
    for net in ("W1", "W2", "W3"):
        what = f"{NETS[net]}, guards=0: products, power iteration's less ours"
        add(work, what, "at least", 0, lambda r, net=net: fewest_products(r, net))
    # Those that were faster are named, whatever their error.
    for net, peer, asked in (
        ("W1", "curvlinops_compiled", 4),
        ("W1", "matfree", 1),
        ("W2", "curvlinops", 4),
        ("W2", "pyhessian", 1),
        ("W3", "curvlinops", 4),
        ("W3", "pyhessian", 1),
        ("W3", "matfree", 1),
    ):
        told = {"matfree": ", told its steps", "pyhessian": ", its default tolerance"}
        what = f"{NETS[net]}, against {peer}{told.get(peer, '')}"
        add(
            *(work, what, "at least", asked),
            lambda r, net=net, peer=peer: faster(r, net, "top1", "", peer, ""),
            net,
        )

    work = "first call in a fresh process, compilation included"
    for net in ("W1", "W3"):
        what = f"{NETS[net]}, largest eigenvalue, in first calls of matfree"
        add(work, what, "at most", 1.5, lambda r, net=net: first_call(r, net), net)
    what = "conv, largest eigenvalue, seconds"
    add(work, what, "at most", 8.8, lambda r: (r.first("W2", "top1", "sharpjax"), ""), "W2")

    work = "ten largest eigenvalues, true error 1e-3, dense"
    for peer, label, asked in (("pyhessian", "same error", 5), ("curvlinops", "", 2.2)):
        what = f"against {peer} {label}".strip()
        add(
            *(work, what, "at least", asked),
            lambda r, peer=peer, label=label: faster(r, "W1", "top10", "", peer, label),
        )
    for peer in ("matfree", "eigenthings"):
        what = f"per product, against {peer}"
        add(work, what, "at least", 1.2, lambda r, peer=peer: faster_each(r, peer))

    work = "largest eigenvalue over 8 batches, subsample start"
    for peer, asked in (("pyhessian", 6), ("curvlinops", 6), ("matfree", 2)):
        add(
            *(work, f"dense, against {peer}", "at least", asked),
            lambda r, peer=peer: faster(r, "W1", "batches", "subsample start", peer, ""),
        )

    work = "density at equal products"
    for peer, asked in (("pyhessian", 1.8), ("curvlinops", 2.5), ("matfree", 1.7)):
        add(
            work, f"dense, against {peer}", "at least", asked, lambda r, peer=peer: density(r, peer)
        )

    work = "full report (top 10, smallest, trace to 3 %, density)"
    add(work, "dense, against PyHessian's parts in turn", "at least", 4, report)

    work = "tracking the largest eigenvalue along training, warm"
    for every, asked in ((5, 3), (50, 2.5)):
        what = f"every {every} steps: products cold / warm"
        add(work, what, "at least", asked, lambda r, every=every: tracking(r, every))

    work = "memory (XLA temporaries)"
    for what in ("top", "density"):
        name = "largest eigenvalue" if what == "top" else "density"
        add(
            *(work, f"{name} without a basis, against matfree", "at least", 3),
            lambda r, what=what: less_memory(r, what),
        )
    what = "top 10, in (basis + 3 copies of the parameters + linearisation)"
    add(work, what, "at most", 1, basis_memory)
    return found


def in_gradients(r, net, task):
    ours = r.seconds(net, task, "sharpjax")
    gradient = r.seconds(net, "gradient", "plain_jax")
    if ours <= 0:
        raise Lack("lost in the noise of the machine")
    return ours / gradient, f"{1e3 * ours:.1f} ms; a gradient {1e3 * gradient:.1f} ms"


def exact_against_pyhessian(r):
    ours, theirs = (
        ("W1", "exact_trace", "sharpjax", "certified"),
        ("W1", "exact_trace", "pyhessian"),
    )
    remainder = max(abs(x["detail"]["remainder"]) for x in r.lines(*ours))
    remark = (
        f"{both(r, ours, theirs)}; error {r.worst(*ours):.0e}, remainder {remainder:.0e}; "
        f"PyHessian's error {percent(r.spread(*theirs))}"
    )
    return r.seconds(*theirs) / r.seconds(*ours), remark


def exact_in_gradients(r, net, task):
    label = "Gauss-Newton" if net == "W1" else "exact"
    ours = r.seconds(net, task, "sharpjax", label)
    return ours / r.seconds(net, "gradient", "plain_jax"), f"{1e3 * ours:.1f} ms"


def sampled_trace(r, net, label):
    ours = (net, "trace", "sharpjax", label)
    lines = _plain(r, ours) if label != "control" else r.lines(*ours)
    seconds = statistics.median(x["seconds"] for x in lines)
    error = statistics.mean(x["error"] ** 2 for x in lines) ** 0.5
    theirs = (net, "trace", "pyhessian")
    remark = (
        f"{seconds:.2f} s, error {percent(error)}, {lines[-1]['products']:g} products; "
        f"PyHessian {r.seconds(*theirs):.2f} s, error {percent(r.spread(*theirs))}, "
        f"{r.products(*theirs):g} products"
    )
    return r.seconds(*theirs) / seconds, remark


def faster(r, net, task, our_label, peer, label):
    ours, theirs = (net, task, "sharpjax", our_label), (net, task, peer, label)
    remark = f"{both(r, ours, theirs)}; error {r.worst(*ours):.0e} / {r.worst(*theirs):.0e}"
    if peer == "pyhessian" and task.startswith("top") and label:
        default = r.seconds(net, task, peer, "default") / r.seconds(*ours)
        off = r.worst(net, task, peer, "default")
        remark += f"; at its default tolerance {default:.2g} times, error {off:.0e}"
    if r.worst(*ours) > 1e-3:
        return 0.0, f"{remark}: ours is off by more than 1e-3"
    return r.seconds(*theirs) / r.seconds(*ours), remark


def first_call(r, net):
    ours, theirs = (r.first(net, "top1", peer) for peer in ("sharpjax", "matfree"))
    return ours / theirs, f"{duration(ours)} / {duration(theirs)}"


def fewest_products(r, net):
    ours, theirs = (net, "guards", "sharpjax"), (net, "guards", "plain_jax")
    remark = f"{r.products(*ours):g} / {r.products(*theirs):g}; error {r.worst(*ours):.0e}"
    if r.worst(*ours) > 1e-3:
        return -r.products(*ours), f"{remark}: ours is off by more than 1e-3"
    return r.products(*theirs) - r.products(*ours), remark


def faster_each(r, peer):
    ours, theirs = ("W1", "top10", "sharpjax"), ("W1", "top10", peer)
    each = [r.seconds(*entry) / r.products(*entry) for entry in (ours, theirs)]
    remark = f"{1e3 * each[0]:.1f} / {1e3 * each[1]:.1f} ms; in all {both(r, ours, theirs)}"
    return each[1] / each[0], remark


def density(r, peer):
    ours, theirs = ("W1", "density", "sharpjax"), ("W1", "density", peer)
    ratio, remark = r.seconds(*theirs) / r.seconds(*ours), both(r, ours, theirs)
    known = [statistics.mean(errors(r, "W0", "density", p)) for p in ("sharpjax", peer)]
    return ratio, f"{remark}; L1 error on W0 {known[0]:.3f} / {known[1]:.3f}"


def report(r):
    ours, theirs = ("W1", "report", "sharpjax"), ("W1", "report", "pyhessian")
    remark = f"{both(r, ours, theirs)}, without the smallest; error of the top 10 "
    remark += f"{r.worst(*ours):.0e} / {r.worst(*theirs):.0e}"
    return r.seconds(*theirs) / r.seconds(*ours), remark


def tracking(r, every):
    warm, cold = (("W1", f"track{every}", "sharpjax", x) for x in ("warm", "cold"))
    remark = f"{r.products(*cold):.1f} / {r.products(*warm):.1f}; error {r.worst(*warm):.0e}"
    if r.worst(*warm) > 1e-3:
        return 0.0, f"{remark}: a value is off by more than 1e-3"
    return r.products(*cold) / r.products(*warm), remark


def less_memory(r, what):
    ours, theirs = (r.bytes("W1", what, name)["bytes"] for name in ("sharpjax", "matfree"))
    return theirs / ours, f"{megabytes(ours)} / {megabytes(theirs)}"


def basis_memory(r):
    found = r.bytes("W1", "top10", "sharpjax")
    linearization = r.bytes("W1", "linearization", "sharpjax")["bytes"]
    copy = found["copy"]
    allowed = (found["rows"] + 3) * copy + linearization
    return found["bytes"] / allowed, f"{megabytes(found['bytes'])} of {megabytes(allowed)}"


def both(r, ours, theirs) -> str:
    return f"{duration(r.seconds(*ours))} / {duration(r.seconds(*theirs))}"


def errors(r, *entry) -> list[float]:
    return [abs(x["error"]) for x in r.lines(*entry)]


def _plain(r, ours):
    net, task, peer, label = ours
    found = r.store.find(workload=net, task=task, entry=f"{peer} {label}")
    found = [x for x in found if x.get("rep", -1) >= 0]
    if not found:
        raise Lack(f"{net} {task} {peer} {label} was not run")
    return found


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def plain(text: str) -> str:
    """What a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "/")


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
