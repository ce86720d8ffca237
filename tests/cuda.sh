#!/usr/bin/env bash
# Tests the CUDA back end on a GPU: `make test-cuda` has built build/cuda/train and runs this.
#
#     NVCC=PROGRAM bash tests/cuda.sh    PMLP_TEST_QUICK=1  smaller loops
#
# tests/cuda_suite.c by itself and, if there is one, under each tool of compute-sanitizer; then the
# main program, which compares pipelines with one worker bit by bit. Without a GPU: one line that
# says so, exit status 0. Otherwise ends with `N passed, N failed`.
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/cuda
train=build/cuda/train
limit=${PMLP_TEST_TIMEOUT:-600}
topic=cuda
. tests/say.sh


mkdir -p "$work"

# --- is there a GPU? ------------------------------------------------------------------------------

if ! timeout 120 $train --backend cuda --limit 64 --epochs 1 --layers 16 --quiet \
        > "$work/probe" 2> "$work/probe.err" < /dev/null; then
    why=$(grep -o 'no CUDA device can be used.*' "$work/probe.err")
    if [ -n "$why" ]; then
        echo "test-cuda: nothing is tested: $why"
        exit 0
    fi
    bad "a short training: $(head -n 1 "$work/probe.err")"
    end
fi
ok "a short training: $(tail -n 1 "$work/probe")"

# --- the C tests ----------------------------------------------------------------------------------

