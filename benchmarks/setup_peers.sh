#!/usr/bin/env bash
# Install the peers that `isoflop bench` compares with, each in a virtual environment of its own in
# benchmarks/.peers/, so that none can change what isoflop runs on:
#
#     benchmarks/setup_peers.sh [NAME ...]
#
# DeepSparse 1.8.0 needs Python 3.8 to 3.11: PYTHON names it (by default python3.11). SparseProp and
# sparselab share the PyTorch of isoflop's environment, whose interpreter ISOFLOP_PYTHON names (by
# default .venv/bin/python). SparseProp is compiled, which takes a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

peers=benchmarks/.peers
python=${PYTHON:-python3.11}
isoflop_python=${ISOFLOP_PYTHON:-$PWD/.venv/bin/python}

make_venv() { # NAME PYTHON
    rm -rf "${peers:?}/$1"
    "$2" -m venv "$peers/$1"
}

# Make an environment that imports what isoflop's environment has, PyTorch above all.
make_venv_with_torch() { # NAME
    local purelib
    make_venv "$1" "$isoflop_python"
    purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$isoflop_python" -c "$purelib" >"$("$peers/$1/bin/python" -c "$purelib")/torch_of_isoflop.pth"
}

install() { # NAME PACKAGE ...
    local name=$1
    shift
    "$peers/$name/bin/python" -m pip install --quiet "$@"
}

setup() { # NAME
    case $1 in
    deepsparse)
        make_venv deepsparse "$python"
        install deepsparse deepsparse==1.8.0
        ;;
    onnxruntime | openvino)
        make_venv "$1" "$python"
        install "$1" "$1" numpy
        ;;
    sparselab)
        make_venv_with_torch sparselab
        install sparselab --no-deps sparselab==0.2.2
        ;;
    sparseprop)
        make_venv_with_torch sparseprop
        install sparseprop setuptools wheel pybind11 scipy
        # Its setup.py calls `pip` and `python3` by these names.
        PATH="$PWD/$peers/sparseprop/bin:$PATH" \
            install sparseprop --no-build-isolation --no-deps sparseprop==0.1.14
        ;;
    *)
        echo "Unknown peer $1. Known: deepsparse onnxruntime openvino sparselab sparseprop" >&2
        return 2
        ;;
    esac
    echo "$1 installed in $peers/$1"
}

mkdir -p "$peers"
if [ $# -eq 0 ]; then
    set -- deepsparse onnxruntime openvino sparselab sparseprop
fi
failed=()
for name in "$@"; do
    # `set -e` has no effect inside a condition, so the status is looked at afterwards.
    set +e
    (set -e; setup "$name")
    status=$?
    set -e
    if [ $status -ne 0 ]; then failed+=("$name"); fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "Not installed: ${failed[*]}" >&2
    exit 1
fi
