"""Data-free metrics of layers: closed forms, plain numpy, and frozen numbers of WeightWatcher."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.spatial.distance
from flax import linen, nnx
from sklearn.neighbors import KernelDensity

from sharpjax import geometry, tree
from sharpjax.errors import UserError
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.layerwise.data_free import (
    SCALE_FREE,
    WEIGHTWATCHER,
    Convention,
    Metrics,
    Status,
    as_rich,
    as_text,
    data_free,
    eigenvalues,
    goodness_of_fit,
    layer_eigenvalues,
    marchenko_pastur,
    norms,
    power_law,
    randomised,
)
from sharpjax.layerwise.data_free.eigenvalues import moments
from sharpjax.nn import svd
from tests.problems import columns


def matrices():
    rng = np.random.default_rng(0)
    return rng.standard_t(3, (120, 80)) * 0.1, rng.standard_t(3, (32, 24, 3, 3)) * 0.1


DENSE, CONVOLUTION = matrices()
FACTORS = {"U": np.ones((30, 20)), "s": np.ones(20), "Vt": np.ones((19, 5))}
NETWORK = {"c": {"kernel": CONVOLUTION.transpose(2, 3, 1, 0)}, "d": {"kernel": DENSE}}


def plain_fit(values):
    """Clauset's fit, one candidate after the other."""
    x = np.sort(values)
    best = (np.inf,) * 4
    for i in range(len(x) - 1):
        m, logs = len(x) - i, np.log(x[i:] / x[i])
        if logs.sum() > 0:
            alpha = 1 + m / logs.sum()
            distance = np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(m) / m).max()
            if distance < best[0]:
                best = distance, alpha, x[i], m
    return best


# Against WeightWatcher.

# WeightWatcher 0.7.7 on these two layers, dense and convolution.
FROZEN = {
    "alpha": (3.7903908223310183, 3.472710871761994),
    "D": (0.07356177176205364, 0.07684404366140218),
    "xmin": (6.387627380543412, 0.845058422946702),
    "log_norm": (2.4543757637, 2.0031337519688632),
    "alpha_weighted": (5.255993471163478, 2.090129636768576),
    "log_alpha_norm": (5.424612581010878, 2.4558216628269904),
    "stable_rank": (11.687270350532806, 25.191911315368287),
    "entropy": (0.8956318777855142, 0.9022798216974505),
    "matrix_rank": (80, 216),
    "detX_num": (59, 155),
    "num_pl_spikes": (14, 40),
    "sigma_mp": (0.98818, None),
    "mp_softrank": (0.470722, None),
    "num_spikes": (2, None),
}


def test_columns_of_weightwatcher(key):
    table = data_free(NETWORK, convention=WEIGHTWATCHER, key=key)
    assert table.names == ("c/kernel", "d/kernel")
    assert table.num_evals.tolist() == [216, 80] and table.Q.tolist() == [32 / 24, 1.5]
    for name, (dense, convolution) in FROZEN.items():
        column = getattr(table.metrics, name)
        tolerance = 1e-5 if name == "sigma_mp" else 1e-6  # as many digits as were frozen
        np.testing.assert_allclose(column[1], dense, rtol=tolerance, err_msg=name)
        if convolution is not None:
            np.testing.assert_allclose(column[0], convolution, rtol=1e-6, err_msg=name)
    m = table.metrics
    np.testing.assert_allclose(m.sigma[1], (FROZEN["alpha"][0] - 1) / math.sqrt(14), rtol=1e-9)
    np.testing.assert_allclose(m.ww_softrank, m.max_rand_eval / m.spectral_norm, rtol=1e-12)
    np.testing.assert_allclose(m.ww_maxdist, m.spectral_norm - m.max_rand_eval, rtol=1e-9)


@pytest.mark.parametrize("shape", [(30, 20), (24, 24)])
def test_density_fit_is_that_of_scipy(x64, shape):
    w = np.random.default_rng(1).normal(size=shape)
    values = np.sort(np.linalg.svd(w, compute_uv=False) ** 2)
    shortest, longest = sorted(shape)
    root = math.sqrt(shortest / longest)
    scaled = values / values.mean()
    sample = np.sqrt(scaled) if root == 1 else scaled
    x = np.linspace(0, sample.max() + 0.5, 1000)
    kde = KernelDensity(kernel="linear", bandwidth=0.1).fit(sample[:, None])
    y = np.exp(kde.score_samples(x[:, None]))
    x, y = x[y > 0.01], y[y > 0.01]

    def loss(sigma):
        sigma = float(np.squeeze(sigma))
        with np.errstate(all="ignore"):
            if root == 1:
                law = np.nan_to_num(np.sqrt(4 - x**2) / (np.pi * sigma**2))
                return np.sum((law - y) ** 2)
            low, high = (sigma * (1 - root)) ** 2, (sigma * (1 + root)) ** 2
            law = np.sqrt((high - x) * (x - low)) / (2 * np.pi * sigma**2 * x * root**2)
        mode = x[np.argmax(y)]
        if high < mode or high > x.max() or low > mode:
            return 1e6 * len(x)
        return np.sum((np.nan_to_num(law, posinf=0) - y) ** 2)

    first = math.sqrt(scaled[-1]) / (1 + root)
    grid = (slice(0.05 * first, 2 * first, 0.01 * first),)
    expected = float(np.squeeze(scipy.optimize.brute(loss, grid)))
    bulk = marchenko_pastur.fit_density(jnp.array(values), longest=longest, shortest=shortest)
    np.testing.assert_allclose(bulk.sigma_mp, expected, rtol=1e-6)
    np.testing.assert_allclose(bulk.mp_softrank, (expected * (1 + root)) ** 2 / scaled[-1])


def test_the_distance_to_a_shuffled_layer(key):
    table = data_free({"kernel": DENSE}, key=key)
    again = jax.random.split(jax.random.fold_in(jax.random.split(
        jax.random.fold_in(key, 0), 1)[0], 0), 1)  # fmt: skip
    with jax.enable_x64(True):
        mixed = jax.random.permutation(again[0], jnp.asarray(DENSE).ravel()).reshape(DENSE.shape)
    sorted_values = [np.sort(np.linalg.svd(w, compute_uv=False)) ** 2 for w in (DENSE, mixed)]
    expected = scipy.spatial.distance.jensenshannon(*sorted_values)
    np.testing.assert_allclose(table.metrics.rand_distance, expected, rtol=1e-9)
    other = data_free({"kernel": DENSE}, key=jax.random.key(1)).metrics
    assert other.rand_distance != table.metrics.rand_distance
    assert other.alpha == table.metrics.alpha


