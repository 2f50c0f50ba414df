"""Similarity of features: closed forms, and every declaration of every measure, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from sharpjax.errors import UserError
from sharpjax.metrics import representation
from sharpjax.metrics.representation import MEASURES, all_pairs, cka, streaming

SEED = 0


def gaussians(*shapes, seed=SEED):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def rotation(d, seed=SEED):
    return np.linalg.qr(gaussians((d, d), seed=seed)[0])[0]


# Closed forms.


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])  # features are smaller, or Gram matrices
def test_cka_is_1_of_what_is_equal_up_to_rotation_scale_and_shift(shape, biased):
    x, shift = gaussians(shape, shape[1:])
    moved = 3.7 * x @ rotation(shape[1]) + shift
    assert cka(x, x, biased=biased) == pytest.approx(1, abs=1e-13)
    assert cka(x, moved, biased=biased) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_cka_is_what_its_definition_says(biased):
    """HSIC in the traces of Song et al. (2012), with the centring matrix and with none."""
    x, y = gaussians((15, 4), (15, 6))
    y[:, 0] += x[:, 0]
    n = len(x)

    def hsic(x, y):
        p, q = (z @ z.T for z in (x, y))
        if biased:
            h = np.eye(n) - 1 / n
            return np.trace(p @ h @ q @ h) / (n - 1) ** 2
        p, q = (m - np.diag(np.diag(m)) for m in (p, q))
        last = 2 * (p @ q).sum() / (n - 2)
        return (np.trace(p @ q) + p.sum() * q.sum() / (n - 1) / (n - 2) - last) / n / (n - 3)

    want = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(x, y, biased=biased) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("biased", [False, True])
def test_the_form_is_chosen_by_size_and_changes_nothing(biased):
    """Features that are 0 change no Gram matrix, and more of them than examples change the form."""
    x, y = gaussians((20, 6), (20, 9))
    wide, broad = (np.pad(z, ((0, 0), (0, 30))) for z in (x, y))
    forms = [cka(a, b, biased=biased) for a in (x, wide) for b in (y, broad)]
    np.testing.assert_allclose(forms, forms[0], rtol=1e-12)


def test_independent_features_are_alike_by_the_biased_estimate_alone():
    """E<K, L> = (n-1) d^2 and E<K, K> = (n-1) d (n + d) of centred Gaussians: d / (n + d) = 0.61
    from n = 64, d = 100. The unbiased one is the cosine of two vectors in n (n-3) / 2 dimensions.
    """
    n, d, draws = 64, 100, 30
    found = np.array(
        [[cka(x, y, biased=biased) for biased in (True, False)]
         for x, y in (gaussians((n, d), (n, d), seed=s) for s in range(draws))]
    )  # fmt: skip
    # Each of five standard errors over draws; the ratio of means is off by O(1/n^2) of the mean.
    error = 5 * found.std(axis=0, ddof=1) / np.sqrt(draws)
    assert abs(found[:, 0].mean() - d / (n + d)) < error[0] + 4 / n**2
    assert abs(found[:, 1].mean()) < error[1] + 4 / n**2
    assert np.abs(found[:, 1]).max() < 6 / np.sqrt(n * (n - 3) / 2)


def test_unbiased_hsic_of_independent_features_is_0_in_the_mean():
    x, y = zip(*(gaussians((5, 2), (5, 3), seed=s) for s in range(400)), strict=True)
    kernels = representation.hsic.kernel, representation.measure.centred
    values = [representation.hsic.unbiased(*(kernels[0](kernels[1](z)) for z in pair))
              for pair in zip(x, y, strict=True)]  # fmt: skip
    assert abs(np.mean(values)) < 5 * np.std(values) / np.sqrt(400)


def test_procrustes_is_0_after_a_rotation_and_its_nuclear_norm_is_scipys():
    for shape in ((30, 5), (8, 20)):
        x, y, shift = gaussians(shape, shape, shape[1:])
        size = np.linalg.norm(x)
        assert representation.procrustes(x, x @ rotation(shape[1]) + shift) < 1e-13 * size
        a, b = (z - z.mean(0) for z in (x, y))
        _, nuclear = linalg.orthogonal_procrustes(b, a)
        squares = np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2
        found = representation.procrustes(x, y)
        assert found**2 == pytest.approx(squares - 2 * nuclear, rel=1e-12)
        cosine = nuclear / np.linalg.norm(a) / np.linalg.norm(b)
        found = representation.normalized_procrustes(x, y)
        assert found**2 == pytest.approx(2 - 2 * cosine, rel=1e-12)
        found = representation.angular_distance(x, y)
        assert found == pytest.approx(np.arccos(cosine), rel=1e-12)


def test_procrustes_of_other_widths_is_that_of_the_narrow_one_with_zeros():
    x, y = gaussians((12, 3), (12, 7))
    padded = np.pad(x, ((0, 0), (0, 4)))
    for measure in ("procrustes", "normalized_procrustes"):
        found = MEASURES[measure]
        assert found(x, y) == pytest.approx(found(padded, y), rel=1e-12)
        assert found(x, padded) < 1e-14 * np.linalg.norm(x)


def test_rsa_is_spearmans_correlation_of_pearsons():
    x, y = gaussians((9, 5), (9, 7))
    y[:, :5] += x
    above = np.triu_indices(9, 1)
    want = stats.spearmanr(*(1 - np.corrcoef(z)[above] for z in (x, y))).statistic
    assert representation.rsa(x, y) == pytest.approx(want, rel=1e-12)


def test_neighbours_are_counted():
    x, y = gaussians((25, 3), (25, 4))
    y[:, :3] += 2 * x
    for distance in ("euclidean", "cosine"):
        sets = []
        for z in (x, y):
            z = z / np.linalg.norm(z, axis=1, keepdims=True) if distance == "cosine" else z
            far = np.linalg.norm(z[:, None] - z, axis=-1) + np.diag([np.inf] * 25)
            sets.append([set(row) for row in np.argsort(far, axis=1)[:, :6]])
        want = np.mean([len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)])
        found = representation.neighbour_overlap(x, y, k=6, distance=distance)
        assert found == pytest.approx(want, rel=1e-12) and 0 < want < 1


def test_of_neighbours_equally_far_the_first_counts():
    points = np.array([[0.0], [1.0], [-1.0], [5.0]])  # 1 and -1 are as far from 0
    nearest = MEASURES["neighbour_overlap"].prepare(points, k=1)
    assert nearest.argmax(axis=1).tolist() == [1, 0, 0, 1] and (nearest.sum(axis=1) == 1).all()


def test_canonical_correlations_and_regression_on_what_is_known():
    x, y, noise = gaussians((50, 3), (50, 2), (50, 4))
    z = x - x.mean(0)
    w = noise - noise.mean(0)
    w -= z @ np.linalg.lstsq(z, w, rcond=None)[0]  # orthogonal to all of x
    assert representation.svcca(x, w) < 1e-12 and representation.linear_regression(x, w) < 1e-12
    assert representation.svcca(x, x @ gaussians((3, 3))[0], share=1) == pytest.approx(1, abs=1e-12)
    fit = np.linalg.lstsq(np.c_[x, np.ones(50)], y, rcond=None)[0]
    rest = np.square(y - np.c_[x, np.ones(50)] @ fit).sum() / np.square(y - y.mean(0)).sum()
    assert representation.linear_regression(x, y) == pytest.approx(1 - rest, rel=1e-10)


def test_svcca_keeps_what_holds_the_share():
    a, b, c = linalg.qr(representation.measure.centred(gaussians((50, 3))[0]), mode="economic")[0].T
    x, y = np.c_[np.sqrt(0.991) * a, np.sqrt(0.009) * b], np.c_[a, c]
    assert representation.svcca(x, y, share=0.99) == pytest.approx(1, abs=1e-12)  # a of x
    assert representation.svcca(x, y, share=0.995) == pytest.approx(0.5, abs=1e-12)


def test_features_are_matched_one_to_one_and_what_is_constant_counts_as_0():
    x, _ = gaussians((40, 5), (1,))
    order = np.random.default_rng(1).permutation(5)
    assert representation.correlation_match(x, 2 * x[:, order] - 1) == pytest.approx(1, abs=1e-12)
    dead = x.copy()
    dead[:, [1, 3]] = 0.1
    assert representation.correlation_match(dead, dead) == pytest.approx(3 / 5, abs=1e-12)


# Batches.


def test_one_batch_is_the_whole_and_sums_are_divided_at_the_end():
    xs = gaussians((40, 3), (40, 60), (40, 8))
    xs[2][:, :3] += xs[0]
    one = streaming.compute(streaming.update(streaming.init(3), xs))
    np.testing.assert_allclose(one, all_pairs(xs), atol=1e-12)
    parts = [slice(0, 11), slice(11, 30), slice(30, 40)]
    totals, products = streaming.init(3), 0
    for part in parts:
        totals = streaming.update(totals, [x[part] for x in xs])
        kernels = [representation.hsic.kernel(x[part] - x[part].mean(0)) for x in xs]
        size = part.stop - part.start
        products += size * np.array([[representation.hsic.unbiased(a, b) for a in kernels]
                                     for b in kernels])  # fmt: skip
    scale = np.sqrt(np.diag(products))
    np.testing.assert_allclose(
        streaming.compute(totals), products / scale / scale[:, None], rtol=1e-10, atol=1e-12
    )
    assert totals.num_examples == 40
    halves = [streaming.init(3), streaming.init(3)]
    for i, part in enumerate(parts):
        halves[i % 2] = streaming.update(halves[i % 2], [x[part] for x in xs])
    for found, want in zip(streaming.merge(*halves), totals, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-12)


def test_hsic_of_features_with_themselves_is_no_less_than_0():
    """A sum of squares: what is negative is rounding, and CKA of it is NaN, not a number."""
    one = np.zeros((6, 2))
    one[0] = [3.0, -1.0]  # constant but for one example: both sums cancel
    assert np.isnan(cka(one, one)) and cka(one, one, biased=True) == pytest.approx(1)
    assert np.isnan(streaming.compute(streaming.update(streaming.init(2), [one, one]))).all()
    for x in (gaussians((4, d), seed=s)[0] for d in (1, 5) for s in range(50)):
        kernel = representation.hsic.kernel(x - x.mean(0))
        assert representation.hsic.unbiased(kernel, kernel) > -1e-14 * kernel.own
        assert cka(x, x) == pytest.approx(1, abs=1e-4) or np.isnan(cka(x, x))
    assert np.isnan(streaming.compute(streaming.init(2))).all()


# Declarations.


def example(name):
    """Two matrices that are alike, and the options for so few examples."""
    x, y = gaussians((24, 6), (24, 6), seed=5)
    y += 2 * x @ np.diag([3.0, 2.0, 1.0, 1.0, 0.5, 0.3])
    return x, y, {"k": 4} if name.startswith("neighbour") else {}


def transforms():
    shift, mix = gaussians((6,), (6, 6), seed=8)
    return {
        "permutation": lambda x: x[:, [3, 5, 0, 1, 4, 2]],
        "orthogonal": lambda x: x @ rotation(6, seed=9),
        "scale": lambda x: 4.5 * x,
        "translation": lambda x: x + 3 * shift,
        "invertible": lambda x: x @ (mix @ np.diag([5.0, 0.1, 1.0, 3.0, 0.2, 1.0])),
    }


@pytest.mark.parametrize(
    "what", ["permutation", "orthogonal", "scale", "translation", "invertible"]
)
@pytest.mark.parametrize("name", MEASURES)
def test_what_is_declared_invariant_is_and_what_is_not_has_a_counterexample(name, what):
    x, y, options = example(name)
    measure, change = MEASURES[name], transforms()[what]
    before = measure(x, y, **options)
    after = [measure(change(x), y, **options), measure(x, change(y), **options)]
    if what in measure.invariances:
        np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-12)
    else:
        assert max(abs(value - before) for value in after) > 1e-3


def tied_examples():
    """Features of which few dissimilarities and distances are different: one-hot, and on a grid."""
    grid = np.random.default_rng(4).integers(1, 4, size=(60, 4)) + [3.0, 0.0, 0.0, 0.0]
    return [*(np.eye(k)[np.arange(60) % k] for k in (10, 7)), grid]


@pytest.mark.parametrize("name", ["rsa", "neighbour_overlap", "neighbour_overlap_cosine"])
def test_ties_stay_ties_under_what_is_declared_invariant(name):
    """A change rounds equal distances differently. With the same ties the value is 1 up to the
    rounding of a sum of 1,770 squares; two examples with other neighbours cost 1e-3 or more."""
    measure = MEASURES[name]
    for x in tied_examples():
        width = x.shape[1]
        changed = {
            "permutation": x[:, ::-1],
            "orthogonal": x @ rotation(width, seed=9),
            "scale": 0.3 * x,
            "translation": x + 3 * gaussians((width,), seed=8)[0],
        }
        for what in measure.invariances:
            for options in ({"k": 1}, {"k": 3}) if name.startswith("neighbour") else ({},):
                found = measure(x, changed[what], **options)
                assert found == pytest.approx(1, rel=0, abs=1770 * np.finfo(float).eps), what


def test_one_dissimilarity_alone_has_no_correlation():
    assert np.isnan(representation.rsa(np.eye(5), gaussians((5, 5))[0]))


def test_neighbours_on_a_line_of_equal_steps():
    """Both neighbours are equally near, and 1/3, .7 and 1e-3 are rounded."""
    x = np.arange(60.0)[:, None]
    for other in (x + 1 / 3, 0.7 * x - 5, 1e-3 * x + 1e3):
        for k in (1, 2, 5):
            assert representation.neighbour_overlap(x, other, k=k) == 1
    # A constant feature of any size adds no rounding, and an outlier hides no distance of others.
    flat = np.c_[x**1.5, np.full(60, 1e200)]
    assert representation.neighbour_overlap(flat, x**1.5, k=1) == 1
    far = np.append(x[:, 0] ** 1.5, 1e4)[:, None]
    nearest = MEASURES["neighbour_overlap"].prepare(far, k=1)
    assert nearest[:60].argmax(axis=1).tolist() == [1, *range(59)]


def test_values_that_are_close_by_themselves_are_not_one_tie():
    """A run of values is cut into groups no wider than the rounding, so each mean rank is off by
    at most the number of values within it."""
    values = 1 + 1e-9 * np.random.default_rng(0).uniform(size=2000)
    rounding = 1e-12
    found = representation.dissimilarity._ranks(values, rounding)
    near = np.abs(values[:, None] - values) <= rounding
    assert np.diff(np.sort(values)).max() < 20 * rounding  # close to each other
    assert (np.abs(found - stats.rankdata(values)) <= near.sum(axis=1)).all()
    tied = np.repeat(np.arange(50.0), 4) + np.tile([0, 1, 2, 3], 50) * rounding / 4
    order = np.random.default_rng(1).permutation(200)
    found = representation.dissimilarity._ranks(tied[order], rounding)
    np.testing.assert_array_equal(found, stats.rankdata(np.floor(tied + 0.5)[order]))


@pytest.mark.parametrize("name", MEASURES)
def test_declared_direction_and_symmetry(name):
    x, y, options = example(name)
    measure = MEASURES[name]
    (noise,) = gaussians(x.shape, seed=3)
    near, far = (measure(x, x + c * noise, **options) for c in (0.1, 10.0))
    assert near > far + 0.1 if measure.larger_is_more_similar else near < far - 0.1
    one, other = measure(x, y[:, :4], **options), measure(y[:, :4], x, **options)
    assert (one == pytest.approx(other, rel=1e-10)) is measure.symmetric


@pytest.mark.parametrize("name", MEASURES)
def test_declared_metrics_are_metrics_and_no_others(name):
    x, _, options = example(name)
    measure = MEASURES[name]
    if not measure.is_metric:
        assert measure(x, x, **options) > 0.1  # a distance of equals would be 0
        return
    for seed in range(20):
        points = gaussians((7, 3), (7, 3), (7, 9), (7, 3), seed=seed)
        points[3] = points[0] + 0.1 * points[1]
        found = all_pairs(points, name)
        assert np.abs(np.diag(found)).max() < 1e-12 and (found[~np.eye(4, dtype=bool)] > 0).all()
        detour = (found[:, :, None] + found[None]).min(axis=1)
        assert (found <= detour + 1e-12).all()


# All pairs.


@pytest.mark.parametrize("name", MEASURES)
def test_all_pairs_are_the_pairs(name):
    xs = gaussians((24, 6), (24, 30), (24, 4))
    xs[1][:, :6] += 3 * xs[0]
    options = {"k": 3} if name.startswith("neighbour") else {}
    want = [[MEASURES[name](a, b, **options) for b in xs] for a in xs]
    np.testing.assert_allclose(all_pairs(xs, name, **options), want, rtol=1e-12, atol=1e-14)
    across = all_pairs(xs[:2], name, xs[2:], **options)
    np.testing.assert_allclose(across, np.array(want)[:2, 2:], rtol=1e-12, atol=1e-14)


# What is not finite, not defined, not allowed.


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_of_two_and_nan_among_many(name, bad):
    x, y, options = example(name)
    broken = y.copy()
    broken[2, 1] = bad
    with pytest.raises(
        UserError, match=rf"{MEASURES[name].function or name}: b is not finite in 1"
    ):
        MEASURES[name](x, broken, **options)
    found = all_pairs([x, broken, y], name, **options)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


@pytest.mark.parametrize("name", MEASURES)
def test_constant_features_are_undefined_or_nothing(name):
    x, _, options = example(name)
    constant = np.full(x.shape, 0.1)
    found = MEASURES[name](x, constant, **options)
    if name == "procrustes":
        assert found == pytest.approx(np.linalg.norm(x - x.mean(0)), rel=1e-12)
    elif name.startswith("neighbour"):
        assert np.isfinite(found)  # all are equally far: the first k
    else:
        assert np.isnan(found)


@pytest.mark.parametrize("count", [300, 10_000])
def test_constant_columns_are_0_of_any_number_of_examples(count):
    """A sum of many equal numbers is rounded, so their mean is not the number itself."""
    one, other = np.full((count, 3), 0.1), np.full((count, 2), 0.3)
    assert (one != one.mean(axis=0)).all()  # or this test says nothing
    for name, measure in MEASURES.items():
        if name == "procrustes":
            assert measure(one, other) == 0
        elif name != "rsa" and not name.startswith("neighbour"):  # these look at rows
            assert np.isnan(measure(one, other)), name
    assert np.isnan(streaming.compute(streaming.update(streaming.init(2), [one, other]))).all()
    # Of two columns each, one is constant and counts as 0; the others are paired, as r > 0. Sums of
    # N products are off by N eps at most, here and in NumPy.
    a, b = gaussians((count,), (count,))
    b += a
    found = representation.correlation_match(np.c_[a, one[:, 0]], np.c_[b, other[:, 0]])
    bound = 2 * count * np.finfo(float).eps
    assert found == pytest.approx(np.corrcoef(a, b)[0, 1] / 2, rel=0, abs=bound)


def test_numbers_of_any_size_and_type():
    x, y, _ = example("")
    for name in ("cka", "normalized_procrustes", "rsa", "svcca", "correlation_match"):
        want = MEASURES[name](x, y)
        for factor in (1e-200, 1e200):
            assert MEASURES[name](factor * x, y) == pytest.approx(want, rel=1e-10), name
        found = MEASURES[name](jnp.asarray(x, jnp.float32), y)
        assert found == pytest.approx(want, rel=1e-4)
    assert cka(jnp.asarray(x, jnp.bfloat16), y) == pytest.approx(cka(x, y), abs=0.05)
    assert np.isfinite(cka(np.round(3 * x).astype(np.int8), y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cka(x.reshape(24, 2, 1, 3), x), r"representation\.cka: features of shape \[24, 2"
         r", 1, 3\]; give \[N, d\]\. Flatten.*or pool"),
        (lambda x: cka(x[0], x), r"cka: features of shape \[6\]"),
        (lambda x: cka(x, x + 1j), "cka: features of .*complex128; give numbers"),
        (lambda x: cka(x, x[:-1], biased=True), "cka: 24, 23 examples; give features of the same"),
        (lambda x: cka(x[:3], x[:3]), "cka: 3 examples; it needs 4"),
        (lambda x: cka(x[:1], x[:1], biased=True), "cka: 1 examples; it needs 2"),
        (lambda x: representation.rsa(x[:2], x[:2]), "rsa: 2 examples; it needs 3"),
        (lambda x: representation.neighbour_overlap(x, x, k=24), "k=24 of 24 examples"),
        (lambda x: representation.neighbour_overlap(x, x, k=0), "k must be a whole number"),
        (lambda x: representation.neighbour_overlap(x, x, distance="l1"), "distance='l1'; give"),
        (lambda x: representation.svcca(x, x, share=0), "share=0; give a share"),
        (lambda x: all_pairs([x, x], "cca"), "unknown measure of representations 'cca'; did you"),
        (lambda x: all_pairs([]), "all_pairs: no features"),
        (lambda x: all_pairs([x], "neighbour_overlap", cosine=True), "option .* 'cosine'.* k"),
        (lambda x: all_pairs([x, x[1:]]), "all_pairs: 24, 23 examples"),
        (lambda x: streaming.update(streaming.init(2), [x]), "features of 1 models, and init was"),
        (lambda x: streaming.update(streaming.init(1), [x[:2]]), "update: 2 examples; it needs 4"),
        (lambda x: jax.jit(cka)(x, x), "cka: call it outside of jit"),
    ],
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message) as error:
        call(example("")[0])
    assert "\n" not in str(error.value)
