"""The search for the highest point of a ball around the parameters, for each chunk of a batch.

Chunks, searches and their steps form one flat loop with one gradient per turn. It compiles once for
any number of them and needs the memory of one search. `sharpjax.loops` chooses the form of the
loop.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, perturbation, tree
from sharpjax.geometry.loss import objective
from sharpjax.geometry.sharpness import ascent, directional

Params = Any


class Highest(NamedTuple):
    """What a search found.

    Attributes:
        rise: the weighted mean over chunks of `L(w + e) - L(w)` at the highest finite point of each
            chunk.
        error: of `rise`, from the rounding of losses and weights.
        lost: the largest share of a chunk's rise that the rounding of weights may have taken or
            added (`Rounded`).
        rises: the rise of each chunk, [chunks].
        loss: `L(w)`, the weighted mean over chunks.
        perturbation: `e` if requested (with one chunk only), else None.
        finite: whether all values and gradients were finite.
    """

    rise: jax.Array
    error: jax.Array
    lost: jax.Array
    rises: jax.Array
    loss: jax.Array
    perturbation: Params
    finite: jax.Array


class Rounded(NamedTuple):
    """What the rounding of `w + e` to the type of `w` does to the rise, to first order.

    Attributes:
        effect: `|g'r|`, with the rounding `r` and the gradient `g`.
        slope: `|g'e|`.
    """

    effect: jax.Array
    slope: jax.Array

    def share(self, rise: jax.Array) -> jax.Array:
        """The effect in units of the rise, or of the slope if the rise is smaller; 0 at `e = 0`."""
        size = jnp.maximum(jnp.abs(rise), self.slope)
        return jnp.where(self.effect > 0, self.effect / jnp.where(size > 0, size, 1), 0)


def rounded(params: Params, moved: Params, e: Params, gradient: Params) -> Rounded:
    """What rounding did to `moved`, which is `w + e`, given a gradient with respect to `w`."""
    rest = remainder(params, moved, e)
    return Rounded(*(jnp.abs(tree.vdot(gradient, x)) for x in (rest, e)))


def remainder(params: Params, moved: Params, e: Params) -> Params:
    """What rounding added to `moved`, which is `w + e`."""
    return tree.add_scaled(tree.add_scaled(moved, -1.0, params), -1.0, e)


def rounding(params: Params, *losses: jax.Array) -> jax.Array:
    """The rounding of a difference of losses: 16 units in the last place of the larger one."""
    sizes = [jnp.abs(x) for x in losses]
    return directional.rounding(params) * functools.reduce(jnp.maximum, sizes)


@dataclasses.dataclass(frozen=True)
class Search:
    """One turn of the loop: a gradient, and the move to the point of the next one.

    Each chunk takes one turn at the centre and `num_steps` turns for each of `restarts` searches.

    Attributes:
        scaling: the rule for `T`.
        num_steps: gradients per search.
        restarts: searches per chunk. The first starts along the gradient at the centre, or at
            random if that is zero or not finite; the others start at random.
        microbatch_size: examples per pass, or None.
        norm: of the ball.
    """

    scaling: perturbation.Scaling
    num_steps: int
    restarts: int
    microbatch_size: int | None
    norm: ascent.Norm = "l2"

    @property
    def turns(self) -> int:
        return 1 + self.num_steps * self.restarts

    def units(self, operands: "Operands") -> Params:
        """`T`, and 0 for the leaves that are held fixed."""
        scale = self.scaling(operands.params)
        if operands.moves is None:
            return scale
        return jax.tree.map(lambda t, moves: jnp.where(moves, t, 0), scale, operands.moves)

    def __call__(self, carry: "Carry", operands: "Operands") -> "Carry":
        chunk, turn = carry.turn // self.turns, carry.turn % self.turns
        step, restart = (turn - 1) % self.num_steps, (turn + self.num_steps - 1) // self.num_steps
        at_centre = turn == 0
        begin = at_centre if self.restarts == 1 else at_centre | (step == self.num_steps - 1)
        scale = self.units(operands)
        point = jax.tree.map(lambda u: jnp.where(at_centre, 0, u), carry.ascent.point)
        e = perturbation.from_unit(point, scale)
        moved = perturbation.perturb(operands.params, e)
        value, gradient = objective.value_and_grad(
            operands.loss, moved, tree.index(operands.chunks, chunk), self.microbatch_size
        )
        effects = rounded(operands.params, moved, e, gradient)
        gradient = perturbation.from_unit(gradient, scale)  # dL/du = T dL/dw
        direction = steepest(gradient, self.norm)
        squared = tree.vdot(direction, direction)  # 0 without a gradient, or NaN
        finite = jnp.isfinite(value) & jnp.isfinite(squared)

        # A real branch even under vmap: `begin` is not batched.
        anywhere = jax.lax.cond(
            begin,
            lambda: random_direction(operands.key, restart, scale, gradient, self.norm),
            lambda: tree.zeros_like(gradient),
        )
        leads = at_centre & finite & (squared > 0)
        state = ascent.advance(
            carry.ascent,
            jnp.where(finite, value, -jnp.inf),
            direction,
            radius=operands.radius,
            interval=jnp.asarray(ascent.intervals(self.num_steps))[step],
            begin=begin,
            first=objective.select(leads, direction, anywhere),
            norm=self.norm,
        )
        counts = True if operands.weights is None else operands.weights[chunk] > 0
        highest = carry.highest[chunk]
        higher = ~at_centre & finite & (value > highest)
        # Where nothing rises, the first point tells whether anything could be seen.
        known = higher | (turn == 1)
        return Carry(
            turn=carry.turn + 1,
            ascent=state,
            centre=carry.centre.at[chunk].set(jnp.where(at_centre, value, carry.centre[chunk])),
            highest=carry.highest.at[chunk].set(jnp.where(at_centre | higher, value, highest)),
            rounded=Rounded(
                *(
                    last.at[chunk].set(
                        jnp.where(known & finite, new.astype(last.dtype), last[chunk])
                    )
                    for last, new in zip(carry.rounded, effects, strict=True)
                )
            ),
            point=None if carry.point is None else objective.select(higher, point, carry.point),
            finite=carry.finite & (finite | ~jnp.bool_(counts)),
        )


class Operands(NamedTuple):
    """Operands of the loop.

    Leaves of `chunks` are [chunks, examples, ...]. `weights` are those of the chunks, or None for
    equal ones. `moves` tells for each leaf of the parameters whether it is perturbed; None: all
    are.
    """

    loss: Any
    params: Params
    chunks: Any
    radius: jax.Array
    key: jax.Array
    weights: jax.Array | None = None
    moves: Any = None


class Carry(NamedTuple):
    """State of the loop. `centre` and `highest` hold losses of shape [chunks], `rounded` what
    rounding does at the highest points; `point` is the highest point of several searches in units
    of `T`, if requested."""

    turn: jax.Array
    ascent: ascent.Ascent
    centre: jax.Array
    highest: jax.Array
    rounded: Rounded
    point: Params
    finite: jax.Array


def maximize(search: Search, operands: Operands, *, keep_point: bool) -> Highest:
    """The highest point of the ball for each chunk. Parameters must be in at least float32.

    Memory in copies of the parameters: see `worst_case_sharpness`.
    """
    leaves = jax.tree.leaves(operands.chunks)
    num_chunks = len(leaves[0]) if leaves else 1
    carry = _start(search, operands.params, operands.radius, num_chunks, keep_point)
    carry, _ = loops.iterate(search, carry, operands, max_steps=num_chunks * search.turns)
    return _finish(search, keep_point, operands, carry)


def steepest(gradient: Params, norm: ascent.Norm) -> Params:
    """The direction of length 1 of steepest ascent, from a gradient in units of `T`. Zero if the
    gradient is zero, NaN where it is not finite."""
    direction = perturbation.ascent(gradient, gradient, rho=1.0, norm=norm)
    if norm == "linf":  # an infinity has a sign
        return jax.tree.map(
            lambda d, g: jnp.where(jnp.isfinite(g), d, jnp.nan), direction, gradient
        )
    return direction


def is_zero(e: Params) -> jax.Array:
    """Whether all entries are zero, and none NaN. No square could underflow."""
    return tree.vdot(e, jax.tree.map(jnp.sign, e)) == 0


def random_direction(
    key: jax.Array,
    restart: jax.typing.ArrayLike,
    scale: Params,
    like: Params,
    norm: ascent.Norm = "l2",
):
    """A uniformly random direction in units of `T` (in the maximum norm, a random corner of the
    box). It is zero where `T` is zero, because those weights cannot move.

    It is the same for every chunk, so that the mean over chunks is that of separate calls.
    """
    direction = tree.random_normal(jax.random.fold_in(key, restart), like)
    direction = jax.tree.map(lambda t, x: jnp.where(t == 0, 0, x), scale, direction)
    return perturbation.ascent(direction, direction, rho=1.0, norm=norm)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _start(search, params, radius, num_chunks, keep_point) -> Carry:
    return Carry(
        turn=jnp.int32(0),
        ascent=ascent.init(params, radius),
        centre=jnp.zeros(num_chunks, radius.dtype),
        highest=jnp.zeros(num_chunks, radius.dtype),
        rounded=Rounded(*(jnp.zeros(num_chunks, radius.dtype) for _ in range(2))),
        point=tree.zeros_like(params) if keep_point and search.restarts > 1 else None,
        finite=jnp.bool_(True),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish(search, keep_point, operands: Operands, carry: Carry) -> Highest:
    e, radius, weights = None, operands.radius, operands.weights
    if keep_point:
        point, last = carry.point, carry.ascent
        if point is None:  # there was one search
            point = jax.tree.map(
                lambda u: jnp.where(last.best_value > carry.centre[0], u, 0), last.best_point
            )
        e = perturbation.from_unit(point, search.units(operands))

    def mean(x):
        if weights is None:
            return jnp.mean(x)
        w = weights.astype(x.dtype)
        return jnp.sum(jnp.where(w > 0, w * x, 0)) / jnp.sum(w)

    # A traced radius could not be checked earlier. At radius 0 the value is exactly 0.
    factor = jnp.where(radius > 0, 1.0, jnp.where(radius == 0, 0.0, jnp.nan)).astype(radius.dtype)
    rises, effect = carry.highest - carry.centre, carry.rounded.effect
    counts = True if weights is None else weights > 0
    floor = rounding(operands.params, carry.centre, carry.highest)
    return Highest(
        rise=mean(carry.highest - carry.centre) * factor,
        error=mean(floor + effect) * factor,
        lost=jnp.max(jnp.where(counts, carry.rounded.share(rises), 0)),
        rises=(carry.highest - carry.centre) * factor,
        loss=mean(carry.centre),
        perturbation=e,
        finite=carry.finite,
    )
