"""Curvature operators: lazy descriptions of symmetric linear maps on the space of the parameters.

An operator computes nothing until a solver linearises it. It is a registered frozen dataclass whose
arrays are leaves, so one compilation serves every checkpoint and one vmap a whole population.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError

Params = Any
Matvec = Callable[[Params], Params]


@runtime_checkable
class Operator(Protocol):
    """A symmetric linear map from trees like `like` to trees like `like`.

    Implementations are registered dataclasses (`jax.tree_util.register_dataclass`): arrays as
    leaves, functions and options static.

    Attributes:
        like: the structure of a vector: a tree of arrays of which only shapes, types and places on
            the devices are read. Vectors are in float32 at least where it is narrower.
    """

    @property
    def like(self) -> Any: ...

    def linearize(self) -> Matvec:
        """The product, with all that does not depend on the vector computed once.

        A solver jits this method and calls it once per solve, so the result is a
        `jax.tree_util.Partial` of a module-level function: a closure cannot leave a jit.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hessian:
    """The Hessian of `params -> loss(params, batch)`; `hessian` makes it and checks its arguments.

    Attributes:
        loss: callable pytree.
        params, batch: what it is called with.
        microbatch_size: examples per pass, or None for all at once.
    """

    loss: Any
    params: Params
    batch: Any
    microbatch_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.params

    def linearize(self) -> Matvec:
        params = widen(self.params)
        if self.microbatch_size is not None:
            chunks = loops.split_chunks("hessian", self.batch, self.microbatch_size)
            return Partial(_mean_product, self.loss, params, chunks)
        with jax.default_matmul_precision("highest"):
            _, product = jax.linearize(Partial(_gradient, self.loss, self.batch), params)
        return Partial(_apply, product)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restricted:
    """The diagonal block of an operator that belongs to some leaves: `P A P'`, the others frozen.

    Its vectors have None in place of the other leaves. This works for any operator, at the cost of
    a full product; `hessian(..., where=...)` gives the same block of a Hessian without computing
    the rest.

    Attributes:
        operator: any `Operator`.
        where: globs on the names of the leaves, as `sharpjax.tree.select` takes them.
    """

    operator: Any
    where: str | tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", tuple(self.where))

    @property
    def like(self) -> Any:
        full = self.operator.like
        return tree.partition(full, tree.select(full, self.where))[0]

    def linearize(self) -> Matvec:
        full = self.operator.like
        mask = tree.select(full, self.where)
        rest = tree.partition(full, mask)[1]
        return Partial(_block_product, self.operator.linearize(), tree.zeros_like(widen(rest)))


def hessian(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
) -> Hessian:
    """The Hessian of a loss, as an operator: nothing is computed here.

    A product `H v = d/dt grad loss(params + t v)` is forward over reverse. A solver linearises the
    gradient once; a product then costs 1.5 gradients (dense layers) to 2 (convolutions, attention)
    and the residuals of one gradient stay in memory. With microbatches nothing stays and a product
    costs 2 to 2.7 gradients. All of it runs at `highest` matmul precision and in float32 at least:
    parameters of a narrower type are widened before the loss sees them, which changes no value, and
    so are vectors.

    Args:
        loss: `loss(params, batch) -> scalar`, the mean over the examples. A hashable function, or a
            callable pytree such as a registered dataclass or `jax.tree_util.Partial`, whose arrays
            (frozen statistics, teachers, masks) are then traced: checkpoints that differ in them
            share one compilation.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        where: glob or globs on leaf names (`sharpjax.tree.path_names`): only the block of these
            leaves, the others held fixed. Vectors then have None in place of the others.
        microbatch_size: examples per pass; divides the number of examples.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy.

    >>> def loss(params, batch):
    ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
    >>> operator = hessian(loss, {"w": jnp.zeros(2)}, batch)
    >>> operator.linearize()({"w": jnp.array([1.0, 0.0])})
    {'w': Array([1., 0.], dtype=float32)}
    """
    return _hessian("hessian", loss, params, batch, where, microbatch_size)


def hvp(
    loss: Any,
    params: Params,
    batch: Any,
    vector: Params,
    *,
    microbatch_size: int | None = None,
) -> Params:
    """One Hessian-vector product `H v`, forward over reverse (Pearlmutter, 1994).

    Costs 2 to 2.7 gradients. For several products at one point use `hessian(...)`, which
    linearises once.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        vector: tree like `params`; its leaves may also be in float32 where those of `params` are
            narrower.

    Returns:
        A tree like `params`, in float32 at least.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy.

    >>> def loss(params, batch):
    ...     return jnp.mean(batch) * jnp.sum(params**3)
    >>> hvp(loss, jnp.array([1.0, 2.0]), jnp.ones(4), jnp.array([1.0, -1.0])).tolist()
    [6.0, -12.0]
    """
    operator = _hessian("hvp", loss, params, batch, None, microbatch_size)
    wide = widen(vector)
    tree.check_same_structure("hvp", "vector", wide, jax.eval_shape(widen, operator.params))
    return _hvp(operator, wide)


@jax.jit
def linearize(operator: Operator) -> Matvec:
    """`operator.linearize()`, compiled once per structure; what a solver calls first.

    The product that it returns keeps its identity as long as the compilation is cached, so loops
    that take it as an operand are compiled once, too.
    """
    return operator.linearize()


def widen(vector: Any) -> Any:
    """The same tree with float32 in place of narrower floating types.

    >>> widen({"w": jnp.ones(2, jnp.bfloat16)})
    {'w': Array([1., 1.], dtype=float32)}
    """

    def leaf(x):
        narrow = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and _is_narrow(x)
        return x.astype(jnp.float32) if narrow else x

    return jax.tree.map(leaf, vector)


