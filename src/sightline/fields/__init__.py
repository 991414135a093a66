"""Receptive fields: what every layer of a network can see, which layers do not pay at a resolution, and what to change.

`analyze` is the way in; it returns a `Report`.
"""

from sightline.fields.analysis import analyze, analyze_graph
from sightline.fields.diagnosis import RULES, Diagnosis, Verdict
from sightline.fields.layer import AxisField, LayerField
from sightline.fields.report import Report

__all__ = ["RULES", "AxisField", "Diagnosis", "LayerField", "Report", "Verdict", "analyze", "analyze_graph"]
