#!/usr/bin/env bash
# tests/cudahost, the stand-in for CUDA on the CPU: that it does what it promises, built by both
# compilers and under the sanitizers; that it finds planted mistakes, each by the means that is
# meant for it; and that the CUDA it understands is the one that nvcc understands.
#
#     bash tests/test_cudahost.sh    PMLP_TEST_QUICK=0 adds clang and other variants
#                                    PMLP_STRICT=1 makes a missing tool but nvcc a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/cudahost
quick=${PMLP_TEST_QUICK:-1}
source=tests/cudahost/selftest.cu
flags=(-std=c++17 -O1 -g -Wall -Wextra -Werror -Itests/cudahost -x c++ "$source" -pthread)
topic=cudahost
. tests/say.sh


# some kernels place memory where older thread sanitizers do not expect it
fixed=()
if setarch "$(uname -m)" -R true 2> /dev/null; then fixed=(setarch "$(uname -m)" -R); fi
export TSAN_OPTIONS=halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1

run() { # NAME COMMAND...: what it said is in $work/NAME.log
    local name=$1
    shift
    timeout -k 5 300 "${fixed[@]}" "$@" > "$work/$name.log" 2>&1 < /dev/null
}

build() { # NAME COMPILER FLAGS...
    local name=$1
    shift
    if ! have "$1"; then
        missing "$1" "$name"
        return 1
    fi
    "$1" "${@:2}" "${flags[@]}" -o "$work/$name" > "$work/$name.build" 2>&1 && return
    head -n 12 "$work/$name.build"
    bad "$name: does not build without a warning"
    return 1
}

# Every feature, in one build; counts as one test.
features() { # NAME TEXT
    local lines
    if run "$1" "$work/$1" && lines=$(grep -c '^ok   ' "$work/$1.log") && [ "$lines" -ge 25 ]; then
        ok "$2: $lines groups of features"
    else
        grep -vE '^(ok   |cudahost: )' "$work/$1.log" | head -n 30
        bad "$2 (see $work/$1.log)"
    fi
}

# --- planted mistakes ----------------------------------------------------------------------------

# A sanitizer must report the mistake.
reported() { # BUILD PATTERN NAME WHAT
    [ -x "$work/$1" ] || return 0
    if run "fault-$1-$3" "$work/$1" fault "$3"; then
        bad "$1 does not see $4"
    elif grep -qE "$2" "$work/fault-$1-$3.log"; then
        ok "$1 sees $4"
    else
        head -n 12 "$work/fault-$1-$3.log"
        bad "$1 stops, but not for $4"
    fi
}

# The result must be wrong, or the error be there, without any sanitizer; with delays, for one of
# some seeds.
wrong() { # NAME WHAT SEEDS
    local seed
    [ -x "$work/plain" ] || return 0
    for seed in $3; do
        CUDAHOST_JITTER=$seed run "fault-plain-$1" "$work/plain" fault "$1"
        if [ $? -eq 1 ]; then
            ok "plain, seed $seed: $2 shows"
            return
        fi
    done
    bad "plain: $2 does not show"
}

race='ThreadSanitizer: data race'
memory='AddressSanitizer|runtime error'
seeds="1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"

planted() {
    reported tsan "$race" syncthreads "a missing __syncthreads()"
    reported tsan "$race" dynamic "the same in dynamic shared memory"
    reported tsan "$race" event "a missing event"
    reported tsan "$race" late_event "a missing event, even if all went well"
    reported tsan "$race" graph "two branches of a graph that write the same"
    reported tsan "$race" pinned "a pinned buffer overwritten too early"
    reported tsan "$race" grid "a missing grid barrier"
    reported tsan "$race" blocks "two blocks that write the same"
    reported tsan "$race" workspace "one cuBLAS workspace in two streams"
    reported asan "$memory" bounds "an index beyond an allocation"
    reported asan "$memory" tile "an index beyond a __shared__ array"
    wrong syncthreads "a missing __syncthreads()" 0
    wrong grid "a missing grid barrier" 0
    wrong uninitialized "memory that was never written" 0
    wrong uninitialized_shared "shared memory that was never written" 0
    wrong freed "a kernel on freed memory" 0
    wrong event "a missing event" "$seeds"
    wrong pinned "a pinned buffer overwritten too early" "$seeds"
}

# --- settings ------------------------------------------------------------------------------------

