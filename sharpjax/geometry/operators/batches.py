"""The batches of a data set: in a list, cut from arrays, or read again for each pass."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.loss.cutting import num_batches, share
from sharpjax.geometry.loss.scattered import scattered
from sharpjax.geometry.loss.unusual import unusual

Batch = Any


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Listed:
    """Batches that are all in memory. Numpy arrays stay on the host until they are used."""

    batches: tuple[Batch, ...]

    def few(self) -> list[Batch]:
        """The first batch, some others spread over the list, and unusual examples."""
        size = loops.count_examples("averaged", self.batches[0])
        apart = [self.batches[i] for i in _apart(len(self.batches), size)]
        return _beside(apart, self.batches)

    def read(self, start: int = 0) -> Iterator[Batch]:
        """The batches from number `start` on."""
        yield from self.batches[start:]

    def stacked(self, start: int = 0) -> tuple[tuple[Batch, jax.Array], ...]:
        """Groups of batches of equal shapes, each stacked on a leading axis, with their numbers."""
        groups: dict[Any, list[int]] = {}
        for i, batch in enumerate(self.batches):
            if i >= start:
                shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(batch))
                groups.setdefault(shapes, []).append(i)
        return tuple(
            (tree.stack([self.batches[i] for i in members]), jnp.asarray(members, jnp.int32))
            for members in groups.values()
        )


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cut:
    """One large batch in `count` parts, of equal size up to one example.

    Part j holds the examples j, j + count, j + 2 count, ...: if the examples lie on several
    devices, each device keeps its own.
    """

    batch: Batch
    count: int = dataclasses.field(metadata={"static": True})

    def few(self) -> list[Batch]:
        """The first part, some others spread over the batch, and unusual examples."""
        size = self._num_examples() // self.count
        return _beside([self.part(i) for i in _apart(self.count, size)], [self.batch])

    def read(self, start: int = 0) -> Iterator[Batch]:
        """The parts from number `start` on."""
        for i in range(start, self.count):
            yield self.part(i)

    def part(self, i: Any) -> Batch:
        """Part i; i may be traced if all parts have the same size."""
        longer = self._num_examples() % self.count
        is_longer = longer > 0 and i < longer
        return jax.tree.map(lambda x: _part(x, i, self.count, is_longer), self.batch)

    def stacked(self, start: int = 0) -> tuple[tuple[Batch, jax.Array], ...]:
        """Groups of parts of equal size, each stacked on a leading axis, with their numbers."""
        longer = self._num_examples() % self.count
        ends = [(start, longer), (max(start, longer), self.count)]
        return tuple(
            (
                jax.tree.map(lambda x, a=a, b=b: self._parts(x, a, b), self.batch),
                jnp.arange(a, b, dtype=jnp.int32),
            )
            for a, b in ends
            if a < b
        )

    def _parts(self, x, first, end):
        size, longer = divmod(x.shape[0], self.count)
        parts = jnp.swapaxes(_columns(jnp.asarray(x), size, self.count), 0, 1)[first:end]
        if end > longer:
            return parts
        last = jnp.expand_dims(jnp.asarray(x)[size * self.count :][first:end], 1)
        return jnp.concatenate([parts, last], axis=1)

    def _num_examples(self) -> int:
        return jnp.shape(jax.tree.leaves(self.batch)[0])[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches that are read again for each pass; only the very first example is kept.

    Attributes:
        restart: a function without arguments that returns an iterable, or an iterable.
        example: the first batch, cut down to one example.
    """

    restart: Any
    example: Batch = dataclasses.field(compare=False)

    def few(self) -> list[Batch]:
        """The first batches."""
        return _first(self.restart)

    def read(self, start: int = 0) -> Iterator[Batch]:
        """The batches from number `start` on.

        Raises:
            UserError: the pass does not begin with the same example as the first pass, ends before
                number `start`, or a batch has another layout than the first.
        """
        source, i = self.restart() if callable(self.restart) else self.restart, -1
        for i, batch in enumerate(_iterate(source)):
            batch = tree.plain(batch)
            if i == 0:
                _check_again(batch, self.example)
            if i >= start:
                batch = jax.tree.map(_own, batch)
                _check_alike(batch, self.example, i)
                yield batch
        if i < start:
            raise _exhausted(f"{i + 1} of the batches that the first pass gave")

    def stacked(self, start: int = 0) -> tuple[tuple[Batch, jax.Array], ...]:
        """Refused: a pass over data is host code."""
        raise UserError(
            "averaged: batches that are read from a function or a loader cannot be read inside jit "
            "or vmap. Call the solver outside of them, or give the batches as arrays or in a list."
        )


