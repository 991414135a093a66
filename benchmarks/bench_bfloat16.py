"""The networks of bench_networks.py in bfloat16: maps and weights of ours and of all dense peers; frames are float32."""

from __future__ import annotations

import sys

from bench_networks import run

if __name__ == "__main__":
    sys.exit(run("bfloat16", __doc__ or "", "bfloat16"))
