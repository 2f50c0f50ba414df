"""Describes a contrast in one line."""

from sharpjax.protocol.claims import Contrast, Quantity, quantities


def describe(contrast: Contrast) -> str:
    """What is compared with what, in which direction, by which test.

    >>> loss, error = Quantity("test/loss"), Quantity("test/error", of={"severity": 5})
    >>> describe(Contrast(loss, ("sam", "sgd"), "less", "paired-t", margin=0.01))
    'test/loss: sam less than sgd (paired-t, smallest effect of interest 0.01)'
    >>> describe(Contrast(loss, ("sam", "sgd"), "two-sided", "ratio-of-means", 0.1, within=True))
    'test/loss: sam and sgd equal within 0.1 (ratio-of-means)'
    >>> describe(Contrast((loss, error), ("sgd", "sgd"), "greater", "spearman"))
    'test/loss of sgd, test/error (severity 5) of sgd: greater (spearman)'
    """
    groups, names = contrast.groups, [_name(quantity) for quantity in quantities(contrast)]
    details = [contrast.test]
    if contrast.null is not None:
        details.append(f"null {contrast.null:g}")
    if contrast.margin is not None and not contrast.within:
        details.append(f"smallest effect of interest {contrast.margin:g}")
    if len(set(names)) > 1:
        sides = zip(names, groups, strict=True)
        subject = ", ".join(f"{name} of {group}" for name, group in sides) + ":"
        others = ()
    else:
        subject, others = f"{names[0]}: {groups[0]}", groups[1:]
    if contrast.within:
        words = f"{' and '.join([subject, *others])} equal within {contrast.margin:g}"
    else:
        two_sided = contrast.direction == "two-sided"
        word, than = ("different", "from") if two_sided else (contrast.direction, "than")
        words = f"{subject} {word}" + (f" {than} {', '.join(others)}" if others else "")
    return f"{words} ({', '.join(details)})"


def size(effect: float, null: float) -> float:
    """The size of an effect for a sentence: without its sign if the null is 0.

    >>> size(-0.3, 0.0), size(0.8, 1.0)
    (0.3, 0.8)
    """
    return abs(effect) if null == 0 else effect


def _name(quantity: Quantity) -> str:
    coordinates = ", ".join(f"{key} {value}" for key, value in quantity.of.items())
    return f"{quantity.metric} ({coordinates})" if coordinates else quantity.metric