def check_problem(
    caller: str, loss: Any, params: Params, batch: Any, microbatch_size: int | None
) -> Any:
    """Refuses what does not fit, before anything is compiled; returns the loss as `as_loss` does.

    Raises:
        UserError: names `caller`, the leaf and the remedy.
    """
    loss = as_loss(caller, loss)
    tree.check_floating(caller, params)
    _check_batch(caller, batch, microbatch_size)
    _check_scalar(caller, loss, params, batch)
    return loss


def _hessian(caller, loss, params, batch, where, microbatch_size) -> Hessian:
    loss = check_problem(caller, loss, params, batch, microbatch_size)
    params = jax.tree.map(jnp.asarray, params)
    if where is not None:
        params, frozen = tree.partition(params, tree.select(params, where))
        loss = Partial(_call_with_frozen, loss, widen(frozen))
    return Hessian(loss, params, batch, microbatch_size)


def as_loss(caller: str, loss: Any) -> Any:
    """The loss as a callable pytree: bare functions are wrapped in `jax.tree_util.Partial`.

    Raises:
        UserError: names `caller`; the loss cannot be called, hashed, or traced.
    """
    if not callable(loss):
        raise UserError(
            f"{caller}: loss must be a function or a callable pytree, loss(params, batch) -> "
            f"scalar; got {type(loss).__name__}."
        )
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(loss)):
        try:
            hash(loss)
        except TypeError:
            raise UserError(
                f"{caller}: loss is a {type(loss).__name__} that can be neither hashed nor traced. "
                f"Register its class (`jax.tree_util.register_dataclass`), or put its arrays into "
                f"a `jax.tree_util.Partial` of a module-level function."
            ) from None
        return Partial(loss)
    for name, leaf in zip(tree.path_names(loss), jax.tree.leaves(loss), strict=True):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise UserError(
                f"{caller}: leaf '{name}' of the loss is a {type(leaf).__name__}, not an array. "
                f'Mark the field as static (`dataclasses.field(metadata={{"static": True}})`).'
            )
    return loss


def check_operator(caller: str, operator: Any) -> None:
    """Refuses what is not an `Operator`.

    Raises:
        UserError: names `caller` and how one is made.
    """
    if not isinstance(operator, Operator):
        raise UserError(
            f"{caller}: the first argument must be an operator, such as "
            f"hessian(loss, params, batch); got {type(operator).__name__}."
        )


def check_key(caller: str, key: Any) -> None:
    """Refuses what is not one random key.

    Raises:
        UserError: names `caller`.
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        shape = f" of shape {key.shape}" if typed else ""
        raise UserError(
            f"{caller}: key must be one random key, such as jax.random.key(0); got "
            f"{'keys' if typed else type(key).__name__}{shape}. Legacy keys: "
            f"jax.random.wrap_key_data; several keys: jax.vmap."
        )


def _check_batch(caller, batch, microbatch_size):
    if microbatch_size is None:
        if jax.tree.leaves(batch):
            loops.count_examples(caller, batch)
        return
    if isinstance(microbatch_size, bool) or not isinstance(microbatch_size, int | np.integer):
        raise UserError(
            f"{caller}: microbatch_size must be a whole number of examples or None, got "
            f"{microbatch_size!r}."
        )
    jax.eval_shape(lambda batch: loops.split_chunks(caller, batch, int(microbatch_size)), batch)


def _check_scalar(caller, loss, params, batch):
    try:
        # Of the jitted function: its trace is remembered, seconds saved at every call on a ResNet.
        out = _value.eval_shape(loss, params, batch)
    except (TypeError, ValueError) as error:
        if any(map(_is_narrow, jax.tree.leaves(params))):
            error.add_note(f"{caller} calls the loss with parameters widened to float32.")
        raise
    leaves = jax.tree.leaves(out)
    if jax.tree.structure(out) == jax.tree.structure(0) and leaves[0].shape == ():
        if jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return
    given = ", ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in leaves) or "nothing"
    raise UserError(
        f"{caller}: loss(params, batch) must return one floating scalar, the mean over the "
        f"examples; it returns {given} ({jax.tree.structure(out)}). Take the mean of values per "
        f"example, and drop auxiliary outputs."
    )


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


@jax.jit
def _value(loss, params, batch):
    return loss(widen(params), batch)


def _gradient(loss, batch, params):
    return jax.grad(loss)(params, batch)


def _apply(product, vector):
    return product(vector)


def _chunk_product(operands, chunk):
    loss, params, vector = operands
    with jax.default_matmul_precision("highest"):
        return jax.jvp(Partial(_gradient, loss, chunk), (params,), (vector,))[1]


def _mean_product(loss, params, chunks, vector):
    return loops.mean_over_chunks(_chunk_product, (loss, params, vector), chunks)


def _block_product(product, zeros, vector):
    full = product(tree.combine(vector, zeros))
    return jax.tree.map(
        lambda v, x: None if v is None else x, vector, full, is_leaf=lambda v: v is None
    )


def _call_with_frozen(loss, frozen, params, batch):
    return loss(tree.combine(params, frozen), batch)


@jax.jit
def _hvp(operator, vector):
    if operator.microbatch_size is not None:
        return operator.linearize()(vector)
    # From scratch: for one product, `linearize` would only add stored residuals.
    return _chunk_product((operator.loss, widen(operator.params), vector), operator.batch)


def _is_narrow(x):
    return x.dtype.itemsize < 4
