r"""Do students take over a teacher's function? (OpenReview Cgo73ZnAQc, H5.*.)

    python launch.py --config=configs/distillation.py          # the paper's nets
    python launch.py --config=configs/distillation.py:cpu      # narrow nets, two cores
    python launch.py --config=configs/distillation.py:cpu_resnet_narrow    # one of them
    python launch.py --config=configs/distillation.py:quick    # handwritten digits
    python launch.py --config=configs/distillation.py:quick_sweep   # temperatures, sizes

Arms: `<data set>-<net>-<condition>`, ten seeds each, every seed with a teacher of its own:

    teacher                 trained on the labels
    siddo, disdo            the same, with the teacher's start and another order of data; with
                            another start and the teacher's order
    kd_10, kd_50, kd_90     students from the teacher's start, in the order of siddo: 10, 50, 90 per
                            cent of the loss is the divergence from the teacher's outputs (T = 3),
                            the rest the labels'
    uniform_*, gaussian_*   the same, the teacher's outputs being noise, drawn anew at each step
    kd_paper_*              the same as kd_*, with a second softmax in the loss, as the authors'
                            code of paper 7 has it
    constant_paper_90       the same loss, of a teacher with one answer for all examples: it shows
                            what of kd_paper_90 is not the teacher's, but comes from labels that
                            weigh a tenth
    permuted_90, shuffled_90, entropy_90
                            a teacher that keeps choice and confidence; whose answers belong to
                            other examples; whose classes are in random order

    kd_90_t1, t2, t8        other temperatures; in `:quick_sweep` alone
    siddo_half, kd_90_half, siddo_double, kd_90_double
                            nets of another width, without a teacher and with one; as these

The groups from kd_paper to entropy, and H5.4, are of one net. The teacher's weights, the kinds of
noise and which controls the paper had are not known; all is said in `studies/papers/paper5.py`.

The full form has ResNet-18, VGG19 and a ViT with the recipe of paper 1 on CIFAR-10, 100 epochs at a
constant learning rate, and the ResNet-18 on CIFAR-100 too: 6.7 EFLOP by arithmetic, some fifteen
hours at 120 TFLOP/s on one H100. It has not been run.
`:cpu`: narrow nets on the first 3,000 training images, batches of 64, a cosine to 0; 460 models.
`:cpu_resnet_narrow`, `:cpu_vgg_narrow` and `:cpu_vit_narrow` are parts of it: 38, 10 and 18 minutes
on two cores (2026-11-30). The first has all controls and H5.4 (CIFAR-100, 25 epochs): 220 models,
the others 120 each.
Of CIFAR-10's 60,000 images as they were prepared for development all but 98 are exact, CIFAR-100's
are approximate (WebP of quality 92). `:quick`: nets of two hidden layers on 8 x 8 digits.
"""

from ml_collections import ConfigDict