# The power law.


@pytest.mark.parametrize("kind", ["pareto", "gaussian", "ties", "lognormal"])
def test_fit_is_that_of_plain_numpy(x64, kind):
    rng = np.random.default_rng(2)
    values = {
        "pareto": lambda: rng.pareto(1.5, 150) + 1,
        "gaussian": lambda: np.linalg.svd(rng.normal(size=(150, 160)), compute_uv=False) ** 2,
        "ties": lambda: rng.integers(1, 12, 150).astype(float),
        "lognormal": lambda: np.exp(rng.normal(size=150)),
    }[kind]()
    found = power_law.fit(jnp.array(values))
    distance, alpha, xmin, m = plain_fit(values)
    np.testing.assert_allclose(found.D, distance, rtol=1e-9)
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-9)
    assert found.xmin == xmin and found.num_tail == (values >= xmin).sum()
    np.testing.assert_allclose(found.sigma, (alpha - 1) / math.sqrt(m), rtol=1e-9)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_quantiles_of_a_pareto_law(x64, alpha):
    """Of m quantiles (1 - j / m)^(1 / (1 - alpha)) the estimate is known in closed form."""
    x = 5 * (1 - np.arange(150) / 150) ** (1 / (1 - alpha))
    found = power_law.fit(jnp.array(x))
    m = int(found.num_tail)
    expected = 1 + (alpha - 1) * m / (m * math.log(m) - math.lgamma(m + 1))
    np.testing.assert_allclose(found.alpha, expected, rtol=1e-9)
    assert abs(found.alpha - alpha) < 3 * found.sigma


def test_what_is_left_out(x64):
    x = jnp.array(np.random.default_rng(3).pareto(2, 150) + 1)
    found = power_law.fit(x)
    mixed = x.at[:3].set(jnp.array([jnp.nan, 0.0, 0.5]))
    least = power_law.fit(mixed, 0.7)
    assert least.num_kept == 147
    np.testing.assert_allclose(least.alpha, power_law.fit(x[3:]).alpha, rtol=1e-12)
    batch = jax.vmap(power_law.fit)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batch.alpha, [found.alpha] * 2, rtol=1e-9)
    equal = power_law.fit(jnp.full(150, 2.0))
    assert jnp.isnan(equal.alpha) and equal.num_tail == 0 and equal.num_kept == 150


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(key, dtype):
    x = jnp.array((1 - (np.arange(200) + 0.5) / 200) ** -0.5).astype(dtype)
    wide = x.astype(jnp.float32)
    assert power_law.fit(x) == power_law.fit(wide) and power_law.fit(x).num_tail > 100
    assert power_law.hill(x, 20) == power_law.hill(wide, 20)
    p = [goodness_of_fit(key, v, num_samples=20).p_value for v in (x, wide)]
    assert p[0] == p[1]
    w = jax.random.normal(key, (2, 20, 12)).astype(dtype)
    values = [eigenvalues(v) for v in (w, w.astype(jnp.float32))]
    assert values[0].dtype == jnp.float32 and jnp.array_equal(*values)
    assert all(map(jnp.array_equal, randomised(key, w), randomised(key, w.astype(jnp.float32))))
    half = values[0].astype(dtype)
    for bulk in (marchenko_pastur.fit_median, marchenko_pastur.fit_density):
        laws = [bulk(v, longest=20, shortest=12) for v in (half, half.astype(jnp.float32))]
        assert laws[0] == laws[1] and jnp.isfinite(laws[0].sigma_mp)


def test_hill(x64):
    x = jnp.exp(jnp.arange(6.0))
    np.testing.assert_allclose(power_law.hill(x, 2), 1 + 2 / 3)
    assert power_law.hill(jnp.ones(4), 2) == jnp.inf
    assert jnp.isnan(power_law.hill(jnp.zeros(4), 2))


def test_goodness_of_fit(x64, key):
    steps = jnp.array(2.0 ** np.repeat(np.arange(8), 2 ** np.arange(7, -1, -1))[:150])
    assert goodness_of_fit(key, steps, num_samples=60).p_value == 1 / 61
    x = jnp.array((1 - (np.arange(150) + 0.5) / 150) ** -0.5)
    found = goodness_of_fit(key, x, num_samples=60)
    assert found.p_value > 0.5  # nearer than samples are
    alpha = float(power_law.fit(x).alpha)
    ratios = np.quantile((np.asarray(found.alphas) - 1) / (alpha - 1), [0.025, 0.975])
    np.testing.assert_allclose(found.alpha_high, 1 + (alpha - 1) / ratios[0], rtol=1e-9)
    np.testing.assert_allclose(found.alpha_low, 1 + (alpha - 1) / ratios[1], rtol=1e-9)
    scaled = goodness_of_fit(key, 7 * x, num_samples=60)
    np.testing.assert_allclose(scaled.alphas, found.alphas, rtol=1e-6)
    none = goodness_of_fit(key, jnp.ones(150), num_samples=60)
    assert jnp.isnan(none.p_value) and jnp.isnan(none.alpha_low)


# What moves the metrics.


SCALED = (
    *("alpha", "D", "stable_rank", "entropy", "matrix_rank", "mp_softrank", "num_spikes"),
    *("effective_rank", "hill", "kurtosis", "detX_num", "sigma_mp"),
)


