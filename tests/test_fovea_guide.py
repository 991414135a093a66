"""The guide's Python blocks run, and say what they say they do."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "fovea.md"


def test_the_guides_code_runs_and_prints_what_it_says() -> None:
    if not GUIDE.is_file():
        pytest.skip("the guide is not in this installation")
    # Sections of others (training, pictures, video) may need more than a few seconds, and have tests of their own.
    text = GUIDE.read_text(encoding="utf-8").partition("## Coming from fovi")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
    out = printed.getvalue()
    for said in (
        "4085 53", "torch.Size([2, 2, 3, 4085])", "torch.Size([2, 16, 230])", "torch.Size([2, 10])",
        "[4085, 964, 230, 230, 60, 60, 60, 60, 16, 1]", "did you mean saccades.cmf_a?",
    ):  # fmt: skip
        assert said in out
    assert names["scores"].shape == (2, 10)
