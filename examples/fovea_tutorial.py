"""fovi's tutorial on kNN networks, with its import lines changed: layers, a block, an AlexNet, a whole FoviNet, saved weights.

Run it anywhere: it needs no GPU, downloads nothing and takes a few seconds.

    pip install 'sightline[fovea]'
    python examples/fovea_tutorial.py

The configuration files are packaged; `sightline.fovea.config.copy_to` puts them where `hydra.initialize` would look. A saved network is
made on the way, since nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from sightline.compat.fovi import load_config
from sightline.compat.fovi.arch.knn import KNNConvLayer, KNNPoolingLayer, get_in_out_coords
from sightline.compat.fovi.arch.knnalexnet import KNNAlexNet, KNNAlexNetBlock
from sightline.compat.fovi.arch.norm import KNNBatchNorm
from sightline.compat.fovi.demo import get_image_as_batch
from sightline.compat.fovi.fovinet import FoviNet
from sightline.fovea.config import compose

FOV, CMF_A, DEVICE = 16, 0.5, "cpu"
SIDE, CHANNELS = 64, 128


def layers() -> torch.Size:
    """One convolution of 49 neighbours, a max pool of 9 with stride 2, ReLU and batch norm."""
    sensor, conv_coords, side = get_in_out_coords(SIDE, FOV, CMF_A, 1, in_cart_res=SIDE, device=DEVICE)
    _, pool_coords, _ = get_in_out_coords(side, FOV, CMF_A, 2, in_cart_res=side, in_coords=conv_coords, device=DEVICE)
    net = nn.Sequential(
        KNNConvLayer(3, CHANNELS, 49, sensor, conv_coords, ref_frame_side_length=14, device=DEVICE),
        KNNPoolingLayer(9, conv_coords, pool_coords, mode="max", device=DEVICE),
        nn.ReLU(),
        KNNBatchNorm(len(pool_coords), CHANNELS, device=DEVICE),
    )
    # What comes from a sensor, and goes through layers on it, is (images, channels, points).
    shape: torch.Size = net(torch.rand(64, 3, len(sensor))).shape
    return shape


def block() -> torch.Size:
    """The same in one module."""
    one = KNNAlexNetBlock(
        3, CHANNELS, 49, FOV, CMF_A, SIDE, 1, cart_res=SIDE, pool=True, pool_k=9, pool_stride=2, norm_type="batch",
        auto_match_cart_resources=1, device=DEVICE, ref_frame_mult=2,
    )  # fmt: skip
    shape: torch.Size = one(torch.rand(64, 3, len(one.in_coords))).shape
    return shape


def alexnet() -> KNNAlexNet:
    """A network of any number of such blocks."""
    return KNNAlexNet(
        SIDE, 3, [96, 256, 384, 256, 256], [4, 1, 1, 1, 1], [1, 4], [11**2, 5**2, 3**2, 3**3, 3**2], n_classes=1000, out_res=None,
        auto_match_cart_resources=1, norm_type="batch", ref_frame_mult=2, fov=FOV, cmf_a=CMF_A, device=DEVICE,
    )  # fmt: skip


def main() -> None:
    """Everything, printed."""
    torch.manual_seed(0)
    print(layers(), block())
    print(alexnet())
    # With Hydra alone: initialize(config_path="../config") and compose, after sightline.fovea.config.copy_to("../config").
    config = compose("fovi_alexnet")
    net = FoviNet(config, device=DEVICE)
    print(net)
    images = get_image_as_batch(device=DEVICE)
    scores, outputs, seen = net(images)
    print(images.shape, outputs[0].shape, outputs[-1].shape, scores.shape, seen.shape)
    with tempfile.TemporaryDirectory() as models:
        saved = Path(models) / "my-alexnet"
        saved.mkdir()
        OmegaConf.save(config, saved / "config.yaml")
        torch.save({"state_dict": net.state_dict()}, saved / "state_dict.pth")
        config, checkpoint, key = load_config("my-alexnet", load=True, folder=models, device="cpu")
        again = FoviNet(config, device="cpu")
        print(again.load_state_dict(checkpoint[key]))


if __name__ == "__main__":
    main()
