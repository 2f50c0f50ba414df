"""The diagonal by which an adaptive optimiser divides its steps, read from its state."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry.operators.arguments import check_number

Params = Any

_CALLER = "preconditioner"


def preconditioner(
    opt_state: Any,
    *,
    eps: ArrayLike,
    b2: ArrayLike | None = None,
    eps_root: ArrayLike | None = None,
    eps_in_sqrt: bool | None = None,
) -> Params:
    """The diagonal `P` of an adaptive optimiser, from its optax state: the step is `-lr m / P`.

    `top_eigenpairs(preconditioned(hessian(loss, params, batch), P), key=key)` is then the sharpness
    that decides whether the optimiser is stable (`preconditioned` gives the threshold). `P` is that
    of the state after the last step; the moments of the next step include one more gradient.

    * `adam`, `adamw`, `nadam`, `yogi`: `sqrt(nu / (1 - b2^count) + eps_root) + eps`;
    * `amsgrad`: `sqrt(nu_max + eps_root) + eps`;
    * `adabelief`: `sqrt(nu / (1 - b2^count)) + eps`; its `nu` already includes `eps_root`;
    * `rmsprop`: `sqrt(nu + eps)`, or `sqrt(nu) + eps` with `eps_in_sqrt=False`; the bias of `nu` is
      corrected by `b2` if the optimiser does so;
    * `adagrad`: `sqrt(sum + eps)`, infinite where the sum is 0, because nothing moves there.

    The state is found by its type, inside any chain, wrapper or schedule. (`adamax` uses the state
    type of Adam and cannot be told from it.) If the optimiser divides by something further, as
    `lamb` does, that is not in `P`.

    Args:
        opt_state: of any optax optimiser that holds one such state.
        eps, b2, eps_root, eps_in_sqrt: the options of the optimiser, which its state does not hold.
            `b2` is for the correction of bias. Leave out options that the optimiser does not have.

    Returns:
        A tree like the parameters, in at least float32.

    Raises:
        UserError: there is no such state, or there are several; no step was taken yet; an option is
            missing, does not belong to this optimiser, or has a value that it does not take.

    >>> import optax
    >>> optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1, b2=0.9, eps=0.5))
    >>> w, g = jnp.ones(2), jnp.array([0.25, -1.0])
    >>> _, state = optimizer.update(g, optimizer.init(w))
    >>> P = preconditioner(state, b2=0.9, eps=0.5)
    >>> print(f"{P[0]:.2f} {P[1]:.2f}")  # |g| + eps after one step
    0.75 1.50
    """
    kinds = _kinds()
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: type(node) in kinds)
    found = [node for node in nodes if type(node) in kinds]
    if len(found) != 1:
        given = " and ".join(type(node).__name__ for node in found)
        what = f"holds several: {given}" if found else "holds none"
        raise UserError(
            f"{_CALLER}: opt_state must hold one state of an adaptive optimiser "
            f"({', '.join(kind.__name__ for kind in kinds)}), and {what}. Of several, give the one "
            f"that is meant. For plain SGD P is 1; for an optimiser that is not among these, "
            f"compute it by hand."
        )
    (state,) = found
    check_number(_CALLER, "eps", eps, or_zero=True)
    if eps_root is not None:
        check_number(_CALLER, "eps_root", eps_root, or_zero=True)
    if b2 is not None:
        check_number(_CALLER, "b2", b2, or_zero=True)
        if not isinstance(b2, Tracer) and not np.less(b2, 1):
            raise UserError(f"{_CALLER}: b2 must be below 1, got {b2}.")
    options = {"eps_root": eps_root, "eps_in_sqrt": eps_in_sqrt}
    return tree.widen(kinds[type(state)](state, b2, eps, options))


Formula = Callable[[Any, Any, Any, dict[str, Any]], Params]


@functools.cache
def _kinds() -> dict[type, Formula]:
    """The state types, with the formula of `P` for each."""
    import optax  # takes longer to import than all of geometry

    # The class itself is not public; only instances are.
    with_count = jax.eval_shape(lambda: optax.scale_by_rms(bias_correction=True).init(()))
    return {
        optax.ScaleByAdamState: _adam,
        optax.ScaleByAmsgradState: _amsgrad,
        optax.ScaleByBeliefState: _belief,
        optax.ScaleByRmsState: _rms,
        type(with_count): _rms,
        optax.ScaleByRssState: _adagrad,
    }


def _adam(state, b2, eps, options) -> Params:
    _refuse(state, options, "eps_in_sqrt")
    return _add_outside(_corrected(state, b2), eps, options["eps_root"])


def _amsgrad(state, b2, eps, options) -> Params:
    _refuse(state, options, "eps_in_sqrt")
    _corrected(state, 0.5)  # for its check of the count
    return _add_outside(state.nu_max, eps, options["eps_root"])


def _belief(state, b2, eps, options) -> Params:
    _refuse(state, options, "eps_in_sqrt", "eps_root")
    return _add_outside(_corrected(state, b2), eps, None)


def _rms(state, b2, eps, options) -> Params:
    _refuse(state, options, "eps_root")
    nu = _corrected(state, b2) if "count" in state._fields else state.nu
    if options["eps_in_sqrt"] is False:
        return _add_outside(nu, eps, None)
    return jax.tree.map(lambda n: jnp.sqrt(n + jnp.asarray(eps, n.dtype)), tree.widen(nu))


def _adagrad(state, b2, eps, options) -> Params:
    _refuse(state, options, "eps_root", "eps_in_sqrt")

    def leaf(n):
        return jnp.where(n > 0, jnp.sqrt(n + jnp.asarray(eps, n.dtype)), jnp.inf)

    return jax.tree.map(leaf, tree.widen(state.sum_of_squares))


def _corrected(state, b2) -> Params:
    """The second moment, corrected for the bias of its start from zero."""
    if b2 is None:
        raise UserError(
            f"{_CALLER}: {type(state).__name__} corrects its bias by b2^count, and b2 is not in "
            f"the state; give b2=, that of the optimiser."
        )
    if not isinstance(state.count, Tracer) and jnp.any(jnp.asarray(state.count) < 1):
        raise UserError(
            f"{_CALLER}: count={state.count}; the second moments mean nothing before the first "
            f"step."
        )
    share = -jnp.expm1(jnp.asarray(state.count, float) * jnp.log(jnp.asarray(b2, float)))
    return jax.tree.map(lambda n: n / share.astype(n.dtype), tree.widen(state.nu))


def _add_outside(nu, eps, eps_root) -> Params:
    def leaf(n):
        under = n if eps_root is None else n + jnp.asarray(eps_root, n.dtype)
        return jnp.sqrt(under) + jnp.asarray(eps, n.dtype)

    return jax.tree.map(leaf, tree.widen(nu))


def _refuse(state, options, *names) -> None:
    for name in names:
        if options[name] is not None:
            raise UserError(f"{_CALLER}: {type(state).__name__} has no {name}; leave it out.")
