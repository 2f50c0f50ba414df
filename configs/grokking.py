r"""Does training U, s and V in place of W prevent grokking? (OpenReview LVuzwpMovE, H3.1 to H3.7.)

    python launch.py --config=configs/grokking.py                # table 1: addition modulo 97
    python launch.py --config=configs/grokking.py:mod67          # table 2: addition modulo 67
    python launch.py --config=configs/grokking.py:subtraction    # appendix B: subtraction modulo 97
    python launch.py --config=configs/grokking.py:table1_80      # one column: 80 % of the pairs
    python launch.py --config=configs/grokking.py:temperature    # that column, and a control
    python launch.py --config=configs/grokking.py:mod67_50_dense  # one arm of the longest column
    python launch.py --config=configs/grokking.py:quick          # three arms, censored early
    python launch.py --config=configs/grokking.py:paper --register  # all nine columns; see below

Arms: `<task>-<model>-<fraction>`, as `add97-svd_12-80`: the dense model, and decomposed ones at
ranks of 100, 50, 25 and 12.5 per cent, trained on 50, 65 and 80 per cent of all pairs; ten seeds
each. `table1_50`, `mod67_65` and so on are columns of their own. `:mod67_50` takes over five hours
of one core, so each of its arms is a form, too, as `:mod67_50_svd_12`. It is registered as a
whole, and judged over runs of its arms by `python -m sharpjax.studies report RUN RUN ... --joint
FOLDER` (docs/protocol.md). So is `:paper`, which has the arms of all nine columns.

Recipe: embeddings of 128 numbers, 128 hidden units, batches of 512, AdamW at a learning rate of
1e-3, betas 0.9 and 0.98, weight decay 0.01 on all parameters. A seed ends at its first test
accuracy of 100 per cent, or with the paper's budget of epochs.

Curvature, sharpness, spectra and Fourier measures are taken at a few epochs on `train[:512]`, in W
and, of decomposed models, in (U, s, V): some .2 s a seed and epoch on two cores.

An epoch takes 4.4, 4.6 and 5.6 ms a seed of the dense model at 50, 65 and 80 % of the data on two
quiet cores, and 2.3, 2.4 and 2.6 ms at a rank of 12.5 %, so that the paper's epochs of all 150
models of table 1 would take an hour and a half. `:quick` took 64 s, `:table1_80` 27 minutes
(2026-11-25, two cores; docs/grokking.md has what came of it).
On slower cores the columns took (2026-11-28 to 2026-12-01): `:table1_65` 22 minutes, and 68 beside
other work; `:subtraction_65` 28, from epoch 5,000 of the dense model on; and on one core alone
`:mod67_65` 103, `:table1_50` 177, `:subtraction_50` 156 and `:temperature` 88; the arms of
`:mod67_50`, most on one core, 115 (dense), 62, 60, 22 and 71 (rank 12.5 %).

`:temperature` asks whether the scale of the logits is what decomposition changes (L.1 to L.3):
dense models with their logits divided by a constant, at which they start as large as those of the
ranks of 25 and 12.5 per cent, on fresh seeds; `asks.logit_scale` has the margins, and why.

C.2 was written after a trial of `:quick` with seeds 100 to 104.
"""

from ml_collections import ConfigDict

# The paper's, by task, and by per cent of the pairs; those of `sharpjax.studies.papers.paper3`.
BUDGETS = {
    "add97": {50: 40_000, 65: 20_000, 80: 10_000},
    "add67": {50: 120_000, 65: 60_000, 80: 25_000},
    "sub97": {50: 70_000, 65: 35_000, 80: 20_000},
}
TASKS = {"add97": {}, "add67": {"modulus": 67}, "sub97": {"operation": "-"}}
# At which the logits of the dense model start as large as those of a decomposed one: the ratio of
# their mean scales at initialisation (`studies.grokking.plan.LogitScale`), 1.379 to .517 and .216,
# over 40 draws of other keys (1000 to 1039), of which nothing was trained. The ratio of a single
# draw differs from it by 11 and 14 per cent (a standard deviation).
TEMPERATURES = {"25": 2.67, "12": 6.39}
MODELS = {"dense": 0.0, "svd_100": 1.0, "svd_50": 0.5, "svd_25": 0.25, "svd_12": 0.125}


def arms(
    task: str, fractions: tuple[int, ...] = (50, 65, 80), models: tuple[str, ...] = tuple(MODELS)
) -> dict:
    """Those that differ from the base in the model, the fraction and the budget."""
    return {
        f"{task}-{model}-{fraction}": {
            "data": {"train_fraction": fraction / 100},
            "model": {"rank_fraction": MODELS[model]},
            "train": {"epochs": BUDGETS[task][fraction]},
        }
        for fraction in fractions
        for model in models
    }