def as_batches(batches: Any, batch_size: int | None) -> tuple[Listed | Cut | Loader, list[Batch]]:
    """The user's batches as a source, and a few of them for checks, beginning with the first.

    The few are spread over all batches; for a loader they are the first ones.

    Raises:
        UserError: names `averaged` and what is wrong with the batches.
    """
    if batch_size is not None:
        size = whole_number("averaged", "batch_size", batch_size)
        if callable(batches) or hasattr(batches, "__next__"):
            raise UserError(
                "averaged: batch_size cuts arrays; batches that are read from a function or a "
                "loader have the size that it gives them."
            )
        cut = _cut(jax.tree.map(_array, batches), size)
        return cut, cut.few()
    if callable(batches) or not isinstance(batches, Sequence | Mapping) and _is_loader(batches):
        few = _first(batches)
        loader = Loader(batches, jax.tree.map(_example, few[0]))
        for i, batch in enumerate(few):
            _check_alike(batch, loader.example, i)
        return loader, few
    if not isinstance(batches, Sequence) or isinstance(batches, str):
        raise UserError(
            f"averaged: batches must be a list of batches, or a function of nothing that returns "
            f"an iterable of them; got {type(batches).__name__}. One batch of all examples: give a "
            f"batch_size to cut it by."
        )
    if not batches:
        raise UserError("averaged: batches is empty; the mean needs one batch at least.")
    listed = tuple(jax.tree.map(_array, batch) for batch in batches)
    loops.count_examples("averaged", listed[0])
    for i, batch in enumerate(listed):
        _check_alike(batch, listed[0], i)
    source = Listed(listed)
    return source, source.few()


def even_counts(batch: Batch) -> list[int] | range:
    """The numbers of parts that a batch can be cut into, ascending: any up to its number of
    examples or, if these lie on several devices, those that divide the share of each device."""
    num_examples = loops.count_examples("averaged", batch)
    local = min(map(_num_local, jax.tree.leaves(batch)))
    counts = range(1, local + 1)
    return counts if local == num_examples else [c for c in counts if local % c == 0]


