#!/usr/bin/env bash
# Other systems and processors than this one: Windows under Wine, 32 bits with the 387's long
# doubles, musl; by emulation bytes in the other order (s390x) and NEON (aarch64). Each must give the
# bits of its own serial training; no equal bits are promised from one processor to another. And two
# versions of the header in one program.
#
#     bash tests/test_systems.sh     PMLP_STRICT=1 makes a missing tool a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/systems
topic=systems
. tests/say.sh
export PMLP_TEST_QUICK=1
export WINEPREFIX=$PWD/$work/wine WINEDEBUG=-all DISPLAY=
warnings=(-Wall -Wextra -Werror)
rm -rf "$work"
mkdir -p "$work"

queue() { # COMMAND...: two at a time
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    "$@" &
}

# Builds the programs of one system, with one implementation for those tests that can share it.
build() { # SYSTEM COMPILER FLAGS -- TEST...
    local dir=$work/$1 c=("$2" -std=c99 -O1 "${warnings[@]}" -I.) t
    shift 2
    while [ "$1" != -- ]; do
        c+=("$1")
        shift
    done
    shift
    mkdir -p "$dir"
    "${c[@]}" -x c -DPIPEMLP_IMPLEMENTATION -c pipemlp.h -o "$dir/pipemlp.o" || return
    "${c[@]}" -DPIPEMLP_IMPLEMENTATION_DONE examples/train.c "$dir/pipemlp.o" -o "$dir/train.exe" \
        -static -pthread -lm || return
    for t in "$@"; do
        case $t in
            parity) "${c[@]}" "tests/test_$t.c" -o "$dir/$t.exe" -static -pthread -lm ;;
            *) "${c[@]}" -DPIPEMLP_IMPLEMENTATION_DONE "tests/test_$t.c" "$dir/pipemlp.o" \
                -o "$dir/$t.exe" -static -pthread -lm ;;
        esac || return
    done
    touch "$dir/built"
}

training=(--limit 128 --epochs 1 --layers "12,9,8" --quiet)

# Runs them: each test counts as one, and so do the trainings, whose serial and pipelined weights must
# be the same bits.
tries() { # SYSTEM TEXT EMULATOR -- TEST...
    local dir=$work/$1 text=$2 under=() t first="" word options
    shift 2
    while [ "$1" != -- ]; do
        under+=("$1")
        shift
    done
    shift
    if [ ! -f "$dir/built" ]; then
        head -n 12 "$dir.build"
        bad "$text: does not build"
        return
    fi
    for t in "$@"; do
        if timeout 300 "${under[@]}" "$dir/$t.exe" > "$dir/$t.log" 2>&1 < /dev/null &&
                grep -q '^[1-9][0-9]* passed, 0 failed' "$dir/$t.log"; then
            ok "$text: test_$t: $(tail -n 1 "$dir/$t.log" | tr -d '\r')"
        else
            grep -v '^ok ' "$dir/$t.log" | head -n 12
            bad "$text: test_$t (see $dir/$t.log)"
        fi
    done
    for options in '--workers 1' '--workers 2' '--workers 3 --schedule zb-h1' \
            '--workers 2 --schedule interleaved'; do
        # shellcheck disable=SC2086
        word=$(timeout 120 "${under[@]}" "$dir/train.exe" "${training[@]}" $options < /dev/null 2>&1 |
            tr -d '\r' | sed -n 's/^result .* weights=\([0-9a-f]\{16\}\)$/\1/p')
        [ -n "$first" ] || first=$word
        if [ -z "$word" ] || [ "$word" != "$first" ]; then
            bad "$text: train $options: '$word', serially '$first'"
            return
        fi
    done
    ok "$text: train: 4 trainings, one weights word $first"
}

