#!/usr/bin/env bash
# Runs the tests of the native executor against a build with sanitizers.
#
#   scripts/sanitize.sh [address|thread] [pytest arguments]
#
# address: AddressSanitizer and UndefinedBehaviorSanitizer. thread: ThreadSanitizer, for the thread pool. The build lies in
# build/sanitize-KIND, beside the ordinary one and independent of it. Needs g++ and the environment of `make venv`.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-address}
[ $# -gt 0 ] && shift
venv=$(cd "${VENV:-.venv}" && pwd)
cxx=${CXX:-g++}
build=$PWD/build/sanitize-$kind
case $kind in
  address) runtime=libasan.so ;;
  thread) runtime=libtsan.so ;;
  *) echo "sanitize.sh: unknown sanitizer '$kind'; use address or thread" >&2; exit 2 ;;
esac
if "$cxx" --version | grep -qi clang; then
  echo "sanitize.sh: needs g++ (clang places its runtimes elsewhere); set CXX=g++" >&2
  exit 2
fi
shopt -s nullglob
# Not the one that measures memory: the instrumented kernels need more.
tests=(tests/test_native*.py tests/test_points.py tests/test_ops.py tests/test_ops_channel_sum.py --deselect "tests/test_ops_channel_sum.py::test_no_patches_are_made_natively")
if [ ${#tests[@]} -eq 0 ]; then
  echo "sanitize.sh: no tests/test_native*.py to run" >&2
  exit 1
fi

CXX=$cxx "$venv/bin/cmake" -S . -B "$build" -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DSIGHTLINE_SANITIZE="$kind" -DSIGHTLINE_INPLACE=OFF \
  -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" -DPython_EXECUTABLE="$venv/bin/python"
"$venv/bin/cmake" --build "$build"

# A copy of the package with the instrumented module in it, ahead of the ordinary one on the path.
site=$build/site
rm -rf "$site"
mkdir -p "$site"
cp -r src/sightline "$site/"
rm -f "$site"/sightline/kernels/_native.*.so
cp "$build"/_native.*.so "$site/sightline/kernels/"

# The interpreter is not instrumented, so the runtime must be loaded before it; libstdc++ too, for its exceptions.
preload="$("$cxx" -print-file-name=$runtime) $("$cxx" -print-file-name=libstdc++.so)"
# Leaks: Python never frees all it has. malloc: each object its own block, so that overruns of numpy and bytes show too.
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
# torch and OpenMP synchronise in ways that an uninstrumented library cannot show.
printf 'called_from_lib:%s\n' libtorch_cpu.so libtorch_python.so libgomp > "$build/tsan.supp"
echo 'mutex:capsule_dealloc' >> "$build/tsan.supp" # at exit torch unlocks a mutex after its destructor
# the C library frees a finished thread's storage in the thread that reuses its stack, under a lock that the runtime does not see
echo 'race:_dl_deallocate_tls' >> "$build/tsan.supp"
export TSAN_OPTIONS="halt_on_error=0:exitcode=66:suppressions=$build/tsan.supp:${TSAN_OPTIONS:-}"
export PYTHONMALLOC=malloc PYTHONPATH="$site" OMP_NUM_THREADS=1

# The environment holds the package as a link to src/, found before anything on the path: take that finder out.
cat > "$build/run.py" <<'PY'
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
for name in [name for name in sys.modules if name.partition(".")[0] == "sightline"]:
    del sys.modules[name]

import sightline.kernels._native as native

assert native.__file__.startswith(sys.argv[1]), native.__file__

import torch

import sightline.graph.native

# each map its own block, so that overruns of one into the next show
sightline.graph.native.arena = lambda sizes, dtype: [torch.empty(size, dtype=dtype) for size in sizes]

import pytest

sys.exit(pytest.main(sys.argv[2:]))
PY
# --capture=sys: the runtimes write to the file descriptor, and pytest would swallow that when they end the process.
env LD_PRELOAD="$preload" "$venv/bin/python" "$build/run.py" "$site" -p no:cacheprovider --capture=sys -x "$@" "${tests[@]}"
