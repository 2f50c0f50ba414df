"""Data, training steps and models of an arm, as a config about images describes them.

`schema.blocks` lists the fields.
"""

from sharpjax import catalog, data, losses, nn, optim
from sharpjax.schema import Config
from sharpjax.train import conditions
from sharpjax.train.plan import Member, Ref, Teacher
from sharpjax.train.steps import Steps


def images(
    arm: Config, specs: dict[str, data.DataSpec], name: str, *, key: str = ""
) -> tuple[str, data.Images]:
    """The key and the specification of an arm's data. A new specification is added to `specs`. Arms
    with equal data share one; an arm with other data under the same key gets its own.

    Args:
        name: of the arm.
        key: '' takes the name of the data set.
    """
    spec = data.Images(**{n: x for n, x in arm.data.to_dict().items() if n != "augment"})
    key = key or spec.name
    if specs.setdefault(key, spec) != spec:
        key = f"{key} of {name}"
    specs.setdefault(key, spec)
    return key, spec


def steps(arm: Config, spec: data.Images, *, epochs: int = 0) -> Steps:
    """Model, optimiser, batches and augmentation of an arm.

    Args:
        epochs: length of the learning-rate schedule; 0: `train.epochs`.

    Raises:
        UserError: a model or an optimiser cannot be built.
    """
    known, train = catalog.DATA_SETS[spec.name], arm.train
    steps_per_epoch = spec.num_train // train.batch_size
    return Steps(
        nn.from_config(arm.model, num_classes=spec.num_classes),
        optim.from_config(
            arm.optim,
            steps_per_epoch=steps_per_epoch,
            total_steps=(epochs or train.epochs) * steps_per_epoch,
            batch_size=train.batch_size,
        ),
        train.batch_size,
        label_smoothing=train.get("label_smoothing", 0.0),
        pad=known.pad if arm.data.augment else 0,
        flip=known.flip and arm.data.augment,
        padding=spec.padding,
    )


def member(seed: int, arm: Config, teacher: str) -> Member:
    """A model of an arm that has a block `distill`. Its start and order are those of the model with
    the same seed in the arm `teacher`, or other ones, which are the same in all arms. The block
    names the kind of its teacher; a kind that needs a model uses that one."""
    asked = arm.distill
    roles = {"init": asked.start, "order": asked.order}
    others = [role for role, given in roles.items() if given == "other"]
    own = conditions.redrawn(Member(seed), *others)
    if asked.teacher == "none":
        return own
    has_model = losses.num_models(asked.teacher)[0] > 0
    refs = (Ref(teacher, seed),) if has_model else ()
    return own._replace(
        teacher=Teacher(asked.teacher, refs, asked.temperature, asked.weight, inputs=asked.inputs)
    )
