"""Checks of losses, parameters and batches, made before anything is compiled."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.loss import closures, dependence, differentiable
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.loss.implicit import multiply_out

Params = Any


def check_problem(
    caller: str,
    loss: Any,
    params: Params,
    batch: Any,
    microbatch_size: int | None,
    need: Literal["value", "gradient"] = "gradient",
) -> Any:
    """Refuses arguments that do not fit, before anything is compiled; returns the loss as `as_loss`
    does.

    Raises:
        UserError: an argument does not fit, or the loss has no gradient although one is needed;
            names `caller`, the leaf and the remedy.
    """
    loss, found = _check(caller, loss, params, batch, microbatch_size, need == "value")
    _choose(caller, need, "auto", found, loss, params, batch)
    return loss


def check_curvature(
    caller: str,
    loss: Any,
    params: Params,
    batch: Any,
    microbatch_size: int | None,
    product: str = "auto",
) -> tuple[Any, How]:
    """As `check_problem`; also finds how to compute products with the Hessian.

    Raises:
        UserError: as in `check_problem`; or there is no way to compute them, or `product` does not
            work.
    """
    loss, found = _check(caller, loss, params, batch, microbatch_size)
    return loss, How(_choose(caller, "hessian", product, found, loss, params, batch))


def check_examples(
    caller: str,
    loss: Any,
    each: Any,
    params: Params,
    batch: Any,
    microbatch_size: int | None,
    product: str = "auto",
) -> tuple[Any, How]:
    """As `check_curvature`, for products with the Jacobian of `each(loss)`, a function of
    `(params, batch)`."""
    loss, found = _check(caller, loss, params, batch, microbatch_size)
    _choose(caller, "gradient", "auto", found, loss, params, batch)
    return loss, How(_choose(caller, "jacobian", product, found, each(loss), params, batch))


def check_model(
    caller: str,
    loss: Any,
    params: Params,
    batch: Any,
    microbatch_size: int | None,
    product: str = "auto",
    curved: bool = True,
) -> tuple[Any, Any, How]:
    """As `check_problem`, for a loss with a `model_fn`.

    Also returns the shapes of the outputs, and how to compute products with the Jacobian of the
    model and, if `curved`, with the Hessian of the outer loss.

    Raises:
        UserError: as in `check_curvature`; or the outputs are not arrays of floats with the
            examples on axis 0.
    """
    _check_arrays(caller, params, batch, microbatch_size)
    with _noting(caller, params, batch):
        outputs = _outputs.eval_shape(loss.model_fn, params, batch)
    _check_outputs(caller, jax.eval_shape(multiply_out, outputs), batch)
    loss, found = _check_scalar(caller, loss, params, batch)
    _choose(caller, "gradient", "auto", found, loss, params, batch)
    way = _choose(caller, "jacobian", product, found, loss.model_fn, params, batch)
    need = "hessian" if curved else "gradient"
    outer = _choose(caller, need, "auto", found, loss.outer_loss, outputs, batch)
    return loss, outputs, How(way, outer)


def check_bends(caller: str, loss: Any, fn: Any, params: Params, batch: Any) -> None:
    """Refuses `fn(params, batch)`, the loss or a part of it, if it cannot be differentiated forward
    over forward.

    Raises:
        UserError: names `caller`, and what to use instead.
    """
    found = _suspects.eval_shape(loss, params, batch, False)
    _choose(caller, "bend", "forward", found, fn, params, batch)


def check_deterministic(loss: Any, params: Params, batch: Any) -> None:
    """Calls a loss twice, and refuses it if it draws new random numbers at each call.

    Solvers assume that a product is the same linear map each time. The constructors compare the
    numbers in two traces of the loss, which finds Python's and numpy's generators. This function
    also finds callbacks, generators inside data structures, and state that changed unseen since the
    loss was compiled. It costs two forward passes outside of jit and one inside. Best effort: a
    generator inside your own jit is frozen by its first trace.

    Args:
        loss, params, batch: as in `hessian`; concrete arrays.

    Raises:
        UserError: an argument does not fit; two values differ by more than rounding (relatively
            1e-5); or the first differs by more than 1e-3 of the compiled value from it. Or it is
            called inside of jit, grad or vmap.

    >>> check_deterministic(lambda w, batch: jnp.sum(w**2), jnp.ones(3), None)
    """
    caller = "check_deterministic"
    batch = as_batch(caller, batch)
    loss = check_problem(caller, loss, params, batch, None)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((loss, params, batch))):
        raise UserError(f"{caller}: call it outside of jit, grad and vmap; nothing runs in there.")
    params = tree.widen(params)
    first, second = (np.asarray(loss(params, batch), np.float64) for _ in range(2))
    if not np.allclose(first, second, rtol=1e-5, atol=0, equal_nan=True):
        raise UserError(
            f"{caller}: two calls of the loss on the same arguments gave {first:.9g} and "
            f"{second:.9g}. {_KEY_REMEDY}"
        )
    compiled = np.asarray(_compiled_value(loss, params, batch), np.float64)
    if not np.allclose(first, compiled, rtol=1e-3, atol=0, equal_nan=True):
        raise UserError(
            f"{caller}: the loss is {first:.9g} when it is called and {compiled:.9g} compiled. It "
            f"reads something that changed where it cannot be seen, such as inside a library or a "
            f"jitted function. Let it hold that as an array (`jax.tree_util.Partial`, or a "
            f"registered dataclass)."
        )


def as_loss(caller: str, loss: Any, argument: str = "loss") -> Any:
    """The loss as a callable pytree, whose structure holds what it reads besides its arguments.

    Raises:
        UserError: names `caller` and `argument`; the loss cannot be called, hashed, or traced.
    """
    if not callable(loss):
        raise UserError(
            f"{caller}: {argument} must be a function or a callable pytree, "
            f"{_SIGNATURES[argument]}; got {type(loss).__name__}."
        )
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(loss)):
        try:
            hash(loss)
        except TypeError:
            raise UserError(
                f"{caller}: {argument} is a {type(loss).__name__} that can be neither hashed nor "
                f"traced. Register its class (`jax.tree_util.register_dataclass`), or put its "
                f"arrays into a `jax.tree_util.Partial` of a module-level function."
            ) from None
        return closures.current(loss)
    for name, leaf in zip(tree.path_names(loss), jax.tree.leaves(loss), strict=True):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise UserError(
                f"{caller}: leaf '{name}' of the {argument} is a {type(leaf).__name__}, not an "
                f"array. Mark the field as static "
                f'(`dataclasses.field(metadata={{"static": True}})`).'
            )
    return closures.current(loss)


def as_batch(caller: str, batch: Any) -> Any:
    """One batch, with mappings such as a tokenizer's output turned into dicts.

    Raises:
        UserError: names `caller`; a leaf is not an array (it is named), or many batches are given,
            by a loader or a generator.
    """
    batch = tree.plain(batch)
    for name, leaf in zip(tree.path_names(batch), jax.tree.leaves(batch), strict=True):
        if hasattr(leaf, "shape") or isinstance(leaf, bool | int | float | complex):
            continue
        kind, place = type(leaf).__name__, f"leaf '{name}' of batch" if name else "batch"
        if callable(leaf) or hasattr(leaf, "__iter__") and not isinstance(leaf, str | bytes):
            raise UserError(
                f"{caller}: {place} is a {kind}, which gives many batches; one is meant, a pytree "
                f"of arrays, such as next(iter(loader)). The operator of all batches together: "
                f"averaged(functools.partial(hessian, loss, params), batches)."
            )
        raise UserError(
            f"{caller}: {place} is a {kind}, not an array. Leave out what the loss does not "
            f"compute with, or encode it as numbers."
        )
    return batch


_SIGNATURES = {
    "loss": "loss(params, batch) -> scalar",
    "model_fn": "model_fn(params, batch) -> outputs",
    "outer_loss": "outer_loss(outputs, batch) -> scalar",
    "regularizer": "regularizer(params) -> scalar",
    "example_weight": "example_weight(batch) -> [N]",
    "matvec": "matvec(vector) -> vector",
}
_KEY_REMEDY = (
    "Keep randomness out of the loss, or let it hold a key as an array "
    "(`jax.tree_util.Partial(loss, key)`), so that every product is of the same matrix."
)


_WHOLE_REMEDY = (
    "leave microbatch_size out (each device holds its share alone), take "
    "averaged(functools.partial(hessian, loss, params), batch, batch_size=...), or use a mesh of "
    "Auto axes."
)
_OPERATORS = frozenset(("hessian", "gauss_newton", "fisher", "empirical_fisher"))
_COLLECTIONS = frozenset(("batch_stats", "cache", "intermediates"))


class _Refused(UserError):
    """A problem with a loss, found while it is traced, where the caller's name is not known."""


