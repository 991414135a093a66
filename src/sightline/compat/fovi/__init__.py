"""fovi's names on top of Sightline: write ``sightline.compat.fovi`` for ``fovi`` in import lines and keep the rest; on any device.

    from sightline.compat.fovi.arch.knn import KNNConvLayer, KNNPoolingLayer, get_in_out_coords
    from sightline.compat.fovi.fovinet import FoviNet

Or call `install` once; then ``import fovi`` finds these modules wherever fovi itself is not installed.

Both generations of names are there: those of the tutorial (``fovi.arch.knnalexnet``, ``fovi.fovinet``, ``fovi.load_config``) and those of
2.4 (``fovi.models.knnalexnet``, ``fovi.models.fovinet``, ``fovi.models.load_config``). Layers and networks made by these names take fovi's
float32 choices among equally near neighbours (``ties="fovi"``), so with its weights they give its numbers; a `FoviNet` does what its
configuration says under ``saccades.ties``, and takes "fovi" where that key is missing.

The tutorial's configuration files are packaged: ``sightline.fovea.config.copy_to("../config")`` puts them where the tutorial's
``hydra.initialize`` looks.

What the original does wrong, and what happens here:

- ``device`` is "cuda" by default, and forgetting it fails without a GPU: it is "cuda" where there is one, else the CPU.
- Depthwise and depthwise-separable layers, ConvNeXt V2, self-supervised forward passes and the ``*_train`` policies crash: they run.
- Max pooling takes NaN for padding: NaN stays.
- `GaussianColorDecay` darkens everything: it fades colour and leaves lightness.
- Random fixations come from NumPy's global generator: they come from torch's, or from a ``generator``.
- A list of ``fixations`` is changed in place: never. Configurations are changed in place: never.
- ``fixation_size=`` of a policy is ignored: it is used.
- The attention probe lets images of a batch attend to one another: fixations of one image do.
- Without ``auto_match_cart_resources`` pools in networks take the stride from the layer in front of the convolution, and ``out_res`` has no
  effect: both mean what they say, so such networks have other shapes here.
- Tables are plain attributes that stay on the CPU: they are buffers.
- An unknown key in a configuration is ignored: it is refused.

Not here (`ConfigError` or no such name): DINOv3, LoRA, downloads from hubs, several magnifications in one network, calibrated cameras (they
are in `sightline.fovea.RetinalTransform`), the FFCV loader and the trainer (``sightline fovea train`` trains), kernel back ends (their
arguments have no effect).

Source: names and semantics of nblauch/fovi (arXiv 2602.03766), written from its description.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sightline.compat.fovi._install import install

if TYPE_CHECKING:
    from sightline.compat.fovi.fovinet import FoviNet
    from sightline.compat.fovi.models.loading import find_config, get_model_from_base_fn, load_config

__all__ = ["FoviNet", "find_config", "get_model_from_base_fn", "install", "load_config"]

_HOMES = {
    "FoviNet": "fovinet",
    "find_config": "models.loading",
    "get_model_from_base_fn": "models.loading",
    "load_config": "models.loading",
}


def __getattr__(name: str) -> object:
    """Loads a name of the package's root when it is first used."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
