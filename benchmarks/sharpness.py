"""What closed forms and one program save of the measures of sharpness, as ratios of one run.

    python benchmarks/sharpness.py [--tiny] [--repeats=5]

The net is W1 of `workloads.py`, a ReLU MLP 784-512-512-10 with 1,024 examples, trained briefly
(`--tiny`: a net of 3,466 parameters, to see that it runs, with ratios that mean nothing). Both ways
are timed in turns after a first call of each, compilation left out; a long one is timed once.
Prints a table; in under four minutes on two quiet cores.
"""

import argparse
import datetime
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, workloads
from sharpjax import geometry, tree
from sharpjax.losses import CrossEntropy

_LONG = 5.0  # seconds, of what is not repeated


def timed(ways, repeats):
    """Of each function by name: the median of its times in seconds, and what it gives."""
    times, found = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, fn in ways.items():
            if times[name] and times[name][0] > _LONG:
                continue
            with measure.Clock() as clock:
                found[name] = jax.block_until_ready(fn())
            times[name].append(clock.seconds)
    return {name: statistics.median(of) for name, of in times.items()}, found


def flatness(loss, params, batch, repeats):
    """The closed form against the trace of each neuron's blocks, by a product for each weight.

    The other way is given the features. The closed form finds them, which takes 14 of its 20 ms of
    processor time on the MLP with 670,000 parameters: the ratio is bounded by that forward pass.
    """
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    features = batch["image"].reshape(len(batch["image"]), -1)
    for name in sorted(set(params) - {"head"}):
        features = jax.nn.relu(features @ params[name]["kernel"] + params[name]["bias"])

    @jax.jit
    def neuron_wise(kernel, weights):
        """sum_ds H[ds, ds'] <w_s, w_s'>, one second backward pass for each weight ds."""
        slope = jax.grad(lambda w: workloads.cross_entropy(features @ w + bias, batch))
        inner, (_, back) = kernel.T @ kernel, jax.vjp(slope, kernel)

        def one(index):
            d, s = index // kernel.shape[1], index % kernel.shape[1]
            unit = jnp.zeros_like(kernel).at[d, s].set(1)
            return back(unit)[0][d] @ inner[s]

        return jnp.sum(jax.lax.map(one, weights))

    def closed():
        return geometry.relative_flatness(loss, params, batch, head="head/kernel").value

    every = jnp.arange(kernel.size)
    compiled = neuron_wise.lower(kernel, every).compile()
    closed()
    times, found = timed({"closed": closed, "other": lambda: compiled(kernel, every)}, repeats)
    np.testing.assert_allclose(found["closed"], found["other"], rtol=1e-3)
    what = f"relative flatness, head {kernel.shape[0]} x {kernel.shape[1]}"
    return what, "closed form / a double backward for each weight", times, 1000, "equal to 1e-3"


def information(loss, params, batch, repeats, num_directions=20, most=100, tol=1e-2):
    """The dual against power iteration with deflation on the Fisher matrix, as its authors have it:
    the largest directions alone."""
    operator = geometry.fisher(loss, params, batch)
    product = jax.jit(lambda operator, v: operator.linearize()(v))
    gradient = jax.jit(jax.grad(loss))
    advance = jax.jit(_advance)

    def power():
        g, vectors, value = gradient(params, batch), [], 0.0
        for i in range(num_directions):
            v, last = tree.random_normal(jax.random.key(i), params), 0.0
            stacked = tree.stack(vectors) if vectors else None
            for _ in range(most):
                v, size = advance(product(operator, v), stacked)
                if abs(float(size) - last) <= tol * abs(float(size)):
                    break
                last = float(size)
            vectors.append(v)
            value += float(tree.vdot(g, v)) ** 2 / float(size)
        return value

    def dual():
        return geometry.information_sharpness(loss, params, batch).value

    dual()
    power()
    times, found = timed({"dual": dual, "power": power}, repeats)
    share = found["power"] / float(found["dual"])
    what = f"information-geometric sharpness, {len(batch['label'])} examples"
    remark = f"its {num_directions} directions hold {share:.0%} of the exact value"
    return what, f"dual / power iteration, {num_directions} directions", times, 20, remark


