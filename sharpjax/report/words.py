"""How numbers and contrasts are written on every page."""

import datetime
import math
import unicodedata
from collections.abc import Iterable, Sequence

from sharpjax.protocol.claims import Composite, Contrast, Quantity, arms, quantities
from sharpjax.protocol.summary import Summary
from sharpjax.protocol.tests import catalog

MISSING = "—"
LONGEST = 1_000  # characters of a text that are shown

VERDICTS = ("supported", "refuted", "equivalent", "inconclusive", "not run")
MEANINGS = {
    "supported": "the effect lies in the direction of the claim, significantly",
    "refuted": "the effect lies in the opposite direction, or a statement that was registered as "
    "the refutation is supported, significantly",
    "equivalent": "any effect is smaller than the smallest one of interest",
    "inconclusive": "the data do not tell; the effect that could have been seen is given",
    "not run": "no data; the reason is given",
}
INTERVALS = (
    "Claims with a direction are tested on one side; intervals are two-sided, at the confidence "
    "that decides: wider where a family is corrected, narrower where a claim of no effect is "
    "decided. So one may reach the null where p is small. In tables p is corrected within its "
    "family, if the hypothesis says so."
)
# How certain the details of a claim are in its source.
CERTAINTY = {
    "firm": "set-up and test are known",
    "partial": "part of the set-up, the test or the numbers is not known",
    "weak": "rests on a summary, a remark or the names of figures",
    "design": "put forward here, not by the source",
}
_DIRECTIONS = {"greater": "greater than", "less": "less than", "two-sided": "different from"}
# In a trend, "greater" means that the first group is the largest.
_TRENDS = {"greater": "falls", "less": "rises", "two-sided": "changes"}
_ASSOCIATIONS = {"greater": "rises with", "less": "falls with", "two-sided": "goes with"}
# Non-inferiority claims that the first group is not much worse. With "greater" worse is less.
_WORSE = {"greater": "less", "less": "more", "two-sided": "apart"}
# Control characters, format characters (marks of writing direction and others), surrogates, code
# points without a character, separators of lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}


def clean(value: object, longest: int = LONGEST) -> str:
    r"""Text from anybody, made safe to show: cut to `longest` characters, nothing invisible.

    Characters of the categories `_INVISIBLE`, except line feed and tab, are written as `\uXXXX`.

    >>> print(clean("loss\u202e\x00"))
    loss\u202e\u0000
    """
    text = str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE else f"\\u{ord(c):04x}"
        for c in text
    )


