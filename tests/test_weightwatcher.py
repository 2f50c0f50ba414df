"""The columns of WeightWatcher, by that program where it is installed, and as it gave them once.

It is given a folder of plain arrays, and needs no torch: `pip install weightwatcher powerlaw`.
"""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.layerwise.data_free import (
    WEIGHTWATCHER,
    Metrics,
    Status,
    as_text,
    data_free,
    power_law,
    reason,
)
from sharpjax.layerwise.data_free.randomised import jensen_shannon_distance
from sharpjax.layerwise.data_free.text import note


def layers():
    """Kernels as Flax has them, each of 20 eigenvalues or more: the rule for fewer is not built."""
    rng = np.random.default_rng(11)
    spike = 2 * np.outer(rng.normal(size=64), rng.normal(size=30)) / np.sqrt(64 * 30)
    return {
        "low_rank": rng.normal(size=(50, 25)) @ rng.normal(size=(25, 40)) * 0.1,
        "pixel": rng.standard_t(4, (1, 1, 24, 32)) * 0.1,
        "spiked": (rng.normal(size=(64, 30)) / 8 + spike).astype(np.float32),
        "square": rng.normal(size=(40, 40)) * 0.2,
        "stem": rng.normal(size=(3, 3, 3, 16)) * 0.3,
    }


LAYERS = layers()
# WeightWatcher 0.7.7 with powerlaw 2.0.0 and numpy 2.4.6, 2026-11-29, in the order of LAYERS.
RECORDED = {
    "alpha": (2.3246428667574, 1.8361803358323, 3.8938134548033, 4.3443171991366, 10.4232950061111),
    "D": (0.1517887876351, 0.1730941358632, 0.0914998200135, 0.1481480024926, 0.176790035274),
    "xmin": (14.0987316524023, 0.103114458558, 1.6469360577741, 2.7876736898029, 0.90531569243),
    "sigma": (0.3673898290593, 0.197089595254, 1.0231175586902, 1.0083495754062, 3.1410983353704),
    "num_pl_spikes": (13, 18, 8, 11, 9),
    "alpha_weighted": (
        4.5770551352602,
        0.1780184609981,
        2.8283434129264,
        3.2078702553199,
        0.8623888766099,
    ),
    "log_alpha_norm": (
        4.9637204200262,
        0.7751175762682,
        2.9282070148494,
        3.7616232652716,
        1.1915248930349,
    ),
    "norm": (
        517.8942330750067,
        8.398392758386,
        35.1615640794959,
        64.5000278148999,
        17.7915237063174,
    ),
    "log_norm": (
        2.7142410750309,
        0.9241961809486,
        1.5460681854002,
        1.8095599019198,
        1.2502131436381,
    ),
    "spectral_norm": (
        93.0954173498578,
        1.2501163158697,
        5.3255993807692,
        5.4752768687572,
        1.2098643643557,
    ),
    "log_spectral_norm": (
        1.96892830323,
        0.0969504234002,
        0.7263684934463,
        0.7384060850707,
        0.0827366850985,
    ),
    "stable_rank": (
        5.5630475464623,
        6.7180890704104,
        6.6023674643017,
        11.7802312761474,
        14.7053870090572,
    ),
    "matrix_rank": (25, 24, 30, 40, 27),
    "rank_loss": (15, 0, 0, 0, 0),
    "weak_rank_loss": (15, 0, 0, 0, 0),
    "entropy": (
        0.8314784731874,
        0.8591653080749,
        0.9045905591377,
        0.8668766874761,
        0.9672031875577,
    ),
    "xmax": (93.0954173498578, 1.2501163158697, 5.3255993807692, 5.4752768687572, 1.2098643643557),
    "sv_max": (9.6485966518379, 1.1180860055782, 2.3077260194332, 2.339930953844, 1.0999383457066),
    "sv_min": (0.0, 0.1294115348424, 0.3826826735005, 0.0511068194968, 0.675931792784),
    "detX_num": (23, 18, 24, 30, 24),
    "detX_val": (1.269931336014, 0.103114458558, 0.3974588701544, 0.293677703601, 0.2899822225207),
    "sigma_mp": (
        0.0707726887769,
        1.0264724646968,
        0.9715369345717,
        1.0028948964377,
        0.9698381609843,
    ),
    "bulk_min": (0.0007227974786, 0.0066179649164, 0.1100125996158, 0, 0.1992482777998),
    "bulk_max": (
        0.2327385433746,
        1.2838510796495,
        3.1396886491596,
        6.4874010154077,
        1.2727643332906,
    ),
    "num_spikes": (23, 0, 1, 0, 0),
    "mp_softrank": (0.0025, 1.026985299969, 0.5895465326395, 1.184853509861, 1.0519892731681),
}

