"""The commands for existing runs and models: `python -m sharpjax.studies --help`.

They also work on folders that somebody else sent. Nothing in a folder is trusted, unless
`--trust-checkpoints` says so.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

# Set before jax is imported: with a warm compilation cache XLA prints 250 kB of warnings on CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sharpjax import commandline, workdir  # noqa: E402
from sharpjax.errors import UserError, nearest, printable  # noqa: E402
from sharpjax.runs import read  # noqa: E402

# Each command imports its own modules when it runs: numpy and jax are slow to import.


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as a `UserError`: one line, with what is allowed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name. Returns the exit code: 0 if all is well, 1 if
    something differs."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser()
    if not given:
        parser.print_help()
        return 0
    if not given[0].startswith("-") and given[0] not in COMMANDS:
        raise UserError(
            f"there is no command '{given[0]}'{nearest(given[0], COMMANDS) or '.'} "
            f"Commands: {', '.join(COMMANDS)}."
        )
    arguments = vars(parser.parse_args(given))
    return COMMANDS[arguments.pop("command")].run(**arguments) or 0


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="python -m sharpjax.studies",
        description="Check, repeat, measure and export runs. A folder may come from anybody.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.text, description=command.text)
        for names, how in command.arguments:
            own.add_argument(*names, **how)
    return parser


def _say(line: str) -> None:
    # Names in a folder may contain control sequences that a terminal would carry out.
    print("\n".join(map(printable, line.split("\n"))), flush=True)


def _list(folder: str) -> None:
    from sharpjax.runs import listing

    parts = {
        "studies": listing.studies(),
        "configs": listing.configs(),
        f"runs in {folder}": listing.runs(folder),
    }
    for title, lines in parts.items():
        _say("\n  ".join([f"{title}:", *(list(lines) or ["none"])]))


def _verify(folder: Sequence[str]) -> int:
    from sharpjax.runs import joint, verify

    failed = 0
    for one in folder:
        judged = read.joined(read.folder_at(one))
        problems, notes = joint.check(one) if judged else verify.verify(one)
        failed += bool(problems)
        lines = [*problems, f"NOT as it was sealed: {len(problems)} problem(s)"]
        lines = lines if problems else ["every byte is as it was sealed"]
        for line in (*lines, *(f"note: {note}" for note in notes)):
            _say(f"{one}: {line}")
    return 1 if failed else 0


def _replay(folder: str, **options: Any) -> int:
    from sharpjax.runs import verify

    sound = verify.sound(folder)
    from sharpjax import runtime
    from sharpjax.runs import replay

    runtime.start()
    compared, differences, decisive, is_bitwise = replay.replay(sound, say=_say, **options)
    for line in differences[:20]:
        _say(line)
    if decisive:
        rest = "; --steps=all compares all" if decisive[0] < decisive[1] and is_bitwise else ""
        _say(f"of the {decisive[1]} rows that verdicts rest on, {decisive[0]} were compared{rest}")
    if differences:
        _say(f"NOT the same: {len(differences)} of {compared} comparisons differ")
        return 1
    if not compared:
        _say("NOT compared: it recorded nothing that must be the same here")
        return 1
    _say(f"the same: {compared} rows and digests agree")
    return 0


def _measure(
    folder: str, set: Sequence[str], trust_checkpoints: bool, name: str, **data: str
) -> None:
    overrides = {}
    for text in set:
        field, equals, overrides[field] = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: give FIELD=VALUE, as geometry.num_examples=256.")
    if name and not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--name={name} names a folder; use letters, digits, _ and -.")
    from sharpjax.runs import verify

    sound = verify.sound(folder)
    if not trust_checkpoints:
        raise UserError(
            "measure loads checkpoints, and one that somebody else made may do harm; if this run "
            "is yours, or you know who made it, give --trust-checkpoints."
        )
    from sharpjax import runtime
    from sharpjax.runs import measure

    runtime.start()
    where = measure.measure(sound, overrides=overrides, name=name, say=_say, **data)
    _say(f"exploratory measures: {where}")


def _layers(checkpoint: str, only: Sequence[str], columns: str, **options: Any) -> None:
    from sharpjax import runtime

    runtime.start()
    from sharpjax.runs import layers

    named = [name.strip() for name in columns.split(",") if name.strip()]
    layers.layers(checkpoint, only=only, columns=named, say=_say, **options)


def _export(folder: str, format: str, output: str | None) -> None:
    from sharpjax.runs import export

    path = read.folder_at(folder)
    judged = read.joined(path)
    if not judged and not (path / workdir.DONE).exists():
        print("the run is not finished: its published segments alone", file=sys.stderr)
    for run in judged or [path]:
        if (run / workdir.DONE).exists() and (reason := workdir.broken(run)) is not None:
            raise UserError(f"'{run if judged else folder}' is damaged: {reason}.")
    try:
        content = export.FORMATS[format](read.in_order(read.rows(path), read.read(path).arms))
    except UnicodeEncodeError as error:
        raise UserError(f"'{folder}' holds text that is no Unicode: {error.object!r}.") from error
    if not output:
        if format == "parquet":
            raise UserError("--format=parquet is no text; name a file by --output.")
        sys.stdout.write(content.decode())
        return
    try:
        with open(output, "xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{output} is there; name a new file by --output.") from None
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}.") from error
    _say(f"{output}: {len(content):,} bytes")


def _amend(folder: str, reason: str) -> None:
    from sharpjax.runs import standing

    amendment = standing.amend(read.read(folder).path, reason)
    _say(f"amended {amendment.time}: {printable(amendment.reason)}")


def _publish(folder: str, to: str) -> None:
    from sharpjax.runs import publish

    publish.publish(folder, to, _say)


def _report(folder: Sequence[str], output: str | None, joint: str | None) -> None:
    from sharpjax.runs import report

    report.report(folder, output, _say, joint)


def _index(folder: str) -> None:
    from sharpjax.runs import report

    report.index(folder, _say)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more, nor all")
    return int(text)


def _samples(text: str) -> int:
    if not text.isdecimal() or int(text) in range(1, 20):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a whole number of 20 or more")
    return int(text)


Argument = tuple[tuple[str, ...], dict[str, Any]]


def _argument(*names: str, **how: Any) -> Argument:
    return names, how


_FOLDER = _argument("folder", help="folder of a run")
_FOLDERS = _argument("folder", nargs="+", help="folders of runs")
_DATA = (
    _argument(
        "--data_dir",
        default="",
        help="where the data lie here; what the run's own config says is not looked into",
    ),
    _argument("--manual_dir", default="", help="upstream files already on disk"),
)


class Command(NamedTuple):
    """One command: the function that runs it, a line that describes it, and its arguments. A
    function that returns None ends with code 0."""

    run: Callable[..., int | None]
    text: str
    arguments: tuple[Argument, ...]


COMMANDS = {
    "list": Command(
        _list,
        "studies, configs, and the runs in a folder",
        (_argument("folder", nargs="?", default="runs", help="folder of runs; default: runs"),),
    ),
    "report": Command(
        _report,
        "make the report of a run again; of several, one overview",
        (
            _FOLDERS,
            _argument("--output", help="a folder for the overview of several runs"),
            _argument(
                "--joint",
                metavar="FOLDER",
                help="where a form with the arms of all these runs is registered: judge that over "
                "them, and make its report there",
            ),
        ),
    ),
    "index": Command(
        _index,
        "list the runs in a folder, and what became of every hypothesis: README.md, index.html",
        (
            _argument(
                "folder",
                nargs="?",
                default="docs/results",
                help="folder of runs; default: docs/results",
            ),
        ),
    ),
    "verify": Command(_verify, "compare every byte with what was sealed", (_FOLDERS,)),
    "replay": Command(
        _replay,
        "train the first steps anew, and compare",
        (
            _FOLDER,
            _argument(
                "--steps",
                type=_count,
                default=1,
                help="train at least so many, to the end of an epoch (default: one epoch); or all",
            ),
            *_DATA,
        ),
    ),
    "measure": Command(
        _measure,
        "take new, exploratory measures of a run",
        (
            _FOLDER,
            _argument(
                "--set",
                action="append",
                default=[],
                metavar="FIELD=VALUE",
                help="another setting of the evaluators, as geometry.num_examples=256; may be "
                "repeated",
            ),
            _argument(
                "--trust-checkpoints",
                action="store_true",
                help="load them: this run is yours, or you know who made it",
            ),
            _argument("--name", default="", help="of the folder in exploratory/"),
            *_DATA,
        ),
    ),
    "layers": Command(
        _layers,
        "what the weights of each layer of a model say without data, as WeightWatcher prints it",
        (
            _argument(
                "checkpoint",
                help="folder of a run, checkpoints/ARM or checkpoints/ARM/STEP in it, or an .npz "
                "file of arrays",
            ),
            _argument("--arm", default="", help="of the run; default: the first"),
            _argument("--seed", dest="model", default="", help="default: the first"),
            _argument(
                "--step", default="", help="start, best, end, or a step; default: the newest"
            ),
            _argument(
                "--layer",
                dest="only",
                action="append",
                default=[],
                metavar="GLOB",
                help="of these names alone, as Dense_*; may be repeated",
            ),
            _argument("--columns", default="", help="which, with commas between them, or all"),
            _argument(
                "--convention",
                default="scale-free",
                choices=("scale-free", "weightwatcher"),
                help="what the definitions leave open (docs/layers.md); default: scale-free",
            ),
            _argument(
                "--samples",
                type=_samples,
                default=0,
                help="of the bootstrap of alpha: its interval and its goodness of fit",
            ),
            _argument("--shuffle", action="store_true", help="compare with shuffled entries"),
            _argument("--figure", default="", help="a new .png, .svg or .pdf file"),
            _argument(
                "--trust-checkpoints",
                action="store_true",
                help="load them: this run is yours, or you know who made it",
            ),
        ),
    ),
    "export": Command(
        _export,
        "results for other tools",
        (
            _FOLDER,
            _argument(
                "--format",
                choices=("csv", "md", "tex", "parquet"),
                default="csv",
                help="csv, parquet: the long table; md, tex: means over seeds at the last step",
            ),
            _argument("--output", help="a new file; default: standard output"),
        ),
    ),
    "publish": Command(
        _publish,
        "copy a finished run, without its weights, to a folder that fits a repository",
        (_FOLDER, _argument("to", help="a new folder, as docs/results/2026-11-28-sam_cifar")),
    ),
    "amend": Command(
        _amend,
        "say why the analysis of a registered run was changed",
        (_FOLDER, _argument("--reason", required=True, help="what was changed, and why")),
    ),
}


if __name__ == "__main__":
    code = 0
    with commandline.one_line():
        try:
            code = main()
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
