r"""Does compression keep a model's function? (OpenReview Q7GXKjmCSB, H7.*.)

    python launch.py --config=configs/compression.py          # the paper's nets
    python launch.py --config=configs/compression.py:cpu      # LeNet, two cores
    python launch.py --config=configs/compression.py:cpu_mnist_lenet       # a part of it
    python launch.py --config=configs/compression.py:quick    # handwritten digits

Arms: `<data set>-<net>-<condition>`, ten seeds each, where the paper has one:

    base                    Adam at 1e-3, batches of 64, 25 epochs
    sam                     the same with SAM, for questions of our own
    independent             two more models of each seed, with other starts and orders
    kd_10, kd_50, kd_90     students from the start of the base, which teaches them with a weight of
                            10, 50, 90 per cent of the loss, T = 3, on logits
    kd_paper_*              the same as the authors' code has it: a second softmax, and Adamax

and of base and sam, without further training: pruned by 10 to 90 per cent of the weights, float16,
int8, and fewer bits. As the authors do it, too: pruned by as much of all numbers, biases and
BatchNorm statistics among them, and 8 bits of kernels of 1,024 numbers or more, as TFLite, which
leaves LeNet's first convolution as it is. The hypotheses are asked of what is compressed whole.
`studies/compression/plan.py` says what is measured.

The full form is the paper's: LeNet, ResNet-50 and MobileNet on CIFAR-10 and CIFAR-100, LeNet on
MNIST, all images. It has not been run.
`:cpu`: LeNet on the first 3,000 training images of CIFAR-10 and 4,000 of MNIST, and a narrow
MobileNet on CIFAR-10, for BatchNorm; 210 models are trained. Of CIFAR-10's 60,000 images as they
were prepared for development all but 98 are exact. Its parts are `:cpu_cifar10_lenet`,
`:cpu_mnist_lenet`, `:cpu_mobilenet_narrow`. On two cores, beside some other work, LeNet took 70
minutes on CIFAR-10 and 46 on MNIST, and MobileNet six alone (2026-11-30). Seed 99 of LeNet on
CIFAR-10, and of MobileNet for 12 epochs, were looked at before all was registered.
`:quick`: nets of two hidden layers on 8 x 8 digits.
"""

from ml_collections import ConfigDict

WEIGHTS = (10, 50, 90)
PERCENT = (10, 30, 50, 70, 90)
WHOLE = {
    "pruned": PERCENT,
    "everything": PERCENT,
    "bits": (8, 4, 3),
    "tflite": (8,),
    "types": ("float16",),
    "by_layer": (4, 3),
}
STUDENT = {"teacher": "model", "start": "same", "order": "other"}


def conditions(compress: dict) -> dict[str, dict]:
    """What differs from the base in each."""
    found: dict[str, dict] = {
        "base": {"compress": compress},
        "sam": {
            "optim": {"rho": 0.05},
            "compress": {"pruned": (50, 70), "bits": (4, 3)},
        },
        "independent": {
            "distill": {"start": "other", "order": "other"},
            "train": {"copies": 2},
        },
    }
    for weight in WEIGHTS:
        taught = STUDENT | {"weight": weight / 100}
        found[f"kd_{weight}"] = {"distill": taught}
        found[f"kd_paper_{weight}"] = {
            "distill": taught | {"inputs": "probabilities"},
            "optim": {"name": "adamax"},
        }
    return found


def arms(data: dict, net: str, own: dict, only: tuple[str, ...] = (), compress: dict = WHOLE):
    """All conditions of a net on a data set, or some of them."""
    every = conditions(compress)
    return {
        f"{data['name']}-{net}-{name}": _merged({"data": data}, own, every[name])
        for name in only or every
    }


def _merged(*blocks: dict) -> dict:
    names = dict.fromkeys(name for block in blocks for name in block)
    return {n: {k: v for block in blocks for k, v in block.get(n, {}).items()} for n in names}


def of_paper() -> dict:
    found = {}
    for net in ("lenet", "resnet50", "mobilenet"):
        for name in ("cifar10", "cifar100"):
            found |= arms({"name": name}, net, {"model": {"name": net}})
    return found | arms({"name": "mnist"}, "lenet", {"model": {"name": "lenet"}})


