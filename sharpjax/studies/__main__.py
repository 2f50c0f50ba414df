"""What can be done with runs: `python -m sharpjax.studies --help`.

All of it works on folders that somebody else sent, and believes nothing in them.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# Before jax is imported: with a warm compilation cache XLA prints 250 kB of warnings on CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sharpjax import commandline, workdir  # noqa: E402
from sharpjax.errors import UserError, nearest, printable  # noqa: E402
from sharpjax.runs import read  # noqa: E402

# The work's own modules are imported where they are used: numpy and jax take their time.


class _Parser(argparse.ArgumentParser):
    """argparse with mistakes as a `UserError`: one line, and what is allowed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the exit code. 0: all well. 1: something differs."""
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
    arguments = parser.parse_args(given)
    return COMMANDS[arguments.command].run(arguments)


def _say(line: str) -> None:
    # Names in a folder may hold what a terminal obeys.
    print("\n".join(map(printable, line.split("\n"))), flush=True)


def _start() -> None:
    from sharpjax import runtime

    runtime.start()


def _list(arguments: Any) -> int:
    from sharpjax.runs import listing

    parts = {
        "studies": listing.studies(),
        "configs": listing.configs(),
        f"runs in {arguments.folder}": listing.runs(arguments.folder),
    }
    for title, lines in parts.items():
        found = list(lines)
        _say(f"{title}:")
        for line in found or ["none"]:
            _say(f"  {line}")
    return 0


def _verify(arguments: Any) -> int:
    from sharpjax.runs import verify

    failed = 0
    for folder in arguments.folder:
        problems, notes = verify.verify(folder)
        for line in problems:
            _say(f"{folder}: {line}")
        if problems:
            _say(f"{folder}: NOT as it was sealed: {len(problems)} problem(s)")
            failed += 1
        else:
            _say(f"{folder}: every byte is as it was sealed")
        for line in notes:
            _say(f"{folder}: note: {line}")
    return 1 if failed else 0


def _replay(arguments: Any) -> int:
    from sharpjax.runs import verify

    folder = verify.sound(arguments.folder)
    _start()
    from sharpjax.runs import replay

    compared, differences = replay.replay(
        folder,
        steps=arguments.steps,
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        say=_say,
    )
    for line in differences[:20]:
        _say(line)
    if differences:
        _say(f"NOT the same: {len(differences)} of {compared} comparisons differ")
    else:
        _say(f"the same: {compared} rows and digests agree")
    return 1 if differences else 0


def _measure(arguments: Any) -> int:
    overrides = {}
    for text in arguments.set:
        field, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: give FIELD=VALUE, as geometry.num_examples=256.")
        overrides[field] = value
    if arguments.name and not arguments.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--name={arguments.name} names a folder; use letters, digits, _ and -.")
    from sharpjax.runs import verify

    folder = verify.sound(arguments.folder)
    if not arguments.trust_checkpoints:
        raise UserError(
            "measure loads checkpoints, and those of somebody else may be made to harm; if this "
            "run is yours, or you know who made it, say --trust-checkpoints."
        )
    _start()
    from sharpjax.runs import measure

    where = measure.measure(
        folder,
        overrides=overrides,
        name=arguments.name,
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        say=_say,
    )
    _say(f"exploratory measures: {where}")
    return 0


def _export(arguments: Any) -> int:
    from sharpjax.runs import export

    folder = read.folder_at(arguments.folder)
    if not (folder / workdir.DONE).exists():
        print("the run is not finished: its published segments alone", file=sys.stderr)
    elif (reason := workdir.broken(folder)) is not None:
        raise UserError(f"'{arguments.folder}' is damaged: {reason}.")
    content = export.FORMATS[arguments.format](read.rows(folder))
    if not arguments.output:
        if arguments.format == "parquet":
            raise UserError("--format=parquet is no text; name a file by --output.")
        sys.stdout.write(content.decode())
        return 0
    try:
        with open(arguments.output, "xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{arguments.output} is there; name a new file by --output.") from None
    except OSError as error:
        raise UserError(f"{arguments.output} cannot be written: {error.strerror}.") from error
    _say(f"{arguments.output}: {len(content):,} bytes")
    return 0


def _amend(arguments: Any) -> int:
    from sharpjax.runs import register

    amendment = register.amend(read.read(arguments.folder).path, arguments.reason)
    _say(f"amended {amendment.time}: {printable(amendment.reason)}")
    return 0


def _report(arguments: Any) -> int:
    from sharpjax.runs import report

    report.report(arguments.folder, arguments.output, _say)
    return 0


class _Command:
    """One command: what it does, its arguments, and what runs it."""

    def __init__(self, run: Callable[[Any], int], text: str, add: Callable[[_Parser], Any]):
        self.run, self.text, self.add = run, text, add


def _folder(parser: _Parser) -> None:
    parser.add_argument("folder", help="folder of a run")


def _folders(parser: _Parser) -> None:
    parser.add_argument("folder", nargs="+", help="folders of runs")


def _data(parser: _Parser) -> None:
    text = "where the data lie here; what the run's own config says is not looked into"
    parser.add_argument("--data_dir", default="", help=text)
    parser.add_argument("--manual_dir", default="", help="upstream files already on disk")


def _add_list(parser: _Parser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="folder of runs; default: runs")


def _add_replay(parser: _Parser) -> None:
    _folder(parser)
    parser.add_argument(
        "--steps",
        type=_count,
        default=1,
        help="train at least so many, to the end of an epoch (default: one epoch)",
    )
    _data(parser)


def _add_measure(parser: _Parser) -> None:
    _folder(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another setting of the evaluators, as geometry.num_examples=256; may be repeated",
    )
    parser.add_argument(
        "--trust-checkpoints",
        action="store_true",
        help="load them: this run is yours, or you know who made it",
    )
    parser.add_argument("--name", default="", help="of the folder in exploratory/")
    _data(parser)


def _add_export(parser: _Parser) -> None:
    _folder(parser)
    formats = ("csv", "md", "tex", "parquet")
    parser.add_argument(
        "--format",
        choices=formats,
        default="csv",
        help="csv, parquet: the long table; md, tex: means over seeds at the last step",
    )
    parser.add_argument("--output", help="a new file; default: standard output")


def _add_amend(parser: _Parser) -> None:
    _folder(parser)
    parser.add_argument("--reason", required=True, help="what was changed, and why")


def _add_report(parser: _Parser) -> None:
    _folders(parser)
    parser.add_argument("--output", help="a folder for the overview of several runs")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


COMMANDS = {
    "list": _Command(_list, "studies, configs, and the runs in a folder", _add_list),
    "report": _Command(
        _report, "make the report of a run again; of several, one overview", _add_report
    ),
    "verify": _Command(_verify, "compare every byte with what was sealed", _folders),
    "replay": _Command(_replay, "train the first steps anew, and compare", _add_replay),
    "measure": _Command(_measure, "take new, exploratory measures of a run", _add_measure),
    "export": _Command(_export, "results for other tools", _add_export),
    "amend": _Command(_amend, "say why the analysis of a registered run was changed", _add_amend),
}


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="python -m sharpjax.studies",
        description="Check, repeat, measure and export runs. A folder may come from anybody.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.text, description=command.text))
    return parser


if __name__ == "__main__":
    code = 0
    with commandline.one_line():
        try:
            code = main()
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
