#!/usr/bin/env bash
# Several ranks over NCCL, on the stand-in of tests/cudahost: as threads (tests/nccl_suite.c), under
# the sanitizers, too; as processes of the main program, which must have the bits of one; hand-off
# by NCCL within one process (tests/cuda_suite.c); processes that are killed or stopped amid a step,
# each of which all others must notice and name, in time; and planted faults.
# That it runs on a GPU is not shown here; tests/cuda.sh tries on one.
#
#     bash tests/test_nccl.sh         PMLP_TEST_QUICK=0 has many more faults and schedules
#     KILLS=100 bash tests/test_nccl.sh kills     only these, so many of each kind
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/nccl
quick=${PMLP_TEST_QUICK:-1}
topic=nccl
. tests/say.sh
fma=-O2 # a fused multiply-add is slow by software
if grep -qw fma /proc/cpuinfo 2> /dev/null; then fma="-O2 -mfma"; fi
export CUDAHOST_VERBOSE=0 CUDAHOST_DEVICES=4
port=$((20000 + $$ % 5000 * 2))

mkdir -p "$work"

declare -A source=([suite]=tests/nccl_suite.c [cuda]=tests/cuda_suite.c [train]=examples/train.c)

# Programs: $work/PROGRAM.NAME, built two files at a time.
build() { # NAME PROGRAMS FLAGS...
    local name=$1 programs=$2 p
    shift 2
    g++ -std=c++17 -Wall -Wextra "$@" -Itests/cudahost -I. -x c++ -c pipemlp_cuda.cu \
        -o "$work/$name.cu.o" &
    for p in $programs; do
        gcc -std=c99 -D_POSIX_C_SOURCE=200809L -DPMLP_CUDA -DCUDAHOST -Wall -Wextra "$@" -I. \
            -c "${source[$p]}" -o "$work/$name.$p.o" || return 1
    done
    g++ -std=c++17 -Wall -Wextra "$@" -Itests/cudahost -c tests/cudahost/control.cpp \
        -o "$work/$name.control.o"
    wait
    for p in $programs; do
        g++ "$@" "$work/$name".{$p,control,cu}.o -o "$work/$p.$name" -pthread -lm || return 1
    done
}

# Runs tests of a suite in an environment, and counts its lines as ours.
suite() { # PROGRAM WORD TESTS VARIABLE=VALUE...
    local program=$1 how=$2 tests=$3 log line status
    shift 3
    log="$work/$program.$(echo "$how" | tr -c 'a-z0-9\n' '-').log"
    # shellcheck disable=SC2086
    env PMLP_TEST_QUICK="$quick" "$@" timeout -k 5 300 "${fixed[@]}" "$work/$program" $tests \
        > "$log" 2>&1 < /dev/null
    status=$?
    while read -r line; do
        case $line in
            'ok   nccl: '* | 'ok   cuda: '*) ok "$how: ${line#ok   ????: }" ;;
            'FAIL nccl: '* | 'FAIL cuda: '*) bad "$how: ${line#FAIL ????: }" ;;
        esac
    done < "$log"
    if [ $status -ne 0 ]; then
        grep -v '^ok ' "$log" | head -n 30
        bad "$how: exit status $status (see $log)"
    elif ! grep -q '^ok ' "$log"; then
        bad "$how: no test ran (see $log)"
    fi
}
fixed=() # some kernels place memory where older thread sanitizers do not expect it
if setarch "$(uname -m)" -R true 2> /dev/null; then fixed=(setarch "$(uname -m)" -R); fi

# --- processes ------------------------------------------------------------------------------------

small=(--backend cuda --limit 640 --layers "24,16,12" --quiet --batch 64)

# Starts `count` ranks of the main program; the pid of rank R in pids[R], what it says in out.R.
start() { # COUNT SECONDS OPTIONS...
    local count=$1 seconds=$2 r
    shift 2
    port=$((port + 1))
    pids=()
    for ((r = 0; r < count; r++)); do
        PMLP_RANK=$r PMLP_RANKS=$count PMLP_PORT=$port PMLP_SECONDS=$seconds \
            "$work/train.plain" "${small[@]}" "$@" > "$work/out.$r" 2> "$work/err.$r" < /dev/null &
        pids[r]=$!
    done
}
word_of() { sed -n 's/^result .* weights=\([0-9a-f]*\) .*/\1/p' "$1"; }

