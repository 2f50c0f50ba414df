"""What is run: for each task the peers, their settings, and how wrong their answers are."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.workloads import Workload

TOL = 1e-3
DENSITY = {"steps": 32, "probes": 4}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A peer's method with settings; `label` names the settings in tables."""

    peer: str
    method: str
    label: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeded: bool = True

    @property
    def name(self) -> str:
        return f"{self.peer} {self.label}".strip()


@dataclasses.dataclass(frozen=True)
class Task:
    """`judge(outcome)` gives the error; `timing` is "call", or "chain": seconds per product of
    `counts[1]` in turn, less what `counts[0]` take."""

    name: str
    workload: str
    title: str
    entries: tuple[Entry, ...]
    judge: Callable[[Any], float] | None = None
    counts: tuple[int, int] | None = None
    allowed: float | None = None


class Plan:
    """The tasks of one workload, made once its truth is known."""

    def __init__(self, workload: Workload, *, quick: bool, everything: bool):
        self.workload, self.quick, self.everything = workload, quick, everything
        name = workload.name
        dense = name == "W0" or quick and name in ("W1", "W1t")
        wants_trace = {"W1": 0.01, "W1t": 0.01, "W3": 0.01}.get(name)
        self.truth = reference.load(
            workload, dense=dense, smallest=dense or name == "W1", trace_error=wants_trace
        )

    def tasks(self, names=()) -> list[Task]:
        """All, or those of the names; what others need is not computed."""
        name = self.workload.name
        if name == "W0":
            makers = {"density": lambda: self.density(with_truth=True)}
        elif name == "W1t":
            makers = {
                "gradient": self.gradients,
                "trace": lambda: self.sampled_trace(0.01),
                "gauss_newton_trace": self.exact_gauss_newton,
            }
        else:
            makers = {
                "gradient": self.gradients,
                "product": self.products,
                "gauss_newton": self.gauss_newton_products,
                "top1": lambda: self.top(1),
                "guards": self.guards,
            }
        if name == "W1":
            makers |= {
                "top10": lambda: self.top(10),
                "batches": self.over_batches,
                "exact_trace": self.exact_trace,
                "density": lambda: self.density(with_truth=self.quick),
                "report": self.report,
                "track5": lambda: self.tracking(5),
                "track50": lambda: self.tracking(50),
            }
        elif name == "W3":
            makers["trace"] = lambda: self.sampled_trace(0.03)
        if self.everything and name in ("W2", "W3"):
            makers["top10"] = lambda: self.top(10)
        return [make() for task, make in makers.items() if not names or task in names]

    def task(self, name, title, entries, **options):
        return Task(name, self.workload.name, title, tuple(entries), **options)

    def gradients(self):
        entries = [
            Entry(peer, "gradient", seeded=False) for peer in ("plain_jax", "edge_of_stability")
        ]
        return self.task("gradient", "one gradient (in jax, in torch)", entries)

    def products(self):
        peers = ["sharpjax", "plain_jax", "pyhessian", "edge_of_stability", "curvlinops"]
        return self.chain("product", "one Hessian product inside a solve", peers, "products")

    def gauss_newton_products(self):
        peers, method = ["sharpjax", "curvlinops", "eigenthings"], "gauss_newton_products"
        return self.chain("gauss_newton", "one Gauss-Newton product inside a solve", peers, method)

    def chain(self, name, title, peers, method):
        entries = [Entry(peer, method, seeded=False) for peer in peers]
        counts = (1, 3) if self.quick or self.workload.name in ("W2", "W3") else (2, 12)
        return self.task(name, title, entries, counts=counts)

    def top(self, k):
        name = self.workload.name
        truth = self.truth["top"][:k]
        few = name != "W1" and not self.everything
        entries = [Entry("sharpjax", "top", settings={"k": k})]
        entries += [Entry("pyhessian", "top", "tol 1e-3, its default", {"k": k})]
        if not few:
            entries.append(self.pyhessian_to_the_same_error(k))
        entries.append(Entry("curvlinops", "top", "eigsh tol 1e-3", {"k": k}))
        if k == 1:
            entries.append(Entry("curvlinops_compiled", "top", "eigsh tol 1e-3", {"k": k}))
        if not few:
            entries.append(Entry("edge_of_stability", "top", "eigsh tol 0", {"k": k}))
        if name != "W2":
            steps = self.steps(k)
            label = f"m={steps} by hand"
            entries.append(Entry("matfree", "top", label, {"k": k, "steps": steps}))
            if not few:
                entries.append(Entry("eigenthings", "top", label, {"k": k, "steps": steps}))
        title = "largest eigenvalue" if k == 1 else f"{k} largest eigenvalues"
        return self.task(f"top{k}", title, entries, judge=values_off(truth), allowed=TOL)

    def guards(self):
        """Products alone count here."""
        truth = self.truth["top"][0]
        entries = [
            Entry("sharpjax", "top", "guards=0", {"k": 1, "guards": 0}),
            Entry("plain_jax", "power_iteration", "stopped by an oracle", {"truth": truth}),
        ]
        title = "largest eigenvalue in the fewest products"
        return self.task("guards", title, entries, judge=values_off([truth]), allowed=TOL)

    def over_batches(self):
        truth = reference.top_over_batches(self.workload)
        steps = self.calibrated(
            "steps over batches",
            lambda: reference.lanczos_steps(self.workload, [truth], all_batches=True, seeds=3),
        )
        label = f"m={steps} by hand"
        tol = self.pyhessian_to_the_same_error(1).settings["tol"]
        in_power = {"tol": tol, "max_iterations": 1000}
        entries = [
            Entry("sharpjax", "top_over_batches", "subsample start"),
            Entry("sharpjax", "top_over_batches", "cold", {"subsample": False}),
            Entry("pyhessian", "top_over_batches", f"tol {tol:g}", in_power),
            Entry("curvlinops", "top_over_batches", "eigsh tol 1e-3"),
            Entry("matfree", "top_over_batches", label, {"steps": steps}),
        ]
        if self.everything:
            entries.append(Entry("edge_of_stability", "top_over_batches", "eigsh tol 0"))
            entries.append(Entry("eigenthings", "top_over_batches", label, {"steps": steps}))
        title = f"largest eigenvalue over {len(self.workload.batches)} batches"
        return self.task("batches", title, entries, judge=values_off([truth]), allowed=TOL)

    def exact_trace(self):
        entries = [
            Entry("sharpjax", "exact_trace", "exact, certified"),
            Entry("sharpjax", "gauss_newton_trace", "Gauss-Newton, exact"),
            self.pyhessian_trace(0.01),
        ]
        title = "trace of a ReLU net, to 1 % standard error or exactly"
        judge = number_off(self.truth["trace"])
        return self.task("exact_trace", title, entries, judge=judge, allowed=0.05)

    def exact_gauss_newton(self):
        entries = [Entry("sharpjax", "gauss_newton_trace", "exact")]
        judge = number_off(self.truth["gauss_newton_trace"])
        title = "Gauss-Newton trace of a tanh net"
        return self.task("gauss_newton_trace", title, entries, judge=judge, allowed=1e-3)

    def sampled_trace(self, error):
        share = f"{100 * error:g} %"
        asked = {"relative_error": error}
        entries = [
            Entry("sharpjax", "trace", share, asked),
            Entry("sharpjax", "controlled_trace", f"{share}, Gauss-Newton as control", asked),
            self.pyhessian_trace(error),
        ]
        if self.workload.name == "W1t" or self.everything:
            # A third each: basis, its trace, probes of the rest. XTrace: half each.
            count = max(4, math.ceil((self.truth["deflated_deviation"] / error) ** 2))
            hutchpp, xtrace = {"products": 3 * count}, {"products": 2 * count}
            entries.append(Entry("matfree", "trace", f"XTrace, {2 * count} by hand", xtrace))
            label = f"Hutch++, {3 * count} by hand"
            peers = ["eigenthings", "traceax"] + (["curvlinops"] if self.everything else [])
            entries += [Entry(peer, "trace", label, hutchpp) for peer in peers]
        title = f"trace to {share} standard error"
        judge = number_off(self.truth["trace"])
        allowed = 5 * error + 5 * self.truth["trace_error"] / abs(self.truth["trace"])
        return self.task("trace", title, entries, judge=judge, allowed=allowed)

    def pyhessian_trace(self, error):
        count = math.ceil((self.truth["probe_deviation"] / error) ** 2)
        label = f"{count} probes for {100 * error:g} %"
        return Entry("pyhessian", "trace", label, {"probes": count})

    def density(self, *, with_truth):
        peers = ["sharpjax", "pyhessian", "curvlinops", "eigenthings", "matfree"]
        entries = [Entry(peer, "density", settings=DENSITY) for peer in peers]
        judge = density_off(self.truth["eigenvalues"]) if with_truth else None
        title = "density, {probes} probes of {steps} products".format(**DENSITY)
        return self.task("density", title, entries, judge=judge, allowed=0.25)

    def report(self):
        tol = self.pyhessian_to_the_same_error(10).settings
        probes = self.pyhessian_trace(0.03).settings["probes"]
        in_turn = {"k": 10, "tol": tol["tol"], "max_iterations": tol["max_iterations"]}
        common = {"steps": DENSITY["steps"], "runs": DENSITY["probes"]}
        entries = [
            Entry("sharpjax", "report", "one run", {"relative_error": 0.03, **common}),
            Entry("pyhessian", "report", "in turn", {**in_turn, "probes": probes, **common}),
        ]
        title = "top 10, smallest, trace to 3 %, density"
        return self.task("report", title, entries, judge=report_off(self.truth), allowed=TOL)

    def tracking(self, every):
        count = 4 if self.quick else 12 if every == 5 else 8
        truth = reference.top_along(self.workload, every=every, count=count)
        entries = [
            Entry("sharpjax", "track", name, {"every": every, "count": count, "warm": warm})
            for name, warm in (("warm", True), ("cold", False))
        ]
        title = f"largest eigenvalue every {every} training steps, {count} times"
        judge = values_off(truth)
        return self.task(f"track{every}", title, entries, judge=judge, allowed=TOL)

    def pyhessian_to_the_same_error(self, k):
        tol, reached = self.calibrated(f"pyhessian tol {k}", lambda: self.pyhessian_tol(k))
        settings = {"k": k, "tol": tol, "max_iterations": 1000}
        label = f"tol {tol:g}, " + ("same error" if reached else "misses the same error")
        return Entry("pyhessian", "top", label, settings)

    def pyhessian_tol(self, k):
        """The largest of its tolerances, down to 1e-5, with which two runs have a true error of
        1e-3; and whether there is one."""
        from benchmarks import peers

        peer, off = peers.load("pyhessian")(self.workload), values_off(self.truth["top"][:k])
        for tol in (1e-3, 3e-4, 1e-4, 3e-5, 1e-5):
            found = (peer.top(k, 100 + i, tol, 1000) for i in range(2))
            if all(off(outcome) <= TOL for outcome in found):
                return tol, True
        return tol, False

    def steps(self, k):
        """Of a method of fixed length, for the k largest."""
        truth, seeds = self.truth["top"][:k], 3 if k > 1 else 5
        return self.calibrated(
            f"steps {k}", lambda: reference.lanczos_steps(self.workload, truth, seeds=seeds)
        )

    def calibrated(self, name, compute):
        return reference.remembered(self.workload, name, compute)