def test_weights_whose_squares_leave_float64(key):
    """Of 1e90 W all is as of W; of 1e160 W nothing is, and no layer is said to be 0."""
    rows = {f"{c:g}": c * DENSE for c in (1, 1e90, 1e-90, 1e160, 1e-170)}
    table = data_free(rows, key=key, num_samples=20)
    found = {n: Status(s).name for n, s in zip(table.names, table.status, strict=True)}
    assert {n for n, s in found.items() if s == "OK"} == {"1", "1e+90", "1e-90"}
    assert {n for n, s in found.items() if s == "OUT_OF_RANGE"} == {"1e+160", "1e-170"}
    once = table.names.index("1")
    for i, name in enumerate(table.names):
        for column, values in table.metrics._asdict().items():
            if found[name] != "OK":
                assert np.isnan(values[i]), column
            elif column in SCALED:
                np.testing.assert_allclose(values[i], values[once], rtol=1e-9, err_msg=column)
    values = layer_eigenvalues(rows)
    assert {n for n, v in values.items() if np.isfinite(v).all()} == {"1", "1e+90", "1e-90"}
    assert np.isnan(values["1e+160"]).all() and np.isnan(values["1e-170"]).all()
    assert "out of range" in as_text(table)


OF_THE_BULK = ("sigma_mp", "bulk_min", "bulk_max", "num_spikes", "mp_softrank", "hill")


@pytest.mark.parametrize("convention", [SCALE_FREE, Convention(floor=1e-5)])
def test_what_is_dead_is_no_part_of_the_law(convention):
    """Units and inputs of zeros, of the shorter and the longer side, directions that are not
    there, and places of a window: the law, its spikes and Hill's estimate are of what is left."""
    rng = np.random.default_rng(8)
    w, wide = rng.normal(size=(100, 60)), rng.normal(size=(40, 90))
    conv = rng.normal(size=(3, 2, 12, 16))
    dead = np.pad(conv, ((0, 0), (0, 1), (0, 0), (0, 9)))
    dead[:, :, 3:8] = 0
    pairs = {
        "units": (w[:, :33], np.where(np.arange(60) < 33, w, 0)),
        "padding": (w, np.pad(w, ((0, 0), (0, 40)))),
        "longer": (wide, np.pad(wide, ((0, 0), (0, 90)))),
        "inputs": (w[:70], np.where(np.arange(100)[:, None] < 70, w, 0)),
        "both": (wide[:, :30], np.where(np.arange(90) < 30, wide, 0)),
        "directions": (w[:, :33], w[:, :33] @ np.linalg.qr(rng.normal(size=(60, 33)))[0].T),
        "window": (np.delete(conv, range(3, 8), axis=2), dead),
    }
    for name, (live, padded) in pairs.items():
        ours, own = (
            data_free({"kernel": kernel}, convention=convention).metrics
            for kernel in (padded, live)
        )
        for column in OF_THE_BULK if convention.floor is None else OF_THE_BULK[:-1]:
            np.testing.assert_allclose(
                getattr(ours, column), getattr(own, column), rtol=1e-8, err_msg=f"{name} {column}"
            )


def test_scale():
    once, scaled = (data_free({"kernel": c * DENSE}).metrics for c in (1, 1e-4))
    shift = 2 * math.log10(1e-4)
    for name in ("alpha", "D", "stable_rank", "entropy", "matrix_rank", "mp_softrank",
                 "num_spikes", "effective_rank", "hill", "kurtosis", "detX_num"):  # fmt: skip
        np.testing.assert_allclose(
            getattr(scaled, name), getattr(once, name), rtol=1e-9, err_msg=name
        )
    for name in ("log_norm", "log_spectral_norm"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(once, name) + shift)
    for name in ("alpha_weighted", "log_alpha_norm"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(once, name) + once.alpha * shift)
    absolute = data_free({"kernel": 1e-4 * DENSE}, convention=WEIGHTWATCHER)
    assert Status(absolute.status[0]) == Status.LOW_RANK


def test_transposed_and_permuted():
    rng = np.random.default_rng(4)
    mixed = DENSE.T[rng.permutation(80)][:, rng.permutation(120)]
    found, other = (data_free({"kernel": w}).metrics for w in (DENSE, mixed))
    np.testing.assert_allclose(found, other, rtol=1e-9)


def test_rescaled_units_keep_the_function_and_move_alpha():
    """ReLU units of a layer scaled by c and the next layer by 1 / c: alpha 3.83 becomes 1.55."""
    rng = np.random.default_rng(5)
    net = {"a": rng.normal(size=(150, 80)), "b": rng.normal(size=(80, 10))}
    c = np.exp(np.linspace(-3, 3, 80))
    scaled = {"a": net["a"] * c, "b": net["b"] / c[:, None]}
    x = rng.normal(size=(4, 150))

    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    with jax.enable_x64(True):
        np.testing.assert_allclose(apply(net, x), apply(scaled, x), rtol=1e-9)
        paths = [norms.path_norm(apply, p, x[:1]) for p in (net, scaled)]
        np.testing.assert_allclose(paths[0], paths[1], rtol=1e-9)
    before, after = (
        data_free(p, layers="a", convention=WEIGHTWATCHER).metrics for p in (net, scaled)
    )
    for w, found in ((net["a"], before), (scaled["a"], after)):
        values = np.linalg.svd(w, compute_uv=False) ** 2
        np.testing.assert_allclose(found.alpha, plain_fit(values)[1], rtol=1e-6)
    np.testing.assert_allclose([before.alpha[0], after.alpha[0]], [3.82834, 1.54679], rtol=1e-5)


LEFT_OUT = {
    "layer": {"xmin", "bulk_min", "bulk_max", "detX_val", "alpha_weighted", "log_alpha_norm"},
    "rotation": {"kurtosis"},
    "padding": {"kurtosis", "rank_loss", "weak_rank_loss", "sv_min", "condition_number",
                "detX_num", "detX_val"},
}  # fmt: skip
NORMS = {"norm", "log_norm", "spectral_norm", "log_spectral_norm", "xmax", "sv_max", "sv_min",
         "nuclear_norm"}  # fmt: skip


def test_columns_that_the_table_leaves_out():
    """Of docs/layers.md: of the columns of eigenvalues and entries these move, and no other."""
    rng = np.random.default_rng(10)
    w = rng.standard_t(3, (100, 60))
    changed = {
        "layer": 3 * w,
        "rotation": w @ np.linalg.qr(rng.normal(size=(60, 60)))[0],
        "padding": np.pad(w, ((0, 0), (0, 30))),
    }
    before = data_free({"kernel": w}).metrics._asdict()
    for name, kernel in changed.items():
        after = data_free({"kernel": kernel}).metrics._asdict()
        moved = {
            column
            for column, value in before.items()
            if not np.isclose(after[column][0], value[0], rtol=1e-7, equal_nan=True)
        }
        assert moved == LEFT_OUT[name] | (NORMS if name == "layer" else set()), name


