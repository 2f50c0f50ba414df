"""How long a training step takes with a mask, beside one without.

    python benchmarks/masked_training.py                # a minute
    python benchmarks/masked_training.py --repeats=3    # a look

The step is that of `train.steps`: a gradient of `losses.Objective`, SGD with momentum, the update;
LeNet's size on random images, and a wide MLP. `mask` is in the objective, as plans have it;
`keep_masked` is the transform after the optimiser instead. Programs run in turn, and the ratios are
medians over rounds of the two times of one round. Run it on a machine that does nothing else.
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from sharpjax import nn
from sharpjax.compress import prune
from sharpjax.losses import Objective

REPEATS = flags.DEFINE_integer("repeats", 15, "Rounds.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a round, for each program.", lower_bound=1)
TARGET = 1.05

CASES = {
    "conv": (nn.build("small_conv", num_classes=10, width=32), (64, 32, 32, 3)),
    "MLP": (nn.build("mlp", num_classes=10, width=512), (128, 28, 28, 1)),
}


def programs(model, shape):
    """By name: a jitted step and its carry."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    batch = {"image": image, "label": jnp.arange(shape[0], dtype=jnp.int32) % 10}
    variables = dict(model.init(jax.random.key(0), image[:1]))
    params = variables.pop("params")
    mask = prune.mask(params, 0.9)
    start = prune.apply_mask(params, mask)
    sgd = optax.sgd(0.01, momentum=0.9)
    for name, tx, own in (
        ("no mask", sgd, None),
        ("mask", sgd, mask),
        ("keep_masked", optax.chain(sgd, prune.keep_masked(mask)), None),
    ):

        @jax.jit
        def step(params, state, objective, batch, tx=tx):
            grads = jax.grad(objective, has_aux=True)(params, batch)[0]
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        yield name, step, (start, tx.init(start)), (Objective(model, variables, mask=own), batch)


def seconds(program, num_steps):
    step, carry, rest = program
    began = time.perf_counter()
    for _ in range(num_steps):
        carry = step(*carry, *rest)
    jax.block_until_ready(carry)
    return time.perf_counter() - began


def main(_):
    print("| net | step ms | with a mask | with keep_masked |")
    print("|---|---|---|---|")
    met = True
    for name, (model, shape) in CASES.items():
        made = list(programs(model, shape))
        for _, *program in made:
            seconds(program, 1)  # compiles
        rounds = [[seconds(p, STEPS.value) for _, *p in made] for _ in range(REPEATS.value)]
        times = np.array(rounds)
        _, masked, kept = np.median(times / times[:, :1], axis=0)
        step = 1000 * np.median(times[:, 0]) / STEPS.value
        print(f"| {name} | {step:.2f} | {masked:.3f} | {kept:.3f} |")
        met = met and masked <= TARGET
    print(f"target, at most {TARGET} with a mask: {'met' if met else 'missed'}")


if __name__ == "__main__":
    app.run(main)
