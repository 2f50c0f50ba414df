"""The local learning coefficient, by Langevin dynamics around the parameters."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss import checks, composed, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_key, check_number
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

_MOST_BIAS = 0.1  # largest share of the value that may be step bias, or missing
_CHANCE = 1e-3  # probability that settled chains are taken for unsettled ones


class LearningCoefficient(NamedTuple):
    """A local learning coefficient, and what is known of its errors.

    Attributes:
        value: `n beta (E L(w) - L(w*))`, the mean over chains.
        standard_error: of `value`, from the spread of the chains' means with `num_chains - 1`
            degrees of freedom. It thus accounts for the correlation between steps, and with
            `batch_size` for the error of the baseline `L(w*)`. NaN for one chain.
        step_bias: how much of `value` comes from steps of finite length (and from the noise of
            mini-batches); `value - step_bias` is free of it if the loss is quadratic.
        missing: how much `value` is too small, at most, because chains have not yet filled all
            directions: `(d - E <w - w*, n beta grad L + localization (w - w*)>) / 2` for d
            parameters. It is 0 once they have.
        drift: `value` over the second half of the steps kept, minus `value` over the first half.
        chains: (num_chains,), the value of each.
        loss: the baseline `L(w*)`; with `batch_size` its mean over the mini-batches.
        num_gradients: of all chains together (int32).
        status: `Status`, int32. `NON_FINITE`: a chain became infinite or NaN. `NOT_CONVERGED` has
            three causes. `step_bias` is more than a tenth of the value: the steps are too long for
            the curvature (as when chains diverge). Or `missing` is more than a tenth of the value,
            by over three of its standard errors: more steps, longer ones or a larger `localization`
            are needed. Or the two halves differ by more than their spread over chains explains
            (p < .001): `burn_in` was too short.
    """

    value: jax.Array
    standard_error: jax.Array
    step_bias: jax.Array
    missing: jax.Array
    drift: jax.Array
    chains: jax.Array
    loss: jax.Array
    num_gradients: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`local_learning_coefficient`, with the standard error between chains."""
        found = Estimate(self.value, self.standard_error, self.num_gradients)
        return {"local_learning_coefficient": found}


