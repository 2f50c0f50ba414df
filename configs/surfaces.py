r"""How sharp is a net that regresses a surface? (arXiv 2510.12451, its toy regressions.)

    python launch.py --config=configs/surfaces.py            # as published
    python launch.py --config=configs/surfaces.py:cpu        # ten starts, 1e4 steps
    python launch.py --config=configs/surfaces.py:cpu_long   # one start, 1e5 steps
    python launch.py --config=configs/surfaces.py:quick      # five starts, 1,000 steps

Seven surfaces on [-3.5, 3.5]^2: sphere, Rosenbrock, Rastrigin, Beale, Booth, three-hump camel and
Himmelblau. An MLP 2-64-64-1 (ReLU, 4,417 parameters), Adam at 1e-3, all points at every step, half
the mean squared error. After steps 0, 1, 10, 100, ... it is measured in all conventions: the
authors' SAM-sharpness (statistics of |L(w + e) - L(w)| / rho over noise e of four lengths), and by
the definitions average sharpness at the same lengths, the largest eigenvalue and the trace of the
Hessian, worst case, Fisher-Rao norm and relative flatness. Weights start by He's rule, those
of the head by LeCun's, and biases at 0, where the authors' start as torch draws them.

The full form, 10,000 points and one shared start, is sized by arithmetic: 7e5 steps of 260 MFLOP,
0.2 PFLOP, minutes on an accelerator. It has not been run yet.
The forms for two cores train on 2,000 of the points: a step on 10,000 takes 7.8 ms on one core and
on 2,000 about 1.1, so that the 70 models of `:cpu` would take 90 minutes to train. They are tested
on all 10,000. `:cpu` has ten starts, since with one there is nothing to test within a surface; it
draws noise 250 times and not 1,000, which would take as long as the training: the mean of a model
is known within 5 per cent, and the largest and least are those of 250. `:cpu_long` draws 1,000.
Run on 2026-11-29, registered, beside other work on two cores: `:cpu` in 39 minutes (T1.1 to T1.3,
T1.5, T1.10 supported, T1.4 refuted, T1.6 to T1.9 inconclusive); see docs/minima.md.
`:quick` has 400 points and 50 draws. Its seeds, 100 to 104, had been looked at after T1.1 to T1.10
were written and before `:cpu` was registered; seeds 0 to 9 had not.
"""

from ml_collections import ConfigDict

SURFACES = (
    *("sphere", "rosenbrock", "rastrigin", "beale", "booth", "three_hump_camel", "himmelblau"),
)


def arms(*names: str) -> dict:
    return {f"{name}-mlp": {"data": {"name": name}} for name in names}


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/surfaces.py; known: {known}")
    config = ConfigDict()
    config.study = "surfaces"
    config.seeds = (0,)  # one shared initialisation
    config.arms = {}
    config.data = {
        "name": "sphere",
        "num_train": 10_000,
        "num_test": 10_000,
        "bound": 3.5,
        "seed": 0,  # of the points, which all starts share
    }
    config.model = {"width": 64, "depth": 2}
    config.optim = {"learning_rate": 1e-3, "weight_decay": 0.0}  # Adam
    config.train = {
        "steps": 100_000,
        "checkpoint_steps": 10_000,
        "population": "auto",  # starts as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "num_draws": 1_000,  # of noise at each of four lengths, for the authors' statistic
        "num_pairs": 50,  # likewise, for average sharpness
        "tol": 1e-2,
        "max_products": 32,
        "trace_error": 0.05,
        "max_probes": 64,
        "ascent_steps": 20,
    }
    config.update(FORMS[form])
    return config


FORMS = {
    "": {"arms": arms(*SURFACES)},
    "cpu": {
        "arms": arms(*SURFACES),
        "seeds": tuple(range(10)),
        "data": {"num_train": 2_000},
        "train": {"steps": 10_000, "checkpoint_steps": 2_500},
        "evaluate": {"num_draws": 250},
    },
    "cpu_long": {"arms": arms(*SURFACES), "data": {"num_train": 2_000}},
    "quick": {
        "seeds": tuple(range(100, 105)),  # of those of `:cpu` nothing is to be seen before
        "arms": arms(*SURFACES),
        "data": {"num_train": 400, "num_test": 2_000},
        "train": {"steps": 1_000, "checkpoint_steps": 1_000},
        "evaluate": {"num_draws": 50, "num_pairs": 16, "max_probes": 16},
    },
    "smoke": {
        "seeds": (200, 201),
        "arms": arms("sphere", "booth"),
        "data": {"num_train": 64, "num_test": 32},
        "model": {"width": 4},
        "train": {"steps": 12, "checkpoint_steps": 8},
        "evaluate": {
            "num_draws": 4,
            "num_pairs": 2,
            "max_products": 8,
            "max_probes": 4,
            "ascent_steps": 2,
        },
    },
}
