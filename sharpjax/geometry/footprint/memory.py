"""The memory that a call will take, before anything is compiled."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.geometry.eigenpairs.convergence import SearchStep
from sharpjax.geometry.eigenpairs.top import top_eigenpairs
from sharpjax.geometry.estimators.diagonal import diagonal
from sharpjax.geometry.estimators.frobenius import frobenius
from sharpjax.geometry.estimators.trace import trace
from sharpjax.geometry.footprint import program, schedule
from sharpjax.geometry.footprint.layout import Layout, lies, num_bytes
from sharpjax.geometry.footprint.schedule import Peak
from sharpjax.geometry.lanczos import krylov
from sharpjax.geometry.lanczos.solve import solve
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.arguments import check_operator
from sharpjax.geometry.operators.averaging import Averaged, linearization_bytes
from sharpjax.geometry.operators.batches import Cut, Listed
from sharpjax.geometry.spectra.density import spectral_density
from sharpjax.geometry.spectra.logdet import logdet

_CALLER = "memory"
_SOLVERS: dict[str, Callable[..., Any]] = {
    solver.__name__: solver
    for solver in (top_eigenpairs, trace, diagonal, frobenius, spectral_density, logdet, solve)
}


class Memory(NamedTuple):
    """Bytes on one device; `print` shows them as a table.

    Attributes:
        operator: parameters, batch and arrays of the loss, which the caller holds.
        residuals: arrays that the linearisation keeps, including its own copies of parameters and
            batch.
        state: arrays that the solver keeps besides: basis, vectors, probes, results.
        product: temporaries of one product with its step, of the linearisation, or of a restart of
            the basis, whichever takes most.
        total: the sum of these, at the peak of the call.
        most: the peak if the basis grows as far as `max_products` allows; else `total`.
    """

    operator: int
    residuals: int
    state: int
    product: int
    total: int
    most: int

    def __str__(self) -> str:
        rows = [f"{name:<10}{_readable(value):>12}" for name, value in self._asdict().items()]
        return "\n".join(rows if self.most > self.total else rows[:-1])


def memory(
    operator: Operator, solver: Callable[..., Any] | str = top_eigenpairs, **options: Any
) -> Memory:
    """The peak memory of `solver(operator, **options)`, in bytes, from shapes alone.

    Nothing is computed or compiled; the call is only traced. On the nets of the benchmarks tracing
    takes .1 to 3 s and compiling 5 to 40 s. On their three workloads the estimate was within 15 %
    of what the compiled programs report (docs/geometry.md, "Memory").

    >>> import jax.numpy as jnp
    >>> from sharpjax.geometry import hessian
    >>> def loss(params, batch):
    ...     return jnp.mean(jnp.tanh(batch @ params) ** 2)
    >>> H = hessian(loss, jnp.ones((512, 64)), jnp.ones((256, 512)))
    >>> print(memory(H, k=4))  # doctest: +ELLIPSIS
    operator     640.0 KiB
    residuals    896.2 KiB
    state          4.1 MiB
    ...

    Arrays may be `jax.ShapeDtypeStruct`s, so you can ask about a net that this machine cannot hold.
    `jax.eval_shape` makes such an operator; its arrays carry the shardings:

        operator = jax.eval_shape(functools.partial(hessian, loss), params, batch)

    **What is counted**: the XLA buffers that JAX allocates on a device, that is, the arrays of the
    operator, the linearisation, the state of the solver, and temporaries. Not counted: the program
    itself, what kernels allocate at run time (image columns of a convolution on CPU, workspaces of
    cuDNN), and what the allocator loses to fragmentation. Temporaries are found by following which
    buffers are live at each step, with elementwise chains fused. The order of steps is XLA's
    breadth-first order on CPU; elsewhere it is the order of the trace, which has not been compared
    with an accelerator. Inside your own jit a call takes less, since it makes no copies of
    parameters and batch.

    With sharded arrays the bytes are those of one device. The shardings of intermediate values are
    propagated forwards from parameters and batch, which is a guess at what the compiler decides.

    Args:
        operator: the operator that the solver is called with. For `averaged`, linearisations are
            counted as far as `cache_bytes` keeps them; for a loader, as if it filled `cache_bytes`.
        solver: `top_eigenpairs`, `trace`, `diagonal`, `frobenius`, `spectral_density`, `logdet` or
            `solve`; or "product", for `operator.linearize()` and one product.
        options: those of the solver, such as `k=10, basis_size=16`. You may omit the key, and the
            right-hand side of `solve`.

    Returns:
        `Memory`. A basis that may grow is counted at its first size, 16 + 4 k vectors, which is
        seldom exceeded; `most` is the peak if it grows to its limit.

    Raises:
        UserError: there is no such solver or option; the operator runs Python code; or the memory
            of an option is not known from shapes: `start`, `verify`, and `method="exact"`.
    """
    check_operator(_CALLER, operator)
    name = solver if isinstance(solver, str) else getattr(solver, "__name__", repr(solver))
    if name != "product" and name not in _SOLVERS:
        raise unknown("solver", name, ["product", *_SOLVERS])
    _check_options(name, options)
    held = [x for x in jax.tree.leaves(operator) if not isinstance(x, np.ndarray)]
    layout = _layout(operator)
    own = sum(num_bytes(x) // layout.parts(lies(x)[1]) for x in held if hasattr(x, "dtype"))
    means = [x for x in jax.tree.leaves(operator, is_leaf=_is_mean) if _is_mean(x)]
    operator = jax.tree.map(lambda x: x.operator if _is_mean(x) else x, operator, is_leaf=_is_mean)
    if loops.holds_host_code(operator):
        raise UserError(f"{_CALLER}: the operator runs code of Python, of which nothing is known.")
    vector = sum(x.num_bytes for x in _like(layout, operator))
    rows = _Rows()
    if name == "product":
        peak = _of_product(layout, operator)
    else:
        restarted = 0
        if name == "top_eigenpairs":
            restarted = _num_kept(options)
            options, rows = _first_basis(operator, options)
        peak = _of_solver(layout, name, operator, options)
        if restarted:
            # The vectors of the certificate beside a product, or those kept at a restart.
            more = max(peak.product + 2 * vector, restarted * vector)
            peak = peak._replace(product=more)
    for mean in means:
        peak = _of_mean(layout, mean, vector, peak)
    total = own + sum(peak)
    more = rows.last - rows.first
    # No product runs while a basis is copied to a larger one.
    grown = own + peak.residuals + peak.state + (rows.before + more) * vector
    return Memory(own, *peak, total, max(total + more * vector, grown if more else 0))


class _Rows(NamedTuple):
    """Rows of a basis: at first, before it last grew, and after that."""

    first: int = 0
    before: int = 0
    last: int = 0


def _is_mean(x: Any) -> bool:
    return isinstance(x, Averaged)


def _is_abstract(x: Any) -> bool:
    return hasattr(x, "dtype")


def _check_options(solver: str, options: dict[str, Any]) -> None:
    known: list[str] = []
    if solver != "product":
        known = [*inspect.signature(_SOLVERS[solver]).parameters][1:]
    for name in options:
        if name not in known:
            raise UserError(
                f"{_CALLER}: {solver} takes no {name}; it takes {', '.join(known) or 'none'}."
            )
    for name, least in (("basis_size", 0), ("max_products", 1)):
        if options.get(name) is not None:
            whole_number(solver, name, options[name], least=least)
    counted = {"start": None, "verify": False}
    for name, value in options.items():
        if (name == "method" and value == "exact") or value is not counted.get(name, value):
            raise UserError(
                f"{_CALLER}: {name}={value if name != 'start' else '...'} is not counted: what it "
                f"takes depends on numbers. Leave it out; a search from nothing with the same k "
                f"takes at least half as much."
            )


def _layout(operator: Any) -> Layout:
    sizes, known = {}, {}
    for x in jax.tree.leaves(operator):
        sizes |= lies(x)[0]
    for x in jax.tree.leaves(operator.like):
        _, spec = lies(x)
        if any(spec):
            known.setdefault(tuple(x.shape), spec)
    return Layout(sizes, known)


def _is_on_cpu(operator: Any) -> bool:
    for x in jax.tree.leaves(operator):
        if isinstance(x, jax.Array) and not loops.is_traced(x):
            return next(iter(x.devices())).platform == "cpu"
    return jax.default_backend() == "cpu"


def _read(layout: Layout, fn: Callable[..., Any], *args: Any) -> program.Program:
    closed = jax.make_jaxpr(fn)(*args)
    specs = [lies(x)[1] if _is_abstract(x) else () for x in jax.tree.leaves(args)]
    return program.read(closed, specs, layout)


def _like(layout: Layout, operator: Any) -> list[program.Value]:
    wide = jax.eval_shape(tree.widen, operator.like)
    pairs = zip(jax.tree.leaves(wide), jax.tree.leaves(operator.like), strict=True)
    return [program.Value(x, lies(y)[1], layout) for x, y in pairs]


def _of_product(layout: Layout, operator: Any) -> Peak:
    first = _read(layout, _linearized, operator)
    product = jax.eval_shape(_linearized, operator)
    vectors = _like(layout, operator)
    specs = [() if x is None else x.spec for x in (*first.outputs, *vectors)]
    wide = jax.eval_shape(tree.widen, operator.like)
    second = program.read(jax.make_jaxpr(loops.call)(product, wide), specs, layout)
    held = sum(x.num_bytes for x in (*vectors, *second.outputs) if x is not None)
    residuals = sum(x.num_bytes for x in first.outputs if x is not None)
    cpu = _is_on_cpu(operator)
    # For a part of the parameters, the linearisation may take more than a product after it.
    temporaries = max(schedule.peak(second, cpu), schedule.peak(first, cpu) - held)
    return Peak(residuals, held, temporaries)


def _linearized(operator: Any) -> Any:
    return operator.linearize()


def _of_solver(layout: Layout, solver: str, operator: Any, options: dict[str, Any]) -> Peak:
    call, options = _SOLVERS[solver], dict(options)
    names = inspect.signature(call).parameters
    if "key" in names and options.get("key") is None:
        options["key"] = jax.random.key(0)
    if "vector" in names:
        options.setdefault("vector", operator.like)
    arrays = {n: x for n, x in options.items() if any(map(_is_abstract, jax.tree.leaves(x)))}
    rest = {n: x for n, x in options.items() if n not in arrays}

    def solve(operator, arrays):
        return call(operator, **arrays, **rest)

    traced = _read(layout, solve, operator, arrays)
    # These solvers donate to their loops what the loops carry.
    return schedule.of_call(traced, _is_on_cpu(operator), given=True)


def _num_kept(options: dict[str, Any]) -> int:
    """How many vectors a restart of `top_eigenpairs` keeps; 0 if it never restarts."""
    if not options.get("basis_size"):
        return 0
    step = SearchStep(options.get("k", 1), options.get("which", "LA"), options.get("guards", 2))
    return sum(step.kept(krylov.num_rows(options["basis_size"])))


def _first_basis(operator: Any, options: dict[str, Any]) -> tuple[dict[str, Any], _Rows]:
    """Options that give the basis its first size, and how it may grow."""
    basis_size = options.get("basis_size")
    if basis_size == 0:
        return options, _Rows()
    if basis_size is not None:
        rows = krylov.num_rows(basis_size)
        return {**options, "basis_size": None, "max_products": rows}, _Rows()
    size, k = tree.size(operator.like), options.get("k", 1)
    limit = options.get("max_products") or 64 + 8 * k
    first = rows = before = krylov.num_rows(min(size, 16 + 4 * k))
    while rows < min(limit, size):
        before, rows = rows, rows + min(krylov.num_rows(rows), krylov.num_rows(limit - rows))
    return {**options, "max_products": first}, _Rows(first, before, rows)


def _of_mean(layout: Layout, mean: Averaged, vector: int, peak: Peak) -> Peak:
    """The peak of a mean over batches: cached linearisations, and the others one at a time."""
    batches, left, kept = mean.batches, mean.cache_bytes, 0
    if getattr(mean.operator, "microbatch_size", None) is not None:
        left = -1
    if isinstance(batches, Listed):
        some = list(batches.batches)
    elif isinstance(batches, Cut):
        some = [jax.eval_shape(batches.part, i) for i in range(batches.count)]
    else:
        one = linearization_bytes(mean.operator, mean.operator.batch)
        some = [mean.operator.batch] * (1 + max(left, 0) // one)
    all_kept = True
    for batch in some:
        count = linearization_bytes(mean.operator, batch)
        left -= count
        if left < 0:
            all_kept = False
            break
        kept += count
    fresh = 0
    if not all_kept:
        once = _read(layout, lambda a, v: a.linearize()(v), mean.operator, mean.operator.like)
        moved = sum(num_bytes(x) for x in jax.tree.leaves(mean.operator.batch))
        fresh = schedule.peak(once, _is_on_cpu(mean)) + 2 * moved
    parts = math.prod(layout.sizes.values()) if layout.sizes else 1
    # Two vectors more: the sum over the batches and the term that is added to it.
    return Peak(kept // parts, peak.state + 2 * vector, max(peak.product if kept else 0, fresh))


def _readable(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
