r"""Are regularised minima flat, and calibrated models at flat ones? (OpenReview ZQTiGcykl6, H6.*.)

    python launch.py --config=configs/explicit_regularisation.py          # the paper's nets
    python launch.py --config=configs/explicit_regularisation.py:cpu      # narrow nets, two cores
    python launch.py --config=configs/explicit_regularisation.py:quick    # handwritten digits

Arms: `<data set>-<net>-<regulariser>`, one regulariser at a time: baseline, augmentation (crops
after 4 pixels of padding, mirroring), dropout 0.5 (0.1 in the narrow ViT), weight decay 5e-4; of
each `<arm>-es`, the state with the best accuracy on validation images, which are taken from the
training set. A temperature is fitted on these too. Ten seeds each, where the paper has three. SGD
with momentum 0.9, pixels from 0 to 1, ECE in ten bins.
`sharpjax.studies.explicit_regularisation.plan` says what is measured: every sharpness on the first
512 training images without augmentation, by its definition and as the authors' code has it.

The full form is the paper's: VGG19, ResNet20 and a ViT (whose head is not the paper's, so that H6.9
is asked of the others) on CIFAR-10 and CIFAR-100, batches of 256, a constant learning rate, 240
models: 1.4 EFLOP of training and 0.07 of measurement at the most, by arithmetic four hours on an
H100 at a tenth of its peak in bfloat16. It has not been run yet.

`:cpu`: narrow nets, 3,600 + 400 images, batches of 64, the learning rate falling to 0 by a cosine,
which the paper's does not: so the baselines fit, where a constant rate reached a training accuracy
of .57 to .78 with seed 100. Tested on the first 5,000 test images. 240 models and as many stopped
early. Run on 2026-11-29: an hour and a half on two crowded cores, 69 % of it training;
what came out is in docs/minima.md.
Images as they were prepared for development: of CIFAR-10's 60,000 all but 98 exact, of CIFAR-100's
all approximate (WebP of quality 92).
Whether minima of equal training loss differ is asked by `configs/geometric_reappraisal.py`.
`:quick`: 40 nets of two hidden layers on 8 x 8 digits; three seeds took 66 s of processor time.
Trials have looked at seeds 100 to 102.
"""

from ml_collections import ConfigDict

REGULARISERS = {
    "baseline": {},
    "augmentation": {"data": {"augment": True}},
    "dropout": {"model": {"dropout": 0.5}},  # of all nets but those in DROPOUT
    "weight_decay": {"optim": {"weight_decay": 5e-4}},
}
DROPOUT = {"vit_narrow": 0.1}  # at 0.5 it reaches a training accuracy of .33 in `:cpu`
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


def arms(nets: dict, data_sets: tuple[str, ...] = ("cifar10", "cifar100")) -> dict:
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
            {"model": {"dropout": DROPOUT[net]}} if net in DROPOUT and "model" in own else {},
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
            "noise_rho": 0.5,  # at 0.05 the rise is of the size of its rounding
            "noise_pairs": 10,
            "normalised_pairs": 10,
            "sam_rho": 0.05,  # 0: not measured
            "information_examples": 4,  # on which the matrix is computed
        },
        "authors": {"rho": 0.05, "num_draws": 10},
        "landscape": {"num_points": 21, "num_examples": 256},  # of -es arms
    }
    config.update(FORMS[form])
    return config


FORMS = {
    "": {"arms": arms(PAPER)},
    "cpu": {
        "arms": arms(NARROW),
        "data": {"num_train": 3_600, "num_validation": 400},
        "optim": {"schedule": "cosine"},
        "train": {"batch_size": 64, "checkpoint_epochs": 5},
        "evaluate": {
            "calibration": {"num_examples": 5_000},
            "sharpness": {"noise_pairs": 5, "normalised_pairs": 3, "sam_rho": 0.0},
        },
    },
    "quick": {
        "arms": arms({"mlp": ({"name": "mlp", "width": 64}, 0.05, (15,))}, ("digits",)),
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
            "landscape": {"num_points": 3, "num_examples": 32},
        },
    },
}
