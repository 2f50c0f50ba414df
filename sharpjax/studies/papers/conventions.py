"""The numbers of the authors' code of papers 1, 6 and 7 that differ from the definitions.

Each function gives their number, so that a report can print it beside the right one, which
`sharpjax.geometry` and `sharpjax.metrics` compute. Their code: the repositories named in OpenReview
ZQTiGcykl6 (paper 6) and arXiv 2510.12451 (paper 1, journal version), and the notebooks of paper 7
(OpenReview Q7GXKjmCSB).

| their number | here | the right one |
|---|---|---|
| SAM-sharpness, paper 1: `mean_k |L_k - L| / rho`, 100 draws, rho = .005 | `noise_changes` | `geometry.average_sharpness`, `sam_sharpness` |
| SAM-sharpness, paper 6: `max_k (L_k - L) / rho`, 10 draws, rho = .05 | `noise_changes` | `geometry.worst_case_sharpness` |
| Fisher-Rao norm with a factor that counts layers | `fisher_rao` | `geometry.fisher_rao` |
| relative flatness, a sum over batches | `summed_over_batches` | `geometry.relative_flatness` |
| features divided by their deviation in the layer before | `divided_by_deviation` | its `normalised` |
| softmax of a softmax before a divergence | `softmax_twice` | `metrics.functional.jensen_shannon` |
| distillation of probabilities, paper 7: `T^2 KL` of `softmax(softmax(z) / T)` | `softened_twice`, `distillation_of_probabilities` | `losses.distillation` |
| alpha, paper 7: in the code the weight of the labels | `teacher_weight` | `losses.Teacher.weight` |
"""  # fmt: skip  # noqa: E501

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from scipy import special

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.losses import Classification, distillation

State = Any


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LossOfState:
    """The mean cross-entropy of a whole state, `{"params": ..., "variables": ...}`, in eval mode.

    The authors also add noise to the statistics of BatchNorm.
    """

    model: nn.Module = dataclasses.field(metadata={"static": True})

    def __call__(self, state: Mapping[str, Any], batch: Any) -> jax.Array:
        return Classification(self.model, state["variables"])(state["params"], batch)


def noise_changes(
    loss: Callable[[State, Any], jax.Array],
    state: State,
    batch: Any,
    *,
    key: jax.Array,
    rho: ArrayLike,
    num_draws: int,
    num_params: int,
) -> jax.Array:
    """`L(s + e_k) - L(s)` [num_draws] for random `e_k` in N(0, rho^2 / P) on all of a state.

    Paper 1 takes `mean |changes| / rho`, paper 6 `max(changes) / rho`. Neither is the sharpness of
    SAM: to first order, that of paper 1 is `sqrt(2 / pi) |g| / sqrt(P)`, a length of the gradient.

    Args:
        loss: `loss(state, batch)`, a mean over the batch, such as `LossOfState(model)`. It is not
            checked.
        batch: the same in all draws. The authors draw it anew each time, with augmentation.
        state: everything that noise is added to, arrays of floats, in float32 at least.
        rho: the length of the noise, about that of `e_k` on the parameters.
        num_params: P, the number of parameters; statistics of BatchNorm do not count.

    Cost: `1 + num_draws` forward passes.

    >>> key, batch = jax.random.key(0), jnp.ones(1)
    >>> slope = lambda w, batch: jnp.mean(batch) * jnp.sum(w)
    >>> how = {"key": key, "rho": 0.1, "num_draws": 400, "num_params": 9}
    >>> changes = noise_changes(slope, jnp.ones(9), batch, **how)
    >>> expected = np.sqrt(2 / np.pi) * np.sqrt(9) / np.sqrt(9)  # |g| = sqrt(P)
    >>> print(abs(np.mean(np.abs(changes)) / 0.1 - expected) < 5 * 0.61 / np.sqrt(400))
    True
    """
    state = tree.widen(state)
    if isinstance(loss, types.FunctionType):
        loss = jax.tree_util.Partial(loss)
    deviation = jnp.asarray(rho) / np.sqrt(num_params)
    carry = jnp.int32(0), jnp.zeros(1 + num_draws, jax.eval_shape(loss, state, batch).dtype)
    operands = loss, state, batch, key, deviation
    (_, losses), _ = loops.iterate(_draw, carry, operands, max_steps=1 + num_draws)
    return losses[1:] - losses[0]


def _draw(carry, operands):
    """One more loss. The first has no noise: in a program of its own it would be rounded
    differently."""
    done, losses = carry
    loss, state, batch, key, deviation = operands
    size = jnp.where(done == 0, 0, deviation)
    noise = tree.random_normal(jax.random.fold_in(key, done), state)
    with jax.default_matmul_precision("highest"):
        value = loss(tree.add_scaled(state, size, noise), batch)
    return done + 1, losses.at[done].set(value)


