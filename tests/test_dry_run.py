"""What a dry run says: in closed form, of every config, and without doing anything."""

import importlib
import io

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from ml_collections import ConfigDict
from rich.console import Console

from sharpjax import data, flops, nn, optim, workdir
from sharpjax.runs import dry_run, models
from sharpjax.runs.console import as_text, parameter_table
from sharpjax.train.evaluators import Outputs, SplitMetrics
from sharpjax.train.plan import (
    Best,
    Compare,
    Derive,
    Member,
    Plan,
    Ref,
    Snapshots,
    Train,
    When,
    as_is,
)
from sharpjax.train.steps import Steps
from tests.commands import ROOT, assert_one_line, launch, launch_probed

KEY = jax.random.key(0)
FORMS = [
    (name, form)
    for name in ("grokking", "reproducibility", "sam_cifar", "surfaces")
    for form in importlib.import_module(f"configs.{name}").FORMS
]


def config_of(name, form):
    return importlib.import_module(f"configs.{name}").get_config(form)


def said(config, name="mine", width=120):
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False)
    dry_run.show(config.lock(), name=name, folder="runs/mine", console=console)
    return out.getvalue()


def line_of(text, start):
    """The words of the first line that starts with these."""
    lines = (line.split() for line in text.splitlines())
    return next(words for words in lines if words[: len(start.split())] == start.split())


def flops_of(fn, *shapes):
    return flops.count(fn, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).flops


# What is counted.


