"""Runs that are registered, begun and finished in this process."""

import pytest

from configs import sam_cifar
from sharpjax import workdir
from sharpjax.errors import UserError
from sharpjax.runs import conclude, evidence, read, record, standing, study
from sharpjax.runs import register as registering
from tests.runs import hypothesis, row


def config(seeds=(0, 1, 2, 3), rho=0.05):
    made = sam_cifar.get_config("smoke")
    made.seeds = seeds
    made.optim.rho = rho
    return made.lock()


def ask(monkeypatch, tmp_path):
    """A study with one hypothesis, and no official registrations."""
    asked = [hypothesis()]
    monkeypatch.setattr(study, "hypotheses_of", lambda config: tuple(asked))
    (tmp_path / "official").mkdir()
    monkeypatch.setattr(standing, "OFFICIAL", tmp_path / "official")
    return asked


class Lines(list):
    def __call__(self, line):
        self.extend(line.splitlines())

    def __contains__(self, words):
        return any(words in line for line in self)


def opened(path, config):
    return workdir.open_run(path, config=config.to_dict(), overrides={})


def register(path, config):
    lines = Lines()
    with opened(path, config) as run:
        registering.register(config, run, name="sam_cifar-smoke", say=lines)
    return lines


def begin(path, config, finish=False):
    lines = Lines()
    with opened(path, config) as run:
        registering.begin(config, run, name="sam_cifar-smoke", say=lines)
        if finish:
            write(run, config)
            seal(run, config)
    return lines


def write(run, config, also=lambda: None):
    """What a process of the run does: rows of two arms, and what else is asked for."""
    with record.recorded(run, study.code_of(config), {}, lambda line: None):
        run.append("sam", [row("sam", seed, 8) for seed in config.seeds])
        run.append("sgd", [row("sgd", seed, 8, value=0.6 + seed / 9) for seed in config.seeds])
        for arm in ("sam", "sgd"):
            run.publish_segment(arm, 8)
        also()


def seal(run, config):
    concluded = conclude.conclude(run.path, config.to_dict(), run.rows())
    there = standing.read(run.path)
    data = {key: {"digests": digests} for key, digests in there.data.items()} if there else {}
    verdicts = conclude.words(concluded.judgements)
    run.seal(record.manifest(config.to_dict(), run) | {"verdicts": verdicts, "data": data})


def found(path):
    return evidence.evidence(read.read(path))


def refused(action, *arguments):
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
