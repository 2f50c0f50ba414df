"""How much of a network can be pruned? python launch.py --config=examples/pruning/config.py"""

from ml_collections import ConfigDict

from sharpjax import catalog

catalog.STUDIES["pruning"] = "examples.pruning"
DATA = {"name": "digits", "num_train": 512, "augment": False, "data_dir": "", "manual_dir": ""}
OPTIM = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
OPTIM |= {"schedule": "constant", "warmup_epochs": 0.0}
OPTIM |= {"rho": 0.0, "scaling": "none", "eta": 0.0, "m": 0}


def get_config():
    config = ConfigDict({"study": "pruning", "seeds": (0, 1, 2, 3, 4)})
    config.arms = {"adam": {"optim": {"name": "adam", "learning_rate": 0.01}}, "sgd": {}}
    config.data, config.optim = DATA, OPTIM
    config.model = {"name": "mlp", "width": 16, "dtype": "float32"}
    config.train = {"epochs": 5, "batch_size": 64, "checkpoint_epochs": 5, "population": "auto"}
    config.prune = {"percent": (50, 90)}
    return config
