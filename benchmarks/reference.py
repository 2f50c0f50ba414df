"""The truth that every answer is measured against, in float64, by code of its own.

Eigenvalues: Lanczos with two sweeps of Gram-Schmidt on PyTorch's double-precision products, run
until the wanted values are known to 1e-7 by residual^2 / gap. All of them, by a dense solver, where
the net is small. Traces of dense nets: exactly, by carrying each example's Hessian back through the
layers. Where neither is possible: probes freed of the leading eigenvectors, with their error.

Each is computed once for the weights and data at hand, and kept in `.cache/`.
"""

import json
import math
from typing import Any

import numpy as np
import torch

from benchmarks.torch_models import Twin, flatten
from benchmarks.workloads import CACHE, MLP, Workload, trajectory

TOP = 12


def load(workload: Workload, *, dense: bool, smallest: bool, trace_error: float | None) -> dict:
    """`top` (descending), and as asked: `eigenvalues`, `smallest`, `trace`, `gauss_newton_trace`.

    `trace` comes with `trace_error`, its standard error (0 where exact), and with the standard
    deviation of one Hutchinson probe relative to it: `probe_deviation`, and `deflated_deviation` of
    a probe that is freed of the eigenvectors of `top`.
    """
    path = CACHE / "truth" / f"{workload.name}-{workload.digest}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if dense and "eigenvalues" not in found:
        values = np.linalg.eigvalsh(dense_hessian(workload))
        found |= {"eigenvalues": values.tolist(), "top": values[::-1][:TOP].tolist()}
        found |= {"smallest": float(values[0]), "trace": float(values.sum()), "trace_error": 0.0}
        for name, rest in {"probe": values, "deflated": values[:-TOP]}.items():
            found[f"{name}_deviation"] = math.sqrt(2 * np.sum(rest**2)) / float(values.sum())
        if isinstance(workload.module, MLP):
            found["gauss_newton_trace"] = exact_traces(workload)[1]
    wants_trace = trace_error is not None and "trace" not in found
    if "top" not in found or smallest and "smallest" not in found or wants_trace:
        product, size = hessian_product(workload)
        values, vectors = extremes(product, size, TOP, smallest)
        found["top"] = values[:TOP].tolist()
        if smallest:
            found["smallest"] = float(values[-1])
        if wants_trace:
            exact = exact_traces(workload) if isinstance(workload.module, MLP) else None
            if exact:
                found["gauss_newton_trace"] = exact[1]
            # Float32 products are good enough for what is averaged over random probes.
            product, _ = hessian_product(workload, dtype=torch.float32)
            found |= probed(product, values[:TOP], vectors, exact and exact[0], trace_error)
    _write(path, found)
    return found


def top_over_batches(workload: Workload) -> float:
    """The largest eigenvalue of the mean Hessian over all batches."""
    path = CACHE / "truth" / f"{workload.name}-{workload.digest}-batches.json"
    if not path.exists():
        product, size = hessian_product(workload, all_batches=True)
        _write(path, float(extremes(product, size, 1, False)[0][0]))
    return json.loads(path.read_text())


def top_along(workload: Workload, *, every: int, count: int) -> list[float]:
    """The largest eigenvalue at the checkpoints of `trajectory`."""
    path = CACHE / "truth" / f"{workload.name}-{workload.digest}-every-{every}-{count}.json"
    if not path.exists():
        values = []
        twin = Twin(workload)
        for params in trajectory(workload, every=every, count=count):
            twin.set_params(params)
            product, size = _retained(twin, [twin.batch])
            found, _ = extremes(product, size, 1, False, tol=1e-5, dtype=twin.dtype)
            values.append(float(found[0]))
        _write(path, values)
    return json.loads(path.read_text())


def lanczos_steps(workload: Workload, truth: list[float], *, all_batches=False, seeds=5) -> int:
    """The fewest Lanczos steps after which, from each of some starts, the largest values are within
    1e-3 of the truth: what a user of a method of fixed length would have to guess."""
    product, size = hessian_product(workload, dtype=torch.float32, all_batches=all_batches)
    wanted, most = np.array(truth), 0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(100 + seed)
        q = torch.randn(size, generator=generator).to(_device())
        basis, alpha, beta = [q / q.norm()], [], []
        for step in range(1, 201):  # noqa: B007
            w = product(basis[-1])
            alpha.append(float(w @ basis[-1]))
            rows = torch.stack(basis)
            for _ in range(2):
                w = w - rows.T @ (rows @ w)
            matrix = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
            values = np.linalg.eigvalsh(matrix)[::-1][: len(wanted)]
            if len(values) == len(wanted) and np.all(np.abs(values - wanted) <= 1e-3 * wanted):
                break
            beta.append(float(w.norm()))
            basis.append(w / beta[-1])
        most = max(most, step)
    return most


