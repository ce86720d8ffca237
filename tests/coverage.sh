#!/usr/bin/env bash
# Which lines and branches of pipemlp.h the C tests and the main program run: `make coverage`. Ends
# with both shares; the others are listed in build/coverage/missing and build/coverage/branches. Fails
# if one of these is not explained in COVERAGE.md, or if there are too many.
#
#     bash tests/coverage.sh       needs gcc, gcovr and python3
#                                  PMLP_TEST_QUICK=0 runs the full sets, which reach few more
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/coverage
export PMLP_TEST_QUICK=${PMLP_TEST_QUICK:-1}
for tool in gcovr python3; do
    command -v "$tool" > /dev/null 2>&1 || { echo "coverage: $tool is missing" >&2; exit 1; }
done
rm -rf "$dir"
mkdir -p "$dir"
compile=(gcc -std=c99 -O0 --coverage -fprofile-update=atomic -I.)

covered() { # SOURCE: builds it, runs it if it is a test
    local program
    program=$dir/$(basename "$1" .c)
    "${compile[@]}" "$1" -o "$program" -pthread -lm > "$program.log" 2>&1 ||
        echo "FAIL $1: does not build" >> "$program.log"
    case $1 in tests/*) timeout 600 "$program" >> "$program.log" 2>&1 < /dev/null ;; esac
}
for source in examples/train.c tests/test_*.c; do
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    covered "$source" &
done
wait
for options in '--compare' '--schedule zb-h1 --verify 2' '--schedule pipedream --trace build/coverage/t.json' \
        '--schedule auto --svg build/coverage/t.svg' '--workers 9 --cut layers'; do
    # shellcheck disable=SC2086
    "$dir/train" --workers 2 --limit 256 --epochs 1 --layers 24,16,12 $options > /dev/null 2>&1
done
grep -h '^FAIL' "$dir"/*.log
gcovr -r . --filter 'pipemlp\.h' --object-directory "$dir" --json "$dir/all.json" > /dev/null || exit 1
python3 tests/coverage.py "$dir"
