#!/usr/bin/env bash
# Builds and runs the tests: every tests/test_*.c and tests/test_*.sh that is there.
#
#     bash tests/run.sh [SECTION ...]
#
#     gcc        every C test, optimized
#     clang      the same with clang
#     scripts    every test that is a script: compilers and flags, the programs' command lines
#     asan       every C test under the address and undefined-behaviour sanitizers, quick set
#     ubsan      every C test under the undefined-behaviour sanitizer alone, quick set
#     tsan       the C tests that start threads under the thread sanitizer, quick set
#     valgrind   a short training and the smallest C test under valgrind
#
# Without a section: all but ubsan. Two tests run side by side, those that look at the clock alone;
# each is reported whole, in the order above. Ends with the line `N passed, N failed`; tests that
# were skipped for want of a tool are counted on a line before it. The exit status is 0 if nothing
# failed.
#
#     PMLP_TEST_JOBS=N     N tests side by side (default 2)
#     PMLP_TEST_QUICK=1    smaller loops everywhere
#     PMLP_STRICT=1        a missing tool is a failure, not a skip
#     PMLP_TEST_TIMEOUT=N  seconds after which a test counts as hung (default 600)
set -u
cd "$(dirname "$0")/.." || exit 1

out=build/test
strict=${PMLP_STRICT:-0}
limit=${PMLP_TEST_TIMEOUT:-600}
jobs=${PMLP_TEST_JOBS:-2}
flags=(-std=c99 -Wall -Wextra -I.)
libs=(-pthread -lm)
threaded=(test_parity test_errors test_async test_ranks test_numbers) # what the thread sanitizer looks at
smallest=test_images               # what valgrind looks at, beside a training
alone=(test_errors test_laboratory test_ranks) # these bound how long something takes
passed=0 failed=0 skipped=0

have() { command -v "$1" > /dev/null 2>&1; }

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit "$1"
}

# What there is to tell, in order: a text, or the name of a test that has been started and its log.
texts=() logs=() told=0

later() { # TEXT [LOG]
    texts+=("$1") logs+=("${2:-}")
    tell
}

tell() { # all that waits for nothing that still runs
    local log status seconds
    while [ "$told" -lt "${#texts[@]}" ]; do
        log=${logs[told]}
        if [ -z "$log" ]; then
            printf '%s\n' "${texts[told]}"
        else
            [ -f "$log.end" ] || return 0
            read -r status seconds < "$log.end"
            count "${texts[told]}" "$log" "$status" "$seconds"
        fi
        told=$((told + 1))
    done
}

title() { later $'\n'"--- $*"; }

missing() { # TOOL WHAT: what cannot run without it
    if [ "$strict" = 1 ]; then
        later "FAIL $2: $1 is missing"
        failed=$((failed + 1))
    else
        later "skip $2: $1 is missing"
        skipped=$((skipped + 1))
    fi
}

# Adds up the lines of one finished test's log. A test that ended badly without saying so, or that
# said nothing at all, has failed.
count() { # NAME LOG STATUS SECONDS
    local name=$1 log=$2 status=$3 ok bad why=""
    ok=$(grep -c '^ok   ' "$log")
    bad=$(grep -c '^FAIL ' "$log")
    skipped=$((skipped + $(grep -c '^skip ' "$log")))
    if [ "$bad" -gt 0 ] || [ "$status" -ne 0 ]; then
        grep -v '^[0-9]* passed, [0-9]* failed' "$log" | tail -n 60
    else
        grep -E '^(ok   |skip |note )' "$log"
    fi
    case $status in
        0) [ "$((ok + bad))" -gt 0 ] || why="no test ran" ;;
        1) [ "$bad" -gt 0 ] || why="exit status 1" ;;
        124 | 137) why="still running after $limit s" ;;
        *) why="exit status $status" ;;
    esac
    if [ -n "$why" ]; then
        echo "FAIL $name: $why (see $log)"
        bad=$((bad + 1))
    fi
    passed=$((passed + ok)) failed=$((failed + bad))
    echo "     $name: $4 s"
}