def hessian_product(workload: Workload, *, dtype=torch.float64, all_batches: bool = False):
    """`v -> H v` on flat torch vectors, from graphs that are kept; and the number of parameters."""
    twin = Twin(workload, dtype=dtype)
    return _retained(twin, twin.batches if all_batches else [twin.batch])


def _retained(twin, batches):
    gradients = [twin.gradient(create_graph=True, batch=batch) for batch in batches]

    def product(vector):
        total = 0
        for gradient in gradients:
            pieces = torch.autograd.grad(
                gradient, twin.params, grad_outputs=twin.flat(vector), retain_graph=True
            )
            total = total + flatten(pieces)
        return total / len(gradients)

    return product, sum(p.numel() for p in twin.params)


def extremes(product, size, top, smallest, *, tol=1e-7, limit=400, dtype=torch.float64):
    """The `top` largest values in descending order (then the smallest), and their vectors."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(size, generator=generator, dtype=torch.float64).to(_device(), dtype)
    basis, alpha, beta = [q / q.norm()], [], []
    top = min(top, size)
    for step in range(1, min(limit, size) + 1):
        w = product(basis[-1])
        alpha.append(float(w @ basis[-1]))
        rows = torch.stack(basis)
        for _ in range(2):
            w = w - rows.T @ (rows @ w)
        beta.append(float(w.norm()))
        values, weights = np.linalg.eigh(
            np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        )
        residuals = np.abs(beta[-1] * weights[-1])
        wanted = [*range(step - 1, step - 1 - top, -1), *([0] if smallest else [])]
        if step == size or step > top + 3 and _settled(values, residuals, wanted, tol):
            break
        basis.append(w / w.norm())
    else:
        raise RuntimeError(f"the reference did not converge in {limit} products")
    vectors = torch.from_numpy(weights[:, wanted].T.copy()).to(q) @ torch.stack(basis[:step])
    return values[wanted], vectors


def _settled(values, residuals, wanted, tol) -> bool:
    """By residual^2 / gap, also for three values beyond, so that none is skipped unseen."""
    size = np.abs(values).max()
    for i in wanted:
        others = np.abs(np.delete(values, i) - values[i]) - np.delete(residuals, i)
        gap = others.min()
        bound = min(residuals[i], residuals[i] ** 2 / gap) if gap > 0 else residuals[i]
        if bound > tol * max(abs(values[i]), 1e-3 * size):
            return False
    beyond = [j for j in range(wanted[-1] - 1, wanted[-1] - 4, -1) if 0 <= j] if wanted[-1] else []
    return all(residuals[j] <= 0.05 * size for j in beyond)


def dense_hessian(workload: Workload) -> np.ndarray:
    twin = Twin(workload, dtype=torch.float64)
    gradient = twin.gradient(create_graph=True)
    size = sum(p.numel() for p in twin.params)
    rows = []
    for chunk in torch.eye(size, dtype=torch.float64, device=twin.device).split(256):
        pieces = chunk.split([p.numel() for p in twin.params], dim=1)
        outputs = [v.view(-1, *p.shape) for v, p in zip(pieces, twin.params, strict=True)]
        found = torch.autograd.grad(
            gradient, twin.params, outputs, retain_graph=True, is_grads_batched=True
        )
        rows.append(torch.cat([x.flatten(1) for x in found], dim=1))
    matrix = torch.cat(rows).cpu().numpy()
    return (matrix + matrix.T) / 2


def exact_traces(workload: Workload) -> tuple[float, float]:
    """Of the Hessian and the Gauss-Newton of an MLP, by the Hessians of the pre-activations.

    With S_l the Hessian of one example's loss in the pre-activations of layer l, the block of that
    layer's weights is a a' (x) S_l and that of its bias S_l, so their trace is
    (|a|^2 + 1) tr S_l. S of the logits is diag(p) - p p', and backwards
    S = D W' S W D + diag(phi''(z) g), whose last term the Gauss-Newton leaves out.
    """
    module = workload.module
    tanh = module.activation == "tanh"
    layers = [f"Dense_{i}" for i in range(len(module.widths))] + ["head"]
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(x):
        return torch.tensor(np.asarray(x), dtype=torch.float64, device=device)

    weights = [tensor(workload.params[name]["kernel"]) for name in layers]
    biases = [tensor(workload.params[name]["bias"]) for name in layers]
    image = tensor(workload.batch["image"]).flatten(1)
    label = torch.tensor(np.array(workload.batch["label"]), device=device).long()
    totals = [0.0, 0.0]
    for x, y in zip(image.split(128), label.split(128), strict=True):
        inputs, slopes, bends = [x], [], []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = inputs[-1] @ weight + bias
            if i < len(weights) - 1:
                a = torch.tanh(z) if tanh else torch.relu(z)
                slopes.append(1 - a**2 if tanh else (z > 0).double())
                bends.append(-2 * a * (1 - a**2) if tanh else torch.zeros_like(z))
                inputs.append(a)
        p = torch.softmax(z, dim=1)
        start = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        gradient = p - torch.nn.functional.one_hot(y, p.shape[1])
        both = [start, start]
        for i in reversed(range(len(weights))):
            mass = (inputs[i] ** 2).sum(1) + 1
            for j in range(2):
                trace = torch.diagonal(both[j], dim1=1, dim2=2).sum(1)
                totals[j] += float((mass * trace).sum())
            if i:
                slope, weight = slopes[i - 1], weights[i]
                both = [slope[:, :, None] * (weight @ s @ weight.T) * slope[:, None] for s in both]
                behind = gradient @ weight.T
                both[0] = both[0] + torch.diag_embed(bends[i - 1] * behind)
                gradient = behind * slope
    return totals[0] / len(image), totals[1] / len(image)


def probed(product, values, vectors, exact: float | None, error: float) -> dict:
    """The trace (if it is not known) and the deviation of one Hutchinson probe, both by probes.

    Random signs have the variance 2 (|A|_F^2 - sum A_ii^2); the diagonal is negligible there.
    """
    generator = torch.Generator().manual_seed(1)
    vectors = vectors.to(torch.float32)
    size, samples, squares = vectors.shape[1], [], []
    while True:
        z = torch.randint(0, 2, (size,), generator=generator).float().to(vectors) * 2 - 1
        z = z - vectors.T @ (vectors @ z)
        image = product(z)
        samples.append(float(z @ image))
        squares.append(float(image @ image))
        trace = float(np.sum(values) + np.mean(samples))
        deviation = np.std(samples, ddof=1) / math.sqrt(len(samples)) if len(samples) > 1 else 0
        enough = exact is not None or deviation <= error * abs(trace)
        if len(samples) >= 32 and (enough or len(samples) >= 400):
            break
    trace = trace if exact is None else exact
    deflated = math.sqrt(2 * np.mean(squares)) / abs(trace)
    frobenius = float(np.sum(np.square(values)) + np.mean(squares))
    return {
        "trace": trace,
        "trace_error": 0.0 if exact is not None else float(deviation),
        "probe_deviation": math.sqrt(2 * frobenius) / abs(trace),
        "deflated_deviation": deflated,
    }


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def remembered(workload: Workload, name: str, compute) -> Any:
    """A setting that took work to find."""
    path = CACHE / "settings" / f"{workload.name}-{workload.digest}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if name not in found:
        found[name] = compute()
        _write(path, found)
    return found[name]


def gauss_newton_product(workload: Workload, vector) -> torch.Tensor:
    """Flat; in float64."""
    twin = Twin(workload, dtype=torch.float64)
    x, y = twin.batch
    names = [name for name, _ in twin.model.named_parameters()]
    pieces = dict(zip(names, twin.tensors(vector), strict=True))
    params = {name: p.detach() for name, p in twin.model.named_parameters()}

    def model(params):
        return torch.func.functional_call(twin.model, params, (x,))

    outputs, tangent = torch.func.jvp(model, (params,), (pieces,))
    slope = torch.func.grad(lambda z: twin.criterion(z, y))
    _, curved = torch.func.jvp(slope, (outputs,), (tangent,))
    _, back = torch.func.vjp(model, params)
    (found,) = back(curved)
    return flatten([found[name] for name in names])


def _write(path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(path)
