"""How loops run: the one module that knows what convolutions cost inside XLA loops on CPU.

On CPU a gradient convolution inside an XLA `while` body runs tens of times slower than outside it
(jax-ml/jax#12868; measured: 3,275 against 43 ms per training step). No other operation does. So a
step runs as one device loop, or, if it holds a convolution and the backend is CPU, as a host loop
around a jitted step. Both forms give the same numbers up to rounding; results are bitwise identical
only within one form.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import tree
from sharpjax.errors import UserError

Carry = Any
Form = Literal["auto", "device", "host"]

_SMALL_BYTES = 4096
_QUICKLY = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


class HostCode:
    """Base class of code that runs a Python loop around jitted functions, e.g. over batches.

    If an operator or a product is an instance of a subclass, or holds one anywhere, `iterate` and
    `call` call it directly and never from inside their own jit. If it is called inside a trace
    nevertheless, it does its work there or raises a `UserError`.
    """


def iterate(
    step: Any,
    carry: Carry,
    operands: Any = (),
    *,
    max_steps: int | jax.Array,
    until: Callable[[Carry], jax.Array] | None = None,
    form: Form = "auto",
    donate: bool = False,
) -> tuple[Carry, jax.Array]:
    """Apply `step` until `until(carry)` holds, at most `max_steps` times.

    Call it at the outermost level. Inside the caller's own jit it can only take the device form,
    which is slow for convolutions on CPU. A second call with the same `step`, `until` and
    structures compiles nothing, whatever the numbers, including `max_steps`.

    Args:
        step: `step(carry, operands) -> carry`, a module-level function or a frozen dataclass, equal
            by value (a lambda would recompile at every call). Or a solver's step around a product:
            a frozen dataclass with methods `propose(carry) -> vector` and
            `absorb(carry, product) -> carry`. Then `operands` is the product, a callable pytree
            such as `jax.tree_util.Partial`. A product that holds `HostCode` runs between a jitted
            `propose` and a jitted `absorb`.
        carry: pytree of arrays. Without `donate` the caller's arrays are neither changed nor
            donated.
        operands: everything the step reads besides its carry; the step must not close over it.
        max_steps: limit on the steps; not static.
        until: a scalar condition, evaluated before each step; equal by value, like `step`.
        form: "device": one `while_loop`; "host": a Python loop around a jitted step that donates
            its carry; "auto": `choose_form`. Inside a trace always the device form.
        donate: the caller gives its carry away. Large arrays are updated in place, without a second
            copy, and are deleted for the caller. Inside a trace this has no effect, since the
            compiler does it anyway.

    Returns:
        The last carry, and the number of steps taken (int32; one for each lane under vmap).

    Raises:
        UserError: `max_steps` is negative, `form` is unknown, or it is "host" inside a trace.

    >>> import operator
    >>> iterate(operator.add, jnp.float32(1), jnp.float32(2), max_steps=3)
    (Array(7., dtype=float32), Array(3, dtype=int32))
    """
    traced = is_traced((carry, operands, max_steps))
    if form not in ("auto", "device", "host"):
        raise UserError(f"loops.iterate: unknown form '{form}'; known: auto, device, host.")
    if form == "host" and traced:
        raise UserError("loops.iterate: form='host' cannot run inside a trace; leave the form out.")
    if not traced and max_steps < 0:
        raise UserError(f"loops.iterate: max_steps={max_steps}; give 0 or more.")
    if form == "auto":
        form = "device" if traced else choose_form(step, carry, operands)
    donate = donate and not traced  # under vmap, arrays that are not mapped cannot be donated
    if donate:
        carry = _own(carry)
    if form == "device":
        loop = _device_loop_in_place if donate and not traced else _device_loop
        return loop(step, until, carry, operands, max_steps)
    if not donate:
        carry = _copy(carry)
    split = hasattr(step, "propose") and holds_host_code(operands)
    for i in range(int(max_steps)):
        if until is not None and _holds(until, carry):
            return carry, jnp.int32(i)
        if split:
            carry = _absorb(step, carry, operands(_propose(step, carry)))
        else:
            carry = _host_step(step, carry, operands)
    return carry, jnp.int32(max_steps)


def call(product: Callable[[Any], Any], vector: Any) -> Any:
    """One product outside of a loop: `product(vector)`, jitted unless it holds `HostCode`.

    >>> call(jax.tree_util.Partial(jnp.add, jnp.float32(1)), jnp.float32(2)).item()
    3.0
    """
    return product(vector) if holds_host_code(product) else _call(product, vector)


def compiled_quickly(fn: Callable, **options: Any) -> Callable:
    """`jax.jit(fn, **options)`, for a function that runs once per solve and holds no user code.

    On CPU, outside of a trace, it compiles with XLA's older emitters and fewer LLVM passes. This
    halves the compile time and gives the same numbers. (A start on 670,000 parameters took .54 s of
    processor time instead of 1.15 s, and runs in 9 ms instead of 27 ms. Products of a transformer
    would compile more slowly this way.)

    >>> compiled_quickly(jnp.add)(1.0, 2.0).item()
    3.0
    """
    plain = jax.jit(fn, **options)
    quick = jax.jit(fn, **options, compiler_options=_QUICKLY)
    if any(name in os.environ.get("XLA_FLAGS", "") for name in _QUICKLY):
        quick = None  # a user's own settings come first

    @functools.wraps(fn)
    def call(*args, **kwargs):
        nonlocal quick
        given = (args, kwargs)
        if quick is None or is_traced(given) or inside_jit() or _platform(given) != "cpu":
            return plain(*args, **kwargs)
        try:
            return quick(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            quick = None  # another version of XLA
            return plain(*args, **kwargs)

    cast(Any, call).lower = plain.lower
    return call


def holds_host_code(operands: Any) -> bool:
    """Whether a pytree is `HostCode`, or has it inside.

    >>> holds_host_code((HostCode(), 1.0)), holds_host_code((jnp.add, 1.0))
    (True, False)
    """
    nodes = jax.tree.leaves(operands, is_leaf=lambda node: isinstance(node, HostCode))
    return any(isinstance(node, HostCode) for node in nodes)


def is_traced(args: Any) -> bool:
    """Whether any leaf is a tracer: inside jit, vmap or grad."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))


