"""Eigenpairs against dense ones, what a certificate is worth, and what must not change a number."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import geometry, loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian, restricted
from sharpjax.geometry import top_eigenpairs as top
from sharpjax.geometry.lanczos import gram_schmidt, krylov
from sharpjax.geometry.operators import algebra
from sharpjax.losses import Classification
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat
from tests.traces import TRACES, traced


def diagonal(*values):
    """An operator of two leaves with the given spectrum."""
    values = jnp.asarray(np.concatenate([np.ravel(v) for v in values]))
    half = len(values) // 2
    return Diagonal({"a": values[:half], "b": jnp.expand_dims(values[half:], 1)})


def outliers(*values):
    """A few values above a bulk in (-.5, .5), 400 in all: one structure, compiled once."""
    return np.concatenate([values, bulk(400 - len(values))])


def bulk(n, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n)


# Dense eigenpairs.


@pytest.mark.parametrize("which, k", [("LA", 4), ("SA", 1), ("LM", 3), ("BE", 5)])
def test_pairs_equal_the_dense_ones(x64, strict, key, which, k):
    params, batch = awkward_net()
    operator = hessian(awkward_loss, params, batch)
    matrix = dense(awkward_loss, params, batch)
    values, _ = np.linalg.eigh(matrix)
    expected = {
        "LA": values[::-1][:k],
        "SA": values[:k],
        "LM": values[np.argsort(-np.abs(values))][:k],
        "BE": np.concatenate([values[::-1][: -(-k // 2)], values[: k // 2][::-1]]),
    }[which]
    found = top(operator, key=key, k=k, which=which, tol=1e-10)
    assert found.status == Status.OK and found.converged.all()
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert jax.tree.structure(found.vectors) == jax.tree.structure(params)
    vectors = np.stack([flat(tree.index(found.vectors, i)) for i in range(k)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-12)
    true = np.linalg.norm(vectors @ matrix - np.expand_dims(expected, 1) * vectors, axis=1)
    assert (true <= found.residuals + 1e-12).all()


def test_residuals_and_bounds(x64, key):
    """Residuals are those of the vectors at any time, bounds are bounds once gaps are seen."""
    values = outliers(3.0, 2.0, 1.5)
    operator = diagonal(values)
    for products in (4, 8, 12, 16):
        found = top(operator, key=key, k=2, max_products=products, tol=0.0)
        assert found.num_products == products and found.status == Status.NOT_CONVERGED
        for i in range(2):
            y = tree.index(found.vectors, i)
            residual = tree.norm(tree.add_scaled(operator.linearize()(y), -found.values[i], y))
            np.testing.assert_allclose(residual, found.residuals[i], rtol=1e-6, atol=1e-12)
            nearest = np.abs(values - found.values[i]).min()
            assert nearest <= found.residuals[i]
            if products >= 12:
                assert nearest <= found.value_errors[i] <= found.residuals[i]
                sine = np.sqrt(max(0.0, 1 - flat(y)[i] ** 2))
                assert sine <= found.vector_errors[i] + 1e-7 < 0.5


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "values",
    [
        np.arange(12.0),
        np.zeros(12),
        np.ones(12),
        np.r_[5.0, 3.0, -2.0, np.zeros(9)],
        np.r_[np.ones(3), np.full(9, 0.5)],
        1e-14 * np.arange(12.0),
        1e14 * np.linspace(-1, 1, 12),
        np.array([-2.0]),
    ],
    ids=["distinct", "zero", "identity", "rank 3", "multiple", "small", "large", "one"],
)
def test_all_eigenvalues(key, values, precision):
    with jax.enable_x64(precision == "float64"):
        operator = diagonal(values.astype(precision))
        found = geometry.check(top(operator, key=key, k=len(values), max_products=len(values)))
        assert found.num_products <= len(values) and found.converged.all()
        eps = krylov.noise(precision) * np.abs(values).max()
        np.testing.assert_allclose(found.values, np.sort(values)[::-1], atol=5 * eps)
        vectors = np.stack([flat(tree.index(found.vectors, i)) for i in range(len(values))])
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=2e-6)


@pytest.mark.parametrize("which, expected", [("LM", [2, -1, 0, 0]), ("BE", [2, 0, 0, -1])])
def test_an_invariant_subspace_met_early_is_left(x64, key, which, expected):
    """Rank 2 on 400 parameters: three products span all that the operator can reach."""
    found = top(diagonal([2.0, -1.0], np.zeros(398)), key=key, k=4, which=which)
    assert found.status == Status.OK and found.num_products < 20
    np.testing.assert_allclose(found.values, expected, atol=1e-14)


# What is said of what was found.


def test_values_that_do_not_converge_are_marked(x64, key):
    """The first may have converged while the second has not."""
    found = top(diagonal(outliers(9.0, 0.6)), key=key, k=2, max_products=10, guards=0)
    assert found.converged.tolist() == [True, False]
    assert found.status == Status.NOT_CONVERGED and found.num_products == 10
    with pytest.raises(geometry.NotOk, match="Eigenpairs: it did not converge"):
        geometry.check(found)
    named = found.estimates()
    assert np.isnan(named["lambda_2"].standard_error)
    assert np.isfinite(named["lambda_2_residual"].value)


def test_it_stops_when_it_has_converged(x64, key):
    """Not after a fixed count: a closer tolerance takes more products, and is met."""
    operator, counts = diagonal(outliers(3.0, 2.5, 2.0, 1.7)), []
    for tol in (1e-1, 1e-4, 1e-12):
        found = geometry.check(top(operator, key=key, k=2, tol=tol))
        np.testing.assert_allclose(found.values, [3.0, 2.5], rtol=tol)
        counts.append(int(found.num_products))
    assert counts[0] < counts[1] < counts[2] < 72


def _rounded_scale(diagonal, vector):
    def leaf(d, x):
        return (d * x).astype(jnp.bfloat16).astype(x.dtype)

    return jax.tree.map(leaf, diagonal, vector)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy(Diagonal):
    """Products as a model that computes in bfloat16 would give them."""

    def linearize(self):
        return Partial(_rounded_scale, self.values)


def test_noisy_products_certify_nothing_finer_than_their_noise(key):
    """The recurrence itself would report residuals of 1e-7 here.

    A residual is known as well as one product in float32 is: within `noise |A|`, `|A| = 3`.
    """
    values = jnp.asarray(outliers(3.0, 2.5, 2.0, 1.7), jnp.float32)
    product = Diagonal(values).linearize()
    exact, noisy = Diagonal(values), Noisy(values)
    for operator, tol, status in (
        (exact, 1e-4, Status.OK),
        (noisy, 1e-4, Status.NOT_CONVERGED),
        (noisy, 3e-2, Status.OK),
    ):
        found = top(operator, key=key, k=2, tol=tol, max_products=40)
        assert found.status == status
        for i in range(2):
            y = tree.index(found.vectors, i)
            true = tree.norm(tree.add_scaled(product(y), -found.values[i], y))
            assert true <= found.residuals[i] + 3 * krylov.noise("float32")


# Failures.


def nan_loss(params, batch):
    return jnp.mean(batch) * jnp.sum(jnp.sqrt(params))


def test_a_loss_that_is_not_finite(key):
    params = jnp.array([1.0, 0.0, 2.0])
    found = top(hessian(nan_loss, params, jnp.ones(2)), key=key)
    assert found.status == Status.NON_FINITE and found.num_products == 1
    assert not found.converged.any() and np.isnan(found.values).all()
    with pytest.raises(geometry.NotOk, match="not finite"):
        geometry.check(found)


def test_breakdown_is_said_where_no_vector_can_be_made(key, monkeypatch):
    """No operator breaks down on its own: the space is always larger than the basis."""
    monkeypatch.setattr(krylov, "noise", lambda dtype: 10.0)
    found = top(diagonal(np.arange(9.0)), key=key)
    assert found.status == Status.BREAKDOWN and found.num_products == 1
    with pytest.raises(geometry.NotOk, match="broke down"):
        geometry.check(found)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, "k must be a whole number >= 1, got 0"),
        ({"k": 2.0}, "k must be a whole number >= 1, got 2.0"),
        ({"k": True}, "got True"),
        ({"k": 6}, "k=6 of an operator on 5 parameters"),
        ({"guards": -1}, "guards must be a whole number >= 0"),
        ({"which": "la"}, "unknown which 'la'.*LA"),
        ({"tol": -1e-3}, "tol must be a number >= 0"),
        ({"tol": float("nan")}, "tol must be a number"),
        ({"tol": jnp.ones(2)}, "tol must be a number"),
        ({"k": 3, "max_products": 2}, "max_products=2 cannot give k=3"),
        ({"max_products": 0}, "max_products must be a whole number >= 1"),
        ({"key": 0}, "key must be one random key.*got int"),
        ({"key": jax.random.split(jax.random.key(0))}, r"got keys of shape \(2,\)"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=message):
        top(Diagonal(jnp.ones(5)), **({"key": jax.random.key(0)} | options))


def test_an_operator_is_asked_for():
    with pytest.raises(UserError, match="must be an operator.*got function"):
        top(nan_loss, key=jax.random.key(0))  # pyright: ignore[reportArgumentType]


# What must not change a number.


def test_vectors_left_out_change_nothing(x64, key):
    operator = diagonal(outliers(5.0, 4.0))
    one, other = (top(operator, key=key, k=2, vectors=v) for v in (True, False))
    assert other.vectors is None
    for field in ("values", "residuals", "vector_errors", "num_products"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.slow
def test_growing_the_basis_changes_nothing(x64, key):
    """Outside of a trace the basis is doubled as it fills; inside it has all its rows at once."""
    operator = diagonal(0.9 ** np.arange(100))
    solve = functools.partial(top, which="SA", k=2, tol=1e-2, max_products=60)
    grown, at_once = solve(operator, key=key), jax.jit(solve)(operator, key=key)
    assert grown.num_products > 2 * (16 + 4 * 2) and at_once.num_products == grown.num_products
    np.testing.assert_allclose(grown.values, at_once.values, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(flat(grown.vectors), flat(at_once.vectors), atol=1e-6)


@pytest.mark.usual_flags
def test_members_of_a_population_equal_single_calls(x64, strict, key):
    """One starts in an invariant subspace, one takes long: lanes do not disturb each other."""
    spectra = jnp.stack(
        [
            jnp.asarray(np.r_[9.0, 5.0, 1.0, 0.5, bulk(36)]),
            jnp.asarray(np.r_[3.0, 2.0, np.zeros(38)]),  # of a multiple value no vector is known
            jnp.asarray(np.linspace(-1, 1, 40)),
        ]
    )
    solve = functools.partial(top, k=2, tol=1e-8, max_products=40)
    together = jax.vmap(lambda d, k: solve(Diagonal(d), key=k))(spectra, jax.random.split(key, 3))
    for i, k in enumerate(jax.random.split(key, 3)):
        alone = solve(Diagonal(spectra[i]), key=k)
        member = tree.index(together, i)
        assert member.num_products == alone.num_products and member.status == alone.status
        np.testing.assert_allclose(member.values, alone.values, atol=1e-12)
        known = jnp.max(member.vector_errors + alone.vector_errors)
        np.testing.assert_allclose(
            np.abs(member.vectors), np.abs(alone.vectors), atol=known + 1e-12
        )
    named = together.estimates()
    assert named["lambda_2"].value.shape == named["lambda_2"].standard_error.shape == (3,)


def test_hessians_of_a_population(x64, strict, key):
    members = [awkward_net(seed) for seed in range(3)]
    params, batch = tree.stack([m[0] for m in members]), members[0][1]

    def solve(p):
        return top(hessian(awkward_loss, p, batch, microbatch_size=4), key=key, k=2, tol=1e-8)

    together = jax.vmap(solve)(params)
    for i in range(3):
        np.testing.assert_allclose(
            together.values[i], solve(members[i][0]).values, rtol=1e-10, atol=1e-12
        )


def test_the_basis_stays_orthonormal_in_float32(key):
    operator = Diagonal({"a": jnp.asarray(np.r_[100.0, 90.0, 0.98 ** np.arange(2998)], "float32")})
    state = krylov.start(key, operator.like, krylov.num_rows(120))
    state, _ = loops.iterate(krylov.LanczosStep(), state, operator.linearize(), max_steps=120)
    rows = np.asarray(state.basis["a"], np.float64)
    assert np.abs(rows @ rows.T - np.eye(120)).max() < 2e-6
    projected = rows * np.asarray(operator.values["a"], np.float64) @ rows.T
    matrix = np.diag(state.alpha) + np.diag(state.beta[:-1], 1) + np.diag(state.beta[:-1], -1)
    np.testing.assert_allclose(projected, state.unit * matrix, atol=1e-4)


def test_a_vector_inside_the_basis_is_replaced(x64, key):
    """And the one that stands in for it is orthogonal to the basis, and another for each seed."""
    basis = jnp.concatenate(
        [jnp.linalg.qr(jax.random.normal(key, (50, 6)))[0].T, jnp.zeros((2, 50))]
    )
    basis = {"a": basis[:, :20], "b": basis[:, 20:]}
    inside = tree.index(basis, 1)

    def free(seed):
        return gram_schmidt.orthogonalize(
            *(basis, inside),
            row=jnp.int32(5),
            taken=jnp.zeros(()),
            scale=jnp.ones(()),
            tiny=1e-10,
            seed=jnp.uint32(seed),
            exhausted=jnp.bool_(False),
        )

    one, other = free(0), free(1)
    assert one.fresh and not one.broken
    np.testing.assert_allclose(one.overlaps, np.eye(8)[1], atol=1e-14)
    for found in (one, other):
        overlaps = [tree.vdot(tree.index(basis, i), found.vector) for i in range(6)]
        np.testing.assert_allclose(overlaps, 0, atol=1e-14)
    cosine = tree.vdot(one.vector, other.vector) / one.norm / other.norm
    assert abs(cosine) < 0.5


# Loop forms.


class ConvNet(nn.Module):
    """Smooth, with a convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(3, (3, 3), param_dtype=x.dtype)(x))
        return nn.Dense(2, param_dtype=x.dtype)(x.mean((1, 2)))


