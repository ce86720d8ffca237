#!/usr/bin/env bash
# Ten seconds of tests/endure.c, as `make endure` does for an hour.
set -u
cd "$(dirname "$0")/.." || exit 1
topic=endure
. tests/say.sh
mkdir -p build/test
if "${CC:-cc}" -std=c99 -O2 -Wall -Wextra -I. tests/endure.c -o build/test/endure -pthread -lm; then
    seconds=10
    [ "${PMLP_TEST_QUICK:-0}" = 0 ] || seconds=2
    build/test/endure --seconds $seconds
    exit
fi
bad "tests/endure.c does not build"
end
