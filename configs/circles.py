r"""Two concentric circles: does a tighter boundary make for a sharper minimum? (arXiv 2510.12451)

    python launch.py --config=configs/circles.py             # both parts, as in the paper
    python launch.py --config=configs/circles.py:cpu         # nine factors, 100 seeds each
    python launch.py --config=configs/circles.py:cpu_labels  # true and random labels, 20,000 epochs
    python launch.py --config=configs/circles.py:quick       # three factors, ten seeds

Arms: `factor_10` to `factor_90`, per cent of the outer circle's radius that is the inner one's;
`labels_true` and `labels_1` to `labels_3`, at a factor of 0.5 with the true labels and with three
draws of random ones (how many the paper has is not known). Recipe: 100 points without
noise, half of them in each class; an MLP 2-100-100-2 with ReLU; SGD at a learning rate of 0.01 with
momentum 0.9, batches of 5; 300 epochs, 20,000 for the labels. 100 seeds, which share weights at the
start and order over arms. Tested on the 100 points half-way between those of training.

Sharpness on all training points: Fisher-Rao norm, relative flatness, largest Hessian eigenvalue and
average sharpness as they are defined, and Fisher-Rao norm, relative flatness and noise sharpness
by the authors' conventions. See `sharpjax/studies/circles/plan.py` for what is measured, `asks.py`
for T1.11 to T1.23.

At that rate random labels are not learnt here: trials had 0.7 of them after 20,000 epochs, by this
start and by PyTorch's, and all of them at a tenth of it. So `:cpu_labels` trains at 0.001, true
labels too, which T1.20 to T1.23 need, and has 25 seeds.

Run on 2026-11-29, registered, beside other work on two cores: `:cpu` in 13 minutes (T1.11 to T1.17
supported, T1.18 inconclusive, T1.19 refuted), `:cpu_labels` in 42 (T1.20 to T1.23 supported); see
docs/minima.md. Alone a model takes .5 ms an epoch on one core, a measurement 80 ms. `:quick` took
52 s on two shared cores.
"""

from ml_collections import ConfigDict

FACTORS = (10, 20, 30, 40, 50, 60, 70, 80, 90)
DRAWS = (1, 2, 3)


def of_factors(factors: tuple[int, ...] = FACTORS) -> dict:
    return {f"factor_{factor}": {"data": {"factor": factor / 100}} for factor in factors}


def of_labels(
    draws: tuple[int, ...] = DRAWS, epochs: int = 20_000, checkpoint: int = 2_000
) -> dict:
    train = {"epochs": epochs, "checkpoint_epochs": checkpoint}
    evaluate = {"sharpness": {"epochs": (0, 10, 100, 300, 1_000, 3_000, 10_000)}}
    random = {
        f"labels_{draw}": {"data": {"label_noise": 1.0, "noise_seed": draw}} for draw in draws
    }
    arms = {"labels_true": {}, **random}
    return {name: {**own, "train": train, "evaluate": evaluate} for name, own in arms.items()}


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/circles.py; known: {known}")
    config = ConfigDict()
    config.study = "circles"
    config.seeds = tuple(range(2_000, 2_100))  # trials have looked at 1000 to 1099
    config.arms = {}
    config.data = {
        "num_train": 100,
        "factor": 0.5,
        "label_noise": 0.0,  # share of the labels that are drawn anew, of both classes alike
        "noise_seed": 0,
    }
    config.model = {"width": 100, "depth": 2}
    config.optim = {"learning_rate": 0.01, "momentum": 0.9}  # SGD
    config.train = {
        "epochs": 300,
        "batch_size": 5,
        "checkpoint_epochs": 300,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "sharpness": {
            "epochs": (0, 10, 100),  # measurements before the end
            "tol": 1e-2,
            "max_products": 64,
            "average_rho": 0.5,  # radius of the sphere
            "num_pairs": 32,
            "noise_rho": 0.005,
            "num_draws": 100,
        },
        "boundary": {"resolution": 64},  # points on a side of the picture
    }
    config.update(FORMS[form])
    return config


FORMS = {
    "": {"arms": {**of_factors(), **of_labels()}},
    "cpu": {"arms": of_factors()},
    "cpu_labels": {
        "seeds": tuple(range(2_000, 2_025)),
        "arms": of_labels(),
        "optim": {"learning_rate": 0.001},
    },
    "quick": {"seeds": tuple(range(3_000, 3_010)), "arms": of_factors((10, 50, 90))},
    "smoke": {
        "seeds": (0, 1),
        "arms": {**of_factors((10, 90)), **of_labels((1,), epochs=6)},
        "data": {"num_train": 20},
        "model": {"width": 8},
        "train": {"epochs": 4, "checkpoint_epochs": 2},
        "evaluate": {
            "sharpness": {"epochs": (0, 2), "max_products": 8, "num_pairs": 4, "num_draws": 4},
            "boundary": {"resolution": 8},
        },
    },
}