def conv_loss(params, batch):
    return jnp.mean(jnp.square(ConvNet().apply({"params": params}, batch["x"]) - batch["y"]))


def conv_operator(dtype):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, 5, 5, 2)), "y": rng.normal(size=(8, 2))}
    kernel = rng.normal(size=(3, 3, 2, 3)), rng.normal(size=3)
    head = rng.normal(size=(3, 2)), rng.normal(size=2)
    params = {
        "Conv_0": dict(zip(("kernel", "bias"), kernel, strict=True)),
        "Dense_0": dict(zip(("kernel", "bias"), head, strict=True)),
    }
    # Rounded first, so that both types hold the same numbers.
    rounded = jax.tree.map(np.float32, (params, batch))
    params, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), rounded)
    return hessian(conv_loss, params, batch, microbatch_size=4)


@pytest.mark.slow
def test_both_loop_forms_give_the_same_numbers(key, monkeypatch):
    """On CPU convolutions run in a host loop: within 1e-10 in float64, and no worse in float32."""

    def solve(dtype, form):
        chosen = []
        monkeypatch.setattr(loops, "choose_form", lambda *_: chosen.append(form) or form)
        found = top(conv_operator(dtype), key=key, k=3, which="LM", tol=0.0, max_products=20)
        assert chosen
        return np.asarray(found.values, np.float64), found

    with jax.enable_x64(True):
        host, pairs = solve(jnp.float64, "host")
        device, others = solve(jnp.float64, "device")
        np.testing.assert_allclose(host, device, rtol=1e-10)
        assert pairs.num_products == others.num_products
        for i in range(3):
            a, b = tree.index(pairs.vectors, i), tree.index(others.vectors, i)
            assert tree.norm(tree.add_scaled(a, -jnp.sign(tree.vdot(a, b)), b)) < 1e-9
    errors = [
        np.linalg.norm(solve(jnp.float32, form)[0] - host) / np.linalg.norm(host)
        for form in ("host", "device")
    ]
    # Below a third of a unit in the last place, one rounding decides which is larger.
    errors = np.maximum(errors, 4e-8)
    assert max(errors) < 1e-5 and max(errors) <= 3 * min(errors)


