"""The sharding of the arrays of a program, propagated from its inputs through each operation.

The compiler decides this itself and looks at the whole program. Here shardings propagate forwards
only. Arrays made without inputs (zeros, random numbers) are sharded like the parameter of the same
shape.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Spec = tuple[tuple[str, ...], ...]


class Layout:
    """A mesh, and the parameters that are sharded over it.

    Args:
        sizes: of the axes of the mesh, by name.
        known: the shapes of sharded parameters, and their specs.
    """

    def __init__(self, sizes: dict[str, int], known: dict[tuple[int, ...], Spec]):
        self.sizes, self.known = sizes, known

    def parts(self, spec: Spec) -> int:
        """The number of parts that an array is cut into."""
        return math.prod(self.sizes[name] for names in spec for name in names)

    def spec_of(self, aval: Any) -> Spec:
        """The spec in its type (Explicit axes), or that of the parameter of the same shape."""
        typed = getattr(getattr(aval, "sharding", None), "spec", None)
        if typed and any(typed):
            return as_spec(typed, aval.ndim)
        shape = tuple(getattr(aval, "shape", ()))
        for first in range(len(shape)):
            if shape[first:] in self.known:
                return ((),) * first + self.known[shape[first:]]
        return ((),) * len(shape)


def as_spec(spec: Any, ndim: int) -> Spec:
    """A `PartitionSpec` as a tuple of axis names for each dimension."""
    names = [() if n is None else (n,) if isinstance(n, str) else tuple(n) for n in spec]
    return tuple(names) + ((),) * (ndim - len(names))


def lies(array: Any) -> tuple[dict[str, int], Spec]:
    """The mesh axes of an array with their sizes, and its spec."""
    sharding, ndim = getattr(array, "sharding", None), len(jnp.shape(array))
    if not isinstance(sharding, jax.NamedSharding):
        return {}, ((),) * ndim
    return dict(sharding.mesh.shape), as_spec(sharding.spec, ndim)


def num_bytes(aval: Any) -> int:
    """The bytes of an array, from its shape and type; a random key counts 8 bytes."""
    shape = getattr(aval, "shape", ())
    if not hasattr(aval, "dtype"):
        return 0
    if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
        return 8 * math.prod(shape)
    return math.prod(shape) * np.dtype(aval.dtype).itemsize


def results_lie(
    layout: Layout, name: str, params: dict[str, Any], eqn: Any, specs: Sequence[Spec]
) -> list[Spec]:
    """The specs of the results of an equation, from those of its operands."""
    outs = [v.aval for v in eqn.outvars]
    if not layout.sizes:
        return [((),) * len(getattr(x, "shape", ())) for x in outs]
    found = []
    ins = [v.aval for v in eqn.invars]
    for out in outs:
        typed = layout.spec_of(out) if any(getattr(out.sharding, "spec", ())) else None
        spec = typed or _follow(name, params, ins, specs, out)
        if not any(spec):
            spec = layout.spec_of(out)
        found.append(_fits(layout, spec, out))
    return found


def _fits(layout, spec, out) -> Spec:
    """The spec with each axis used once, and only if it divides the dimension."""
    used: set[str] = set()
    kept = []
    for names, size in zip(spec, out.shape, strict=True):
        names = tuple(n for n in names if n not in used)
        if size % layout.parts((names,)):
            names = ()
        used |= set(names)
        kept.append(names)
    return tuple(kept)


def _follow(name, params, ins, specs, out) -> Spec:
    nothing: Spec = _whole(out)
    if not ins or not any(any(s) for s in specs):
        return nothing
    first: Spec = specs[0] if specs[0] else _whole(ins[0])
    if name == "sharding_constraint":
        sharding = params["sharding"]
        return as_spec(sharding.spec, len(out.shape)) if hasattr(sharding, "spec") else first
    if name == "transpose":
        return tuple(first[i] for i in params["permutation"])
    if name == "broadcast_in_dim":
        spec: list[tuple[str, ...]] = list(nothing)
        for i, place in enumerate(params["broadcast_dimensions"]):
            if ins[0].shape[i] == out.shape[place]:
                spec[place] = first[i]
        return tuple(spec)
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(ins[0].shape, first, out.shape)
    if name == "dot_general":
        (contracted, batch) = params["dimension_numbers"]
        spec = [first[i] for i in batch[0]]
        for side in (0, 1):
            at = specs[side] or _whole(ins[side])
            rest = set(range(len(at))) - set(contracted[side]) - set(batch[side])
            spec += [at[i] for i in sorted(rest)]
        return tuple(spec)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        spec: list[tuple[str, ...]] = list(nothing)
        spec[numbers.out_spec[0]] = first[numbers.lhs_spec[0]]
        if specs[1]:
            spec[numbers.out_spec[1]] = specs[1][numbers.rhs_spec[0]]
        return tuple(spec)
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return tuple(s for i, s in enumerate(first) if i not in params["axes"])
    if name == "gather":
        numbers = params["dimension_numbers"]
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        whole = [s for i, s in enumerate(first) if i not in gone]
        index = list(specs[1][:-1]) if specs[1] else []
        offset = iter(whole)
        left = iter(index)
        return tuple(
            next(offset, ()) if i in numbers.offset_dims else next(left, ())
            for i in range(len(out.shape))
        )
    # By default the result is sharded like an operand of its shape.
    for aval, spec in sorted(zip(ins, specs, strict=True), key=lambda p: not any(p[1])):
        shape = getattr(aval, "shape", ())
        if len(shape) == len(out.shape) and spec:
            return tuple(
                s if a == b else () for s, a, b in zip(spec, shape, out.shape, strict=True)
            )
    return nothing


def _whole(aval: Any) -> Spec:
    """The spec of an array that is not sharded."""
    return tuple(() for _ in getattr(aval, "shape", ()))


def _reshaped(before, spec, after) -> Spec:
    """The spec after a reshape: dimensions split or joined keep the axes of the first of them."""
    found, i, left, names = [], 0, 1, ()
    for size in after:
        if left == 1:
            while i < len(before) and before[i] == 1 and size != 1:
                i += 1
            if size == 1:
                found.append(())
                continue
            if i == len(before):
                found.append(())
                continue
            left, names = before[i], spec[i]
            i += 1
        while left < size and i < len(before):
            left *= before[i]
            i += 1
        found.append(names)
        left, names = (left // size if left % size == 0 else 1), ()
    return tuple(found)