def fisher_rao(logits: jax.Array, label: jax.Array, *, num_layers: int) -> jax.Array:
    """`(L + 1) sqrt(1/N sum_i (<softmax(z_i), z_i> - z_i[y_i])^2)` of logits z [N, K].

    In paper 1, L is the number of linear, convolutional and embedding layers of a net; paper 6
    takes L = 5 for every net. For ReLU nets without biases, shortcuts and normalisation the right
    factor is L.

    >>> print(fisher_rao(jnp.zeros((1, 2)), jnp.array([0]), num_layers=3))
    0.0
    """
    own = jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
    slope = jnp.sum(jax.nn.softmax(logits) * logits, 1) - own
    return (num_layers + 1) * jnp.sqrt(jnp.mean(jnp.square(slope)))


def summed_over_batches(value: ArrayLike, *, num_examples: int, batch_size: int) -> ArrayLike:
    """The sum of a mean over batches: the mean times the number of batches.

    Exact if the batches have one size. Otherwise the smaller last batch counts as much as the
    others, and the average over shuffled orders is the same.

    >>> summed_over_batches(2.0, num_examples=50_000, batch_size=256)  # 196 batches
    392.0
    """
    return value * -(-num_examples // batch_size)


def divided_by_deviation(
    params: Any, deviation: jax.Array, *, head: str, before: tuple[str, ...]
) -> Any:
    """Parameters after `W[t, :] *= deviation_t` in the head, and a division by it in the leaves
    `before`, on their last axis. If a deviation is 0, nothing changes there.

    The function stays as it is if only the leaves `before` scale the features. In a ResNet, which
    adds a shortcut after them, it changes.

    Args:
        params: pytree of arrays.
        deviation: [D], of each feature.
        head: name of the kernel [D, K] of the last layer, as in `tree.path_names`.
        before: names of scale and bias, or kernel and bias, of the layer before.

    >>> params = {"bias": jnp.ones(2), "head": jnp.ones((2, 1))}
    >>> new = divided_by_deviation(params, jnp.array([2.0, 0.0]), head="head", before=("bias",))
    >>> new["bias"].tolist(), new["head"].tolist()
    ([0.5, 1.0], [[2.0], [1.0]])
    """
    factor = jnp.where(deviation > 0, deviation, 1)
    leaves, treedef = jax.tree.flatten(params)
    new = []
    for name, leaf in zip(tree.path_names(params), leaves, strict=True):
        if name == head:
            leaf = leaf * factor[:, None]
        elif name in before:
            leaf = leaf / factor
        new.append(leaf)
    return treedef.unflatten(new)


def softmax_twice(logits: np.ndarray) -> np.ndarray:
    """Logits whose softmax is the softmax of `softmax(logits)`.

    >>> float(special.softmax(softmax_twice(np.array([[99.0, 0.0]])))[0, 0].round(4))  # not 1
    0.7311
    """
    return special.log_softmax(special.softmax(logits, axis=1), axis=1)


def softened_twice(logits: ArrayLike, temperature: ArrayLike) -> jax.Array:
    """The probabilities `softmax(softmax(z) / T)` [N, K]: the authors' models end in a softmax, and
    their distiller applies another one to the result.

    The inner softmax lies in [0, 1], so the largest of K classes has at most
    `1 / (1 + (K - 1) exp(-1 / T))`: .1343 for ten classes at T = 3, compared with .1 if all are
    equal. A teacher for training is `losses.Teacher(..., inputs="probabilities")`, or
    `train.plan.Teacher` with the same.

    >>> sure = jnp.log(jnp.array([[0.991, *[0.001] * 9]]))  # of a teacher that is 99.1 % sure
    >>> print(f"{softened_twice(sure, 3.0).max():.5f}")
    0.13386
    """
    inner = jax.nn.softmax(jnp.asarray(logits))
    return jax.nn.softmax(inner / jnp.asarray(temperature, inner.dtype))


def distillation_of_probabilities(
    logits: jax.Array, targets: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """`losses.distillation` of the outputs of both softmaxes: the teacher's part of their loss.

    Its gradient in the student's logits is that of `distillation` in the probabilities, times the
    derivative of a softmax: close to zero if the student is sure.

    >>> sure = 20 * jnp.eye(10)
    >>> wrong = jnp.roll(sure, 1, axis=1)  # and as far away as can be
    >>> print(f"{distillation(sure, wrong, 3.0):.1f}")
    59.2
    >>> print(f"{distillation_of_probabilities(sure, wrong, 3.0):.3f}")
    0.114
    """
    return distillation(jax.nn.softmax(logits), jax.nn.softmax(targets), temperature)


def teacher_weight(*, alpha: float) -> float:
    """The weight of the teacher, `1 - alpha`: in the authors' code alpha is the weight of the
    labels.

    Their text says that a large alpha means more of the teacher, so do not rely on the text.

    Raises:
        UserError: an alpha outside [0, 1].

    >>> teacher_weight(alpha=0.25)
    0.75
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"papers.teacher_weight: alpha={alpha}; give a number in [0, 1].")
    return 1 - alpha
