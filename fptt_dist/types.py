"""Types that several packages share."""

from typing import Any, TypeAlias

State: TypeAlias = Any
"""A recurrent state: a tensor, or nested tuples, lists and dictionaries of tensors; None before a sequence."""
