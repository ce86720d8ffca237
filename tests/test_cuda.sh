#!/usr/bin/env bash
# pipemlp_cuda.cu on the stand-in for CUDA of tests/cudahost, which runs the same file on the CPU:
# the suite of tests/cuda_suite.c on one device and on several, with delays at random, under the
# sanitizers, without what cuBLASLt may refuse; and planted faults, each of which must be found.
# What this shows is that the file does what it says with CUDA's rules as the stand-in knows them;
# it is not a GPU. `make test-cuda` runs the same suite on one.
#
#     bash tests/test_cuda.sh         PMLP_TEST_QUICK=1 tests less
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/cuda_stand_in
topic=cuda
. tests/say.sh
warnings=(-Wall -Wextra)
quick=PMLP_TEST_QUICK=1
fma=-O2 # a fused multiply-add is slow by software
if grep -qw fma /proc/cpuinfo 2> /dev/null; then fma="-O2 -mfma"; fi

rm -rf "$work"
mkdir -p "$work"

# What does not depend on the .cu is built once for the same flags; $common is then where it lies.
build_common() { # LOG CC CXX FLAGS...
    local log=$1 cc=$2 cxx=$3
    shift 3
    common=$work/common.$cc.$(echo "$*" | tr -c 'a-zA-Z0-9\n' '_')
    [ ! -f "$common.control.o" ] || return 0
    "$cc" -std=c99 -DCUDAHOST "${warnings[@]}" "$@" -I. -c tests/cuda_suite.c -o "$common.c.o" \
        >> "$log" 2>&1 &&
        "$cxx" -std=c++17 "${warnings[@]}" "$@" -Itests/cudahost -c tests/cudahost/control.cpp \
            -o "$common.control.o" >> "$log" 2>&1
}

# Builds the suite: $work/NAME from one .cu, with a C compiler, a C++ compiler, and flags.
build() { # NAME CU CC CXX FLAGS...
    local name=$1 cu=$2 cc=$3 cxx=$4 log=$work/$1.build common
    shift 4
    : > "$log"
    build_common "$log" "$cc" "$cxx" "$@" &&
        "$cxx" -std=c++17 "${warnings[@]}" "$@" -Itests/cudahost -I. -x c++ -c "$cu" \
            -o "$work/$name.cu.o" >> "$log" 2>&1 &&
        "$cxx" "$@" "$work/$name.cu.o" "$common".{c,control}.o -o "$work/$name" -pthread -lm \
            >> "$log" 2>&1
}

# Runs some tests of a built suite, or all, in an environment; they are counted as ours, with a word
# on how.
suite() { # NAME WORD TESTS VARIABLE=VALUE...
    local name=$1 how=$2 tests=$3 log line
    shift 3
    log="$work/$name.$(echo "$how" | tr -c 'a-z0-9\n' '-').log"
    # shellcheck disable=SC2086
    env CUDAHOST_VERBOSE=0 "$@" timeout -k 5 "${PMLP_TEST_TIMEOUT:-600}" "$work/$name" $tests \
        > "$log" 2>&1 < /dev/null
    local status=$?
    while read -r line; do
        case $line in
            'ok   cuda: '*) ok "$how: ${line#ok   cuda: }" ;;
            'FAIL cuda: '*) bad "$how: ${line#FAIL cuda: }" ;;
        esac
    done < "$log"
    if [ "$status" -ne 0 ]; then
        grep -v '^ok ' "$log" | head -n 30
        bad "$how: exit status $status (see $log)"
    elif ! grep -q '^ok ' "$log"; then
        bad "$how: no test ran (see $log)"
    fi
}

hand_offs="schedules slots asynchronous timeline"
# shellcheck disable=SC2086
if ! build plain pipemlp_cuda.cu gcc g++ $fma; then
    tail -n 30 "$work/plain.build"
    bad "does not build on the stand-in"
