"""Classifiers: ``fovi.models.probes``."""

from sightline.fovea.probes import AttentionProbe, FoviNetProbe, FoviNetProbes, LinearProbe, RNNProbe

__all__ = ["AttentionProbe", "FoviNetProbe", "FoviNetProbes", "LinearProbe", "RNNProbe"]
