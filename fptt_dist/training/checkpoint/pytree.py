"""Recurrent states (nested tuples of tensors) as named tensors and plain JSON, for checkpoints without pickle."""

from typing import Any

from torch import Tensor


def flatten_state(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Put the tensors of a nested structure into `tensors`; return the JSON skeleton for `unflatten_state`.

    Args:
        value: None, a tensor, or lists, tuples and dictionaries of them.
        tensors: receives `name`, `name.0`, `name.1`, …
        name: prefix of the tensors' names.

    Raises:
        TypeError: a type that a checkpoint cannot hold.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {key: flatten_state(item, tensors, f"{name}.{key}") for key, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [flatten_state(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]}
    raise TypeError(
        f"a recurrent state consists of tensors, tuples, lists and dictionaries, not {type(value).__name__}"
    )


def unflatten_state(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild the structure that `flatten_state` took apart."""
    if skeleton is None:
        return None
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten_state(item, tensors) for key, item in content.items()}
    items = [unflatten_state(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
