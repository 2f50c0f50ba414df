"""How the command line reports a mistake: by one line and an exit code, never by a traceback.

absl and config_flags report most mistakes well, but some as a bare `KeyError`, or with the
traceback of the config file inside the message. Here all of them become a `UserError`.
"""

import contextlib
import errno
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sharpjax.errors import RunFailed, UserError, nearest, printable


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn errors meant for users into one line on stderr and an exit code.

    The codes are 2 for `UserError`, 1 for `RunFailed` and for a disk that is full, and 130 for
    Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        _leave(error, 2)
    except RunFailed as error:
        _leave(error, 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" ({error.filename})" if error.filename else ""
        _leave(f"{error.strerror}{place}; make room, and the same command goes on.", 1)
    except KeyboardInterrupt:
        _leave("interrupted", 130)


# Creates the config fields that flags are about to set, given by dotted paths; None: all fields.
Prepare = Callable[[Any, Iterable[str] | None], None]


def parse_flags(argv: Sequence[str], prepare: Prepare = lambda config, paths: None) -> list[str]:
    """`absl.flags.FLAGS(argv)`, with every mistake raised as a `UserError`."""
    parser: Any = flags.FLAGS["config"].parser
    parse = parser.parse

    def prepared(path: str) -> Any:
        config = parse(path)
        prepare(config, [name for _, name in _overrides(argv)])
        return config

    parser.parse = prepared
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # config_flags warns of what becomes an error here
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file may raise anything
        raise _explain(argv, error, prepare) from error
    finally:
        parser.parse = parse
        logging.set_verbosity(verbosity)
    if len(rest) > 1:
        raise UserError(f"unexpected argument '{rest[1]}'; options start with --.")
    return rest


def config_of(flag: str) -> Any:
    """The config of a flag of `config_flags.DEFINE_config_file`, or a `UserError` if unreadable."""
    if not flags.FLAGS[flag].present:
        raise UserError(f"--{flag} is missing: name a file, such as configs/sam_cifar.py:quick.")
    config: Any = flags.FLAGS[flag].value
    if isinstance(config, ConfigDict):
        return config
    try:
        getattr(config, "keys", None)  # the error of an unreadable file is raised only here
    except OSError as error:
        raise _unreadable(flag, config_flags.get_config_filename(flags.FLAGS[flag])) from error
    raise UserError(
        f"--{flag}: get_config() must return a ConfigDict, not a {type(config).__name__}."
    )


def _unreadable(flag: str, argument: str) -> UserError:
    path = pathlib.Path(argument.partition(":")[0])
    if os.path.exists(path):
        reason = "is a folder" if path.is_dir() else "cannot be read"
        return UserError(f"--{flag}: {path} {reason}; name a config file.")
    there = sorted(p.name for p in path.parent.glob("*.py")) if os.path.isdir(path.parent) else []
    known = f" Files in {path.parent}: {', '.join(there)}." if there else ""
    return UserError(f"--{flag}: there is no file {path}{nearest(path.name, there) or '.'}{known}")


def _overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each flag that sets a field of the config, as given, and the path of the field."""
    for argument in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            yield argument.partition("=")[0], match[1]


def _explain(argv: Sequence[str], error: Exception, prepare: Prepare) -> UserError:
    if isinstance(error, KeyError | AttributeError):
        missing = _missing_field(argv, prepare)
        if missing:
            return missing
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Traceback (most recent call last):" in lines:
        # An error in the config file itself comes as a whole traceback; its last line names it.
        lines = [lines[-1].removeprefix("ValueError: ").removeprefix(_USER_ERROR)]
    text = " ".join(lines)
    if match := re.match(r"Could not parse 'arms\.([^'.]+)\.([^']+)':", text):
        arm, path = match.groups()
        return UserError(
            f"--config.arms.{arm}.{path}: an arm's name with a hyphen is quoted; write "
            f"\"--config.arms['{arm}'].{path}=...\""
        )
    if isinstance(error, flags.Error):
        return UserError(text)
    return UserError(f"{_config_argument(argv)}: {type(error).__name__}: {text}")


_USER_ERROR = f"{UserError.__module__}.{UserError.__name__}: "


def _config_argument(argv: Sequence[str]) -> str:
    """`--config=PATH` as it was given, with an equals sign or a space."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, path = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return f"--config={path if equals else following}"
    return "--config"


def _missing_field(argv: Sequence[str], prepare: Prepare) -> UserError | None:
    """The error for the first override on the command line whose field does not exist."""
    # The config is parsed again, since a flag whose parsing has failed holds nothing.
    path = _config_argument(argv).partition("=")[2]
    try:
        config: Any = flags.FLAGS["config"].parser.parse(path)
        prepare(config, None)
    except Exception:  # the config file itself failed
        return None
    for flag, name in _overrides(argv):
        node, path = config, "config"
        for field in name.split("."):
            if not isinstance(node, Mapping) and not hasattr(node, "keys"):
                return UserError(f"{flag}: {path} is a value and has no field '{field}'.")
            if field not in node:
                hint = nearest(field, node.keys()) or "."
                known = ", ".join(sorted(node.keys())) or "none"
                return UserError(
                    f"{flag}: {path} has no field '{field}'{hint} Its fields: {known}."
                )
            node, path = node[field], f"{path}.{field}"
    return None


def _leave(error: BaseException | str, code: int) -> None:
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    sys.exit(code)