# Random matrices.


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_marchenko_pastur_law(x64, ratio):
    a, b = marchenko_pastur.edges(ratio, 2.0)

    def at(t):  # x = a + (b - a) t^2, so that the integrand is bounded
        x = a + (b - a) * t**2
        return float(marchenko_pastur.density(jnp.array(x), ratio, 2.0)) * 2 * (b - a) * t

    np.testing.assert_allclose((a, b), (4 * (1 - ratio**0.5) ** 2, 4 * (1 + ratio**0.5) ** 2))
    middle = ((4 * marchenko_pastur.median(ratio) - a) / (b - a)) ** 0.5
    np.testing.assert_allclose(scipy.integrate.quad(at, 0, 1, epsabs=1e-7)[0], 1, atol=1e-5)
    np.testing.assert_allclose(scipy.integrate.quad(at, 0, middle)[0], 0.5, atol=1e-5)


def test_a_spike_in_a_random_matrix(key):
    """A spike theta u v' of a matrix of variance 1 / N puts an eigenvalue at
    (1 + theta^2) (q + theta^2) / theta^2 (Benaych-Georges and Nadakuditi, arXiv 1103.2221)."""
    n, m, theta = 240, 120, 3.0
    noise = np.asarray(jax.random.normal(key, (n, m))) / math.sqrt(n)
    u, v = (np.asarray(jax.random.normal(jax.random.fold_in(key, i), (k,))) for i, k in
            ((1, n), (2, m)))  # fmt: skip
    spike = theta * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    rows = data_free({"noise": noise, "spiked": noise + spike}).metrics
    # Beside a spike the others are as those of noise with a direction less. One is above in some
    # per cent of matrices (`fit_median`). Two are in few of 10,000: by the law of Tracy and Widom
    # the second lies at -3.3 +- 1.0, and the threshold at 2.02.
    assert rows.num_spikes[0] <= 1 <= rows.num_spikes[1] <= 2
    expected = (1 + theta**2) * (0.5 + theta**2) / theta**2
    # Its standard deviation is of the order theta / sqrt(n) = 0.2.
    assert abs(rows.spectral_norm[1] - expected) < 6 * theta / math.sqrt(n)
    # The median of m eigenvalues is known to within 1 / m or so.
    np.testing.assert_allclose(rows.sigma_mp[0], 1, atol=0.1)
    np.testing.assert_allclose(rows.spectral_norm[0], (1 + 0.5**0.5) ** 2, atol=0.35)
    assert rows.mp_softrank[0] > 0.85 > rows.mp_softrank[1]
    # ||W||^2 is m (1 +- sqrt(2 / (n m))), here to 5 of these; the largest eigenvalue b + c T with
    # c of Johnstone and T between -7 and 6 but for one matrix in a million (Tracy and Widom).
    edge, norm = (1 + 0.5**0.5) ** 2, 5 * math.sqrt(2 / (n * m))
    c = (math.sqrt(n) + math.sqrt(m)) * (n**-0.5 + m**-0.5) ** (1 / 3) / n
    law = m / edge
    assert law * (1 - norm) < rows.stable_rank[0] * (1 + 6 * c / edge)
    assert law * (1 + norm) > rows.stable_rank[0] * (1 - 7 * c / edge)


def test_a_product_of_very_many_eigenvalues(x64):
    """The shortest upper part whose product is below 1, where the product itself leaves float64."""
    values = np.sort(np.random.default_rng(0).gamma(0.3, size=20_000))
    scaled = values / values.mean()
    found = moments(jnp.asarray(values), longest=20_000, eps=1e-15)
    num = int(found["detX_num"])
    logs = math.fsum(np.log(scaled[-num:])), math.fsum(np.log(scaled[1 - num :]))
    assert np.prod(scaled[1 - num :]) == 0  # from the least upwards, as WeightWatcher does
    # A sum of n logarithms, the largest on the way 5,010, is right within n u times that: 1.1e-8.
    sums = np.cumsum(np.log(scaled[::-1]))
    bound = len(values) * np.finfo(float).eps / 2 * sums.max()
    assert logs[0] < bound and logs[1] > -bound
    assert found["detX_val"] == values[-num]


def test_a_spike_is_one_more_than_there_were(key):
    """For any directions u, v of a spike theta u v', and singular values s that are those of the
    law: theta - s_1 is beyond the threshold by far. All other values lie between neighbours of
    their old ones (interlacing), so s_1 bounds the second, and the median, hence the threshold,
    moves by one place at the most."""
    n, m, theta = 240, 120, 10.0
    x = np.linspace(*marchenko_pastur.edges(m / n), 100_000)
    mass = np.cumsum(np.asarray(marchenko_pastur.density(jnp.array(x), m / n)))
    s = np.sqrt(np.interp((np.arange(m) + 0.5) / m, mass / mass[-1], x))
    left, right, u, v = (
        np.linalg.qr(np.asarray(jax.random.normal(jax.random.fold_in(key, i), shape)))[0]
        for i, shape in enumerate([(n, m), (m, m), (n, 1), (m, 1)])
    )
    bulk = left * s @ right
    rows = data_free({"bulk": bulk, "spiked": bulk + theta * u @ v.T}).metrics
    assert rows.num_spikes.tolist() == [0, 1]
    least, most = (s[i] ** 2 / marchenko_pastur.median(m / n) for i in (m // 2 - 2, m // 2 + 1))
    centre = (math.sqrt(n) + math.sqrt(m)) ** 2 / n
    assert s[-1] ** 2 < least * centre and most * centre * 1.1 < (theta - s[-1]) ** 2


# Norms.


PIXELS = jnp.ones((3, 3, 1, 4))


def dense_matrix(kernel, size, mode, groups=1):
    channels = kernel.shape[2] * groups
    eye = np.eye(size * size * channels).reshape(-1, size, size, channels)
    lhs = np.pad(eye, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    out = jax.lax.conv_general_dilated(
        lhs,
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return np.asarray(out).reshape(len(eye), -1)


def test_spectral_norm_of_a_convolution(x64, key):
    kernel = jax.random.normal(key, (3, 3, 2, 3), jnp.float64)
    found = norms.convolution_norm(kernel, 4)
    expected = np.linalg.norm(dense_matrix(kernel, 4, "wrap"), 2)
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)
    assert found.exact
    zeros = norms.convolution_norm(kernel, 4, padding="zeros")
    assert not zeros.exact
    assert zeros.value >= np.linalg.norm(dense_matrix(kernel, 4, "constant"), 2)
    assert not norms.convolution_norm(kernel, 4, stride=2).exact


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 3, 1, 4), 4), ((3, 3, 1, 6), 3), ((3, 3, 2, 6), 2), ((3, 3, 3, 4), 1)],
)
def test_spectral_norm_of_a_grouped_convolution(x64, key, shape, groups):
    """Depthwise, with a multiplier, in groups: against the matrix of the map."""
    kernel = jax.random.normal(key, shape, jnp.float64)
    for size in (4, np.int64(4), (4, 4), np.array([4, 4])):
        found = norms.convolution_norm(kernel, size, groups=groups)
        expected = np.linalg.norm(dense_matrix(kernel, 4, "wrap", groups), 2)
        np.testing.assert_allclose(found.value, expected, rtol=1e-9)
        assert found.exact
    zeros = norms.convolution_norm(kernel, 4, padding="zeros", groups=groups)
    exact = np.linalg.norm(dense_matrix(kernel, 4, "constant", groups), 2)
    assert not zeros.exact and zeros.value >= exact * (1 - 1e-9)
    strided = norms.convolution_norm(kernel, 4, stride=2, groups=groups)
    assert not strided.exact and strided.value == norms.convolution_norm(
        kernel, 4, groups=groups
    ).value  # fmt: skip


