"""A traced program as a list of instructions; calls are inlined, loops and branches have bodies."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sharpjax.geometry.footprint.layout import Layout, num_bytes, results_lie

VIEWS = frozenset(
    "copy_p expand_dims mesh_cast optimization_barrier reshape reshard sharding_constraint squeeze "
    "stop_gradient transpose".split()
)
_BODIES = ("call_jaxpr", "fun_jaxpr", "jaxpr")  # bodies of equations that are plain calls


class Value:
    """An array of a program; compared by identity.

    Attributes:
        aval: shape and type.
        spec: the mesh axes that each dimension is sharded over.
        num_bytes: size of the part that one device holds.
    """

    def __init__(self, aval: Any, spec: Any, layout: Layout):
        self.aval, self.spec = aval, spec
        self.num_bytes = num_bytes(aval) // layout.parts(spec)


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One operation of a program.

    Attributes:
        name: of the primitive.
        operands, results: arrays; literal constants are left out.
        params: of the equation.
        bodies: of a loop or of branches.
        carried: for a loop, the number of operands before the carried ones, and of the carried.
        given: the caller of a loop donates what the loop carries.
    """

    name: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    params: dict[str, Any]
    bodies: tuple["Program", ...] = ()
    carried: tuple[int, int] = (0, 0)
    given: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A program, or the body of a loop or branch.

    Attributes:
        instructions: those that the outputs need, in the order of the trace.
        inputs, outputs: an input that is passed through is in both; a constant output is None.
        carried: for the body of a loop, the inputs whose buffers its outputs take.
    """

    instructions: tuple[Instruction, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value | None, ...]
    carried: tuple[Value, ...] = ()


def read(closed: Any, specs: Sequence[Any], layout: Layout) -> Program:
    """The program of a closed jaxpr whose inputs are sharded by `specs`."""
    inputs = [Value(v.aval, s, layout) for v, s in zip(closed.jaxpr.invars, specs, strict=True)]
    return _read(closed.jaxpr, inputs, layout)


def _read(jaxpr: Any, inputs: list[Value], layout: Layout) -> Program:
    found: list[Instruction] = []
    constants: list[Value] = []
    outputs = _inline(jaxpr, inputs, layout, found, constants, False)
    used = {id(x) for x in outputs}
    kept = []
    for instruction in reversed(found):
        if any(id(x) in used for x in instruction.results):
            kept.append(instruction)
            used |= {id(x) for x in instruction.operands}
    return Program(tuple(kept[::-1]), (*inputs, *constants), tuple(outputs))


def _inline(jaxpr, inputs, layout, found, constants, given) -> list[Value | None]:
    values: dict[Any, Value | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    for v in jaxpr.constvars:
        values[v] = Value(v.aval, layout.spec_of(v.aval), layout)
        constants.append(values[v])

    def get(atom):
        return None if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        operands = [get(x) for x in eqn.invars]
        body = next((params[b] for b in _BODIES if b in params), None)
        if name in ("scan", "while", "cond"):
            made = _controlled(eqn, operands, layout, given)
            found.append(made)
            results = list(made.results)
        elif body is not None and name != "pallas_call":
            gives = any(params.get("donated_invars", ()))
            inner = getattr(body, "jaxpr", body)
            results = _inline(inner, operands, layout, found, constants, gives)
        else:
            specs = [() if x is None else x.spec for x in operands]
            lie = results_lie(layout, name, params, eqn, specs)
            results = [Value(v.aval, s, layout) for v, s in zip(eqn.outvars, lie, strict=True)]
            there = tuple(x for x in operands if x is not None)
            found.append(Instruction(name, there, tuple(results), params))
        values |= zip(eqn.outvars, results, strict=True)
    return [get(x) for x in jaxpr.outvars]


def _controlled(eqn, operands, layout, given) -> Instruction:
    name, params = eqn.primitive.name, eqn.params

    def body(closed, values, first=0, count=0) -> Program:
        pairs = zip(closed.jaxpr.invars, values, strict=True)
        inputs = [Value(v.aval, () if x is None else x.spec, layout) for v, x in pairs]
        found = _read(closed.jaxpr, inputs, layout)
        return dataclasses.replace(found, carried=tuple(inputs[first : first + count]))

    if name == "cond":
        bodies = tuple(body(branch, operands[1:]) for branch in params["branches"])
        first, count, specs = 0, 0, [() if x is None else x.spec for x in bodies[0].outputs]
    elif name == "while":
        skipped, first = params["cond_nconsts"], params["body_nconsts"]
        operands = operands[skipped:]
        count = len(operands) - first
        bodies = (body(params["body_jaxpr"], operands, first, count),)
        specs = [() if x is None else x.spec for x in operands[first:]]
    else:
        first, count = params["num_consts"], params["num_carry"]
        rows = [_Row(x) for x in operands[first + count :]]
        bodies = (body(params["jaxpr"], [*operands[: first + count], *rows], first, count),)
        specs = [() if x is None else x.spec for x in operands[first : first + count]]
        specs += [((), *(() if x is None else x.spec)) for x in bodies[0].outputs[count:]]
    results = [Value(v.aval, s, layout) for v, s in zip(eqn.outvars, specs, strict=True)]
    there = tuple(x for x in operands if x is not None)
    lost = sum(x is None for x in operands[:first])
    within = sum(x is not None for x in operands[first : first + count])
    return Instruction(name, there, tuple(results), {}, bodies, (first - lost, within), given)


class _Row:
    """One slice of a scanned array."""

    def __init__(self, x: Value | None):
        self.spec = () if x is None else x.spec[1:]