def _check_arrays(caller, params, batch, microbatch_size):
    if isinstance(params, Mapping) and not _COLLECTIONS.isdisjoint(params):
        raise UserError(
            f"{caller}: params holds the collections {', '.join(map(repr, params))} of a Flax "
            f"model, of which only 'params' are varied. Give variables['params'], and let the loss "
            f"hold the others as arrays (`jax.tree_util.Partial`, or a registered dataclass)."
        )
    tree.check_floating(caller, params)
    if not tree.size(params):
        raise UserError(f"{caller}: the arrays of params are empty; there is nothing to vary.")
    if microbatch_size is None:
        _check_axis(caller, batch)
        return
    if isinstance(microbatch_size, bool) or not isinstance(microbatch_size, int | np.integer):
        raise UserError(
            f"{caller}: microbatch_size must be a whole number of examples or None, got "
            f"{microbatch_size!r}."
        )
    refuse_sharded(caller, batch, _WHOLE_REMEDY)
    _check_axis(caller, batch)
    jax.eval_shape(lambda batch: loops.split_chunks(caller, batch, int(microbatch_size)), batch)


def _check_axis(caller, batch):
    if not jax.tree.leaves(batch):
        return
    try:
        loops.count_examples(caller, batch)
    except UserError:
        if _are_batches(batch) and all(map(_has_examples, batch)):
            raise _many_batches(caller, batch, "which differ in length") from None
        raise