def _cut(batch, size) -> Cut:
    num_examples = loops.count_examples("averaged", batch)
    wanted = -(-num_examples // size)
    counts = [c for c in even_counts(batch) if c >= wanted]
    if not counts or counts[0] > 2 * wanted:
        sizes = [num_examples // c for c in even_counts(batch)]
        near = sorted(sorted(sizes, key=lambda s: abs(s - size))[:3])
        raise UserError(
            f"averaged: {num_examples} examples on several devices cannot be cut into batches of "
            f"{size} of which each device keeps its own, equal share; near it can "
            f"{', '.join(map(str, near))}."
        )
    return Cut(batch, counts[0])


def _num_local(x) -> int:
    """The number of examples of an array that one device holds."""
    sharding = x.sharding if isinstance(x, jax.Array) and not loops.is_traced(x) else None
    return (sharding.shard_shape(x.shape) if sharding else jnp.shape(x))[0]


def _is_loader(batches) -> bool:
    """Whether this is an object that gives a new iterator each time; arrays do not count."""
    if hasattr(batches, "__next__"):
        raise UserError(
            f"averaged: batches is an iterator ({type(batches).__name__}), which can be read only "
            f"once, and every product reads all batches. Give the function that makes it, without "
            f"calling it, or a list of the batches."
        )
    return isinstance(batches, Iterable) and not hasattr(batches, "shape")


def _apart(count: int, size: int) -> list[int]:
    _, *others = scattered(count, min(count, num_batches(size)))
    return [0, *map(int, others)]


def _beside(few: list[Batch], batches: Sequence[Batch]) -> list[Batch]:
    """The few batches and unusual examples of all; a single batch alone, since it is not cut."""
    return few if len(few) < 2 else few + unusual(batches, few, share(len(few) + 2))


def _first(source: Any) -> list[Batch]:
    """The first batches."""
    found = source() if callable(source) else source
    if callable(source) and found is source() and hasattr(found, "__next__"):
        raise _exhausted("nothing new: it returns the same iterator")
    few = []
    for batch in _iterate(found):
        few.append(jax.tree.map(_own, batch))
        if len(few) >= num_batches(loops.count_examples("averaged", few[0])):
            break
    if not few:
        raise UserError("averaged: batches gives no batch; the mean needs one at least.")
    return few


def _iterate(found: Any) -> Iterator[Batch]:
    try:
        return iter(found)
    except TypeError:
        raise UserError(
            f"averaged: the function given as batches must return an iterable of batches each time "
            f"it is called; it returned {type(found).__name__}."
        ) from None


def _exhausted(given) -> UserError:
    return UserError(
        f"averaged: batches must give the same batches in the same order each time it is called, "
        f"but a second call gave {given}. Make the iterator inside the function, and do not "
        f"shuffle or augment."
    )


def _array(x):
    """A jax array or, without a copy, a numpy array; a dict of them for a mapping."""
    if isinstance(x, Mapping):
        return jax.tree.map(_array, tree.plain(x))
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _own(x):
    """An array on the device; a dict of them for a mapping. Host arrays are copied, since a loader
    may reuse its buffer."""
    if isinstance(x, Mapping):
        return jax.tree.map(_own, tree.plain(x))
    return x if isinstance(x, jax.Array) else jnp.array(np.asarray(x))


def _example(x):
    """The first example on the host, or only its layout if this process cannot read it."""
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended) or not x.is_fully_addressable:
            return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    return np.asarray(x[:1])


def _check_again(batch, example):
    for name, leaf, other in zip(
        tree.path_names(example), jax.tree.leaves(batch), jax.tree.leaves(example), strict=False
    ):
        if isinstance(other, np.ndarray):
            now = np.asarray(leaf[:1])
            equal_nan = np.issubdtype(now.dtype, np.inexact)
            if not np.array_equal(now.astype(other.dtype), other, equal_nan=equal_nan):
                raise _exhausted(f"another first example ('{name}' differs)")


def _check_alike(batch, first, number):
    names, expected = tree.path_names(batch), tree.path_names(first)
    differ = [f"'{n}' is missing" for n in expected if n not in names]
    differ += [f"'{n}' is new" for n in names if n not in expected]
    if not differ and jax.tree.structure(batch) != jax.tree.structure(first):
        differ = ["the containers differ"]
    if not differ:
        for name, x, y in zip(names, jax.tree.leaves(batch), jax.tree.leaves(first), strict=True):
            one, other = _layout(x), _layout(y)
            if one != other:
                differ += [f"'{name}' is {one} an example and not {other}"]
    if differ:
        raise UserError(
            f"averaged: batch {number} is not laid out like the first: {', '.join(differ)}. "
            f"Batches may differ in the number of examples alone."
        )
    loops.count_examples("averaged", batch)


def _layout(x) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape[1:]))}]"


def _part(x, i, count, is_longer):
    if isinstance(x, jax.Array):
        return _part_on_device(x, i, count, is_longer)
    return np.ascontiguousarray(x[i::count])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _part_on_device(x, i, count, is_longer):
    size = x.shape[0] // count
    part = jax.lax.dynamic_index_in_dim(_columns(x, size, count), i, 1, keepdims=False)
    if not is_longer:
        return part
    last = jax.lax.dynamic_index_in_dim(x, size * count + i, 0)
    return jnp.concatenate([part, last])


def _columns(x, size, count):
    """[size, count, ...]: part j is column j."""
    full = x if x.shape[0] == size * count else x[: size * count]
    return jnp.reshape(full, (size, count, *x.shape[1:]))