def _advance(v, others):
    """What is left of a product outside of the directions found before, and its length."""
    if others is not None:
        shares = jax.vmap(lambda u: tree.vdot(u, v))(others)
        v = jax.tree.map(lambda x, u: x - jnp.tensordot(shares, u, 1), v, others)
    size = tree.norm(v)
    return tree.scale(1 / size, v), size


def restarts(loss, params, batch, repeats, count=8):
    """Restarts of the worst case in one program against a call for each.

    The searches run one after another, with 161 gradients for 168: what one program saves is
    the centre and what a call costs beside. As lanes (vmap) they would be no faster on a CPU, and
    take the memory of all: of 8 gradients together, processor time was 1.05 times that of one after
    another on the net of 3,466 parameters, and 1.13 times on that of 670,000.
    """
    keys = jax.random.split(jax.random.key(0), count)

    def worst(key, restarts):
        found = geometry.worst_case_sharpness(
            loss, params, batch, key=key, rho=0.1, restarts=restarts
        )
        return found.value

    def together():
        return worst(keys[0], count)

    def apart():
        return jnp.max(jnp.stack([worst(key, 1) for key in keys]))

    together()
    apart()
    times, _ = timed({"one program": together, "a call each": apart}, repeats)
    return f"worst case, {count} restarts", "one program / a call for each", times, 2, "20 steps"


def epoch(loss, params, batch, repeats, batch_size=128):
    """Closed forms together against one epoch of SGD on the same points."""
    optimizer = optax.sgd(0.05, momentum=0.9)
    start = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return optax.apply_updates(params, updates), state

    size = len(batch["label"])
    parts = [
        jax.tree.map(lambda x, i=i: x[i : i + batch_size], batch)
        for i in range(0, size, batch_size)
    ]

    def train():
        now, state = params, start
        for part in parts:
            now, state = step(now, state, part)
        return now

    def measures():
        found = geometry.relative_flatness(loss, params, batch, head="head/kernel")
        return found.value, geometry.fisher_rao(loss, params, batch).value

    train()
    measures()
    times, _ = timed({"measures": measures, "epoch": train}, repeats)
    what = f"relative flatness and Fisher-Rao norm, {size:,} points"
    return what, f"both / an epoch of SGD in batches of {batch_size}", times, 1, ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    workload = workloads.load("W1", quick=flags.tiny)
    params, batch = jax.tree.map(jnp.asarray, (workload.params, workload.batch))
    model = workloads.Model(workload.module, jax.tree.map(jnp.asarray, workload.variables))
    loss = geometry.composed(model, workloads.cross_entropy)
    few = jax.tree.map(lambda x: x[: 16 if flags.tiny else 64], batch)
    likelihood = geometry.composed(model, CrossEntropy())
    print(f"{workload.title}, {tree.size(params):,} parameters, {workload.data}; "
          f"{measure.hardware()}, jax {jax.__version__}, {datetime.date.today()}\n")  # fmt: skip
    print("| measure | ours / other | times | ratio | goal | | remark |")
    print("|---|---|---|---|---|---|---|")
    for fn, of, examples in (
        (flatness, loss, batch),
        (information, likelihood, few),
        (restarts, loss, batch),
        (epoch, likelihood, batch),
    ):
        what, ways, times, goal, remark = fn(of, params, examples, flags.repeats)
        ours, other = times.values()
        ratio = other / ours
        met = "met" if ratio >= goal else "**missed**"
        shown = f"{ours * 1e3:,.1f} ms / {other * 1e3:,.1f} ms"
        print(
            f"| {what} | {ways} | {shown} | {ratio:,.3g} | {goal:,} | {met} | {remark} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
