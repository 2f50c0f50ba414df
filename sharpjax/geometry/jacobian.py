"""Gauss-Newton and Fisher matrices: `mean_n J_n' M_n J_n`, with J_n the Jacobian of the outputs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops
from sharpjax.errors import UserError, unknown
from sharpjax.geometry.algebra import Composable, Matvec, Params, widen
from sharpjax.geometry.blocks import freeze
from sharpjax.geometry.checks import as_loss, check_key, check_model, check_problem
from sharpjax.geometry.precision import Precision, lower

Labels = Literal["model", "observed"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussNewton(Composable):
    """`J' H J`, with `H` the Hessian of `outer_loss` in the outputs; `gauss_newton` makes it.

    Attributes:
        model_fn: callable pytree, `model_fn(params, batch) -> outputs`.
        outer_loss: callable pytree, `outer_loss(outputs, batch) -> scalar`.
        params, batch: what they are called with.
        microbatch_size: examples per pass, or None for all at once.
    """

    model_fn: Any
    outer_loss: Any
    params: Params
    batch: Any
    microbatch_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.params

    def linearize(self) -> Matvec:
        make = Partial(_curved, self.model_fn, self.outer_loss)
        return _linearize("gauss_newton", make, self.params, self.batch, self.microbatch_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher(Composable):
    """`mean_n E g_n g_n'`, with `g_n` the gradient of `-log p(label_n)`; `fisher` makes it.

    Attributes:
        model_fn, outer_loss, params, batch, microbatch_size: as in `GaussNewton`.
        labels: "model" or "observed".
        key: for labels drawn from the model; None for their exact expectation.
    """

    model_fn: Any
    outer_loss: Any
    params: Params
    batch: Any
    labels: Labels = dataclasses.field(default="model", metadata={"static": True})
    key: jax.Array | None = None
    microbatch_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def like(self) -> Any:
        return self.params

    def linearize(self) -> Matvec:
        batch = self.batch
        if self.key is not None:
            make = Partial(_sampled, self.model_fn, self.outer_loss)
            count = loops.count_examples("fisher", batch)
            batch = (batch, jax.random.split(self.key, count))
        elif self.labels == "observed":
            make = Partial(_observed, self.model_fn, self.outer_loss)
        else:
            make = Partial(_curved, self.model_fn, self.outer_loss)
        return _linearize("fisher", make, self.params, batch, self.microbatch_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmpiricalFisher(Composable):
    """`mean_n g_n g_n'`, with `g_n` the gradient of the loss of one example; `empirical_fisher`
    makes it.

    Attributes:
        loss: callable pytree, `loss(params, batch) -> scalar`, also on a batch of one.
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
        make = Partial(_scattered, self.loss)
        return _linearize("empirical_fisher", make, self.params, self.batch, self.microbatch_size)


def gauss_newton(
    model_fn: Any,
    outer_loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
) -> GaussNewton:
    """The generalised Gauss-Newton matrix of a loss, as an operator: nothing is computed here.

    `G = J' H J`, with J the Jacobian of `model_fn` in the parameters and H the Hessian of
    `outer_loss` in the outputs (Schraudolph, 2002). It is the Hessian of the loss without the
    curvature of the model, and positive semidefinite where `outer_loss` is convex.

    Both parts are linearised once. A product then costs 1.17 (dense layers) to 1.33 gradients, one
    forward and one backward pass, and the residuals of one gradient stay in memory. With
    microbatches nothing stays and a product costs 1.6 gradients. All of it runs at `highest` matmul
    precision and in float32 at least, as `hessian` has it.

    Args:
        model_fn: `model_fn(params, batch) -> outputs`, an array or a tree of arrays with the
            examples on axis 0: a row for each, or as many for each (the tokens of a sequence). A
            hashable function or a callable pytree, as a loss.
        outer_loss: `outer_loss(outputs, batch) -> scalar`, the mean over the rows; likewise.
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        where: glob or globs on leaf names: only the block of these leaves, as in `hessian`.
        microbatch_size: examples per pass; divides the number of examples.
        precision: "highest", or "bfloat16" for the model, as in `hessian`. `outer_loss` gets
            float32.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy.

    >>> def model_fn(params, batch):
    ...     return batch["x"] @ params["w"]
    >>> def outer_loss(outputs, batch):
    ...     return jnp.mean((outputs - batch["y"]) ** 2) / 2
    >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
    >>> operator = gauss_newton(model_fn, outer_loss, {"w": jnp.zeros(2)}, batch)
    >>> operator.linearize()({"w": jnp.array([1.0, 0.0])})
    {'w': Array([0.5, 0. ], dtype=float32)}
    """
    caller = "gauss_newton"
    model_fn = lower(as_loss(caller, model_fn, "model_fn"), precision)
    problem = (model_fn, outer_loss, params, batch, microbatch_size)
    model_fn, outer_loss = check_model(caller, *problem)
    model_fn, params = freeze(model_fn, params, where)
    return GaussNewton(model_fn, outer_loss, params, batch, microbatch_size)


