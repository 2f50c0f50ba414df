"""What a config says and what is run: a field with a default needs no name, and no digest."""

import subprocess
import sys

import pytest

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