# Where no law fits, it gives the first sigma that it tries, and we none. Its `sv_min` of a
# convolution is the largest of the least singular values of the slices, and ours the least.
BULK = ("sigma_mp", "bulk_min", "bulk_max", "num_spikes", "mp_softrank")
OTHERWISE = {*(("low_rank", column) for column in BULK), ("stem", "sv_min")}

# What it draws anew at each call, from numpy's global state.
RANDOM = {"max_rand_eval", "rand_distance", "ww_softrank", "ww_maxdist"}


def analysed(folder, layers):
    """What it says of kernels, by name; convolutions are given to it in torch's layout."""
    ww = pytest.importorskip("weightwatcher")
    about = {}
    for i, (name, kernel) in enumerate(layers.items()):
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        np.save(folder / f"{name}.weight.npy", np.ascontiguousarray(kernel.transpose(order)))
        about[i] = {
            "name": name,
            "longname": name,
            "weightfile": f"{name}.weight.npy",
            "biasfile": None,
            "type": "conv2d" if kernel.ndim == 4 else "dense",
            "dims": json.dumps([kernel.shape[k] for k in order]),
        }
    config = {"framework": "ww_flatfiles", "weights_dir": str(folder), "layers": about}
    (folder / "ww_config.json").write_text(json.dumps(config))
    logging.disable(logging.WARNING)
    try:
        found = ww.WeightWatcher(model=str(folder)).analyze(
            randomize=True, mp_fit=True, detX=True, savefig=False, svd_method="accurate"
        )
    finally:
        logging.disable(logging.NOTSET)
    return {row["name"]: row for row in found.to_dict("records")}


@pytest.fixture(scope="module")
def ours():
    table = data_free({n: {"kernel": w} for n, w in LAYERS.items()}, convention=WEIGHTWATCHER)
    assert table.names == tuple(f"{name}/kernel" for name in LAYERS)
    columns = table.metrics._asdict()
    return {
        name: {c: float(column[i]) for c, column in columns.items()}
        for i, name in enumerate(LAYERS)
    }


def assert_same(ours, theirs):
    for name, own in ours.items():
        for column in RECORDED:
            if (name, column) not in OTHERWISE:
                np.testing.assert_allclose(
                    own[column],
                    theirs[name][column],
                    rtol=1e-6,
                    atol=1e-12,
                    err_msg=f"{name} {column}",
                )


def recorded():
    return {
        name: {column: values[i] for column, values in RECORDED.items()}
        for i, name in enumerate(LAYERS)
    }


def test_every_column_is_as_it_gave_it(ours):
    assert_same(ours, recorded())


def test_where_it_is_not_followed(ours):
    theirs = recorded()
    assert all(np.isnan(ours["low_rank"][column]) for column in BULK)
    scaled = theirs["low_rank"]["xmax"] / (theirs["low_rank"]["norm"] / 40)
    first = 0.05 * np.sqrt(scaled) / (1 + np.sqrt(40 / 50))
    np.testing.assert_allclose(theirs["low_rank"]["sigma_mp"], first, rtol=1e-3)
    slices = LAYERS["stem"].reshape(9, 3, 16) / np.sqrt(2)
    least = np.linalg.svd(slices, compute_uv=False).min(axis=1)
    np.testing.assert_allclose(ours["stem"]["sv_min"], least.min(), rtol=1e-9)
    np.testing.assert_allclose(theirs["stem"]["sv_min"], least.max(), rtol=1e-9)