# A test of the program under one setting must say PATTERN and give STATUS.
under() { # SETTING STATUS PATTERN TEXT ARGUMENTS...
    local setting=$1 status=$2 pattern=$3 text=$4
    shift 4
    [ -x "$work/plain" ] || return 0
    run settings env "$setting" "$work/plain" "$@"
    if [ $? -eq "$status" ] && grep -qE "$pattern" "$work/settings.log"; then
        ok "$setting: $text"
    else
        head -n 12 "$work/settings.log"
        bad "$setting: $text"
    fi
}

settings() {
    under CUDAHOST_LEAKS=1 3 'leak: 1 x device allocation' "tells what was left" fault leak
    under CUDAHOST_LEAKS=1 0 '^1 passed' "is content with the rest" memory
    under CUDAHOST_COUNTS=1 0 'calls cudaMemcpy2DAsync 2' "tells what was called" copies
    under CUDAHOST_FAIL=cudaMalloc:1 1 'cudaMalloc fails as planned' "fails once" memory
    under CUDAHOST_DEVICES=0 1 'gave 100, not 0' "no device at all" devices
    under CUDAHOST_DEVICES=5 0 ' 5 devices' "more devices" devices
    under CUDAHOST_PEERS=0 1 'gave 217, not 0' "no access to peers" peers
    under CUDAHOST_JITTER=3 0 '28 passed' "all features, with delays"
}

# --- compilers -----------------------------------------------------------------------------------

# Two files in one program, both with kernels.
units() {
    cat > "$work/one.cu" << 'END'
#include <cublasLt.h>
#include <nccl.h>
int other(cudaStream_t stream, float *y);
static __global__ void set(float *y) { y[threadIdx.x] = 1; }
int main() {
    cudaStream_t stream = nullptr;
    float *y = nullptr, out[2] = {0, 0};
    int error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) || cudaMalloc(&y, 8);
    error |= cudahost::launch("set", set, 1, 2, 0, stream, y) || other(stream, y);
    error |= cudaMemcpyAsync(out, y, 8, cudaMemcpyDeviceToHost, stream);
    error |= cudaFree(y) || cudaStreamDestroy(stream);
    return error || !(out[0] == 3 && out[1] == 3);
}
END
    cat > "$work/two.cu" << 'END'
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <nccl.h>
static __global__ void set(float *y) {
    __shared__ float tile[2];
    tile[threadIdx.x] = y[threadIdx.x] + 2;
    __syncthreads();
    y[threadIdx.x] = tile[1 - threadIdx.x];
}
int other(cudaStream_t stream, float *y);
int other(cudaStream_t stream, float *y) {
    return cudahost::launch("set", set, 1, 2, 0, stream, y);
}
END
    if g++ -std=c++17 -O1 -Wall -Wextra -Werror -Itests/cudahost -x c++ "$work/one.cu" \
            "$work/two.cu" -o "$work/units" -pthread > "$work/units.build" 2>&1 &&
            run units "$work/units"; then
        ok "two files, one program"
    else
        cat "$work/units.build"
        bad "two files, one program"
    fi
}

# From here, not from tests/cudahost: nvcc includes a cuda_runtime.h of its own accord.
real_compiler() {
    if ! have nvcc; then
        skip "nvcc is missing: is the self-test CUDA?"
    elif nvcc -std=c++17 -arch=sm_90 -c "$source" -o "$work/selftest.o" > "$work/nvcc.log" 2>&1 &&
            ! grep -qi warning "$work/nvcc.log"; then
        ok "nvcc compiles the self-test without a warning"
    else
        head -n 12 "$work/nvcc.log"
        bad "nvcc: the self-test"
    fi
}

rm -rf "$work"
mkdir -p "$work"
build plain g++ && features plain "g++"
build asan g++ -fsanitize=address,undefined -fno-sanitize-recover=all \
    && features asan "address and undefined-behaviour sanitizers"
build tsan g++ -fsanitize=thread && features tsan "thread sanitizer"
if [ "$quick" = 0 ]; then
    build clang clang++ && features clang "clang++"
    build clang_tsan clang++ -fsanitize=thread && features clang_tsan "clang++, thread sanitizer"
    build ucontext g++ -DCUDAHOST_UCONTEXT && features ucontext "fibers by ucontext"
    units
fi
planted
settings
real_compiler

end
