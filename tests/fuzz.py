"""Runs random networks on random videos, as many as wanted: ``make fuzz N=10000``.

One case is one seed: a network and a video, run on every executor, instruction set and number of threads (see random_cases.py). A failure
prints the line that repeats it and the run goes on; the exit code is 1 if there was any. A run that was broken off says which seed
comes next, to be given as ``--first``.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings

import torch

import conftest
from networks import RandomNetwork
from random_cases import check

_FIRST = 300  # the seeds below are run by test_fuzz.py


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=_FIRST, help="first seed (default: %(default)s; those below run with the tests)")
    parser.add_argument("--count", type=int, default=2000, help="number of seeds (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this seed alone, after showing its network")
    parser.add_argument("--every", type=int, default=100, help="seeds between two lines of progress (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    conftest._poison_fresh_memory()
    warnings.simplefilter("ignore")
    if arguments.seed is not None:
        print(RandomNetwork(arguments.seed), flush=True)
        print(f"{check(arguments.seed, everything=True)} runs compared: all laws hold")
        return 0
    return run(range(arguments.first, arguments.first + arguments.count), arguments.every)


def run(seeds: range, every: int) -> int:
    """Checks all seeds; returns the exit code."""
    began, runs, failed = time.monotonic(), 0, []
    seed = seeds.start
    try:
        for seed in seeds:
            try:
                runs += check(seed, everything=True)
            except Exception as problem:
                failed.append(seed)
                text = str(problem) if isinstance(problem, AssertionError) else traceback.format_exc()
                print(f"seed {seed} FAILED: {text.strip()}\n  again: python tests/fuzz.py --seed {seed}", flush=True)
            done = seed - seeds.start + 1
            if done % every == 0 or done == len(seeds):
                took = time.monotonic() - began
                print(f"{done} of {len(seeds)} cases, {runs} runs compared, {len(failed)} failed, {took:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"broken off; go on with --first {seed} --count {seeds.stop - seed}", flush=True)
        return 1
    if failed:
        print("failed seeds:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
