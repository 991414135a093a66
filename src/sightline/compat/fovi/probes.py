"""The first generation's name of ``fovi.models.probes``."""

from sightline.compat.fovi.models.probes import AttentionProbe, FoviNetProbe, FoviNetProbes, LinearProbe, RNNProbe

__all__ = ["AttentionProbe", "FoviNetProbe", "FoviNetProbes", "LinearProbe", "RNNProbe"]
