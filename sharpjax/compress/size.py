"""The exact number of bits that a model takes in the form in which it is held.

    rows = layers(quantise_params(params, 8))
    bits(rows), ratio(rows), rows[0]

| form | bits of a leaf with n numbers, of which p are kept |
|---|---|
| dense | n b, with b the bits of its dtype |
| bitmask | n + p b |
| csr | p (b + 32) + 32 (rows + 1), with rows the product of all axes but the last |
| quantised | n b + 32 for each scale, + b for each zero point |
| low rank | 32 k (m + n) |
| clustered | n ceil(log2 k) + 32 k |

In the last three rows, 32 stands for float32 scales, factors and centres; other dtypes count their
own bits. Only the numbers are counted, without headers, alignment or entropy coding. A quantised
leaf may also be pruned; b is then the bits of its grid.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import tree
from sharpjax.compress.clustering import Clustered, is_clustered
from sharpjax.compress.truncation import is_low_rank
from sharpjax.compress.weights import is_quantised
from sharpjax.errors import UserError, whole_number

Sparse = Literal["bitmask", "csr"]
_INDEX = 32  # bits


class Layer(NamedTuple):
    """One leaf of a model.

    Attributes:
        name: name of the leaf.
        form: as in the table above; for pruned integers such as 'quantised, bitmask'.
        numbers: n, the number of entries of the leaf in the model.
        kept: how many are not pruned; n if nothing is.
        bits: the bits that the leaf takes.
        dense_bits: the bits of n float32 numbers.
    """

    name: str
    form: str
    numbers: int
    kept: int
    bits: int
    dense_bits: int


def layers(held: Any, masks: Any = None, *, sparse: Sparse = "bitmask") -> list[Layer]:
    """A row for each leaf, in the order of `jax.tree.leaves`. Values of the leaves are not read.

    Args:
        held: pytree of arrays, and of the forms that `quantise_params`, `cast_params`, `low_rank`
            and `cluster_params` return. Shapes (`jax.ShapeDtypeStruct`) also work.
        masks: a tree of boolean arrays of the same structure, True for kept numbers; None, or None
            for a leaf, if nothing is pruned. A leaf that is kept whole is counted without a mask.
        sparse: the form of pruned leaves.

    Raises:
        UserError: masks of another structure, shape or dtype, or for low-rank or clustered leaves;
            an unknown `sparse`.

    >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    >>> mask = {"kernel": jnp.arange(32).reshape(4, 8) < 8, "bias": None}
    >>> for row in layers(params, mask):
    ...     print(row.name, row.form, row.numbers, row.kept, row.bits)
    bias dense 8 8 256
    kernel bitmask 32 8 288
    """
    if sparse not in ("bitmask", "csr"):
        raise UserError(f"size.layers: sparse={sparse!r}; give 'bitmask' or 'csr'.")
    nodes, structure = jax.tree.flatten(held, is_leaf=_is_held)
    names = tree.path_names(jax.tree.unflatten(structure, [0.0] * len(nodes)))
    kept = _masks(masks, structure, len(nodes))
    return [
        _layer(name, node, mask, sparse)
        for name, node, mask in zip(names, nodes, kept, strict=True)
    ]


def bits(rows: Sequence[Layer]) -> int:
    """The total bits of all rows.

    >>> bits(layers({"kernel": jnp.ones((4, 8), jnp.float16)}))
    512
    """
    return sum(row.bits for row in rows)


def ratio(rows: Sequence[Layer]) -> float:
    """The compression ratio: the bits of all numbers in float32 divided by the bits taken.

    Raises:
        UserError: there is no row.

    >>> ratio(layers({"kernel": jnp.ones((4, 8), jnp.float16)}))
    2.0
    """
    whole = total(rows)
    return whole.dense_bits / whole.bits


def num_bytes(rows: Sequence[Layer]) -> int:
    """The total bytes, with each leaf rounded up to whole bytes.

    >>> num_bytes([Layer("a", "bitmask", 3, 1, 35, 96)])
    5
    """
    return sum(math.ceil(row.bits / 8) for row in rows)


def total(rows: Sequence[Layer]) -> Layer:
    """The sum of all rows, as a row named 'total'.

    Raises:
        UserError: there is no row.
    """
    if not rows:
        raise UserError("size.total: no rows; give what `size.layers` returns.")
    forms = "; ".join(dict.fromkeys(row.form for row in rows))
    sums = [sum(column) for column in list(zip(*rows, strict=True))[2:]]
    return Layer("total", forms, *sums)


def bitmask_bits(numbers: int, kept: int, bits: int = 32) -> int:
    """n + p b bits: one bit for each number, and b bits for each kept one.

    >>> bitmask_bits(100, 10)
    420
    """
    return numbers + kept * bits


def csr_bits(rows: int, kept: int, bits: int = 32, *, index_bits: int = _INDEX) -> int:
    """p (b + i) + (rows + 1) i bits: compressed sparse rows, with a column index of i bits for each
    kept number and an offset for each row.

    Raises:
        UserError: `index_bits` is not a whole number of 1 or more.

    >>> csr_bits(4, 8)
    672
    """
    whole_number("csr_bits", "index_bits", index_bits)
    return kept * (bits + index_bits) + (rows + 1) * index_bits


def _is_held(node: Any) -> bool:
    return is_quantised(node) or is_low_rank(node) or is_clustered(node)


def _masks(masks, structure, count):
    if masks is None:
        return [None] * count
    leaves, have = jax.tree.flatten(masks, is_leaf=lambda node: node is None)
    if have != structure:
        raise UserError(
            "size.layers: masks must have the tree structure of the parameters; build it with "
            "`jax.tree.map(..., params)`, with None where nothing is pruned."
        )
    return leaves


def _width(node: Any) -> int:
    """The bits of one number of an array."""
    if jnp.issubdtype(node.dtype, jnp.floating):
        return jnp.finfo(node.dtype).bits
    if jnp.issubdtype(node.dtype, jnp.integer):
        return jnp.iinfo(node.dtype).bits  # int4 takes 4, though its itemsize is 1
    return 8 * node.dtype.itemsize


def _layer(name: str, node: Any, mask: Any, sparse: str) -> Layer:
    shape = tuple(node.shape)
    numbers = math.prod(shape)
    dense = 32 * numbers
    if mask is not None and (is_low_rank(node) or is_clustered(node)):
        raise UserError(f"size.layers: '{name}' has a mask and is {_form(node)}; give one of both.")
    if is_low_rank(node):
        parts = (node.left, node.right)
        taken = sum(math.prod(part.shape) * _width(part) for part in parts)
        lanes = math.prod(node.left.shape[:-2])  # of a population; the shape is of one member
        numbers, dense = lanes * numbers, lanes * dense
        return Layer(name, _form(node), numbers, numbers, taken, dense)
    if is_clustered(node):
        k = node.centres.shape[0]
        taken = numbers * math.ceil(math.log2(k)) + k * _width(node.centres)
        return Layer(name, _form(node), numbers, numbers, taken, dense)
    if is_quantised(node):
        each, more, form = node.grid.bits, _grid_bits(node.grid), "quantised"
    else:
        each, more, form = _width(node), 0, "dense"
    kept = numbers if mask is None else _kept(name, shape, mask)
    if kept == numbers:
        return Layer(name, form, numbers, kept, numbers * each + more, dense)
    if sparse == "bitmask":
        taken = bitmask_bits(numbers, kept, each)
    else:
        taken = csr_bits(math.prod(shape[:-1]), kept, each)
    form = sparse if form == "dense" else f"{form}, {sparse}"
    return Layer(name, form, numbers, kept, taken + more, dense)


def _form(node: Any) -> str:
    return "clustered" if isinstance(node, Clustered) else "low rank"


def _grid_bits(grid: Any) -> int:
    scales = math.prod(grid.scale.shape)
    points = 0 if grid.zero_point is None else math.prod(grid.zero_point.shape)
    return scales * _width(grid.scale) + points * grid.bits


def _kept(name: str, shape: tuple[int, ...], mask: Any) -> int:
    if tuple(mask.shape) != shape or mask.dtype != bool:
        raise UserError(
            f"size.layers: the mask of '{name}' is {mask.dtype}{list(mask.shape)}; give booleans "
            f"{list(shape)}."
        )
    return int(np.count_nonzero(np.asarray(mask)))
