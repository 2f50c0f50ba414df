"""A transformer with masked tokens: declared weights, microbatches, exact trace, top eigenvalue.

    python examples/masked_transformer.py

The loss is the mean over all tokens that count. So the weight of a sequence is the number of its
tokens that count, and `example_weight` says so. Without that, what rests on single examples or on
parts of the batch would be wrong: it is refused.
"""

import jax
import jax.numpy as jnp
import optax

from sharpjax import geometry
from sharpjax.errors import UserError

VOCABULARY, LENGTH, WIDTH, SEQUENCES = 11, 6, 8, 16


def norm(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def model_fn(params, batch):
    """Logits [N, L, V] of the next token; padding is not attended to, nor is what comes after."""
    x = params["embed"][batch["tokens"]] + params["position"]
    query, key, value = (norm(x) @ params[name] for name in ("query", "key", "value"))
    scores = query @ key.mT / WIDTH**0.5
    seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool)) & batch["mask"][:, None, :]
    seen |= jnp.eye(LENGTH, dtype=bool)  # a row without any token would be 0 / 0
    x = x + jax.nn.softmax(jnp.where(seen, scores, -1e9)) @ value
    x = x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]
    return norm(x) @ params["head"]


def outer_loss(logits, batch):
    """Mean cross-entropy over the tokens that count."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"])
    return jnp.sum(each, where=batch["mask"]) / jnp.sum(batch["mask"])


def num_tokens(batch):
    return jnp.sum(batch["mask"], axis=1)


def problem():
    """Small weights, and sequences of 2 to 6 tokens that count upwards from a random start."""
    shapes = {
        "embed": (VOCABULARY, WIDTH),
        "position": (LENGTH, WIDTH),
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
        "head": (WIDTH, VOCABULARY),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    params = {
        name: jax.random.normal(key, shape) / WIDTH**0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    start = jax.random.randint(keys[-2], (SEQUENCES, 1), 0, VOCABULARY)
    tokens = (start + jnp.arange(LENGTH + 1)) % VOCABULARY
    lengths = jax.random.randint(keys[-1], (SEQUENCES, 1), 2, LENGTH + 1)
    mask = jnp.arange(LENGTH) < lengths
    return params, {"tokens": tokens[:, :-1], "next": tokens[:, 1:], "mask": mask}


def main():
    params, batch = problem()
    loss = geometry.composed(model_fn, outer_loss, example_weight=num_tokens)
    print(f"{SEQUENCES} sequences of {batch['mask'].sum()} tokens, loss {loss(params, batch):.3f}")

    gauss_newton = geometry.gauss_newton(loss, params, batch)
    trace = geometry.trace(gauss_newton, key=jax.random.key(1), method="exact")
    print(f"trace of the Gauss-Newton matrix: {trace.value:.4f}, exact")

    # Four sequences at a time: the memory of a gradient of four, the same matrix.
    hessian = geometry.hessian(loss, params, batch, microbatch_size=4)
    pairs = geometry.check(geometry.top_eigenpairs(hessian, key=jax.random.key(2)))
    print(f"largest eigenvalue: {pairs.values[0]:.4f} ± {pairs.value_errors[0]:.0e}")

    undeclared = geometry.composed(model_fn, outer_loss)
    try:
        geometry.gauss_newton(undeclared, params, batch)
    except UserError as error:
        print(f"without the weights: {error}")


if __name__ == "__main__":
    main()