slot() { # COUNT: waits until fewer than so many jobs run
    while [ "$(jobs -pr | wc -l)" -ge "$1" ]; do wait -n; done
    tell
}

job() { # LOG COMMAND...
    local log=$1 begin=$SECONDS child
    shift
    timeout -k 5 "$limit" "$@" > "$log" 2>&1 < /dev/null &
    child=$!
    trap 'kill "$child"' TERM
    wait "$child"
    echo "$? $((SECONDS - begin))" > "$log.new"
    mv "$log.new" "$log.end"
}

run() { # NAME LOG COMMAND...
    local name=$1 log=$2 single=0
    shift 2
    case " ${alone[*]} " in *" $name "*) single=1 ;; esac
    slot $((single ? 1 : jobs))
    rm -f "$log.end"
    job "$log" "$@" &
    later "$name" "$log"
    [ $single = 0 ] || slot 1
}

# Has this test to compile the implementation itself, because it looks inside or replaces functions
# that are called there?
inside() { # NAME
    awk '/^#define PIPEMLP_IMPLEMENTATION/ { next }
         /^#include ".*pipemlp\.h"/ { seen = 1 }
         /pmlp__/ || (!seen && /^ *# *define/) { found = 1 }
         END { exit !found }' "tests/$1.c"
}

# Compiles tests/NAME.c for each NAME into $out/$section, several at a time, and the implementation
# once for those that can share it.
build() { # SECTION COMPILER FLAGS -- NAME...
    local section=$1 compile=("$2" "${flags[@]}") own=() others=() name shared builds=()
    shift 2
    while [ "$1" != -- ]; do
        compile+=("$1")
        shift
    done
    shift
    mkdir -p "$out/$section"
    for name in "$@"; do
        rm -f "$out/$section/$name"
        if inside "$name"; then own+=("$name"); else others+=("$name"); fi
    done
    slot "$jobs"
    "${compile[@]}" -x c -DPIPEMLP_IMPLEMENTATION -c pipemlp.h -o "$out/$section/pipemlp.o" \
        > "$out/$section/pipemlp.build" 2>&1 &
    shared=$!
    for name in "${own[@]}"; do
        slot "$jobs"
        "${compile[@]}" "tests/$name.c" -o "$out/$section/$name" "${libs[@]}" \
            > "$out/$section/$name.build" 2>&1 &
        builds+=($!)
    done
    wait "$shared"
    [ ! -s "$out/$section/pipemlp.build" ] || later "$(head -n 20 "$out/$section/pipemlp.build")"
    for name in "${others[@]}"; do
        slot "$jobs"
        "${compile[@]}" -DPIPEMLP_IMPLEMENTATION_DONE "tests/$name.c" "$out/$section/pipemlp.o" \
            -o "$out/$section/$name" "${libs[@]}" > "$out/$section/$name.build" 2>&1 &
        builds+=($!)
    done
    [ ${#builds[@]} -eq 0 ] || wait "${builds[@]}"
}

# Builds and runs C tests as one section; $under, if set, is put before each command.
under=()
c_section() { # SECTION COMPILER FLAGS -- NAME...
    local section=$1 name after=0 names=()
    if ! have "$2"; then
        missing "$2" "section $section"
        return
    fi
    build "$@"
    for name in "$@"; do
        [ "$after" = 1 ] && names+=("$name")
        [ "$name" = -- ] && after=1
    done
    for name in "${names[@]}"; do
        if [ -x "$out/$section/$name" ]; then
            [ ! -s "$out/$section/$name.build" ] || later "$(cat "$out/$section/$name.build")"
            run "$name" "$out/$section/$name.log" "${under[@]}" "$out/$section/$name"
        else
            later "FAIL $name: does not build"
            later "$(head -n 20 "$out/$section/$name.build")"
            failed=$((failed + 1))
        fi
    done
}

section_gcc() {
    title "C tests, gcc -O2"
    c_section gcc gcc -O2 -- "${c_tests[@]}"
}

section_clang() {
    title "C tests, clang -O2"
    c_section clang clang -O2 -- "${c_tests[@]}"
}

section_asan() {
    title "C tests, address and undefined-behaviour sanitizers, quick set"
    PMLP_TEST_QUICK=1 c_section asan gcc -O1 -g -fsanitize=address,undefined \
        -fno-sanitize-recover=all -fno-omit-frame-pointer -- "${c_tests[@]}"
}

section_ubsan() {
    title "C tests, undefined-behaviour sanitizer, quick set"
    PMLP_TEST_QUICK=1 c_section ubsan gcc -O1 -g -fsanitize=undefined -fno-sanitize-recover=all \
        -- "${c_tests[@]}"
}

section_tsan() {
    local name names=()
    title "threaded C tests, thread sanitizer, quick set"
    for name in "${threaded[@]}"; do [ ! -f "tests/$name.c" ] || names+=("$name"); done
    # some kernels place memory where older thread sanitizers do not expect it
    if setarch "$(uname -m)" -R true 2> /dev/null; then under=(setarch "$(uname -m)" -R); fi
    PMLP_TEST_QUICK=1 TSAN_OPTIONS=halt_on_error=1 c_section tsan gcc -O1 -g -fsanitize=thread \
        -- "${names[@]}"
    under=()
}

section_valgrind() {
    local grind=(valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=all)
    title "valgrind"
    if ! have valgrind || ! have gcc; then
        missing valgrind "a training under valgrind"
        return
    fi
    mkdir -p "$out/valgrind"
    if ! gcc "${flags[@]}" -O1 -g examples/train.c -o "$out/valgrind/train" "${libs[@]}" \
            > "$out/valgrind/train.build" 2>&1; then
        later "FAIL train: does not build"
        later "$(head -n 20 "$out/valgrind/train.build")"
        failed=$((failed + 1))
    else
        run train "$out/valgrind/train.log" bash -c 'set -o pipefail; "$@" | sed "s/^result /ok   &/"' \
            grind "${grind[@]}" "$out/valgrind/train" --layers 24,16,12 --limit 384 --epochs 2 \
            --workers 2 --quiet
    fi
    PMLP_TEST_QUICK=1 build valgrind gcc -O1 -g -- "$smallest"
    PMLP_TEST_QUICK=1 run "$smallest" "$out/valgrind/$smallest.log" "${grind[@]}" \
        "$out/valgrind/$smallest"
}

section_scripts() {
    local script name
    for script in tests/test_*.sh; do
        [ -f "$script" ] || continue
        name=$(basename "$script" .sh)
        title "$name"
        mkdir -p "$out/scripts"
        run "$name" "$out/scripts/$name.log" bash "$script"
    done
}

sections=(gcc clang scripts asan tsan valgrind)
[ $# -eq 0 ] || sections=("$@")
for section in "${sections[@]}"; do
    case $section in
        gcc | clang | scripts | asan | ubsan | tsan | valgrind) ;;
        -h | --help) usage 0 ;;
        *) echo "run.sh: no section $section" >&2; usage 2 >&2 ;;
    esac
done
have timeout || { echo "run.sh: needs timeout (coreutils)" >&2; exit 1; }

mkdir -p "$out"
c_tests=()
for file in tests/test_*.c; do
    [ ! -f "$file" ] || c_tests+=("$(basename "$file" .c)")
done
begin=$SECONDS
trap 'kill $(jobs -pr) 2> /dev/null' EXIT
trap 'exit 130' INT TERM
for section in "${sections[@]}"; do "section_$section"; done
slot 1

printf '\n%s s in all; logs are under %s\n' $((SECONDS - begin)) "$out"
[ "$skipped" -eq 0 ] || echo "$skipped skipped, each with its reason above"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