def dense_at(temperature: float, task: str, fraction: int) -> dict:
    """The dense model, its logits divided by a temperature."""
    (arm,) = arms(task, (fraction,), ("dense",)).values()
    return arm | {"model": arm["model"] | {"temperature": temperature}}


def get_config(form: str = "") -> ConfigDict:
    if form not in FORMS:
        known = ", ".join(filter(None, FORMS))
        raise ValueError(f"unknown form '{form}' of configs/grokking.py; known: {known}")
    config = ConfigDict()
    config.study = "grokking"
    config.seeds = tuple(range(30, 40))  # trials have looked at 0 to 2, 100 to 111, 200 to 219
    config.arms = {}
    config.data = {
        "operation": "+",
        "modulus": 97,
        "train_fraction": 0.8,  # of all pairs; the others test
    }
    config.model = {
        "name": "token_mlp",
        "width": 0,  # 0: the usual one
        "rank_fraction": 0.0,  # of the full rank, of each decomposed matrix; 0.0: dense
        "layers": "*",  # which matrices are decomposed, by glob on names as hidden/kernel
    }
    config.optim = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.98, "weight_decay": 0.01}  # AdamW
    config.train = {
        "epochs": 10_000,  # at the most
        "batch_size": 512,
        "loss_dtype": "float32",  # of the cross-entropy; 'float64': the base code's
        "checkpoint_epochs": 500,
        "population": "auto",  # seeds as one array program: 'vmap', 'loop'
    }
    config.evaluate = {
        "trajectory": {
            "per_decade": 3,  # measurements from one power of ten to the next; 0: at the end alone
            "in_factors": True,  # curvature in (U, s, V), too
            "num_examples": 512,
            "num_frequencies": 5,  # whose share of an embedding's energy is its concentration
            "tol": 1e-2,
            "max_products": 32,
            "trace_error": 0.05,
            "max_probes": 64,
            "adaptive_rho": 0.5,
            "adaptive_steps": 20,
        },
    }
    config.update(FORMS[form])
    return config


def _columns(form: str, task: str) -> dict:
    """A whole table, and each of its columns."""
    whole = {form: {"arms": arms(task), "data": TASKS[task]}}
    return whole | {
        f"{form}_{fraction}": {"arms": arms(task, (fraction,)), "data": TASKS[task]}
        for fraction in BUDGETS[task]
    }


def _parts(form: str, task: str, fraction: int) -> dict:
    """Each arm of a column."""
    return {
        f"{form}_{fraction}_{model}": {
            "arms": arms(task, (fraction,), (model,)),
            "data": TASKS[task],
        }
        for model in MODELS
    }


FORMS = {
    "": {"arms": arms("add97")},
    **_columns("table1", "add97"),
    **_columns("mod67", "add67"),
    **_parts("mod67", "add67", 50),
    **_columns("subtraction", "sub97"),
    "paper": {
        "arms": {
            name: arm | {"data": arm["data"] | data}
            for task, data in TASKS.items()
            for name, arm in arms(task).items()
        }
    },
    # All are watched for 1,000 epochs, in which the dense model does not generalise.
    "quick": {
        "seeds": tuple(range(20, 25)),  # of those of the tables nothing is to be seen before
        "arms": {
            f"add97-{model}-80": {"model": {"rank_fraction": MODELS[model]}}
            for model in ("dense", "svd_25", "svd_12")
        },
        "train": {"epochs": 1_000},
        "evaluate": {"trajectory": {"per_decade": 2, "in_factors": False}},
    },
    "temperature": {
        "seeds": tuple(range(40, 50)),  # fresh ones: the column of 80 % has been seen
        "arms": arms("add97", (80,))
        | {
            f"add97-dense_as_{rank}-80": dense_at(temperature, "add97", 80)
            for rank, temperature in TEMPERATURES.items()
        },
        "evaluate": {"trajectory": {"logit_scale": True}},
    },
    "smoke": {
        "seeds": (0, 1),
        "arms": {"add7-dense-80": {}, "add7-svd_50-80": {"model": {"rank_fraction": 0.5}}},
        "data": {"modulus": 7},
        "model": {"width": 8},
        "train": {"epochs": 12, "batch_size": 16, "checkpoint_epochs": 5},
        "evaluate": {
            "trajectory": {
                "per_decade": 1,
                "in_factors": False,
                "num_examples": 32,
                "num_frequencies": 1,
                "max_products": 8,
                "max_probes": 4,
                "adaptive_steps": 2,
            },
        },
    },
}
FORMS["temperature_smoke"] = FORMS["smoke"] | {
    "arms": FORMS["smoke"]["arms"] | {"add7-dense_as_50-80": {"model": {"temperature": 2.0}}},
    "evaluate": {"trajectory": FORMS["smoke"]["evaluate"]["trajectory"] | {"logit_scale": True}},
}
