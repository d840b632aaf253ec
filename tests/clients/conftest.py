"""Where a framework is missing its tests are not collected: `make test-clients` has an environment with all."""

import warnings
from importlib import import_module
from importlib.util import find_spec

CLIENTS = (
    "accelerate",
    "ignite.handlers",
    "lightning",
    "mlflow",
    "nbclient",
    "skorch",
    "trackio",
    "transformers",
    "wandb",
)

collect_ignore_glob: list[str] = []
if all(find_spec(name.partition(".")[0]) for name in CLIENTS):
    with warnings.catch_warnings():  # of their imports
        warnings.simplefilter("ignore")
        for name in CLIENTS:
            import_module(name)
else:
    collect_ignore_glob = ["test_*.py"]
