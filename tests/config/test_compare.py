"""What differs between two configurations."""

from typing import Any

from fptt_dist.config import Config, Train, apply_overrides, changes

BASE = Config(train=Train(max_epochs=1))


def difference(**overrides: Any) -> dict[str, tuple[Any, Any]]:
    return changes(BASE, apply_overrides(BASE, {key.replace("__", "."): value for key, value in overrides.items()}))


def test_equal_configurations() -> None:
    assert changes(BASE, BASE) == {}
    assert difference(seed=0, optimizer={"name": "adam"}) == {}


def test_values_that_differ() -> None:
    assert difference(seed=3, fptt__windows=5) == {"fptt.windows": (None, 5), "seed": (0, 3)}


def test_another_variant_lists_all_its_keys() -> None:
    assert difference(optimizer__name="sgd") == {
        "optimizer.name": ("adam", "sgd"),
        "optimizer.lr": (0.001, 0.1),
        "optimizer.betas": ((0.9, 0.999), None),
        "optimizer.eps": (1e-08, None),
        "optimizer.weight_decay": (0.0, 0.0),
        "optimizer.amsgrad": (False, None),
        "optimizer.momentum": (None, 0.0),
        "optimizer.nesterov": (None, False),
    }


def test_another_variant_within_a_section() -> None:
    assert difference(fptt__schedule__name="inverse_lr") == {
        "fptt.schedule.name": ("constant", "inverse_lr"),
        "fptt.schedule.maximum": (None, None),
    }