def values_off(truth):
    """The largest relative error of any value."""
    truth = np.asarray(truth)

    def judge(outcome):
        return float(np.max(np.abs(np.asarray(outcome.values) - truth) / np.abs(truth)))

    return judge


def number_off(truth):
    return lambda outcome: float((outcome.values - truth) / abs(truth))


def report_off(truth):
    off = values_off(truth["top"][:10])
    return lambda outcome: off(outcome._replace(values=outcome.detail["top"]))


def density_off(eigenvalues):
    """The integral of |found - true|, both smoothed by a hundredth of the range of the truth."""
    true = np.asarray(eigenvalues)
    sigma = np.ptp(true) / 100
    grid = np.linspace(true.min() - 5 * sigma, true.max() + 5 * sigma, 2001)

    def smooth(nodes, weights):
        kernel = np.exp(-(((grid[:, None] - nodes) / sigma) ** 2) / 2)
        return kernel @ weights / (sigma * math.sqrt(2 * math.pi))

    target = smooth(true, np.full(len(true), 1 / len(true)))

    def judge(outcome):
        detail = outcome.detail
        nodes, weights = (np.asarray(detail[name]) for name in ("nodes", "weights"))
        found = smooth(nodes.ravel(), weights.ravel() / len(nodes))
        atoms = np.asarray(detail.get("atoms", []))
        if atoms.size:
            share = atoms.size / detail["size"]
            found = (1 - share) * found + smooth(atoms, np.full(atoms.size, 1 / detail["size"]))
        return float(np.trapezoid(np.abs(found - target), grid))

    return judge