# alpha and D of 0.7.7 for `default_rng(12).standard_t(3, (40, n)) * 0.3`, n of 12, 19, 20.
FEW = {
    12: (1.7418244358302108, 0.19591765654110377),
    19: (1.7676592764934604, 0.19005303848926602),
    20: (1.8549672236608372, 0.14107787192344823),
}


def test_layers_under_the_rule_that_is_not_built_are_marked():
    """Below 20 eigenvalues above 1e-5, however many the layer has; what is of the eigenvalues
    alone is that of the program all the same."""
    kernels = {f"{n}": np.random.default_rng(12).standard_t(3, (40, n)) * 0.3 for n in FEW}
    rng = np.random.default_rng(13)
    kernels["rank"] = rng.normal(size=(60, 15)) @ rng.normal(size=(15, 40))
    theirs = data_free(kernels, layers="*", convention=WEIGHTWATCHER)
    status = {n: Status(s).name for n, s in zip(theirs.names, theirs.status, strict=True)}
    assert status == {"12": "OTHER_RULE", "19": "OTHER_RULE", "20": "OK", "rank": "OTHER_RULE"}
    for i, (n, (alpha, distance)) in enumerate(FEW.items()):
        same = np.isclose((theirs.metrics.alpha[i], theirs.metrics.D[i]), (alpha, distance))
        assert same.all() if n == 20 else not same.any()
    eight = dataclasses.replace(WEIGHTWATCHER, min_evals=8)
    assert data_free({"kernel": np.diag(np.arange(1.0, 9))}, convention=eight).status == [
        Status.OTHER_RULE
    ]
    own = data_free(kernels, layers="*")
    assert set(own.status) == {Status.OK}
    np.testing.assert_allclose(own.metrics.alpha, theirs.metrics.alpha, rtol=1e-9)
    assert "other rule" in as_text(theirs) and "other rule" not in as_text(own)
    said = reason(Status.OTHER_RULE, WEIGHTWATCHER)
    assert "fewer than 20" in said and "not its numbers" in said


def test_every_column_is_that_of_the_program(ours, tmp_path):
    theirs = analysed(tmp_path, LAYERS)
    assert set(Metrics._fields) & set(theirs["square"]) == {*RECORDED, *RANDOM}
    assert_same(ours, theirs)
    for name, own in ours.items():
        assert theirs[name]["warning"] == note(0, own["alpha"])


def test_its_distance_to_a_shuffled_layer(x64):
    pytest.importorskip("weightwatcher")
    from weightwatcher.RMT_Util import jensen_shannon_distance as theirs

    rng = np.random.default_rng(1)
    p, q = (np.sort(rng.pareto(2, 50)) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()  # a shuffle keeps the sum of all eigenvalues
    found = jensen_shannon_distance(jnp.array(p), jnp.array(q))
    np.testing.assert_allclose(found, theirs(7 * p, 7 * q), rtol=1e-9)


def test_a_fit_is_that_of_powerlaw(x64):
    powerlaw = pytest.importorskip("powerlaw")
    for seed in range(3):
        x = np.random.default_rng(seed).pareto(1.7, 120) + 1
        theirs = powerlaw.Fit(x, verbose=False)
        found = power_law.fit(jax.numpy.array(x))
        for own, other in (
            (found.alpha, theirs.power_law.alpha),
            (found.xmin, theirs.power_law.xmin),
            (found.D, theirs.power_law.D),
            (found.sigma, theirs.power_law.sigma),
        ):
            np.testing.assert_allclose(own, other, rtol=1e-6)
