"""Influence functions: which training examples help or harm on test data, by one linear solve.

    python examples/influence.py

Without an example the optimum of a mean of N losses moves by `(H + damping)^-1 grad_i / (N - 1)` to
first order, so the test loss changes by `grad_test' (H + damping)^-1 grad_i / (N - 1)` (Koh and
Liang, 2017, arXiv 1703.04730). One solve and one derivative along its solution give this for all
examples. Here the problem is small and convex, logistic regression on two digits, so that it can be
compared with training anew without each of them.
"""

import jax
import jax.numpy as jnp

from sharpjax import geometry, tree
from sharpjax.data import digits

RIDGE, EXAMPLES, NEWTON_STEPS = 0.03, 250, 8


def errors(params, batch):
    """The logistic loss of each example."""
    logits = batch["x"] @ params["w"] + params["b"]
    return jnp.logaddexp(0.0, -batch["sign"] * logits)


def each(params, batch):
    """The objective of each example, of which the training loss is the mean."""
    return errors(params, batch) + RIDGE / 2 * tree.vdot(params, params)


def loss(params, batch):
    return jnp.sum(batch["weight"] * each(params, batch)) / jnp.sum(batch["weight"])


def test_loss(params, test):
    return jnp.mean(errors(params, test))


def influences(params, batch, test, *, damping=0.0):
    """By how much the test loss changes when an example is left out, to first order.

    A network that is not at a minimum needs a damping; the solve says so (`NOT_POSITIVE`).
    """
    slope = jax.grad(test_loss)(params, test)
    solved = geometry.solve(geometry.hessian(loss, params, batch) + damping, slope)
    along = geometry.check(solved).value
    _, found = jax.jvp(lambda p: each(p, batch), (params,), (along,))
    return found / (len(found) - 1)


@jax.jit
def fit(batch):
    """Newton's method, from zero."""

    def newton(_, params):
        slope = jax.grad(loss)(params, batch)
        step = geometry.solve(geometry.hessian(loss, params, batch), slope)
        return tree.add_scaled(params, -1.0, step.value)

    start = {"w": jnp.zeros(batch["x"].shape[1]), "b": jnp.zeros(())}
    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)


@jax.jit
def retrained(batch, test):
    """The test loss of the optimum without each example."""

    def without(i):
        return test_loss(fit({**batch, "weight": batch["weight"].at[i].set(0)}), test)

    return jax.vmap(without)(jnp.arange(len(batch["weight"])))


def problem():
    """Three against eight: a batch for training and one for tests."""
    found = []
    for part in digits.load()[:2]:
        chosen = (part.label == 3) | (part.label == 8)
        image = jnp.asarray(part.input[chosen][:EXAMPLES], jnp.float32).reshape(-1, 64) / 255
        sign = jnp.where(jnp.asarray(part.label[chosen][:EXAMPLES]) == 3, 1.0, -1.0)
        found.append({"x": image, "sign": sign, "weight": jnp.ones(len(image))})
    return found


def compared():
    """Changes of the test loss, predicted and true."""
    batch, test = problem()
    params = fit(batch)
    return influences(params, batch, test), retrained(batch, test) - test_loss(params, test)


def main():
    predicted, true = compared()
    print(f"{len(true)} models trained anew; changes of the test loss times 1e6:")
    print("example  predicted     true")
    order = jnp.argsort(predicted)
    for i in (*order[:3], *order[-3:]):
        print(f"{i:7} {1e6 * predicted[i]:10.1f} {1e6 * true[i]:8.1f}")
    print(f"correlation {jnp.corrcoef(predicted, true)[0, 1]:.4f}")


if __name__ == "__main__":
    main()
