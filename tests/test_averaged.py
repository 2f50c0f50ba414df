"""Means over a data set against one batch of it all, and what is refused, kept and compiled."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import geometry, loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Operator, composed, hessian, restricted
from sharpjax.geometry.eigenpairs.subsample import subsample_start, subsampled
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.geometry.operators.averaging import averaged, linearization_bytes
from sharpjax.geometry.operators.gauss_newton import empirical_fisher, fisher, gauss_newton
from tests import nets
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat


class Loader:
    """Iterable again and again, and neither a list nor a function."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def rows(batch, first, end):
    return jax.tree.map(lambda x: x[first:end], batch)


def cut(batch):
    """12 examples, the last batch short."""
    return [rows(batch, 0, 5), rows(batch, 5, 10), rows(batch, 10, 12)]


def on_host(batch):
    return jax.tree.map(np.asarray, batch)


KINDS = {
    "list": lambda batch: (cut(batch), {}),
    "list of numpy": lambda batch: (tuple(cut(on_host(batch))), {}),
    "function": lambda batch: (functools.partial(iter, cut(on_host(batch))), {}),
    "loader": lambda batch: (Loader(cut(on_host(batch))), {}),
    "arrays": lambda batch: (batch, {"batch_size": 5}),
    "arrays, uneven": lambda batch: (batch, {"batch_size": 7}),
    "arrays of numpy": lambda batch: (on_host(batch), {"batch_size": 5}),
    "one example each": lambda batch: (batch, {"batch_size": 1}),
}
STREAMS = ("function", "loader")


def problem(dtype: Any = np.float64):
    params, batch = awkward_net(dtype=dtype)
    return params, batch, functools.partial(hessian, awkward_loss, params)


@functools.cache
def matrix():
    """The whole Hessian of `problem`."""
    return dense(awkward_loss, *awkward_net())


def make(kind, operator_of, batch, **options):
    source, cutting = KINDS[kind](batch)
    return averaged(operator_of, source, **cutting, **options)


def one_batch_bytes(operator_of, batch):
    operator = operator_of(batch)
    return linearization_bytes(operator, operator.batch)


