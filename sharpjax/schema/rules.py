"""What a config must hold, checked before anything heavy is imported.

Every config has `study, seeds, arms` and the blocks of its study, whose fields are in the `RULES`
of the study's `schema` module. `arms` are nested overrides of the blocks, `{'sgd': {'optim':
{'rho': 0.0}}, 'sam': {}}`.

A field with a default need not be named. What a config says (`resolve_arms`) is what digests and
registrations hold; what is run (`complete_arms`) has the defaults filled in. So a study that gains
a field with a default keeps its registrations.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from sharpjax import catalog
from sharpjax.errors import UserError, given, is_real, nearest, unknown

Config = Any  # an ml_collections.ConfigDict, whose fields have no static types
REQUIRED = object()
_ALWAYS = ("study", "seeds", "arms")


class Rule(NamedTuple):
    """What one field may be: a predicate, its words for a person, and the default if it has one."""

    holds: Callable[[Any], bool]
    words: str
    default: Any = REQUIRED


class Rules(NamedTuple):
    """What is particular to the configs of one study.

    Attributes:
        fields: by dotted path, as `optim.rho`.
        check_arm: refuses the whole config of an arm, each of whose fields obeys its rule; raises
            `UserError`.
        check_name: likewise, of an arm's name and its config, which `check_arm` has passed.
        shared: the fields, or tables of fields, that are the same in all arms.
    """

    fields: Mapping[str, Rule]
    check_arm: Callable[[Config], None]
    check_name: Callable[[str, Config], None] = lambda name, arm: None
    shared: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[str, ...]:
        """The tables that arms override."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.fields))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(holds: Callable[[Any], bool], words: str) -> Rule:
    return Rule(lambda v: isinstance(v, int | float) and is_real(v, holds), words)


COUNT = Rule(lambda v: _is_int(v) and v >= 1, "an integer of 1 or more")
COUNT_OR_0 = Rule(lambda v: _is_int(v) and v >= 0, "an integer of 0 or more")
POSITIVE = _real(lambda v: v > 0, "a number above 0")
FRACTION = _real(lambda v: 0 <= v < 1, "a number in [0, 1)")
AT_LEAST_0 = _real(lambda v: v >= 0, "a number of 0 or more")
FLAG = Rule(lambda v: isinstance(v, bool), "True or False")
TEXT = Rule(lambda v: isinstance(v, str), "a string")


