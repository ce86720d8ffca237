#!/usr/bin/env bash
# Which lines of pipemlp.h the C tests and the main program run: `make coverage`. Ends with the share
# of lines; the others are listed in build/coverage/missing, function by function.
#
#     bash tests/coverage.sh       needs gcc and gcovr
#                                  PMLP_TEST_QUICK=0 runs the full sets, which reach no more lines
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/coverage
export PMLP_TEST_QUICK=${PMLP_TEST_QUICK:-1}
command -v gcovr > /dev/null 2>&1 || { echo "coverage: gcovr is missing" >&2; exit 1; }
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
gcovr -r . --filter 'pipemlp\.h' --object-directory "$dir" --json "$dir/all.json" --print-summary |
    sed -n 's/^lines: /pipemlp.h, lines: /p' > "$dir/share"
python3 - "$dir/all.json" << 'END' > "$dir/missing"
import json, re, sys
text = open("pipemlp.h").read().split("\n")
lines = {}
for file in json.load(open(sys.argv[1]))["files"]:
    if file["file"].endswith("pipemlp.h"):
        for line in file["lines"]:
            if not line.get("gcovr/noncode"):
                n = line["line_number"]
                lines[n] = lines.get(n, 0) + line["count"]
for n in sorted(lines):
    if lines[n] == 0:
        print("%5d: %s" % (n, text[n - 1].strip()))
END
cat "$dir/share"
echo "$(wc -l < "$dir/missing") lines are not run: $dir/missing"