def test_a_batch_of_products():
    assert flops_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 2, 3), (7, 3, 5)) == (
        2 * 7 * 2 * 3 * 5
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    def convolved(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    found = flops_of(convolved, (5, 8, 8, 4), (3, 3, 4 // groups, 6))
    assert found == 2 * 5 * (4 * 4 * 6) * (3 * 3 * 4 // groups)


@jax.custom_vjp
def squared(x):
    return x @ x


squared.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

ONE = 2 * 3**3  # of a product of two 3 x 3 matrices
INSIDE = {
    "jit": (jax.jit(lambda x: x @ x), ONE),
    "scan": (lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=5)[0], 5 * ONE),
    "while": (lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x), ONE),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ x @ x), 2 * ONE),
    "custom_vjp": (squared, ONE),
    "checkpoint": (jax.checkpoint(lambda x: x @ x), ONE),
    "gradient": (jax.grad(lambda x: jnp.sum(squared(x))), 3 * ONE),
    "lanes": (lambda x: jax.vmap(lambda c: c * x @ x)(x[0]), 3 * ONE),
    "nothing": (lambda x: jnp.sum(x * x), 0),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_inside_counts(name):
    fn, expected = INSIDE[name]
    assert flops_of(fn, (3, 3)) == expected


def test_outputs_in_bytes():
    half = jax.ShapeDtypeStruct((3, 3), jnp.bfloat16)
    assert flops.count(lambda x: x @ x @ x, half).output_bytes == 2 * 9 * 2


def model_of(arm_model, batch=64, shape=(8, 8, 1)):
    like = jax.eval_shape(arm_model.init, KEY, jnp.zeros((1, *shape)))
    found = models.Model(arm_model, jnp.zeros((1, *shape)), ("a",), like["params"], {})
    return models.forward(found, batch).flops / batch


def test_known_nets():
    assert model_of(nn.build("mlp", num_classes=10, width=32)) == 2 * (64 * 32 + 32**2 + 32 * 10)
    first, second, head = 64 * 9 * 1 * 16, 16 * 9 * 16 * 32, 16 * 32 * 10
    assert model_of(nn.build("small_conv", num_classes=10)) == 2 * (first + second + head)


def test_a_gradient_is_three_forward_passes_less_the_one_to_the_input():
    model, batch = nn.build("mlp", num_classes=10, width=32), 16
    params = jax.eval_shape(model.init, KEY, jnp.zeros((1, 64)))
    image = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
    forward = flops.count(model.apply, params, image).flops
    gradient = flops.count(jax.grad(lambda p, x: jnp.sum(model.apply(p, x))), params, image).flops
    assert gradient == 3 * forward - 2 * batch * 64 * 32


# Parameters.


@pytest.mark.parametrize(
    "name, form, counts",
    [
        ("grokking", "table1_80", (91_107, 127_419, 63_595, 31_683, 15_955)),
        ("sam_cifar", "", (11_173_962,)),
        ("sam_cifar", "quick", (9_930,)),
    ],
)
def test_parameters_of_known_nets(name, form, counts):
    plan = dry_run.plan_of(config_of(name, form).lock())
    assert [len(one.arms) for one in models.distinct(plan)] == [3 // len(counts) or 1] * len(counts)
    for one, count in zip(models.distinct(plan), counts, strict=True):
        assert f"{count:,} parameters" in models.parameters(one)
        assert len(models.parameters(one).splitlines()) <= 33


def test_many_parameters_are_few_lines():
    few = as_text(parameter_table({"a/kernel": (2, 3), "a/bias": (3,), "b": (1,)}))
    assert line_of(few, "a/kernel") == ["a/kernel", "[2,", "3]", "6", "60.0%"]
    shapes = {f"block_{i:02}/{part}": (10,) for i in range(20) for part in ("kernel", "bias")}
    table = as_text(parameter_table(shapes))
    assert line_of(table, "block_07") == ["block_07", "2", "arrays", "20", "5.0%"]
    table = as_text(parameter_table({f"w{i:02}": (1,) for i in range(50)}))
    assert line_of(table, "21 more") == ["21", "more", "21", "42.0%"]


# A plan in closed form.


def a_plan():
    spec = data.Images("digits", num_train=100, num_validation=50)
    model = nn.build("mlp", num_classes=10, width=8)

    def arm(name, start=None, rho=0.0, **options):
        optimizer = optim.OptimizerSpec("sgd", learning_rate=0.1, momentum=0.9, rho=rho)
        members = tuple(Member(seed, start=start and Ref("a", seed)) for seed in (0, 1, 2))
        return Train(name, members, "digits", Steps(model, optimizer, 16), 4, 3, **options)

    end = When()
    stages = (
        arm(
            "a",
            evaluators=(SplitMetrics(25, 5, When(every_epochs=2), "validation"), Outputs(end)),
            snapshots=Snapshots(When(start=True, end=False, epochs=(1,))),
            best=Best("validation/nll", "least"),
        ),
        arm("b", start=True, rho=0.05),
        Derive("c", "a", as_is, (Outputs(end, num_examples=40),)),
        Compare("d", ("a", "b"), ()),
    )
    return Plan({"digits": spec}, stages)


def test_a_plan_in_closed_form(monkeypatch):
    monkeypatch.setattr(dry_run, "plan_of", lambda config: a_plan())
    monkeypatch.setattr(dry_run, "hypotheses_of", lambda config: ())
    text = said(ConfigDict({"study": "sharpness"}))
    forward, weights = 2 * (64 * 8 + 8 * 8 + 8 * 10), 4 * (65 * 8 + 9 * 8 + 9 * 10)
    trained = 3 * 4 * 96 * 3 * forward  # models, epochs, examples of 6 batches
    on_validation, outputs = 3 * 2 * 50 * forward, 3 * 500 * forward
    sizes = {"trained": trained, "twice": 2 * trained, "of_a": on_validation + outputs}
    shown = {name: dry_run.amount(size).split() for name, size in sizes.items()}
    assert line_of(text, "a 3") == ["a", "3", "4", "24", "24", *shown["trained"], *shown["of_a"]]
    assert line_of(text, "b 3") == ["b", "3", "4", "24", "48", *shown["twice"]]
    assert line_of(text, "c of a")[3:] == ["3", *dry_run.amount(outputs).split()]
    assert line_of(text, "d") == ["d", "compares", "a,", "b"]
    assert f"{weights // 4:,}" in line_of(text, "MLP(num_classes=10, width=8)")
    # Kept of a: two snapshots, the end, the best; 360 examples of the test set are there.
    kept = dry_run.amount(3 * 4 * weights, "B")
    assert line_of(text, "states snapshots,")[-2:] == kept.split()
    a, b = (
        sum(x.nbytes for x in jax.tree.leaves(stage.step.init(jnp.zeros((1, 8, 8, 1)), KEY)))
        for stage in a_plan().stages[:2]
    )
    saved = dry_run.amount(2 * 3 * (a + weights + b), "B")  # with the best of a so far
    assert line_of(text, "disk checkpoints")[-2:] == saved.split()
    logits = dry_run.amount(3 * (360 + 40) * 10 * 4, "B")
    assert line_of(text, "outputs")[-2:] == logits.split()
    assert line_of(text, "data")[-2:] == dry_run.amount((100 + 50 + 360) * 68, "B").split()
    assert "0 hypotheses" in text


# Every config.


@pytest.fixture
def nothing_is_done(monkeypatch, tmp_path):
    """Loading data or opening a folder fails, and nothing may lie in the folder we are in."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dry run did something")

    monkeypatch.chdir(tmp_path)
    for kind in (data.Images, data.Modular):
        monkeypatch.setattr(kind, "load", refuse)
    for name in ("open_run", "publish"):
        monkeypatch.setattr(workdir, name, refuse)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, form", FORMS)
def test_every_form(name, form, nothing_is_done):
    config = config_of(name, form)
    text = said(config, width=80)
    assert max(map(len, text.splitlines())) <= 80
    for arm in config.arms:
        assert arm[:12] in text
    for hypothesis in dry_run.hypotheses_of(config.lock()):
        asked = "no" if hypothesis.missing else "yes"
        assert line_of(text, f"{hypothesis.id} {asked}")


def test_whether_an_official_registration_asks_the_same(nothing_is_done):
    config = config_of("sam_cifar", "quick")
    assert "takes over docs/registrations/sam_cifar-quick.json" in said(config, "sam_cifar-quick")
    config = config_of("sam_cifar", "quick")
    config.optim.rho = 0.1
    text = said(config, "sam_cifar-quick")
    assert "unregistered" in text and "arms.sam.optim.rho: 0.05 registered, 0.1 now" in text


@pytest.mark.parametrize("name", ["explicit_regularisation", "reproducibility", "sam_cifar"])
def test_through_the_door(name, tmp_path):
    done = launch(f"--config={ROOT}/configs/{name}.py:smoke", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "REGISTRATION" in done.stdout
    assert "does not exist yet" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(tmp_path):
    smoke, folder = "--config=configs/sam_cifar.py:smoke", tmp_path / "run"
    done = launch_probed(smoke, "--dry_run", "--config.optim.rhoo=.1", f"--workdir={folder}")
    assert done.stdout.strip() == "imported:"
    assert_one_line(done, 2, "did you mean 'rho'")
    done = launch(smoke, "--dry_run", "--config.evaluate.geometry.where=Dense_9/*")
    assert_one_line(done, 2, "Dense_9/*", "nearest")
    assert not folder.exists()
