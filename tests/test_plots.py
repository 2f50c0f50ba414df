"""Pictures of curvature draw what they were given, and refuse what they cannot draw."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import plots
from sharpjax.errors import UserError
from sharpjax.geometry import Eigenpairs
from sharpjax.geometry.density import Density


def pairs(values=(30.0, 10.0, 2.0), converged=(True, True, False)):
    values = jnp.asarray(values)
    fields = dict.fromkeys(Eigenpairs._fields, jnp.abs(values) / 100)
    fields |= {"values": values, "vectors": None, "converged": jnp.asarray(converged)}
    return Eigenpairs(**fields)


def spectrum_of(atoms=(8.0, jnp.nan, 5.0)):
    """Two probes of three products, of 100 eigenvalues."""
    nodes = jnp.array([[-1.0, 0.0, 2.0], [-0.8, 0.1, 2.1]])
    weights = jnp.array([[0.3, 0.5, 0.2], [0.3, 0.6, 0.1]])
    counts = jnp.int32(2), jnp.int32(6), jnp.int32(0)
    return Density(nodes, weights, 0 * nodes, jnp.asarray(atoms), jnp.float32(100), *counts)


def png(figure):
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert out.getvalue()[:8] == b"\x89PNG\r\n\x1a\n" and len(out.getvalue()) > 5000
    return figure.axes[0]


def labels(axis):
    legend = axis.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_spectrum():
    axis = png(plots.spectrum(pairs()))
    assert axis.get_yscale() == "log" and axis.get_xlabel() == "rank"
    full, hollow = (
        line for line in axis.lines if len(line.get_xdata()) and line.get_marker() == "o"
    )
    assert full.get_ydata().tolist() == [30, 10] and hollow.get_ydata().tolist() == [2]
    assert hollow.get_markerfacecolor() == "white"
    negative = png(plots.spectrum(pairs((3.0, 1.0, -2.0))))
    assert negative.get_yscale() == "linear"
    several = png(plots.spectrum({"SGD": pairs(), "SAM": pairs((20.0, 5.0, 1.0))}))
    assert "SGD" in labels(several) and "SAM (not converged)" in labels(several)


def test_density():
    found = spectrum_of()
    axis = png(plots.density(found, sigma=0.2))
    assert axis.get_yscale() == "log" and axis.get_ylabel() == "density"
    assert labels(axis) == ["± 2 s.e.", "density", "atoms"]
    curve, atoms = axis.lines
    grid = jnp.asarray(curve.get_xdata())
    expected = found.evaluate(grid, 0.2, atoms=False).value
    visible = expected > 2 * axis.get_ylim()[0]
    np.testing.assert_allclose(curve.get_ydata()[visible], expected[visible], rtol=1e-4)
    assert np.isfinite(curve.get_ydata()).all() and visible.sum() > 300
    # One eigenvalue of a hundred under a kernel of that width.
    assert atoms.get_xdata().tolist() == [8, 5]
    np.testing.assert_allclose(atoms.get_ydata(), 0.01 / (0.2 * np.sqrt(2 * np.pi)), rtol=1e-5)
    low, high = axis.get_ylim()
    assert low < atoms.get_ydata()[0] < high and curve.get_ydata().max() < high
    assert labels(png(plots.density(spectrum_of(atoms=()))))[-1] == "density"


def test_curvature_along_training():
    steps = np.arange(5)
    values = np.stack([[1.0, 5, 9, 10, 10], [1.0, 2, 3, 4, 5]], axis=1)
    figure = plots.curvature_along_training(steps, values, learning_rate=0.2, errors=values / 10)
    axis = png(figure)
    assert labels(axis) == ["λ₁", "λ₂", "2 / learning rate"]
    assert axis.lines[0].get_ydata().tolist() == values[:, 0].tolist()
    assert axis.lines[-1].get_ydata().tolist() == [10] * 5
    schedule = np.array([0.1, 0.2, 0.2, 0.4, 0.4])
    axis = png(
        plots.curvature_along_training(steps, values[:, 0], learning_rate=schedule, momentum=0.5)
    )
    np.testing.assert_allclose(axis.lines[-1].get_ydata(), 3 / schedule)
    assert labels(axis) == ["λ₁", "3 / learning rate"]


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.spectrum(3), "spectrum: give the eigenpairs of one model.*got a int"),
        (
            lambda: plots.spectrum(jax.tree.map(lambda x: x[None], pairs())),
            r"got a population \(Eigenpairs\)",
        ),
        (lambda: plots.spectrum(pairs([np.nan] * 3)), "there is no finite eigenvalue"),
        (lambda: plots.spectrum({}), "there is no finite eigenvalue"),
        (lambda: plots.density(pairs()), "density: give the spectral_density of one model"),
        (
            lambda: plots.density(spectrum_of()._replace(nodes=jnp.full((2, 3), jnp.nan))),
            "not finite; look at its status",
        ),
        (
            lambda: plots.curvature_along_training([1, 2], [1.0], learning_rate=1),
            r"steps must be \(T,\).*got \(2,\) and \(1,\)",
        ),
        (
            lambda: plots.curvature_along_training([1], [1.0], learning_rate=0.0),
            "learning_rate must be one number > 0",
        ),
        (
            lambda: plots.curvature_along_training([1], [1.0], learning_rate=1, errors=[1, 2]),
            r"errors have shape \(2,\), eigenvalues \(1,\)",
        ),
    ],
)
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(UserError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)
