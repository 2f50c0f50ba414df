"""The official registrations: each is still what its config asks, and reads back to the byte."""

import importlib

import pytest

from sharpjax import workdir
from sharpjax.protocol.seals import amendments, registration
from sharpjax.runs import register, standing

FILES = sorted(standing.OFFICIAL.glob("*.json"))
there = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_first_ten_are_there():
    assert len(FILES) >= 10


@there
def test_its_config_asks_what_was_registered(path):
    file, _, form = path.stem.partition("-")
    config = importlib.import_module(f"configs.{file}").get_config(form).lock()
    official = registration.from_json(path.read_bytes(), path.name)
    held = register.held(official, config)
    assert held.refused == "" and held.missing_seeds == ()


@there
def test_it_is_written_as_it_was_read(path):
    official = registration.from_json(path.read_bytes(), path.name)
    assert registration.to_json(official).encode() == path.read_bytes()
    assert registration.seal(official) == official.seal


@there
def test_the_analysis_is_the_one_that_was_registered_or_an_amendment_says_why(path):
    """Who changes what decides says so beside each registration, before it is run again."""
    official = registration.from_json(path.read_bytes(), path.name)
    beside = path.with_suffix(f".{workdir.AMENDMENTS}")
    lines = amendments.read(beside.read_bytes(), seal=official.seal) if beside.exists() else ()
    assert all(len(line.reason) > 50 for line in lines)
    known = {official.digests.analysis} | amendments.named(lines, "analysis")
    assert standing.analysis_here(official) in known, f"amend {path.name}: `studies amend`"