# The mean over batches is the operator of the whole.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, 1, 12])
def test_products_equal_those_of_one_batch(x64, strict, kind, kept):
    params, batch, operator_of = problem()
    size = {"arrays": 4, "arrays of numpy": 4, "arrays, uneven": 6, "one example each": 1}
    budget = kept * one_batch_bytes(operator_of, rows(batch, 0, size.get(kind, 5)))
    operator = make(kind, operator_of, batch, cache_bytes=budget)
    product = linearize(operator)
    assert len(product.cached) == min(kept, sum(1 for _ in operator.members()))
    for seed in range(2):
        v = tree.random_normal(jax.random.key(seed), params)
        found = product(v)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        np.testing.assert_allclose(flat(found), matrix() @ flat(v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_solvers_find_the_same(x64, key, kind):
    params, batch, operator_of = problem()
    operator = make(kind, operator_of, batch)
    found = geometry.check(geometry.top_eigenpairs(operator, key=key, k=2, tol=1e-9))
    values, vectors = np.linalg.eigh(matrix())
    np.testing.assert_allclose(found.values, values[::-1][:2], rtol=1e-10)
    for i in range(2):
        cosine = flat(tree.index(found.vectors, i)) @ vectors[:, -1 - i]
        assert abs(cosine) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("kind", ["list", "function"])
def test_compositions_run_round_it(x64, strict, key, kind):
    params, batch, operator_of = problem()
    operator, whole = make(kind, operator_of, batch, cache_bytes=0), operator_of(batch)
    v = tree.random_normal(key, params)
    for compose in (lambda a: 2 * a + 0.5, lambda a: (a - 0.5 * whole) + a):
        assert loops.holds_host_code(compose(operator))
        found, expected = (linearize(compose(a))(v) for a in (operator, whole))
        np.testing.assert_allclose(flat(found), flat(expected), atol=1e-12)
    # The same probes give the same estimate.
    found, expected = (
        geometry.trace(restricted(a, "layers/*"), key=key, max_products=5).value
        for a in (operator, whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["list", "list of numpy", "arrays", "arrays, uneven"])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_inside_a_trace_it_is_a_scan(x64, strict, key, kind, kept):
    """The operator made outside or inside of it, its product made outside, or all closed over."""
    params, batch, operator_of = problem()
    budget = kept * one_batch_bytes(operator_of, rows(batch, 0, 5))
    operator = make(kind, operator_of, batch, cache_bytes=budget)
    v = tree.random_normal(key, params)
    expected = matrix() @ flat(v)
    product = linearize(operator)
    calls = {
        "made outside": jax.jit(lambda a, v: linearize(a)(v))(operator, v),
        "product": jax.jit(lambda p, v: p(v))(product, v),
        "closed over": jax.jit(lambda v: product(v))(v),
        "vmap": tree.index(jax.vmap(product)(tree.stack([v, v])), 1),
    }
    for name, found in calls.items():
        np.testing.assert_allclose(flat(found), expected, atol=1e-12, err_msg=name)


@dataclasses.dataclass(frozen=True)
class Power:
    def propose(self, carry):
        return carry

    def absorb(self, carry, product):
        return product


def test_a_population_and_a_loop_inside_jit(x64, key):
    members = [awkward_net(seed)[0] for seed in range(2)]
    batch = awkward_net()[1]
    v = tree.random_normal(key, members[0])

    @jax.jit
    @jax.vmap
    def together(p):
        operator = averaged(functools.partial(hessian, awkward_loss, p), batch, batch_size=5)
        return loops.iterate(Power(), v, linearize(operator), max_steps=2)[0]

    found = together(tree.stack(members))
    for i, member in enumerate(members):
        whole = dense(awkward_loss, member, batch)
        np.testing.assert_allclose(flat(tree.index(found, i)), whole @ whole @ flat(v), rtol=1e-9)


def test_other_operators(x64, key):
    """Some of their linearisations kept."""
    net = nets.mlp()
    of_model = {
        "gauss_newton": functools.partial(gauss_newton, composed(*net[:2]), net.params),
        "fisher": functools.partial(fisher, composed(*net[:2]), net.params, labels="observed"),
        "empirical_fisher": functools.partial(empirical_fisher, net.loss, net.params),
    }
    v = tree.random_normal(key, net.params)
    for name, operator_of in of_model.items():
        parts = [rows(net.batch, 0, 3), rows(net.batch, 3, 6), rows(net.batch, 6, 8)]
        operator = averaged(operator_of, parts, cache_bytes=one_batch_bytes(operator_of, parts[0]))
        found, expected = (linearize(a)(v) for a in (operator, operator_of(net.batch)))
        np.testing.assert_allclose(flat(found), flat(expected), atol=1e-12, err_msg=name)


def test_members(x64):
    _, batch, operator_of = problem()
    for kind in KINDS:
        found = list(make(kind, operator_of, batch).members())
        assert sum(count for count, _ in found) == 12
        total = sum(count * float(a.loss(a.params, a.batch)) for count, a in found)
        assert total / 12 == pytest.approx(float(awkward_loss(problem()[0], batch)))


def net_loss(kernel, batch):
    dimensions = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
        batch["x"], kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )
    return jnp.mean(jnp.square(jnp.tanh(out).mean((1, 2)) - batch["y"]))


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_convolutions_from_a_function(x64, key, cache_bytes):
    """The loop form of convolutions on CPU is that of host code, too."""
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, 5, 5, 2)), "y": rng.normal(size=(8, 2))}
    params = 0.3 * jax.random.normal(key, (3, 3, 2, 2))
    parts = [rows(batch, 0, 3), rows(batch, 3, 6), rows(batch, 6, 8)]
    operator_of = functools.partial(hessian, net_loss, params)
    operator = averaged(operator_of, lambda: iter(parts), cache_bytes=cache_bytes)
    v = tree.random_normal(key, params)
    found, _ = loops.iterate(Power(), v, linearize(operator), max_steps=2)
    whole = dense(net_loss, params, batch)
    np.testing.assert_allclose(flat(found), whole @ (whole @ flat(v)), atol=1e-12)


# Sharded data.


def mesh(kind, shape=(4,), names=("data",)):
    kinds = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}
    return jax.make_mesh(shape, names, axis_types=(kinds[kind],) * len(names))


def bowl(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["kernel"])
    return jnp.mean(jnp.square(jnp.sum(hidden, axis=1) - batch["y"]))


