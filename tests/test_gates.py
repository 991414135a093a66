"""Global gates: which call sites are gates, what `global_ops="hold"` freezes, and how often gates are said to move.

What belongs here: values without positions that act on whole maps. Thresholds in general are in test_laws.py and test_stream.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from cases import Apply
from sightline.graph.capture import capture
from sightline.graph.plan import make_plan
from sightline.stream import Stream
from sightline.thresholds import HELD_GATE, ThresholdError
from streams import FLOAT32, Backend, executor_of
from test_partial import Detector

SHAPE = (1, 3, 24, 20)
each_executor = pytest.mark.parametrize("backend", FLOAT32, ids=lambda value: value.name)


class Gated(nn.Module):
    """Squeeze-excite behind a convolution, and a convolution behind that."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(2)
            self.first, self.squeeze = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
            self.excite, self.last = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 5, 3, padding=1)
            for parameter in self.parameters():
                nn.init.normal_(parameter, 0, 0.3)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(F.relu(self.squeeze(self.before(x).mean((2, 3), keepdim=True)))))

    def before(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x, self.gate(x))

    def behind(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.last(self.before(x) * gate)  # type: ignore[no-any-return]


def held_gate(stream: Stream) -> Tensor:
    assert stream._plan is not None
    step = next(step for step in stream._plan.steps if step.gate)
    value = executor_of(stream).value(step.output)
    assert isinstance(value, Tensor)
    return value.clone()


def patched(count: int, strength: float = 1.0) -> list[Tensor]:
    """A still picture on which a patch appears and then trembles."""
    still = torch.rand(SHAPE)
    frames = [still]
    for index in range(count - 1):
        frame = still.clone()
        frame[:, :, 2:10, 3:13] += strength + 0.01 * (index % 2)
        frames.append(frame)
    return frames


def gates_of(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> list[str]:
    plan = make_plan(capture(model.eval(), torch.zeros(shape)))
    return [step.name for step in plan.steps if step.gate]


@pytest.mark.parametrize(
    ("function", "parts", "count"),
    [
        (lambda x, a, b: a(x) * torch.sigmoid(b(x.mean((2, 3), keepdim=True))), [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)], 1),
        (lambda x, a, b: a(x) + b(x.amax((2, 3), keepdim=True)), [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)], 1),
        (lambda x, a: a(x) * torch.sigmoid(x.mean((2, 3)) @ torch.ones(3, 4)).reshape(1, 4, 1, 1), [nn.Conv2d(3, 4, 1)], 1),
        (lambda x, a: F.interpolate(a(F.adaptive_avg_pool2d(x, 1)), x.shape[2:]), [nn.Conv2d(3, 4, 1)], 1),
        (
            lambda x, a: torch.cat([x * g for g in torch.chunk(torch.sigmoid(a(x.mean((2, 3), keepdim=True))), 2, 1)], 1),
            [nn.Conv2d(3, 6, 1)],
            1,
        ),
        (lambda x, a: x * torch.sigmoid(a(x)), [nn.Conv2d(3, 1, 1)], 0),
        (lambda x, a: a(x) + a(x).relu(), [nn.Conv2d(3, 3, 1)], 0),
        (lambda x, a: a(x.mean((2, 3), keepdim=True)) * x.amax((2, 3), keepdim=True), [nn.Conv2d(3, 3, 1)], 0),
        (lambda x: (x * torch.ones(1, 3, 1, 1)).mean((2, 3)), [], 0),
    ],
    ids=["multiplied", "added", "reshaped", "spread", "sliced", "with positions", "residual", "of vectors", "constant"],
)
def test_what_is_a_gate(function: Callable[..., Tensor], parts: list[nn.Module], count: int) -> None:
    assert len(gates_of(Apply(function, *parts))) == count


@each_executor
def test_a_held_gate_is_the_only_thing_that_lags(backend: Backend) -> None:
    """Outputs are those of the network with the gate that is held; that gate is within its threshold of the right one, always."""
    model = Gated().eval()
    stream = sl.stream(model, global_ops="hold", backend=backend.name)
    base, moved, limit = torch.rand(SHAPE), [], 0.0
    for index in range(12):
        frame = base.clone()
        frame[:, :, : 2 * index, :12] += 2.0
        before = held_gate(stream) if index else None
        output = stream(frame)
        held = held_gate(stream)
        with torch.no_grad():
            want, lagging = model.gate(frame), model.behind(frame, held)
            exact = model.double().behind(frame.double(), held.double())
            model.float()
        oracle.assert_law(output, lagging, exact, f"frame {index}")
        limit = limit or HELD_GATE * float(want.std(correction=0))
        assert float((held - want).square().mean().sqrt()) <= limit * (1 + 1e-4)
        moved.append(before is None or not torch.equal(before, held))
        assert stream.stats.last.gates == {"excite": float(moved[-1])}
    assert 1 < sum(moved) < 8, "some frames must move the gate, and most not"
    assert stream.stats.total.gates["excite"] == pytest.approx(sum(moved) / 12)
    row = next(row for row in stream.explain().rows if row["site"] == "excite")
    assert row["moved"] == pytest.approx(sum(moved) / 12)
    assert f"gate, moved in {sum(moved) / 12:.0%} of the frames" in str(stream.explain())
    assert "excite" in stream.stats.to_dict()["total"]["gates"]


