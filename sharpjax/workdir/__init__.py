"""A run's folder: who may write in it, what lies where, and how it is sealed.

    config.json  overrides.json         what was asked for, written before anything else
    registration.json                   what was registered before the first row, with its seal
    environment.json  processes.json    machines; each process with its code, times and memory
    journal.jsonl                       which process wrote which rows, arrays and checkpoints
    metrics/<arm>/<step>.jsonl          rows, a segment for each checkpoint interval of an arm
    metrics/<stage>/<number>.jsonl      of a stage that trains nothing, a segment for each unit
    arrays/<arm>/<step>/<name>.npz      spectra, densities and the like; digests of parameters
    checkpoints/<arm>/<step>/           each with its own SHA256SUMS
    results.jsonl                       all rows, sorted by their columns
    manifest.json                       times, and every sealed file with size and SHA-256
    DONE                                the SHA-256 of the manifest
    figures/  report.*                  made from sealed files; can be made again at any time
    amendments.jsonl  exploratory/      what was added to the registration; later measures
    derived.json                        sums of the last two lines, rewritten with them
    lease                               held by the process that runs; otherwise empty

Rows, arrays and checkpoints have one folder for each arm, because arms train one after another and
each resumes by itself. Every file but the growing segment and the journal is published whole, so a
run can continue after a kill at any moment. The folder lies on a disk or, by `gs://...`, on an
object store. What is read from a folder that somebody sent goes through `untrusted`. Nothing here
imports jax.
"""

from sharpjax.workdir.arrays import check_arrays, load_arrays
from sharpjax.workdir.config import anywhere, config_digest, flat, plain
from sharpjax.workdir.files import canonical_json, difference, json_file, publish, timestamp, walk
from sharpjax.workdir.later import add, append_amendment, replace_reports
from sharpjax.workdir.opening import open_run
from sharpjax.workdir.rows import COLUMNS, Row, lines_of, rows_in
from sharpjax.workdir.run import Run
from sharpjax.workdir.seal import (
    AMENDMENTS,
    ARRAYS,
    CHECKPOINTS,
    CONFIG,
    DONE,
    ENVIRONMENT,
    EXPLORATORY,
    FIGURES,
    LEFT_OUT,
    MANIFEST,
    METRICS,
    OVERRIDES,
    PROCESSES,
    REGISTRATION,
    REPORTS,
    RESULTS,
    SUMS,
    broken,
    damage,
    left_out,
    listed,
    read_manifest,
    sums_of,
    verify,
    write_derived,
    write_sums,
)
from sharpjax.workdir.untrusted import read_bytes, read_json

__all__ = [
    "AMENDMENTS",
    "ARRAYS",
    "CHECKPOINTS",
    "COLUMNS",
    "CONFIG",
    "DONE",
    "ENVIRONMENT",
    "EXPLORATORY",
    "FIGURES",
    "LEFT_OUT",
    "MANIFEST",
    "METRICS",
    "OVERRIDES",
    "PROCESSES",
    "REGISTRATION",
    "REPORTS",
    "RESULTS",
    "SUMS",
    "Row",
    "Run",
    "add",
    "anywhere",
    "append_amendment",
    "broken",
    "canonical_json",
    "check_arrays",
    "config_digest",
    "damage",
    "difference",
    "flat",
    "json_file",
    "left_out",
    "lines_of",
    "listed",
    "load_arrays",
    "open_run",
    "plain",
    "publish",
    "read_bytes",
    "read_json",
    "read_manifest",
    "replace_reports",
    "rows_in",
    "sums_of",
    "timestamp",
    "verify",
    "walk",
    "write_derived",
    "write_sums",
]