def one_of(*names: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


def optional(rule: Rule, default: Any) -> Rule:
    """The rule of a field that a config need not name."""
    return rule._replace(default=default)


def check(config: Config, overrides: Mapping[str, Any]) -> None:
    """Refuse a config that cannot be run.

    Args:
        config: the whole config.
        overrides: the fields that the command line has set, by dotted path.

    Raises:
        UserError: names the field, its value, what is allowed.
    """
    _require(config, *_ALWAYS)
    rules = rules_of(config)
    _check_tables(config, rules)
    for name in sorted({*config.keys()} - {*_ALWAYS, *rules.blocks}):
        raise unknown("field in config", name, (*_ALWAYS, *rules.blocks))
    required = (path for path, rule in rules.fields.items() if rule.default is REQUIRED)
    _require(config, *(path.partition(".")[0] for path in required))
    seeds = config.seeds
    if not (
        isinstance(seeds, tuple) and seeds and all(_is_int(s) and 0 <= s < 2**32 for s in seeds)
    ):
        raise UserError(
            f"config.seeds={_given(seeds)}: give one or more integers in [0, 2^32), as (0,1)."
        )
    if len(set(seeds)) != len(seeds):
        raise UserError(f"config.seeds={seeds}: a seed is named twice.")
    arms = complete_arms(config)
    for path in overrides:
        if not path.startswith("arms") and _everywhere(config.arms, path):
            raise UserError(
                f"--config.{path} would change nothing: every arm sets {path} itself. Set it for "
                f"one arm, as {_flag(next(iter(arms)), path)}"
            )
    # Arms that set least come first: what is wrong in the base is then not laid at an arm's door.
    for name in sorted(arms, key=lambda name: len(_named(config.arms[name]))):
        try:
            _check_fields(arms[name], rules.fields)
            rules.check_arm(arms[name])
            rules.check_name(name, arms[name])
        except UserError as error:
            own = _named(config.arms[name])
            raise UserError(f"arm '{name}': {error}" if own else str(error)) from error


def _check_tables(config: Config, rules: Rules) -> None:
    """Refuse a value in the place of a table, and a table in the place of a value."""
    _check_names(config, "config")
    _check_table(config, rules.fields, "config")
    arms = config.get("arms")
    if not isinstance(arms, ConfigDict):
        raise UserError(f"config.arms={_given(arms)}: give a table of arms, as {{'sgd': {{}}}}.")
    for name, own in arms.items():
        if not isinstance(own, ConfigDict):
            raise UserError(
                f"config.arms.{name}={_given(own)}: give a table of what the arm overrides of "
                f"{', '.join(rules.blocks)}, or {{}}."
            )
        _check_table(own, rules.fields, f"config.arms.{name}")


def _check_names(node: Config, where: str) -> None:
    """Refuse names that are numbers: a `ConfigDict` cannot sort them among others."""
    try:
        named = dict(node.items())
    except TypeError:
        named = {1: None}
    if not all(isinstance(name, str) for name in named):
        raise UserError(f"{where} has a name that is a number; give strings alone, as '1' for 1.")
    for name, value in named.items():
        if isinstance(value, ConfigDict):
            _check_names(value, f"{where}.{name}")


def _check_table(node: Config, fields: Mapping[str, Rule], where: str, above: str = "") -> None:
    for name, value in node.items():
        path, is_table = f"{above}{name}", isinstance(value, ConfigDict | Mapping)
        if path in fields:
            if is_table:
                raise UserError(f"{where}.{name}={_given(value)}: give {fields[path].words}.")
        elif below := _fields_of(f"{path}.", fields):
            if not is_table:
                raise UserError(
                    f"{where}.{name}={_given(value)}: give a table of its fields: "
                    f"{', '.join(below)}."
                )
            _check_table(value, fields, f"{where}.{name}", f"{path}.")


def _fields_of(above: str, fields: Iterable[str]) -> list[str]:
    return sorted({p.removeprefix(above).partition(".")[0] for p in fields if p.startswith(above)})


def _given(value: Any) -> str:
    return given(value.to_dict() if isinstance(value, ConfigDict) else value)


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
    """The rules of a config's study, or a `UserError` if there is no such study."""
    study = config.get("study")
    package = catalog.lookup(
        "study", catalog.STUDIES, study if isinstance(study, str) else _given(study)
    )
    return catalog.resolve(f"{package}.schema:RULES")


def resolve_arms(config: Config) -> dict[str, Config]:
    """The config of each arm by name: what the config says, without the defaults of other fields.

    Raises:
        UserError: an arm sets a field that there is not, or one of another type.
    """
    if not config.arms:
        raise UserError("config.arms is empty: name at least one arm, as {'sgd': {}}.")
    rules = rules_of(config)
    resolved = {}
    for name, own in config.arms.items():
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"config.arms: '{name}' names a folder; use letters, digits, _ and -.")
        arm = _base(config, rules)
        for path, value in _leaves(own):
            for shared in rules.shared:
                if f"{path}.".startswith(f"{shared}."):
                    raise UserError(
                        f"config.arms.{name}.{path}: all arms have the same {shared}; set "
                        f"config.{path} instead."
                    )
            _set(arm, f"config.arms.{name}.{path}", path, value, rules.fields)
        resolved[name] = arm.lock()
    return resolved


def complete_arms(config: Config) -> dict[str, Config]:
    """The config of each arm as it is run: `resolve_arms`, and every default beside it."""
    fields = rules_of(config).fields
    return {name: complete(arm, fields) for name, arm in resolve_arms(config).items()}