def inside_jit() -> bool:
    """Whether computations here are recorded instead of executed, as in jit and in loops.

    >>> inside_jit(), jax.eval_shape(lambda: jnp.full((), inside_jit())).shape
    (False, ())
    """
    return isinstance(jnp.zeros(()), Tracer)


def choose_form(step: Any, carry: Carry, operands: Any = ()) -> Literal["device", "host"]:
    """The fast form: "host" for `HostCode`, and on CPU if the step holds a convolution; else
    "device".

    It costs one trace of the step for each new structure (1.8 s for a ResNet-18 SAM step); the
    answer is then cached.

    >>> choose_form(jnp.add, jnp.ones(3), jnp.ones(3))
    'device'
    """
    if holds_host_code(operands):
        return "host"
    if _platform((carry, operands)) != "cpu":
        return "device"
    leaves, treedef = jax.tree.flatten((carry, operands))
    avals = tuple(jax.typeof(leaf) for leaf in leaves)
    return "host" if _step_holds_convolution(step, treedef, avals) else "device"


def holds_convolution(fn: Callable, *args: Any) -> bool:
    """Whether `fn(*args)` holds a convolution anywhere, found by tracing it.

    >>> holds_convolution(jnp.dot, jnp.ones(3), jnp.ones(3))
    False
    """
    return _convolves(jax.make_jaxpr(fn)(*args).jaxpr)


