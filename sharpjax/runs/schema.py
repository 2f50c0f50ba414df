"""What a config must hold, checked before anything heavy is imported.

Every config has `study, seeds, arms` and the blocks of its study: `data, model, optim, train,
evaluate` where something is trained; a study of another kind has `Rules` of its own. `arms` are
nested overrides of the blocks, `{'sgd': {'optim': {'rho': 0.0}}, 'sam': {}}`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sharpjax import catalog
from sharpjax.errors import UserError, nearest, unknown
from sharpjax.optim import settings

Config = Any  # an ml_collections.ConfigDict, whose fields have no static types


class Rule(NamedTuple):
    """What one field may be: a predicate, and its words for a person."""

    holds: Callable[[Any], bool]
    words: str


class Rules(NamedTuple):
    """What is particular to the configs of one study.

    Attributes:
        blocks: the tables that its arms override.
        is_shared: whether a field, by its path, is the same in all arms.
        check_arm: refuses the resolved config of an arm; raises `UserError`.
        check_name: likewise, of an arm's name.
    """

    blocks: tuple[str, ...]
    is_shared: Callable[[tuple[str, ...]], bool]
    check_arm: Callable[[Config], None]
    check_name: Callable[[str], None] = lambda name: None


# Of studies with configs of their own; the others have `TRAINING`.
RULES: Mapping[str, str] = {
    "reproducibility": "sharpjax.studies.reproducibility.schema:RULES",
    "grokking": "sharpjax.studies.grokking.schema:RULES",
}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


COUNT = Rule(lambda v: _is_int(v) and v >= 1, "an integer of 1 or more")
COUNT_OR_0 = Rule(lambda v: _is_int(v) and v >= 0, "an integer of 0 or more")
POSITIVE = Rule(lambda v: _is_real(v) and v > 0, "a number above 0")
FRACTION = Rule(lambda v: _is_real(v) and 0 <= v < 1, "a number in [0, 1)")
AT_LEAST_0 = Rule(lambda v: _is_real(v) and v >= 0, "a number of 0 or more")
FLAG = Rule(lambda v: isinstance(v, bool), "True or False")
TEXT = Rule(lambda v: isinstance(v, str), "a string")


def one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, f"one of {', '.join(names)}")


# The optimiser's fields are checked by `optim.settings`, names by `catalog`.
FIELDS: Mapping[str, Rule] = {
    "data.name": TEXT,
    "data.num_train": COUNT_OR_0,
    "data.augment": FLAG,
    "data.data_dir": TEXT,
    "data.manual_dir": TEXT,
    "model.name": TEXT,
    "model.width": COUNT_OR_0,
    "model.dtype": one_of("float32", "bfloat16"),
    "train.epochs": COUNT,
    "train.epoch_factor": COUNT,
    "train.batch_size": COUNT,
    "train.label_smoothing": FRACTION,
    "train.checkpoint_epochs": COUNT,
    "train.population": one_of("auto", "vmap", "loop"),
    "evaluate.test.every_epochs": COUNT_OR_0,
    "evaluate.test.batch_size": COUNT,
    "evaluate.test.num_bins": COUNT,
    "evaluate.geometry.every_epochs": COUNT_OR_0,
    "evaluate.geometry.where": TEXT,
    "evaluate.geometry.num_examples": COUNT,
    "evaluate.geometry.num_sets": COUNT,
    "evaluate.geometry.microbatch_size": COUNT,
    "evaluate.geometry.num_eigenvalues": COUNT,
    "evaluate.geometry.tol": POSITIVE,
    "evaluate.geometry.max_products": COUNT,
    "evaluate.geometry.trace_error": POSITIVE,
    "evaluate.geometry.max_probes": Rule(
        lambda v: _is_int(v) and v >= 4, "an integer of 4 or more"
    ),
    "evaluate.geometry.sam_rho": POSITIVE,
    "evaluate.geometry.adaptive_rho": POSITIVE,
    "evaluate.geometry.adaptive_m": COUNT,
    "evaluate.geometry.adaptive_steps": COUNT,
}


def check(config: Config, overrides: Mapping[str, Any]) -> None:
    """Refuse a config that cannot be run.

    Args:
        config: the whole config.
        overrides: the fields that the command line has set, by dotted path.

    Raises:
        UserError: names the field, its value, what is allowed.
    """
    _require(config, "study", "seeds", "arms")
    catalog.lookup("study", catalog.STUDIES, config.study)
    rules = rules_of(config)
    _require(config, *rules.blocks)
    seeds = config.seeds
    if not (
        isinstance(seeds, tuple) and seeds and all(_is_int(s) and 0 <= s < 2**32 for s in seeds)
    ):
        raise UserError(f"config.seeds={seeds}: give one or more integers in [0, 2^32), as (0,1).")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"config.seeds={seeds}: a seed is named twice.")
    arms = resolve_arms(config)
    for path in overrides:
        if not path.startswith("arms") and _everywhere(config.arms, path):
            raise UserError(
                f"--config.{path} would change nothing: every arm sets {path} itself. Set it for "
                f"one arm, as {_flag(next(iter(arms)), path)}"
            )
    # Arms that set least come first: what is wrong in the base is then not laid at an arm's door.
    for name in sorted(arms, key=lambda name: len(list(_leaves(config.arms[name])))):
        try:
            rules.check_name(name)
            rules.check_arm(arms[name])
        except UserError as error:
            own = any(True for _ in _leaves(config.arms[name]))
            raise UserError(f"arm '{name}': {error}" if own else str(error)) from error


def _flag(arm: str, path: str) -> str:
    """How a field of one arm is set: a name that is no identifier is quoted."""
    if arm.isidentifier():
        return f"--config.arms.{arm}.{path}=..."
    return f"\"--config.arms['{arm}'].{path}=...\""


def _require(config: Config, *names: str) -> None:
    missing = [name for name in names if name not in config]
    if missing:
        raise UserError(f"config has no '{missing[0]}'; every such study needs it.")


def rules_of(config: Config) -> Rules:
    """The rules of a config's study."""
    return catalog.resolve(RULES[config.study]) if config.study in RULES else TRAINING


