"""What an arm stored at every epoch, as one array: read by measures, and for figures."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import data
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.metrics import trajectory
from sharpjax.metrics.embedding import classical_mds
from sharpjax.runs.run import stored
from sharpjax.train.evaluators import Outputs
from sharpjax.train.plan import Compare, Derive, Member, Ref, When, as_is
from sharpjax.train.results import Results, exact
from tests.plans import CIRCLES, END, a_plan, a_step, an_arm, run, values

EPOCHS = Outputs(When(start=True, every_epochs=1), num_examples=20)


@dataclasses.dataclass(frozen=True)
class Travelled:
    """How far the function of each model went from its start to its end."""

    name: str = "travelled"
    metrics: tuple[str, ...] = ("travelled",)

    def __call__(self, view):
        for member in view.members("a"):
            logits = view.trajectory("a", "outputs", member)["logits"]
            yield "a", member, "travelled", (), exact(trajectory.distances(logits)[0, -1])


@dataclasses.dataclass(frozen=True)
class Growing:
    """Stores more at each step."""

    when: When = When(every_epochs=1)
    name: str = "growing"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ()

    def init(self, subject, data):
        return ()

    def __call__(self, carry, subject, data, key):
        return carry, Results({}, {"x": np.zeros(subject.step)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    plan = a_plan(
        an_arm("a", evaluators=(EPOCHS, Growing())),
        Derive("again", "a", as_is, (Outputs(END),)),
        Compare("far", ("a",), (Travelled(),)),
    )
    return plan, run(plan, folder), folder


def test_outputs_of_all_epochs_are_one_array(whole):
    plan, ran, _ = whole
    for member in (Member(0), Member(1)):
        found = ran.library.trajectory("a", "outputs", member)
        assert found["step"].tolist() == [0, 4, 8] and found["logits"].shape == (3, 20, 2)
        assert (found["logits"][-1] == ran.library.arrays("a", "outputs", member)["logits"]).all()
        start = ran.library.state(Ref("a", member.seed, at="start")).params
        batch = data.batch(CIRCLES.load().splits.test, jnp.arange(20))
        expected = Classification(a_step().model).logits(start, batch)
        np.testing.assert_allclose(found["logits"][0], expected, rtol=1e-5, atol=1e-5)
        for_figures = stored(plan, ran.library)("a", "outputs", every_step=True)[member.key]
        assert (for_figures["logits"] == found["logits"]).all()
    assert ran.library.trajectory("a", "nothing", Member(0)) == {}
    assert ran.library.trajectory("a", "outputs", Member(7)) == {}


def test_a_derived_model_has_one_state(whole):
    _, ran, _ = whole
    found = ran.library.trajectory("again", "outputs", Member(1))
    assert found["step"].tolist() == [8] and found["logits"].shape == (1, 32, 2)
    assert (found["logits"] == ran.library.arrays("again", "outputs", Member(1))["logits"]).all()


def test_a_measure_reads_a_trajectory_and_it_can_be_drawn(whole):
    _, ran, folder = whole
    logits = {s: ran.library.trajectory("a", "outputs", Member(s))["logits"] for s in (0, 1)}
    want = {(s, 8): trajectory.distances(x)[0, -1] for s, x in logits.items()}
    assert values(folder, arm="a", metric="travelled") == want and min(want.values()) > 0
    points = classical_mds(trajectory.distances(trajectory.stacked(logits))).points
    assert {s: path.shape for s, path in trajectory.by_model(points, logits).items()} == {
        0: (3, 2),
        1: (3, 2),
    }


def test_arrays_of_several_shapes_are_no_trajectory(whole):
    _, ran, _ = whole
    with pytest.raises(UserError, match="'growing' stored of arm 'a', member 1, has not the same"):
        ran.library.trajectory("a", "growing", Member(1))