def split_chunks(caller: str, batch: Any, chunk_size: int) -> Any:
    """A batch cut into chunks of `chunk_size` neighbouring examples: leaves [N, ...] to [N / size,
    size, ...].

    Raises:
        UserError: names `caller`; the leaves disagree on N, or `chunk_size` does not divide it.

    >>> split_chunks("f", {"x": jnp.arange(6)}, 2)["x"].tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    num_examples = count_examples(caller, batch)
    if chunk_size < 1 or num_examples % chunk_size:
        divisors = [d for d in range(1, num_examples + 1) if num_examples % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - chunk_size))[:3])
        raise UserError(
            f"{caller}: chunks of {chunk_size} do not divide {num_examples} examples; near it do "
            f"{', '.join(map(str, near))}."
        )
    return jax.tree.map(
        lambda x: jnp.reshape(x, (num_examples // chunk_size, chunk_size, *jnp.shape(x)[1:])), batch
    )


def count_examples(caller: str, batch: Any) -> int:
    """The number of examples of a batch: the length of axis 0 that all its leaves share.

    Raises:
        UserError: names `caller`; a leaf, which is named, has no axis 0 or another length, or there
            is no leaf or no example.

    >>> count_examples("f", {"x": jnp.ones((6, 2)), "y": jnp.ones(6)})
    6
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    for name, shape in zip(tree.path_names(batch), shapes, strict=True):
        if not shape or shape[:1] != shapes[0][:1]:
            raise UserError(
                f"{caller}: every leaf of batch carries the examples on axis 0, but '{name}' has "
                f"shape {shape} and the first leaf {shapes[0]}. Keep what is not an example in the "
                f"loss."
            )
    if not shapes:
        raise UserError(f"{caller}: batch holds no array.")
    if not shapes[0][0]:
        place = tree.path_names(batch)[0]
        raise UserError(
            f"{caller}: the batch is empty: {f'{place!r} has' if place else 'it has'} shape "
            f"{shapes[0]}, with no example on axis 0. Give one example at least; look at what "
            f"selects them, such as a mask or a slice."
        )
    return shapes[0][0]


def map_over_chunks(fn: Callable[[Any, Any], Any], operands: Any, chunks: Any) -> Any:
    """`fn(operands, chunk)` for each chunk on axis 0 of `chunks`, stacked; for use inside a step.

    The chunks run one after another in a scan, which is unrolled for convolutions on CPU.
    """
    if not _unroll(fn, operands, chunks):
        return jax.lax.map(functools.partial(fn, operands), chunks)
    return tree.stack([fn(operands, chunk) for chunk in _members(chunks)])


def mean_over_chunks(
    fn: Callable[[Any, Any], Any],
    operands: Any,
    chunks: Any,
    weights: jax.Array | None = None,
) -> Any:
    """The mean of `fn(operands, chunk)` over the chunks on axis 0; for use inside a step.

    With `weights`, one number >= 0 for each chunk, it is the weighted mean. A chunk with weight 0
    does not count, even if its value is not finite. If all weights are 0, the mean is NaN.

    Sums are accumulated in at least float32 and rounded once to the type that `fn` returns;
    integers and booleans become float32. Memory: one result and its sum, for any number of chunks.
    The chunks run in a scan, which is unrolled for convolutions on CPU (Hessian product over 4
    microbatches of a ResNet: 1,564 ms as a scan, 178 ms unrolled).

    >>> mean_over_chunks(jnp.multiply, jnp.float32(2), jnp.arange(4.0)).item()
    3.0
    >>> chunks, weights = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([1.0, 0.0, 2.0])
    >>> mean_over_chunks(jnp.multiply, jnp.float32(2), chunks, weights).item()
    6.0
    """
    count = jax.tree.leaves(chunks)[0].shape[0]
    first = tree.index(chunks, 0)
    like = jax.eval_shape(fn, operands, first)

    def widened(x):
        return x.astype(_sum_type(x.dtype))

    def term(chunk_and_weight):
        chunk, weight = chunk_and_weight
        value = jax.tree.map(widened, fn(operands, chunk))
        if weight is None:
            return value
        return jax.tree.map(lambda x: jnp.where(weight > 0, weight.astype(x.dtype) * x, 0), value)

    if _unroll(fn, operands, chunks):
        terms = map(term, _members((chunks, weights)))
        total = functools.reduce(functools.partial(jax.tree.map, jnp.add), terms)
    else:
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, _sum_type(x.dtype), out_sharding=x.sharding), like
        )
        total, _ = jax.lax.scan(
            lambda s, c: (jax.tree.map(jnp.add, s, term(c)), None), zero, (chunks, weights)
        )
    by = count if weights is None else jnp.sum(weights)

    def mean(s, x):
        kept = jnp.issubdtype(x.dtype, jnp.floating)
        return (s / jnp.asarray(by, s.dtype)).astype(x.dtype if kept else s.dtype)

    return jax.tree.map(mean, total, like)


