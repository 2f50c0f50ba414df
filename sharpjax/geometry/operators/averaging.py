"""The mean of an operator over the batches of a data set."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.loss import closures, cutting
from sharpjax.geometry.loss.assumptions import Assuming, Checked, guard
from sharpjax.geometry.loss.composed import total_weight
from sharpjax.geometry.operators.algebra import Matvec, Operator, Params
from sharpjax.geometry.operators.batches import Batch, Cut, Listed, Loader, as_batches


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averaged(Operator, Assuming, loops.HostCode):
    """`sum_b n_b A_b / sum_b n_b`, with `A_b` the operator of a batch of `n_b` examples, or of that
    weight in all; `averaged` makes it.

    Attributes:
        operator: of the first batch; the others differ from it in the field `batch` alone.
        batches: where the batches come from.
        cache_bytes: of linearisations that are kept.
    """

    operator: Any
    batches: Listed | Cut | Loader
    cache_bytes: int = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.operator.like

    @property
    def loss(self) -> Any:
        """That of the operator; None where it has none."""
        return getattr(self.operator, "loss", None)

    def check(self, caller: str) -> dict[str, Any]:
        return {"checked": _check(caller, self.operator, self.batches.few())}

    def members(self) -> Iterator[tuple[int | jax.Array, Any]]:
        """The number of examples (their weight in all, where the loss declares weights) and the
        operator of each batch, one after another.

        For what is a mean over examples and not found from products, such as an exact trace.
        """
        for i, batch in enumerate(_read(self.operator, self.batches)):
            yield _weight(self.operator, batch), member(self.operator, batch, i)

    def linearize(self) -> Matvec:
        if loops.inside_jit():
            return guard(Partial(_mean, self.operator, self.batches.stacked()), self.checked)
        cached, left, rest = [], self.cache_bytes, Listed(())
        if getattr(self.operator, "microbatch_size", None) is not None:
            left = -1
        for i, batch in enumerate(_read(self.operator, self.batches)):
            left -= linearization_bytes(self.operator, batch)
            if left < 0:
                rest = self.batches
                break
            cached.append((_linearize(self.operator, batch, i), _weight(self.operator, batch)))
        # Where all are kept, nothing is read again, the loss included.
        operator = self.operator if rest is self.batches else None
        return guard(_Product(tuple(cached), operator, rest), self.checked)


def averaged(
    operator_of: Callable[[Batch], Operator],
    batches: Sequence[Batch] | Iterable[Batch] | Callable[[], Iterable[Batch]] | Batch,
    *,
    batch_size: int | None = None,
    cache_bytes: int = 2**30,
) -> Averaged:
    """The operator of a whole data set, in the memory of one batch and of what is kept: the mean
    over its batches, `sum_b n_b A_b / sum_b n_b`, weighted by examples.

    Take it where the examples do not fit into one batch. For a loss that is a mean over the
    examples it is the operator of all of them together; where the loss declares weights
    (`composed`), `n_b` is their sum over the batch. That the loss is such a mean is checked on some
    examples of a few batches, by two forward passes of these (`loss.cutting`); of a loader on the
    first two, and at the end of each pass on the last one.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> batches = [jnp.ones(4), jnp.ones(4), jnp.full(2, 6.0)]
    >>> operator = averaged(functools.partial(hessian, loss, jnp.ones(2)), batches)
    >>> operator.linearize()(jnp.array([1.0, 3.0])).tolist()
    [2.0, 6.0]

    A product is a Python loop over the batches round one compiled function (two, where the last
    batch is shorter), since scans over batches ran 1.1 to 20 times slower on CPU. Solvers know this
    and run round it. On eight batches of 1,024 examples of a dense net it took 1.2 gradients of all
    of them with linearisations kept, and 1.6 without. Inside your own jit or vmap it becomes a scan
    that keeps nothing.

    Args:
        operator_of: gives the operator of one batch, such as `functools.partial(hessian, loss,
            params)`. It is called once, with the first batch; the other operators differ in the
            batch (and in the key, where there is one) alone. Compose outside:
            `restricted(averaged(...), "head/*")`, `averaged(...) + 0.1`.
        batches: a list or tuple of batches, whose arrays are on a device or in numpy on the host;
            or, with `batch_size`, a pytree of arrays with all examples on axis 0, cut into the
            fewest batches of at most so many, of equal size up to one: every c-th example to one
            batch, so that sharded examples stay where they are; or a function of nothing that
            returns a new iterable of batches each time it is called, or such an iterable (a
            loader). It must give the same batches in the same order each time: no shuffling, no
            random augmentation. That a pass begins with the same example is checked. Not inside
            jit.
        batch_size: examples in a batch, for arrays.
        cache_bytes: of linearisations that a solve keeps, on all devices, copies of batch and
            parameters included; found from shapes alone. The other batches are linearised anew in
            each product, at 1.6 gradients (dense) to 2.7 a batch in place of 1.5 to 2. Of operators
            with a `microbatch_size` nothing is kept.

    Raises:
        UserError: an argument does not fit: no batches, batches of different layout (the leaf is
            named), an iterator that cannot be read again. The last may also be found by the solver,
            at the beginning of a pass. Or the loss is not the mean of its parts; the message names
            the remedies.

    Batches are moved to the device one ahead of the one at work. Those that are sharded over a mesh
    stay so: a product costs one sum over the devices for each batch, of the size of the parameters.
    """
    if not callable(operator_of) or isinstance(operator_of, Operator):
        raise UserError(
            f"averaged: the first argument must be a function of one batch that returns its "
            f"operator, such as functools.partial(hessian, loss, params); got "
            f"{type(operator_of).__name__}."
        )
    cache_bytes = whole_number("averaged", "cache_bytes", cache_bytes, least=0)
    source, few = as_batches(batches, batch_size)
    operator = operator_of(few[0])
    if not (isinstance(operator, Operator) and hasattr(operator, "batch")):
        raise UserError(
            f"averaged: the function must return an operator with a field 'batch', such as "
            f"hessian(loss, params, batch); it returned {type(operator).__name__}. Compose "
            f"outside: averaged(...) + 0.1."
        )
    checked = _check("averaged", operator, few)
    found = Averaged(operator, source, cache_bytes, checked=checked)
    return dataclasses.replace(found, reads=closures.reads(found.loss))


def linearization_bytes(operator: Operator, batch: Batch) -> int:
    """What one linearisation keeps, of shapes alone."""
    kept = jax.tree.leaves(_linearize.eval_shape(operator, batch, 0))
    return sum(x.size * x.dtype.itemsize for x in kept)


def member(operator: Any, batch: Batch, number: jax.typing.ArrayLike) -> Any:
    """The operator of another batch; where it draws at random, by a key of its own."""
    changed = {"batch": batch}
    if getattr(operator, "key", None) is not None:
        changed["key"] = jax.random.fold_in(operator.key, number)
    return dataclasses.replace(operator, **changed)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Product(loops.HostCode):
    """The product: linearisations that are kept, with their weights, then the batches beyond them,
    linearised anew each time."""

    cached: tuple[tuple[Matvec, int | jax.Array], ...]
    operator: Any
    batches: Listed | Cut | Loader

    def __call__(self, vector: Params) -> Params:
        start = len(self.cached)
        if loops.inside_jit():
            return _mean(self.operator, self.batches.stacked(start), vector, self.cached)
        total, count = None, 0
        for product, size in self.cached:
            total = _add(total, _term(product, vector, size))
            count += size
        for i, batch in enumerate(_read(self.operator, self.batches, start), start):
            # A batch is read while the one before it is at work, and no more than that one.
            if not loops.is_traced(total):
                jax.block_until_ready(total)
            size = _weight(self.operator, batch)
            total = _add(total, _fresh_term(self.operator, batch, i, vector, size))
            count += size
        return _divide(total, count)


def _check(caller, operator, few: list[Batch]) -> Checked | None:
    loss = getattr(operator, "loss", None)
    return None if loss is None else cutting.check_batches(caller, loss, operator.like, few)


def _weight(operator, batch) -> int | jax.Array:
    """What a batch counts: the weights that its loss declares, or its examples."""
    loss = getattr(operator, "loss", None)
    if loss is None:
        return loops.count_examples("averaged", batch)
    return total_weight(loss, batch)


def _read(operator, batches, start: int = 0) -> Iterator[Batch]:
    """The batches from number `start` on. The one that ends a pass of a loader, where padding is,
    was not there when its first ones were looked at: it is looked at here, beside the first."""
    count, batch = start, None
    for batch in batches.read(start):
        yield batch
        count += 1
    loss = getattr(operator, "loss", None)
    if count > 1 and loss is not None and isinstance(batches, Loader):
        cutting.check_batches("averaged", loss, operator.like, [operator.batch, batch])


@jax.jit
def _linearize(operator, batch, number) -> Matvec:
    return member(operator, batch, number).linearize()


@jax.jit
def _term(product, vector, size):
    return _scaled(size, product(vector))


@jax.jit
def _fresh_term(operator, batch, number, vector, size):
    return _scaled(size, member(operator, batch, number).linearize()(vector))


def _scaled(weight, vector):
    """What has no weight may be anything."""
    return jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), tree.scale(weight, vector))


def _add(total, term):
    return term if total is None else _sum(total, term)


@functools.partial(jax.jit, donate_argnums=0)
def _sum(total, term):
    return jax.tree.map(jnp.add, total, term)


@jax.jit
def _divide(total, count):
    return jax.tree.map(lambda x: x * (1 / jnp.asarray(count, x.dtype)), total)


# Inside a trace: a scan over batches of equal shapes, which keeps nothing.


def _mean(operator, groups, vector, cached=()):
    terms = [(_scaled(size, product(vector)), size) for product, size in cached]
    for stacked, numbers in groups:
        weights: Any = [_weight(operator, tree.index(stacked, i)) for i in range(len(numbers))]
        size = sum(weights)
        weights = None if isinstance(size, int) else jnp.stack(weights)
        chunks = (stacked, numbers)
        mean = loops.mean_over_chunks(_chunk_product, (operator, vector), chunks, weights)
        terms.append((_scaled(size, mean), size))
    total, count = terms[0]
    for term, size in terms[1:]:
        total, count = jax.tree.map(jnp.add, total, term), count + size
    return _divide(total, count)


def _chunk_product(operands, chunk):
    operator, vector = operands
    return member(operator, *chunk).linearize()(vector)