def fisher(
    model_fn: Any,
    outer_loss: Any,
    params: Params,
    batch: Any,
    *,
    labels: Labels = "model",
    key: jax.Array | None = None,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
) -> Fisher:
    """The Fisher matrix of a model, as an operator: nothing is computed here.

    `F = mean_n E[g_n g_n']`, with `g_n` the gradient of `-log p(y | x_n)` in the parameters.
    `outer_loss` holds the likelihood: it is the mean of `-log p` over the rows of the outputs.

    * `labels="model"`, no key: y is distributed as the model says, and the expectation is exact. An
      `outer_loss` with `canonical = True` promises that it is the likelihood of an exponential
      family in its natural parameter; then F is the Gauss-Newton matrix (Martens, 2020, arXiv
      1412.1193). So it is for softmax cross-entropy, and for half the squared error.
    * `labels="model"` with a key: each y is drawn once, by `outer_loss.sample(key, outputs, batch)
      -> batch`, called on the outputs of one example, which returns its batch of one with labels
      drawn. The same key draws the same labels, whatever the microbatches. Unbiased; its rank is at
      most the number of rows.
    * `labels="observed"`: y are the labels of the batch. This is the empirical Fisher matrix by
      fewer operations than `empirical_fisher`; it is not a Fisher matrix (Kunstner et al., 2019,
      arXiv 1905.12558).

    Products cost as in `gauss_newton`, with or without a key.

    Args:
        model_fn, params, batch, where, microbatch_size, precision: as in `gauss_newton`.
        outer_loss: the likelihood; `sharpjax.losses.CrossEntropy()` has all of the above.
        labels: "model" or "observed".
        key: for labels drawn from the model; None for the exact expectation.

    Raises:
        UserError: an argument does not fit, or `outer_loss` lacks what is asked of it.

    >>> from sharpjax.losses import SquaredError
    >>> batch = {"x": jnp.eye(2), "target": jnp.array([3.0, 0.0])}
    >>> def model_fn(params, batch):
    ...     return batch["x"] @ params
    >>> fisher(model_fn, SquaredError(), jnp.zeros(2), batch).linearize()(jnp.ones(2)).tolist()
    [0.5, 0.5]
    >>> observed = fisher(model_fn, SquaredError(), jnp.zeros(2), batch, labels="observed")
    >>> observed.linearize()(jnp.ones(2)).tolist()
    [4.5, 0.0]
    """
    if labels not in get_args(Labels):
        raise unknown("labels", labels, get_args(Labels))
    model_fn = lower(as_loss("fisher", model_fn, "model_fn"), precision)
    problem = (model_fn, outer_loss, params, batch, microbatch_size)
    model_fn, outer_loss = check_model("fisher", *problem)
    _check_likelihood(outer_loss, labels, key, batch)
    model_fn, params = freeze(model_fn, params, where)
    return Fisher(model_fn, outer_loss, params, batch, labels, key, microbatch_size)


def empirical_fisher(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
) -> EmpiricalFisher:
    """The second moment of the gradients of single examples, as an operator.

    `mean_n g_n g_n'`, with `g_n` the gradient of the loss on a batch of example n alone: for any
    loss in which examples do not see each other. No gradient of one example is formed: with l the
    vector of their losses, a product is `J_l' (J_l v) / N`. It costs about as much as in
    `gauss_newton`.

    Args:
        loss, params, batch, where, microbatch_size, precision: as in `hessian`.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy.

    >>> def loss(params, batch):
    ...     return jnp.mean(batch["x"] @ params)
    >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
    >>> empirical_fisher(loss, jnp.zeros(2), batch).linearize()(jnp.ones(2)).tolist()
    [0.5, 4.5]
    """
    caller = "empirical_fisher"
    loss = lower(as_loss(caller, loss), precision)
    loops.count_examples(caller, batch)
    loss = check_problem(caller, loss, params, batch, microbatch_size)
    loss, params = freeze(loss, params, where)
    return EmpiricalFisher(loss, params, batch, microbatch_size)


