"""What a config must hold (`rules`), and blocks of fields that several studies share (`blocks`).

All of it is checked before anything heavy is imported, and imports nothing heavy itself.
"""

from sharpjax.schema.rules import (
    AT_LEAST_0,
    COUNT,
    COUNT_OR_0,
    FLAG,
    FRACTION,
    POSITIVE,
    REQUIRED,
    TEXT,
    Config,
    Rule,
    Rules,
    check,
    complete,
    complete_arms,
    name_fields,
    one_of,
    optional,
    resolve_arms,
    rules_of,
)

__all__ = [
    "AT_LEAST_0",
    "COUNT",
    "COUNT_OR_0",
    "FLAG",
    "FRACTION",
    "POSITIVE",
    "REQUIRED",
    "TEXT",
    "Config",
    "Rule",
    "Rules",
    "check",
    "complete",
    "complete_arms",
    "name_fields",
    "one_of",
    "optional",
    "resolve_arms",
    "rules_of",
]