def test_spectral_norm_of_a_kernel_of_any_size_and_type(key):
    """c K has c times the norm, in the type of K. It is at most 3 ||K||_F, and float16 rounds
    each entry by a relative 2^-11."""
    kernel = np.asarray(jax.random.normal(key, (3, 3, 2, 2)), np.float64)
    norm = float(norms.convolution_norm(kernel, 5).value)
    for factor in (1e-300, 1e300):
        found = norms.convolution_norm(factor * kernel, 5).value
        assert found.dtype == np.float64 and float(found) == pytest.approx(factor * norm, rel=1e-9)
    half = norms.convolution_norm(kernel.astype(np.float16), 5).value
    assert half.dtype == np.float32
    assert abs(float(half) - norm) <= 3 * (2.0**-11 + 1e-5) * np.linalg.norm(kernel)
    near = kernel / np.abs(kernel).max() * 3e38
    with pytest.raises(UserError, match="too large for float32"):
        norms.convolution_norm(near.astype(np.float32), 5)
    inside = jax.jit(jax.vmap(lambda k: norms.convolution_norm(k, 5).value))
    both = inside(jnp.stack([jnp.asarray(kernel), jnp.full(kernel.shape, jnp.inf)]))
    assert float(both[0]) == pytest.approx(norm, rel=1e-5) and np.isnan(both[1])


def test_norms_of_layers():
    start = jax.tree.map(np.zeros_like, NETWORK)
    found = norms.norms(NETWORK, start)
    np.testing.assert_allclose(found.frobenius[1], np.linalg.norm(DENSE), rtol=1e-6)
    np.testing.assert_allclose(found.spectral[1], np.linalg.norm(DENSE, 2), rtol=1e-6)
    np.testing.assert_allclose(found.from_start, found.frobenius, rtol=1e-6)
    np.testing.assert_allclose(found.totals()["sum_frobenius"], tree.norm(NETWORK) ** 2, rtol=1e-5)
    assert np.isnan(norms.norms(NETWORK).from_start).all()


def test_norms_of_odd_layers(capfd):
    odd = {
        "empty": {"kernel": np.ones((5, 0))},
        "huge": {"kernel": 1e200 * DENSE},
        "infinite": {"kernel": np.full((3, 3), np.inf)},
        "nan": {"kernel": np.full((3, 3), np.nan)},
        "tiny": {"kernel": 1e-200 * DENSE},
        "zero": {"kernel": np.zeros((3, 2))},
        "bias": np.ones(3),
    }
    found = norms.norms(odd, odd, where="*")
    assert found.names == tuple(f"{name}/kernel" for name in sorted(odd) if name != "bias")
    fro, top = np.linalg.norm(DENSE), np.linalg.norm(DENSE, 2)
    nan = np.nan
    np.testing.assert_allclose(
        found.frobenius, [0, 1e200 * fro, nan, nan, 1e-200 * fro, 0], rtol=1e-12
    )
    np.testing.assert_allclose(
        found.spectral, [0, 1e200 * top, nan, nan, 1e-200 * top, 0], rtol=1e-12
    )
    np.testing.assert_allclose(found.ratio, [nan, fro / top, nan, nan, fro / top, nan], rtol=1e-12)
    np.testing.assert_array_equal(found.from_start, [0, 0, nan, nan, 0, 0])
    assert capfd.readouterr() == ("", "")


def relu(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]


def small_net(key, bias=1.0):
    """Squares of what goes into a unit sum to 1/2, and that of its bias is added."""
    one, two = jax.random.split(key)
    up, down = jax.random.normal(one, (6, 8)), jax.random.normal(two, (8, 3))
    up = up / jnp.linalg.norm(up, axis=0) / math.sqrt(2)
    return {"up": up, "bias": jnp.full(8, bias), "down": down}


@pytest.mark.parametrize("bias", [0.0, 0.1, 9.0])
@pytest.mark.parametrize(
    "activation", [jnp.tanh, jax.nn.gelu, jax.nn.sigmoid, jax.nn.softplus, jnp.square]
)
def test_path_norm_of_other_networks(key, bias, activation):
    """Also where biases saturate all units. At 81, GELU and softplus are a ReLU to 1e-9."""

    def apply(params, x):
        return activation(x @ params["up"] + params["bias"]) @ params["down"]

    params, x = small_net(key, bias), jnp.ones((1, 6))
    if bias == 9.0 and activation in (jax.nn.gelu, jax.nn.softplus):
        value = norms.path_norm(apply, params, x)
        np.testing.assert_allclose(value, norms.path_norm(relu, params, x), rtol=1e-3)
        return
    with pytest.raises(UserError, match="path_norm: the outputs .* no sum over paths"):
        norms.path_norm(apply, params, x)


