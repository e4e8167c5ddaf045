#!/usr/bin/env bash
# Install the peers that `isoflop bench` compares with, each in a virtual environment of its own in
# benchmarks/.peers/, so that none can change what isoflop runs on:
#
#     benchmarks/setup_peers.sh [NAME ...]
#
# DeepSparse 1.8.0 (the last that needs no licence server) runs on Python 3.11 at the latest.
# SparseProp is compiled, which takes a C++ compiler. SparseProp and sparselab use the PyTorch of the
# environment of isoflop, named by ISOFLOP_PYTHON (by default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."

peers=benchmarks/.peers
python=${PYTHON:-python3.11}
isoflop_python=$(realpath --no-symlinks "${ISOFLOP_PYTHON:-.venv/bin/python}")

make_venv() { # NAME
    rm -rf "${peers:?}/$1"
    "$python" -m venv "$peers/$1"
}

# Let the environment NAME import what the environment of isoflop has, PyTorch above all.
share_torch() { # NAME
    purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$isoflop_python" -c "$purelib" >"$("$peers/$1/bin/python" -c "$purelib")/torch_of_isoflop.pth"
}

install() { # NAME PACKAGE ...
    local name=$1
    shift
    "$peers/$name/bin/python" -m pip install --quiet "$@"
}

setup() { # NAME
    make_venv "$1"
    case $1 in
    deepsparse) install deepsparse deepsparse==1.8.0 ;;
    onnxruntime) install onnxruntime onnxruntime numpy ;;
    openvino) install openvino openvino numpy ;;
    sparselab)
        share_torch sparselab
        install sparselab --no-deps sparselab==0.2.2
        ;;
    sparseprop)
        share_torch sparseprop
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
    # In a process of its own, as `set -e` has no effect inside a condition.
    if ! (set -e; setup "$name"); then failed+=("$name"); fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "Not installed: ${failed[*]}" >&2
    exit 1
fi
