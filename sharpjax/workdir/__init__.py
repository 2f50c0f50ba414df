"""A run's folder: who may write in it, what lies where, and how it is sealed.

    config.json  overrides.json         what was asked for, written before anything else
    environment.json                    versions and devices of each process that worked on it
    metrics/<arm>/<step>.jsonl          rows, a segment for each checkpoint interval of an arm
    arrays/<arm>/<step>/<name>.npz      spectra, densities and the like
    checkpoints/<arm>/<step>/           each with its own SHA256SUMS
    results.jsonl                       all rows, sorted by their columns
    manifest.json                       times, and every sealed file with size and SHA-256
    DONE                                the SHA-256 of the manifest
    figures/  report.*  derived.json    what is made from sealed files, again at will; its sums
    lease                               held by the run under way

Rows, arrays and checkpoints have one folder for each arm, because arms train one after another and
each resumes by itself. Every file but the growing segment is published whole, so that a kill at any
moment leaves a folder to go on from. It lies on a disk or, by `gs://...`, on an object store.
Nothing here imports jax.
"""

from sharpjax.workdir.config import config_digest
from sharpjax.workdir.files import canonical_json, difference, json_file, publish
from sharpjax.workdir.opening import open_run
from sharpjax.workdir.run import COLUMNS, Run
from sharpjax.workdir.seal import ENVIRONMENT, damage, verify, write_sums

__all__ = [
    "COLUMNS",
    "ENVIRONMENT",
    "Run",
    "canonical_json",
    "config_digest",
    "damage",
    "difference",
    "json_file",
    "open_run",
    "publish",
    "verify",
    "write_sums",
]
