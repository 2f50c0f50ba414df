"""Runs for tests: small, whole, and made in this process."""

import hashlib
import json
import os
import pathlib

from sharpjax import workdir
from sharpjax.protocol.claims import Contrast, Hypothesis, Quantity

CONFIG = {"study": "sharpness", "seeds": (0, 1), "arms": {"sam": {}, "sgd": {}}}


def hypothesis(id="T.1", metric="test/nll", direction="less", **fields):
    contrast = Contrast(Quantity(metric), ("sam", "sgd"), direction, "paired-t")
    return Hypothesis(id, f"{metric} is lower under SAM.", (contrast,), **fields)


def row(arm, seed, step, metric="test/nll", value=0.5, **of):
    return {
        "study": "sharpness", "arm": arm, "seed": seed, "step": step, "of": of,
        "metric": metric, "value": value, "standard_error": 0.0,
    }  # fmt: skip


def sealed(path, config=None):
    """A finished run with a file of each kind, and nothing registered."""
    import numpy as np

    config = config or CONFIG
    with workdir.open_run(path, config=config, overrides={}) as run:
        processes = [{"started": workdir.timestamp(), "ended": None, "registration": None}]
        for name, content in ((workdir.ENVIRONMENT, []), (workdir.PROCESSES, processes)):
            workdir.publish(run.path / name, workdir.json_file(content).encode())
        run.enter(1)
        for arm in ("sam", "sgd"):
            own = {"study": config["study"]}
            run.append(arm, [row(arm, seed, 4, value=seed + 0.25) | own for seed in (0, 1)])
            run.publish_arrays(arm, 4, "density", {"value": np.arange(6.0)})
            run.publish_segment(arm, 4)
            folder = run.path / "checkpoints" / arm / "4"
            (folder / "state").mkdir(parents=True)
            (folder / "state" / "data").write_bytes(b"weights")
            workdir.write_sums(folder)
        (run.path / "figures").mkdir()
        (run.path / "figures" / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n picture")
        (run.path / "report.md").write_text("report")
        run.seal({"study": config["study"], "registration": None})
    return pathlib.Path(path)


def reseal(folder):
    """What an attacker does after changing files: sums of everything as it is now."""
    folder = pathlib.Path(folder)
    for sums in folder.glob("checkpoints/*/*/SHA256SUMS"):
        workdir.write_sums(workdir.files.epath.Path(sums.parent))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in workdir.seal.SEALED:
        path = folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            relative = file.relative_to(folder).as_posix()
            kept = not relative.startswith("checkpoints/") or file.name == "SHA256SUMS"
            if os.path.isfile(file) and kept:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                manifest["files"][relative] = {"bytes": file.stat().st_size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    redo(folder)


def rewrite_journal(folder):
    """The journal anew, as if each file had been written as it is now."""
    folder = pathlib.Path(folder)
    previous, lines = workdir.journal.root(workdir.files.epath.Path(folder)), []
    for line in (folder / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line) | {"previous": previous}
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
        lines.append(workdir.canonical_json(entry))
        previous = hashlib.sha256(lines[-1].encode()).hexdigest()
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))


def redo(folder):
    """DONE anew, for the manifest as it is."""
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "DONE").write_text(f"{digest}\n")
    workdir.write_derived(workdir.files.epath.Path(folder))


def listing(folder):
    """Every file and folder with its bytes, links as links."""
    entries = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        entries[name] = path.read_bytes() if path.is_file() else path.is_symlink()
    return entries


def flips(folder):
    """Each file in turn with one byte flipped, near its start and at its end: its name."""
    for name, content in listing(folder).items():
        if not isinstance(content, bytes) or not content:
            continue
        for position in sorted({len(content) // 3, len(content) - 1}):
            flipped = bytearray(content)
            flipped[position] ^= 1
            (folder / name).write_bytes(bytes(flipped))
            yield name, position
        (folder / name).write_bytes(content)
