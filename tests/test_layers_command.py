"""`python -m sharpjax.studies layers`: of files of arrays; of runs see test_studies_command.py."""

import jax
import numpy as np
import pytest

from sharpjax import plots, tree
from sharpjax.errors import UserError
from sharpjax.layerwise.data_free import WEIGHTWATCHER, data_free, reason
from sharpjax.runs.layers import COLUMNS, layers
from sharpjax.runs.weights import weights
from sharpjax.studies import __main__ as command
from tests.commands import assert_one_line, studies

RNG = np.random.default_rng(0)
# Of one shape, so that one program has them all.
PARAMS = {
    "Dense_0": {"kernel": RNG.standard_t(3, (30, 20)), "bias": np.ones(20)},
    "Dense_1": {"kernel": RNG.normal(size=(30, 20)) * np.geomspace(1, 9, 20)},
}
ODD = {
    "constant": {"kernel": np.ones((30, 20))},
    "flat": {"kernel": np.eye(30, 20)},
    "low": {"kernel": RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 20))},
    "nan": {"kernel": np.where(np.arange(20) == 3, np.nan, np.ones((30, 20)))},
    "scale": {"bias": np.ones(9)},
    "small": {"kernel": np.ones((4, 9))},
}


def named(params, separator="/"):
    names = [name.replace("/", separator) for name in tree.path_names(params)]
    return dict(zip(names, jax.tree.leaves(params), strict=True))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **named(PARAMS))
    return path


def printed(capsys, *arguments):
    capsys.readouterr()
    assert command.main(["layers", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def refused(*arguments):
    with pytest.raises(UserError) as error:
        command.main(["layers", *map(str, arguments)])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_table_is_that_of_the_function(file, capsys):
    source, head, *lines = printed(capsys, file)
    assert source == f"{file}; scale-free"
    assert head.split() == ["layer", "N", "M", "num_evals", *COLUMNS, "note"]
    assert [line.split()[0] for line in lines] == ["Dense_0/kernel", "Dense_1/kernel", "mean"]
    expected = data_free(PARAMS).metrics
    for i, line in enumerate(lines[:2]):
        cells = dict(zip(head.split(), line.split(), strict=False))
        assert (cells["N"], cells["M"], cells["num_evals"]) == ("30", "20", "20")
        for name in COLUMNS:
            assert cells[name] == f"{getattr(expected, name)[i]:.4g}", name


def test_samples_and_shuffles_are_asked_for(file, capsys):
    options = "--samples=20", "--shuffle", "--layer=Dense_1/*"
    lines = printed(capsys, file, *options)
    assert lines[1].split()[-6:-1] == [
        *("p_value", "alpha_low", "alpha_high", "rand_distance", "ww_softrank")
    ]
    assert len(lines) == 4 and len(lines[2].split()) >= 4 + len(COLUMNS) + 5
    assert printed(capsys, file, *options) == lines  # by a key
    own = "--columns=alpha, rand_distance"
    assert printed(capsys, file, own, "--layer=*_1/kernel")[1].split()[-3:] == [
        *("alpha", "rand_distance", "note")
    ]


@pytest.mark.parametrize("separator", ["/", "."])
def test_names_lead_through_a_tree(tmp_path, separator):
    path = tmp_path / "net.npz"
    np.savez(path, **named(PARAMS, separator))
    found = weights(path).params
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    assert tree.digest(found) == tree.digest(PARAMS)


def test_of_a_state_that_a_run_stored_its_parameters(tmp_path):
    path = tmp_path / "state-0.npz"
    state = {"params": PARAMS, "variables": {"batch_stats": {"mean": np.ones((4, 4))}}}
    np.savez(path, alive=np.array(True), step=np.array(3), **named(state, "."))
    assert tree.digest(weights(path).params) == tree.digest(PARAMS)


def test_layers_without_numbers_are_said(tmp_path, capsys):
    path = tmp_path / "odd.npz"
    np.savez(path, **named(ODD))
    lines = printed(capsys, path, "--layer=*", f"--figure={tmp_path}/odd.png")
    assert lines[-1].startswith(f"{tmp_path}/odd.png")
    said = dict(line.split(": ", 1) for line in lines[9:-1])
    assert said == {
        "constant/kernel": reason(4),
        "flat/kernel": reason(5),
        "low/kernel": reason(4),
        "nan/kernel": reason(2),
        "scale/bias": reason(1),
        "small/kernel": reason(3),
    }
    assert "the rounding of its largest" in reason(4) and "1e-05" in reason(4, WEIGHTWATCHER)


def test_layers_that_the_program_fits_otherwise_are_said(tmp_path, capsys):
    path = tmp_path / "short.npz"
    kernel = np.random.default_rng(1).standard_t(3, (40, 12))
    np.savez(path, **{"head/kernel": kernel})
    lines = printed(capsys, path, "--convention=weightwatcher")
    assert lines[2].endswith("other rule")
    assert lines[-1] == f"head/kernel: {reason(7, WEIGHTWATCHER)}" and "not its" in lines[-1]
    assert "other rule" not in " ".join(printed(capsys, path))


def test_a_figure(file, tmp_path, capsys, monkeypatch):
    drawn = []
    draw = plots.layer_spectra
    monkeypatch.setattr(plots, "layer_spectra", lambda x: drawn.append(draw(x)) or drawn[-1])
    table = layers(file, figure=str(tmp_path / "a.svg"), say=lambda _: None)
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    first, *others = drawn[0].axes
    assert len(others) == 2 and others[0].get_title().startswith("Dense_0/kernel\nalpha = ")
    points = next(line for line in first.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata(), table.metrics.alpha)


def test_what_is_refused(file, tmp_path):
    assert "does not exist" in refused(tmp_path / "none")
    assert "is no checkpoint: name the folder of a run" in refused(tmp_path)
    (tmp_path / "x.pkl").write_bytes(b"")
    assert "give an .npz file" in refused(tmp_path / "x.pkl")
    (tmp_path / "x.npz").write_bytes(b"PK")
    assert "is no .npz file" in refused(tmp_path / "x.npz")
    assert "no arm, seed or step" in refused(file, "--seed=1")
    assert "layers: no leaf is named 'Dense_0/kernal'" in refused(file, "--layer=Dense_0/kernal")
    assert "did you mean 'alpha'" in refused(file, "--columns=alfa")
    assert "20 or more" in refused(file, "--samples=5")
    assert "ends in .png, .svg, .pdf" in refused(file, "--figure=x.gif")
    assert "there is no folder" in refused(file, f"--figure={tmp_path}/none/x.png")
    (tmp_path / "x.png").write_bytes(b"")
    assert "is there; name a new file" in refused(file, f"--figure={tmp_path}/x.png")
    for arrays, said in (
        ({"bias": np.ones(4)}, "holds no matrix, only 'bias'"),
        ({"kernel": np.ones((12, 12), int)}, "floating point"),
        ({"kernel": np.array([[None]])}, "not numbers"),
        ({"a": np.ones((4, 4)), "a/b": np.ones((4, 4))}, "another array"),
        ({}, "no leaf at all"),
    ):
        (tmp_path / "y.npz").unlink(missing_ok=True)
        np.savez(tmp_path / "y.npz", **arrays)
        assert said in refused(tmp_path / "y.npz"), said


def test_a_mistake_is_one_line(tmp_path):
    assert_one_line(studies("layers", tmp_path / "none.npz"), 2, "none.npz", "does not exist")
