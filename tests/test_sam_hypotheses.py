"""S.1 to S.4, and the names that a hypothesis of the sharpness study may ask for."""

import json
import pathlib
import runpy

import pytest

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity
from sharpjax.protocol.seals import registration
from sharpjax.runs import register, study
from sharpjax.studies.sharpness import asks as sam
from sharpjax.train import planning

ROOT = pathlib.Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "results" / "2026-11-28-sam_cifar-quick"


def config(form):
    return runpy.run_path(str(ROOT / "configs" / "sam_cifar.py"))["get_config"](form)


def test_each_is_asked_where_its_arms_are():
    whole = config("quick")
    assert [h.id for h in sam.hypotheses(whole)] == ["S.1", "S.2", "S.3", "S.4"]
    assert {h.correction for h in sam.hypotheses(whole)} == {"holm"}
    assert {h.family for h in sam.hypotheses(whole)} == {"sam"}
    with whole.unlocked():
        del whole.arms["sgd_2x"]
    assert [h.id for h in sam.hypotheses(whole)] == ["S.1", "S.2", "S.3"]


def test_metrics_are_those_of_a_published_run():
    lines = (PUBLISHED / "results.jsonl").read_text().splitlines()
    plan = study.plan_of(config("quick"))
    known = {metric for arm in planning.arms(plan) for metric in planning.metrics(plan, arm)}
    assert {json.loads(line)["metric"] for line in lines} == known


def test_the_published_registration_is_what_is_asked_now():
    sealed = json.loads((PUBLISHED / "registration.json").read_text())
    official = ROOT / "docs" / "registrations" / "sam_cifar-quick.json"
    assert sealed == json.loads(official.read_text())
    there = registration.from_json(official.read_bytes())
    assert register.held(there, config("quick")).refused == ""


def test_an_unknown_metric_is_refused_at_registration(monkeypatch):
    contrast = Contrast(Quantity("test/acuracy"), ("sam", "sgd"), "greater", "wilcoxon")
    asked = Hypothesis("T.1", "Better.", (contrast,))
    monkeypatch.setattr(study, "hypotheses_of", lambda config: (asked,))
    with pytest.raises(UserError, match="T.1.*'test/acuracy'.*did you mean 'test/accuracy'"):
        register.describe(config("quick"))
