"""Paper 6 as a study: explicit regularisation, sharpness and calibration (OpenReview ZQTiGcykl6).

Each arm of the config, `<data set>-<net>-<regulariser>`, is trained. From it `<arm>-es` is made:
the state after the epoch with the best validation accuracy, the first if several are equal.
Validation images are taken from the training set; nothing is decided on test images. Arms of one
seed share start, order and augmentation.

Measured of the last state of both kinds of arms:

    test/*                          `train.calibration`: error, ECE, before and after scaling
    train[:512]/*                   `train.sharpness`, on fixed images without augmentation
    train[:512]/normalised/*        the same with logits of one length; only -es arms
    train[:512]/authors/*           `papers.authors`: as the authors' code computes it
    train[:512]/augmented/authors/*, train[:512]/resampled/authors/*
                                    only of trained arms with augmentation

`validation/*` is measured after each epoch of a trained arm. `information_sharpness` is measured
only of -es arms, as in the paper.
"""

import jax
import jax.numpy as jnp

from sharpjax import data, schema
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.explicit_regularisation import asks, shows
from sharpjax.studies.papers import authors
from sharpjax.studies.papers.authors import AuthorsSharpness
from sharpjax.studies.papers.paper6 import REGULARISERS
from sharpjax.train import configured
from sharpjax.train.calibration import Calibration
from sharpjax.train.evaluators import SplitMetrics
from sharpjax.train.landscape import Landscape
from sharpjax.train.plan import Best, Derive, Evaluator, Member, Plan, Train, When, as_is
from sharpjax.train.sharpness import Augmentation, Sharpness
from sharpjax.train.steps import Steps

HEAD = "head/kernel"
BEST = Best("validation/accuracy", "most")


def plan(config: Config) -> Plan:
    """The data sets, an arm for each arm of the config, and the -es arm made from it.

    Raises:
        UserError: a model cannot be built, or it has no linear head of its own.
    """
    members = tuple(map(Member, config.seeds))
    specs: dict[str, data.DataSpec] = {}
    stages = []
    arms = schema.complete_arms(config)
    for name in sorted(arms, key=_place):
        arm = arms[name]
        key, spec = configured.images(arm, specs, name)
        trained = _arm(name, arm, key, spec, members)
        stopped = (*_measured(arm, trained.step, is_stopped=True),)
        stages += [trained, Derive(f"{name}-es", name, as_is, stopped, at="best")]
    return Plan(specs, tuple(stages))


def _place(name: str) -> tuple[str, str, int]:
    """A sort key: place by place, regularisers in the paper's order."""
    data_set, net, regulariser = name.split("-")
    known = REGULARISERS
    return data_set, net, known.index(regulariser) if regulariser in known else len(known)


def _arm(name: str, arm: Config, key: str, spec: data.Images, members: tuple[Member, ...]) -> Train:
    step = configured.steps(arm, spec)
    image = jnp.zeros((1, *spec.input_shape))
    shapes = jax.eval_shape(lambda: step.init(image, jax.random.key(0)).params)
    # Refused now, not after training.
    authors.check(shapes, HEAD, f"arm '{name}': config.model.name={arm.model.name}")
    each = SplitMetrics(
        arm.evaluate.calibration.batch_size,
        arm.evaluate.calibration.num_bins,
        When(every_epochs=1),
        split="validation",
    )
    return Train(
        arm=name,
        members=members,
        data=key,
        step=step,
        epochs=arm.train.epochs,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        evaluators=(each, *_measured(arm, step, is_stopped=False)),
        best=BEST,
        population=arm.train.population,
    )


def _measured(arm: Config, step: Steps, *, is_stopped: bool) -> tuple[Evaluator, ...]:
    """The evaluators of a state: by the definitions, and as the authors' code does it.

    An -es arm is also measured with logits of one length. An arm that is trained with augmentation
    is also measured by the authors' code on an augmented set, both fixed and drawn anew.
    """
    at_end, sharp = When(), arm.evaluate.sharpness.to_dict()
    few, pairs = sharp.pop("information_examples"), sharp.pop("normalised_pairs")
    sharp["microbatch_size"] = sharp["microbatch_size"] or None
    own = Sharpness(
        at_end, **sharp, head=HEAD, scaled=True, information_examples=few if is_stopped else 0
    )
    theirs = {"num_examples": own.num_examples, "head": HEAD, **arm.evaluate.authors.to_dict()}
    found = (
        Calibration(at_end, **arm.evaluate.calibration.to_dict()),
        own,
        AuthorsSharpness(at_end, **theirs),
    )
    if is_stopped:
        normalised = Sharpness(at_end, **sharp | {"noise_pairs": pairs}, normalised=True)
        return *found, normalised, Landscape(at_end, **arm.evaluate.landscape.to_dict())
    if not (step.pad or step.flip):
        return found
    crops = Augmentation(step.pad, step.flip, step.padding)
    fixed = AuthorsSharpness(at_end, **theirs, augmentation=crops)
    anew = AuthorsSharpness(at_end, **theirs, augmentation=crops, resampled=True)
    return (*found, fixed, anew)


STUDY = Study(plan, asks.hypotheses, tables=shows.tables, figures=shows.figures)
