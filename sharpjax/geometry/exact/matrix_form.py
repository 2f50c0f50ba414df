"""Dense and convolutional operations as one product, `out[b, s, f] = sum_k a[b, s, k] w[b, k, f]`.

Here `w` is a parameter; `a` (the input) and `out` belong to one example. `s` runs over positions
(the tokens of a sequence, the pixels of an image; one in a plain dense layer), `b` over independent
products (the groups of a grouped convolution). With the error `d` (the gradient in `out`), the
gradient of one example in `w` is then `g[b, k, f] = sum_s a[b, s, k] d[b, s, f]`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn


class Sizes(NamedTuple):
    """The lengths of the four axes."""

    products: int
    positions: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class Dense:
    """A `dot_general` with the parameter as one operand."""

    eqn: JaxprEqn
    operand: int

    @property
    def sizes(self) -> Sizes:
        product, contracted, free = self._axes(self.operand)
        lengths = _shape(self.eqn.invars[self.operand])
        other = _shape(self.eqn.invars[1 - self.operand])
        positions = self._axes(1 - self.operand)[2]
        return Sizes(
            *(_length(lengths, product), _length(other, positions)),
            *(_length(lengths, contracted), _length(lengths, free)),
        )

    def inputs(self, operands: list[Any]) -> jax.Array:
        """The input, [b, s, k]."""
        product, contracted, free = self._axes(1 - self.operand)
        other = jnp.transpose(operands[1 - self.operand], (*product, *free, *contracted))
        size = self.sizes
        return other.reshape(size.products, size.positions, size.rows)

    def errors(self, out: jax.Array) -> jax.Array:
        """An array laid out like the output, as [b, s, f]."""
        size = self.sizes
        if self.operand == 1:
            return out.reshape(size.products, size.positions, size.columns)
        return jnp.swapaxes(out.reshape(size.products, size.columns, size.positions), 1, 2)

    def weight(self, value: jax.Array) -> jax.Array:
        """An array [b, k, f], laid out like the parameter."""
        order = sum(self._axes(self.operand), ())
        shape = _shape(self.eqn.invars[self.operand])
        value = value.reshape([shape[i] for i in order])
        return jnp.transpose(value, [order.index(i) for i in range(len(order))])

    def _axes(self, operand) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        contracted, product = self.eqn.params["dimension_numbers"]
        taken = (*product[operand], *contracted[operand])
        rank = len(_shape(self.eqn.invars[operand]))
        free = tuple(i for i in range(rank) if i not in taken)
        return tuple(product[operand]), tuple(contracted[operand]), free


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A `conv_general_dilated` with the parameter as its kernel; its groups are products.

    The input of the equivalent product is the patch that each output sees. Its axis k runs over
    channels first, then over the positions of the kernel.
    """

    eqn: JaxprEqn

    @property
    def sizes(self) -> Sizes:
        groups, kernel, out = self._groups, self._kernel, self._out
        return Sizes(
            groups, out[0] * math.prod(out[2:]), math.prod(kernel[1:]), kernel[0] // groups
        )

    def inputs(self, operands: list[Any]) -> jax.Array:
        """The patches, [b, s, k]."""
        params, size = self.eqn.params, self.sizes
        x = jnp.transpose(operands[0], params["dimension_numbers"].lhs_spec)
        edges = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])
        strides, dilations = params["window_strides"], params["rhs_dilation"]
        axes = enumerate(zip(self._out[2:], self._kernel[2:], strides, dilations, strict=True))
        for i, (count, length, stride, dilation) in axes:
            # Outputs stay on this axis; positions of the kernel go to a new last axis.
            end = stride * (count - 1) + 1
            slices = [
                jax.lax.slice_in_dim(x, o * dilation, o * dilation + end, stride, axis=2 + i)
                for o in range(length)
            ]
            x = jnp.stack(slices, axis=-1)
        x = jnp.moveaxis(x, 1, 1 + len(strides))  # batch, outputs, channels, kernel
        x = x.reshape(size.positions, size.products, size.rows)
        return jnp.swapaxes(x, 0, 1)

    def errors(self, out: jax.Array) -> jax.Array:
        """An array laid out like the output, as [b, s, f]."""
        size = self.sizes
        batch, feature, *space = self.eqn.params["dimension_numbers"].out_spec
        out = jnp.transpose(out, (batch, *space, feature))
        out = out.reshape(size.positions, size.products, size.columns)
        return jnp.swapaxes(out, 0, 1)

    def weight(self, value: jax.Array) -> jax.Array:
        """An array [b, k, f], laid out like the kernel."""
        spec = self.eqn.params["dimension_numbers"].rhs_spec
        value = jnp.swapaxes(value, 1, 2).reshape(self._kernel)
        return jnp.transpose(value, [spec.index(i) for i in range(len(spec))])

    @property
    def _groups(self) -> int:
        return self.eqn.params["feature_group_count"]

    @property
    def _kernel(self) -> tuple[int, ...]:
        shape = _shape(self.eqn.invars[1])
        return tuple(shape[i] for i in self.eqn.params["dimension_numbers"].rhs_spec)

    @property
    def _out(self) -> tuple[int, ...]:
        shape = _shape(self.eqn.outvars[0])
        return tuple(shape[i] for i in self.eqn.params["dimension_numbers"].out_spec)


@dataclasses.dataclass(frozen=True)
class Shift:
    """An `add` of a parameter with the shape of the output; the input is 1."""

    eqn: JaxprEqn
    operand: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(1, 1, 1, math.prod(_shape(self.eqn.outvars[0])))

    def inputs(self, operands: list[Any]) -> jax.Array:
        """One, [b, s, k]."""
        return jnp.ones((1, 1, 1), operands[self.operand].dtype)

    def errors(self, out: jax.Array) -> jax.Array:
        """An array laid out like the output, as [b, s, f]."""
        return out.reshape(1, 1, -1)

    def weight(self, value: jax.Array) -> jax.Array:
        """An array [b, k, f], laid out like the parameter."""
        return value.reshape(_shape(self.eqn.invars[self.operand]))


def matrix_form(eqn: JaxprEqn | None, operand: int) -> Dense | Convolution | Shift | None:
    """The operation as a product that is linear in this operand, or None if it has no such form."""
    if eqn is None:
        return None
    if eqn.primitive.name == "dot_general":
        return Dense(eqn, operand)
    if eqn.primitive.name in ("add", "add_any"):
        same = _shape(eqn.invars[operand]) == _shape(eqn.outvars[0])
        return Shift(eqn, operand) if same else None
    if eqn.primitive.name == "conv_general_dilated" and operand == 1:
        return Convolution(eqn) if eqn.params["batch_group_count"] == 1 else None
    return None


def _length(shape, axes) -> int:
    return math.prod(shape[i] for i in axes)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