WEIGHTS = (10, 50, 90)
TEMPERATURES = (1, 2, 8)
TEACHER = "teacher"
# Of each net what differs from the base of its form; the ViT is the last.
OF_PAPER = {
    "resnet18": {"model": {"name": "resnet18"}},
    "vgg19": {"model": {"name": "vgg19"}},
    "vit": {"model": {"name": "vit_small"}},
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
# Of these the outputs are stored after each epoch.
FOLLOWED = (TEACHER, "siddo", "disdo", "kd_90", "kd_paper_90", "gaussian_90")
STUDENT = {"teacher": "model", "start": "same", "order": "other"}


def conditions(*, controls: bool) -> dict[str, dict]:
    """What `config.distill` is in each; with further controls, or without."""
    found = {
        TEACHER: {},
        "siddo": {"order": "other"},
        "disdo": {"start": "other"},
    }
    for weight in WEIGHTS:
        share = {"weight": weight / 100}
        found[f"kd_{weight}"] = STUDENT | share
        found[f"uniform_{weight}"] = STUDENT | share | {"teacher": "uniform"}
        found[f"gaussian_{weight}"] = STUDENT | share | {"teacher": "gaussian"}
        if controls:
            found[f"kd_paper_{weight}"] = STUDENT | share | {"inputs": "probabilities"}
    if controls:
        nine = STUDENT | {"weight": 0.9}
        found["constant_paper_90"] = nine | {"teacher": "constant", "inputs": "probabilities"}
        found["permuted_90"] = nine | {"teacher": "permuted"}
        found["shuffled_90"] = nine | {"teacher": "shuffled"}
        found["entropy_90"] = nine | {"teacher": "entropy-matched"}
    return found


def swept(width: int) -> dict:
    """Temperatures of the loss, and students of half and twice the teacher's width."""
    nine = STUDENT | {"weight": 0.9}
    every = conditions(controls=False)
    found: dict = {name: {"distill": every[name]} for name in (TEACHER, "siddo", "kd_90")}
    for temperature in TEMPERATURES:
        found[f"kd_90_t{temperature}"] = {"distill": nine | {"temperature": float(temperature)}}
    for size, own in {"half": width // 2, "double": 2 * width}.items():
        for name, asked in (("siddo", every["siddo"]), ("kd_90", nine)):
            found[f"{name}_{size}"] = {"model": {"width": own}, "distill": asked}
    return {f"digits-mlp-{name}": own for name, own in found.items()}


def arms(data: str, net: str, own: dict, only: tuple[str, ...] = (), controls: bool = False):
    """All conditions of a net on a data set, or some of them."""
    every = conditions(controls=controls)
    return {
        f"{data}-{net}-{name}": {**own, "data": {"name": data}, "distill": every[name]}
        for name in only or every
    }


def every_arm(nets: dict, data_sets: tuple[str, ...], second: dict | None = None) -> dict:
    """The first net has the further controls, and what H5.4 needs on the second data set, where
    `second` differs."""
    first, *_ = nets
    found = {}
    for net, own in nets.items():
        found |= arms(data_sets[0], net, own, controls=net == first)
    for data in data_sets[1:]:
        own = nets[first] | (second or {})
        found |= arms(data, first, own, (TEACHER, "siddo", "kd_90"))
    for condition in FOLLOWED:
        name = f"{data_sets[0]}-{first}-{condition}"
        found[name] = found[name] | {"evaluate": {"trajectory": {"num_examples": 200}}}
    return found


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/distillation.py; known: {known}")
    config = ConfigDict()
    config.study = "distillation"
    config.seeds = tuple(range(10, 20))
    config.arms = {}
    config.data = {
        "name": "cifar10",
        "num_train": 0,  # the first so many examples; 0: all
        "augment": False,
        "normalization": "half",  # by 0.5 and 0.5
        "data_dir": "",  # where prepared TFDS sets lie; "": TFDS's default
        "manual_dir": "",  # upstream files already on disk
    }
    config.model = {"name": "resnet18", "width": 0, "dtype": "float32"}
    config.optim = {
        "name": "sgd",
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
        "epochs": 100,
        "batch_size": 256,
        "checkpoint_epochs": 10,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.distill = {
        "teacher": "none",  # or a kind of `losses.Teacher`
        "weight": 0.9,  # of the teacher; the labels have the rest
        "temperature": 3.0,
        "inputs": "logits",  # 'probabilities': a second softmax
        "start": "same",  # as the teacher's; 'other'
        "order": "same",
    }
    config.evaluate = {
        "test": {"batch_size": 500, "num_bins": 15, "num_outputs": 0},  # 0: all
        "trajectory": {"num_examples": 0},  # outputs stored after each epoch, of so many
    }
    config.update(FORMS[form])
    return config


# Two cores: narrow nets and part of the data.
_CPU = {
    "arms": every_arm(NARROW, ("cifar10", "cifar100"), second={"train": {"epochs": 25}}),
    "data": {"num_train": 3_000},
    "optim": {"schedule": "cosine"},
    "train": {"batch_size": 64, "checkpoint_epochs": 5},
    "evaluate": {"test": {"num_outputs": 1_000}},
}


def part(net: str) -> dict:
    """What `:cpu` has of one net."""
    return _CPU | {"arms": {k: v for k, v in _CPU["arms"].items() if k.split("-")[1] == net}}


_DIGITS = {
    "data": {"name": "digits", "num_train": 600},
    "model": {"name": "mlp", "width": 64},
    "optim": {"learning_rate": 0.05},
    "train": {"epochs": 15, "batch_size": 50, "checkpoint_epochs": 5},
    "evaluate": {"test": {"batch_size": 360}},
}
FORMS = {
    "": {"arms": every_arm(OF_PAPER, ("cifar10", "cifar100"))},
    "cpu": _CPU,
    **{f"cpu_{net}": part(net) for net in NARROW},
    "quick": _DIGITS | {"arms": every_arm({"mlp": {"model": {"name": "mlp"}}}, ("digits",))},
    "quick_sweep": _DIGITS | {"arms": swept(64)},
    "smoke": {
        "seeds": (0, 1),
        "arms": every_arm({"mlp": {"model": {"name": "mlp"}}}, ("digits",)),
        "data": {"name": "digits", "num_train": 64},
        "model": {"name": "mlp", "width": 8},
        "optim": {"learning_rate": 0.1},
        "train": {"epochs": 2, "batch_size": 32, "checkpoint_epochs": 1},
        "evaluate": {"test": {"batch_size": 120}},
    },
}