# All ranks end well, and rank 0 alone says what one process says.
same() { # COUNT TEXT OPTIONS...
    local count=$1 text=$2 r bad="" one all
    shift 2
    "$work/train.plain" "${small[@]}" --epochs 2 $alone "$@" > "$work/one" 2>&1 < /dev/null
    start "$count" 30 --epochs 2 $together "$@"
    for ((r = 0; r < count; r++)); do
        wait "${pids[r]}" || bad="$bad rank $r: $(head -n 1 "$work/err.$r")"
        [ "$r" = 0 ] || [ ! -s "$work/out.$r" ] || bad="$bad rank $r says something"
    done
    one=$(word_of "$work/one") all=$(word_of "$work/out.0")
    if [ -z "$bad" ] && [ -n "$one" ] && [ "$one" = "$all" ]; then ok "$text: $all, as one"
    else bad "$text: '$all', one process '$one'$bad"
    fi
}
alone="" together=""

# A rank gets a signal in the middle of a training: all others must fail, soon, and name it.
killed() { # SIGNAL COUNT VICTIM DEADLINE DELAY
    local signal=$1 count=$2 victim=$3 deadline=$4 r begin took status late=$(($4 * 1000 + 3000))
    [ "$signal" = STOP ] || late=3000
    start "$count" "$deadline" --epochs 1000000 --workers 4
    sleep "$5"
    kill -"$signal" "${pids[victim]}"
    begin=$(date +%s%N)
    for ((r = 0; r < count; r++)); do
        [ "$r" != "$victim" ] || continue
        ( sleep 30; kill -9 "${pids[r]}" ) 2> /dev/null &
        local watchdog=$!
        wait "${pids[r]}"
        status=$?
        kill "$watchdog" 2> /dev/null
        took=$((($(date +%s%N) - begin) / 1000000))
        if [ $status -ne 1 ] || [ $took -gt $late ] ||
                ! grep -q "rank $victim \(is gone\|has been silent\)" "$work/err.$r"; then
            why="$signal of rank $victim of $count: rank $r: status $status after $took ms:"
            why="$why $(head -n 1 "$work/err.$r")"
        fi
    done
    kill -9 "${pids[victim]}"
    wait "${pids[@]}"
    [ -z "$why" ]
}
kills() { # HOW-MANY-OF-EACH
    local n=$1 signal i good why count
    for signal in KILL STOP; do
        good=0 why=""
        for ((i = 0; i < n; i++)); do
            count=$((2 + i % 3)) why=""
            if killed $signal $count $((i * 7 % count)) 2 "0.$((3 + i * 3 % 7))" 2> /dev/null; then
                good=$((good + 1))
            else
                echo "     $why"
            fi
        done
        if [ $good = "$n" ]; then
            ok "SIG$signal of one of 2, 3 or 4 ranks: all others name it in time, $good of $n times"
        else
            bad "SIG$signal of a rank: noticed $good of $n times; $why"
        fi
    done
}

# --- here we go -----------------------------------------------------------------------------------

