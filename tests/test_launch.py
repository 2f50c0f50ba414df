"""Mistakes on the command line: one line, exit code 2, before anything heavy is imported."""

import pytest

from sharpjax import catalog
from tests.commands import assert_one_line, launch, launch_probed

SMOKE = "--config=configs/sam_cifar.py:smoke"

MISTAKES = {
    "no_config": ([], ["--config is missing", "configs/sam_cifar.py"]),
    "missing_file": (
        ["--config=configs/sam_cifr.py"],
        ["no file configs/sam_cifr.py", "did you mean 'sam_cifar.py'"],
    ),
    "folder": (["--config=configs"], ["configs is a folder"]),
    "not_a_config": (["--config=README.md"], ["README.md", "SyntaxError"]),
    "form": (["--config=configs/sam_cifar.py:smke"], ["form 'smke'", "cpu, quick, smoke"]),
    "flag": ([SMOKE, "--wrkdir=x"], ["Unknown command line flag 'wrkdir'", "workdir"]),
    "argument": ([SMOKE, "quick"], ["unexpected argument 'quick'"]),
    "field": ([SMOKE, "--config.optim.rhoo=.1"], ["config.optim", "'rhoo'", "did you mean 'rho'"]),
    "block": ([SMOKE, "--config.optm.rho=.1"], ["'optm'", "did you mean 'optim'"]),
    "below_a_value": ([SMOKE, "--config.optim.rho.x=1"], ["config.optim.rho is a value", "'x'"]),
    "arm_field": (
        [SMOKE, "--config.arms.sam.optm.rho=.1"],
        ["config.arms.sam", "did you mean 'optim'"],
    ),
    "arm": ([SMOKE, "--config.arms.smm.optim.rho=.1"], ["'smm'", "Its fields: sam, sgd, sgd_2x"]),
    "arm_with_a_hyphen": (
        ["--config=configs/grokking.py:smoke", "--config.arms.add7-svd_50-80.train.epochs=3"],
        ["is quoted", "\"--config.arms['add7-svd_50-80'].train.epochs=...\""],
    ),
    "type_float": ([SMOKE, "--config.optim.rho=big"], ["config.optim.rho", "'big'"]),
    "type_int": ([SMOKE, "--config.train.epochs=1.5"], ["config.train.epochs", "1.5"]),
    "type_flag": ([SMOKE, "--config.data.augment=maybe"], ["config.data.augment", "maybe"]),
    "type_block": ([SMOKE, "--config.optim=3"], ["config.optim", "3"]),
    "seeds_text": ([SMOKE, "--config.seeds=a"], ["config.seeds", "'a'"]),
    "seeds_twice": ([SMOKE, "--config.seeds=(1,1)"], ["config.seeds", "twice"]),
    "study": (
        [SMOKE, "--config.study=flatness"],
        ["study 'flatness'", f"Known: {', '.join(sorted(catalog.STUDIES))}."],
    ),
    "data": ([SMOKE, "--config.data.name=cifar"], ["'cifar'", "did you mean 'cifar10'", "digits"]),
    "model": ([SMOKE, "--config.model.name=resnet"], ["model 'resnet'", "resnet18", "lenet"]),
    "model_image": ([SMOKE, "--config.model.name=lenet"], ["lenet", "digits", "8"]),
    "dtype": ([SMOKE, "--config.model.dtype=float8"], ["model.dtype", "float32, bfloat16"]),
    "optimizer": ([SMOKE, "--config.optim.name=sgdd"], ["optimiser", "'sgdd'", "adamw, sgd"]),
    "schedule": ([SMOKE, "--config.optim.schedule=cos"], ["'cos'", "cosine"]),
    "scaling": ([SMOKE, "--config.optim.scaling=elemnt"], ["'elemnt'", "'element'"]),
    "rho_negative": ([SMOKE, "--config.optim.rho=-.1"], ["config.optim.rho", "-0.1"]),
    "rho_nan": ([SMOKE, "--config.optim.rho=nan"], ["config.optim.rho", "nan"]),
    "learning_rate": ([SMOKE, "--config.optim.learning_rate=0"], ["config.optim.learning_rate"]),
    "m": ([SMOKE, "--config.optim.m=5"], ["config.optim.m", "5", "64"]),
    "epochs": ([SMOKE, "--config.train.epochs=0"], ["config.train.epochs=0", "1 or more"]),
    "batch": ([SMOKE, "--config.train.batch_size=257"], ["batch_size=257", "256 training"]),
    "num_train": ([SMOKE, "--config.data.num_train=2000"], ["num_train=2000", "1,437"]),
    "sets": ([SMOKE, "--config.evaluate.geometry.num_sets=9"], ["num_sets=9", "256"]),
    "products": (
        [SMOKE, "--config.evaluate.geometry.num_eigenvalues=30"],
        ["max_products=24", "num_eigenvalues=30"],
    ),
    "probes": ([SMOKE, "--config.evaluate.geometry.max_probes=3"], ["max_probes=3", "4 or more"]),
    "adaptive_m": (
        [SMOKE, "--config.evaluate.geometry.microbatch_size=64", "--config.data.num_train=0"]
        + [
            "--config.evaluate.geometry.num_examples=192",
            "--config.evaluate.geometry.adaptive_m=96",
        ],
        ["microbatch_size=64 does not divide adaptive_m=96"],
    ),
    "seeds_large": ([SMOKE, "--config.seeds=4294967296"], ["config.seeds", "2^32"]),
    "microbatch": ([SMOKE, "--config.evaluate.geometry.microbatch_size=5"], ["does not divide"]),
    "in_an_arm": (
        [SMOKE, "--config.arms.sgd_2x.train.epoch_factor=0"],
        ["arm 'sgd_2x'", "epoch_factor=0"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path):
    arguments, words = MISTAKES[name]
    workdir = tmp_path / "run"
    done = launch_probed(*arguments, f"--workdir={workdir}")
    assert done.stdout.strip() == "imported:"
    assert_one_line(done, 2, *words)
    assert not workdir.exists()


CONFIG = """
from ml_collections import ConfigDict
from configs import sam_cifar

def get_config(form=""):
    config = sam_cifar.get_config("smoke")
    {change}
    return config
"""

BROKEN = {
    "raises": ("config.optim.rh", ["AttributeError", "rh"]),
    "no_arms": ("config.arms = {}", ["config.arms is empty"]),
    "no_block": ("del config['optim']", ["config has no 'optim'"]),
    "missing_field": ("del config.train['epochs']", ["config.train.epochs is missing"]),
    "extra_field": ("config.optim.rhoo = 1.0", ["'optim.rhoo'", "did you mean 'optim.rho'"]),
    "arm_typo": ("config.arms.sam = {'optim': {'roh': .1}}", ["arms.sam.optim.roh", "'rho'"]),
    "arm_type": ("config.arms.sam = {'optim': {'rho': 'x'}}", ["arms.sam.optim.rho", "'x'"]),
    "arm_name": ("config.arms = {'a b': {}}", ["'a b'", "letters"]),
    "not_returned": ("return None", ["get_config"]),
    "bool_epochs": ("config.train.epochs = True", ["config.train.epochs=True"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_file_is_one_line(name, tmp_path):
    change, words = BROKEN[name]
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(change=change))
    done = launch(f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert_one_line(done, 2, *words)


def test_an_override_that_every_arm_shadows(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(change="config.arms.sam = {'optim': {'rho': 0.1}}"))
    done = launch(f"--config={path}", "--config.optim.rho=.2", f"--workdir={tmp_path / 'run'}")
    assert_one_line(
        done, 2, "--config.optim.rho would change nothing", "--config.arms.sam.optim.rho"
    )


def test_help_names_the_flags():
    done = launch("--help")
    assert "--config" in done.stdout and "--workdir" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
