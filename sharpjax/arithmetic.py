"""A self-test of the arithmetic: one known jaxlib silently computes wrong numbers.

jaxlib 0.10.2 on CPU gives wrong results under `jit` for some products followed by a reduction
(jax-ml/jax#39103). The packaging excludes that version, but an environment may still contain it. So
everything that starts long work calls `check_arithmetic` first. It takes 40 to 120 ms, once per
process.
"""

import functools
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError

_FLAG = "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
_ROWS = 32769  # the last row falls outside the vectorised part; at 4,097 rows the bug does not show


def _last_square() -> float:
    """The squared length of the row (32768, 0, 0), as the issue's example computes it; 2^30 is
    right."""
    rows = np.zeros((_ROWS, 3), np.float32)
    rows[:, 0] = np.arange(_ROWS)
    matrix = np.eye(3, dtype=np.float32)
    # With numpy inputs and compile-time evaluation, the test also runs inside a trace of the
    # caller's, instead of being staged.
    with jax.ensure_compile_time_eval():
        squares = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    return float(np.asarray(squares)[-1])


@functools.cache  # only success is cached: an exception is not, so every later call refuses again
def check_arithmetic() -> None:
    """Raises an error if the CPU backend computes wrong numbers (jax-ml/jax#39103).

    It runs the reproducer of that issue once per process, on the CPU backend only; on other
    backends it returns at once. Call it before you trace anything whose numbers matter.

    Raises:
        UserError: the reproducer's answer is wrong; names the versions and the flag that avoids the
            bug.

    >>> check_arithmetic()
    """
    if jax.default_backend() != "cpu":
        return
    expected = float((_ROWS - 1) ** 2)
    computed = _last_square()
    if computed != expected:
        raise UserError(
            f"this jax computes wrong numbers on the CPU: {computed:.0f} where {expected:.0f} is "
            f"right (jax {jax.__version__}, jaxlib {version('jaxlib')}; jax-ml/jax#39103). Install "
            f"another jaxlib (0.10.2 is known to be wrong, 0.10.1 and 0.12.0 to be right), or set "
            f"the environment variable {_FLAG} (an empty value) before jax starts."
        )
