"""Arrays as integers of a few bits: closed forms, bounds of the error, derivatives, refusals."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sharpjax.compress import casting, fake_cast
from sharpjax.compress.casting import cast
from sharpjax.compress.grid import grid_of_range
from sharpjax.compress.integers import dequantise, fake_quantise, fake_quantise_onto, quantise
from sharpjax.errors import UserError

TABLE = [[-1.0, 0.3, 0.7], [2.0, -4.0, 1.0]]
MODES = [
    {},
    {"bound": "half"},
    {"symmetric": False},
    {"axis": 1},
    {"axis": (0, -1), "bound": "half"},
    {"axis": 1, "tiles": {0: 3}, "symmetric": False},
]
EPS = float(np.finfo(np.float32).eps)


def normal(seed=0, shape=(6, 4)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * rng.uniform(0.1, 10, shape[-1]), jnp.float32)


# What the numbers become.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_table_by_hand(dtype, x64, strict):
    held = quantise(jnp.array(TABLE, dtype), 8, axis=1, bound="half")
    np.testing.assert_array_equal(held.values, [[-64, 10, 89], [127, -127, 127]])
    np.testing.assert_allclose(held.grid.scale * 127.5, [[2, 4, 1]], rtol=1e-7)
    assert held.values.dtype == jnp.int8 and held.grid.zero_point is None
    assert held.grid.scale.dtype == dequantise(held).dtype == dtype
    # TFLite's: absmax / 127, the largest number held exactly.
    held = quantise(jnp.array(TABLE, dtype), 8, axis=1)
    np.testing.assert_array_equal(held.values, [[-64, 10, 89], [127, -127, 127]])
    np.testing.assert_allclose(held.grid.scale * 127, [[2, 4, 1]], rtol=1e-7)
    # From -4 to 1 in 255 steps: 0 is the integer -128 + 204.
    held = quantise(jnp.array(TABLE, dtype)[:, 1:], 8, symmetric=False)
    np.testing.assert_array_equal(held.values, [[91, 112], [-128, 127]])
    np.testing.assert_allclose(held.grid.scale, [[1 / 51]], rtol=1e-7)
    np.testing.assert_array_equal(held.grid.zero_point, [[76]])


def test_halves_go_to_the_even_integer(x64, strict):
    x = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 127.0])
    np.testing.assert_array_equal(quantise(x, 8).values, [-2, -2, 0, 0, 2, 2, 127])
    np.testing.assert_array_equal(fake_quantise(x, 8), [-2, -2, 0, 0, 2, 2, 127])


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize(
    ("bits", "dtype"), [(2, "float32"), (5, "float32"), (8, "float32"), (8, "bfloat16")]
)
def test_the_error_is_half_a_step(bits, dtype, mode, strict):
    x = normal().astype(dtype)
    held = quantise(x, bits, **mode)
    wide, done = (np.asarray(part, np.float32) for part in (x, dequantise(held)))
    error, scale = jnp.abs(done - wide), held.grid.scale
    half = jnp.repeat(scale, 6 // scale.shape[0], 0) / 2  # of every column, or of all of them
    slack = 1 + 2 ** (bits + 1) * EPS  # x / s is rounded before it is rounded
    most = jnp.broadcast_to(half, x.shape) * slack
    if dtype == "bfloat16":  # the level, of at most |x| + s / 2, is rounded to 8 binary places
        most = most + (jnp.abs(wide) + most) * 2.0**-8
    assert jnp.all(error <= most)
    assert held.grid.lowest <= held.values.min() and held.values.max() <= held.grid.highest
    np.testing.assert_array_equal(fake_quantise(x, bits, **mode), dequantise(held))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_zeros_stay_and_signs_do_not_matter(mode, strict):
    x = jnp.where(jnp.arange(24).reshape(6, 4) % 3 > 0, normal(), jnp.float32(0))
    done = dequantise(quantise(x, 4, **mode))
    np.testing.assert_array_equal(np.where(x == 0, done, 0), 0)
    if mode.get("symmetric", True):
        np.testing.assert_array_equal(
            quantise(-x, 4, **mode).values, -quantise(x, 4, **mode).values
        )
    positive = quantise(jnp.abs(x) + 5, 4, symmetric=False)  # the range is widened to hold 0
    np.testing.assert_array_equal(positive.grid.zero_point, [[-8]])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_twice_is_once(mode, strict):
    """A number k s of a grid, |k| < 16, is k s / s = k to 2 roundings, so that k is found again.
    With "half" the largest is 7 s and not 7.5 s: quantised again, it would have a shorter step."""
    once = quantise(normal(), 4, **mode)
    on_grid = fake_quantise_onto(dequantise(once), once.grid)
    np.testing.assert_array_equal(on_grid, dequantise(once))
    again = quantise(dequantise(once), 4, **mode)
    if mode.get("symmetric", True) and mode.get("bound") != "half":
        np.testing.assert_array_equal(once.values, again.values)
        # 7 s and (7 s) / 7 are each rounded once.
        np.testing.assert_allclose(dequantise(once), dequantise(again), rtol=2 * EPS)


def test_six_decibels_for_each_bit(x64, strict):
    """Of numbers spread evenly over [-1, 1] the error is s^2 / 12 with s = 2 / (2^b - 1)."""
    n = 2**14
    x = (jnp.arange(float(n)) + 0.5) * (2 / n) - 1
    for bits in range(2, 9):
        error = jnp.mean(jnp.square(fake_quantise(x, bits, bound="half") - x))
        decibels = 10 * np.log10(float(jnp.mean(jnp.square(x)) / error))
        np.testing.assert_allclose(decibels, 20 * np.log10(2**bits - 1), atol=0.01)


def test_channels_have_smaller_errors_than_the_whole(x64, strict):
    rng = np.random.default_rng(0)
    reach = np.array([0.1, 1.0, 10.0])
    x = jnp.asarray(rng.uniform(-1, 1, (3000, 3)) * reach)
    x = x.at[0].set(jnp.asarray(reach))
    mean = lambda axis: float(jnp.mean(jnp.square(fake_quantise(x, 8, axis=axis) - x)))  # noqa: E731
    # s^2 / 12 of each; the deviation of a mean of 3000 squares of uniform numbers is 1.6%.
    np.testing.assert_allclose(mean(1), np.mean((reach / 127) ** 2) / 12, rtol=0.065)
    assert mean(1) < mean(None) / 2


def test_tiles_are_arrays_of_their_own(strict):
    x = normal(shape=(6, 4))
    whole = quantise(x, 3, axis=1, tiles={0: 2}, symmetric=False)
    assert whole.grid.scale.shape == (3, 4)
    parts = [quantise(x[i : i + 2], 3, axis=1, symmetric=False) for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole.values, np.concatenate([p.values for p in parts]))
    np.testing.assert_array_equal(dequantise(whole), np.concatenate([dequantise(p) for p in parts]))


def test_stochastic_rounding_is_unbiased(key, strict):
    n, fractions = 4000, jnp.array([0.0, 0.1, 0.5, 0.9])
    x = jnp.tile(jnp.append(fractions - 2, 7.0), (n, 1))  # s = 1
    done = fake_quantise(x, 4, rounding="stochastic", key=key)
    deviation = np.sqrt(np.asarray(fractions * (1 - fractions)) / n)
    error = np.abs(np.asarray(jnp.mean(done, 0)[:-1] - x[0, :-1]))
    assert np.all(error <= 5 * deviation + EPS)
    assert jnp.all(jnp.abs(done - x) < 1)
    np.testing.assert_array_equal(done[:, 0], -2)  # what is on the grid stays
    assert len(np.unique(done[:, 2])) == 2


def test_stochastic_rounding_clips_beyond_the_levels(key, strict):
    x = jnp.array([1.5, -1.25] * 20, jnp.float32)  # s = 1, and the levels are -1, 0 and 1
    done = fake_quantise(x, 2, bound="half", rounding="stochastic", key=key)
    np.testing.assert_array_equal(done, [1, -1] * 20)


@pytest.mark.parametrize("mode", [{}, {"axis": 1}], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_stochastic_rounding_of_channels_and_of_other_ranges_is_unbiased(
    symmetric, mode, key, strict
):
    """The mean of n numbers that are rounded up by s with probability f lies within 5 of its
    standard deviations s sqrt(f (1 - f) / n): of the 16 means here one key in 100,000 has another.

    Steps are powers of two, so that s and x / s are exact: 7 s / 7, and from -3.75 s to 11.25 s in
    15 steps, where z = -4 and there are the integers from -4 to 11."""
    n, fractions = 4000, np.array([0.125, 0.5, 0.875, 0.5])
    steps = np.array([0.25, 1, 8, 2]) if mode else np.ones(4)
    whole = np.array([-2, 5, -6, 0]) if symmetric else np.array([-2, 9, -3, 0])
    ends = np.array([[-7], [7]]) if symmetric else np.array([[-3.75], [11.25]])
    expected = (whole + fractions) * steps
    x = jnp.asarray(np.concatenate([np.tile(expected, (n, 1)), ends * steps]), jnp.float32)
    how = {"symmetric": symmetric, "rounding": "stochastic", "key": key} | mode
    held = quantise(x, 4, **how)
    np.testing.assert_array_equal(held.grid.scale, steps[None] if mode else [[1]])
    done = dequantise(held)
    np.testing.assert_array_equal(done, fake_quantise(x, 4, **how))
    drawn, below = np.asarray(done[:n], np.float64), whole * steps
    assert np.all((drawn == below) | (drawn == below + steps))
    deviation = steps * np.sqrt(fractions * (1 - fractions) / n)
    assert np.all(np.abs(drawn.mean(0) - expected) <= 5 * deviation)


def test_the_peer_with_the_same_bound():
    qwix = pytest.importorskip("qwix")
    x = normal(3, (8, 6))
    for bits, qtype in ((8, jnp.int8), (4, jnp.int4), (3, "int3")):
        for channels in ((), (1,)):
            theirs = qwix.quantize(x, qtype, channelwise_axes=channels)
            ours = quantise(x, bits, axis=channels, bound="half")
            np.testing.assert_allclose(ours.grid.scale, theirs.scale, rtol=1e-6)
            # They may use -2^(b-1), for the least number alone.
            values = np.maximum(np.asarray(theirs.qvalue).astype(np.int8), ours.grid.lowest)
            np.testing.assert_array_equal(ours.values, values)
    theirs = qwix.quantize(x, jnp.int8, calibration_method="minmax")
    ours = fake_quantise(x, 8, symmetric=False)
    np.testing.assert_allclose(ours, qwix.dequantize(theirs), rtol=1e-5, atol=1e-6)


def test_jit_and_vmap_change_nothing(strict):
    x = normal()
    fn = functools.partial(fake_quantise, bits=4, axis=0)
    np.testing.assert_array_equal(jax.jit(fn)(x), fn(x))
    held = jax.vmap(functools.partial(quantise, bits=4))(x)
    np.testing.assert_array_equal(held.values, quantise(x, 4, axis=0).values)
    np.testing.assert_array_equal(jax.vmap(dequantise)(held), fn(x))


def test_rare_and_valid(strict):
    assert quantise(jnp.zeros((0, 3)), 8, axis=1).values.shape == (0, 3)
    assert fake_quantise(jnp.float32(-3.0), 8) == -3.0
    np.testing.assert_array_equal(fake_quantise(jnp.zeros((2, 2)), 2, axis=0), np.zeros((2, 2)))
    for mode in ({}, {"symmetric": False}):
        for x in (3e38, 1e-30, 1e-44):
            x = jnp.array([x, -x, 0.0])
            done = fake_quantise(x, 8, **mode)
            # Of what is under 127 times the least normal number, nothing is left.
            assert jnp.all(jnp.abs(done - x) <= jnp.maximum(jnp.abs(x) / 200, 127 * 1.2e-38))
    half = jnp.array([1.0, 0.3], jnp.bfloat16)
    assert fake_quantise(half, 8).dtype == dequantise(quantise(half, 8)).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_levels_beyond_the_greatest_number_of_the_type(dtype, share, strict):
    """The zero point is rounded, so one end of the grid lies up to s / 2 beyond the range."""
    top = jnp.finfo(dtype).max
    x = jnp.array([-share * float(top), 0.0, float(top)], dtype)
    held = quantise(x, 8, symmetric=False)
    for done in (dequantise(held), fake_quantise(x, 8, symmetric=False)):
        assert jnp.all(jnp.isfinite(done)) and done[1] == 0
        error = np.abs(np.float64(done) - np.float64(x))
        rounded = float(top) * float(jnp.finfo(dtype).eps)  # the level, to the dtype of x
        assert np.all(error <= float(held.grid.scale[0]) / 2 * (1 + 2**9 * EPS) + rounded)
    wide = grid_of_range(-117600.0, 117600.0, 8)
    half = jnp.array([65504.0, -65504.0], jnp.float16)  # the nearest level is 71 s = 65745
    np.testing.assert_array_equal(fake_quantise_onto(half, wide), half)


@pytest.mark.parametrize("mode", [{}, {"symmetric": False}], ids=str)
def test_huge_numbers_are_small_ones_times_a_power_of_two(mode, strict):
    x = normal()
    x = 0.9 * x / jnp.max(jnp.abs(x))
    fine, huge = quantise(x, 2, **mode), quantise(x * jnp.float32(2.0**127), 2, **mode)
    assert huge.grid.scale > 2.0**126 > 1 / jnp.finfo(jnp.float32).max  # 1 / s is not normal
    np.testing.assert_array_equal(huge.values, fine.values)
    np.testing.assert_array_equal(dequantise(huge), dequantise(fine) * jnp.float32(2.0**127))
    done = dequantise(quantise(jnp.array([9e37, 1, -4.5e37], jnp.float32), 2))
    np.testing.assert_array_equal(done, np.float32([9e37, 0, 0]))


# Derivatives.


def test_straight_through_in_any_order(x64, strict):
    """Of f(q(x)) the gradient is M g and the Hessian M H M, of f at q(x); forwards as backwards."""
    x, grid = jnp.array([-1.4, -0.3, 0.2, 0.9, 3.0]), grid_of_range(-1.0, 1.0, 2)
    target, matrix = jnp.arange(5.0), jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))

    def f(x):
        return jnp.sum(jnp.sin(x) * target) + x @ matrix @ x

    def both(x):
        return f(fake_quantise_onto(x, grid))

    rounded, inside = jnp.array([-1.0, 0, 0, 1, 1]), jnp.diag(jnp.array([1.0, 1, 1, 1, 0]))
    np.testing.assert_array_equal(fake_quantise_onto(x, grid), rounded)
    np.testing.assert_allclose(jax.grad(both)(x), inside @ jax.grad(f)(rounded), rtol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(both)(x), jax.grad(both)(x), rtol=1e-12)
    truth = inside @ jax.hessian(f)(rounded) @ inside
    for hessian in (jax.hessian(both), jax.jacrev(jax.jacrev(both)), jax.jacfwd(jax.jacfwd(both))):
        np.testing.assert_allclose(hessian(x), truth, rtol=1e-11, atol=1e-12)


def test_the_step_is_a_constant(strict):
    for mode in MODES:
        slope = jax.jacfwd(lambda x, mode=mode: jnp.sum(fake_quantise(x, 4, **mode)))(normal())
        if mode.get("bound") == "half" or not mode.get("symmetric", True):
            assert set(np.unique(slope)) <= {0.0, 1.0}
        else:
            np.testing.assert_array_equal(slope, 1)
    # Asymmetric, s = 1 and z = -2 + 2: 1.5 would be the integer 2, beyond the highest, 1.
    fn = functools.partial(fake_quantise, bits=2, symmetric=False)
    slope = jax.grad(lambda x: jnp.sum(fn(x)))(jnp.array([-1.5, 1.5], jnp.float32))
    np.testing.assert_array_equal(slope, [1, 0])


# Shorter floats.


@pytest.mark.parametrize("dtype", casting.FORMATS)
def test_casts(dtype, strict):
    kind = jnp.finfo(dtype)
    rng = np.random.default_rng(0)
    reach = np.log2([float(kind.tiny), min(float(kind.max), 1e30)])
    x = np.float32(2 ** rng.uniform(*reach, 200) * rng.choice([-1, 1], 200))
    done = np.asarray(fake_cast(jnp.asarray(x), dtype))
    assert np.all(np.abs(done - x) <= 2.0 ** -(kind.nmant + 1) * np.abs(x))
    np.testing.assert_array_equal(done, x.astype(getattr(ml_dtypes, dtype, dtype)).astype(x.dtype))
    assert cast(jnp.asarray(x), dtype).dtype == dtype


def test_what_a_cast_cannot_hold():
    x = jnp.array([1.0, 70000.0, -70000.0, 65519.0])
    with pytest.raises(UserError, match=r"cast: x holds 70000, beyond the greatest float16, 65504"):
        cast(x, "float16")
    np.testing.assert_array_equal(jax.jit(cast, static_argnums=1)(x, "float16")[1:3], np.nan)
    top = [1, 65504, -65504, 65504]
    np.testing.assert_array_equal(cast(x, "float16", overflow="saturate"), top)
    np.testing.assert_array_equal(
        cast(jnp.array([460.0, 1e9]), "float8_e4m3fn", overflow="saturate"), 448
    )
    broken = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    for overflow in ("refuse", "saturate"):
        within = jax.jit(functools.partial(cast, dtype="float8_e5m2", overflow=overflow))
        np.testing.assert_array_equal(within(broken).astype(jnp.float32), np.nan)
    half = jnp.array([3.0], jnp.float16)
    assert cast(half, "bfloat16", overflow="saturate") == 3.0


@pytest.mark.parametrize(
    ("dtype", "most", "least"),  # a number that rounds to the greatest, and one that overflows
    [
        ("float16", 65519.0, 65520.0),
        ("float8_e4m3fn", 464.0, 465.0),
        ("float8_e5m2", 61408.0, 61440.0),  # between them it depends on the backend
    ],
)
def test_only_what_is_saturated_has_no_derivative(dtype, most, least, strict):
    top = float(jnp.finfo(dtype).max)
    x = jnp.array([1.0, top, -top, most, -most, least, -least, 1e9], jnp.float32)
    fn = functools.partial(fake_cast, dtype=dtype, overflow="saturate")
    for done in (fn, jax.jit(fn)):
        np.testing.assert_array_equal(done(x), [1, top, -top, top, -top, top, -top, top])
        slope = jax.grad(lambda x, done=done: jnp.sum(done(x)))(x)
        np.testing.assert_array_equal(slope, [1, 1, 1, 1, 1, 0, 0, 0])


def test_a_short_type_is_saturated_in_another(strict):
    # In bfloat16 65504 is 65536, which float16 does not hold.
    x = jnp.array([65536.0, -1e9, 3.0], jnp.bfloat16)
    done = cast(x, "float16", overflow="saturate")
    np.testing.assert_array_equal(done, np.float16([65504, -65504, 3]))


# Refusals.


def test_what_is_not_finite(strict):
    x = normal().at[1, 2].set(jnp.nan).at[0, 0].set(jnp.inf)
    for fn in (quantise, fake_quantise):
        with pytest.raises(UserError, match=rf"^{fn.__name__}: x holds NaN or infinity in 2 of 24"):
            fn(x, 8)
    finite = np.array([False, True, False, True])
    for mode in ({}, {"symmetric": False}):
        held = jax.jit(lambda x, mode=mode: quantise(x, 8, axis=1, **mode))(x)
        for done in (
            dequantise(held),
            jax.jit(lambda x, m=mode: fake_quantise(x, 8, axis=1, **m))(x),
        ):
            np.testing.assert_array_equal(np.isfinite(done), np.broadcast_to(finite, (6, 4)))
    done = fake_quantise_onto(x, grid_of_range(-1.0, 1.0, 8))
    np.testing.assert_array_equal(np.isnan(done), ~np.isfinite(x))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bits": 1}, r"bits=1; give a whole number from 2 to 8\. With 1 bit a symmetric grid"),
        ({"bits": 16}, r"bits=16; .* For 16 bits, float16"),
        ({"bits": 8.0}, r"bits=8\.0; "),
        ({"bits": True}, r"bits=True; "),
        ({"bound": "127"}, r"bound='127'; give 'integer' or 'half'"),
        ({"bound": "half", "symmetric": False}, r"bound='half' is of symmetric grids"),
        ({"rounding": "up"}, r"rounding='up'; give"),
        ({"rounding": "stochastic"}, r"rounding='stochastic' draws; give key"),
        ({"key": jax.random.key(0)}, r"rounding='nearest' draws nothing"),
        ({"axis": 2}, r"axis 2 of an array \[6, 4\], which has 2"),
        ({"axis": 0.5}, r"axis 0\.5 of an array"),
        ({"axis": (0, -2)}, r"name an axis twice"),
        ({"axis": 0, "tiles": {0: 2}}, r"name an axis twice"),
        ({"tiles": {0: 4}}, r"tiles=\{0: 4\} do not cut axis 0 .* give a divisor of 6"),
        ({"x": jnp.arange(3)}, r"every leaf of x must be an array of floating point"),
    ],
)
def test_what_is_refused(arguments, said):
    for fn in (quantise, fake_quantise):
        with pytest.raises(UserError, match=rf"^{fn.__name__}: .*{said}") as error:
            fn(**{"x": normal(), "bits": 8, **arguments})
        assert "\n" not in str(error.value)


def test_grids_that_are_refused():
    with pytest.raises(UserError, match=r"^grid_of_range: a low end lies above"):
        grid_of_range(1.0, -1.0, 8)
    low, high = -jnp.ones((2, 1)), jnp.ones((1, 3))
    with pytest.raises(
        UserError, match=r"^grid_of_range: low of shape \[2, 1\], high of .* \[1, 3\];"
    ):
        grid_of_range(low, high, 8)
    with pytest.raises(UserError, match=r"^grid_of_range: low of shape"):
        jax.jit(lambda low: grid_of_range(low, high, 8).scale)(low)
    assert grid_of_range(-1.0, high, 8).scale.shape == (1, 3)
    with pytest.raises(UserError, match=r"^fake_quantise_onto: a grid \[1, 4\] for an array \[4\]"):
        fake_quantise_onto(jnp.ones(4), quantise(normal(), 8, axis=1).grid)
    with pytest.raises(UserError, match=r"^cast: unknown floating type 'float15'; did you mean"):
        cast(normal(), "float15")
    with pytest.raises(UserError, match=r"^cast: overflow='clip'; give"):
        cast(normal(), "float16", overflow="clip")  # pyright: ignore