def test_convolutions_choose_the_host_form():
    operator = conv_operator(jnp.float32)
    product = algebra.linearize(operator)
    state = krylov.start(jax.random.key(0), operator.like, 8)
    assert loops.choose_form(krylov.LanczosStep(), state, product) == "host"


# What is compiled when, and what stays in memory.


def counted_loss(scale, params, batch):
    traced("loss")
    return jnp.mean(jnp.tanh(batch @ params["w"]) ** 2) * scale + jnp.sum(params["b"] ** 2)


def test_new_numbers_compile_nothing(key, compilations):
    def solve(i, **options):
        params = {"w": jnp.full(7, 0.1 * i), "b": jnp.full(3, float(i))}
        loss = Partial(counted_loss, jnp.float32(i))
        operator = hessian(loss, params, jnp.full((6, 7), float(i)))
        found = top(operator, key=jax.random.fold_in(key, i), k=2, **options)
        return jax.block_until_ready(found)

    first = solve(1)
    solve(2, tol=1e-2, max_products=9)
    traced, compiled = TRACES["loss"], len(compilations)
    assert traced > 0
    for i in (3, 4):
        solve(i)
        solve(i, tol=1e-4, max_products=8)
    assert TRACES["loss"] == traced and len(compilations) == compiled, compilations[compiled:]
    np.testing.assert_array_equal(solve(1).values, first.values)


