r"""Run a study: train, measure, report.

    python launch.py --config=configs/sam_cifar.py:quick
    python launch.py --config=configs/sam_cifar.py --config.optim.rho=0.1 --workdir=runs/rho-0.1
    python launch.py --config=configs/sam_cifar.py:quick --register
    python launch.py --config=configs/sam_cifar.py --dry_run

The same command resumes a run that was stopped. With --register it seals what will be asked, and
stops; without it then, it runs under that registration. With --dry_run it says what it would do,
take and register, and does nothing. This file is intentionally short: it checks
what can be checked before anything heavy is imported, and calls the study.
"""

import os

# Before jax is imported: with a warm compilation cache XLA prints 250 kB of warnings on CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib  # noqa: E402

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from sharpjax import commandline, schema, workdir  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "path of a config file, with its form: configs/sam_cifar.py:quick"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the run; default: runs/<config>-<form>-<hash of the config>"
)
_REGISTER = flags.DEFINE_bool(
    "register", False, "seal arms, seeds and hypotheses before the run, and stop"
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "say what would be done, and what it takes; do nothing"
)


def main(argv: list[str]) -> None:
    del argv
    with commandline.one_line():
        config = commandline.config_of("config")
        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        schema.check(config, overrides)
        path = _WORKDIR.value or default_workdir(config)
        if _DRY_RUN.value:
            os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator may be at work
            from sharpjax.runs import dry_run

            dry_run.show(config, name=config_name(), folder=path)
            return
        from sharpjax import runtime
        from sharpjax.runs import register, run, study

        runtime.start()
        plan = study.plan_of(config)
        if study.hypotheses_of(config):
            register.describe(config)  # a mistake is said before there is a folder
        with workdir.open_run(path, config=config.to_dict(), overrides=overrides) as folder:
            if _REGISTER.value:
                register.register(config, folder, name=config_name())
                return
            register.begin(config, folder, name=config_name())
            run.run(config, plan, folder)


def default_workdir(config) -> str:
    """The same config gives the same folder, so that the same command resumes."""
    return os.path.join("runs", f"{config_name()}-{workdir.config_digest(config.to_dict())[:8]}")


def config_name() -> str:
    """File and form, as `sam_cifar-quick`."""
    file, _, form = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return pathlib.Path(file).stem + (f"-{form}" if form else "")


def parse(argv: list[str]) -> list[str]:
    with commandline.one_line():
        argv = commandline.parse_flags(argv, schema.name_fields)
    return argv


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
