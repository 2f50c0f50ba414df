r"""Are regularised minima flat, and calibrated models at flat ones? (OpenReview ZQTiGcykl6, H6.*.)

    python launch.py --config=configs/explicit_regularisation.py          # the paper's nets
    python launch.py --config=configs/explicit_regularisation.py:cpu      # narrow nets, two cores
    python launch.py --config=configs/explicit_regularisation.py:quick    # handwritten digits

Arms: `<data set>-<net>-<regulariser>`: baseline, augmentation, dropout, weight_decay, one at a
time; of each `<arm>-es`, the state with the best validation accuracy. Ten seeds each.
"""

from ml_collections import ConfigDict

REGULARISERS = {
    "baseline": {},
    "augmentation": {"data": {"augment": True}},
    "dropout": {"model": {"dropout": 0.5}},
    "weight_decay": {"optim": {"weight_decay": 5e-4}},
}
# Name of the model, learning rate, epochs on CIFAR-10 and CIFAR-100.
PAPER = {
    "vgg19": ({"name": "vgg19"}, 0.05, (50, 75)),
    "resnet20": ({"name": "resnet20"}, 0.05, (75, 75)),
    "vit": ({"name": "vit", "width": 768, "depth": 4}, 0.01, (85, 85)),
}
NARROW = {
    "resnet_narrow": ({"name": "resnet_narrow"}, 0.1, (12, 25)),
    "vgg_narrow": ({"name": "vgg_narrow"}, 0.05, (10, 20)),
    "vit_narrow": ({"name": "vit_narrow"}, 0.05, (15, 20)),
}


def merged(*tables: dict) -> dict:
    found: dict = {}
    for table in tables:
        for name, value in table.items():
            own = found.get(name)
            found[name] = merged(own, value) if isinstance(own, dict) else value
    return found


def arms(nets: dict, data_sets: tuple[str, ...] = ("cifar10", "cifar100"), **more: dict) -> dict:
    """Every regulariser of every net on every data set."""
    return {
        f"{data}-{net}-{regulariser}": merged(
            {
                "data": {"name": data},
                "model": model,
                "optim": {"learning_rate": rate},
                "train": {"epochs": epochs[place]},
            },
            own,
            more,
        )
        for place, data in enumerate(data_sets)
        for net, (model, rate, epochs) in nets.items()
        for regulariser, own in REGULARISERS.items()
    }


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(
            f"unknown form '{form}' of configs/explicit_regularisation.py; known: {known}"
        )
    config = ConfigDict()
    config.study = "explicit_regularisation"
    config.seeds = tuple(range(10, 20))
    config.arms = {}
    config.data = {
        "name": "cifar10",
        "num_train": 0,  # the first so many examples; 0: all but those for validation
        "num_validation": 5_000,  # the last so many of the training set
        "augment": False,
        "normalization": "none",  # pixels from 0 to 1, as in the paper
        "data_dir": "",  # where prepared TFDS sets lie; "": TFDS's default
        "manual_dir": "",  # upstream files already on disk
    }
    config.model = {"name": "vgg19", "width": 0, "dtype": "float32", "dropout": 0.0, "depth": 0}
    config.optim = {
        "name": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "rho": 0.0,
        "scaling": "none",
        "eta": 0.0,
        "m": 0,
    }
    config.train = {
        "epochs": 50,
        "batch_size": 256,
        "checkpoint_epochs": 10,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "calibration": {
            "batch_size": 500,
            "num_bins": 10,  # of the paper
            "num_examples": 0,  # the first so many test images; 0: all
        },
        "sharpness": {
            "num_examples": 512,
            "microbatch_size": 0,  # 0: all at once
            "noise_rho": 0.05,
            "noise_pairs": 10,
            "normalised_pairs": 10,
            "sam_rho": 0.05,  # 0: not measured
            "information_examples": 4,  # on which the matrix is computed
        },
        "authors": {"rho": 0.05, "num_draws": 10},
    }
    config.update(FORMS[form])
    return config


FORMS = {
    "": {"arms": arms(PAPER)},
    "cpu": {
        "arms": arms(NARROW),
        "data": {"num_train": 3_000, "num_validation": 400},
        "optim": {"schedule": "cosine"},
        "train": {"batch_size": 64, "checkpoint_epochs": 5},
        "evaluate": {
            "calibration": {"num_examples": 5_000},
            "sharpness": {"noise_pairs": 5, "normalised_pairs": 3, "sam_rho": 0.0},
        },
    },
    "quick": {
        "arms": arms({"small_conv": ({"name": "small_conv"}, 0.05, (15,))}, ("digits",)),
        "data": {"num_train": 600, "num_validation": 400},
        "train": {"batch_size": 50, "checkpoint_epochs": 5},
        "evaluate": {"sharpness": {"noise_pairs": 5, "normalised_pairs": 3}},
    },
    "smoke": {
        "seeds": (0, 1),
        "arms": arms({"mlp": ({"name": "mlp", "width": 8}, 0.05, (2,))}, ("digits",)),
        "data": {"num_train": 64, "num_validation": 40},
        "train": {"epochs": 2, "batch_size": 32, "checkpoint_epochs": 1},
        "evaluate": {
            "calibration": {"batch_size": 40},
            "sharpness": {
                "num_examples": 32,
                "noise_pairs": 2,
                "normalised_pairs": 2,
                "information_examples": 2,
            },
            "authors": {"num_draws": 2},
        },
    },
}
