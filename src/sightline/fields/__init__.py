"""Receptive fields: what every layer of a network can see, which layers do not pay at a resolution, and what to change.

`analyze` is the way in; it returns a `Report`.
"""

from sightline.fields.analysis import analyze, analyze_graph
from sightline.fields.diagnosis import RULES, Diagnosis, Verdict
from sightline.fields.edits import Edit, apply
from sightline.fields.layer import AxisField, LayerField
from sightline.fields.report import Report
from sightline.fields.sketch import Sketch
from sightline.fields.suggest import Suggestion
from sightline.fields.verify import Check, Verification

__all__ = [
    "RULES",
    "AxisField",
    "Check",
    "Diagnosis",
    "Edit",
    "LayerField",
    "Report",
    "Sketch",
    "Suggestion",
    "Verdict",
    "Verification",
    "analyze",
    "analyze_graph",
    "apply",
]