@each_executor
def test_a_gate_that_moved_once_is_compared_again_in_the_next_frame(backend: Backend) -> None:
    """The native executor leaves comparing out for some frames where nearly everything changes; never at a gate."""
    model = Gated().eval()
    stream = sl.stream(model, global_ops="hold", backend=backend.name)
    moves = []
    for frame in patched(8, strength=4.0):
        stream(frame)
        moves.append(stream.stats.last.gates["excite"])
    assert moves == [1, 1, 0, 0, 0, 0, 0, 0]
    assert stream.stats.last.macs_share < 0.3


@each_executor
def test_exact_publishes_every_change(backend: Backend) -> None:
    model = Gated().eval()
    stream = sl.stream(model, backend=backend.name)
    frames = patched(5)
    for frame in frames:
        got = stream(frame)
        with torch.no_grad():
            torch.testing.assert_close(got, model(frame))
        assert stream.stats.last.gates == {"excite": 1.0}
    stream(frames[-1])
    assert stream.stats.last.gates == {"excite": 0.0}
    assert stream.thresholds["excite"] == 0
    assert stream.stats.total.gates["excite"] == pytest.approx(5 / 6)


@each_executor
def test_thresholds_of_gates_are_shown_and_can_be_edited(backend: Backend, tmp_path: Path) -> None:
    model = Gated().eval()
    frames = patched(4)
    stream = sl.stream(model, 0.03, global_ops="hold", backend=backend.name, example=frames[0])
    assert stream.thresholds["excite"] == HELD_GATE
    assert stream.thresholds["squeeze"] == 0.03
    assert sl.stream(model, 2.0, global_ops="hold", example=frames[0]).thresholds["excite"] == 2.0
    assert sl.stream(model, {"excite": 0.01}, global_ops="hold", example=frames[0]).thresholds["excite"] == 0.01
    assert sl.stream(model, {"squeeze": 0.01}, global_ops="hold", example=frames[0]).thresholds["excite"] == HELD_GATE
    stream.thresholds.update(dict.fromkeys(stream.thresholds, 0.0))
    for frame in frames:
        stream(frame)
    assert stream.stats.total.gates["excite"] == 1.0
    twin = stream.clone()
    twin(frames[0])
    assert twin.thresholds["excite"] == 0.0
    assert sl.stream(model, global_ops="hold", example=frames[0]).clone().thresholds["excite"] == HELD_GATE
    path = tmp_path / "thresholds.json"
    stream.thresholds["excite"] = 0.5
    stream.thresholds.save(path)
    loaded = sl.stream(model, sl.Thresholds.read(path), global_ops="hold", example=frames[0])
    assert loaded.thresholds["excite"] == 0.5
    with pytest.raises(ThresholdError):
        stream.thresholds["gate"] = 1.0


@each_executor
def test_absolute_thresholds_of_gates_are_known_after_the_first_frame(backend: Backend) -> None:
    model = Gated().eval()
    frames = patched(3)
    stream = sl.stream(model, 1e-6, threshold_unit="absolute", global_ops="hold", backend=backend.name)
    stream(frames[0])
    with torch.no_grad():
        want = HELD_GATE * float(model.gate(frames[0]).std(correction=0))
    assert stream.thresholds["excite"] == pytest.approx(want, rel=1e-3)
    assert stream.clone().thresholds["excite"] == stream.thresholds["excite"]
    edited = sl.stream(model, 0.0, threshold_unit="absolute", global_ops="hold", backend=backend.name, example=frames[0])
    edited.thresholds["excite"] = 7.0
    edited(frames[0])
    assert edited.thresholds["excite"] == 7.0


def test_holding_saves_what_gates_spread() -> None:
    """At threshold 0 every change of a gate recomputes the map behind it."""
    shares = {}
    for what in ("exact", "hold"):
        stream = sl.stream(Gated().eval(), global_ops=what)
        for index in range(4):
            frame = torch.zeros(SHAPE)
            frame[:, :, 4:8, : 2 * index + 2] = 0.2
            stream(frame)
        shares[what] = stream.stats.last.macs_share
    assert shares["exact"] > 0.4
    assert shares["hold"] < 0.2


def test_parts_of_a_model_hold_gates_too() -> None:
    """A detector is captured in parts; its gates are theirs."""
    model = Detector()
    model.trunk = nn.Sequential(model.trunk, Apply(lambda x, c: x * torch.sigmoid(c(x.mean((2, 3), keepdim=True))), nn.Conv2d(8, 8, 1)))
    frame = torch.rand(1, 3, 32, 32)
    for what, threshold in (("hold", HELD_GATE), ("exact", 0.0)):
        stream = sl.stream(model.eval(), global_ops=what)
        stream(frame)
        stream(frame + 1e-4)
        (name,) = stream.stats.last.gates
        assert stream.thresholds[name] == threshold
        assert stream.stats.last.gates[name] == float(what == "exact")


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`global_ops` must be one of 'exact', 'hold'; got 'held'"):
        sl.stream(nn.ReLU(), global_ops="held")
