"""Gauss-Newton and Fisher matrices: `mean_n J_n' M_n J_n`, with J_n the Jacobian of the outputs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax

from sharpjax import loops, tree
from sharpjax.errors import UserError, unknown
from sharpjax.geometry.loss import closures
from sharpjax.geometry.loss.assumptions import both, guard
from sharpjax.geometry.loss.checks import as_batch, as_loss, check_examples, check_model
from sharpjax.geometry.loss.composed import Composed, methods, parts
from sharpjax.geometry.loss.cutting import check_alone, check_cut
from sharpjax.geometry.loss.differentiable import Product
from sharpjax.geometry.loss.frozen import freeze
from sharpjax.geometry.loss.outer_check import check_outer
from sharpjax.geometry.loss.precision import Precision, lower
from sharpjax.geometry.operators import differences
from sharpjax.geometry.operators.algebra import Matvec, Params
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.operators.jacobian_products import (
    add_regularizer,
    curved,
    each,
    linearize_products,
    observed,
    sampled,
    scattered,
)
from sharpjax.geometry.operators.of_loss import OfLoss

Labels = Literal["model", "observed"]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussNewton(OfLoss):
    """`J' H J` plus the Hessian of the regulariser, with `H` the Hessian of the outer loss in the
    outputs; `gauss_newton` makes it. Its loss is a `Composed`, whose outer loss is checked."""

    def check(self, caller: str) -> dict[str, Any]:
        problem = self.loss, self.params, self.batch, self.microbatch_size
        return _examine(caller, *problem, self.how.product)

    def linearize(self) -> Matvec:
        rest, regularizer = dataclasses.replace(self.loss, regularizer=None), self.loss.regularizer
        product = _linearize("gauss_newton", curved, dataclasses.replace(self, loss=rest))
        if regularizer is not None:
            product = add_regularizer(product, regularizer, self.params)
        return guard(product, self.checked)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher(OfLoss):
    """`mean_n E g_n g_n'`, with `g_n` the gradient of `-log p(label_n)`; `fisher` makes it. Its
    loss is a `Composed` without a regulariser.

    Attributes:
        labels: "model" or "observed".
        key: random key for labels drawn from the model; None for the exact expectation.
    """

    labels: Labels = dataclasses.field(default="model", metadata={"static": True})
    key: jax.Array | None = None

    def check(self, caller: str) -> dict[str, Any]:
        problem = self.loss, self.params, self.batch, self.microbatch_size
        return _examine(caller, *problem, self.how.product, (self.labels, self.key))

    def linearize(self) -> Matvec:
        if self.key is not None:
            keys = jax.random.split(self.key, loops.count_examples("fisher", self.batch))
            drawn = dataclasses.replace(self, batch=(self.batch, keys))
            return guard(_linearize("fisher", sampled, drawn), self.checked)
        rule = observed if self.labels == "observed" else curved
        return guard(_linearize("fisher", rule, self), self.checked)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmpiricalFisher(OfLoss):
    """`mean_n g_n g_n'`, with `g_n` the gradient of the loss of one example; `empirical_fisher`
    makes it. Its loss is also called on batches of one, and checked to be the mean over them."""

    def check(self, caller: str) -> dict[str, Any]:
        problem = self.params, self.batch, self.microbatch_size
        loss, how = check_examples(caller, self.loss, each, *problem, self.how.product)
        checked = check_alone(caller, loss, self.params, self.batch)
        return {"loss": loss, "checked": checked, "how": how}

    def linearize(self) -> Matvec:
        return guard(_linearize("empirical_fisher", scattered, self), self.checked)


def gauss_newton(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
    product: Product = "auto",
) -> GaussNewton:
    """The generalised Gauss-Newton matrix of a loss, as an operator; only checks are computed here.

    `G = J' H J + R`, with J the Jacobian of the model in the parameters, H the Hessian of the outer
    loss in the outputs (Schraudolph, 2002), and R the Hessian of the regulariser, if the loss has
    one. G is the Hessian of the loss without the curvature of the model. It is positive
    semidefinite if the outer loss and the regulariser are convex.

    The model, the outer loss and the regulariser are linearised once. A product then costs 1.17
    (dense layers) to 1.33 gradients, one forward and one backward pass, and the residuals of one
    gradient stay in memory. With microbatches no residuals stay, and a product costs 1.6 gradients.
    Everything runs at `highest` matmul precision and in float32 at least, as in `hessian`.

    Args:
        loss: from `composed`, or any other loss with the same parts, such as
            `sharpjax.losses.Classification`. Its outer loss must be the mean over the examples, or
            the weighted mean that it declares. This is checked on at most 64 examples, in less than
            a millisecond after the first time (`sharpjax.geometry.loss.outer_check`).
        params: pytree of floating arrays.
        batch: pytree of arrays with the examples on axis 0.
        where: glob or globs on leaf names: only the block of these leaves, as in `hessian`.
        microbatch_size: examples per pass; must divide the number of examples.
        precision: "highest", or "bfloat16" for the model, as in `hessian`. The outer loss gets
            float32.
        product: how `J v` is computed. "forward": a forward derivative. "reverse": the transpose of
            `u -> J'u`, for layers with a `jax.custom_vjp`. "auto": the first of these two that
            works; both are exact. "difference": central differences of outputs, for all other
            layers, as in `hessian`.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy. Or the loss
            has no parts, or its outer loss is not such a mean.

    >>> import jax.numpy as jnp
    >>> from sharpjax.geometry import composed
    >>> def model_fn(params, batch):
    ...     return batch["x"] @ params["w"]
    >>> def outer_loss(outputs, batch):
    ...     return jnp.mean((outputs - batch["y"]) ** 2) / 2
    >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
    >>> operator = gauss_newton(composed(model_fn, outer_loss), {"w": jnp.zeros(2)}, batch)
    >>> operator.linearize()({"w": jnp.array([1.0, 0.0])})
    {'w': Array([0.5, 0. ], dtype=float32)}
    """
    caller = "gauss_newton"
    differences.check_precision(caller, product, precision)
    batch = as_batch(caller, batch)
    found = lower_model(require_parts(caller, loss), precision)
    given = found, params, batch, microbatch_size, product
    return GaussNewton(**_fields(caller, where, *given))


def fisher(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    labels: Labels = "model",
    key: jax.Array | None = None,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
    product: Product = "auto",
) -> Fisher:
    """The Fisher matrix of a model, as an operator; only checks are computed here.

    `F = mean_n E[g_n g_n']`, with `g_n` the gradient of `-log p(y | x_n)` in the parameters. The
    outer loss holds the likelihood: it is the mean of `-log p` over the rows of the outputs. With
    declared weights it is the weighted mean, and so is F. A regulariser is left out.

    * `labels="model"`, no key: y is distributed as the model says, and the expectation is exact. An
      outer loss with `canonical = True` promises that it is the likelihood of an exponential
      family in its natural parameter; then F is the Gauss-Newton matrix (Martens, 2020, arXiv
      1412.1193). This holds for softmax cross-entropy and for half the squared error.
    * `labels="model"` with a key: each y is drawn once, by `outer_loss.sample(key, outputs, batch)
      -> batch`. It is called on the outputs of one example, and returns the batch of this one
      example with drawn labels. The same key draws the same labels for any microbatches. Unbiased;
      the rank is at most the number of rows.
    * `labels="observed"`: y are the labels of the batch. This is the empirical Fisher matrix, with
      fewer operations than `empirical_fisher`; it is not a Fisher matrix (Kunstner et al., 2019,
      arXiv 1905.12558). If an example has several rows, this is the matrix of single rows, all with
      the same weight.

    Products cost as in `gauss_newton`, with or without a key.

    Args:
        loss, params, batch, where, microbatch_size, precision, product: as in `gauss_newton`. An
            outer loss such as `sharpjax.losses.CrossEntropy()` supports all three cases above.
        labels: "model" or "observed".
        key: random key for labels drawn from the model; None for the exact expectation.

    Raises:
        UserError: as in `gauss_newton`; the outer loss lacks `canonical = True` or `sample` where
            it is needed; a key with observed labels; or observed or drawn labels with declared
            weights if an example has several rows, since it is not known which rows a mask hides.

    >>> import jax.numpy as jnp
    >>> from sharpjax.geometry import composed
    >>> from sharpjax.losses import SquaredError
    >>> batch = {"x": jnp.eye(2), "target": jnp.array([3.0, 0.0])}
    >>> def model_fn(params, batch):
    ...     return batch["x"] @ params
    >>> loss = composed(model_fn, SquaredError())
    >>> fisher(loss, jnp.zeros(2), batch).linearize()(jnp.ones(2)).tolist()
    [0.5, 0.5]
    >>> fisher(loss, jnp.zeros(2), batch, labels="observed").linearize()(jnp.ones(2)).tolist()
    [4.5, 0.0]
    """
    caller = "fisher"
    differences.check_precision(caller, product, precision)
    if labels not in get_args(Labels):
        raise unknown("labels", labels, get_args(Labels))
    batch = as_batch(caller, batch)
    key = None if key is None else check_key(caller, key)
    found = dataclasses.replace(require_parts(caller, loss), regularizer=None)
    found = lower_model(found, precision)
    given = found, params, batch, microbatch_size, product
    return Fisher(**_fields(caller, where, *given, (labels, key)), labels=labels, key=key)


def empirical_fisher(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    where: str | Sequence[str] | None = None,
    microbatch_size: int | None = None,
    precision: Precision = "highest",
    product: Product = "auto",
) -> EmpiricalFisher:
    """The second moment of the gradients of single examples, as an operator.

    `mean_n g_n g_n'`, with `g_n` the gradient of the loss on a batch of example n alone. It works
    for any loss in which examples do not interact. No gradient of a single example is formed: with
    l the vector of the losses of the N examples and `J_l` its Jacobian, a product is
    `J_l' (J_l v) / N`. It costs about as much as in `gauss_newton`.

    Args:
        loss, params, batch, where, microbatch_size, precision: as in `hessian`. For a loss with
            parts (`composed`), the regulariser is left out, and with declared weights the mean is
            the weighted mean.
        product: as in `gauss_newton`.

    Raises:
        UserError: an argument does not fit; the message names the leaf and the remedy. Or the loss
            of two examples is not the mean of their losses (tried on 16 pairs or fewer).

    >>> import jax.numpy as jnp
    >>> def loss(params, batch):
    ...     return jnp.mean(batch["x"] @ params)
    >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
    >>> empirical_fisher(loss, jnp.zeros(2), batch).linearize()(jnp.ones(2)).tolist()
    [0.5, 4.5]
    """
    caller = "empirical_fisher"
    differences.check_precision(caller, product, precision)
    batch = as_batch(caller, batch)
    found = parts(loss)
    loss = loss if found is None else dataclasses.replace(found, regularizer=None)
    loss = lower(as_loss(caller, loss), precision)
    loops.count_examples(caller, batch)
    loss, how = check_examples(caller, loss, each, params, batch, microbatch_size, product)
    loss, params = freeze(loss, params, where)
    checked = check_alone(caller, loss, params, batch)
    reads = closures.reads(loss)
    return EmpiricalFisher(loss, params, batch, microbatch_size, how, checked=checked, reads=reads)


def require_parts(caller: str, loss: Any) -> Composed:
    """The parts of a loss.

    Raises:
        UserError: names `caller`; the loss has no parts.
    """
    found = parts(loss)
    if found is None:
        name = getattr(methods(loss), "__name__", type(loss).__name__)
        raise UserError(
            f"{caller}: needs a loss that knows its parts, from geometry.composed(model_fn, "
            f"outer_loss), or one with attributes model_fn and outer_loss, such as "
            f"sharpjax.losses.Classification; got {name}."
        )
    return found


def lower_model(loss: Composed, precision: Precision) -> Composed:
    """The loss with its model computed in the given precision.

    Raises:
        UserError: the precision is unknown.
    """
    return dataclasses.replace(loss, model_fn=lower(loss.model_fn, precision))


def _linearize(caller, rule, operator) -> Matvec:
    problem = operator.loss, operator.params, operator.batch, operator.microbatch_size
    return linearize_products(caller, rule, operator.how, *problem)


def _fields(caller, where, loss, params, batch, microbatch_size, *asked) -> dict[str, Any]:
    """The fields of an operator after its checks, for the leaves that `where` selects."""
    found = _examine(caller, loss, params, batch, microbatch_size, *asked)
    loss, params = freeze(found["loss"], params, where)
    loss = require_parts(caller, loss)
    problem = {"params": params, "batch": batch, "microbatch_size": microbatch_size}
    return found | problem | {"loss": loss, "reads": closures.reads(loss)}


def _examine(
    caller, loss, params, batch, microbatch_size, product, likelihood: tuple[Any, Any] | None = None
) -> dict[str, Any]:
    """Checks the loss; gives it as `check_model` returns it, the `Checked` that holds what only a
    trace knows, and the way to its products."""
    curved = likelihood is None or (likelihood[0] == "model" and likelihood[1] is None)
    problem = params, batch, microbatch_size
    loss, outputs, how = check_model(caller, loss, *problem, product, curved)
    if likelihood is not None:
        _check_likelihood(loss, *likelihood, batch, outputs)
    checked = check_outer(caller, loss, params, batch, outputs, curved)
    checked = both(checked, check_cut(caller, loss, *problem))
    return {"loss": loss, "checked": checked, "how": how}


def _check_likelihood(loss, labels, key, batch, outputs):
    likelihood = methods(loss.outer_loss)
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    count = loops.count_examples("fisher", batch) if labels == "observed" or key is not None else 0
    if count and loss.example_weight is not None and jax.tree.leaves(outputs)[0].shape[0] != count:
        raise UserError(
            "fisher: with example_weight and several rows of outputs for an example, it is not "
            "known which rows count. Take the exact Fisher matrix (labels='model', no key), or "
            "empirical_fisher, of whole examples."
        )
    if labels == "observed":
        if key is not None:
            raise UserError("fisher: labels='observed' draws nothing; leave the key out.")
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
        if not callable(getattr(likelihood, "sample", None)):
            raise UserError(
                f"fisher: a key asks for labels drawn from the model, but {name} has no method "
                f"sample(key, outputs, batch) -> batch, which returns the batch with labels drawn "
                f"given the outputs. Write it, or leave the key out for the exact expectation."
            )