def _check_likelihood(outer_loss, labels, key, batch):
    likelihood = _likelihood(outer_loss)
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    if labels == "observed":
        if key is not None:
            raise UserError("fisher: labels='observed' draws nothing; leave the key out.")
        loops.count_examples("fisher", batch)
    elif key is None:
        if getattr(likelihood, "canonical", False) is not True:
            raise UserError(
                f"fisher: the exact Fisher matrix needs an outer_loss that says canonical = True, "
                f"the mean of -log p of an exponential family in its natural parameter, such as "
                f"sharpjax.losses.CrossEntropy(); {name} does not. Otherwise give a key, and an "
                f"outer_loss with sample(key, outputs, batch) -> batch, for labels drawn from the "
                f"model."
            )
    else:
        check_key("fisher", key)
        loops.count_examples("fisher", batch)
        if not callable(getattr(likelihood, "sample", None)):
            raise UserError(
                f"fisher: a key asks for labels drawn from the model, but {name} has no method "
                f"sample(key, outputs, batch) -> batch, which returns the batch with labels drawn "
                f"given the outputs. Write it, or leave the key out for the exact expectation."
            )


def _likelihood(outer_loss) -> Any:
    """What the user passed: objects that are not pytrees were wrapped."""
    bare = isinstance(outer_loss, Partial) and not outer_loss.args and not outer_loss.keywords
    return outer_loss.func if bare else outer_loss


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _linearize(caller, make, params, batch, microbatch_size) -> Matvec:
    """`make(params, batch)` returns `J` (linear) and what is between `J` and `J'` (linear)."""
    params = widen(params)
    if microbatch_size is not None:
        chunks = loops.split_chunks(caller, batch, microbatch_size)
        return Partial(_mean_product, make, params, chunks)
    with jax.default_matmul_precision("highest"):
        return Partial(_product, *make(params, batch))


def _product(jacobian, middle, vector):
    with jax.default_matmul_precision("highest"):
        # Of a linear function: its value, and its transpose.
        tangents, transpose = jax.vjp(jacobian, vector)
        (product,) = transpose(middle(tangents))
        return product


def _chunk_product(operands, chunk):
    make, params, vector = operands
    with jax.default_matmul_precision("highest"):
        jacobian, middle = make(params, chunk)
        return _product(jacobian, middle, vector)


def _mean_product(make, params, chunks, vector):
    return loops.mean_over_chunks(_chunk_product, (make, params, vector), chunks)


def _curved(model_fn, outer_loss, params, batch):
    outputs, jacobian = _outputs(model_fn, params, batch)
    slope = jax.grad(Partial(_outer, outer_loss, batch))
    _, middle = jax.linearize(slope, outputs)
    return jacobian, middle


def _observed(model_fn, outer_loss, params, batch):
    outputs, jacobian = _outputs(model_fn, params, batch)
    return jacobian, _outer_products(outer_loss, outputs, batch)


def _sampled(model_fn, outer_loss, params, batch_and_keys):
    batch, keys = batch_and_keys
    outputs, jacobian = _outputs(model_fn, params, batch)
    # A key for each example, so that labels do not depend on the microbatches.
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    rows = jax.tree.map(lambda x: _split_rows(x, len(keys)), outputs)
    drawn = jax.vmap(_likelihood(outer_loss).sample)(_like_rows(keys, outputs), rows, ones)
    drawn = jax.tree.map(lambda x: jnp.squeeze(x, 1), drawn)
    return jacobian, _outer_products(outer_loss, outputs, drawn)


def _like_rows(keys, outputs):
    """Where types carry shardings, vmap wants all its arguments to lie alike."""
    sharding = jax.typeof(jax.tree.leaves(outputs)[0]).sharding
    if not any(sharding.spec[:1]):
        return keys
    return jax.reshard(keys, jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[0])))


def _split_rows(x, count):
    if len(x) == count:
        return jnp.expand_dims(x, 1)
    return x.reshape(count, -1, *x.shape[1:])


def _outer_products(outer_loss, outputs, batch):
    return Partial(_along_slopes, jax.grad(Partial(_outer, outer_loss, batch))(outputs))


def _along_slopes(slopes, tangents):
    """`u_n -> N d_n (d_n'u_n)`: the slope of row n is `N d_n`, for `outer_loss` is a mean."""
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(tangents), strict=True)
    terms = [jnp.sum(d * u, axis=tuple(range(1, d.ndim))) for d, u in pairs]
    along = functools.reduce(jnp.add, terms)
    return jax.tree.map(
        lambda d: len(d) * d * jnp.expand_dims(along, tuple(range(1, d.ndim))), slopes
    )


def _scattered(loss, params, batch):
    _, jacobian = jax.linearize(Partial(_each, loss, batch), params)
    return jacobian, Partial(_share)


def _each(loss, batch, params):
    """The loss of each example, [N]."""
    ones = jax.tree.map(lambda x: jnp.expand_dims(x, 1), batch)
    return widen(jax.vmap(loss, in_axes=(None, 0))(params, ones))


def _share(values):
    return values / len(values)


def _outputs(model_fn, params, batch):
    return jax.linearize(Partial(_model, model_fn, batch), params)


def _model(model_fn, batch, params):
    return widen(model_fn(params, batch))


def _outer(outer_loss, batch, outputs):
    return outer_loss(outputs, batch)
