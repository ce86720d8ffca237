#!/usr/bin/env bash
# Makes a Python environment with PyTorch, safetensors and NumPy in build/torch, for
# tests/test_torch.sh and tests/test_files.sh.
#
#     bash tests/torch_setup.sh
#
# Downloads 550 MB and takes 1.2 GB. PyTorch's package for Linux asks for 2.5 GB more, most of it
# CUDA's libraries, which the CPU's code never calls; but the dynamic linker wants to see them.
# On x86-64 it gets to see one library in which each of their functions does nothing but fail. Where
# that does not work, all that PyTorch asks for is installed: 3 GB, 5.3 GB on disk.
# Does nothing if build/torch is complete. Exit status 1 and one sentence on failure.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1

version=2.15.0
target=build/torch
log=build/torch.log
python=$target/bin/python
pip=("$python" -m pip install --quiet --no-cache-dir --no-compile --disable-pip-version-check
    --progress-bar off --retries 2 --timeout 30)

fail() {
    echo "torch_setup.sh: $*" >&2
    exit 1
}

works() {
    [ -x "$python" ] && "$python" -W ignore -c "
import torch.distributed.pipelining.schedules
raise SystemExit(torch.__version__.split('+')[0] != '$version')" >> "$log" 2>&1
}

# What PyTorch's files are read and written with.
with_files() {
    "$python" -c 'import numpy, safetensors.torch' >> "$log" 2>&1 ||
        "${pip[@]}" --no-deps numpy==2.4.6 safetensors==0.8.0 >> "$log" 2>&1 ||
        fail "safetensors and NumPy cannot be installed here (see $log)"
}

# Puts libabsent.so beside PyTorch's libraries, and links to it under each name that is missing.
without_cuda() {
    local directory
    directory=$(echo "$target"/lib/python3*/site-packages/torch/lib)
    nm -D --undefined-only "$directory"/*.so | awk 'NF == 2 {print $2}' |
        grep -E '^(cu|nccl|nvrtc|nvshmem)' | grep -v -E '@(libcudart|libcuda)\.so' |
        tr '@' ' ' | sort -u > "$work/symbols" || return 1
    awk '{print "int " $1 "(void) { return 1; }"}' "$work/symbols" > "$work/absent.c"
    # a function that is asked for as name@version must have that version
    awk 'NF > 1 {of[$2] = of[$2] $1 "; "}
         END {for (v in of) print v " { global: " of[v] "};"}' "$work/symbols" > "$work/versions"
    cc -w -shared -fPIC -Wl,--version-script="$work/versions" "$work/absent.c" \
        -o "$directory/libabsent.so" || return 1
    readelf -d "$directory"/*.so | sed -n 's/.*NEEDED.*\[\(lib\(cu\|nv\|nccl\).*\)\]/\1/p' |
        grep -v -E '^lib(cudart|cuda)\.so' | sort -u | while read -r name; do
            ln -sf libabsent.so "$directory/$name"
        done
}

small() {
    [ "$(uname -sm)" = "Linux x86_64" ] || return 1
    # without PyTorch's dependencies but these: it imports the last three, and starts CUDA's runtime
    "${pip[@]}" --no-deps "torch==$version" nvidia-cuda-runtime==13.2.86 \
        sympy==1.14.0 mpmath==1.3.0 typing_extensions==4.16.0 &&
        without_cuda && works
}

mkdir -p build || fail "the directory build cannot be made"
: > "$log"
if works; then
    with_files
    echo "torch_setup.sh: $target is complete"
    exit 0
fi
work=$(mktemp -d) || fail "no room for temporary files"
trap 'rm -rf "$work"' EXIT
rm -rf "$target"
python3 -m venv "$target" >> "$log" 2>&1 ||
    fail "python3 -m venv does not work here (Debian: apt-get install python3-venv); see $log"
echo "torch_setup.sh: downloading PyTorch $version (550 MB)"
if ! small >> "$log" 2>&1; then
    if grep -q -i 'connection\|name resolution\|network is unreachable\|timed out' "$log"; then
        rm -rf "$target"
        fail "PyTorch cannot be downloaded: pip reaches no package index (see $log)"
    fi
    if ! "${pip[@]}" "torch==$version" >> "$log" 2>&1 || ! works; then
        rm -rf "$target"
        fail "PyTorch $version cannot be installed here (see $log)"
    fi
fi
with_files
echo "torch_setup.sh: $target is ready"