@pytest.mark.parametrize("last", [jax.nn.softmax, jax.nn.log_softmax])
def test_path_norm_of_other_outputs(key, last):
    with pytest.raises(UserError, match="path_norm: the outputs .* no sum over paths"):
        norms.path_norm(lambda p, x: last(relu(p, x)), small_net(key), jnp.ones((1, 6)))


def test_path_norm_of_all_types(key, recwarn):
    """Against the sum in numpy: of 6 * 8 * 3 paths and 8 * 3 from biases, terms above 0, so each of
    some 20 roundings counts once."""
    params = small_net(key)
    for dtype, factor in ((np.float16, 30.0), (np.float32, 1.0), (np.float64, 1.0)):
        own = jax.tree.map(lambda x: np.asarray(factor * x, dtype), params)  # noqa: B023
        u, b, d = (np.square(own[name].astype(np.float64)) for name in ("up", "bias", "down"))
        expected = math.sqrt(np.sum((u.sum(0) + b) @ d))
        for example in (np.ones((1, 6)), jax.ShapeDtypeStruct((1, 6), jnp.float16)):
            value = norms.path_norm(relu, own, example)
            assert float(value) == pytest.approx(expected, rel=20 * 2.0**-24)
    assert not recwarn.list
    inside = jax.jit(lambda p: norms.path_norm(relu, p, jnp.ones((1, 6))))(params)
    np.testing.assert_allclose(inside, norms.path_norm(relu, params, jnp.ones((1, 6))), rtol=1e-6)
    dead = {**params, "down": jnp.zeros((8, 3))}
    assert norms.path_norm(relu, dead, jnp.ones((1, 6))) == 0
    for factor, says in ((1e-30, "too small for float32"), (1e-12, "too small"), (1e19, "finite")):
        scaled = jax.tree.map(lambda x: factor * x, {**params, "bias": jnp.zeros(8)})  # noqa: B023
        with pytest.raises(UserError, match=says):
            norms.path_norm(relu, scaled, jnp.ones((1, 6)))


# Trees.


def test_a_convolution_of_one_pixel_is_a_dense_layer():
    kernels = {"c": {"kernel": DENSE[None, None]}, "d": {"kernel": DENSE}}
    own, theirs = (data_free(kernels, convention=c) for c in (SCALE_FREE, WEIGHTWATCHER))
    assert own.kinds == ("convolution", "dense")
    assert own.metrics.norm[0] == own.metrics.norm[1]
    np.testing.assert_allclose(theirs.metrics.norm[0], theirs.metrics.norm[1] / 2)
    np.testing.assert_allclose(theirs.metrics.alpha[0], theirs.metrics.alpha[1], rtol=1e-9)


def test_attention_embeddings_and_states_of_nnx():
    layer = linen.MultiHeadDotProductAttention(2)
    params = jax.tree.map(
        lambda s: np.random.default_rng(0).normal(size=s.shape),
        jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 3, 12)))["params"],
    )
    params["tokens"] = {"embedding": np.ones((7, 12))}
    params["cnn"] = {"kernel": np.ones((3, 2, 4))}
    table = data_free(params)
    kinds = dict(zip(table.names, table.kinds, strict=True))
    assert kinds.pop("tokens/embedding") == "embedding"
    assert kinds.pop("cnn/kernel") == "convolution"
    assert len(kinds) == 4 and set(kinds.values()) == {"attention"}
    assert set(table.num_evals[[n in kinds for n in table.names]]) == {12}
    bare = jax.tree.map(lambda x: x, params)
    for name in ("query", "key", "value", "out"):
        del bare[name]["bias"]
    assert data_free(bare).kinds == table.kinds
    state = nnx.state(nnx.Linear(12, 14, rngs=nnx.Rngs(0)), nnx.Param)
    states = data_free(state)
    assert states.kinds == ("dense",) and states.status.tolist() == [Status.OK]


def test_factors_and_populations():
    params = {"kernel": DENSE.astype(np.float32)}
    factors = svd.decompose(params, 0.5)
    table, merged = data_free(factors), data_free(svd.merge(factors))
    assert table.names == ("kernel",) and table.metrics.matrix_rank == 40
    np.testing.assert_allclose(table.metrics.alpha, merged.metrics.alpha, rtol=1e-3)
    both = tree.stack([{"kernel": DENSE}, {"kernel": DENSE**3}])
    members = data_free(both, population=True)
    assert members.metrics.alpha.shape == (2, 1)
    for i, power in enumerate((1, 3)):
        alone = data_free({"kernel": (DENSE.astype(np.float32) ** power)}).metrics
        np.testing.assert_allclose(members.metrics.alpha[i], alone.alpha, rtol=1e-3)


def test_members_of_a_population_are_rows_of_their_own(key):
    """Three checkpoints of two layers of one shape, one batch: each has the numbers that it has
    alone, and is shuffled by the key of its layer and, of that, of its checkpoint."""
    rng = np.random.default_rng(7)
    states = [{name: rng.standard_t(3, (30, 20)) for name in ("a", "b")} for _ in range(3)]
    stacked = {name: np.stack([state[name] for state in states]) for name in ("a", "b")}
    table = data_free(stacked, population=True, key=key)
    assert table.names == ("a", "b") and table.status.shape == (3, 2)
    drawn = ("max_rand_eval", "rand_distance", "ww_softrank", "ww_maxdist")
    for i, state in enumerate(states):
        member, alone = table.member(i), data_free(state)
        np.testing.assert_array_equal(member.status, alone.status)
        for name, column in alone.metrics._asdict().items():
            if name not in drawn:
                own = getattr(member.metrics, name)
                np.testing.assert_allclose(own, column, rtol=1e-9, err_msg=name)
        for j, w in enumerate(state.values()):
            own = jax.random.split(jax.random.fold_in(key, j), 3)[i]
            (shuffle,) = jax.random.split(jax.random.fold_in(own, 0), 1)
            with jax.enable_x64(True):
                mixed = jax.random.permutation(shuffle, jnp.asarray(w).ravel()).reshape(w.shape)
            values = [np.sort(np.linalg.svd(x, compute_uv=False)) ** 2 for x in (w, mixed)]
            expected = scipy.spatial.distance.jensenshannon(*values)
            np.testing.assert_allclose(table.metrics.rand_distance[i, j], expected, rtol=1e-9)
            np.testing.assert_allclose(member.metrics.max_rand_eval[j], values[1][-1], rtol=1e-9)


