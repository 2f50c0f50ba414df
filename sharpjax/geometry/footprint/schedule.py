"""The bytes that a program needs at its peak, modelled on the buffers of XLA.

Chains of elementwise operations are fused into the operations that read them. So a value takes
memory only in four cases. It is the result of a matrix product, a convolution, a sum or a loop. Or
it is read by a matrix product, a convolution or a loop. Or it is an output. Or several operations
read it and it is expensive to recompute (`exp`). A product gets copies of operands whose dimensions
are not in the order that its kernel needs. On CPU operations run breadth first, as soon as their
operands are ready; elsewhere they run in the order of the trace.
"""

import dataclasses
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import NamedTuple

from sharpjax.geometry.footprint.program import VIEWS, Instruction, Program, Value

_DEAR = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh div erf erf_inv erfc exp exp2 expm1 "
    "lgamma log log1p logistic pow rem rsqrt sin sinh sqrt tan tanh".split()
)
_JOINED = _DEAR | frozenset(
    "abs add add_any and bitcast_convert_type broadcast_in_dim ceil clamp concatenate "
    "convert_element_type copy dynamic_slice eq floor gather ge gt imag integer_pow iota is_finite "
    "le lt max min mul ne neg nextafter not or pad population_count random_bits random_unwrap "
    "random_wrap real reduce_precision rev round select_n shift_left shift_right_arithmetic "
    "shift_right_logical sign slice square sub threefry2x32 xor".split()
)
_SUMS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split()
)
_IN_PLACE = _JOINED | frozenset("cond dynamic_update_slice scan scatter scatter-add while".split())


class Peak(NamedTuple):
    """Bytes at the peak of a call: of the linearisation, of the arrays that the solver keeps, and
    of the temporaries of a product."""

    residuals: int
    state: int
    product: int


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """An operation that fills buffers, with all operations fused into it.

    Attributes:
        name: of the primitive.
        reads: the buffers and inputs that it reads, in order.
        fills: the buffers that it fills.
        inner: bytes of temporaries while it runs.
        loop: the instruction if it is a `while` loop, else None.
    """

    name: str
    reads: tuple[Value, ...]
    fills: tuple[Value, ...]
    inner: int = 0
    loop: Instruction | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Buffers:
    """The steps of a program, and the buffers behind each value.

    Attributes:
        steps: in the order of the trace.
        outputs: the buffers and inputs that each output is made of.
        of: the buffers and inputs that each value is made of, by its `id`.
    """

    steps: tuple[Step, ...]
    outputs: tuple[tuple[Value, ...], ...]
    of: dict[int, tuple[Value, ...]]


def buffers(program: Program, cpu: bool) -> Buffers:
    """The buffers that a program fills."""
    readers: dict[int, list[Instruction]] = defaultdict(list)
    for instruction in program.instructions:
        for x in instruction.operands:
            readers[id(x)].append(instruction)
    outputs = {id(x) for x in program.outputs}

    def end_readers(value) -> Iterator[Instruction | None]:
        """The instructions that read a value or a view of it; None if it is an output."""
        if id(value) in outputs:
            yield None
        for instruction in readers[id(value)]:
            if instruction.name in VIEWS:
                yield from end_readers(instruction.results[0])
            else:
                yield instruction

    of: dict[int, tuple[Value, ...]] = {id(x): (x,) for x in program.inputs}
    copies: dict[tuple[int, tuple[int, ...]], Value] = {}
    steps: list[Step] = []

    def copied(x: Value, order: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[Value, ...]:
        """The buffers of an operand, or of a copy if its dimensions are not in the wanted order."""
        if order == wanted:
            return of[id(x)]
        if (id(x), order) not in copies:
            copy = copies[id(x), order] = _like(x)
            steps.append(Step("transpose", of[id(x)], (copy,)))
        return (copies[id(x), order],)

    for each in program.instructions:
        reads = [b for x in each.operands for b in of[id(x)]]
        if each.name in VIEWS:
            of[id(each.results[0])] = tuple(dict.fromkeys(reads))
            continue
        alone = cpu and each.name == "random_bits"  # a loop over a pair of such arrays
        if each.name in _JOINED and len(each.results) == 1 and not alone:
            ends = list(end_readers(each.results[0]))
            joins = all(x is not None and x.name in _JOINED | _SUMS for x in ends)
            if joins and not (each.name in _DEAR and len({id(x) for x in ends}) > 1):
                of[id(each.results[0])] = tuple(dict.fromkeys(reads))
                continue
        fills = each.results
        if alone:
            twins = (each.results[0], _like(each.results[0]))
            steps.append(Step(each.name, tuple(dict.fromkeys(reads)), twins, twins[0].num_bytes))
            of[id(each.results[0])] = twins
            continue
        if each.name == "dot_general" and len(each.operands) == 2:
            _, batch = each.params["dimension_numbers"]
            pairs = zip(each.operands, batch, strict=True)
            reads = [b for x, d in pairs for b in copied(x, tuple(d), tuple(range(len(d))))]
        elif cpu and each.name == "conv_general_dilated" and len(each.operands) == 2:
            d = each.params["dimension_numbers"]
            n = len(d.lhs_spec)
            data, kernel = (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2))
            image, window = each.operands
            reads = [*copied(image, d.lhs_spec, data), *copied(window, d.rhs_spec, kernel)]
            if tuple(d.out_spec) != data:
                fills = (_like(each.results[0]),)
                steps.append(Step("transpose", fills, each.results))
        inner = max([0, *(peak(body, cpu) for body in each.bodies)])
        loop = each if each.name == "while" else None
        step = Step(each.name, tuple(dict.fromkeys(reads)), fills, inner, loop)
        steps.insert(len(steps) - (fills is not each.results), step)
        of |= {id(x): (x,) for x in each.results}
    made = tuple(() if x is None else of[id(x)] for x in program.outputs)
    return Buffers(tuple(steps), made, of)


