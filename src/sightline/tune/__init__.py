"""Thresholds that earn their keep: the largest saving within an error that the user states.

`tune` is the entry; what an error is stands in `metrics`, how one is measured in `measure`, how thresholds are searched in `search`
and `greedy`, what is told at the end in `report`.
"""

from sightline.tune.front import tune
from sightline.tune.report import TuneProgress, TuneReport

__all__ = ["TuneProgress", "TuneReport", "tune"]