def test_curvature_of_layers_stands_beside_what_their_weights_say(x64):
    """By the names of the table. Of the mean of |x A B|^2 / 2 the block of B is A'x'x A / n for
    each of its 11 columns, and the trace of that of A is that of x'x / n times |B|^2."""
    rng = np.random.default_rng(6)
    params = {
        "a": {"kernel": jnp.array(rng.normal(size=(14, 12)))},
        "b": {"kernel": jnp.array(rng.normal(size=(12, 11)))},
    }
    x = jnp.array(rng.normal(size=(5, 14)))

    def loss(p, x):
        return jnp.mean(jnp.sum((x @ p["a"]["kernel"] @ p["b"]["kernel"]) ** 2, axis=1)) / 2

    table = data_free(params)
    blocks = geometry.layers(geometry.hessian(loss, params, x), table.names)
    assert tuple(blocks) == table.names
    traces = [np.trace(columns(linearize(block), block.like)) for block in blocks.values()]
    hidden = x @ params["a"]["kernel"]
    np.testing.assert_allclose(traces[0], jnp.sum(x**2) / 5 * table.metrics.norm[1], rtol=1e-9)
    np.testing.assert_allclose(traces[1], 11 * jnp.sum(hidden**2) / 5, rtol=1e-9)


# Layers without numbers.


@pytest.mark.parametrize("convention", [SCALE_FREE, WEIGHTWATCHER])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.float64])
def test_equal_eigenvalues_differ_by_the_rounding_of_the_weights(convention, dtype):
    """By Weyl's inequality ln lambda of an orthogonal matrix differ by 2 eps sqrt(M) at the most,
    and by 1.2 eps for independent roundings: no tail. A Gaussian matrix has one in each type."""
    rng = np.random.default_rng(9)
    kernels = {f"{n}": np.linalg.qr(rng.normal(size=(n, m)))[0] for n, m in ((64, 64), (200, 50))}
    kernels |= {"gaussian": rng.normal(size=(200, 50))}
    # Two values, 32 of each: the tails are those of exact eigenvalues, not of their last digits.
    kernels["steps"] = kernels["64"] * np.repeat([1.0, 2.0], 32)
    table = data_free(
        {name: jnp.asarray(w).astype(dtype) if dtype != np.float64 else w
         for name, w in kernels.items()},
        convention=convention,
    )  # fmt: skip
    found = dict(zip(table.names, table.status, strict=True))
    names = {name: Status(status).name for name, status in found.items()}
    assert names == {"64": "NO_TAIL", "200": "NO_TAIL", "gaussian": "OK", "steps": "OK"}
    columns = {name: {c: v[i] for c, v in table.metrics._asdict().items()}
               for i, name in enumerate(table.names)}  # fmt: skip
    assert columns["64"]["hill"] == columns["200"]["hill"] == np.inf
    expected = plain_fit(np.repeat([1.0, 4.0], 32))[1]
    # 1 / (alpha - 1) is a mean of ln(x / xmin), each right within 4 eps sqrt(M) (s is 1 beside 2).
    wrong = 4 * float(jnp.finfo(dtype).eps) * 8 if dtype != jnp.bfloat16 else 0.1
    np.testing.assert_allclose(1 / (columns["steps"]["alpha"] - 1), 1 / (expected - 1), atol=wrong)


def test_a_layer_of_two_eigenvalues():
    """Whatever the convention lets through has a row, with what can be said of two numbers."""
    params = {"kernel": np.diag([1.0, 3.0])}
    for convention in (Convention(min_evals=2, min_kept=2), Convention(2.0, 0.0, 2, 2, "density")):
        table = data_free(params, convention=convention, key=jax.random.key(0), num_samples=20)
        assert Status(table.status[0]) == Status.OK
        np.testing.assert_allclose(table.metrics.alpha[0], 1 + 2 / math.log(9))
        assert np.isnan(table.metrics.hill[0])


