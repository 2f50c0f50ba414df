"""Accuracy under attack: FGSM and PGD on the inputs of a classifier.

    logits_fn = jax.tree_util.Partial(predict, variables)   # predict(variables, x): normalises x
    found = pgd(logits_fn, x, label, epsilon=8 / 255, key=key)
    scores.mean(found.correct)                              # robust accuracy, with its error

The result is an upper bound of robust accuracy: a stronger attack can only lower it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import TWO_CLASSES, UserError, unknown, whole_number
from sharpjax.metrics import inputs

Norm = Literal["linf", "l2"]


class Attack(NamedTuple):
    """The result of an attack.

    Attributes:
        input: [N, ...], for each example the input with the highest loss of all that were tried.
        correct: bool [N], whether the prediction was right at every input that was tried, including
            the clean one.
        clean: bool [N], whether the prediction was right at the clean input.
    """

    input: jax.Array
    correct: jax.Array
    clean: jax.Array


def fgsm(
    logits_fn: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    label: jax.Array,
    *,
    epsilon: float,
    norm: Norm = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attack:
    """One step to the edge of the ball: x + epsilon sign(grad L) (Goodfellow et al., 2015, arXiv
    1412.6572).

    With norm 'l2' the step is epsilon grad L / ||grad L||_2. L is the loss of `pgd`.

    Cost: one gradient with respect to the inputs, and two forward passes.

    Args, errors: as `pgd`.
    """
    return _attack("fgsm", logits_fn, x, label, epsilon, 1, epsilon, 1, None, norm, bounds)


def pgd(
    logits_fn: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    label: jax.Array,
    *,
    epsilon: float,
    key: jax.Array,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    norm: Norm = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attack:
    """Projected gradient ascent from a random point of the ball (Madry et al., 2018, arXiv
    1706.06083).

    Each step sets x to the projection of x + step_size u onto the ball and the box, with
    u = sign(g) or g / ||g||_2. Here g is the gradient with respect to x of the loss
    log sum_k!=y exp z_k - z_y. It has the direction of the gradient of the cross-entropy, but does
    not vanish if the model is confident.

    Cost: `restarts` x (`steps` gradients with respect to the inputs and a forward pass), and a
    forward pass at the clean inputs.

    Args:
        logits_fn: maps x to logits [N, K], in evaluation mode, so that examples do not affect each
            other. A module-level function or a `jax.tree_util.Partial` of one compiles once.
        x: [N, ...] inputs in the units of `epsilon` and within `bounds`, such as pixels / 255.
            Normalisation is part of `logits_fn`.
        label: [N].
        epsilon: radius of the ball.
        key: random key of the starts.
        steps: steps of each start.
        step_size: None: 2.5 `epsilon` / `steps`.
        restarts: number of random starts.
        norm: norm of the ball.
        bounds: the least and the largest value of an input.

    Raises:
        UserError: an impossible size, an unknown norm, inputs outside `bounds`, labels or logits
            that do not match the inputs.

    >>> def logits_fn(x):
    ...     return jnp.concatenate([jnp.zeros_like(x), 2 * x - 1], axis=1)
    >>> x, label = jnp.array([[0.6], [0.8]]), jnp.array([1, 1])  # right above 0.5
    >>> pgd(logits_fn, x, label, epsilon=0.2, key=jax.random.key(0)).correct.tolist()
    [False, True]
    """
    steps = whole_number("adversarial.pgd", "steps", steps)
    size = 2.5 * epsilon / steps if step_size is None else step_size
    return _attack("pgd", logits_fn, x, label, epsilon, steps, size, restarts, key, norm, bounds)


class _State(NamedTuple):
    x: jax.Array
    best: jax.Array
    loss: jax.Array
    correct: jax.Array


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Problem:
    logits_fn: Any
    clean: jax.Array
    label: jax.Array
    epsilon: jax.Array
    step_size: jax.Array
    low: jax.Array
    high: jax.Array


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of the ascent, for `loops.iterate`."""

    norm: Norm

    def __call__(self, state: _State, problem: _Problem) -> _State:
        gradient, (loss, right) = jax.grad(_margin, has_aux=True)(state.x, problem)
        state = _seen(state, loss, right)
        if self.norm == "linf":
            direction = jnp.sign(gradient)
        else:
            length = _lengths(gradient)
            direction = gradient / jnp.where(length > 0, length, 1)
        x = state.x + problem.step_size * direction
        return state._replace(x=_projected(self.norm, x, problem))