def peak(program: Program, cpu: bool) -> int:
    """The peak bytes that a program takes besides its inputs and outputs.

    In the body of a loop, outputs take the buffers of the carried inputs.
    """
    found = buffers(program, cpu)
    steps = _breadth_first(found.steps, program.inputs) if cpu else found.steps
    outputs = [x[0] if x else None for x in found.outputs]
    last = {id(x): i for i, step in enumerate(steps) for x in step.reads}
    elsewhere, moved = set(), 0
    inputs = {id(x) for x in program.inputs}
    if not program.carried:
        elsewhere = {id(x) for x in outputs if x is not None and id(x) not in inputs}
    else:
        when = {id(x): i for i, step in enumerate(steps) for x in step.fills}
        for old, new in zip(program.carried, outputs, strict=False):
            if new is None or new is old:
                continue
            if id(new) in inputs:
                moved += 2 * new.num_bytes  # copied when it is read and when it is written
            elif last.get(id(old), -1) <= when[id(new)] and not _is_among(old, outputs):
                elsewhere.add(id(new))
    kept = {id(x) for x in outputs if x is not None}
    # Random bits of a step were observed to stay live beside its product.
    kept |= {id(x) for step in steps if step.name == "random_bits" for x in step.fills}
    return moved + _highest(steps, elsewhere, kept, last)


def of_call(program: Program, cpu: bool, given: bool) -> Peak:
    """The peak of a solver whose loops are separate programs, as they are outside of a trace.

    A loop holds copies of what it reads until the call ends. It also copies what it carries, unless
    that is donated.

    Args:
        program: the solver, traced as one program.
        cpu: whether it runs on CPU.
        given: the solver donates to its loops what they carry.
    """
    found = buffers(program, cpu)
    outputs = {id(x) for made in found.outputs for x in made}
    last = {id(x): i for i, step in enumerate(found.steps) for x in step.reads}
    sizes: dict[int, int] = {}
    held: set[int] = set()
    copied, highest = 0, Peak(0, 0, 0)
    for i, step in enumerate(found.steps):
        ends = [x for x in step.reads if last[id(x)] == i and id(x) in sizes]
        ends = [x for x in ends if id(x) not in outputs | held]
        now = sum(sizes.values()) + copied
        new = sum(x.num_bytes for x in step.fills)
        free = [x.num_bytes for x in ends] if step.name in _IN_PLACE else []
        for x in step.fills:
            if x.num_bytes in free:
                free.remove(x.num_bytes)
                new -= x.num_bytes
        residuals = 0
        if step.loop is not None:
            first, count = step.loop.carried
            read = step.loop.operands[:first]
            residuals = sum(x.num_bytes for x in read)
            own = {id(b): b for x in read for b in found.of[id(x)] if id(b) in sizes}
            more = residuals - sum(b.num_bytes for b in own.values())
            if not held:
                copied, now = more, now + more
            held |= own.keys()
            moved = step.loop.operands[first : first + count]
            carried = sum(x.num_bytes for x in moved)
            there = {id(b): b for x in moved for b in found.of[id(x)] if id(b) in sizes}
            new = carried - sum(b.num_bytes for b in there.values())
            new += 0 if given or step.loop.given else carried
        whole = now + new + step.inner
        if whole > sum(highest):
            kept = max(residuals, highest.residuals)
            highest = Peak(kept, whole - kept - step.inner, step.inner)
        sizes |= {id(x): x.num_bytes for x in step.fills}
        for x in (*ends, *(x for x in step.fills if id(x) not in last and id(x) not in outputs)):
            sizes.pop(id(x), None)
    return highest


def _highest(steps, elsewhere, kept, last) -> int:
    live = highest = 0
    sizes: dict[int, int] = {}
    for i, step in enumerate(steps):
        fills = [x for x in step.fills if id(x) not in elsewhere]
        ends = [x for x in step.reads if id(x) in sizes and last[id(x)] == i and id(x) not in kept]
        new = sum(x.num_bytes for x in fills)
        if step.name in _IN_PLACE:
            free = [x.num_bytes for x in ends]
            for x in fills:
                if x.num_bytes in free:
                    free.remove(x.num_bytes)
                    new -= x.num_bytes
        highest = max(highest, live + new + step.inner)
        sizes |= {id(x): x.num_bytes for x in fills}
        unread = [x for x in fills if id(x) not in last and id(x) not in kept]
        live += sum(x.num_bytes for x in fills)
        live -= sum(sizes.pop(id(x)) for x in (*ends, *unread))
    return highest


def _breadth_first(steps, inputs) -> list[Step]:
    readers: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        for x in step.reads:
            readers[id(x)].append(step)
    missing = {id(step): len(step.reads) for step in steps}
    queue: deque[Value | Step] = deque((*inputs, *(step for step in steps if not step.reads)))
    ordered: list[Step] = []
    while queue:
        first = queue.popleft()
        if isinstance(first, Step):
            ordered.append(first)
        for x in first.fills if isinstance(first, Step) else (first,):
            for step in readers[id(x)]:
                missing[id(step)] -= 1
                if not missing[id(step)]:
                    queue.append(step)
    return ordered


def _like(x: Value) -> Value:
    copy = Value.__new__(Value)
    copy.aval, copy.spec, copy.num_bytes = x.aval, x.spec, x.num_bytes
    return copy


def _is_among(x, values) -> bool:
    return any(x is y for y in values)
