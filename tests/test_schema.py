"""What a config says and what is run: a field with a default needs no name, and no digest."""

import importlib
import math
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import sam_cifar
from sharpjax import catalog, schema
from sharpjax.errors import UserError
from sharpjax.protocol.seals import registration
from sharpjax.runs import register, standing
from sharpjax.studies.sharpness import schema as sharpness
from tests.commands import ROOT, assert_one_line, environment

LATER = {
    "optim.damping": schema.optional(schema.FRACTION, 0.999),
    "evaluate.outputs.num_examples": schema.optional(schema.COUNT, 64),
    "teacher.temperature": schema.optional(schema.POSITIVE, 1.0),
}


@pytest.fixture
def later(monkeypatch):
    """The study has gained three fields since its configs were written."""
    rules = sharpness.RULES
    monkeypatch.setattr(sharpness, "RULES", rules._replace(fields={**rules.fields, **LATER}))


def config(**arms):
    made = sam_cifar.get_config("smoke")
    made.arms.update(arms)
    return made


def refused(made, words):
    with pytest.raises(UserError, match=words) as error:
        schema.check(made.lock(), {})
    assert "\n" not in str(error.value)


def test_nothing_heavy_is_imported_for_the_rules_of_a_study():
    script = (
        "import sys\n"
        "from sharpjax import catalog\n"
        "for package in catalog.STUDIES.values():\n"
        "    assert catalog.resolve(f'{package}.schema:RULES').fields\n"
        "print(*(m for m in ('jax', 'flax', 'numpy', 'scipy', 'optax') if m in sys.modules))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("study", catalog.STUDIES)
def test_rules_are_of_fields_in_tables(study):
    rules = catalog.resolve(f"{catalog.STUDIES[study]}.schema:RULES")
    assert all("." in path for path in rules.fields)
    for shared in rules.shared:
        assert any(f"{path}.".startswith(f"{shared}.") for path in rules.fields), shared
    for path, rule in rules.fields.items():
        assert rule.default is schema.REQUIRED or rule.holds(rule.default), path


def test_a_later_field_changes_nothing_that_is_said(later):
    said = {name: arm.to_dict() for name, arm in schema.resolve_arms(config()).items()}
    assert all("damping" not in arm["optim"] and "teacher" not in arm for arm in said.values())
    schema.check(config().lock(), {})


def test_an_official_registration_outlives_a_later_field(later):
    path = standing.OFFICIAL / "sam_cifar-quick.json"
    official = registration.from_json(path.read_bytes())
    now = register.describe(sam_cifar.get_config("quick").lock())
    assert not registration.compare(official, now).refused


def test_what_is_run_has_the_defaults(later):
    made = config(sam={"optim": {"damping": 0.9}})
    schema.check(made.lock(), {})
    arms = schema.complete_arms(made)
    assert arms["sam"].optim.damping == 0.9 and arms["sgd"].optim.damping == 0.999
    assert arms["sgd"].teacher.temperature == 1.0
    assert arms["sgd"].evaluate.outputs.num_examples == 64
    assert arms["sgd"].is_locked and arms["sgd"].evaluate.test == made.evaluate.test
    said = schema.resolve_arms(made)
    assert said["sam"].optim.damping == 0.9 and "damping" not in said["sgd"].optim
    assert "outputs" not in said["sgd"].evaluate


def test_optimisers_have_fields_that_few_configs_name():
    arms = schema.complete_arms(config(sam={"optim": {"name": "adam", "b2": 0.9}}))
    assert (arms["sam"].optim.b2, arms["sgd"].optim.b2, arms["sam"].optim.eps) == (0.9, 0.999, 1e-8)
    refused(config(sam={"optim": {"b2": 1.0}}), "config.optim.b2=1.0: give a number in")


def test_a_named_field_is_checked_as_any_other(later):
    schema.check(config(sam={"teacher": {"temperature": 2}}).lock(), {})
    assert (
        type(schema.resolve_arms(config(sam={"optim": {"damping": 0}}))["sam"].optim.damping)
        is float
    )
    refused(
        config(sam={"optim": {"damping": 1.0}}),
        r"arm 'sam': config.optim.damping=1.0: give a number",
    )
    refused(
        config(sam={"optim": {"damping": "x"}}),
        r"config.arms.sam.optim.damping='x': a float is wanted",
    )
    refused(config(sam={"techer": {"temperature": 2.0}}), "no field 'techer'; did you mean 'teach")
    refused(config(sam={"optim": {"dampin": 0.5}}), "'dampin'; did you mean 'damping'")
    made = config()
    made.optim.dampin = 0.5
    refused(made, "'optim.dampin'; did you mean 'optim.damping'")
    made = config()
    made.techer = {"temperature": 2.0}
    refused(made, "unknown field in config 'techer'; did you mean 'teacher'")
    made = config()
    del made["optim"]
    refused(made, "config has no 'optim'")


def test_an_arm_may_override_what_is_not_shared(monkeypatch):
    monkeypatch.setattr(sharpness, "RULES", sharpness.RULES._replace(shared=("data.name",)))
    schema.check(config(sam={"data": {"augment": False}}).lock(), {})
    refused(
        config(sam={"data": {"name": "mnist"}}),
        "all arms have the same data.name; set config.data.name instead",
    )


# Values of a wrong type.

WRONG = (
    *(None, True, 5, 10**400, 0.5, math.nan, 1e300, 1e-60, 1e-40, "x", b"x", ["x"], (), ("x",)),
    *(([1],), ({},), {"x"}, {}, {"x": None}, {1: {2: 3}}, ConfigDict({"x": 1})),
)
EACH = 9  # of the values, one in so many is tried in each field: all would take a minute
ELSE = ("has a name that is a number", "all arms have the same")  # which is said before
CONFIGS = sorted(path.stem for path in pathlib.Path(sam_cifar.__file__).parent.glob("*.py"))


def replaced(table, path, value):
    """A copy of nested tables with one value, of a path that may be new."""
    first, *rest = path
    inner = table.get(first)
    if rest:
        value = replaced(inner if isinstance(inner, dict) else {}, rest, value)
    return {**table, first: value}


def verdict(tables):
    """What `check` says of a config, None if nothing."""
    made = ConfigDict(tables)
    schema.name_fields(made, ())
    try:
        schema.check(made.lock(), {})
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_no_value_of_any_field_is_a_traceback(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    rules = schema.rules_of(made)
    arm, own = next(iter(schema.resolve_arms(made).items()))
    tables = {"study": made.study, "seeds": made.seeds, "arms": {arm: {}}, **own.to_dict()}
    assert verdict(tables) is None
    fields = [tuple(path.split(".")) for path in rules.fields]
    nodes = dict.fromkeys(path[:n] for path in fields for n in range(1, len(path) + 1))
    paths = [("study",), ("seeds",), ("arms",), ("arms", arm), ("arms", 1), (1,), *nodes]
    for i, path in enumerate(paths):
        places = [(path, value) for value in WRONG[i % EACH :: EACH]]
        if path in nodes:
            places += [(("arms", arm, *path), value) for value in WRONG[i % EACH :: 2 * EACH]]
        for place, value in places:
            said = verdict(replaced(tables, place, value))
            rule = rules.fields.get(".".join(map(str, path)), schema.TEXT)
            # What a string names, and what goes together, is refused in words of its own.
            own_words = rule.holds(value) or rule.holds(tuple(value) if value == ["x"] else value)
            if said is None:
                assert own_words or value == {}, (place, value)
                continue
            assert "\n" not in said, said
            if not own_words:
                shown = value.to_dict() if isinstance(value, ConfigDict) else value
                assert str(path[-1]) in said, (place, value, said)
                shows = str(shown) in said or any(words in said for words in ELSE)
                assert path not in fields or shows, (place, value, said)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ["sgd", "sam"]}, r"config.arms=\['sgd', 'sam'\]: give a table of arms"),
        ({"arms": {"sgd": None}}, "config.arms.sgd=None: give a table of what the arm overrides"),
        ({"arms": {1: {}}}, "config.arms has a name that is a number"),
        ({"arms": {1: {}, "sgd": {}}}, "config.arms has a name that is a number"),
        ({"study": ["x"]}, r"unknown study '\['x'\]'"),
        ({"study": None}, "unknown study 'None'"),
        ({"train": 5}, "config.train=5: give a table of its fields: batch_size, "),
        ({"optim.name": ["sgd"]}, r"config.optim.name=\['sgd'\]: give one of sgd, adam"),
        ({"optim.rho": 1e-60}, "config.optim.rho=1e-60, which is 0.0 in float32: give"),
        ({"optim.b2": 1 - 1e-9}, "b2=0.999999999, which is 1.0 in float32: give"),
        ({"optim.learning_rate": 1e300}, "rate=1e.300, which is inf in float32: give"),
        ({"evaluate.geometry.tol": 1e-40}, "tol=1e-40, which is 0.0 in float32: give"),
        # What the base says is at fault, not the arm that says otherwise.
        (
            {"optim.rho": "x", "arms": {"sgd": {"optim": {"rho": 0.1}}}},
            "^config.optim.rho='x': give a number of 0",
        ),
        ({"arms": {"sgd": {"optim": {"rho": True}}}}, "optim.rho=True: a float is wanted, not a"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(changes, words):
    tables = config().to_dict()
    for path, value in changes.items():
        tables = replaced(tables, path.split("."), value)
    refused(ConfigDict(tables), words)


# The command line.

_SCRIPT = """
import sys
from sharpjax import schema
from sharpjax.studies.sharpness import schema as sharpness
rule = schema.optional(schema.FRACTION, 0.999)
fields = {**sharpness.RULES.fields, "optim.damping": rule}
sharpness.RULES = sharpness.RULES._replace(fields=fields, shared=("data.name",))
import launch
launch.parse(sys.argv)
from absl import flags
config = flags.FLAGS.config
with launch.commandline.one_line():
    schema.check(config, {})
    for name, arm in schema.resolve_arms(config).items():
        print(name, arm.optim.get("damping"), arm.optim.rho)
assert config.is_locked
"""


def parsed(*arguments):
    command = [sys.executable, "-c", _SCRIPT, "--config=configs/sam_cifar.py:smoke", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "sam None 0.05 sgd None 0.0 sgd_2x None 0.0"),
        (("--config.optim.damping=.9",), "sam 0.9 0.05 sgd 0.9 0.0 sgd_2x 0.9 0.0"),
        (("--config.arms.sgd.optim.damping", "0"), "sam None 0.05 sgd 0.0 0.0 sgd_2x None 0.0"),
        (
            ("--config.arms['sam'].optim.damping=.5", "--config.optim.damping=.9"),
            "sam 0.5 0.05 sgd 0.9 0.0 sgd_2x 0.9 0.0",
        ),
        # A field of the base that this arm does not set itself.
        (("--config.arms.sam.optim.rho=.2",), "sam None 0.2 sgd None 0.0 sgd_2x None 0.0"),
    ],
)
def test_a_flag_sets_a_field_that_the_config_does_not_name(arguments, said):
    done = parsed(*arguments)
    assert (done.stdout.split(), done.stderr) == (said.split(), "")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (
            "--config.optim.dampin=.9",
            ["--config.optim.dampin: config.optim", "did you mean 'damping'"],
        ),
        ("--config.arms.sam.optim.dampin=.9", ["config.arms.sam.optim", "did you mean 'damping'"]),
        ("--config.optim.damping=x", ["config.optim.damping", "'x'"]),
        ("--config.optim.damping=2", ["config.optim.damping=2.0: give a number in [0, 1)"]),
        ("--config.arms.sam.data.name=mnist", ["all arms have the same data"]),
    ],
)
def test_a_flag_that_sets_no_field(argument, words):
    assert_one_line(parsed(argument), 2, *words)
