"""Training of foveated networks: supervised, SimCLR, VICReg and Barlow Twins, on Lightning Fabric.

Needs ``pip install 'sightline[fovea]'``. Names load when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.fovea.training.evaluation import Evaluation, evaluate
    from sightline.fovea.training.loop import Trainer
    from sightline.fovea.training.losses import BarlowTwinsLoss, SimCLRLoss, VICRegLoss
    from sightline.fovea.training.report import TrainingReport
    from sightline.fovea.training.scenes import DigitScenes
    from sightline.fovea.training.schedule import LARS

_HOMES = {
    "BarlowTwinsLoss": "losses",
    "DigitScenes": "scenes",
    "Evaluation": "evaluation",
    "LARS": "schedule",
    "SimCLRLoss": "losses",
    "Trainer": "loop",
    "TrainingReport": "report",
    "VICRegLoss": "losses",
    "evaluate": "evaluation",
}

__all__ = ["LARS", "BarlowTwinsLoss", "DigitScenes", "Evaluation", "SimCLRLoss", "Trainer", "TrainingReport", "VICRegLoss", "evaluate"]


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