def complete(arm: Config, fields: Mapping[str, Rule]) -> Config:
    """A copy with the defaults of those fields that it does not name."""
    whole = ConfigDict(arm.to_dict())
    for path in fields.keys() - _named(arm):
        if fields[path].default is not REQUIRED:
            _name(whole, path, fields[path].default)
    return whole.lock()


def name_fields(config: Any, paths: Iterable[str] | None = None) -> None:
    """Write fields that a config could name into it, so that the command line can set them.

    Each gets the value that it has: in the base its default, in an arm that of the base.

    Args:
        config: as its file made it; what is wrong with it is left to `check`.
        paths: those of flags, as `optim.rho`, `arms.sam.optim.rho`, `arms['sam'].optim.rho`; None:
            every field, in the base and in all arms.
    """
    if not isinstance(config, ConfigDict):
        return
    try:
        rules = rules_of(config)
        _check_tables(config, rules)
    except UserError:
        return
    values = dict(_leaves(complete(_base(config, rules), rules.fields)))
    wanted = None if paths is None else {".".join(map(str, parts)) for parts in _split(paths)}
    arms: Any = config.arms
    places = {"": config, **{f"arms.{name}.": own for name, own in arms.items()}}
    with config.unlocked():
        for prefix, place in places.items():
            for path in values.keys() - _named(place):
                if wanted is None or prefix + path in wanted:
                    _name(place, path, values[path])


def _split(paths: Iterable[str]) -> Iterable[tuple]:
    for path in paths:
        with contextlib.suppress(ValueError):  # which the parser of flags says better
            yield config_path.split(path)


def _base(config: Config, rules: Rules) -> Config:
    """The blocks that a config has."""
    blocks = ((name, config.get(name)) for name in rules.blocks)
    return ConfigDict({name: b.to_dict() for name, b in blocks if isinstance(b, ConfigDict)})


def _name(node: Config, path: str, value: Any) -> None:
    for field in reversed(path.split(".")):
        value = {field: value}
    node.update(value)


def _set(arm: Config, where: str, path: str, value: Any, fields: Mapping[str, Rule]) -> None:
    if path in fields and fields[path].default is not REQUIRED and path not in _named(arm):
        _name(arm, path, fields[path].default)
    node: Any = arm
    *tables, last = path.split(".")
    for depth, field in enumerate((*tables, last)):
        if not isinstance(node, ConfigDict) or field not in node:
            above = "".join(f"{table}." for table in tables[:depth])
            known = _fields_of(above, fields)
            parent = f"config.{above}"[:-1]
            raise UserError(
                f"{where}: {parent} has no field '{field}'{nearest(field, known) or '.'} "
                f"Its fields: {', '.join(known) or 'none'}."
            )
        if depth < len(tables):
            node = node[field]
    try:
        # A `ConfigDict` would make a float of a truth value.
        node[last] = [value] if isinstance(value, bool) and isinstance(node[last], float) else value
    except (TypeError, OverflowError) as error:
        if path in fields and not fields[path].holds(node[last]):  # the base is what is wrong
            raise _forbidden(path, node[last], fields[path]) from error
        wanted = type(node[last]).__name__
        raise UserError(
            f"{where}={given(value)}: a {wanted} is wanted, not a {type(value).__name__}."
        ) from error


def _check_fields(arm: Config, fields: Mapping[str, Rule]) -> None:
    """Refuse an arm that lacks a field, has one too many, or one that its rule forbids."""
    present = dict(_leaves(arm))
    for path in sorted(fields.keys() - present.keys()):
        raise UserError(f"config.{path} is missing.")
    for path in sorted(present.keys() - fields.keys()):
        raise unknown("field in config", path, fields)
    for path, rule in fields.items():
        if not rule.holds(present[path]):
            raise _forbidden(path, present[path], rule)


def _forbidden(path: str, value: Any, rule: Rule) -> UserError:
    return UserError(f"config.{path}={_given(value)}: give {rule.words}.")


def _leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _named(node: Config) -> set[str]:
    return {path for path, _ in _leaves(node)}


def _everywhere(arms: Config, path: str) -> bool:
    return all(path in _named(arm) for arm in arms.values())