def resolve_arms(config: Config) -> dict[str, Config]:
    """The whole config of each arm, by name.

    Raises:
        UserError: an arm sets a field that the base lacks, or one of another type.
    """
    if not config.arms:
        raise UserError("config.arms is empty: name at least one arm, as {'sgd': {}}.")
    rules = rules_of(config)
    base = ConfigDict({block: config[block].to_dict() for block in rules.blocks})
    resolved = {}
    for name, own in config.arms.items():
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"config.arms: '{name}' names a folder; use letters, digits, _ and -.")
        arm = base.copy_and_resolve_references()
        for path, value in _leaves(own):
            if rules.is_shared(path):
                raise UserError(
                    f"config.arms.{name}.{'.'.join(path)}: all arms have the same {path[0]}; set "
                    f"config.{'.'.join(path)} instead."
                )
            _set(arm, f"config.arms.{name}", path, value)
        resolved[name] = arm.lock()
    return resolved


def _set(arm: Config, where: str, path: tuple[str, ...], value: Any) -> None:
    node: Any = arm
    for depth, field in enumerate(path):
        if not isinstance(node, ConfigDict) or field not in node:
            known = sorted(node.keys()) if isinstance(node, ConfigDict) else []
            parent = ".".join(("config", *path[:depth]))
            raise UserError(
                f"{where}.{'.'.join(path)}: {parent} has no field '{field}'"
                f"{nearest(field, known) or '.'} Its fields: {', '.join(known) or 'none'}."
            )
        if depth < len(path) - 1:
            node = node[field]
    try:
        node[path[-1]] = value
    except TypeError as error:
        wanted = type(node[path[-1]]).__name__
        raise UserError(
            f"{where}.{'.'.join(path)}={value!r}: a {wanted} is wanted, not a "
            f"{type(value).__name__}."
        ) from error


def check_fields(arm: Config, fields: Mapping[str, Rule], others: Iterable[str] = ()) -> None:
    """Refuse an arm that lacks a field, has one too many, or one that its rule forbids.

    Args:
        others: fields that are checked elsewhere.
    """
    expected = {*fields, *others}
    present = {".".join(path): value for path, value in _leaves(arm)}
    for path in sorted(expected - present.keys()):
        raise UserError(f"config.{path} is missing.")
    for path in sorted(present.keys() - expected):
        raise unknown("field in config", path, expected)
    for path, rule in fields.items():
        if not rule.holds(present[path]):
            raise UserError(f"config.{path}={present[path]!r}: give {rule.words}.")


def _check_arm(arm: Config) -> None:
    check_fields(arm, FIELDS, [f"optim.{name}" for name in settings.FIELDS])
    known = catalog.lookup("data set", catalog.DATA_SETS, arm.data.name)
    catalog.lookup("model", catalog.MODELS, arm.model.name)
    smallest = catalog.SMALLEST_IMAGE.get(arm.model.name, 1)
    if min(known.shape[:2]) < smallest:
        raise UserError(
            f"config.model.name={arm.model.name} needs images of {smallest} x {smallest} or more, "
            f"and {arm.data.name} has {known.shape[0]} x {known.shape[1]}."
        )
    if arm.data.num_train > known.num_train:
        raise UserError(
            f"config.data.num_train={arm.data.num_train}: {arm.data.name} has {known.num_train:,} "
            f"training examples; 0 takes all."
        )
    num_train = arm.data.num_train or known.num_train
    if arm.train.batch_size > num_train:
        raise UserError(
            f"config.train.batch_size={arm.train.batch_size} is larger than the data: "
            f"{num_train:,} training examples."
        )
    epochs = arm.train.epochs * arm.train.epoch_factor
    settings.check(arm.optim, batch_size=arm.train.batch_size, epochs=epochs)
    _check_measurement_sets(arm.evaluate.geometry, num_train)


def _check_measurement_sets(geometry: Config, num_train: int) -> None:
    needed = geometry.num_sets * geometry.num_examples
    if needed > num_train:
        raise UserError(
            f"config.evaluate.geometry: num_sets={geometry.num_sets} disjoint sets of "
            f"num_examples={geometry.num_examples} are {needed:,} examples, and there are "
            f"{num_train:,}."
        )
    for field, whole in (
        ("microbatch_size", "num_examples"),
        ("adaptive_m", "num_examples"),
        ("microbatch_size", "adaptive_m"),
    ):
        part, total = geometry[field], geometry[whole]
        if total % min(part, total) or part > geometry.num_examples:
            raise UserError(
                f"config.evaluate.geometry.{field}={part} does not divide {whole}={total}."
            )
    if geometry.max_products < geometry.num_eigenvalues:
        raise UserError(
            f"config.evaluate.geometry.max_products={geometry.max_products} are too few for "
            f"num_eigenvalues={geometry.num_eigenvalues}."
        )


def _leaves(node: Any, prefix: tuple[str, ...] = ()) -> Iterable[tuple]:
    for name, value in node.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _everywhere(arms: Config, path: str) -> bool:
    fields = tuple(path.split("."))
    return all(any(own == fields for own, _ in _leaves(arm)) for arm in arms.values())


TRAINING = Rules(
    blocks=("data", "model", "optim", "train", "evaluate"),
    is_shared=lambda path: path[0] == "data" and path != ("data", "augment"),
    check_arm=_check_arm,
)
