#!/usr/bin/env bash
# The predictions for many GPUs (tests/bench/scale.c) against cases computed by hand, and the page
# that is made of them.
#
#     bash tests/test_scale.sh
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/scale
topic=scale
. tests/say.sh

rm -rf "$work"
mkdir -p "$work"
if ! "${CC:-cc}" -std=c99 -O1 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
        tests/bench/scale.c -o "$work/scale" -pthread -lm > "$work/build.log" 2>&1; then
    head -n 20 "$work/build.log"
    bad "tests/bench/scale.c does not build without a warning"
    end
fi

# A machine on which nothing takes time but arithmetic: 1 TFLOP/s, so that the product of a row with
# 1000 x 1000 weights takes 2 us. 8 layers, 1600 rows: with P = 4 and 8 micro-batches F takes 0.8 ms.
free=(tflops=1 hbm=1e12 launch=0 node=8 nvlink=1e12 nvlink_us=0 network=1e12 network_us=0
    layers=8 width=1000 rows=1600 stages=4 replicas=1 virtual=1 microbatches=8 schedule=1f1b)
wrong=0 cases=0
is() { # WHAT NAME VALUE SETTINGS...: the settings on top of the above give NAME this value
    local what=$1 name=$2 value=$3 got
    shift 3
    got=$("$work/scale" case "${free[@]}" "$@" | tr ' ' '\n' | sed -n "s/^$name=//p")
    cases=$((cases + 1))
    if ! awk -v a="$got" -v b="$value" \
            'BEGIN {d = a - b; exit !(a != "" && d * d <= 1e-10 * b * b + 1e-24)}'; then
        echo "     $what: $name is '$got', by hand $value"
        wrong=$((wrong + 1))
    fi
}

is "serial: 8 layers x 3 products x 1600 rows x 2 us" step 0.0768 stages=1 microbatches=1
is "serial" busy 1 stages=1 microbatches=1
is "1f1b: (3 m + 2 (P - 1)) F" step 0.024 schedule=1f1b
is "1f1b: 24 of 30" busy 0.8 schedule=1f1b
is "1f1b: as many as stages" held 4 schedule=1f1b
is "gpipe: the same" step 0.024 schedule=gpipe
is "gpipe: all" held 8 schedule=gpipe
is "zb-h1: (3 m + P - 1) F" step 0.0216 schedule=zb-h1
is "interleaved: half the bubble of (P - 1) (F + I)" step 0.0216 schedule=interleaved virtual=2
is "latency: 3 hops up, 3 down" step 0.0246 schedule=gpipe nvlink_us=100
is "nodes: the middle hop is a far one" step 0.025 schedule=gpipe node=2 nvlink_us=100 network_us=300
is "bytes: 0.8 MB take 0.8 ms of the middle hop" step 0.0256 schedule=gpipe node=2 network=1
is "the wire: 8 messages of 80 ms follow each other" step 0.64 schedule=gpipe node=2 network=0.01
is "memory: F, I 5.6 MB, W 9.6 MB, Adam 28 MB at 1 GB/s" step 0.0488 \
    tflops=1e9 hbm=1 layers=1 rows=200 stages=1 microbatches=1
is "launch: F, I, W, U" step 0.0052 launch=1000 layers=1 rows=200 stages=1 microbatches=1
is "ring: 2 x 3/4 of 16 MB at 1 GB/s, and 6 latencies" sum 0.0246 \
    stages=2 replicas=4 node=2 network=1 network_us=100
is "ring in a node" sum 0.024 stages=2 replicas=4 nvlink=1
is "ring: two replicas in a node use two ports" sum 0.024 stages=1 replicas=4 node=2 network=1 \
    microbatches=1
is "one replica adds nothing" sum 0 network_us=1000
is "replicas share the rows" pipeline 0.012 replicas=2
is "GB: 2 layers x (16 bytes x 1e6 + 8 bytes x 800 x 1000)" gigabytes 0.0448 replicas=2
if [ "$wrong" -eq 0 ]; then
    ok "$cases predictions are those computed by hand"
else
    bad "$wrong of $cases predictions are not those computed by hand"
fi

refused=0
for word in rows rows=x layers=-1 speed=2 schedule; do
    "$work/scale" case "$word" > "$work/out" 2> "$work/err" || refused=$((refused + 1))
    grep -qF -- "$word" "$work/err" || refused=0
done
if [ "$refused" -eq 5 ]; then ok "bad settings are refused by name"; else bad "bad settings"; fi

"$work/scale" > "$work/page.md"
if diff "$work/page.md" tests/bench/SCALE.md > "$work/diff"; then
    ok "tests/bench/SCALE.md is what the program says today"
else
    head -n 5 "$work/diff"
    bad "tests/bench/SCALE.md is not what the program says today: make scale"
fi
end
