"""What a training tells: a report at its end, and logs for TensorBoard meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.extras import need
from sightline.fovea.training.evaluation import Evaluation


@dataclass
class TrainingReport:
    """What a run did.

    Attributes:
        epochs: finished ones.
        steps: of the optimiser.
        images: that were trained on, with repetitions.
        seconds: of all parts of a run that was resumed together.
        history: per epoch, means over its images (top1, answer_loss ...), the learning rate, and "val": `Evaluation.to_dict`.
        evaluation: the last one; None before the first.
        broken: sentences about images that could not be read.
        interrupted: stopped before the last epoch; the checkpoint holds everything.
    """

    epochs: int = 0
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluation: Evaluation | None = None
    broken: list[str] = field(default_factory=list)
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "epochs": self.epochs, "steps": self.steps, "images": self.images, "seconds": round(self.seconds, 3), "history": self.history,
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(), "broken": self.broken,
            "interrupted": self.interrupted,
        }  # fmt: skip


class Log:
    """Scalars per epoch, as TensorBoard reads them.

    Args:
        folder: made when the first numbers come; None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._writer: Any = None

    def write(self, entry: Mapping[str, Any]) -> None:
        """An entry of `TrainingReport.history`. What an earlier run wrote for this epoch and later ones is dropped."""
        if self.folder is None:
            return
        if self._writer is None:
            need("tensorboard", "write logs (or set logging.tensorboard=0)")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=entry["epoch"])
        for name, value in entry.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(f"train/{name}", value, entry["epoch"])
        for name, table in entry.get("val", {}).items():
            if isinstance(table, dict):
                for count, value in table.items():
                    self._writer.add_scalar(f"val_{name}/{count}_fixations", value, entry["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