rm -f "$work"/*.o
# shellcheck disable=SC2086
if ! build plain "suite cuda train" $fma > "$work/plain.build" 2>&1; then
    tail -n 30 "$work/plain.build"
    bad "does not build on the stand-in"
    end
fi
if grep -q 'warning:' "$work/plain.build"; then
    grep 'warning:' "$work/plain.build" | head -n 5
    bad "g++: warnings"
fi
if [ "${1:-}" = kills ]; then
    kills "${KILLS:-100}"
    end
fi
cases="environment bad_calls collectives pipelines several_gpus asynchronous replicas meeting"
suite suite.plain "threads" "$cases impostors aborts deadlines long_steps cut_lines faults"
suite cuda.plain "one process, NCCL between GPUs" "schedules slots asynchronous timeline leaks" \
    PMLP_TEST_HANDOFF=nccl CUDAHOST_DEVICES=3

for handoff in copies nccl; do
    together="--handoff $handoff"
    same 1 "1 process, --handoff $handoff" --workers 4
done
together=""
same 2 "2 processes, 4 workers" --workers 4
same 3 "3 processes, 4 workers, zb-h1" --workers 4 --schedule zb-h1
same 4 "4 processes, 4 workers, gpipe, adam" --workers 4 --schedule gpipe --optimizer adam
same 2 "2 processes, pipedream" --workers 2 --schedule pipedream
together="--replicas 2"
same 4 "4 processes, 2 replicas in a chain" --workers 2 --gemm teaching
together=""
export CUDAHOST_DEVICES=1 # which two ranks of one machine may not share
start 2 3 --epochs 1 --workers 2
wait "${pids[0]}"
if [ $? = 1 ] && grep -q 'duplicate GPU' "$work/err.0"; then ok "two processes on one GPU: refused"
else bad "two processes on one GPU: $(head -n 1 "$work/err.0")"
fi
wait "${pids[1]}"
host_ids() { # two processes that NCCL takes for two machines
    port=$((port + 1))
    for r in 1 0; do
        NCCL_HOSTID=host$r PMLP_RANK=$r PMLP_RANKS=2 PMLP_PORT=$port "$work/train.plain" \
            "${small[@]}" --epochs 2 --workers 2 > "$work/out.$r" 2> "$work/err.$r" &
    done
    wait
    "$work/train.plain" "${small[@]}" --epochs 2 --workers 2 > "$work/one" 2>&1
    if [ -n "$(word_of "$work/one")" ] && [ "$(word_of "$work/one")" = "$(word_of "$work/out.0")" ]
    then ok "two processes on one GPU, with NCCL_HOSTID: $(word_of "$work/out.0"), as one"
    else bad "two processes on one GPU, with NCCL_HOSTID: $(head -n 1 "$work/err.0")"
    fi
}
host_ids
export CUDAHOST_DEVICES=4
RANK=0 "$work/train.plain" "${small[@]}" > "$work/out" 2>&1
if [ $? = 1 ] && [ "$(cat "$work/out")" = "train: WORLD_SIZE: is not set" ]; then
    ok "an environment with a hole: $(cat "$work/out")"
else
    bad "an environment with a hole: $(head -n 1 "$work/out")"
fi
if have mpirun; then
    mpirun --allow-run-as-root --oversubscribe -n 2 "$work/train.plain" "${small[@]}" --epochs 2 \
        --workers 4 > "$work/out.0" 2> "$work/err.0" < /dev/null
    "$work/train.plain" "${small[@]}" --epochs 2 --workers 4 > "$work/one" 2>&1
    if [ -n "$(word_of "$work/one")" ] && [ "$(word_of "$work/one")" = "$(word_of "$work/out.0")" ]
    then ok "mpirun -n 2: $(word_of "$work/out.0"), as one process"
    else bad "mpirun -n 2: $(head -n 2 "$work/err.0")"
    fi
else
    missing mpirun "the main program under mpirun"
fi
if [ "$quick" = 0 ]; then kills 20; else kills 2; fi

# Without NCCL.
# shellcheck disable=SC2086
if g++ -std=c++17 $fma -Wall -Wextra -Werror -DPMLP_NO_NCCL -Itests/cudahost -I. -x c++ \
        -c pipemlp_cuda.cu -o "$work/without.o" > "$work/without.build" 2>&1 &&
        g++ "$work"/plain.train.o "$work/without.o" -o "$work/train.without" -pthread -lm; then
    ok "-DPMLP_NO_NCCL: no warning, no symbol of NCCL"
    "$work/train.without" "${small[@]}" --epochs 2 --workers 4 > "$work/out" 2>&1
    "$work/train.plain" "${small[@]}" --epochs 2 --workers 4 > "$work/one" 2>&1
    if [ -n "$(word_of "$work/out")" ] && [ "$(word_of "$work/out")" = "$(word_of "$work/one")" ]
    then ok "without NCCL: $(word_of "$work/out"), as with it"
    else bad "without NCCL: $(head -n 1 "$work/out")"
    fi
    for try in "--handoff nccl" "PMLP_RANKS=2"; do
        case $try in
            --*) "$work/train.without" "${small[@]}" --workers 2 $try > "$work/out" 2>&1 ;;
            *) env PMLP_RANK=0 "$try" "$work/train.without" "${small[@]}" > "$work/out" 2>&1 ;;
        esac
        if [ $? = 1 ] && grep -q 'built without NCCL' "$work/out"; then
            ok "without NCCL, $try: $(cat "$work/out")"
        else
            bad "without NCCL, $try: $(head -n 1 "$work/out")"
        fi
    done
else
    head -n 10 "$work/without.build"
    bad "-DPMLP_NO_NCCL: does not build without a warning"
fi

# --- sanitizers -----------------------------------------------------------------------------------

asan="-O1 -g -fsanitize=address,undefined -fno-sanitize=enum -fno-omit-frame-pointer"
tsan="-O1 -g -fsanitize=thread -fno-omit-frame-pointer"
some="aborts cut_lines"
shown=timeline
[ "$quick" != 0 ] || shown="slots schedules"
[ "$quick" != 0 ] || some="collectives pipelines several_gpus replicas $some meeting faults"
# shellcheck disable=SC2086
if build asan suite $asan > "$work/asan.build" 2>&1; then
    suite suite.asan asan "$some meeting" PMLP_TEST_TINY=1 \
        UBSAN_OPTIONS=halt_on_error=1
else
    tail -n 10 "$work/asan.build"
    bad "asan: does not build"
fi
# shellcheck disable=SC2086
if build tsan "suite cuda" $tsan > "$work/tsan.build" 2>&1; then
    suite suite.tsan tsan "$some" PMLP_TEST_TINY=1 TSAN_OPTIONS=halt_on_error=1
    suite cuda.tsan "tsan, one process" "$shown" PMLP_TEST_TINY=1 PMLP_TEST_HANDOFF=nccl \
        TSAN_OPTIONS=halt_on_error=1
else
    tail -n 10 "$work/tsan.build"
    bad "tsan: does not build"
fi

# --- planted faults -------------------------------------------------------------------------------

planted() { # NAME WHAT SED-SCRIPT KIND PROGRAM TESTS VARIABLE=VALUE...
    local name=$1 what=$2 script=$3 kind=$4 program=$5 tests=$6 cu=$work/planted_$1.cu flags
    shift 6
    case $kind in plain) flags=$fma ;; asan) flags=$asan ;; tsan) flags=$tsan ;; esac
    sed "$script" pipemlp_cuda.cu > "$cu"
    # shellcheck disable=SC2086
    if cmp -s pipemlp_cuda.cu "$cu"; then
        bad "planted: $what: the text to change is no longer there"
    elif ! g++ -std=c++17 $flags -Itests/cudahost -I. -x c++ -c "$cu" -o "$cu.o" \
            > "$work/planted_$name.build" 2>&1 ||
            ! g++ $flags "$work/$kind.$program.o" "$work/$kind.control.o" "$cu.o" \
                -o "$work/planted_$name" -pthread -lm; then
        head -n 5 "$work/planted_$name.build"
        bad "planted: $what: does not build"
    elif env PMLP_TEST_QUICK=1 CUDAHOST_WATCHDOG=10 TSAN_OPTIONS=halt_on_error=1 "$@" \
            timeout -k 5 100 "${fixed[@]}" "$work/planted_$name" $tests \
            > "$work/planted_$name.log" 2>&1 < /dev/null; then
        bad "planted: $what: not found"
    else
        ok "planted: $what: found"
    fi
    rm -f "$work/planted_$name" "$cu.o"
}
planted sums "an update that does not wait for the sum over replicas" \
    's/cudaStreamWaitEvent(c->stream, c->sum->done, 0)/cudaSuccess/' \
    tsan suite replicas PMLP_TEST_TINY=1
[ "$quick" = 0 ] || end
planted arrived "a receiver that does not wait for its message" \
    's/cudaStreamWaitEvent(c->stream, apart ? slot->arrived : slot->full, 0)/cudaSuccess/' \
    tsan cuda slots PMLP_TEST_HANDOFF=nccl PMLP_TEST_TINY=1
planted taken "a slot that is received into before it was taken out" \
    's/if (used) PMLP__CUDA(e->to, /if (0 \&\& used) PMLP__CUDA(e->to, /' \
    tsan cuda slots PMLP_TEST_HANDOFF=nccl PMLP_TEST_TINY=1
planted ready "a sum that does not wait for the gradient" \
    's/cudaStreamWaitEvent(s->wire.stream, s->ready, 0)/cudaSuccess/' \
    tsan suite replicas PMLP_TEST_TINY=1
planted twice "a rank that may come twice" 's/m->lines\[h->rank\] >= 0)/0)/' plain suite meeting
planted told "a failure that is not passed on" \
    's/if (w->rank == 0) pmlp__tell_failure(w, rank, text, from);//' plain suite "cut_lines aborts"
planted late "a deadline that is never over" \
    's/late \&\& pmlp__seconds() - since > seconds/0/' plain suite deadlines
planted moved "progress that is not seen" 's/\*moved += pmlp__wire_look(l);/pmlp__wire_look(l);/' \
    plain suite long_steps
planted leak "a communicator that is left" 's/ncclCommAbort(l->comm);//' plain suite aborts
end
