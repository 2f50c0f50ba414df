"""The self-test of the arithmetic: passes here, refuses wrong numbers, runs once, and in traces."""

import jax
import pytest

from sharpjax import arithmetic
from sharpjax.errors import UserError


@pytest.fixture(autouse=True)
def forgotten():
    arithmetic.check_arithmetic.cache_clear()
    yield
    arithmetic.check_arithmetic.cache_clear()


@pytest.mark.usual_flags
def test_the_reproducer_is_right_here():
    assert arithmetic._last_square() == 1073741824.0
    arithmetic.check_arithmetic()


def test_a_wrong_number_is_refused_every_time(monkeypatch):
    # What jaxlib 0.10.2 answers.
    monkeypatch.setattr(arithmetic, "_last_square", lambda: 1065369600.0)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            arithmetic.check_arithmetic()
        message = str(error.value)
        for part in (
            "1065369600",
            "1073741824",
            jax.__version__,
            "39103",
            "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=",
        ):
            assert part in message


def test_success_is_remembered(monkeypatch):
    calls = []
    monkeypatch.setattr(arithmetic, "_last_square", lambda: calls.append(1) or 1073741824.0)
    arithmetic.check_arithmetic()
    arithmetic.check_arithmetic()
    assert len(calls) == 1


def test_other_backends_are_not_tested(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(arithmetic, "_last_square", lambda: 0.0)
    arithmetic.check_arithmetic()


def test_it_runs_inside_a_trace():
    @jax.jit
    def f(x):
        arithmetic.check_arithmetic()
        return 2.0 * x

    assert f(1.0) == 2.0
