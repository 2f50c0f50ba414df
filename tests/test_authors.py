"""The authors' numbers of a model, beside those by the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import data, nn, tree
from sharpjax.errors import UserError
from sharpjax.provenance import imports, sources
from sharpjax.studies.papers.authors import AuthorsSharpness, before_head
from sharpjax.train import state
from sharpjax.train.plan import Subject, When
from sharpjax.train.sharpness import Augmentation, Sharpness

MODEL = nn.build("mlp", num_classes=10, width=8)
PLAIN = AuthorsSharpness(When(), 32, num_draws=64, rho=1e-3)


@pytest.fixture(scope="module")
def splits():
    return data.on_device(data.Images("digits", num_train=64).load())


@pytest.fixture(scope="module")
def subject(splits):
    batch = data.batch(splits.train, np.arange(2))
    params = jax.jit(MODEL.init)(jax.random.key(0), batch["image"])["params"]
    return Subject(0, (), 0, MODEL, state.fresh(params, {}, (), ()), at=None)


def measured(measure, subject, splits):
    _, found = measure((), subject, splits, jax.random.key(1))
    named = {metric: float(x.value) for (metric, _), x in found.rows.items()}
    assert set(named) == set(measure.metrics)
    return {name.removeprefix(f"{measure.set_name}/"): x for name, x in named.items()}


def test_they_are_what_the_definitions_say_but_for_their_factors(splits, subject):
    """An MLP without biases yet: a homogeneous net of three layers."""
    right = measured(Sharpness(When(), 32, noise_pairs=1), subject, splits)
    theirs = measured(PLAIN, subject, splits)
    assert theirs["fisher_rao"] / right["fisher_rao"] == pytest.approx(6 / 3, rel=1e-3)
    of_paper_1 = AuthorsSharpness(
        When(), 32, num_draws=64, rho=1e-3, statistic="mean_absolute", num_layers=0, num_batches=3
    )
    other = measured(of_paper_1, subject, splits)
    assert other["fisher_rao"] / right["fisher_rao"] == pytest.approx(4 / 3, rel=1e-3)
    # Weights of features that never fire count in theirs.
    assert theirs["relative_flatness"] > 0.999 * right["relative_flatness_normalised"]
    assert other["relative_flatness"] == pytest.approx(3 * theirs["relative_flatness"])
    # To first order normal numbers of deviation |g| / sqrt(P): mean of 64, largest of 64.
    unit = right["gradient_norm"] / tree.size(subject.state.params) ** 0.5
    spread = np.sqrt(1 - 2 / np.pi) / 8  # of the mean of 64 absolute values
    mean = other["noise_sharpness"] / unit
    assert abs(mean - np.sqrt(2 / np.pi)) < 5 * spread + 0.02
    assert 1.0 < theirs["noise_sharpness"] / unit < 5  # p of each side below 1e-4


def test_a_set_that_is_augmented_anew_measures_the_images(splits, subject):
    crops = Augmentation(1, True)
    fixed = AuthorsSharpness(When(), 32, augmentation=crops, rho=1e-4, num_draws=8)
    anew = AuthorsSharpness(When(), 32, augmentation=crops, rho=1e-4, num_draws=8, resampled=True)
    assert anew.metrics == ("train[:32]/resampled/authors/noise_sharpness",)
    assert fixed.metrics[0] == "train[:32]/augmented/authors/noise_sharpness"
    one, other = (measured(m, subject, splits)["noise_sharpness"] for m in (fixed, anew))
    # Losses of 32 images that are cropped anew differ by far more than rho times a gradient.
    assert abs(other) > 10 * abs(one)


@pytest.mark.parametrize(
    ("net", "layer"),
    [("resnet_narrow", "BasicBlock_2/BatchNorm_1"), ("vgg_narrow", "BatchNorm_6"),
     ("vit_narrow", "LayerNorm_1"), ("mlp", "Dense_1")],
)  # fmt: skip
def test_the_layer_before_the_head(net, layer):
    model = nn.build(net, num_classes=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    found = before_head(tree.path_names(shapes["params"]))
    assert {name.rpartition("/")[0] for name in found} == {layer} and len(found) == 2


def test_their_noise_falls_on_the_statistics_of_batch_norm_too(splits):
    """Where variances are smaller than the noise it makes some of them negative, and the loss is no
    number; that of the parameters alone is."""
    image = data.batch(splits.train, np.arange(2))["image"]
    model = nn.build("resnet_narrow", num_classes=10, width=2)
    found = jax.jit(model.init)(jax.random.key(0), image)
    small = jax.tree.map(lambda x: 1e-3 * x, found["batch_stats"])
    own = state.fresh(found["params"], {"batch_stats": small}, (), ())
    one = Subject(0, (), 0, model, own, at=None)
    theirs = measured(AuthorsSharpness(When(), 32, rho=0.5), one, splits)
    assert np.isnan(theirs["noise_sharpness"])
    right = Sharpness(When(), 32, noise_rho=0.5, noise_pairs=1, head="")
    assert np.isfinite(measured(right, one, splits)["noise_sharpness"])


def test_who_measures_with_them_is_held_to_their_code():
    """The digest of measures covers these two modules, and no hypotheses."""
    papers = "sharpjax.studies.papers"
    files = imports.closure([f"{papers}.authors"], sources._measures)
    assert f"{papers}.conventions" in files and "sharpjax.train.sharpness" in files
    assert sources._measures(f"{papers}.authors")
    assert not any(sources._measures(f"{papers}.{name}") for name in ("paper6", "cells"))


def test_an_unknown_statistic_is_refused():
    with pytest.raises(UserError, match="unknown statistic .*'mean'"):
        AuthorsSharpness(When(), statistic="mean")
