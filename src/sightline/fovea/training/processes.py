"""How a training runs on the machine: processes, devices, precision, global random numbers."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from sightline.errors import ConfigError
from sightline.extras import need
from sightline.fovea.config.schema import Section


def make_fabric(config: Section) -> Any:
    """A Fabric as ``training`` asks for: accelerator, devices, precision.

    Under ``torchrun`` its number of processes counts, whatever ``training.devices`` says.

    Raises:
        ConfigError: float16 on a CPU, which has no loss scaling there.
        MissingPackageError: without lightning: ``pip install 'sightline[fovea]'``.
    """
    fabric = need("lightning_fabric", "train")
    section = config.training
    precision = {"bfloat16": "bf16-mixed", "float16": "16-mixed", "float32": "32-true"}[section.amp_dtype] if section.use_amp else "32-true"
    if precision == "16-mixed" and (section.accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("training.amp_dtype=float16 needs a GPU: take bfloat16")
    devices, nodes = section.devices, section.num_nodes
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    return fabric.Fabric(accelerator=section.accelerator, devices=devices, num_nodes=nodes, strategy=section.strategy, precision=precision)


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for whatever uses the global one
    torch.manual_seed(seed)