def quadratic(w, x):
    return jnp.mean(jnp.square(x @ w)) / 2


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("given", ["list", "arrays"])
def test_sharded_data(x64, key, kind, given):
    """With and without what is kept, inside jit, in a loop, and as a subsample."""
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(16, 3)), "y": rng.normal(size=16)}
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2)))}
    v = tree.random_normal(key, params)
    truth = dense(bowl, params, batch)
    with jax.set_mesh(mesh(kind)):
        operator_of = functools.partial(hessian, bowl, jax.device_put(params, jax.P()))
        if given == "list":
            parts = [rows(batch, 0, 12), rows(batch, 12, 16)]
            source, options = [jax.device_put(part, jax.P("data")) for part in parts], {}
        else:
            source, options = jax.device_put(batch, jax.P("data")), {"batch_size": 8}
        operator = averaged(operator_of, source, **options)
        for part in operator.batches.read():
            assert part["x"].sharding.spec[0] == "data"
        operator = dataclasses.replace(
            operator, cache_bytes=one_batch_bytes(operator_of, operator.operator.batch)
        )
        product = linearize(operator)
        assert len(product.cached) == 1
        for call in (product, jax.jit(product)):
            np.testing.assert_allclose(flat(call(v)), truth @ flat(v), atol=1e-12)
        few = subsampled(operator, key=key, num_examples=8)
        assert few.batch["x"].shape == ((8 if given == "arrays" else 16), 3)
        found, _ = loops.iterate(Power(), v, product, max_steps=3)
        expected = np.linalg.matrix_power(truth, 3) @ flat(v)
        np.testing.assert_allclose(flat(found), expected, rtol=1e-9)


def test_data_on_several_devices_are_cut_evenly():
    with jax.set_mesh(mesh("auto")):
        x = jax.device_put(jnp.ones((4 * 14, 3)), jax.P("data"))
        operator_of = functools.partial(hessian, quadratic, jnp.ones(3))
        assert averaged(operator_of, x, batch_size=30).batches.count == 2
        assert averaged(operator_of, x, batch_size=10).batches.count == 7
        with pytest.raises(UserError, match="56 examples .* batches of 19 .* 8, 28"):
            averaged(operator_of, x, batch_size=19)


def test_arrays_of_other_libraries_are_read(x64, key):
    """Whatever numpy reads, such as a tensor of torch."""

    class Tensor:
        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __array__(self, dtype=None, copy=None):
            return self.array

        def __getitem__(self, places):
            return Tensor(self.array[places])

    params, batch, operator_of = problem()
    parts = [jax.tree.map(lambda x: Tensor(np.asarray(x)), part) for part in cut(batch)]
    whole = jax.tree.map(lambda x: Tensor(np.asarray(x)), batch)
    v = tree.random_normal(key, params)
    for source, options in ((parts, {}), (lambda: iter(parts), {}), (whole, {"batch_size": 5})):
        product = linearize(averaged(operator_of, source, **options))
        np.testing.assert_allclose(flat(product(v)), matrix() @ flat(v), atol=1e-12)


# What is kept, and compiled.


def test_the_budget_is_kept(x64):
    """Counted from shapes; what is really held is that much."""
    _, batch, operator_of = problem()
    first = rows(batch, 0, 5)
    each = one_batch_bytes(operator_of, first)
    held = jax.tree.leaves(linearize(operator_of(first)))
    assert each == sum(x.nbytes for x in held)
    for budget, count in ((each - 1, 0), (each, 1), (2 * each - 1, 1), (3 * each, 3)):
        source = Loader(cut(on_host(batch)))
        product = linearize(averaged(operator_of, source, cache_bytes=budget))
        assert len(product.cached) == count
        kept = jax.tree.leaves([p for p, _ in product.cached])
        assert sum(x.nbytes for x in kept) <= budget
        before = source.passes
        product(problem()[0])
        assert source.passes == before + (count < 3)  # all kept: the data are not read again


def test_microbatches_keep_nothing(x64, key):
    params, batch, _ = problem()
    operator_of = functools.partial(hessian, awkward_loss, params, microbatch_size=2)
    product = linearize(averaged(operator_of, batch, batch_size=4))
    assert not product.cached
    v = tree.random_normal(key, params)
    np.testing.assert_allclose(flat(product(v)), matrix() @ flat(v), atol=1e-12)