def local_learning_coefficient(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    step_size: ArrayLike,
    localization: ArrayLike,
    num_chains: int = 8,
    num_steps: int = 1000,
    burn_in: int = 500,
    beta: ArrayLike | None = None,
    batch_size: int | None = None,
) -> LearningCoefficient:
    """`n beta (E L(w) - L(w*))` for `w` near the parameters `w*`: how many directions are free.

    Use it to measure how degenerate a minimum is. It is half the number of parameters in a regular
    model, and less for flatter and more degenerate minima (Lau et al., 2023, arXiv 2308.12108).

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> found = local_learning_coefficient(
    ...     *(loss, jnp.zeros(4), jnp.ones(100)),
    ...     key=jax.random.key(0), step_size=0.01, localization=1.0, num_chains=64,
    ... )
    >>> round(float(found.value), 1)  # 4 / 2
    2.0

    The mean is over the density `exp(-n beta L(w) - localization |w - w*|^2 / 2)`. Chains of
    stochastic gradient Langevin dynamics (Welling and Teh, 2011), all started at `w*`, sample it:

        w <- w - step_size / 2 (n beta grad L(w) + localization (w - w*)) + sqrt(step_size) noise

    **What to look at.** Steps that are too long make the value too large, without limit if
    `step_size (n beta lambda_max + localization) > 4`. The excess is `step_bias = step_size / 8
    E <n beta grad L, n beta grad L + localization (w - w*)>`, exactly so for quadratics.
    `localization` makes the value too small: for curvatures `h_i` it is `sum_i n beta h_i /
    (2 (n beta h_i + localization))`. Directions with little curvature take about
    `2 / (step_size (n beta h_i + localization))` steps to fill, and count too little until then.
    For a quadratic, `missing` bounds this error; for any loss it is 0 after about
    `4 / (step_size localization)` steps. A negative value means that `w*` is not a minimum.

    Args:
        loss, params: as in `hessian`; the parameters are `w*`, a minimum or nearly one.
        batch: pytree of arrays with all examples on axis 0. `n` is their number, without those to
            which the loss declares a weight of 0 (`composed`).
        key: for noise and mini-batches.
        step_size: of the chains, > 0; may be traced, as may `localization` and `beta`.
        localization: the strength of the pull to `w*`, >= 0.
        num_chains: number of chains. The standard error needs two or more.
        num_steps: steps of each chain that are kept, 2 or more.
        burn_in: steps of each chain before those, which are discarded.
        beta: inverse temperature; None: `1 / log n`.
        batch_size: examples in a mini-batch, drawn with replacement. Each chain takes a new
            mini-batch at each step, and `L(w)` and `L(w*)` are computed on the same one. None: all
            examples, and the baseline is exact. The loss must be the mean over the examples, which
            is checked (`sharpjax.geometry.loss.cutting`).

    Raises:
        UserError: an argument does not fit; or `batch_size` is given and the loss declares weights
            (`composed`), because weighted means of mini-batches are biased.

    Cost: one gradient for each chain and step; with `batch_size` that of a mini-batch, plus one
    forward pass. Chains run side by side (`vmap`), except for convolutions on CPU, where they run
    one after another. Memory, for each chain: a few copies of the parameters and the activations of
    a batch.
    """
    caller = "local_learning_coefficient"
    batch, key = checks.as_batch(caller, batch), check_key(caller, key)
    num_examples = loops.count_examples(caller, batch)
    num_chains = whole_number(caller, "num_chains", num_chains)
    num_steps = whole_number(caller, "num_steps", num_steps, least=2)
    burn_in = whole_number(caller, "burn_in", burn_in, least=0)
    check_number(caller, "step_size", step_size)
    check_number(caller, "localization", localization, or_zero=True)
    if beta is not None:
        check_number(caller, "beta", beta)
    loss = checks.check_problem(caller, loss, params, batch, None)
    weights = composed.weights(loss, batch)
    if weights is not None:
        present = jnp.sum(weights > 0, dtype=weights.dtype)
        num_examples = present if isinstance(present, Tracer) else int(present)
    if beta is None:
        if not isinstance(num_examples, Tracer) and num_examples < 2:
            raise UserError(f"{caller}: beta is 1 / log n, and n is {num_examples}; give beta.")
        log = jnp.log if isinstance(num_examples, Tracer) else math.log
        beta = 1 / log(num_examples)
    checked = None
    if batch_size is not None:
        batch_size = whole_number(caller, "batch_size", batch_size)
        refuse_sharded(caller, batch, "replicate them, jax.reshard(batch, jax.P()).")
        if weights is not None:
            raise UserError(
                f"{caller}: the loss declares weights, and the mean over mini-batches of a "
                f"weighted mean is another one; leave batch_size out."
            )
        checked = cutting.check_cut(caller, loss, params, batch, batch_size, argument="batch_size")
    params, batch = jax.tree.map(jnp.asarray, (tree.widen(params), batch))
    if loops.is_traced((loss, params, batch)):
        loss, params, batch = algebra.without_derivative((loss, params, batch))
    given = (step_size, localization, num_examples * jnp.asarray(beta, float))
    operands, state = _start(loss, params, batch, key, given, burn_in, num_steps, num_chains)
    move = _Move(batch_size)
    if loops.choose_form(move, state, operands) == "host":
        move = dataclasses.replace(move, one_by_one=True)
    state, steps = loops.iterate(
        move, state, operands, max_steps=burn_in + num_steps, until=_has_left
    )
    return mark(_finish(state, steps), checked)


class _Operands(NamedTuple):
    """Operands of a step. `baseline` is the loss of all examples at the parameters; `temper` is
    `n beta`; `burn_in` and `num_steps` are int32."""

    loss: Any
    params: Params
    batch: Any
    baseline: jax.Array
    step_size: jax.Array
    localization: jax.Array
    temper: jax.Array
    burn_in: jax.Array
    num_steps: jax.Array


class _Chain(NamedTuple):
    """State of the chains; axis 0 of each field runs over chains.

    Attributes:
        point: `w - w*`.
        first, second: sums of `n beta (L(w) - L(w*))` over the two halves of the steps kept.
        bias, filled, baseline: sums over all steps kept; `filled` is that of `<w - w*, force>`.
    """

    key: jax.Array
    point: Params
    first: jax.Array
    second: jax.Array
    bias: jax.Array
    filled: jax.Array
    baseline: jax.Array


class _State(NamedTuple):
    chain: _Chain
    count: jax.Array
    num_steps: jax.Array


