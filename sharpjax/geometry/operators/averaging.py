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
    """`sum_b n_b A_b / sum_b n_b`, with `A_b` the operator of batch b, and `n_b` its number of
    examples, or their total weight; `averaged` makes it.

    Attributes:
        operator: the operator of the first batch; the others differ from it only in the field
            `batch` (and in `key`, if there is one).
        batches: where the batches come from.
        cache_bytes: largest total size of the linearisations that are kept.
    """

    operator: Any
    batches: Listed | Cut | Loader
    cache_bytes: int = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.operator.like

    @property
    def loss(self) -> Any:
        """The loss of the operator, or None if it has none."""
        return getattr(self.operator, "loss", None)

    def check(self, caller: str) -> dict[str, Any]:
        return {"checked": _check(caller, self.operator, self.batches.few())}

    def members(self) -> Iterator[tuple[int | jax.Array, Any]]:
        """Yields, for each batch, its number of examples and its operator.

        If the loss declares weights, the total weight of the batch replaces the number of examples.
        For quantities that are means over examples but are not computed from products, such as an
        exact trace.
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
        # If all linearisations are kept, neither the batches nor the loss are read again.
        operator = self.operator if rest is self.batches else None
        return guard(_Product(tuple(cached), operator, rest), self.checked)


def averaged(
    operator_of: Callable[[Batch], Operator],
    batches: Sequence[Batch] | Iterable[Batch] | Callable[[], Iterable[Batch]] | Batch,
    *,
    batch_size: int | None = None,
    cache_bytes: int = 2**30,
) -> Averaged:
    """The operator of a whole data set: the mean over its batches, `sum_b n_b A_b / sum_b n_b`,
    with `n_b` the number of examples of batch b.

    Use it if the examples do not fit into one batch. It takes the memory of one batch and of the
    linearisations that are kept. For a loss that is a mean over the examples, it is the operator of
    all examples together. If the loss declares weights (`composed`), `n_b` is their sum over the
    batch. Two forward passes on some examples of a few batches check that the loss is such a mean
    (`loss.cutting`). For a loader these are its first batches and, at the end of each pass, the
    last one.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> batches = [jnp.ones(4), jnp.ones(4), jnp.full(2, 6.0)]
    >>> operator = averaged(functools.partial(hessian, loss, jnp.ones(2)), batches)
    >>> operator.linearize()(jnp.array([1.0, 3.0])).tolist()
    [2.0, 6.0]

    A product is a Python loop over the batches, which calls one compiled function (two if some
    batches are shorter), since scans over batches ran 1.1 to 20 times slower on CPU. Solvers
    support this host loop. On eight batches of 1,024 examples of a dense net, a product took 1.2
    gradients of all examples with linearisations kept, and 1.6 without. Inside your own jit or vmap
    the loop becomes a scan that keeps nothing.

    Args:
        operator_of: returns the operator of one batch, such as `functools.partial(hessian, loss,
            params)`. It is called once, with the first batch; the other operators differ only in
            the batch (and in the key, if there is one). Compose outside:
            `restricted(averaged(...), "head/*")`, `averaged(...) + 0.1`.
        batches: a list or tuple of batches, whose arrays are on a device or in numpy on the host.
            Or, with `batch_size`, a pytree of arrays with all examples on axis 0. It is cut into
            the smallest number c of batches with at most `batch_size` examples, of equal size up to
            one. Each batch takes every c-th example, so that sharded examples stay where they are.
            Or a function without arguments that returns a new iterable of batches at each call, or
            such an iterable (a loader). It must give the same batches in the same order each time:
            no shuffling, no random augmentation. Each pass checks that it begins with the same
            example. A function or a loader cannot be used inside jit.
        batch_size: examples in a batch, for arrays.
        cache_bytes: largest total size of the linearisations that a solve keeps, on all devices,
            with copies of batch and parameters; computed from shapes. The other batches are
            linearised again in each product, at 1.6 gradients (dense) to 2.7 a batch instead of 1.5
            to 2. For operators with a `microbatch_size` nothing is kept.

    Raises:
        UserError: an argument does not fit: no batches, batches of different layout (the leaf is
            named), or an iterator that cannot be read again. The solver may also raise this last
            error, at the beginning of a pass. Or the loss is not the mean of its parts; the message
            names the remedies.

    The next batch is moved to the device while the current one is computed. Batches that are
    sharded over a mesh stay sharded: a product then costs, for each batch, one sum over the devices
    of an array of the size of the parameters.
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
    """Bytes that one linearisation keeps, computed from shapes alone."""
    kept = jax.tree.leaves(_linearize.eval_shape(operator, batch, 0))
    return sum(x.size * x.dtype.itemsize for x in kept)


def member(operator: Any, batch: Batch, number: jax.typing.ArrayLike) -> Any:
    """The operator of another batch; if it draws at random, with a key folded from `number`."""
    changed = {"batch": batch}
    if getattr(operator, "key", None) is not None:
        changed["key"] = jax.random.fold_in(operator.key, number)
    return dataclasses.replace(operator, **changed)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Product(loops.HostCode):
    """The product: kept linearisations with their weights, then the remaining batches, which are
    linearised again each time."""

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
            # The next batch is read while this one is computed, and none beyond it.
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
    """The weight of a batch: the sum of the weights its loss declares, or its number of
    examples."""
    loss = getattr(operator, "loss", None)
    if loss is None:
        return loops.count_examples("averaged", batch)
    return total_weight(loss, batch)


def _read(operator, batches, start: int = 0) -> Iterator[Batch]:
    """The batches from number `start` on. The last batch of a loader, which may be padded, was not
    yet read when the first ones were checked: it is checked here, together with the first."""
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
    """The scaled vector; entries of weight 0 become 0, whatever they hold."""
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
