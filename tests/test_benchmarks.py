from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def quick(script: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "result.json"
    done = run(script, "--quick", "--output", str(output), *arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    assert not list(tmp_path.glob("*.partial*"))
    assert result["schema"] == 1 and result["quick"] is True and result["cases"]
    assert result["machine"]["cores"] >= 1 and result["versions"]["torch"] == torch.__version__
    text = output.read_text()
    assert str(Path.home()) not in text and os.uname().nodename not in text and str(BENCHMARKS.parent) not in text
    return result


def check_rows(case: dict[str, Any]) -> dict[str, float]:
    for row in case["rows"]:
        seconds = row["seconds"]
        assert 0 <= seconds["min"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"], row
        assert seconds["runs"] >= 3 and row["clock"] in {"thread", "process", "wall"}
    return {row["contestant"]: row["seconds"]["median"] for row in case["rows"]}


@pytest.fixture
def native() -> None:
    from sightline import kernels

    if kernels.native() is None:
        pytest.skip("the benchmarks time the native executor, which is not built here")


@pytest.mark.usefixtures("native")
def test_focus_quick(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="a dense peer of this benchmark")
    zero, exact = quick("bench_focus.py", tmp_path)["cases"]
    assert {"eager", "onnxruntime", "zero 1", "zero 0.25", "zero 0.05", "zero blobs 0.25"} <= set(check_rows(zero))
    assert {"exact 1", "exact 0.1", "exact 0.1, moving"} <= set(check_rows(exact))
    shares = {row["contestant"]: row["macs_share"] for case in (zero, exact) for row in case["rows"] if "macs_share" in row}
    assert shares["zero 1"] == shares["exact 1"] == 1.0
    assert shares["zero 0.05"] < shares["zero 0.1"] < shares["zero 0.25"] < 1
    assert 0 <= max(zero["relative_error"], exact["relative_error"]) < 1e-4


@pytest.mark.usefixtures("native")
def test_layers_quick(tmp_path: Path) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    result = quick("bench_layers.py", tmp_path)
    for case in result["cases"]:
        medians = check_rows(case)
        assert {"F.conv2d", "prepacked", "sightline 1", "sightline 0.01"} <= medians.keys()
        assert case["macs"] > 0 and case["relative_error"] < 1e-4


@pytest.mark.usefixtures("native")
def test_ops_quick(tmp_path: Path) -> None:
    result = quick("bench_ops.py", tmp_path)
    assert len(result["cases"]) == 3
    for case in result["cases"]:
        medians = check_rows(case)
        assert {row["phase"] for row in case["rows"]} == {"forward", "backward"}
        assert all(f"{name}: {phase}" in medians for name in case["speedup_forward_and_backward"] for phase in ("forward", "backward"))
        assert case["macs"] > 0 and case["relative_error"] < 1e-4


@pytest.mark.usefixtures("native")
def test_networks_quick(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="a dense peer of this benchmark")
    result = quick("bench_networks.py", tmp_path, "--peers", "eager,onnxruntime")
    medians = check_rows(result["cases"][0])
    assert {"eager", "onnxruntime", "uniform 1", "uniform 0.05", "exact box 5%", "static"} <= medians.keys()
    shares = {row["contestant"]: row["macs_share"] for row in result["cases"][0]["rows"] if "macs_share" in row}
    assert shares["uniform 1"] == 1 and shares["static"] == 0 and 0 < shares["uniform 0.05"] < shares["uniform 0.5"] < 1


@pytest.mark.usefixtures("native")
def test_bfloat16_quick(tmp_path: Path) -> None:
    case = quick("bench_bfloat16.py", tmp_path, "--peers", "eager")["cases"][0]
    assert {"eager", "uniform 1", "uniform 0.05", "exact box 5%", "static"} <= check_rows(case).keys()
    assert 1e-4 < case["relative_error"] < 0.1, "three digits are what bfloat16 has"


@pytest.mark.usefixtures("native")
def test_roofline_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline import kernels

    if not {"avx512", "avx2"} & set(kernels.native_status()["isas"]) or not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("the peak is measured in x86 assembly, which needs a C compiler")
    result = quick("bench_roofline.py", tmp_path)
    machine = result["cases"][-1]
    assert machine["case"] == "machine" and machine["copy_gbytes"]["best"] > 0.1
    layers = [row for case in result["cases"] for row in case["rows"] if "flops" in row]
    assert {row["kind"] for row in layers} == {"1x1", "3x3", "depthwise", "linear"}
    for row in layers:
        bounds = [found["best"] for found in machine["peak_gflops"].values()]
        bounds += [machine["copy_gbytes"]["best"] * row["flops"] / row["bytes"]]
        assert any(row["bound"] == pytest.approx(bound) for bound in bounds) and row["gflops"] > 0
        assert row["share"] == pytest.approx(row["gflops"] / row["bound"])
    if importlib.util.find_spec("matplotlib"):  # an extra
        load("draw_roofline", monkeypatch).draw(tmp_path / "result.json", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("native")
def test_two_threads_are_timed_by_the_wall_clock(tmp_path: Path) -> None:
    result = quick("bench_networks.py", tmp_path, "--peers", "eager", "--threads", "2")
    assert result["threads"] == 2 and {row["clock"] for row in result["cases"][0]["rows"]} == {"wall"}


@pytest.mark.usefixtures("native")
def test_memory_quick(tmp_path: Path) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.importorskip("psutil", reason="needed to read the process's memory on this system")
    case = quick("bench_memory.py", tmp_path)["cases"][0]
    assert case["reported"] > 2**20 and case["gained"] > 2**20
    assert 0.8 < case["ratio"] < 1.25  # pages weigh more at this size; the promise of 5 % is for real frames


@pytest.mark.usefixtures("native")
def test_video_quick(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    pytest.importorskip("onnxruntime", reason="a dense peer of this benchmark")
    case = quick("bench_video.py", tmp_path)["cases"][0]
    medians = check_rows(case)
    assert {"sightline dense", "onnxruntime", "threshold 0", "threshold 0.1"} <= medians.keys()
    by_name = {row["contestant"]: row for row in case["rows"]}
    assert by_name["threshold 0"]["relative_l2"] < 1e-5 < by_name["threshold 0.1"]["relative_l2"] < 1
    assert shared_data.is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_gates_quick(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm and torchvision build the networks")
    case = quick("bench_gates.py", tmp_path)["cases"][0]
    assert {"dense", "0.0 exact", "0.0 hold 0.1"} <= check_rows(case).keys()
    exact, held = (row for row in case["rows"] if row["contestant"] in {"0.0 exact", "0.0 hold 0.1"})
    assert 0 <= held["macs_share"] <= exact["macs_share"] <= 1
    assert held["gates_moved"] <= exact["gates_moved"]
    assert shared_data.is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_fovea_layers_quick(tmp_path: Path) -> None:
    cases = {case["case"]: case for case in quick("bench_fovea_layers.py", tmp_path)["cases"]}
    layers = [case for case in cases.values() if case["rows"]]
    assert len(layers) == 5
    for case in layers:
        assert "ours" in check_rows(case) and case["relative_error"] <= 1e-5
    for batch_peak in (case["peak_mib"] for case in cases.values() if "peak_mib" in case):
        assert 0 < batch_peak["ours"] < 200 and 0 < batch_peak["dense"] < 200


@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_fovea_video_quick(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    (case,) = quick("bench_fovea_video.py", tmp_path, "--only", "webcam, eye moving")["cases"]
    found = {row["contestant"]: row for row in case["rows"]}
    assert list(found) == ["network", "computed whole", "threshold 0", "threshold 0.03", "threshold 0.1"]
    assert found["threshold 0"]["relative_l2"] < 1e-5 < found["threshold 0.1"]["relative_l2"] < 1
    assert 0 < found["threshold 0.1"]["macs_share"] < found["threshold 0"]["macs_share"] <= 1
    assert shared_data.is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_camera_quick(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    cases = {case["case"]: case for case in quick("bench_camera.py", tmp_path, "--only", "hall")["cases"]}
    assert set(cases) == {"budget: faces, hall", "flicker: faces, hall", "noise: faces, hall"}
    shares = {row["contestant"]: row["macs_share"] for row in cases["flicker: faces, hall"]["rows"]}
    assert shares["flicker, exposure"] < shares["flicker"] <= 1
    assert cases["budget: faces, hall"]["rows"][0]["error_noise_units"] > 0
    page = tmp_path / "page.md"
    page.write_text("<!-- table:sensornoise -->\n<!-- /table -->\n")
    (tmp_path / "result.json").rename(tmp_path / "camera-1.json")
    assert run("render_tables.py", "--results", str(tmp_path), str(page)).returncode == 0
    assert "| noise: faces, hall | temporal |" in page.read_text()
    assert shared_data.is_dir()


def test_tables_of_the_sweep(tmp_path: Path) -> None:
    """Rows of scripts/sweep_models.py as a result file, and the tables drawn from it."""
    ok = {
        "kind": "classification", "weights": 2_700_000, "size": [96, 64], "status": "ok", "relative_error": 3e-7, "macs_share": [1, 0.4],
        "macs": 1000, "native_macs_share": 0.999999, "call_sites": 40, "parts": False, "on_torch": 1,
        "ops_on_torch": ["aten.matmul.default"], "seconds": 1.0,
    }  # fmt: skip
    rows = [{"name": "timm:first", **ok}, {"name": "torchvision:second", "kind": "classification", "status": "timeout", "seconds": 9.0}]
    source, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write_text("<!-- table:sweepsummary -->\n<!-- /table -->\n<!-- table:sweep -->\n<!-- /table -->\n")
    script = str(BENCHMARKS.parent / "scripts" / "sweep_models.py")
    done = subprocess.run(
        [sys.executable, script, str(source), "--table", str(tmp_path / "models-1.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert run("render_tables.py", "--results", str(tmp_path), str(page)).returncode == 0
    text = page.read_text()
    assert "| timm, classification | 1 | 1 | 0 | 0 | 1 |" in text
    assert "| torchvision, classification | 1 | 0 | 1 | 0 | 0 |" in text
    assert "| timm:first | 2.7 | 96x64 | 3.0e-07 | 100 % | 1 of 40 | matmul |" in text
    assert "| torchvision:second | - | - | - | - | - | timeout:  |" in text


@pytest.mark.usefixtures("native")
def test_motion_quick(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    cost, case = quick("bench_motion.py", tmp_path)["cases"]
    assert {"translation", "affine"} <= set(check_rows(cost))
    check_rows(case)
    by_name = {row["contestant"]: row for row in case["rows"]}
    assert by_name["not followed 0"]["error"] == by_name["translation 0"]["error"] == 0
    assert by_name["not followed 0"]["error_frame"] == 0 < by_name["translation 0"]["error_frame"]
    assert by_name["translation 0.1"]["macs_share"] < 0.7 * by_name["not followed 0.1"]["macs_share"]
    assert any(gain["gain_macs"] > 1.5 for gain in case["gains"])


@pytest.mark.usefixtures("native")
def test_tune_quick(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="decodes the clips")
    pytest.importorskip("onnxruntime", reason="a dense peer of this benchmark")
    result = quick("bench_tune.py", tmp_path)
    case = result["cases"][0]
    assert {"sightline dense", "onnxruntime", "untuned 0.03", "knapsack", "greedy"} <= check_rows(case).keys()
    by_name = {row["contestant"]: row for row in case["rows"]}
    for name in ("untuned 0.03", "knapsack", "greedy"):
        row = by_name[name]
        assert 0 <= row["macs_share"] < 1 and 0 < row["error_noise_units"] < 20 and 0 < row["relative_l2"] < 1
        assert row["task"] == "detection_f1" and 0 <= row["task_error"] <= 1 and row["seconds"]["mean"] > 0
    assert by_name["knapsack"]["met"] and by_name["knapsack"]["held_back_error"] <= case["budget"] == 3.0
    assert case["case"] in load("render_tables", monkeypatch).tune(result)
    assert shared_data.is_dir()


def test_video_without_data_says_so_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    done = run("bench_video.py", "--quick", "--output", str(output), SIGHTLINE_DATA=str(tmp_path / "nowhere"))
    assert done.returncode == 0 and "skipped" in done.stderr and not output.exists()


def test_wrong_number_of_threads() -> None:
    done = run("bench_layers.py", "--threads", "0")
    assert done.returncode == 2 and "--threads" in done.stderr


# -- the harness ---------------------------------------------------------------------------------------------------------


def test_blob_mask_has_the_density_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    for density, count in ((1.0, 48), (0.5, 24), (0.25, 12), (0.001, 1)):
        mask = harness.blob_mask(6, 8, density)
        assert mask.shape == (6, 8) and mask.dtype == torch.bool and int(mask.sum()) == count
    big = harness.blob_mask(64, 64, 0.1)
    inside = big[1:-1, 1:-1] & big[:-2, 1:-1] & big[2:, 1:-1] & big[1:-1, :-2] & big[1:-1, 2:]
    assert int(inside.sum()) > 0.5 * int(big.sum())  # blobs, not dust


def test_race_gives_everybody_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    calls: list[str] = []
    rivals = [harness.Contestant(name, lambda name=name: calls.append(name)) for name in "ab"]
    rows = harness.race(rivals, threads=1, rounds=4, burst=2)
    assert calls == ["a"] * 3 + ["b"] * 3 + calls[6:] and len(calls) == 24
    assert [row["seconds"]["runs"] for row in rows] == [8, 8]


def test_disagreement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    good = torch.tensor([1.0, -2.0])
    assert harness.must_agree("same", good, good.clone()) == 0
    for bad in (torch.tensor([1.0, -2.1]), torch.tensor([1.0, float("nan")]), torch.tensor([1.0])):
        with pytest.raises(harness.Disagreement, match="no results were written"):
            harness.must_agree("different", bad, good)


def test_nothing_is_written_after_a_disagreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    output = tmp_path / "result.json"
    arguments = harness.parser("layers", "about").parse_args(["--output", str(output)])

    def measure(_: object) -> tuple[list[dict[str, Any]], list[str]]:
        harness.must_agree("ours", torch.ones(1), torch.zeros(1))
        return [{"case": "x"}], []

    assert harness.main(arguments, measure) == 1 and not output.exists()


# -- the renderer ----------------------------------------------------------------------------------------------------------


def result(benchmark: str, cases: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    machine = {"cpu": "A CPU", "sightline_isa": "avx2", "cores": 2}
    versions = {"torch": "2.13.0", "numpy": "2.4.6"}
    return {
        "schema": 1, "benchmark": benchmark, "quick": False, "threads": 1, "machine": machine, "versions": versions, "cases": cases, **other
    }  # fmt: skip


def case(name: str, **medians: float) -> dict[str, Any]:
    return {"case": name, "macs": 10**6, "rows": [{"contestant": k, "seconds": {"median": v}} for k, v in medians.items()]}


def test_tables_are_rendered_between_markers(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    slow = case("Net 8x8", **{"eager": 0.004, "onnxruntime": 0.002, "uniform 1": 0.004, "uniform 0.5": 0.001, "static": 0.0001})
    (results / "networks-1.json").write_text(json.dumps(result("networks", [slow])))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:speedups -->\nold\n<!-- /table -->\nbetween\n<!-- table:layers -->\n<!-- /table -->\nafter\n")
    arguments = ("--results", str(results), str(page))

    stale = run("render_tables.py", "--check", *arguments)
    assert stale.returncode == 1 and "page.md" in stale.stdout and "old" in page.read_text()
    assert run("render_tables.py", *arguments).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table:speedups -->\n|") and "between" in text and text.endswith("after\n") and "old" not in text
    assert re.search(r"\| uniform 1 \| 0\.50 / 1\.00 \|", text), text  # a loss is shown as what it is
    assert re.search(r"\| uniform 0\.5 \| 2\.00 / 4\.00 \|", text)
    assert "Not measured yet: run `benchmarks/bench_layers.py --threads 1`" in text
    assert run("render_tables.py", "--check", *arguments).returncode == 0


def test_every_table_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = load("render_tables", monkeypatch)
    layer = case("conv", **{"F.conv2d": 2e-3, "prepacked": 1e-3, "sightline 1": 1.25e-3, "sightline 0.1": 1e-4})
    assert "| conv | 1 | 2 | 2 | 0.80 | 10.0 |" in tables.layers(result("layers", [layer]))
    clip = {**case("clip", **{"sightline dense": 0.02, "onnxruntime": 0.01, "threshold 0.1": 0.04}), "model": "m.onnx", "size": [8, 6]}
    clip["rows"][2] |= {"threshold": 0.1, "macs_share": 0.5, "relative_l2": 0.0123}
    assert "| clip (m, 8x6) | 0.1 | 50 % | 20.0 | 10.0 | 40.0 | 0.50 | 0.25 | 0.012 |" in tables.video(result("video", [clip]))
    gain = {"motion": "translation", "level": 2, "macs_still": 0.9, "macs_following": 0.3, "gain_macs": 3, "gain_time": 2}
    pan = {**clip, "case": "pan", "gains": [gain], "gains_frame": []}
    assert "| pan (m, 8x6) | translation | own | 3.00 / 2.00 |" in tables.motion(result("motion", [pan]))
    assert "| onnxruntime | 10.0 |" in tables.motion_cost(result("motion", [clip]))
    tuned = {**clip, **case("clip", **{"sightline dense": 0.02, "onnxruntime": 0.01, "knapsack": 0.004, "greedy": 0.005})}
    for row in tuned["rows"]:
        row["seconds"]["mean"] = row["seconds"]["median"]
        row |= {"macs_share": 0.25, "error_noise_units": 0.9, "relative_l2": 0.01, "task": "top1", "task_error": 0.05, "passes": 9}
    tuned["rows"][3] |= {"macs_share": 0.5, "task": None, "task_error": None}
    text = tables.tune(result("tune", [tuned]))
    assert "| clip (m, 8x6) | knapsack | 25 % | 4.00 | 10.0 (onnxruntime) | 4.00 | 2.50 | 5.00 | 0.90 | 0.01 | top1 0.050 | 9 |" in text
    assert "| clip (m, 8x6) | greedy | 50 % | 2.00 | 10.0 (onnxruntime) | 5.00 | 2.00 | 4.00 | 0.90 | 0.01 | - | 9 |" in text
    looked = {"top1": dict.fromkeys(("1", "2", "4", "8"), 0.5)}
    foveated: dict[str, Any] = {
        "case": "foveated, learned",
        "samples": 123,
        "cpu_seconds": 90.0,
        "tests": dict.fromkeys(("learned", "contrast", "random"), looked),
    }
    better = {"top1": dict.fromkeys(("1", "2", "4", "8"), 0.75)}
    same = {"samples": 529, "side": 23, "cpu_seconds": 30.4}
    dense = [{"case": f"dense, 4 x, {end}", "top1": top1, **same} for end, top1 in (("average", 0.2), ("all", 0.3))]
    text = tables.fovea_training(result("train-fovea", [foveated, {**foveated, "tests": {**foveated["tests"], "learned": better}}, *dense]))
    assert "| foveated, looks where answers become certain | 123 per fixation | 62.5 (50.0 to 75.0) |" in text
    assert "| dense, whole scene at 23x23 | 529 in all |  |  | 30.0 |  | 30 | 1 |" in text
    state = {"case": "net", "reported": 2**20, "gained": 2**21, "ratio": 0.5, "weights": 0}
    assert "| net | 1.0 | 2.0 | 0.500 | 0.0 |" in tables.memory(result("memory", [state]))
    assert tables.conditions(result("networks", [])).startswith("A CPU (avx2), 2 cores; torch 2.13.0, numpy 2.4.6; medians, CPU time")
    assert "wall time, 2 threads. QUICK RUN" in tables.conditions(result("networks", [], threads=2, quick=True))


@pytest.mark.slow
def test_fovea_training_quick(tmp_path: Path) -> None:
    for package in ("lightning_fabric", "sklearn", "hydra"):
        pytest.importorskip(package)
    result = quick("train_fovea.py", tmp_path)
    names = [case["case"] for case in result["cases"]]
    assert names == ["foveated, learned", "foveated, random", "dense, 1 x, all features", "dense, 1 x, average"]
    learned, _, dense = result["cases"][:3]
    assert set(learned["tests"]) == {"learned", "contrast", "random"} and learned["samples"] == 123
    assert learned["tests"]["learned"]["top1"].keys() == learned["tests"]["random"]["found"].keys() == {str(n) for n in range(1, 9)}
    assert dense["samples"] == 144 and 0 <= dense["top1"] <= 1
    picture = tmp_path / "curve.svg"
    assert run("draw_train_fovea.py", str(tmp_path / "result.json"), str(picture)).returncode == 0
    assert 0 < picture.stat().st_size < 200_000


@pytest.mark.parametrize("text", ["<!-- table:nonsense -->\n<!-- /table -->\n", "<!-- table:layers -->\n<!-- /table -->\n"])
def test_renderer_rejects_what_it_cannot_render(text: str, tmp_path: Path) -> None:
    (tmp_path / "layers-1.json").write_text('{"schema": 99}')
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run("render_tables.py", "--results", str(tmp_path), str(page))
    assert done.returncode == 1 and "page.md: " in done.stderr and page.read_text() == text


def test_foveated_networks_are_timed_beside_their_dense_controls(tmp_path: Path) -> None:
    result = quick("bench_fovea.py", tmp_path, "--only", "ResNet-18 inference")
    assert [case["case"] for case in result["cases"]] == ["ResNet-18 inference, batch 2"]
    times = check_rows(result["cases"][0])
    assert {"ours", "dense"} <= times.keys()