# SYSTEM, what it is called, its compiler and flags, its emulator, its tests; - for none
systems=(
    "windows|Windows, under Wine|x86_64-w64-mingw32-gcc-posix -D__USE_MINGW_ANSI_STDIO=1|wine64|images kernels parity"
    "i686|32 bits|i686-linux-gnu-gcc|-|images kernels gradients parity"
    "musl|musl|musl-gcc|-|images parity"
    "s390x|s390x, the last byte first|s390x-linux-gnu-gcc|qemu-s390x|images"
    "aarch64|aarch64, NEON|aarch64-linux-gnu-gcc|qemu-aarch64|images kernels"
)
tools() { # COMPILER EMULATOR: what is missing of them
    have "$1" || echo "$1"
    case $2 in
        -) ;;
        wine64) [ -x /usr/lib/wine/wine64 ] || echo wine64 ;;
        *) have "$2" || echo "$2" ;;
    esac
}

for line in "${systems[@]}"; do
    IFS='|' read -r system _ compiler emulator names <<< "$line"
    read -r -a words <<< "$compiler -- $names"
    [ -n "$(tools "${words[0]}" "$emulator")" ] ||
        queue build "$system" "${words[@]}" > "$work/$system.build" 2>&1
done
wait
for line in "${systems[@]}"; do
    IFS='|' read -r system text compiler emulator names <<< "$line"
    lost=$(tools "${compiler%% *}" "$emulator" | xargs)
    [ "$emulator" = - ] && emulator=env
    [ "$emulator" = wine64 ] && emulator=/usr/lib/wine/wine64
    read -r -a words <<< "$emulator -- $names"
    if [ -n "$lost" ]; then missing "$lost" "$text"
    else queue tries "$system" "$text" "${words[@]}" > "$work/$system.said" 2>&1
    fi
done
wait
for line in "${systems[@]}"; do
    IFS='|' read -r system _ <<< "$line"
    [ -f "$work/$system.said" ] || continue
    cat "$work/$system.said"
    passed=$((passed + $(grep -c '^ok   ' "$work/$system.said")))
    failed=$((failed + $(grep -c '^FAIL ' "$work/$system.said")))
done

# --- two versions of the header in one program ----------------------------------------------------

mkdir -p "$work/other"
sed 's/^\(#define PMLP_VERSION_MAJOR\).*/\1 77/; s/"relu"/"rectifier"/' pipemlp.h > "$work/other/pipemlp.h"
cat > "$work/one.c" << 'END'
#define PIPEMLP_STATIC
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include <stdio.h>
int VERSION(const char **relu);
int VERSION(const char **relu) {
    static const int sizes[] = {3, 5, 4, 2};
    static const float x[] = {0, 1, 0, 1, 1, 0};
    static const int labels[] = {0, 1};
    pmlp_model_desc net = {0};
    pmlp_trainer_desc how = {0};
    pmlp_data data = {0};
    pmlp_verify_report report = {0};
    pmlp_model *model = NULL;
    net.layers = 3, net.sizes = sizes, how.workers = 2, how.batch = 2;
    data.rows = 2, data.x = x, data.labels = labels;
    *relu = pmlp_activation_name(PMLP_RELU);
    if (pmlp_model_create(&net, &model, NULL) != PMLP_OK ||
        pmlp_verify(model, &how, &data, 3, &report, NULL) != PMLP_OK || !report.identical)
        return -1;
    pmlp_model_destroy(model);
    return PMLP_VERSION_MAJOR;
}
END
cat > "$work/main.c" << 'END'
#include <stdio.h>
int here(const char **relu), other(const char **relu);
int main(void) {
    const char *a, *b;
    const int one = here(&a), two = other(&b);
    printf("%d calls it %s, %d calls it %s\n", one, a, two, b);
    return 0;
}
END
major=$(sed -n 's/^#define PMLP_VERSION_MAJOR *//p' pipemlp.h)
if gcc -std=c99 -O0 "${warnings[@]}" -DVERSION=here -I. -c "$work/one.c" -o "$work/here.o" &&
        gcc -std=c99 -O0 "${warnings[@]}" -DVERSION=other "-I$work/other" -c "$work/one.c" \
            -o "$work/other.o" &&
        gcc "$work/main.c" "$work/here.o" "$work/other.o" -o "$work/two" -pthread -lm &&
        [ "$("$work/two")" = "$major calls it relu, 77 calls it rectifier" ]; then
    ok "two versions of the header in one program: $("$work/two")"
else
    bad "two versions of the header in one program"
fi
end
