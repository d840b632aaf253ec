"""Modules that take seconds to import: Python's fork server imports them once, for pool workers and programs.

There is one such server in a process, so all who fork from it name this module.
"""

from contextlib import suppress

import torch._dynamo as _dynamo  # noqa: F401

import fptt_dist.cli as _cli  # noqa: F401
import fptt_dist.training.run as _run  # noqa: F401
from fptt_dist.config import ConfigError
from fptt_dist.parallel.placement.deepspeed import _import
from tests.parallel import fault_driver as fault_driver

with suppress(ConfigError):  # it is not installed
    _import("cpu")
    from deepspeed.runtime.zero.muon import muon_optimizer as muon_optimizer
