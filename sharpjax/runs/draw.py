"""Draw the figures of a run."""

import json
from collections.abc import Callable, Iterable

from sharpjax import workdir
from sharpjax.plots import Figure, png
from sharpjax.runs import read


def draw(folder: workdir.Run, figures: Iterable[Figure], say: Callable[[str], None]) -> None:
    """Publish every figure as a PNG, and their captions in order in `captions.json`.

    A figure that cannot be drawn is left out, and a line says so: it must not stop a run after
    hours of training.
    """
    captions = {}
    target = folder.path / workdir.FIGURES
    try:
        for figure in figures:
            try:
                workdir.publish(target / f"{figure.name}.png", png(figure.draw()))
                about = {"caption": figure.caption, "metrics": figure.metrics}
                captions[figure.name] = about if figure.metrics else figure.caption
            except Exception as error:
                _say(say, figure.name, error)
    except Exception as error:
        _say(say, "a figure", error)
    text = json.dumps(captions, indent=1) + "\n"  # keeps the study's order
    workdir.publish(folder.path / read.CAPTIONS, text.encode())


def _say(say: Callable[[str], None], name: str, error: Exception) -> None:
    say(f"{name} could not be drawn: {type(error).__name__}: {error}")
