"""The example of influence functions: predicted changes are those of training anew."""

import importlib.util
import pathlib

import jax
import numpy as np

from sharpjax.geometry import hessian

PATH = pathlib.Path(__file__).resolve().parent.parent / "examples" / "influence.py"
SPEC = importlib.util.spec_from_file_location("influence", PATH)
influence = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(influence)


def test_influences_are_those_of_training_anew():
    """Without example i, of leverage h, the optimum moves by 1 / (1 - h) of what is predicted, and
    the Hessian that this rests on changes by as much again. Where the predictions are off by a
    share e of the truth, the cosine of the two is at least `sqrt(1 - e^2)`; here e is 2 h."""
    predicted, true = influence.compared()
    batch, _ = influence.problem()
    params = influence.fit(batch)
    assert len(true) == len(batch["x"]) == influence.EXAMPLES
    inverse = np.linalg.inv(hessian(influence.loss, params, batch).to_dense())
    rows = np.insert(np.asarray(batch["x"]), 0, 1, axis=1)  # the bias comes first
    slope = jax.nn.sigmoid(batch["x"] @ params["w"] + params["b"])
    leverage = slope * (1 - slope) * np.sum((rows @ inverse) * rows, axis=1) / len(rows)
    most = float(leverage.max())
    assert 0.05 < most < 0.12
    assert np.corrcoef(predicted, true)[0, 1] > np.sqrt(1 - (2 * most) ** 2)
