"""Replaced layers as stages of a plan."""

import dataclasses

import jax
import numpy as np
import pytest

from sharpjax import nn, tree
from sharpjax.driver import interrupt
from sharpjax.errors import UserError
from sharpjax.layerwise import criticality
from sharpjax.metrics import functional
from sharpjax.train import measures, planning, replacing
from sharpjax.train.compressing import Quantise
from sharpjax.train.layer_curvature import LayerCurvature
from sharpjax.train.plan import Compare, Derive, Ref, Snapshots, Subject, When, as_is
from sharpjax.train.state import fresh
from sharpjax.train.streams import stream
from tests.plans import Nervous, a_plan, an_arm, files, run, values, with_outputs

SHAPE = (2,)
MODEL = nn.build("mlp", num_classes=2, width=4)
LAYERS = replacing.layers_of_model(MODEL, SHAPE)
MADE = {
    "initial": replacing.Replace("initial", LAYERS, SHAPE),
    "fresh": replacing.Replace("fresh", LAYERS[1:], SHAPE, trials=2),
    "zeros": replacing.Replace("zeros", ("body",), SHAPE, groups=(("body", ("Dense_*",)),)),
    "snapshot": replacing.Replace("snapshot", LAYERS, SHAPE, at=4),
    "same": replacing.Replace("snapshot", LAYERS, SHAPE, at="end"),
}


def the_plan():
    made = (Derive(name, "a", t, with_outputs(), outputs=t.outputs) for name, t in MADE.items())
    apart = measures.ToReference("change/jsd", functional.jensen_shannon, ("fresh", "same"),
                                 reference="a")  # fmt: skip
    return a_plan(
        an_arm("a", evaluators=with_outputs(), snapshots=Snapshots(When(epochs=(1,), end=False))),
        *made,
        *(Derive(f"{name}-read", name, as_is, ()) for name in MADE),  # so that states are kept
        Compare("apart", ("a", "fresh", "same"), (apart,)),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replaced") / "run"
    return run(the_plan(), folder), folder


def test_one_layer_is_another_one_and_the_rest_is_trained(whole):
    ran, _ = whole
    for seed in (0, 1):
        trained = ran.library.state(Ref("a", seed))
        start, after = (ran.library.state(Ref("a", seed, (), at)) for at in ("start", 4))
        key, drawn = stream(seed, "derive/fresh"), criticality.Initialiser(MODEL, SHAPE)
        sources = {
            ("initial", 0): start.params,
            ("fresh", 0): drawn(jax.random.fold_in(key, 0)).params,
            ("fresh", 1): drawn(jax.random.fold_in(key, 1)).params,
            ("zeros", 0): tree.zeros_like(trained.params),
            ("snapshot", 0): after.params,
            ("same", 0): trained.params,
        }
        for (arm, trial), source in sources.items():
            made = MADE[arm]
            for layer in made.layers:
                found = ran.library.state(Ref(arm, seed, made.of(layer, trial))).params
                groups = dict(made.groups) or None
                expected = criticality.replaced(trained.params, layer, source, groups)
                assert tree.digest(found) == tree.digest(expected)
                assert (arm == "same") == (tree.digest(found) == tree.digest(trained.params))


def test_rows_are_of_a_layer_and_a_trial(whole):
    ran, folder = whole
    assert MADE["fresh"].outputs == tuple(
        (("layer", layer), ("trial", t)) for t in (0, 1) for layer in ("Dense_1", "head")
    )
    accuracy = values(folder, arm="fresh", metric="test/accuracy")
    assert len(accuracy) == 2 * 4 and (0, 8, ("layer", "head"), ("trial", 1)) in accuracy
    jsd = values(folder, arm="fresh", metric="change/jsd")
    assert jsd.keys() == accuracy.keys() and all(x > 0 for x in jsd.values())
    nothing = values(folder, arm="same", metric="change/jsd")
    assert len(nothing) == 2 * 3 and set(nothing.values()) == {0.0}


def test_a_run_that_was_stopped_makes_the_same(whole, tmp_path):
    ran, stopped = None, 0
    while ran is None:
        try:
            ran = run(the_plan(), tmp_path / "run", Nervous(3 + 4 * stopped))
        except interrupt.Interrupted:
            stopped += 1
    assert stopped >= 1
    assert files(tmp_path / "run") == files(whole[1])


def test_a_norm_and_its_statistics_go_with_a_layer():
    model, shape = nn.VGGNarrow(num_classes=2, width=2, blocks=(1,)), (4, 4, 1)
    draw = criticality.Initialiser(model, shape)
    own, start = (draw(jax.random.key(i)) for i in (0, 1))
    own = jax.tree.map(lambda x: x + 1, own)
    states = [fresh(w.params, w.variables, (), ()) for w in (own, start)]
    subject = Subject(0, (), 8, model, states[0], lambda at: states[at == "start"])
    made = replacing.Replace("initial", ("Conv_0",), shape, batch_norm="all")
    ((_, found),) = made(subject, jax.random.key(0))
    for part, name in (("params", "scale"), ("variables", "var")):
        there, trained = getattr(found, part), getattr(states[0], part)
        there, trained = (x.get("batch_stats", x)["BatchNorm_0"][name] for x in (there, trained))
        assert np.all(there == trained - 1)
    assert replacing.layers_of_model(model, shape, batch_norm="all") == (
        "Conv_0",
        "Dense_0",
        "head",
    )
    assert "BatchNorm_0" in replacing.layers_of_model(model, shape)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "random"}, "unknown kind .replacing.Replace. 'random'"),
        ({"batch_norm": "both"}, "unknown batch_norm"),
        ({"layers": ()}, r"layers=\(\); give a tuple of names"),
        ({"layers": "head"}, "layers='head'; give a tuple"),
        ({"layers": ("head", "head")}, "give each once"),
        ({"trials": 0}, "trials must be a whole number >= 1"),
        ({"trials": 2}, "trials=2, but of kind 'initial' nothing is drawn"),
        ({"at": 4}, "kind='initial' and at=4"),
        ({"kind": "snapshot"}, "at=None; a 'snapshot' has a step"),
        ({"kind": "zeros", "batch_norm": "all"}, "zeros would be variances"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        replacing.Replace(
            **{"kind": "initial", "layers": ("head",), "input_shape": SHAPE} | options
        )


def test_an_unknown_layer_is_named_before_anything_is_trained(tmp_path):
    trained = an_arm("a", (0,), epochs=1)

    def plan(made, **fields):
        return a_plan(trained, Derive("b", "a", made, (), outputs=made.outputs, **fields))

    for made in (replacing.Replace("zeros", ("heads",), SHAPE), Quantise(4, ("head/kernels",))):
        with pytest.raises(UserError, match="unknown layer of arm 'b' 'head.*did you mean 'head"):
            planning.check(plan(made))
    curvature = LayerCurvature(When(), ("head", "Dense_9"), 8, 1, 10, 0.1, 1)
    with pytest.raises(UserError, match="unknown layer of arm 'a' 'Dense_9'"):
        planning.check(a_plan(dataclasses.replace(trained, evaluators=(curvature,))))
    # Groups have names of their own: what of them is not there shows when they are made.
    grouped = replacing.Replace("zeros", ("tail",), SHAPE, groups=(("ends", ("head/*",)),))
    planning.check(plan(grouped))
    with pytest.raises(UserError, match="unknown layer .*'tail'"):
        run(plan(grouped), tmp_path / "run")
