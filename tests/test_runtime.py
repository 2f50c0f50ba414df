"""How jax is started, and what a long process must give back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import runtime


def test_room_is_made_where_the_maps_run_out(monkeypatch):
    double = jax.jit(lambda x: 2 * x)
    before = double(jnp.arange(3.0))
    monkeypatch.setattr(runtime, "_memory_maps", lambda: (499, 1000))
    assert not runtime.make_room() and double._cache_size() == 1
    monkeypatch.setattr(runtime, "_memory_maps", lambda: (500, 1000))
    assert runtime.make_room() and double._cache_size() == 0
    np.testing.assert_array_equal(double(jnp.arange(3.0)), before)


def test_programs_that_are_forgotten_give_their_maps_back():
    """Each of 20 programs holds maps on a CPU under Linux, and none afterwards."""
    start, most = runtime._memory_maps()
    if not np.isfinite(most) or jax.default_backend() != "cpu":
        pytest.skip("maps are those of Linux, and of code for CPUs")
    programs = [jax.jit(lambda x, i=i: jnp.sum(jnp.sin(x @ x + i))) for i in range(20)]
    for program in programs:
        program(jnp.ones((8, 8))).block_until_ready()
    held, _ = runtime._memory_maps()
    assert runtime.make_room(share=0.0)
    left, _ = runtime._memory_maps()
    assert held >= start + 20 and left <= held - 20
