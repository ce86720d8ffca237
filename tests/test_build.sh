#!/usr/bin/env bash
# The header as compilers see it: its own example, every dialect without a warning, linked in every
# combination, no symbol but its own, and the same bits at every optimization level.
#
#     bash tests/test_build.sh       PMLP_TEST_QUICK=1 leaves out most combinations
#                                    PMLP_STRICT=1 makes a missing tool but nvcc a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/build
quick=${PMLP_TEST_QUICK:-0}
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
topic=build
. tests/say.sh


# Two jobs at a time; what each said and its exit status lie in $work/NAME.log and NAME.status.
queue() { # NAME COMMAND...
    local name=$1
    shift
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    {
        "$@" > "$work/$name.log" 2>&1
        echo $? > "$work/$name.status"
    } &
}

good() { [ "$(cat "$work/$1.status" 2> /dev/null)" = 0 ]; }

# One test out of several queued jobs: all must have succeeded.
verdict() { # TEXT NAME...
    local text=$1 name wrong=()
    shift
    for name in "$@"; do good "$name" || wrong+=("$name"); done
    if [ "${#wrong[@]}" -eq 0 ]; then
        ok "$text"
    else
        for name in "${wrong[@]:0:3}"; do head -n 12 "$work/$name.log"; done
        bad "$text: ${wrong[*]}"
    fi
}

rm -rf "$work"
mkdir -p "$work"

# --- sources -----------------------------------------------------------------------------------------

printf '#include "pipemlp.h"\n' > "$work/header.c"
printf '#define PIPEMLP_IMPLEMENTATION\n#include "pipemlp.h"\n' > "$work/impl.c"
printf '#define PIPEMLP_STATIC\n#define PIPEMLP_IMPLEMENTATION\n#include "pipemlp.h"\n' > "$work/static.c"
cat > "$work/late.c" << 'END'
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __cplusplus
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>
#endif
#include "pipemlp.h"
#include "pipemlp.h"
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include "pipemlp.h"
END

# A small training, in the common subset of C and C++; prints the weights word of a pipeline and
# fails if a serial training gives another.
cat > "$work/user.inc" << 'END'
#include <stdio.h>
#include <string.h>

static uint64_t USER_NAME(int workers) {
    static const int sizes[] = {3, 8, 5, 2};
    static const float x[] = {0, 0, 1, 0, 1, 0, 1, 0, .5f, 1, 1, 0, .25f, 1, 1};
    static const int labels[] = {0, 1, 1, 0, 1};
    pmlp_model_desc net;
    pmlp_trainer_desc how;
    pmlp_data data;
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error;
    uint64_t word = 0;
    memset(&net, 0, sizeof net);
    memset(&how, 0, sizeof how);
    memset(&data, 0, sizeof data);
    memset(&error, 0, sizeof error);
    net.layers = 3, net.sizes = sizes, net.hidden = PMLP_TANH;
    how.workers = workers, how.batch = 5;
    data.rows = 5, data.x = x, data.labels = labels;
    if (pmlp_model_create(&net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK)
        for (int step = 0; step < 20; step++) pmlp_trainer_step(trainer, &data, NULL);
    pmlp_trainer_destroy(trainer);
    if (model) pmlp_model_hash(model, &word, &error);
    pmlp_model_destroy(model);
    if (error.result != PMLP_OK) fprintf(stderr, "%s\n", error.text);
    return word;
}
END
cat > "$work/user.c" << 'END'
#include "pipemlp.h"
#define USER_NAME train
#include "user.inc"
int main(void) {
    uint64_t serial = train(1), pipeline = train(2);
    printf("%016llx\n", (unsigned long long)pipeline);
    return serial != pipeline || pipeline == 0;
}
END
cat > "$work/static_a.c" << 'END'
#define PIPEMLP_STATIC
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#define USER_NAME train_a
#include "user.inc"
uint64_t other(int workers);
uint64_t other(int workers) { return train_a(workers); }
END
cat > "$work/static_b.c" << 'END'
#define PIPEMLP_STATIC
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#define USER_NAME train_b
#include "user.inc"
uint64_t other(int workers);
int main(void) {
    uint64_t a = other(2), b = train_b(1);
    printf("%016llx\n", (unsigned long long)a);
    return a != b || a == 0;
}
END

# Every instruction set, activation and optimizer; one line for each with the weights, the losses'
# and the predictions' bits.
cat > "$work/bits.c" << 'END'
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include <stdio.h>
#include <string.h>

enum { ROWS = 45, IN = 19, OUT = 4, STEPS = 6 };
static float x[ROWS * IN], targets[ROWS * OUT], y[ROWS * OUT];
static int labels[ROWS];

static float next(uint64_t *state) { /* exact, so the same everywhere: -1 .. 1 */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(*state >> 40) - (1 << 23)) / (float)(1 << 23);
}