def _attack(caller, logits_fn, x, label, epsilon, steps, step_size, restarts, key, norm, bounds):
    caller = f"adversarial.{caller}"
    restarts = whole_number(caller, "restarts", restarts)
    if norm not in get_args(Norm):
        raise unknown(f"norm ({caller})", str(norm), get_args(Norm))
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not 0 <= value < float("inf"):
            raise UserError(f"{caller}: {name}={value}; give a number >= 0.")
    x, label = jnp.asarray(x), jnp.asarray(label)
    shape = jax.eval_shape(logits_fn, x).shape
    if len(shape) != 2 or shape[0] != len(x) or label.shape != (len(x),):
        raise UserError(
            f"{caller}: x is {list(x.shape)}, label {list(label.shape)}, and the logits are "
            f"{list(shape)}; give [N, ...], [N] and [N, K]."
        )
    if shape[1] < 2:
        raise UserError(f"{caller}: the logits are {list(shape)}, of one class. {TWO_CLASSES}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{caller}: x is {x.dtype}; give floating numbers, such as pixels / 255.")
    # In numpy: inside a caller's jit, jax would trace even constants.
    if not loops.is_traced(label) and not np.isin(label, np.arange(shape[1])).all():
        raise UserError(f"{caller}: {inputs.REASONS[0].format(shape[1] - 1).split('. ')[0]}.")
    low, high = bounds
    if not loops.is_traced(x) and not np.all((np.asarray(x) >= low) & (np.asarray(x) <= high)):
        raise UserError(
            f"{caller}: inputs lie outside of bounds={bounds}; give them before normalisation, or "
            "their own bounds."
        )
    values = (jnp.asarray(v, x.dtype) for v in (epsilon, step_size, low, high))
    problem = _Problem(_partial(logits_fn), x, tree.widen_labels(label), *values)
    loss, clean = loops.call(jax.tree_util.Partial(_at, problem), x)
    state = _State(x, x, loss, clean)
    for k in [None] * restarts if key is None else jax.random.split(key, restarts):
        if k is not None:
            state = state._replace(x=_start(k, norm, problem))
        state, _ = loops.iterate(_Step(norm), state, problem, max_steps=steps)
        loss, right = loops.call(jax.tree_util.Partial(_at, problem), state.x)
        state = _seen(state, loss, right)
    return Attack(state.best, state.correct, clean)


def _partial(fn: Any) -> Any:
    return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)


def _margin(x: jax.Array, problem: _Problem) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """log sum_k!=y exp z_k - z_y: its sum over examples, its values, and which are right."""
    logits = problem.logits_fn(x)
    own = jax.nn.one_hot(problem.label, logits.shape[1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    loss = others - jnp.sum(jnp.where(own, logits, 0), axis=1)
    right = jnp.argmax(logits, axis=1).astype(problem.label.dtype) == problem.label
    return jnp.sum(loss), (loss, right)


def _at(problem: _Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _margin(x, problem)[1]


def _seen(state: _State, loss: jax.Array, right: jax.Array) -> _State:
    """The state after trying a point. A point with a loss that is not finite counts as wrong."""
    higher = loss > state.loss
    best = jnp.where(_per_example(higher, state.x), state.x, state.best)
    right = right & jnp.isfinite(loss)
    return _State(
        state.x, best, jnp.where(higher, loss, state.loss), state.correct & right
    )  # fmt: skip


def _start(key: jax.Array, norm: Norm, problem: _Problem) -> jax.Array:
    """A uniform point of the cube; in the l2 ball, a uniform radius along a uniform direction."""
    clean = problem.clean
    if norm == "linf":
        move = jax.random.uniform(key, clean.shape, clean.dtype, -1, 1)
    else:
        of_direction, of_radius = jax.random.split(key)
        noise = jax.random.normal(of_direction, clean.shape, clean.dtype)
        radius = jax.random.uniform(of_radius, clean.shape[:1], clean.dtype)
        move = noise / _lengths(noise) * _per_example(radius, clean)
    return jnp.clip(clean + problem.epsilon * move, problem.low, problem.high)


def _projected(norm: Norm, x: jax.Array, problem: _Problem) -> jax.Array:
    """Projects onto the ball, then the box. This stays in the ball: the clean input is in both."""
    move = x - problem.clean
    if norm == "linf":
        move = jnp.clip(move, -problem.epsilon, problem.epsilon)
    else:
        length = _lengths(move)
        far = length > problem.epsilon
        move = jnp.where(far, problem.epsilon / jnp.where(far, length, 1), 1) * move
    return jnp.clip(problem.clean + move, problem.low, problem.high)


def _lengths(x: jax.Array) -> jax.Array:
    """The Euclidean norm of each example, [N, 1, ...]."""
    axes = tuple(range(1, x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def _per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))
