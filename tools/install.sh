#!/usr/bin/env bash
# Makes a virtual environment with vcsoup_dist and its tests: tools/install.sh [FOLDER] [lowest]
# It has the versions of constraints.txt, and the linters. With an NVIDIA GPU it takes the CUDA
# build of PyTorch; without one the CPU build, which is a tenth of the size.
# `lowest`: it has the lowest versions that pyproject.toml allows instead, for a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
versions=${2:-}
python=${PYTHON:-python3}
cpu_index=https://download.pytorch.org/whl/cpu

[ -z "$versions" ] || [ "$versions" = lowest ] ||
    { echo "usage: tools/install.sh [FOLDER] [lowest]" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Python 3.11 or newer is needed; set PYTHON to one" >&2; exit 1; }
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

has_cpu_index() {
    "$python" -c "import urllib.request as r; r.urlopen('$cpu_index/torch/', timeout=10)" 2>/dev/null
}

install_tested() {
    local constraints=$venv/constraints.txt torch
    if nvidia-smi -L 2>/dev/null | grep -q GPU; then
        grep -v '^torch==' constraints.txt >"$constraints"
    else
        cp constraints.txt "$constraints"
        torch=$(grep '^torch==' constraints.txt)
        if has_cpu_index; then
            "${pip[@]}" --index-url "$cpu_index" "$torch"
        else
            "${pip[@]}" "$torch"
        fi
    fi
    "${pip[@]}" --constraint "$constraints" --editable '.[dev]'
}

install_lowest() {
    "${pip[@]}" uv
    local uv=("$venv/bin/uv" pip install --quiet --no-config --python "$venv/bin/python")
    if has_cpu_index; then
        uv+=(--torch-backend cpu)
    fi
    "${uv[@]}" --resolution lowest-direct --editable '.[test]'
}

"install_${versions:-tested}"
touch "$venv/installed"