def number(value: float | None, digits: int = 4) -> str:
    """A number to `digits` significant digits, with a true minus sign; a dash if it is not known.

    >>> number(-0.00123456), number(1234567.0), number(float("nan")), number(24412.0, 3)
    ('−0.001235', '1.235e6', '—', '24400')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if 10**digits <= abs(value) < 1e6:
        value = round(value, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.0f}".replace("-", "−")
    mantissa, _, exponent = f"{value:z.{digits}g}".partition("e")
    text = mantissa + (f"e{int(exponent)}" if exponent else "")
    return text.replace("-", "−")


def number_within(value: float, width: float) -> str:
    """A number with two significant digits of its uncertainty `width`.

    >>> number_within(0.0123456, 0.004), number_within(1234.5, 210.0), number_within(2.0, 0.0)
    ('0.0123', '1230', '2')
    >>> number_within(0.9746512345, 3e-9)
    '0.9746512345'
    >>> number_within(-0.001, 0.4), number(-0.0)  # no sign where nothing is left of the number
    ('0.00', '0')
    """
    if not (math.isfinite(value) and math.isfinite(width)) or width <= 0:
        return number(value)
    decimals = 1 - math.floor(math.log10(width))
    if decimals > 8 or (decimals > 0 and abs(value) >= 1e7):
        digits = decimals + 1 + math.floor(math.log10(abs(value) or width))
        return number(value, min(max(digits, 1), 15))
    if decimals < 0 or abs(value) >= 1e7:
        return number(round(value, decimals), 7)
    return f"{value:z.{decimals}f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """
    >>> p_value(0.03125), p_value(0.00002), p_value(1.0), p_value(float("nan")), p_value(0.999)
    ('0.031', '< 0.0001', '1', '—', '1')
    """
    if p is None or math.isnan(p):
        return MISSING
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def interval(low: float, high: float) -> str:
    """
    >>> interval(-0.123, 0.456), interval(float("nan"), float("nan"))
    ('[−0.12, 0.46]', '—')
    """
    if math.isnan(low) or math.isnan(high):
        return MISSING
    half = (high - low) / 2
    return f"[{number_within(low, half)}, {number_within(high, half)}]"


def estimate(effect: float, low: float, high: float) -> str:
    """
    >>> estimate(0.1, -0.123, 0.456)
    '0.10 [−0.12, 0.46]'
    """
    if math.isnan(effect):
        return MISSING
    if math.isnan(low) or math.isnan(high):
        return number(effect)
    # The estimate keeps two digits of its own, however wide the interval is.
    width = min((high - low) / 2, abs(effect) or math.inf)
    return f"{number_within(effect, width)} {interval(low, high)}"


def mean_and_error(mean: float, error: float) -> str:
    """
    >>> mean_and_error(0.97465, 0.00102), mean_and_error(2.0, float("nan"))
    ('0.9747 ± 0.0010', '2')
    >>> mean_and_error(2.373e-5, 3.9e-7)
    '(2.373 ± 0.039)e−5'
    """
    if not error > 0 or not math.isfinite(error):
        return number(mean)
    largest = max(abs(mean), error)
    if not 1e-3 <= largest < 1e6 and math.isfinite(largest):
        power = math.floor(math.log10(largest))
        # Dividing twice keeps the power finite for the smallest numbers.
        half = power // 2
        mean, error = (x / 10.0**half / 10.0 ** (power - half) for x in (mean, error))
        inside = f"{number_within(mean, error)} ± {number_within(error, error)}"
        return f"({inside})e{power}".replace("-", "−")
    return f"{number_within(mean, error)} ± {number_within(error, error)}"


def mean_of(found: Summary | None) -> str:
    """Mean and standard error only; '' without a summary."""
    return "" if found is None else mean_and_error(found.mean, found.standard_error)


def over_seeds(found: Summary | None) -> str:
    """Mean, standard error and n, with the step if it is not the last and values not finite.

    >>> over_seeds(Summary("sam", "test/nll", "{}", 5, 0.5, 0.02, 3, 1, at_end=False))
    '0.500 ± 0.020 (3) at step 5; 1 not finite'
    """
    if found is None:
        return ""
    notes = [] if found.at_end else [f"at step {found.step}"]
    notes += [f"{found.missing} not finite"] if found.missing else []
    return f"{mean_of(found)} ({found.n:,})" + (f" {'; '.join(notes)}" if notes else "")


def many(count: int, noun: str) -> str:
    """
    >>> many(1, "hypothesis"), many(3, "seed"), many(2, "hypothesis")
    ('1 hypothesis', '3 seeds', '2 hypotheses')
    """
    if count != 1:
        noun = noun.removesuffix("is") + "es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun}"


def amount(value: float, unit: str = "") -> str:
    """An amount to three digits, with an SI prefix; '' for 0.

    >>> amount(0), amount(999), amount(91_107, "B"), amount(2.5e16), amount(999_700)
    ('', '999', '91.1 kB', '25 P', '1 M')
    """
    value = float(f"{value:.3g}")  # first, so that 999,700 is a million
    power = min(max(int(math.log10(value) // 3), 0), 6) if value else 0
    prefix = ("", "k", "M", "G", "T", "P", "E")[power]
    return f"{value / 1000**power:.3g} {prefix}{unit}".rstrip() if value else ""


def counts(verdicts: Iterable[str]) -> str:
    """
    >>> counts(["supported", "not run", "supported"])
    '2 supported, 1 not run'
    """
    verdicts = list(verdicts)
    return ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts)


def quantity(found: Quantity) -> str:
    """
    >>> quantity(Quantity("test/accuracy", of={"severity": 5}))
    'test/accuracy (severity 5) at the last step'
    """
    of = ", ".join(f"{name} {value}" for name, value in found.of.items())
    when = "at the last step" if found.at == "last" else f"at step {found.at}"
    return clean(f"{found.metric}{f' ({of})' if of else ''} {when}")


def group(name: str) -> str:
    """The name of an arm, or of pooled arms.

    >>> group("sgd|sam")
    'sgd + sam'
    """
    return clean(" + ".join(arms(name)), 80)


def comparison(contrast: Contrast) -> str:
    """What a contrast compares, and in which direction.

    >>> loss, gap = Quantity("test/loss"), Quantity("test/gap")
    >>> comparison(Contrast(loss, ("sam", "sgd"), "less", "wilcoxon"))
    'sam less than sgd'
    >>> comparison(Contrast(loss, ("sam", "sgd"), "two-sided", "tost", margin=0.1))
    'sam equal to sgd within 0.1'
    >>> comparison(Contrast(loss, ("sam",), "greater", "binomial", null=0.5))
    'sam greater than 0.5'
    >>> comparison(Contrast(loss, ("wd 0", "wd 1", "wd 2"), "greater", "page"))
    'falls along wd 0, wd 1, wd 2'
    >>> comparison(Contrast((loss, gap), ("sgd", "sgd"), "less", "spearman"))
    'test/loss falls with test/gap, in sgd'
    >>> three = (loss, gap, Quantity("size"))
    >>> comparison(Contrast(three, ("sgd",) * 3, "less", "partial-kendall"))
    'test/loss falls with test/gap, with size held fixed, in sgd'
    """
    direction, names = contrast.direction, [group(name) for name in contrast.groups]
    metrics = [clean(quantity.metric, 120) for quantity in quantities(contrast)]
    test = catalog.TESTS.get(contrast.test)
    kind = test.kind if test else ""
    besides = ""
    if contrast.test in catalog.PARTIAL:
        besides = f", with {_listed(metrics[2:])} held fixed"
    elif contrast.test in catalog.GRANULATED:
        besides = f", where one of {_listed(metrics[2:])} differs"
    if kind == "correlation" and (besides or len(names) == 2):
        where = ", in " + " and ".join(dict.fromkeys(names))
        return f"{metrics[0]} {_ASSOCIATIONS[direction]} {metrics[1]}{besides}{where}"
    if len(set(metrics)) > 1:
        names = [f"{metric} of {name}" for metric, name in zip(metrics, names, strict=True)]
    if contrast.test in ("jonckheere", "page"):
        return f"{_TRENDS[direction]} along {_listed(names)}"
    if contrast.test == "difference-of-ratios" and len(names) == 4:
        names = [" / ".join(names[:2]), " / ".join(names[2:])]
    if kind.startswith("many") and direction == "two-sided" and len(names) > 2:
        return f"{_listed(names)} differ"
    if len(names) > 1:
        first, others = names[0], _listed(names[1:])
    else:
        null = contrast.null if contrast.null is not None else test.null if test else None
        first, others = names[0], "the null" if null is None else number(null)
    if contrast.margin and (contrast.within or (test is not None and test.equivalence)):
        return f"{first} equal to {others} within {number(contrast.margin)}"
    if contrast.margin and "non-inferiority" in contrast.test:
        than = f"{number(contrast.margin)} {_WORSE[direction]}"
        return f"{first} not over {than} than {others}"
    return f"{first} {_DIRECTIONS[direction]} {others}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    """
    >>> _listed([str(i) for i in range(11)])
    '0, 1, 2, 3, …, 10'
    """
    shown = list(names) if len(names) <= most else [*names[: most - 2], "…", names[-1]]
    return ", ".join(shown)


def rule(composite: Composite) -> str:
    """How many members of a composite must be supported, and how many refuted.

    >>> rule(Composite((), "all", "majority"))
    'supported if all are, refuted if more than half are'
    >>> rule(Composite((), "any", "never"))
    'supported if any is, never refuted by them'
    """
    words = {"all": "all are", "any": "any is", "majority": "more than half are"}

    def needed(rule: str | int) -> str:
        if rule == 1:
            return "any is"
        return words.get(str(rule), f"at least {rule} are")

    text = f"supported if {needed(composite.supported_by)}, "
    if composite.refuted_by == "never":
        return text + "never refuted by them"
    return text + f"refuted if {needed(composite.refuted_by)}"


def moment(text: object) -> str:
    """
    >>> moment("2026-11-24T20:15:00+00:00"), moment("yesterday")
    ('2026-11-24 20:15:00 UTC', 'yesterday')
    """
    try:
        time = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return clean(text, 60)
    zone = "UTC" if time.utcoffset() == datetime.timedelta(0) else time.strftime("%z")
    return f"{time:%Y-%m-%d %H:%M:%S} {zone}".rstrip()
