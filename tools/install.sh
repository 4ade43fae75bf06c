#!/usr/bin/env bash
# Makes a virtual environment with vcsoup_dist, its tests and linters: tools/install.sh [FOLDER]
# With an NVIDIA GPU it takes the CUDA build of PyTorch; without one the CPU build, which is a
# tenth of the size.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
cpu_index=https://download.pytorch.org/whl/cpu

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Python 3.11 or newer is needed; set PYTHON to one" >&2; exit 1; }
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
constraints=$venv/constraints.txt

if nvidia-smi -L 2>/dev/null | grep -q GPU; then
    grep -v '^torch==' constraints.txt >"$constraints"
else
    cp constraints.txt "$constraints"
    torch=$(grep '^torch==' constraints.txt)
    if "$python" -c "import urllib.request as r; r.urlopen('$cpu_index/torch/', timeout=10)" 2>/dev/null
    then
        "${pip[@]}" --index-url "$cpu_index" "$torch"
    else
        "${pip[@]}" "$torch"
    fi
fi
"${pip[@]}" --constraint "$constraints" --editable '.[dev]'
touch "$venv/installed"