def _apply(step: Any, carry: Carry, operands: Any) -> Carry:
    if hasattr(step, "propose"):
        return step.absorb(carry, operands(step.propose(carry)))
    return step(carry, operands)


def _multiply(step: Any, carry: Carry, operands: Any) -> Any:
    return operands(step.propose(carry))


def _loop(step, until, carry, operands, max_steps):
    def go_on(state):
        i, carry = state
        more = i < max_steps
        return more if until is None else more & jnp.logical_not(until(carry))

    def body(state):
        i, carry = state
        return i + 1, _apply(step, carry, operands)

    i, carry = jax.lax.while_loop(go_on, body, (jnp.int32(0), carry))
    return carry, i


_device_loop = jax.jit(_loop, static_argnums=(0, 1))
_device_loop_in_place = jax.jit(_loop, static_argnums=(0, 1), donate_argnums=2)

# The carry is donated, so that a step needs no second copy of a large state. So the caller's carry
# is copied first.
_host_step = jax.jit(_apply, static_argnums=0, donate_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _propose(step, carry):
    return step.propose(carry)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _absorb(step, carry, product):
    return step.absorb(carry, product)


@jax.jit
def _call(product, vector):
    return product(vector)


def _own(carry: Carry) -> Carry:
    """A carry that may be donated: its small arrays are copied, the others kept. A tolerance that
    passed through a jit unchanged is still the caller's own array."""
    leaves, treedef = jax.tree.flatten(carry)
    small = [x for x in leaves if x.nbytes <= _SMALL_BYTES]
    if all(isinstance(x, jax.Array) and x.is_fully_addressable for x in small):
        copies = iter(jax.device_put(small, may_alias=False))  # nothing is compiled
    else:
        copies = iter(_copy(small))
    owned = [next(copies) if x.nbytes <= _SMALL_BYTES else x for x in leaves]
    return jax.tree.unflatten(treedef, owned)


@jax.jit
def _copy(carry):
    return jax.tree.map(jnp.copy, carry)


@functools.partial(jax.jit, static_argnums=0)
def _holds(until, carry):
    return until(carry)


def _platform(args: Any) -> str:
    """The platform of the arrays, or jax's default if they are not on a device yet."""
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return next(iter(leaf.devices())).platform
    return jax.default_backend()


@functools.lru_cache(maxsize=1024)
def _step_holds_convolution(step, treedef, avals) -> bool:
    # A solver's own code holds no convolution, so only its product is traced.
    fn = _multiply if hasattr(step, "propose") else _apply
    return holds_convolution(functools.partial(fn, step), *structs(treedef, avals))


def structs(treedef: Any, avals: Sequence[Any]) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s for tracing, from the leaf types (`jax.typeof`)."""

    def leaf(a):
        # An empty mesh carries no information; one with Explicit axes restricts a function.
        sharding = None if a.sharding.mesh.empty else a.sharding
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.unflatten(treedef, map(leaf, avals))


def _convolves(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            return True
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and _convolves(inner):
                    return True
    return False


def _unroll(fn, operands, chunks) -> bool:
    if _platform((operands, chunks)) != "cpu":
        return False
    first = jax.eval_shape(functools.partial(tree.index, i=0), chunks)
    return holds_convolution(fn, operands, first)


def _members(chunks: Any) -> list[Any]:
    return [tree.index(chunks, i) for i in range(jax.tree.leaves(chunks)[0].shape[0])]


def _sum_type(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