run() { # NAME COMMAND...: counts the lines of a program of tests/
    local name=$1 log=$work/${1// /-}.log status
    shift
    timeout -k 5 "$limit" "$@" > "$log" 2>&1 < /dev/null
    status=$?
    grep -E '^(ok   |FAIL |skip |note )' "$log"
    passed=$((passed + $(grep -c '^ok   ' "$log")))
    failed=$((failed + $(grep -c '^FAIL ' "$log")))
    skipped=$((skipped + $(grep -c '^skip ' "$log")))
    if [ $status -ne 0 ] && ! grep -q '^FAIL ' "$log"; then
        tail -n 20 "$log"
        bad "$name: exit status $status (see $log)"
    elif ! grep -q -E '^(ok   |FAIL )' "$log"; then
        bad "$name: no test ran (see $log)"
    fi
}

sanitizer() {
    local beside
    beside=$(dirname "$(command -v "${NVCC:-nvcc}")")/compute-sanitizer
    if [ -x "$beside" ]; then echo "$beside"; else command -v compute-sanitizer; fi
}

if ! "${MAKE:-make}" --no-print-directory NVCC="${NVCC:-nvcc}" build/cuda/cuda_suite \
        > "$work/build.log" 2>&1; then
    tail -n 20 "$work/build.log"
    bad "tests/cuda_suite.c does not build"
    end
fi
run cuda_suite build/cuda/cuda_suite
checker=$(sanitizer)
if [ -z "$checker" ]; then
    skip "compute-sanitizer is missing: it comes with the CUDA toolkit"
else
    for tool in memcheck racecheck initcheck synccheck; do
        PMLP_TEST_QUICK=1 run "cuda_suite under $tool" "$checker" --tool $tool --error-exitcode 9 \
            build/cuda/cuda_suite
    done
fi

# --- NCCL ------------------------------------------------------------------------------------------

# On one GPU two processes can be ranks if NCCL takes them for two machines.
if ! "${MAKE:-make}" --no-print-directory NVCC="${NVCC:-nvcc}" cuda-flags | grep -q NO_NCCL; then
    export NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME=lo
    nccl_word() { sed -n 's/^result .* weights=\([0-9a-f]*\) .*/\1/p' "$1"; }
    together() { # TEXT OPTIONS...: two ranks have the bits of one process
        local text=$1 rank one
        shift
        for rank in 1 0; do
            NCCL_HOSTID=host$rank PMLP_RANK=$rank PMLP_RANKS=2 PMLP_PORT=29533 PMLP_SECONDS=60 \
                timeout 200 $train --backend cuda --limit 2560 --quiet --epochs 2 --devices 0 \
                "$@" > "$work/rank.$rank" 2> "$work/rank.$rank.err" < /dev/null &
        done
        wait
        timeout 120 $train --backend cuda --limit 2560 --quiet --epochs 2 "$@" --devices 0 \
            --replicas 1 > "$work/one" 2>&1 < /dev/null
        one=$(nccl_word "$work/one")
        if [ -n "$one" ] && [ "$one" = "$(nccl_word "$work/rank.0")" ]; then
            ok "two processes on one GPU, over NCCL, $text: $one, as one"
        else
            bad "two processes on one GPU, over NCCL, $text: $(head -n 1 "$work/rank.0.err")" \
                "$(head -n 1 "$work/rank.1.err") (one: '$one')"
        fi
    }
    together "a pipeline" --workers 2
    together "zb-h1" --workers 4 --schedule zb-h1
    together "two replicas in a chain" --workers 1 --replicas 2 --gemm teaching
    for rank in 1 0; do # one stops in the middle: the other must say so, and end
        NCCL_HOSTID=host$rank PMLP_RANK=$rank PMLP_RANKS=2 PMLP_PORT=29534 PMLP_SECONDS=5 \
            $train --backend cuda --quiet --epochs 100000 --devices 0 --workers 2 \
            > "$work/rank.$rank" 2> "$work/rank.$rank.err" < /dev/null &
        ranks[rank]=$!
    done
    sleep 30
    kill -9 "${ranks[1]}"
    ( sleep 60; kill -9 "${ranks[0]}" ) 2> /dev/null &
    wait "${ranks[0]}"
    if [ $? = 1 ] && grep -q 'rank 1 is gone' "$work/rank.0.err"; then
        ok "a rank that dies, over NCCL: $(head -n 1 "$work/rank.0.err")"
    else
        bad "a rank that dies, over NCCL: $(head -n 1 "$work/rank.0.err")"
    fi
    unset NCCL_NET NCCL_IB_DISABLE NCCL_SOCKET_IFNAME
    if "${NVCC:-nvcc}" tests/bench/nccl_self.cu -o "$work/nccl_self" -lnccl \
            > "$work/nccl_self.log" 2>&1 &&
            timeout 120 "$work/nccl_self" > "$work/nccl_self.out" 2>&1; then
        ok "a rank that sends to itself: $(tail -n 1 "$work/nccl_self.out")"
    else
        bad "a rank that sends to itself: $(tail -n 1 "$work/nccl_self.log" "$work/nccl_self.out")"
    fi
fi

# --- the main program -----------------------------------------------------------------------------

small=(--backend cuda --limit 2560 --quiet)
for math in fp32 tf32 bf16; do
    for gemm in fused plain teaching; do
        if timeout 120 $train "${small[@]}" --math $math --gemm $gemm --workers 2 --verify 40 \
                > "$work/verify" 2> "$work/verify.err" < /dev/null; then
            ok "train --math $math --gemm $gemm: $(tail -n 1 "$work/verify")"
        else
            bad "train --math $math --gemm $gemm --verify: $(head -n 1 "$work/verify.err")"
        fi
    done
    words=""
    for _ in 1 2; do
        timeout 120 $train "${small[@]}" --math $math > "$work/run" 2>&1 < /dev/null
        words="$words $(tail -n 1 "$work/run" | sed -n 's/.* weights=\([0-9a-f]*\) .*/\1/p')"
    done
    read -r a b <<< "$words"
    if [ -n "$a" ] && [ "$a" = "$b" ]; then ok "train --math $math: $a, and again"
    else bad "train --math $math: '$a', and then '$b'"
    fi
done
for schedule in gpipe 1f1b zb-h1 interleaved; do
    if timeout 120 $train "${small[@]}" --workers 2 --schedule $schedule --compare \
            > "$work/compare" 2> "$work/compare.err" < /dev/null &&
            tail -n 1 "$work/compare" | grep -q ' identical=yes math=fp32 gemm=fused$'; then
        ok "train --compare --schedule $schedule: identical"
    else
        bad "train --compare --schedule $schedule: $(tail -n 1 "$work/compare")" \
            "$(head -n 1 "$work/compare.err")"
    fi
done
end
