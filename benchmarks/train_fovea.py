"""Does looking pay? Trains foveated networks and dense controls on digits among clutter, and writes what they reach as JSON.

The task: one of the 1,797 real digits of scikit-learn, 24 or 16 pixels wide, anywhere in a scene of 128 x 128 pixels, among pieces of other
digits (`sightline.fovea.training.DigitScenes`); 1,347 digits to train on, 450 others to test. Contestants, with equal layers and epochs:

* foveated, N samples per fixation, with a policy that learns where to look; tested with that policy, with contrast and at random;
* the same trained and tested with fixations at random;
* dense networks on the whole scene, reduced (by areas) to at least as many pixels as 1, 4 and 8 fixations have samples. For each number
  the one of two ends (all features, or their average) that is better on the first seed's test scenes is taken.

``--quick`` only shows that it works. Results are written after every contestant, and a run goes on where it stopped (same file).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F

from sightline.fovea.config import compose
from sightline.fovea.saccades import RandomSaccades, SaccadePolicy
from sightline.fovea.training import DigitScenes, Trainer, evaluate
from sightline.fovea.training.data import Batch, SceneSource

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import metadata

RESULTS = Path(__file__).resolve().parent / "results"
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8)
CONTROLS = (1, 4, 8)
ENDS = {"all features": -1, "average": 1}
# Pixels that a digit is wide: what that changes. Smaller ones need a finer fovea.
DIGITS = {24: [], 16: ["data.scenes.zoom=2", "saccades.cmf_a=0.67", "saccades.uncertainty.object_size=0.1"]}
HIT = 8  # pixels: a fixation this near to the digit's middle has it on the fovea


class Reduced(SceneSource):
    """Scenes averaged over areas to side x side pixels."""

    def __init__(self, scenes: DigitScenes, side: int) -> None:
        super().__init__(scenes)
        self.side = side

    def batches(self, epoch: int, **options: Any) -> Iterator[Batch]:
        """See `SceneSource`."""
        for batch in super().batches(epoch, **options):
            yield Batch(F.interpolate(batch.images, size=(self.side, self.side), mode="area"), batch.labels)


def looking(trainer: Trainer, policy: SaccadePolicy) -> dict[str, Any]:
    """Accuracy by number of fixations, and how many fixations have found the digit."""
    source = trainer.val_source
    assert isinstance(source, SceneSource)
    middles = source.scenes.batch(torch.arange(len(source)), source.scenes.ramp)[2]
    generator = torch.Generator().manual_seed(0)
    batches = source.batches(0, batch_size=150, train=False)
    result = evaluate(trainer.network, batches, COUNTS, policy=policy, generator=generator, keep_fixations=True)
    assert result.fixations is not None
    distance = (result.fixations - middles[:, None]).norm(dim=-1) * source.scenes.size
    found = (distance < HIT).cummax(1).values.float().mean(0)
    return {"top1": {str(n): result.top1[n] for n in COUNTS}, "found": {str(n): found[n - 1].item() for n in COUNTS}}


def foveated(seed: int, epochs: int, extra: list[str], learned: bool) -> dict[str, Any]:
    """Trains with the learned policy, or at random; tests with every policy that fits."""
    at_random = ["saccades.sup_policy=multi_random_nearcenter", "saccades.nearcenter_dist=0.5"]
    trainer, row = trained(seed, epochs, extra + ([] if learned else at_random))
    policy = trainer.network.sup_fixator
    assert policy is not None
    anywhere = RandomSaccades(trainer.network.retinal_transform, near_center=0.5)
    row["samples"] = trainer.network.num_coords[0]
    row["tests"] = {"random": looking(trainer, anywhere)}
    if learned:
        row["tests"]["learned"] = looking(trainer, policy)
        policy.follow = "contrast"
        row["tests"]["contrast"] = looking(trainer, policy)
    return row


def dense(seed: int, epochs: int, extra: list[str], side: int, end: str) -> dict[str, Any]:
    """Trains the control on reduced scenes."""
    overrides = [
        "model.arch=alexnet2023", "saccades.mode=null", "saccades.sup_policy=none", "saccades.n_fixations=1",
        "training.fixation_loss=0", "saccades.n_fixations_val=[1]", f"saccades.resize_size={side}", f"saccades.fixation_size={side}",
        f"model.out_grid_size={ENDS[end]}",
    ]  # fmt: skip
    _, row = trained(seed, epochs, extra + overrides, side)
    return {**row, "samples": side * side, "side": side, "end": end, "top1": row["history"][-1]["val"]["top1"][1]}


def trained(seed: int, epochs: int, extra: list[str], side: int | None = None) -> tuple[Trainer, dict[str, Any]]:
    """A finished run and what it took."""
    config = compose("digit_scenes", [f"training.epochs={epochs}", f"training.seed={seed}", "training.eval_freq=4", *extra])
    sources: dict[str, Any] = {}
    if side is not None:
        look = config.data.scenes
        for name, train in (("train", True), ("val", False)):
            scenes = DigitScenes(
                config.training.resolution, look.zoom, look.clutter, look.noise, train, look.train if train else look.val,
                look.ramp if train else 0,
            )  # fmt: skip
            sources[name] = Reduced(scenes, side)
    trainer = Trainer(config, **sources)
    started = time.thread_time()
    report = trainer.fit()
    row = {
        "seed": seed,
        "epochs": epochs,
        "cpu_seconds": time.thread_time() - started,
        "parameters": sum(p.numel() for p in trainer.network.network.parameters()),
        "history": report.history,
    }
    return trainer, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--digit", type=int, choices=list(DIGITS), default=24, help="pixels that a digit is wide")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="default: results/train-fovea-1.json, or train-fovea16-1.json for --digit 16")
    options = parser.parse_args()
    name = "train-fovea" if options.digit == 24 else f"train-fovea{options.digit}"
    output = options.output or RESULTS / f"{name}-1.json"
    torch.set_num_threads(1)
    epochs, seeds = (2, 1) if options.quick else (options.epochs, options.seeds)
    extra = ["data.scenes.train=128", "data.scenes.val=60", "data.scenes.ramp=1", "training.warmup_epochs=0"] if options.quick else []
    extra = DIGITS[options.digit] + extra
    result: dict[str, Any] = {"schema": 1, "benchmark": name, "quick": options.quick, **metadata(1), "epochs": epochs, "cases": []}
    result["digit"] = options.digit
    if output.exists():
        before = json.loads(output.read_text(encoding="utf-8"))
        if before["epochs"] == epochs:
            result["cases"] = before["cases"]

    def case(name: str, seed: int, run: Any) -> dict[str, Any]:
        for row in result["cases"]:
            if (row["case"], row["seed"]) == (name, seed):
                return row
        row = {"case": name, **run()}
        result["cases"].append(row)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        told = row["top1"] if "top1" in row else {name: test["top1"] for name, test in row["tests"].items()}
        print(f"{name}, seed {seed}: {told}, {row['cpu_seconds']:.0f} s", flush=True)
        return row

    samples = 0
    for seed in range(seeds):
        samples = case("foveated, learned", seed, partial(foveated, seed, epochs, extra, True))["samples"]
    for seed in range(seeds):
        case("foveated, random", seed, partial(foveated, seed, epochs, extra, False))
    for count in CONTROLS[:1] if options.quick else CONTROLS:
        side, ends = math.ceil(math.sqrt(count * samples)), list(ENDS)
        for seed in range(seeds):
            rows = {end: case(f"dense, {count} x, {end}", seed, partial(dense, seed, epochs, extra, side, end)) for end in ends}
            ends = [max(rows, key=lambda end: rows[end]["top1"])]  # the better one of the first seed


if __name__ == "__main__":
    main()