else
    if grep -q 'warning:' "$work/plain.build"; then
        grep 'warning:' "$work/plain.build" | head -n 5
        bad "g++: warnings"
    else
        ok "g++: no warning"
    fi
    suite plain "one device" "" CUDAHOST_DEVICES=1 $quick
    suite plain "three devices" "$hand_offs faults leaks" CUDAHOST_DEVICES=3 $quick
    suite plain "two devices and delays" "schedules" CUDAHOST_DEVICES=2 CUDAHOST_JITTER=7 $quick \
        PMLP_TEST_TINY=1
    suite plain "nothing offered by cuBLASLt" "cpu gradients" CUDAHOST_LT=0 $quick
    suite plain "no epilogue offered" "cpu gradients" CUDAHOST_LT_EPILOGUES=0 $quick
    # shellcheck disable=SC2086
    if build few pipemlp_cuda.cu gcc g++ $fma -DPMLP__GRAPHS=3 -DPMLP__PLANS=2 \
            -DPMLP__MIRROR=4096; then
        suite few "three graphs, two plans, small mirrors" "gradients schedules" CUDAHOST_DEVICES=1 $quick
    else
        bad "three graphs, two plans, small mirrors: does not build"
    fi
    if CUDAHOST_DEVICES=0 "$work/plain" > "$work/none.log" 2>&1 &&
        grep -q '^skip cuda: worker 0: no CUDA device can be used: ' "$work/none.log"; then
        ok "no device: $(sed 's/^skip cuda: //' "$work/none.log")"
    else
        cat "$work/none.log"
        bad "no device: not one sentence"
    fi
    if ! g++ -std=c++11 -O1 "${warnings[@]}" -Werror -I. tests/cplusplus/*.cpp "$work/plain.cu.o" \
            -o "$work/cplusplus" -pthread > "$work/cplusplus.build" 2>&1; then
        head -n 12 "$work/cplusplus.build"
        bad "a project in C++: does not build without a warning"
    fi
    wanted='no CUDA device can be used'
    for devices in 0 1 2; do
        if CUDAHOST_DEVICES=$devices "$work/cplusplus" > "$work/cplusplus.log" 2>&1 &&
                [ "$(grep -c '' "$work/cplusplus.log")" = 1 ] &&
                grep -q "$wanted" "$work/cplusplus.log"; then
            ok "a project in C++, devices: $devices: $(cat "$work/cplusplus.log")"
        else
            bad "a project in C++, devices: $devices: $(tail -n 3 "$work/cplusplus.log")"
        fi
        wanted='^trained: cpu cuda cuda$'
    done
fi

sanitized() { # NAME FLAGS
    # shellcheck disable=SC2086
    if ! build "$1" pipemlp_cuda.cu gcc g++ -O1 -g $2 -fno-omit-frame-pointer; then
        tail -n 20 "$work/$1.build"
        bad "$1: does not build"
        return 1
    fi
}
if sanitized asan "-fsanitize=address,undefined -fno-sanitize=enum"; then # bad ones are tested
    suite asan "asan" "gradients slots ties bad_options nan faults leaks" CUDAHOST_DEVICES=2 \
        UBSAN_OPTIONS=halt_on_error=1 $quick PMLP_TEST_TINY=1
fi
if sanitized tsan -fsanitize=thread; then
    suite tsan "tsan, one device" "slots timeline" CUDAHOST_DEVICES=1 TSAN_OPTIONS=halt_on_error=1 \
        $quick PMLP_TEST_TINY=1
    suite tsan "tsan, two devices" "schedules" CUDAHOST_DEVICES=2 \
        TSAN_OPTIONS=halt_on_error=1 $quick PMLP_TEST_TINY=1
fi

if have clang && have clang++; then
    # shellcheck disable=SC2086
    if build clang pipemlp_cuda.cu clang clang++ $fma && ! grep -q 'warning:' "$work/clang.build"
    then
        ok "clang++: no warning"
        suite clang "clang++" "gradients teaching_is_exact" CUDAHOST_DEVICES=2 $quick
    else
        head -n 20 "$work/clang.build"
        bad "clang++: does not build without a warning"
    fi
else
    missing clang++ "the suite built by clang++"
fi

# --- planted faults --------------------------------------------------------------------------------

# Replaces some text in a copy of the file, builds it with flags, and wants the tests named to fail.
# Two at a time; each leaves a line.
planted() { # NAME WHAT SED-SCRIPT FLAGS TESTS
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    planted_one "$@" > "$work/planted_$1.line" &
    lines+=("$work/planted_$1.line")
}

lines=()
planted_one() {
    local name=planted_$1 what=$2 script=$3 flags=$4 tests=$5
    sed "$script" pipemlp_cuda.cu > "$work/$name.cu"
    # shellcheck disable=SC2086
    if cmp -s pipemlp_cuda.cu "$work/$name.cu"; then
        echo "FAIL $what: the text to change is no longer there"
    elif ! build "$name" "$work/$name.cu" gcc g++ $flags; then
        tail -n 20 "$work/$name.build" >&2
        echo "FAIL $what: does not build"
    elif env $quick PMLP_TEST_TINY=1 CUDAHOST_DEVICES=2 CUDAHOST_VERBOSE=0 CUDAHOST_WATCHDOG=10 \
            UBSAN_OPTIONS=halt_on_error=1 TSAN_OPTIONS=halt_on_error=1 \
            timeout -k 5 200 "$work/$name" $tests > "$work/$name.log" 2>&1 < /dev/null; then
        echo "FAIL $what: not found"
    elif [ $? -ge 124 ] && ! grep -qE 'FAIL|Sanitizer' "$work/$name.log"; then
        echo "ok $what: found, by a crash"
    else
        echo "ok $what: found"
    fi
    rm -f "$work/$name" "$work/$name".*.o
}

tsan="-O1 -g -fsanitize=thread -fno-omit-frame-pointer"
asan="-O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer"
# shellcheck disable=SC2086
for flags in "$tsan" "$asan" "$fma"; do # before several at a time want it
    build_common "$work/common.build" gcc g++ $flags || cat "$work/common.build"
done
planted barrier "a missing barrier between loading a tile and using it" \
    '/qs\[qk\]\[qc\] = first/,/__syncthreads/{s/__syncthreads();//}' "$tsan" teaching_is_exact
planted barrier_behind "a missing barrier between using a tile and loading the next" \
    '/sum\[i\]\[j\] = fmaf(a\[i\]/,/__syncthreads/{s/__syncthreads();//}' "$tsan" teaching_is_exact
planted event "a receiver that does not wait for the sender" \
    's/cudaStreamWaitEvent(c->stream, apart ? slot->arrived : slot->full, 0)/cudaSuccess/' \
    "$tsan" schedules
planted fork "a dW that does not wait for its dz" \
    's/cudaStreamWaitEvent(c->beside, c->fork, 0)/cudaSuccess/' "$tsan" slots
planted join "an update that does not wait for dW" \
    's/cudaStreamWaitEvent(c->stream, c->join, 0)/cudaSuccess/' "$tsan" slots
planted early "a dW that begins before its dz is there" \
    's/ready\[i\] > first \&\& !pmlp__comes_after(c, w, .*))/ready[i] > first)/' "$tsan" slots
planted workspace "two streams with one workspace" \
    's/(f->beside ? c->workspace_size : 0)/0/' "$tsan" "gradients cpu"
planted slot "a slot that is copied into before it was taken out" \
    's/if (used) PMLP__CUDA(c, /if (0 \&\& used) PMLP__CUDA(c, /' "$tsan" slots
planted bounds "an index out of bounds" \
    's/i < p.count; i += stride/i <= p.count; i += stride/' "$asan" gradients
planted device "a buffer of another device" \
    's/return count > 1 ? &pmlp__cuda_on_several/return count > 9 ? \&pmlp__cuda_on_several/' \
    "$fma" schedules
planted stream "the NULL stream" \
    's/cudaMemsetAsync(\*memory, 0, bytes, c->stream)/cudaMemsetAsync(*memory, 0, bytes, 0)/' \
    "$fma" gradients
planted clearing "device memory that is used without being cleared" \
    's/cudaError_t error = cudaMemsetAsync(\*memory, 0, bytes, c->stream);/cudaError_t error = cudaSuccess;/' \
    "$fma" cpu
planted leak "an event that is not given back" \
    's/if (e->slots\[i\].full) cudaEventDestroy(e->slots\[i\].full);//' "$fma" "schedules leaks"
planted slope "a wrong derivative" 's/return y \* (1.0f - y);/return y * (1.01f - y);/' \
    "$fma" gradients
planted softmax "the label of another row" 's/from.labels\[a.index\[r\]\]/from.labels[a.index[0]]/' \
    "$fma" gradients
planted bias "a bias that is decayed" 's/i < p.weights ? s.decay : 0.0f/s.decay/' "$fma" cpu
planted step "a graph that keeps an old learning rate" \
    's/    if (up->used > up->begin)/    if (up->used > up->begin \&\& c->turn < 9)/' "$fma" cpu
planted graph "graphs that are mistaken for one another" \
    's/g->hash == hash \&\& g->count == c->count \&\&/g->count == c->count \&\&/;s/memcmp((const void \*)g->commands, (const void \*)c->commands, bytes) == 0/bytes > 0/' \
    "$fma" cpu
planted order "a product that does not continue its sum" \
    's/sum\[i\]\[j\] = accumulate \&\& r < m/sum[i][j] = 0 \&\& r < m/' "$fma" teaching_is_exact
planted swallowed "a failure that is forgotten" \
    's/if (c->failed == PMLP_OK) c->failed = pmlp__copy_down(c);/c->failed = pmlp__copy_down(c);/' \
    "$fma" faults
planted layer "graphs of a layer that is gone" \
    's/pmlp__forget_graphs(c); .. they know the layer by its address.*//' \
    "$fma" layers_come_and_go
wait
for line in "${lines[@]}"; do
    case $(cat "$line") in
        'ok '*) ok "planted: $(sed 's/^ok //' "$line")" ;;
        *) bad "planted: $(sed 's/^FAIL //' "$line")" ;;
    esac
done

end
