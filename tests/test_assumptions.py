"""What is assumed is refused outside of a trace, and a status inside of one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.geometry.loss import assumptions


class Found(NamedTuple):
    value: jax.Array
    count: jax.Array
    status: jax.Array


def test_outside_of_a_trace_it_is_refused():
    with pytest.raises(UserError, match="^f: it does not hold"):
        assumptions.require("f", jnp.array(False), "it does not hold.")


@pytest.mark.parametrize("holds", [True, False])
def test_inside_a_trace_it_is_a_status(holds):
    @jax.jit
    def solve(holds):
        checked = assumptions.require("f", holds, "it does not hold.")
        found = Found(jnp.float32(2), jnp.int32(3), jnp.int32(geometry.Status.OK))
        return assumptions.mark(found, checked)

    found = solve(jnp.array(holds))
    assert found.count == 3
    assert bool(jnp.isnan(found.value)) == (not holds)
    if holds:
        geometry.check(found)
        return
    assert found.status == geometry.Status.ASSUMPTION_FAILED
    with pytest.raises(geometry.NotOk, match="outside of jit"):
        geometry.check(found)