def _are_batches(batch) -> bool:
    """Whether it looks like many batches: a list of dicts or of tuples of equal structure."""
    if type(batch) not in (list, tuple) or not batch:
        return False
    first = jax.tree.structure(batch[0])
    alike = all(jax.tree.structure(each) == first for each in batch)
    return alike and bool(first.num_leaves) and not jax.tree_util.treedef_is_leaf(first)


def _has_examples(batch) -> bool:
    rows = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    return len(rows) == 1 and rows.isdisjoint({(), (0,)})


def _many_batches(caller, batch, why) -> UserError:
    kind = caller if caller in _OPERATORS else "hessian"
    return UserError(
        f"{caller}: batch is a {type(batch).__name__} of {len(batch)} {type(batch[0]).__name__}s, "
        f"{why}. One batch is meant, a pytree of arrays with the examples on axis 0. The operator "
        f"of many batches together: geometry.averaged(functools.partial(geometry.{kind}, loss, "
        f"params), batches); for one batch of all, concatenate their arrays."
    )


def _check_outputs(caller, outputs, batch):
    count = loops.count_examples(caller, batch) if jax.tree.leaves(batch) else 1
    names, leaves = tree.path_names(outputs), jax.tree.leaves(outputs)
    rows = {leaf.shape[:1] for leaf in leaves}
    right = len(rows) == 1 and all(
        leaf.ndim and leaf.shape[0] and leaf.shape[0] % count == 0 for leaf in leaves
    )
    if right and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return
    given = [
        (f"'{name}' " if name else "") + _describe(leaf)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    raise UserError(
        f"{caller}: model_fn(params, batch) must return arrays of floats with a row for each of "
        f"the {count} examples on axis 0 (or several); it returns {', '.join(given) or 'nothing'}. "
        f"Drop auxiliary outputs."
    )


def _check(caller, loss, params, batch, microbatch_size, value_alone=False):
    loss = as_loss(caller, loss)
    _check_arrays(caller, params, batch, microbatch_size)
    return _check_scalar(caller, loss, params, batch, value_alone)


def _check_scalar(caller, loss, params, batch, value_alone=False):
    before = jax.tree.structure(loss)
    with _noting(caller, params, batch):
        try:
            # `_suspects` is jitted, so its trace is cached, which saves seconds at every call on a
            # ResNet.
            suspects = _suspects.eval_shape(loss, params, batch, value_alone)
        except _Refused as error:
            raise UserError(f"{caller}: {error}") from None
    return _settle(loss, before, params, batch), suspects


def _choose(caller, need, product, found, loss, params, batch) -> differentiable.Way:
    way, refusal = differentiable.choose(need, product, found, loss, params, batch)
    if refusal:
        raise UserError(f"{caller}: {refusal}")
    return way


def _settle(loss, before, params, batch):
    """The loss, with a token made from a trace if it reads something that cannot be inspected. If
    it writes what it reads, such as a counter of its traces, only the token identifies it."""
    writes = jax.tree.structure(loss) != before
    if not writes and not any(map(closures.is_opaque, closures.members(loss))):
        return loss

    def whole(loss, params, batch):
        return loss(tree.widen(params), batch), _declared_weights(loss, batch)

    token = dependence.digest(jax.make_jaxpr(whole)(loss, params, batch))
    return closures.replace(loss, lambda member: member.with_token(token, walked=not writes))


def _declared_weights(loss, batch):
    """The weights that parts of the loss declare; a trace of its value need not contain them."""
    parts = jax.tree.leaves(loss, is_leaf=lambda node: hasattr(node, "example_weight"))
    found = [getattr(part, "example_weight", None) for part in parts]
    return [weight(batch) for weight in found if weight is not None]


@contextlib.contextmanager
def _noting(caller, params, batch):
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _are_batches(batch):
            said = next(iter(str(error).splitlines()), "")
            why = f"and the loss fails on it ({type(error).__name__}: {said})"
            raise _many_batches(caller, batch, why) from error
        if isinstance(error, TypeError | ValueError) and any(
            map(tree.is_narrow, jax.tree.leaves(params))
        ):
            error.add_note(f"{caller} calls the loss with parameters widened to float32.")
        raise


@functools.partial(jax.jit, static_argnums=3)
def _suspects(loss, params, batch, value_alone):
    """The parts of a loss that may have no derivative. This runs once per structure, with two
    traces of the loss."""
    closed, shapes = _trace(loss, params, batch)
    _refuse_unless_scalar(shapes)
    start, count = len(jax.tree.leaves(loss)), len(jax.tree.leaves(params))
    if not dependence.reaches(closed.jaxpr, range(start, start + count), value_alone):
        how = (
            ""
            if value_alone
            else (", or through integers and stop_gradient alone, so all its derivatives are zero")
        )
        raise _Refused(
            f"the loss does not depend on params{how}. Compute it from the params that it is "
            f"given, not from ones that it closes over."
        )
    if dependence.differ(closed, _trace(loss, params, batch)[0]):
        raise _Refused(
            f"two traces of the loss hold different numbers: it draws from a generator of Python "
            f"or numpy. {_KEY_REMEDY}"
        )
    return differentiable.suspects(closed.jaxpr)


@jax.jit
def _compiled_value(loss, params, batch):
    return loss(params, batch)


@jax.jit
def _outputs(model_fn, params, batch):
    return model_fn(tree.widen(params), batch)


def _trace(loss, params, batch):
    def fresh(loss, params, batch):  # a new function each time: jax caches traces by function
        return loss(tree.widen(params), batch)

    return jax.make_jaxpr(fresh, return_shape=True)(loss, params, batch)


def _refuse_unless_scalar(out):
    leaves = jax.tree.leaves(out)
    if jax.tree.structure(out) == jax.tree.structure(0) and leaves[0].shape == ():
        if jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return
    given = ", ".join(map(_describe, leaves)) or "nothing"
    raise _Refused(
        f"loss(params, batch) must return one floating scalar, the mean over the examples; it "
        f"returns {given} ({jax.tree.structure(out)}). Take the mean of values per example (of a "
        f"complex number its real part), and drop auxiliary outputs."
    )


def _describe(leaf):
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
