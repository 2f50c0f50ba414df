r"""Do the weights of a layer say how it works? (Paper 2, OpenReview J0iFy6BxlC, H2.*.)

    python launch.py --config=configs/data_free.py            # the paper's MLP, and usual nets
    python launch.py --config=configs/data_free.py:cpu        # that MLP, narrow nets; two cores
    python launch.py --config=configs/data_free.py:quick      # handwritten digits

Layers of trained nets are replaced one by one, by their initial values and by ten fresh draws, and
eight data-free metrics (alpha, norms, ranks: WeightWatcher's) are held against what that costs.
Arms are `<data set>-<net>-base`; `studies/data_free/plan.py` says what is made of them and what is
measured, `asks.py` what is sealed and why.

Full: the six-layer MLP on MNIST, and ResNet-18, VGG-16 and a small ViT on CIFAR-10, 60 epochs with
augmentation: 235 PFLOP of training and at most 127 of measurement by arithmetic, an hour at 100
TFLOP/s. It has not been run.
`:cpu`: the same MLP on all 60,000 images of MNIST, 10 epochs, and three narrow nets on the first
4,000 training images of CIFAR-10; a replacement is tested on all of MNIST's test images and on
1,000 of CIFAR-10's. 1,000 draws of each shape of a layer. 39 TFLOP of training and at most 76 of
measurement by arithmetic: it took 18 minutes on two cores (2026-11-30), and three to conclude.
`:quick`: an MLP of width 64 on 8 x 8 digits, two minutes on two cores (2026-11-30).
"""

from ml_collections import ConfigDict

# Six layers, as the paper's; widths, optimiser and epochs it leaves open. Five hidden layers of 256
# are the net of the study that found critical layers (arXiv 1902.01996).
MLP = {
    "data": {"name": "mnist", "num_train": 0},
    "model": {"name": "mlp", "depth": 5, "width": 256},
    "optim": {"learning_rate": 0.01, "schedule": "constant"},
    "train": {"epochs": 10, "batch_size": 128},
    "evaluate": {"replaced": {"num_examples": 0}, "curvature": {"num_examples": 1_000}},
}
NARROW = {
    "resnet_narrow": {
        "model": {"name": "resnet_narrow"},
        "optim": {"learning_rate": 0.1},
        "train": {"epochs": 12},
    },
    "vgg_narrow": {
        "model": {"name": "vgg_narrow"},
        "optim": {"learning_rate": 0.05},
        "train": {"epochs": 10},
    },
    "vit_narrow": {
        "model": {"name": "vit_narrow"},
        "optim": {"learning_rate": 0.05},
        "train": {"epochs": 15},
    },
}
OF_PAPER = {
    name: {"model": {"name": name}, "data": {"augment": True}}
    for name in ("resnet18", "vgg16", "vit_small")
}


def arms(data: str, nets: dict) -> dict:
    return {f"{data}-{net}-base": own for net, own in nets.items()}


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/data_free.py; known: {known}")
    config = ConfigDict()
    config.study = "data_free"
    config.seeds = tuple(range(10, 20))
    config.arms = {}
    config.data = {
        "name": "cifar10",
        "num_train": 0,  # the first so many examples; 0: all
        "augment": False,
        "data_dir": "",  # where prepared TFDS sets lie; "": TFDS's default
        "manual_dir": "",  # upstream files already on disk
    }
    config.model = {"name": "resnet18", "width": 0, "depth": 0, "dtype": "float32"}  # 0: the usual
    config.optim = {
        "name": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
        "rho": 0.0,
        "scaling": "none",
        "eta": 0.0,
        "m": 0,
    }
    config.train = {
        "epochs": 60,
        "batch_size": 128,
        "checkpoint_epochs": 5,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "test": {"batch_size": 500, "num_bins": 15},
        "replaced": {
            "num_examples": 10_000,  # test images
            "trials": 10,  # fresh draws of a layer
        },
        "curvature": {
            "num_examples": 512,  # training images
            "probes": 60,  # Hessian products for the traces of all layers
            "max_products": 20,  # at the most, for the largest eigenvalue of a layer
            "rho": 0.1,  # of a layer's norm
            "num_steps": 8,
        },
        "same": {"num_examples": 256},
        "untrained": {"draws": 100},  # of each seed
    }
    config.update(FORMS[form])
    return config


FORMS = {
    "": {"arms": {**arms("mnist", {"mlp": MLP}), **arms("cifar10", OF_PAPER)}},
    "cpu": {
        "arms": {**arms("mnist", {"mlp": MLP}), **arms("cifar10", NARROW)},
        "data": {"num_train": 4_000},
        "train": {"batch_size": 64},
        "evaluate": {
            "replaced": {"num_examples": 1_000},
            "curvature": {"num_examples": 128, "probes": 24, "max_products": 14, "num_steps": 4},
        },
    },
    "quick": {
        "seeds": tuple(range(20, 30)),  # with fewer, 48 comparisons decide nothing
        "arms": arms("digits", {"mlp": {"model": {"name": "mlp", "depth": 5, "width": 64}}}),
        "data": {"name": "digits"},
        "train": {"epochs": 12, "batch_size": 64, "checkpoint_epochs": 12},
        "evaluate": {
            "test": {"batch_size": 360},
            "replaced": {"num_examples": 0, "trials": 4},
            "curvature": {"num_examples": 256, "probes": 20, "max_products": 12, "num_steps": 4},
        },
    },
    "smoke": {
        "seeds": (0, 1),
        "arms": arms("digits", {"mlp": {"model": {"name": "mlp", "depth": 2, "width": 12}}}),
        "data": {"name": "digits", "num_train": 128},
        "train": {"epochs": 2, "batch_size": 32, "checkpoint_epochs": 1},
        "evaluate": {
            "test": {"batch_size": 120},
            "replaced": {"num_examples": 120, "trials": 2},
            "curvature": {"num_examples": 32, "probes": 12, "max_products": 6, "num_steps": 2},
            "same": {"num_examples": 32},
            "untrained": {"draws": 5},
        },
    },
}  # fmt: skip