def of_two_cores() -> dict:
    cifar10, lenet = {"name": "cifar10", "num_train": 3_000}, {"model": {"name": "lenet"}}
    # Of the net that collapses in the paper the base alone: what pruning of its statistics does.
    mobilenet = {"model": {"name": "mobilenet_narrow"}}
    statistics = {"pruned": (10, 30), "everything": (10, 30)}
    return {
        **arms(cifar10, "lenet", lenet),
        **arms({"name": "mnist", "num_train": 4_000}, "lenet", lenet),
        **arms(cifar10, "mobilenet_narrow", mobilenet, ("base",), statistics),
    }


def part(place: str) -> dict:
    """What `:cpu` has of one net on one data set."""
    return _CPU | {"arms": {k: v for k, v in _CPU["arms"].items() if k.startswith(f"{place}-")}}


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/compression.py; known: {known}")
    config = ConfigDict()
    config.study = "compression"
    config.seeds = tuple(range(10, 20))
    config.arms = {}
    config.data = {
        "name": "cifar10",
        "num_train": 0,  # the first so many examples; 0: all
        "augment": False,
        "normalization": "none",  # pixels from 0 to 1, as in the paper
        "data_dir": "",  # where prepared TFDS sets lie; "": TFDS's default
        "manual_dir": "",  # upstream files already on disk
    }
    config.model = {"name": "lenet", "width": 0, "dtype": "float32"}
    config.optim = {
        "name": "adam",
        "learning_rate": 1e-3,
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
        "epochs": 25,
        "batch_size": 64,
        "checkpoint_epochs": 5,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
        "copies": 1,  # models of each seed
    }
    config.distill = {
        "teacher": "none",
        "weight": 0.9,  # of the teacher; the labels have the rest
        "temperature": 3.0,
        "inputs": "logits",  # 'probabilities': a second softmax
        "start": "same",  # as the base's; 'other'
        "order": "same",
    }
    config.compress = {  # what is made of an arm's models
        "pruned": (),  # per cent of the weights
        "everything": (),  # per cent of all numbers, BatchNorm statistics included
        "bits": (),
        "tflite": (),  # bits, of kernels of 1,024 numbers or more alone
        "types": (),
        "by_layer": (),  # bits, of one layer alone
    }
    config.evaluate = {
        "test": {"batch_size": 500, "num_bins": 15, "num_outputs": 0},  # 0: all
        "sharpness": {
            "num_examples": 512,
            "noise_rho": 0.5,
            "noise_pairs": 10,
            "layer_rho": 0.5,
        },
    }
    config.update(FORMS[form])
    return config


_CPU = {
    "arms": of_two_cores(),
    "evaluate": {"test": {"num_outputs": 1_000}, "sharpness": {"num_examples": 256}},
}
_DIGITS = {"name": "digits", "num_train": 600}
FORMS = {
    "": {"arms": of_paper()},
    "cpu": _CPU,
    "cpu_cifar10_lenet": part("cifar10-lenet"),
    "cpu_mnist_lenet": part("mnist-lenet"),
    "cpu_mobilenet_narrow": part("cifar10-mobilenet_narrow"),
    "quick": {
        "arms": arms(_DIGITS, "mlp", {"model": {"name": "mlp"}}),
        "model": {"name": "mlp", "width": 64},
        "train": {"epochs": 15, "checkpoint_epochs": 5},
        "evaluate": {"test": {"batch_size": 360}},
    },
    "smoke": {
        "seeds": (0, 1),
        "arms": arms({"name": "digits", "num_train": 64}, "mlp", {"model": {"name": "mlp"}}),
        "model": {"name": "mlp", "width": 16},  # a kernel of 1,024 numbers, so that one is TFLite's
        "train": {"epochs": 2, "batch_size": 32, "checkpoint_epochs": 1},
        "evaluate": {
            "test": {"batch_size": 120},
            "sharpness": {"num_examples": 32, "noise_pairs": 2},
        },
    },
}