@dataclasses.dataclass(frozen=True)
class _Move:
    """One step of every chain, for `sharpjax.loops.iterate`."""

    batch_size: int | None
    one_by_one: bool = False

    def __call__(self, state: _State, operands: _Operands) -> _State:
        shared = (operands, state.count)
        if self.one_by_one:
            chain = loops.map_over_chunks(self.move, shared, state.chain)
        else:
            chain = jax.vmap(functools.partial(self.move, shared))(state.chain)
        return state._replace(chain=chain, count=state.count + 1)

    def move(self, shared: tuple[_Operands, jax.Array], chain: _Chain) -> _Chain:
        o, count = shared
        for_noise, for_batch = jax.random.split(jax.random.fold_in(chain.key, count))
        batch, baseline = o.batch, o.baseline
        if self.batch_size is not None:
            size = jax.tree.leaves(batch)[0].shape[0]
            chosen = jax.random.randint(for_batch, (self.batch_size,), 0, size)
            batch = jax.tree.map(lambda x: x[chosen], batch)
            baseline = objective.value(o.loss, o.params, batch, None)
        here = tree.add_scaled(o.params, 1.0, chain.point)
        value, gradient = objective.value_and_grad(o.loss, here, batch, None)
        uphill = tree.scale(o.temper, gradient)
        force = tree.add_scaled(uphill, o.localization, chain.point)
        moved = tree.add_scaled(chain.point, -o.step_size / 2, force)
        noise = tree.random_normal(for_noise, chain.point)

        kept = (count >= o.burn_in).astype(value.dtype)
        late = (count >= o.burn_in + o.num_steps // 2).astype(value.dtype)
        excess = o.temper * (value - baseline)
        bias = o.step_size / 8 * tree.vdot(uphill, force)
        return _Chain(
            key=chain.key,
            point=tree.add_scaled(moved, jnp.sqrt(o.step_size), noise),
            # A discarded step that is not finite still shows in the sum: 0 * NaN.
            first=chain.first + (kept - late) * excess,
            second=chain.second + late * excess,
            bias=chain.bias + kept * bias,
            filled=chain.filled + kept * tree.vdot(chain.point, force),
            baseline=chain.baseline + kept * baseline,
        )


def _has_left(state: _State) -> jax.Array:
    return ~jnp.all(jnp.isfinite(state.chain.first + state.chain.second))


@functools.partial(jax.jit, static_argnums=7)
def _start(loss, params, batch, key, given, burn_in, num_steps, num_chains):
    zero = jnp.zeros((), objective.scalar_type(params))
    step_size, localization, temper = (jnp.asarray(x, zero.dtype) for x in given)
    # Traced arguments could not be checked earlier.
    asked = (step_size > 0) & (localization >= 0) & (temper > 0)
    operands = _Operands(
        loss=loss,
        params=params,
        batch=batch,
        baseline=objective.value(loss, params, batch, None),
        step_size=jnp.where(asked, step_size, jnp.nan),
        localization=localization,
        temper=temper,
        burn_in=jnp.int32(burn_in),
        num_steps=jnp.int32(num_steps),
    )
    sums = jnp.zeros(num_chains, zero.dtype)
    chain = _Chain(
        key=jax.random.split(key, num_chains),
        point=jax.tree.map(lambda x: jnp.zeros((num_chains, *x.shape), x.dtype), params),
        first=sums,
        second=sums,
        bias=sums,
        filled=sums,
        baseline=sums,
    )
    return operands, _State(chain, jnp.int32(0), jnp.int32(num_steps))


@tells_unknown
@jax.jit
def _finish(state: _State, steps: jax.Array) -> LearningCoefficient:
    chain, number = state.chain, state.num_steps.astype(state.chain.first.dtype)
    early = (state.num_steps // 2).astype(number.dtype)
    chains = (chain.first + chain.second) / number
    drifts = chain.second / (number - early) - chain.first / early
    value, step_bias, drift = (jnp.mean(x) for x in (chains, chain.bias / number, drifts))
    finite = ~_has_left(state) & jnp.isfinite(step_bias)
    # E <w - w*, force> is the number of parameters under the density that the chains sample.
    size = tree.size(tree.index(chain.point, 0))
    lacks = (float(size) - chain.filled / number) / 2
    missing, allowed = jnp.maximum(jnp.mean(lacks), 0), _MOST_BIAS * jnp.abs(value)
    sure = jnp.nan_to_num(3 * _standard_error(lacks), nan=0.0)

    met = (step_bias <= allowed) & (missing - sure <= allowed)
    met &= ~(_probability(drifts) < _CHANCE)
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)

    def known(x):  # a loop that ended early has no means
        return jnp.where(finite, x, jnp.nan)

    return LearningCoefficient(
        value=known(value),
        standard_error=known(_standard_error(chains)),
        step_bias=known(step_bias),
        missing=known(missing),
        drift=known(drift),
        chains=jnp.where(jnp.isfinite(chains) & finite, chains, jnp.nan),
        loss=known(jnp.mean(chain.baseline) / number),
        num_gradients=steps * jnp.int32(len(chains)),
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )


def _standard_error(values: jax.Array) -> jax.Array:
    count = len(values)
    if count == 1:
        return jnp.full((), jnp.nan, values.dtype)
    unit = units.known(units.power_of_two(values))  # so that no square overflows or underflows
    return unit * jnp.std(values / unit, ddof=1) / count**0.5


def _probability(values: jax.Array) -> jax.Array:
    """P-value of Student's test that these values have mean zero; NaN for one value."""
    freedom = jnp.asarray(len(values) - 1, values.dtype)
    square = jnp.square(jnp.mean(values) / _standard_error(values))
    half = jnp.asarray(0.5, values.dtype)
    return jax.scipy.special.betainc(freedom / 2, half, freedom / (freedom + square))