class BatchNormNet(nn.Module):
    """Statistics that an evaluation reads."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.tanh(nn.BatchNorm(use_running_average=not train)(x)))


@pytest.mark.slow
def test_checkpoints_with_other_statistics_are_one_compilation(key, compilations):
    batch = {"image": jax.random.normal(key, (8, 2, 2, 1)), "label": jnp.arange(8) % 3}
    made = BatchNormNet().init(key, batch["image"], train=False)

    def solve(i):
        statistics = jax.tree.map(lambda x: x + 0.1 * i, made["batch_stats"])
        params = tree.scale(1 + 0.1 * i, made["params"])
        loss = Classification(BatchNormNet(), {"batch_stats": statistics})
        # Few enough that no basis grows: that compiles once more, for its new size.
        return float(top(hessian(loss, params, batch), key=key, max_products=20).values[0])

    values = [solve(0), solve(1)]
    compiled = len(compilations)
    values += [solve(i) for i in (2, 3, 4)]
    assert len(compilations) == compiled, compilations[compiled:]
    assert len(set(values)) == 5


def test_memory_does_not_grow(key):
    params, batch = awkward_net(dtype=np.float32)

    def held():
        arrays = jax.live_arrays()
        return len(arrays), sum(x.nbytes for x in arrays)

    def solve(i):
        top(hessian(awkward_loss, params, batch), key=jax.random.fold_in(key, i), k=2)

    solve(0)
    before = held()
    for i in range(20):
        solve(i)
    assert held() == before


# Where things lie.


def wide_loss(params, batch):
    hidden = jnp.sum(jnp.expand_dims(batch, 2) * jnp.expand_dims(params["w"], 0), axis=1)
    return jnp.mean(jnp.sum(jnp.tanh(hidden + jnp.expand_dims(params["b"], 0)) ** 2, axis=1))


def wide_problem():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(16, 6)) / 4, "b": rng.normal(size=6)}
    batch = rng.normal(size=(12, 16))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("in_jit", [False, True])
def test_bases_lie_as_the_parameters_do(key, kind, in_jit):
    params, batch = wide_problem()
    expected = top(hessian(wide_loss, params, batch), key=key, k=2)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    lies = {"w": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
    solve = functools.partial(top, k=2, max_products=24)
    with jax.set_mesh(mesh):
        operator = hessian(wide_loss, jax.device_put(params, lies), batch)
        if in_jit:
            program = jax.jit(solve).lower(operator, key=key).compile()
            found = program(operator, key=key)
            # Four rows of each basis on every device, and no basis is ever gathered.
            assert "f32[24,4,6]" in program.as_text() and "f32[24,16,6]" not in program.as_text()
        else:
            found = solve(operator, key=key)
            state = krylov.start(key, operator.like, 16)
            assert state.basis["w"].sharding.spec[:2] == (None, "model")
        assert found.vectors["w"].sharding.spec[:2] == (None, "model")
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)


def test_inside_shard_map(key):
    """One seed on each device: they never talk, and each stops when it has converged."""
    mesh = jax.make_mesh((4,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    spectra = jnp.stack([jnp.linspace(-1, 1 + i, 24) ** 3 for i in range(4)])

    def solve(d):
        found = top(Diagonal(d[0]), key=key, k=2)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), found)

    lanes = jax.shard_map(solve, mesh=mesh, in_specs=jax.P("seed"), out_specs=jax.P("seed"))
    found = jax.jit(lanes)(spectra)
    for i in range(4):
        alone = top(Diagonal(spectra[i]), key=key, k=2)
        np.testing.assert_allclose(found.values[i], alone.values, rtol=1e-5)
        assert found.num_products[i] == alone.num_products


# Further operators, and rows for a table.


def test_a_block_of_narrow_parameters(key):
    params, batch = awkward_net(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    mask = tree.select(params, "layers/*")
    chosen = flat(jax.tree.map(lambda m, x: np.full(x.shape, m), mask, params)).astype(bool)
    matrix = dense(awkward_loss, wide, batch)[np.ix_(chosen, chosen)]
    expected = np.linalg.eigvalsh(matrix)[-1]
    full = hessian(awkward_loss, narrow, batch)
    frozen = hessian(awkward_loss, narrow, batch, where="layers/*")
    for block in (frozen, restricted(full, "layers/*")):
        found = top(block, key=key)
        np.testing.assert_allclose(found.values[0], expected, rtol=1e-5)
        assert found.vectors["gain"] is None
        assert found.vectors["layers"][0][0].dtype == jnp.float32


def test_estimates(x64, key):
    found = top(diagonal(outliers(5.0, 2.0)), key=key, k=2)
    named = found.estimates()
    assert list(named) == [
        "lambda_1",
        "lambda_1_residual",
        "lambda_2",
        "lambda_2_residual",
        "num_products",
    ]
    assert abs(named["lambda_1"].value - 5) <= named["lambda_1"].standard_error < 5e-3
    assert named["lambda_2"].num_evaluations == found.num_products
    assert named["num_products"].value == found.num_products
    assert named["num_products"].standard_error == 0