static uint64_t fold(uint64_t hash, double value) { return pmlp_hash(hash, &value, sizeof value); }

static bool train(const pmlp_backend *backend, int activation, int optimizer, pmlp_loss loss) {
    static const int sizes[] = {IN, 35, 17, 9, OUT};
    pmlp_model_desc net;
    pmlp_trainer_desc how;
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_stats stats;
    pmlp_error error;
    uint64_t word = 0, seen = 0;
    memset(&net, 0, sizeof net);
    memset(&how, 0, sizeof how);
    memset(&error, 0, sizeof error);
    net.layers = 4, net.sizes = sizes, net.hidden = (pmlp_activation)activation, net.loss = loss;
    net.seed = (uint64_t)(activation + 10 * optimizer);
    how.workers = 2, how.microbatches = 3, how.batch = ROWS, how.backend = backend;
    how.optimizer = (pmlp_optimizer)optimizer, how.weight_decay = 0.01f, how.clip_norm = 0.75f;
    how.no_threads = true;
    if (pmlp_model_create(&net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK) {
        for (int step = 0; step < STEPS && error.result == PMLP_OK; step++) {
            pmlp_data data;
            memset(&data, 0, sizeof data);
            data.rows = (size_t)(ROWS - step), data.x = x;
            data.labels = loss == PMLP_LOSS_XENT ? labels : NULL;
            data.targets = loss == PMLP_LOSS_MSE ? targets : NULL;
            if (pmlp_trainer_step(trainer, &data, &stats) != PMLP_OK)
                error = *pmlp_trainer_error(trainer);
            else seen = fold(fold(seen, stats.loss), stats.gradient_norm);
        }
    }
    pmlp_trainer_destroy(trainer);
    if (error.result == PMLP_OK) pmlp_model_hash(model, &word, &error);
    if (error.result == PMLP_OK) pmlp_model_predict(model, x, ROWS, y, &error);
    printf(" weights %016llx losses %016llx outputs %016llx\n", (unsigned long long)word,
           (unsigned long long)seen, (unsigned long long)pmlp_hash(0, y, sizeof y));
    pmlp_model_destroy(model);
    if (error.result != PMLP_OK) fprintf(stderr, "%s\n", error.text);
    return error.result == PMLP_OK;
}

int main(void) {
    static const char *const isas[] = {"generic", "sse2", "avx2", "avx512", "neon"};
    uint64_t state = 5;
    bool fine = true;
    int found = 0;
    for (int i = 0; i < ROWS * IN; i++) x[i] = next(&state);
    for (int i = 0; i < ROWS * OUT; i++) targets[i] = next(&state);
    for (int i = 0; i < ROWS; i++) labels[i] = (i * 7 + i / 5) % OUT;
    for (int i = 0; i < 5; i++) {
        const pmlp_backend *backend = pmlp_cpu_backend_isa(isas[i]);
        if (!backend) continue;
        found++;
        for (int f = 1; f < PMLP_ACTIVATION_COUNT; f++)
            for (int o = 1; o < PMLP_OPTIMIZER_COUNT; o++) {
                pmlp_loss loss = (f + o) % 2 ? PMLP_LOSS_XENT : PMLP_LOSS_MSE;
                printf("%s %s %s %s", isas[i], pmlp_activation_name((pmlp_activation)f),
                       pmlp_optimizer_name((pmlp_optimizer)o), pmlp_loss_name(loss));
                fine = train(backend, f, o, loss) && fine;
            }
    }
    return !fine || found == 0;
}
END

# --- the example of the manual -------------------------------------------------------------------------

example() {
    local dir=$work/example line program
    mkdir -p "$dir"
    cp pipemlp.h "$dir/"
    awk '/---8<--- example\.c/ { on = 1; next }
         /--->8---/ { exit }
         on { lines[++n] = $0
              if ($0 ~ /[^ ]/) { match($0, /^ */); if (min == "" || RLENGTH < min) min = RLENGTH } }
         END { for (i = 1; i <= n; i++) print substr(lines[i], min + 1) }' pipemlp.h > "$dir/example.c"
    if [ ! -s "$dir/example.c" ]; then
        bad "the manual's example: no program between its marks"
        return
    fi
    # the manual's line, which calls the file main.c or example.c
    line=$(sed -n '/^#ifndef PIPEMLP_H/q;s/^ *\(cc .*\.c.*\)$/\1/p' pipemlp.h | head -n 1)
    line=${line/ main.c / example.c }
    if [ -z "$line" ]; then
        bad "the manual's example: no line 'cc ... main.c ...' says how to compile it"
        return
    fi
    program=$(sed -n 's/.* -o  *\([^ ]*\).*/\1/p' <<< "$line")
    if ! (cd "$dir" && bash -c "$line") > "$work/example.log" 2>&1; then
        head -n 12 "$work/example.log"
        bad "the manual's example does not compile with: $line"
    elif ! (cd "$dir" && timeout 60 "./${program:-a.out}") > "$dir/out" 2>&1; then
        head -n 12 "$dir/out"
        bad "the manual's example: exit status not 0"
    elif ! grep -q '[0-9]\.[0-9]' "$dir/out" || grep -qiw 'nan\|-nan\|inf\|-inf' "$dir/out"; then
        head -n 12 "$dir/out"
        bad "the manual's example prints no number, or one that is none"
    elif ! gcc -std=c99 "${warnings[@]}" -O2 "$dir/example.c" -o "$dir/strict" -pthread -lm \
            > "$work/example.log" 2>&1; then
        head -n 12 "$work/example.log"
        bad "the manual's example: warnings"
    else
        ok "the manual's example: $line; it says: $(tail -n 1 "$dir/out")"
    fi
}

readme() { # the C in README.md compiles, without a warning
    [ -f README.md ] || return 0
    awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' README.md > "$work/readme.c"
    queue readme gcc -std=c99 -O1 "${warnings[@]}" -I. -c "$work/readme.c" -o "$work/readme.o"
    wait
    if [ -s "$work/readme.c" ]; then verdict "the example of README.md compiles" readme
    else bad "README.md has no example"
    fi
}

examples() { # none gives a warning
    local file name compiler compilers names=()
    for file in examples/*.c examples/*.cpp; do
        case $file in
            *.cpp) compilers=('g++ -std=c++11' 'clang++ -std=c++20') ;;
            *_mpi.c) compilers=('mpicc -std=c99') ;;
            *) compilers=('gcc -std=c99' 'clang -std=c11') ;;
        esac
        for compiler in "${compilers[@]}"; do
            have "${compiler%% *}" || continue
            name=$(basename "$file")-${compiler%% *}
            names+=("$name")
            # shellcheck disable=SC2086
            queue "$name" $compiler "${warnings[@]}" -fsyntax-only -I. "$file"
        done
    done
    wait
    verdict "examples, ${#names[@]} times: no warning" "${names[@]}"
}

# --- the manual's promises: every name and every marker in it exists -----------------------------------

names() { # FILE LINES: the pmlp_ names in them that the header does not declare
    local name
    sed -n "$2" "$1" | grep -o 'pmlp_[a-z0-9_]*' | sort -u | while read -r name; do
        sed '1,/^#ifndef PIPEMLP_H/d' pipemlp.h | grep -qw "$name" || echo "$name"
    done
}

manual() {
    local marker unknown lost=()
    while read -r marker; do
        grep -q "^/\* *$marker\b" pipemlp.h || lost+=("$marker")
    done < <(sed -n '1,/^#ifndef PIPEMLP_H/p' pipemlp.h | grep -o '>>[a-z][a-z-]*' | sort -u)
    unknown=$(names pipemlp.h '1,/^#ifndef PIPEMLP_H/p')
    [ ! -f README.md ] || unknown="$unknown $(names README.md p)"
    unknown=$(xargs <<< "$unknown")
    if [ "${#lost[@]}" -gt 0 ]; then bad "the manual: no section ${lost[*]}"
    elif [ -n "$unknown" ]; then bad "the manual: the header has no $unknown"
    else ok "the manual: every section and every name in it exists"
    fi
}

# --- dialects ------------------------------------------------------------------------------------------

dialect() { # COMPILER LANGUAGE STANDARD
    local compiler=$1 language=$2 standard=$3 level unit names=() units=(header impl static late)
    local levels=(-O0) # late: system headers before, and the header twice
    if ! have "$compiler"; then
        missing "$compiler" "$standard"
        return
    fi
    if ! "$compiler" -x "$language" -std="$standard" -fsyntax-only - <<< 'int x;' 2> /dev/null; then
        if [ "$strict" = 1 ]; then bad "$compiler has no $standard"; else skip "$compiler has no $standard"; fi
        return
    fi
    case $quick$compiler$standard in # only gcc warns of more when it optimizes, whatever the standard
        0gccc99 | 0g++c++20) levels=(-O0 -O2) ;;
        1*c99 | 1*c++20 | 0*) ;;
        *) units=(header impl) ;;
    esac
    for level in "${levels[@]}"; do
        for unit in "${units[@]}"; do
            case $unit$level in header-O2 | late-O2) continue ;; esac
            names+=("$compiler-$standard$level-$unit")
            queue "$compiler-$standard$level-$unit" "$compiler" -x "$language" -std="$standard" \
                "$level" "${warnings[@]}" -fno-pic -I. -c "$work/$unit.c" -o "$work/$compiler-$standard$level-$unit.o"
        done
    done
    wait
    verdict "$compiler -std=$standard ${levels[*]}: ${units[*]}: no warning" "${names[@]}"
}

# --- linking -------------------------------------------------------------------------------------------

# Links two of the objects below, runs; the program compares serial and pipelined weights itself.
linked() { # TEXT LINKER OBJECT OBJECT
    local text=$1 linker=$2 name
    name=link-$(tr -c 'a-z0-9\n' - <<< "$text")
    if ! "$linker" "$work/$3.o" "$work/$4.o" -o "$work/$name" -pthread -lm > "$work/$name.log" 2>&1; then
        head -n 12 "$work/$3.log" "$work/$4.log" "$work/$name.log"
        bad "$text: does not compile or link"
    elif ! timeout 60 "$work/$name" > "$work/$name.out" 2>&1; then
        cat "$work/$name.out"
        bad "$text: exit status not 0"
    elif ! grep -qx '[0-9a-f]\{16\}' "$work/$name.out"; then
        bad "$text: prints no weights word"
    else
        ok "$text"
    fi
}

# At -O0, where C99's inline functions are not there unless somebody defines them.
links() { # C_COMPILER C++_COMPILER
    local c=$1 cpp=$2 unit
    have "$1" && have "$2" || return 0
    for unit in impl user static_a static_b; do
        queue "c-$unit" "$c" -O0 -std=c99 -I. "-I$work" -c "$work/$unit.c" -o "$work/c-$unit.o"
        queue "cpp-$unit" "$cpp" -O0 -std=c++17 -x c++ -I. "-I$work" -c "$work/$unit.c" \
            -o "$work/cpp-$unit.o"
    done
    wait
    linked "$c: implementation and user in two files" "$c" c-impl c-user
    linked "$c: static in two files of one program" "$c" c-static_a c-static_b
    linked "$cpp: implementation and user in two files" "$cpp" cpp-impl cpp-user
    linked "$cpp: static in two files of one program" "$cpp" cpp-static_a cpp-static_b
    linked "$cpp program, $c implementation" "$cpp" c-impl cpp-user
    linked "$c program, $cpp implementation, linked without the C++ library" "$c" cpp-impl c-user
}

# --- symbols -------------------------------------------------------------------------------------------

symbols() { # COMPILER STANDARD LEVEL: of the objects that its dialect has made
    local object=$work/$1-$2$3 leaks writable own hidden text
    text="symbols, $1 -std=$2 $3"
    have "$1" || return 0
    if ! have nm; then
        missing nm "$text"
        return
    fi
    if [ ! -f "$object-impl.o" ] || [ ! -f "$object-static.o" ]; then
        bad "$text: does not compile"
        return
    fi
    own=$(nm -g --defined-only "$object-impl.o" | grep -c ' pmlp_')
    leaks=$(nm -g --defined-only "$object-impl.o" | awk '$NF !~ /^pmlp_/ || $NF ~ /^pmlp__/ {print $NF}')
    hidden=$(nm -g --defined-only "$object-static.o" "${object%-O?}-O0-header.o" | awk 'NF == 3 {print $NF}')
    writable=$(nm "$object-impl.o" | awk '$(NF - 1) ~ /^[bBdDCsSgGuV]$/ {print $NF}')
    if [ "$own" -lt 20 ]; then bad "$text: only $own of its own"
    elif [ -n "$leaks" ]; then bad "$text: leaks ${leaks//$'\n'/ }"
    elif [ -n "$hidden" ]; then bad "$text: static and yet visible: ${hidden//$'\n'/ }"
    elif [ -n "$writable" ]; then bad "$text: writable globals: ${writable//$'\n'/ }"
    else ok "$text: $own functions, all pmlp_, no writable global"
    fi
}

# --- other targets ---------------------------------------------------------------------------------------

cuda_compiler() {
    if ! have nvcc; then
        skip "nvcc is missing: the public half in a .cu file"
        return
    fi
    cat > "$work/public.cu" << 'END'
#include "pipemlp.h"
__global__ void kernel(float *y) { y[threadIdx.x] = 1; }
static pmlp_result device_forward(void *, void *, int, size_t, const float *, float *y) {
    kernel<<<1, 1>>>(y);
    return PMLP_OK;
}
pmlp_backend table_of_a_device() {
    pmlp_backend table = *pmlp_cpu_backend();
    table.forward = device_forward;
    return table;
}
END
    queue nvcc nvcc -I. -c "$work/public.cu" -o "$work/public.o"
    wait
    if good nvcc && grep -qi warning "$work/nvcc.log"; then
        head -n 12 "$work/nvcc.log"
        bad "nvcc: the public half in a .cu file: warnings"
    else
        verdict "nvcc: the public half in a .cu file" nvcc
    fi
}

windows() {
    local compiler=x86_64-w64-mingw32-gcc
    if ! have $compiler; then
        missing "$compiler" "Windows threads and files"
        return
    fi
    queue windows $compiler -std=c99 -O1 "${warnings[@]}" -I. -c "$work/impl.c" -o "$work/windows.o"
    wait
    verdict "$compiler, implementation" windows
}

# --- the same bits ---------------------------------------------------------------------------------------

bits() { # C_COMPILER C++_COMPILER
    local c=$1 cpp=$2 first="" variant names=() line lines isas
    local levels=("-O0" "-O1" "-O2" "-O3" "-O3 -march=native") dialects=("$c -std=c99" "$c -std=gnu11" "$cpp -x c++ -std=c++17")
    have "$c" && have "$cpp" || return 0
    if [ "$quick" != 0 ]; then
        levels=("-O0" "-O3 -march=native")
        dialects=("$c -std=gnu11")
    fi
    for line in "${dialects[@]}"; do
        for variant in "${levels[@]}"; do
            case $line:$variant in # levels between: in one dialect
                *gnu11:* | *:-O0 | *native) ;;
                *) continue ;;
            esac
            names+=("bits-$(tr -c 'a-z0-9+O\n' - <<< "$line$variant")")
            # shellcheck disable=SC2016,SC2086 # $0 and $@ are the inner shell's; words split on purpose
            queue "${names[-1]}" bash -c 'program=$0; "$@" -o "$program" -pthread -lm && timeout 120 "$program"' \
                "$work/${names[-1]}" $line $variant -I. "$work/bits.c"
        done
    done
    wait
    for variant in "${names[@]}"; do
        if ! good "$variant"; then
            head -n 12 "$work/$variant.log"
            bad "same bits, $c: $variant fails"
            return
        fi
        [ -n "$first" ] || first=$variant
        if ! cmp -s "$work/$first.log" "$work/$variant.log"; then
            diff "$work/$first.log" "$work/$variant.log" | head -n 6
            bad "same bits, $c: $variant differs from $first"
            return
        fi
    done
    lines=$(wc -l < "$work/$first.log")
    isas=$(cut -d ' ' -f 1 "$work/$first.log" | uniq | tr '\n' ' ')
    ok "same bits, $c and $cpp: ${#names[@]} programs x $lines trainings (${isas% }) agree"
}

# `make install` as a packager does it: two files and one for pkg-config, by which a program is built;
# `make uninstall` leaves nothing behind.
installed() {
    local root=$work/root package left line
    package=$root/usr/share/pkgconfig/pipemlp.pc
    if ! make --no-print-directory install DESTDIR="$root" PREFIX=/usr > "$work/install.log" 2>&1; then
        tail -n 5 "$work/install.log"
        bad "make install fails"
        return
    fi
    if ! cmp pipemlp.h "$root/usr/include/pipemlp.h" ||
            ! cmp pipemlp_cuda.cu "$root/usr/share/pipemlp/pipemlp_cuda.cu" ||
            [ "$(find "$root" -type f | wc -l)" != 3 ]; then
        bad "make install: other files than the header, the back end and pipemlp.pc"
        return
    fi
    if have pkg-config; then
        line=$(PKG_CONFIG_PATH=$(dirname "$package") pkg-config --define-prefix --cflags --libs pipemlp)
        left=$(PKG_CONFIG_PATH=$(dirname "$package") pkg-config --define-prefix --variable=cuda_source \
            pipemlp)
        # shellcheck disable=SC2086 # words split on purpose
        if ! gcc -std=c99 "$work/impl.c" "$work/user.c" "-I$work" $line -o "$work/installed" ||
                ! "$work/installed" > /dev/null; then
            bad "pkg-config: no program comes of: $line"
            return
        fi
        if ! cmp pipemlp_cuda.cu "$left"; then
            bad "pkg-config --variable=cuda_source: $left"
            return
        fi
    elif [ "$strict" = 1 ]; then
        bad "pkg-config is missing"
        return
    else
        skip "pkg-config is missing"
    fi
    make --no-print-directory uninstall DESTDIR="$root" PREFIX=/usr > "$work/uninstall.log" 2>&1
    left=$(find "$root" \( -type f -o -name pipemlp \) -exec printf '%s ' {} +)
    if [ -z "$left" ] && make --no-print-directory uninstall DESTDIR="$root" PREFIX=/usr \
            > "$work/uninstall.log" 2>&1; then
        ok "make install, pkg-config, make uninstall: nothing is left, twice"
    else
        tail -n 2 "$work/uninstall.log"
        bad "make uninstall leaves ${left:-nothing, but fails the second time}"
    fi
}

# The programs of tests/bench that use the header: they know the back end's table, two of them more.
benchmarks() {
    local program names=()
    for program in gemm profile peer_pipemlp peer_data_parallel; do
        names+=("bench_$program")
        queue "bench_$program" gcc -std=gnu11 -O1 -Wall -Wextra -Wpedantic -Wconversion -Werror -I. \
            "tests/bench/$program.c" -o "$work/bench_$program" -ldl -pthread -lm
    done
    wait
    verdict "tests/bench: ${#names[@]} programs compile" "${names[@]}"
}

example
examples
readme
manual
installed
benchmarks
for compiler in gcc clang; do
    for standard in c99 c11; do dialect $compiler c $standard; done
done
for compiler in g++ clang++; do
    for standard in c++11 c++14 c++17 c++20; do dialect $compiler c++ $standard; done
done
links gcc g++
links clang clang++
optimized=-O2
[ "$quick" = 0 ] || optimized=-O0
symbols gcc c99 $optimized
symbols gcc c99 -O0
symbols clang c99 -O0
symbols g++ c++20 $optimized
symbols clang++ c++20 -O0
cuda_compiler
windows
bits gcc g++
bits clang clang++

end