@pytest.mark.parametrize("kind", ["list", "function", "arrays"])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_second_solve_compiles_nothing(compilations, key, kind, cache_bytes):
    def solve(seed):
        params, batch = awkward_net(seed, np.float32)
        operator_of = functools.partial(hessian, awkward_loss, params)
        operator = make(kind, operator_of, batch, cache_bytes=cache_bytes) + 0.1 * seed
        return geometry.trace(operator, key=key, max_products=5).value

    solve(0)
    compilations.clear()
    solve(1)
    assert compilations == []


def test_batches_of_one_shape_are_traced_once():
    traces = collections.Counter()

    def loss(w, batch):
        traces["loss"] += 1
        return jnp.mean(batch) * jnp.sum(w**4)

    w = jnp.ones(3)
    operator_of = functools.partial(hessian, loss, w)
    for cache_bytes in (0, 2**20):
        operator = averaged(operator_of, [jnp.ones(4)] * 9, cache_bytes=cache_bytes)
        before = traces["loss"]
        product = linearize(operator)
        product(w)
        assert traces["loss"] - before <= 2  # of one linearisation, not of nine


def _times_draw(draw, vector):
    return draw * vector


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawing(Operator):
    """A random multiple of the identity for each batch."""

    like: Any
    batch: Any
    key: Any

    def linearize(self):
        return Partial(_times_draw, jax.random.normal(self.key, self.like.shape))


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_each_batch_draws_by_a_key_of_its_own(key, cache_bytes):
    """Else labels drawn from the model would be the same at the same place of every batch."""
    operator_of = functools.partial(Drawing, jnp.ones(4), key=key)
    operator = averaged(operator_of, [jnp.ones(3)] * 50, cache_bytes=cache_bytes)
    product = linearize(operator)
    draws = np.stack([a.linearize()(jnp.ones(4)) for _, a in operator.members()])
    assert len(np.unique(draws)) == 200
    np.testing.assert_allclose(product(jnp.ones(4)), draws.mean(0), atol=1e-6)
    np.testing.assert_array_equal(product(jnp.ones(4)), product(jnp.ones(4)))
    np.testing.assert_allclose(jax.jit(product)(jnp.ones(4)), draws.mean(0), atol=1e-6)


# What is refused.


@pytest.mark.parametrize("kept", [0, 1])
def test_a_function_is_refused_inside_a_trace(x64, key, kept):
    params, batch, operator_of = problem()
    budget = kept * one_batch_bytes(operator_of, rows(batch, 0, 5))
    operator = make("function", operator_of, batch, cache_bytes=budget)
    product = linearize(operator)
    for call in (
        lambda: jax.jit(lambda a: linearize(a)(a.like))(operator),
        lambda: jax.jit(lambda v: linearize(operator)(v))(params),
        lambda: jax.jit(lambda p, v: p(v))(product, params),
        lambda: jax.jit(lambda k: geometry.trace(operator, key=k).value)(key),
        lambda: loops.iterate(Power(), params, product, max_steps=1, form="device"),
    ):
        with pytest.raises(UserError, match=r"averaged: .*cannot be read inside jit"):
            call()


def shuffled(batch):
    rng = np.random.default_rng(0)

    def read():
        order = rng.permutation(12)
        return iter(cut(jax.tree.map(lambda x: np.asarray(x)[order], batch)))

    return read


def shared(batch):
    """A new iterator each time, over one that runs out."""
    source = iter(cut(batch) * 2)
    return lambda: map(dict, source)


def once(batch):
    source = iter(cut(batch))
    return lambda: source


def shorter(batch):
    """The second pass gives fewer batches."""
    parts = [cut(batch), cut(batch), cut(batch), cut(batch)[:2]]
    return lambda: iter(parts.pop(0) if len(parts) > 1 else parts[0])


