#!/usr/bin/env bash
# Everything that reads what may come from anybody (tests/fuzz_*.c) under libFuzzer and the address
# and undefined-behaviour sanitizers, from the corpus in tests/corpus.
#
#     bash tests/test_fuzz.sh        three seconds each; wants clang with its libFuzzer
#     make fuzz                      2 million executions each, new inputs are kept in build/fuzz
#     make fuzz RUNS=100000000       as many as you like; TARGET=idx for one of them
#                                    PMLP_STRICT=1  no libFuzzer is a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/fuzz
topic=fuzz
. tests/say.sh

targets=(safetensors idx schedule)
[ -z "${TARGET:-}" ] || targets=("$TARGET")
bound=(-max_total_time=3)
[ -z "${RUNS:-}" ] || bound=(-runs="$RUNS")

# One program for all of them, so that the header is compiled once.
mkdir -p "$work"
{
    for target in safetensors idx schedule; do
        printf '#define LLVMFuzzerTestOneInput fuzz_%s\n#include "../../tests/fuzz_%s.c"\n' \
            "$target" "$target"
        printf '#undef LLVMFuzzerTestOneInput\n'
    done
    cat << 'END'
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    const char *target = getenv("PMLP_FUZZ");
    if (target && strcmp(target, "idx") == 0) return fuzz_idx(bytes, size);
    if (target && strcmp(target, "schedule") == 0) return fuzz_schedule(bytes, size);
    return fuzz_safetensors(bytes, size);
}
END
} > "$work/fuzz.c"

if ! have clang; then
    missing clang "fuzzing"
    end
fi
if ! printf 'int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n);
int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return p && n > 9; }\n' |
        clang -fsanitize=fuzzer,address -x c - -o "$work/probe" > "$work/probe.log" 2>&1; then
    missing "clang's libFuzzer (Debian: libclang-rt-dev)" "fuzzing"
    end
fi
if ! clang -std=c99 -O1 -g -Wall -Wextra -Wconversion -Werror \
        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "$work/fuzz.c" -o "$work/fuzz" -pthread -lm > "$work/build.log" 2>&1; then
    head -n 20 "$work/build.log"
    bad "tests/fuzz_*.c do not build"
    end
fi
for target in "${targets[@]}"; do
    log=$work/$target.log
    found=$work/$target # new inputs
    mkdir -p "$found"
    [ -n "${RUNS:-}" ] || rm -rf "${found:?}"/*
    PMLP_FUZZ=$target "$work/fuzz" "${bound[@]}" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$work/$target-" "$found" "tests/corpus/$target" \
        > "$log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [ $status -ne 0 ]; then
        grep -E ' not |ERROR|Test unit written' "$log" | head -n 6
        bad "$target: an input that it does not survive, see $log"
    elif [ "${runs:-0}" -lt 1000 ]; then
        bad "$target: only ${runs:-0} executions in three seconds"
    else
        ok "$target: $runs executions, $edges edges of the program, no failure"
    fi
done
end
