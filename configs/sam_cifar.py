r"""SAM against SGD, and what each finds (after Foret et al., 2021, arXiv 2010.01412).

    python launch.py --config=configs/sam_cifar.py         # ResNet-18 on CIFAR-10, for a GPU or TPU
    python launch.py --config=configs/sam_cifar.py:cpu     # real CIFAR-10 on two cores
    python launch.py --config=configs/sam_cifar.py:quick   # handwritten digits, no download
    python launch.py --config=configs/sam_cifar.py --config.optim.rho=0.1 --config.train.epochs=50

Arms: `sgd`; `sam`, two gradients a step; `sgd_2x`, SGD with the compute of SAM (twice the epochs).
Eight seeds each. Recipe: 8 epochs (16 in `sgd_2x`; short, longer by override), batch 128, learning
rate 0.1 with one epoch of warm-up and a cosine to 0, momentum 0.9, weight decay 5e-4 on all
parameters, crops after 4 pixels of padding and mirroring, rho = 0.05 on the whole batch, training
in bfloat16, geometry in float32. Geometry on un-augmented training examples: set 1 every 4 epochs,
four disjoint sets of 512 at the end.

The full form is sized by arithmetic for ten minutes an arm on an H100 (20 PFLOP of training at
twice the epochs, some 6 s a measurement); it has not been run yet.
`:cpu` is a ResNet-18 of width 8 on the first 5,120 training images (TFDS order), 6 epochs, one set
of 256 examples: one hour on two shared cores on 2026-11-24; test accuracy 0.4515 +- 0.0036 (sgd),
0.4385 +- 0.0038 (sam), 0.5290 +- 0.0055 (sgd_2x), lambda_1 101, 74 and 148 (docs/results).
`:quick` is a conv net of 9,930 parameters, 10 epochs at learning rate 0.05 and batch 64 without
mirroring: 38 s on two cores on 2026-11-25, registered; S.1 supported, S.2 to S.4 inconclusive
(docs/results). Seeds 0 to 7, those of earlier runs, had been seen when S.1 to S.4 were written, so
all forms but `:smoke` take 8 to 15.
"""

from ml_collections import ConfigDict


def get_config(form: str = "") -> ConfigDict:
    config = ConfigDict()
    config.study = "sharpness"
    config.seeds = tuple(range(8, 16))  # see above
    config.arms = {
        "sgd": {"optim": {"rho": 0.0}},
        "sam": {},
        "sgd_2x": {"optim": {"rho": 0.0}, "train": {"epoch_factor": 2}},
    }
    config.data = {
        "name": "cifar10",
        "num_train": 0,  # the first so many examples; 0: all
        "augment": True,  # crops and mirroring as is customary for the set
        "data_dir": "",  # where prepared TFDS sets lie; "": TFDS's default
        "manual_dir": "",  # upstream files already on disk
    }
    config.model = {"name": "resnet18", "width": 0, "dtype": "bfloat16"}  # width 0: the usual one
    config.optim = {
        "name": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,  # in the descent gradient, not in the ascent
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "rho": 0.05,
        "scaling": "none",  # 'element': ASAM
        "eta": 0.0,
        "m": 0,  # examples an ascent step sees; 0: the batch
    }
    config.train = {
        "epochs": 8,
        "epoch_factor": 1,
        "batch_size": 128,
        "label_smoothing": 0.0,
        "checkpoint_epochs": 4,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "test": {"every_epochs": 1, "batch_size": 500, "num_bins": 15},
        "geometry": {
            "every_epochs": 4,
            "where": "*",  # leaves whose curvature is taken, by glob on names as Conv_0/kernel
            "num_examples": 512,
            "num_sets": 4,  # disjoint measurement sets at the end
            "microbatch_size": 512,
            "num_eigenvalues": 1,
            "tol": 1e-2,
            "max_products": 32,
            "trace_error": 0.1,
            "max_probes": 16,
            "sam_rho": 0.05,
            "adaptive_rho": 0.5,
            "adaptive_m": 128,
            "adaptive_steps": 20,
        },
    }
    if form not in FORMS:
        raise ValueError(
            f"unknown form '{form}' of configs/sam_cifar.py; known: {', '.join(FORMS)}"
        )
    config.update(FORMS[form])
    return config


_SMALL_GEOMETRY = {
    "num_examples": 256,
    "num_sets": 1,
    "microbatch_size": 256,
    "max_products": 24,
    "max_probes": 8,
}

FORMS = {
    "": {},
    # Two cores: a narrow net and part of the data.
    "cpu": {
        "data": {"num_train": 5_120},
        "model": {"width": 8, "dtype": "float32"},
        "train": {"epochs": 6, "checkpoint_epochs": 3},
        "evaluate": {
            "test": {"every_epochs": 2},
            "geometry": _SMALL_GEOMETRY | {"every_epochs": 3},
        },
    },
    "quick": {
        "data": {"name": "digits"},
        "model": {"name": "small_conv", "width": 16, "dtype": "float32"},
        "optim": {"learning_rate": 0.05},
        "train": {"epochs": 10, "batch_size": 64, "checkpoint_epochs": 5},
        "evaluate": {"geometry": _SMALL_GEOMETRY | {"every_epochs": 5}},
    },
    "smoke": {
        "seeds": (0, 1),
        "data": {"name": "digits", "num_train": 256},
        "model": {"name": "small_conv", "width": 4, "dtype": "float32"},
        "train": {"epochs": 2, "batch_size": 64, "checkpoint_epochs": 1},
        "evaluate": {
            "geometry": _SMALL_GEOMETRY
            | {
                "every_epochs": 1,
                "num_examples": 64,
                "num_sets": 2,
                "microbatch_size": 32,
                "adaptive_m": 32,
                "adaptive_steps": 3,
            },
        },
    },
}
