"""The `focus` front door: run a network only inside an area, exactly or cheaply; and networks that find the area themselves.

What belongs here: what a focused model promises to its user. What does not: areas (`sightline.area`), what an area needs of every layer
(`sightline.graph.needed`), running networks (`sightline.graph`).
"""

from sightline.focus.calibrate import Calibration, calibrate_brightness
from sightline.focus.explain import FocusExplanation
from sightline.focus.fcnn import BrightnessFocused, build_focused_model
from sightline.focus.model import Focused, focus

__all__ = ["BrightnessFocused", "Calibration", "FocusExplanation", "Focused", "build_focused_model", "calibrate_brightness", "focus"]