@pytest.mark.parametrize(
    "source, message",
    [
        (once, "same batches in the same order.*the same iterator"),
        (shared, "same batches in the same order.*another first example"),
        (shuffled, r"another first example \('(x|y)' differs\).*do not shuffle"),
        (lambda b: iter(cut(b)), r"is an iterator \(list_iterator\).*only once"),
        (lambda b: (x for x in cut(b)), r"is an iterator \(generator\).*only once"),
        (lambda b: lambda: 3, "must return an iterable of batches.*returned int"),
        (lambda b: lambda: iter(()), "gives no batch"),
        (lambda b: [], "batches is empty"),
        (lambda b: b, "list of batches.*got dict.*batch_size"),
        (lambda b: b["x"], "list of batches.*batch_size"),
        (lambda b: 3, "list of batches.*got int"),
        (lambda b: "train", "list of batches.*got str"),
        (lambda b: [b, {"x": b["x"]}], "batch 1 is not laid out.*'y' is missing"),
        (lambda b: [b, b | {"z": b["x"]}], "batch 1 is not laid out.*'z' is new"),
        (lambda b: [b, b, b | {"x": b["x"][:, :2]}], r"batch 2.*'x' is float32\[2\] an example"),
        (lambda b: [b, b | {"x": b["x"].astype(int)}], r"batch 1.*'x' is int32\[3\] an example"),
        (lambda b: [b, b | {"x": b["x"][:3]}], r"'y' has shape \(12, 3\)"),
        (lambda b: [b, rows(b, 0, 0)], r"'x' has shape \(0, 3\)"),
        (lambda b: [{}], "holds no array"),
        (lambda b: lambda: iter([b, b["x"]]), "batch 1 is not laid out like the first"),
    ],
)
def test_bad_batches(key, source, message):
    params, batch = awkward_net(dtype=np.float32)
    with pytest.raises(UserError, match=f"(?s)averaged: .*{message}"):
        operator = averaged(functools.partial(hessian, awkward_loss, params), source(batch))
        geometry.trace(operator, key=key, max_products=4)


def test_a_pass_that_ends_too_early():
    """Some linearisations are kept, and a later pass gives fewer batches than these."""
    params, batch, operator_of = problem(np.float32)
    each = one_batch_bytes(operator_of, rows(batch, 0, 5))
    operator = averaged(operator_of, shorter(batch), cache_bytes=2 * each)
    with pytest.raises(UserError, match="2 of the batches that the first pass gave"):
        linearize(operator)(params)


def test_bad_arguments():
    params, batch, operator_of = problem(np.float32)
    with pytest.raises(UserError, match="function of one batch.*got Hessian"):
        averaged(operator_of(batch), cut(batch))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="field 'batch'.*returned Damped.*outside"):
        averaged(lambda b: operator_of(b) + 0.1, cut(batch))
    with pytest.raises(UserError, match="returned int"):
        averaged(lambda b: 3, cut(batch))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="cache_bytes must be a whole number >= 0"):
        averaged(operator_of, cut(batch), cache_bytes=-1)
    with pytest.raises(UserError, match="batch_size must be a whole number >= 1"):
        averaged(operator_of, batch, batch_size=0)
    with pytest.raises(UserError, match="batch_size cuts arrays"):
        averaged(operator_of, lambda: iter(cut(batch)), batch_size=4)


# A start from a few examples.


@pytest.mark.parametrize("kind", KINDS)
def test_subsamples(x64, key, kind):
    """Examples of the data, each once, shared by all parts that hold data."""
    _, batch, operator_of = problem()
    operator = 2 * make(kind, operator_of, batch) + 0.1
    for count in (1, 6, 12, 100):
        few = subsampled(operator, key=key, num_examples=count).operator.operator.batch
        assert len(few["x"]) == len(few["y"]) == min(count, 12)
        places = [
            int(np.flatnonzero((np.asarray(batch["x"]) == row).all(1))[0])
            for row in np.asarray(few["x"])
        ]
        assert len(set(places)) == len(places)
        np.testing.assert_array_equal(few["y"], np.asarray(batch["y"])[places])


def test_subsamples_of_all_parts_alike(key):
    _, batch, operator_of = problem(np.float32)
    both = operator_of(batch) + 3 * operator_of(batch)
    one, other = subsampled(both, key=key, num_examples=4).operators
    np.testing.assert_array_equal(one.batch["x"], other.operator.batch["x"])
    with pytest.raises(UserError, match="holds no batch"):
        subsampled(Diagonal(jnp.ones(3)), key=key)


def test_a_start_from_few_examples_is_near(x64, key):
    """It finds the space of the outliers: that is all it is for."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4096, 40)) * np.r_[4.0, 3.0, np.ones(38)]
    operator = averaged(functools.partial(hessian, quadratic, jnp.ones(40)), x, batch_size=512)
    found = subsample_start(operator, key=key, num_examples=256)
    assert found.vectors.shape == (3, 40) and found.num_products <= 12
    _, vectors = np.linalg.eigh(x.T @ x / 4096)
    assert np.linalg.norm(found.vectors[0] @ vectors[:, -2:]) > 0.97