def test_layers_without_numbers():
    rng = np.random.default_rng(0)
    odd = {
        "bias": np.ones(20),
        "constant": np.ones((120, 80)),
        "identity": np.eye(80, 120),
        "low_rank": DENSE[:, :5] @ DENSE[:5],
        "nan": np.where(DENSE == DENSE[3, 3], np.nan, DENSE),
        "small": rng.normal(size=(9, 40)),
        "small_nan": np.full((3, 3), np.nan),
        "zeros": np.zeros((120, 80)),
        "none": np.ones((0, 4)),
    }
    table = data_free(odd, layers="*")
    found = {n: Status(s).name for n, s in zip(table.names, table.status, strict=True)}
    assert found == {
        "bias": "NOT_A_MATRIX",
        "constant": "LOW_RANK",
        "identity": "NO_TAIL",
        "low_rank": "LOW_RANK",
        "nan": "NOT_FINITE",
        "none": "NOT_A_MATRIX",
        "small": "TOO_FEW",
        "small_nan": "NOT_FINITE",
        "zeros": "LOW_RANK",
    }
    assert np.isnan(table.metrics.alpha).all()
    columns = {
        name: dict(zip(table.names, column, strict=True))
        for name, column in table.metrics._asdict().items()
    }
    for name in ("bias", "nan", "none", "small", "small_nan"):
        assert all(np.isnan(column[name]) for column in columns.values())
    assert columns["stable_rank"]["identity"] == 80 and columns["entropy"]["identity"] == 1
    assert columns["matrix_rank"]["low_rank"] == 5 and columns["matrix_rank"]["constant"] == 1
    assert np.isclose(columns["stable_rank"]["constant"], 1)
    assert np.isnan(columns["mp_softrank"]["low_rank"])  # most eigenvalues are 0: no bulk
    assert columns["norm"]["zeros"] == 0 and np.isnan(columns["stable_rank"]["zeros"])
    text = as_text(table)
    assert "low rank" in text and "not finite" in text and "mean" in text.splitlines()[-1]
    assert as_rich(table).row_count == 10
    values = layer_eigenvalues(odd, layers=["small", "bias"])
    assert list(values) == ["small"] and values["small"].size == 9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: data_free({"b": np.ones(3)}), "holds no matrix, only 'b'"),
        (lambda: data_free({}), "no leaf at all"),
        (lambda: data_free(NETWORK, layers="e/kernel"), "layers: no leaf is named 'e/kernel'"),
        (lambda: data_free({"kernel": np.ones((3, 3), int)}), "data_free: a layer must be"),
        (lambda: data_free(NETWORK, num_samples=50), "give a key"),
        (lambda: data_free(NETWORK, num_samples=5), "20 or more"),
        (lambda: data_free({"a": np.ones((2, 3)), "b": np.ones(4)}, population=True), "stack"),
        (lambda: jax.jit(data_free)({"kernel": jnp.eye(3)}), "while it was traced"),
        (lambda: Convention(min_evals=1), "min_evals"),
        (lambda: Convention(floor=-1.0), "floor"),
        (lambda: Convention(bulk="mean"), "bulk"),  # pyright: ignore[reportArgumentType]
        (lambda: power_law.fit(jnp.ones((2, 2))), "shape (2, 2)"),
        (lambda: power_law.fit(jnp.arange(4)), "floats"),
        (lambda: power_law.fit(jnp.ones(4), floor="x"), "floor='x'"),
        (lambda: power_law.fit(jnp.ones(4), resolution=jnp.ones(4)), "resolution="),
        (lambda: power_law.hill(jnp.ones(4), 4), "from 1 to 3"),
        (lambda: goodness_of_fit(jax.random.key(0), jnp.ones(4), level=2), "level"),
        (lambda: goodness_of_fit(0, jnp.ones(4)), "goodness_of_fit: key"),
        (lambda: data_free(NETWORK, key=0), "data_free: key"),
        (lambda: data_free(NETWORK, key=jax.random.split(jax.random.key(0), 2)), "(2,)"),
        (lambda: data_free(NETWORK, convention="weightwatcher"), "data_free: convention='weight"),
        (lambda: layer_eigenvalues(NETWORK, convention=3), "layer_eigenvalues: convention=3"),
        (lambda: data_free(NETWORK, layers=3), "data_free: layers must be a glob"),
        (lambda: data_free(NETWORK, population="yes"), "data_free: population"),
        (lambda: data_free({"kernel": np.ones((3, 3), complex)}), "complex128; give real floats"),
        (lambda: data_free(jax.eval_shape(lambda: NETWORK)), "ShapeDtypeStruct"),
        (lambda: data_free({"kernel": FACTORS}), "'kernel' has factors U (30, 20), s (20,)"),
        (lambda: Convention(floor="x"), "floor='x'"),
        (lambda: Convention(convolution_factor="x"), "convolution_factor='x'"),
        (lambda: randomised(jax.random.key(0), DENSE), "randomised: matrices must be k matrices"),
        (lambda: randomised(0, DENSE[None]), "randomised: key"),
        (lambda: marchenko_pastur.fit_median(jnp.ones(4), longest=3, shortest=4), "ratio"),
        (lambda: as_text(data_free({"kernel": np.eye(3)}), "alpha"), "as_text: columns='alpha'"),
        (lambda: as_rich(data_free({"kernel": np.eye(3)}), ["alfa"]), "as_rich: unknown column"),
        (lambda: marchenko_pastur.edges(2.0), "ratio"),
        (lambda: norms.convolution_norm(jnp.ones((3, 3)), 4), "[window.., in, out]"),
        (lambda: norms.convolution_norm(jnp.ones((3, 3, 1, 1)), 2), "image_size=2"),
        (lambda: norms.convolution_norm(PIXELS, 6.0), "image_size must be a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: norms.convolution_norm(PIXELS, (6.5, 7)), "got 6.5"),  # pyright: ignore[reportArgumentType]
        (lambda: norms.convolution_norm(PIXELS, 6, groups=3), "groups=3 do not divide the 4"),
        (lambda: norms.convolution_norm(PIXELS, 6, groups=0), "groups must be a whole number"),
        (lambda: norms.convolution_norm(PIXELS[..., :0], 6), "none of length 0"),
        (lambda: norms.convolution_norm(PIXELS.astype(int), 6), "real floats, got int32"),
        (lambda: norms.convolution_norm(1j * PIXELS, 6), "real floats, got complex64"),
        (lambda: norms.convolution_norm([[1.0]], 6), "real floats, got a list"),  # pyright: ignore[reportArgumentType]
        (lambda: norms.convolution_norm(jnp.nan * PIXELS, 6), "not finite"),
        (lambda: norms.convolution_norm(jnp.inf * PIXELS, 6), "not finite"),
        (lambda: jax.jit(lambda w: norms.norms({"kernel": w}).frobenius)(DENSE), "norms: called"),
        (lambda: norms.norms({"kernel": DENSE, "bias": DENSE[0]}, where="bias"), "'bias' selects"),
        (lambda: norms.norms(NETWORK, where="e/kernel"), "where: no leaf is named 'e/kernel'"),
        (lambda: norms.path_norm(jnp.dot, jnp.ones(2), jnp.ones((3, 2))), "batch of size 1"),
        (lambda: norms.path_norm(jnp.dot, jnp.ones(2), jnp.ones(())), "batch of size 1"),
        (lambda: norms.path_norm(jnp.dot, jnp.ones(2), jnp.ones((1, 2), int)), "example must be"),
        (lambda: norms.path_norm(jnp.dot, jnp.ones(2), [1.0, 2.0]), "example must be"),
        (lambda: norms.path_norm(lambda p, x: (x,), jnp.ones(2), jnp.ones((1, 2))), "got a tuple"),
        (
            lambda: norms.path_norm(lambda p, x: 1j * x, jnp.ones(2), jnp.ones((1, 2))),
            "real floats",
        ),
        (lambda: as_text(data_free({"kernel": np.eye(3)}), ["alfa"]), "did you mean 'alpha'"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(UserError) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_column_of_the_paper_is_there():
    from sharpjax.studies.papers.paper2 import DATA_FREE

    assert set(DATA_FREE) <= set(Metrics._fields)
