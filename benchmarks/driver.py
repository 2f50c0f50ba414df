"""The order of things: workloads, tasks, repetitions with the peers interleaved, then the table."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import traceback

import jax
import numpy as np
import torch

from benchmarks import measure, peers, reference, table, workloads
from benchmarks.measure import Clock, Store
from benchmarks.tasks import DENSITY, Entry, Plan, Task
from benchmarks.torch_models import flatten


def run(args) -> int:
    configure()
    hardware = measure.hardware()
    repeats = args.repeats or (1 if args.quick else 5)
    stamp = measure.stamp([args.quick, args.data_dir])
    folder = workloads.CACHE / "measurements"
    path = folder / f"{hardware}{'-quick' if args.quick else ''}.jsonl"
    if args.fresh and path.exists():
        path.unlink()
    store = Store(path, stamp, any_stamp=args.keep)
    if store.ignored:
        say(f"{store.ignored} measurements of other sources or versions left aside (--keep: used)")
    only, start = {x for x in args.only.split(",") if x}, time.time()
    wanted = [n for n in workloads.NAMES if n in only or not only & set(workloads.NAMES)]
    names = only - set(workloads.NAMES)
    if args.table:
        wanted = workloads.NAMES
    plans = []
    for name in wanted:
        workload = workloads.load(name, quick=args.quick, data_dir=args.data_dir)
        say(f"{name}: {workload.title}, n = {workload.size:,}, {workload.data}")
        with Clock() as clock:
            plan = Plan(workload, quick=args.quick, everything=args.everything)
            tasks = plan.tasks(() if args.table else names)
        plans.append((plan, tasks))
        if clock.seconds > 1:
            say(f"  truth and settings: {clock.seconds:.0f} s")
        if args.table:
            continue
        crew = Crew(workload)
        if not names or "agreement" in names:
            agree(store, workload, crew)
        for task in tasks:
            measure_task(store, task, crew, repeats)
            if not args.quick or task.name == "top1":
                first_calls(store, task, args)
        if not names or "rates" in names:
            rates(store, workload)
        if (not names or "memory" in names) and name == "W1":
            memory(store, plan, crew, args)
        if not args.quick and (not names or "flops" in names):
            flops(store, workload, crew)
        del crew
        gc.collect()
    say(f"{time.time() - start:.0f} s in all")
    problems = table.problems(store, [task for _, tasks in plans for task in tasks])
    for problem in problems:
        say(f"PROBLEM: {problem}")
    if args.quick:
        say("all answers agree with the truth" if not problems else "not all answers agree")
    elif only and not args.table:
        say("a part: the table is written by a run without --only, or by --table")
    else:
        table.write(store, plans, hardware, measure.environment())
        say(f"written: benchmarks/results/{hardware}.md and .json")
    return 1 if args.quick and problems else 0


def configure() -> None:
    """The same precision for all: float32, no TF32 or bfloat16 in matrix products."""
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


class Crew:
    """The peers of one workload, each made when it is first needed."""

    def __init__(self, workload):
        self.workload, self.made, self.trajectories = workload, {}, {}

    def __getitem__(self, name):
        if name not in self.made:
            self.made[name] = peers.load(name)(self.workload)
        return self.made[name]

    def trajectory(self, every, count):
        if (every, count) not in self.trajectories:
            found = workloads.trajectory(self.workload, every=every, count=count)
            self.trajectories[every, count] = found
        return self.trajectories[every, count]

    def call(self, entry: Entry, seed: int, **more):
        method = getattr(self[entry.peer], entry.method)
        settings = dict(entry.settings) | more
        if entry.method == "track":
            checkpoints = self.trajectory(settings.pop("every"), settings.pop("count"))
            settings["checkpoints"] = checkpoints
        return method(seed=seed, **settings) if entry.seeded else method(**settings)


def measure_task(store: Store, task: Task, crew: Crew, repeats: int) -> None:
    """What is missing of a task: one repetition after another, and in each all peers."""
    key = {"task": task.name, "workload": task.workload}
    if task.name.startswith("track"):
        repeats = min(repeats, 2)  # products are counted, not seconds
    entries = [
        entry
        for entry in task.entries
        if len(_repetitions(store, key, entry)) < repeats
        and not store.find(**key, entry=entry.name, session=store.session, failed=True)
    ]
    if not entries:
        return
    say(f"  {task.workload} {task.title}")
    ready = [entry for entry in entries if _warm(store, task, key, crew, entry)]
    for rep in range(repeats):
        for entry in ready[rep % len(ready) :] + ready[: rep % len(ready)] if ready else []:
            if rep not in _repetitions(store, key, entry):
                _measure(store, task, key, crew, entry, rep)
    for entry in task.entries:
        lines = _timed(store, key, entry)
        if lines:
            seconds = statistics.median(x["seconds"] for x in lines)
            errors = [abs(x["error"]) for x in lines if x["error"] is not None]
            error = f"  error {max(errors):.1e}" if errors else ""
            products = lines[-1]["products"]
            count = f"  {products:g} products" if products else ""
            say(f"    {entry.name:<44} {1e3 * seconds:10.1f} ms{count}{error}")


def _warm(store, task, key, crew, entry) -> bool:
    """Compiles; what that takes is measured by `first_calls`, since here much is there already."""
    try:
        peer = crew[entry.peer]
        if not hasattr(peer, entry.method):
            raise peers.Missing(f"{entry.peer} has no {entry.method}")
        if peer.compiles or task.counts:
            for count in task.counts or (None,):
                crew.call(entry, 0, **({} if count is None else {"count": count}))
        else:
            peer.gradient()
        return True
    except peers.Missing as error:
        say(f"    {entry.name}: left out: {error}")
        store.add(**key, entry=entry.name, failed=True, reason=str(error))
    except Exception as error:  # one peer that fails must not end the run
        _failed(store, key, entry, error)
    return False


def first_calls(store: Store, task: Task, args) -> None:
    """The first call of each peer that compiles, each in a fresh process."""
    key = {"task": task.name, "workload": task.workload}
    for entry in task.entries:
        done = _repetitions(store, key, entry) and peers.load(entry.peer).compiles
        if not done or store.find(**key, entry=entry.name, rep=-1):
            continue
        settings = dict(entry.settings) | ({"count": task.counts[0]} if task.counts else {})
        asked = dataclasses.asdict(dataclasses.replace(entry, settings=settings))
        command = [sys.executable, workloads.HERE / "run.py"]
        command += [f"--first={json.dumps({'workload': task.workload, 'entry': asked})}"]
        command += [f"--data_dir={args.data_dir}"] * bool(args.data_dir)
        command += ["--quick"] * args.quick
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            say(f"    first call of {entry.name}: failed: {done.stderr.strip()[-200:]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        say(f"    {entry.name:<44} first call {found['seconds']:.1f} s")
        store.add(**key, entry=entry.name, rep=-1, **found)


def first(args) -> int:
    """One call in a process of its own, compilation included; prints what it took."""
    configure()
    asked = json.loads(args.first)
    workload = workloads.load(asked["workload"], quick=args.quick, data_dir=args.data_dir)
    entry, crew = Entry(**asked["entry"]), Crew(workload)
    crew[entry.peer]
    if entry.method == "track":  # checkpoints are made before the clock starts
        crew.trajectory(entry.settings["every"], entry.settings["count"])
    jax.block_until_ready(jax.jit(jax.numpy.add)(1.0, 1.0))
    processor = time.process_time()
    with Clock() as clock:
        crew.call(entry, 0)
    print(json.dumps({"seconds": clock.seconds, "processor": time.process_time() - processor}))
    return 0


def _measure(store, task, key, crew, entry, rep) -> None:
    gc.collect()
    try:
        if task.counts:
            outcome, seconds = _per_product(crew, entry, task.counts)
        else:
            with Clock() as clock:
                outcome = crew.call(entry, rep)
            seconds, calls = clock.seconds, 1
            if seconds < 0.1:  # what is short is repeated
                calls = math.ceil(0.3 / max(seconds, 1e-4))
                with Clock() as clock:
                    for _ in range(calls):
                        crew.call(entry, rep)
                seconds = clock.seconds / calls
        error = task.judge(outcome) if task.judge else None
        detail = {
            name: value
            for name, value in outcome.detail.items()
            if name not in ("vector", "nodes", "weights", "atoms", "size")
        }
        products = None if math.isnan(outcome.products) else outcome.products
        values = outcome.values if task.name.startswith("top") else None
        found = {"seconds": seconds, "products": products, "error": error, "values": values}
        store.add(**key, entry=entry.name, rep=rep, **found, detail=detail)
    except Exception as error:
        _failed(store, key, entry, error)


def _per_product(crew, entry, counts):
    few, many = counts
    with Clock() as first:
        crew.call(entry, 0, count=few)
    with Clock() as second:
        outcome = crew.call(entry, 0, count=many)
    return outcome, (second.seconds - first.seconds) / (many - few)


def _failed(store, key, entry, error) -> None:
    traceback.print_exc(limit=-3, file=sys.stderr)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    say(f"    {entry.name}: FAILED: {reason}")
    store.add(**key, entry=entry.name, failed=True, reason=reason)


def _timed(store, key, entry) -> list[dict]:
    return [x for x in store.find(**key, entry=entry.name) if x.get("rep", -1) >= 0]


def _repetitions(store, key, entry) -> set[int]:
    return {x["rep"] for x in _timed(store, key, entry)}


def agree(store: Store, workload, crew: Crew) -> None:
    """Gradient and products of every peer against float64, as relative errors of the vector."""
    key = {"task": "agreement", "workload": workload.name}
    if store.find(**key):
        return
    twin = crew["edge_of_stability"].twin
    direction = workload.vector(0)
    product, _ = reference.hessian_product(workload)
    exact = reference.Twin(workload, dtype=torch.float64)
    truth = {
        "gradient": flatten(exact.gradient()),
        "product": product(flatten(exact.tensors(direction))),
        "gauss_newton_product": reference.gauss_newton_product(workload, direction),
    }
    for name in peers.NAMES:
        for method, target in truth.items():
            if not hasattr(crew[name], method):
                continue
            try:
                found = getattr(crew[name], method)().detail["vector"]
            except peers.Missing:
                continue
            if crew[name].framework == "jax":
                found = twin.tensors(jax.tree.map(np.asarray, found))
            if not isinstance(found, torch.Tensor):
                found = flatten(found)
            error = float((found.double() - target).norm() / target.norm())
            store.add(**key, entry=name, method=method, rep=0, error=error)
    worst = max(store.find(**key), key=lambda x: x["error"])
    say(f"  gradients and products agree with float64 to {worst['error']:.0e} ({worst['entry']})")


def flops(store: Store, workload, crew: Crew) -> None:
    """What a product asks for, and the rate that the machine has for large matrix products."""
    key = {"task": "flops", "workload": workload.name}
    if store.find(**key) or workload.name not in ("W1", "W2", "W3"):
        return
    gradient, product = crew["plain_jax"].flops()
    in_solve = crew["sharpjax"].in_solve_flops()
    found = {"gradient": gradient, "product": product, "in_solve": in_solve, "rate": matrix_rate()}
    store.add(**key, rep=0, **found)


def rates(store: Store, workload) -> None:
    """The matrix rates of both frameworks beside what was measured of a net."""
    found = {"jax": matrix_rate(), "torch": torch_matrix_rate()}
    store.add(task="rates", workload=workload.name, rep=0, **found)
    say("  matrices: " + ", ".join(f"{name} {x / 1e9:.0f} GF/s" for name, x in found.items()))


def torch_matrix_rate() -> float:
    best, device = 0.0, "cuda" if torch.cuda.is_available() else "cpu"
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        x = torch.randn(size, size, device=device)
        for _ in range(6):
            with Clock() as clock:
                y = x @ x
                y[0, 0].item()
            best = max(best, 2 * size**3 / clock.seconds)
    return best


def matrix_rate() -> float:
    """The best float32 matrix product, operations per second."""
    best = 0.0
    for size in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jax.random.normal(jax.random.key(0), (size, size))
        multiply = jax.jit(jax.numpy.matmul)
        multiply(x, x).block_until_ready()
        for _ in range(5):
            with Clock() as clock:
                multiply(x, x).block_until_ready()
            best = max(best, 2 * size**3 / clock.seconds)
    return best


def memory(store: Store, plan: Plan, crew: Crew, args) -> None:
    """XLA's temporaries, and the peak of a fresh process, baseline and solve."""
    key = {"task": "memory", "workload": plan.workload.name}
    steps = {"top": plan.steps(1), "top10": plan.steps(10), "density": DENSITY["steps"]}
    for name in ("sharpjax", "matfree"):
        for what, count in steps.items():
            if store.find(**key, entry=name, what=what):
                continue
            try:
                # This library needs some more products than the fewest, to be sure of them.
                most = 4 * math.ceil(1.5 * count / 4) if name == "sharpjax" else count
                found = crew[name].temporaries(what, most if what == "top10" else count)
            except peers.Missing as error:
                say(f"    memory of {what}, {name}: left out: {error}")
                continue
            rows = most if name == "sharpjax" else count
            copy = 4 * plan.workload.size
            store.add(**key, entry=name, what=what, rep=0, bytes=found, rows=rows, copy=copy)
    if not store.find(**key, entry="sharpjax", what="linearization"):
        found = crew["sharpjax"].linearization_bytes()
        store.add(**key, entry="sharpjax", what="linearization", rep=0, bytes=found)
    if args.quick:
        return
    wanted = ["plain_jax:gradient", "edge_of_stability:gradient"]
    wanted += [f"{p}:top" for p in ("sharpjax", "matfree", "pyhessian", "curvlinops")]
    wanted += [f"{p}:top10" for p in ("sharpjax", "matfree", "curvlinops", "eigenthings")]
    for what in wanted:
        if store.find(**key, what=f"rss {what}"):
            continue
        count = steps.get(what.split(":")[1], 0)
        command = [sys.executable, workloads.HERE / "run.py", f"--rss={what}:{count}"]
        command += [f"--data_dir={args.data_dir}"] if args.data_dir else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            say(f"    peak memory of {what}: failed: {done.stderr.strip()[-200:]}")
            continue
        store.add(
            **key, what=f"rss {what}", entry=what.split(":")[0], rep=0, **json.loads(done.stdout)
        )


def peak(args) -> int:
    """One solve in a process of its own; prints the peak of its resident memory."""
    configure()
    name, what, steps = args.rss.split(":")
    workload = workloads.load("W1", quick=args.quick, data_dir=args.data_dir)
    peer = peers.load(name)(workload)
    before = _peak()
    k = 10 if what == "top10" else 1
    settings = {"steps": int(steps)} if name in ("matfree", "eigenthings") else {}
    if what == "gradient":
        peer.gradient()
    else:
        peer.top(k, 0, **settings)
    print(json.dumps({"bytes": _peak(), "before": before}))
    return 0


def _peak() -> int:
    """Of this program: `getrusage` would give that of the process it was forked from, if more."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status).group(1))


def say(text: str) -> None:
    print(text, flush=True)
