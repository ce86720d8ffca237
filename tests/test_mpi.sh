#!/usr/bin/env bash
# Ranks that are processes: examples/08_mpi.c over MPI, with the weights of one process; settings
# that differ; ranks that are killed, stopped or cut off; the sanitizers.
#
#     bash tests/test_mpi.sh       needs an MPI, for the faults Open MPI; for hosts with networks of
#                                  their own root and ip (iproute2)
#                                  FAULTS=100  each of the faults so many times (default 1)
#                                  PMLP_TEST_QUICK=1  fewer of everything
#                                  PMLP_STRICT=1  a missing tool is a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=$PWD/build/test/mpi
program=$PWD/build/08_mpi
quick=${PMLP_TEST_QUICK:-0}
faults=${FAULTS:-1}
topic=mpi
. tests/say.sh

rm -rf "$work"
mkdir -p "$work"
if ! have mpicc || ! have mpirun; then
    have mpicc && tool=mpirun || tool=mpicc
    missing "$tool" "several processes"
    end
fi
if ! make --no-print-directory "build/08_mpi" > "$work/make.log" 2>&1 || grep -q warning: "$work/make.log"; then
    head -n 20 "$work/make.log"
    bad "examples/08_mpi.c does not build without a warning"
    end
fi

# Open MPI wants to be told that it may be root's, and may start more ranks than there are cores. Its
# files lie where paths are short.
mpirun=(timeout -k 5 60 mpirun)
open_mpi=0
if mpirun --version 2>&1 | grep -q 'Open MPI'; then
    open_mpi=1
    [ "$(id -u)" -ne 0 ] || mpirun+=(--allow-run-as-root)
    [ "$(nproc)" -ge 4 ] || mpirun+=(--oversubscribe)
fi
TMPDIR=$(mktemp -d /tmp/pmlp.XXXXXX)
export TMPDIR
hub=pmlp$$
hosts=()
clean() { # what still runs in the hosts' networks was started here
    local name
    for name in "${hosts[@]}" "$hub"; do
        [ -e "/run/netns/$name" ] || continue
        ip netns pids "$name" | xargs -r kill -9 2> /dev/null
        ip netns del "$name"
    done
    rm -rf "$TMPDIR"
}
trap clean EXIT

# --- one word ---------------------------------------------------------------------------------------

"${mpirun[@]}" -n 1 "$program" > "$work/one" 2>&1
word=$(sed -n 's/^weights=\([0-9a-f]\{16\}\) everywhere=yes identical=yes$/\1/p' "$work/one")
if [ -z "$word" ]; then
    head -n 20 "$work/one"
    bad "one rank does not train like one process"
    end
fi

wrong=() runs=0
same() { # RANKS OPTIONS...: trains to the word of one process
    local n=$1
    shift
    runs=$((runs + 1))
    if ! "${mpirun[@]}" -n "$n" "$program" "$@" > "$work/out" 2>&1 ||
            ! grep -qx "weights=$word everywhere=yes identical=yes" "$work/out"; then
        head -n 5 "$work/out"
        wrong+=("$n ranks $*;")
    fi
}
verdict() { # TEXT
    if [ "${#wrong[@]}" -eq 0 ]; then ok "$1"; else bad "$1: not ${wrong[*]}"; fi
    wrong=() runs=0
}

schedules=(gpipe 1f1b zb-h1 zb-v interleaved)
[ "$quick" = 0 ] || schedules=(1f1b zb-v)
for n in 2 3; do same "$n"; done
for schedule in "${schedules[@]}"; do same 4 --schedule "$schedule"; done
same 3 --schedule gpipe --slots 1
verdict "1 to 4 ranks, one worker each, ${#schedules[@]} schedules: the weights of one process, $word"

same 2 --workers 5
same 3 --workers 8 --schedule zb-h1 # a boundary inside the first layer lies between ranks
same 2 --workers 3 --schedule interleaved --microbatches 6
verdict "$runs times several workers in a rank: the same"

same 2 --replicas 2
same 4 --replicas 2
same 4 --replicas 2 --workers 4 --schedule zb-h1
same 4 --replicas 4 --microbatches 2
verdict "$runs times replicas in a chain: the same"

summed() { # RANKS OPTIONS...: near it, twice alike
    local n=$1 words
    shift
    runs=$((runs + 1))
    for run in 1 2; do
        "${mpirun[@]}" -n "$n" "$program" --allreduce 1 "$@" > "$work/sum$run" 2>&1 ||
            wrong+=("$n ranks $*, run $run;")
    done
    words=$(sed -n 's/^weights=\([0-9a-f]*\) everywhere=yes.*/\1/p' "$work/sum1" "$work/sum2")
    [ "$(wc -w <<< "$words")" = 2 ] && [ "$(sort -u <<< "$words" | wc -l)" = 1 ] ||
        wrong+=("$n ranks $*, two words;")
}
summed 4 --replicas 2
summed 3 --replicas 3 --microbatches 2
verdict "$runs times replicas that are summed up: the loss to 1e-4, the bits of the run before"

# --- what differs -----------------------------------------------------------------------------------

differs() { # ONE OTHER SENTENCE: options of two ranks, which both say the same
    runs=$((runs + 1))
    "${mpirun[@]}" --enable-recovery -n 1 "$program" $1 : -n 1 "$program" $2 > "$work/out" 2>&1
    for rank in 0 1; do
        grep -qF "08_mpi: rank $rank: the ranks do not agree: $3" "$work/out" || wrong+=("rank $rank: $3;")
    done
}
if [ "$open_mpi" = 1 ]; then # --enable-recovery: who is well is not killed when another ends badly
    differs "--microbatches 4" "--microbatches 8" "microbatches: 4 on rank 0, 8 on rank 1"
    differs "--batch 32" "--batch 64" "batch: 32 on rank 0, 64 on rank 1"
    differs "--schedule gpipe" "--schedule zb-h1" "schedule: gpipe on rank 0, zb-h1 on rank 1"
    differs "--epochs 2" "--epochs 3" "call: sync on rank 0, epoch on rank 1"
    verdict "$runs settings that differ are refused at both ranks, with both values"
else
    missing "Open MPI" "ranks that fail"
fi

# --- faults -----------------------------------------------------------------------------------------

# Writes down which process is which rank, and keeps their sentences apart.
cat > "$work/rank" << 'END'
#!/bin/bash
echo $$ > "$0.$OMPI_COMM_WORLD_RANK.pid"
exec "$@" 2> "$0.$OMPI_COMM_WORLD_RANK.err"
END
chmod +x "$work/rank"

pid_of() { cat "$work/rank.$1.pid"; }
said() { cat "$work/rank.$1.err" 2> /dev/null; }
tenths() { local now=$EPOCHREALTIME; echo $((${now/[.,]/} / 100000)); }

# Begins a training without end; true as soon as it runs. Now and then mpirun starts nobody, or not
# all, for whom MPI_Init then waits: that is tried again, twice.
begin() { # COMMAND...
    local attempt
    for attempt in 1 2 3; do
        rm -f "$work"/rank.*
        : > "$work/out"
        "$@" > "$work/out" 2>&1 &
        running=$!
        for _ in $(seq 100); do
            grep -q '^ranks=' "$work/out" && return 0
            kill -0 "$running" 2> /dev/null || break
            sleep 0.05
        done
        kill "$running" 2> /dev/null
        wait "$running"
    done
    return 1
}

# Waits until these ranks have spoken; how long that took, in tenths of a second.
took=0 longest=0
await() { # RANK...
    local since rank
    since=$(tenths)
    for rank in "$@"; do
        # its own sentence: MPI may have one of its own
        while ! said "$rank" | grep -q '^08_mpi: ' && [ $(($(tenths) - since)) -lt 150 ]; do sleep 0.05; done
    done
    took=$(($(tenths) - since))
    [ "$took" -le "$longest" ] || longest=$took
}

blames() { # RANK OTHERS...: these say that there was no word from it, and from nobody else
    local gone=$1 rank
    shift
    for rank in "$@"; do
        said "$rank" | grep -qE "^08_mpi: rank $rank: .*rank $gone( has not answered in time)?$" &&
            ! said "$rank" | grep -qE "no word from.*," || wrong+=("rank $rank says '$(said "$rank")';")
    done
}

deadline=1 slack=30 # tenths: for the search for who is gone, 0.5 s, and a machine with much to do
fault() { # SIGNAL VICTIM RANKS OPTIONS...
    local signal=$1 victim=$2 n=$3 others=() rank
    shift 3
    runs=$((runs + 1))
    for rank in $(seq 0 $((n - 1))); do [ "$rank" = "$victim" ] || others+=("$rank"); done
    if ! begin "${mpirun[@]}" --enable-recovery -n "$n" "$work/rank" "$program" \
            --deadline "$deadline" --epochs 100000000 "$@"; then
        head -n 5 "$work/out"
        wrong+=("$signal $victim: no training;")
    else
        sleep "0.$((RANDOM % 4))$((RANDOM % 10))"
        kill "-$signal" "$(pid_of "$victim")"
        await "${others[@]}"
        [ "$took" -le $((10 * deadline + slack)) ] || wrong+=("$signal $victim: $took tenths of a second;")
        blames "$victim" "${others[@]}"
        if [ "$signal" = STOP ]; then # and goes on later, when nobody is there any more
            kill -CONT "$(pid_of "$victim")"
            await "$victim"
            said "$victim" | grep -q '^08_mpi: rank .*rank' || wrong+=("rank $victim goes on: '$(said "$victim")';")
        fi
    fi
    kill -KILL "$(pid_of "$victim")" 2> /dev/null
    wait "$running"
}

if [ "$open_mpi" = 1 ]; then
    for _ in $(seq "$faults"); do
        fault KILL 0 4
        fault KILL 2 4 --replicas 2
        fault STOP 1 2 --workers 4
        fault STOP 3 4 --replicas 2 --allreduce 1
    done
    if [ "$quick" = 0 ]; then
        fault KILL 3 4
        fault STOP 2 4 --schedule zb-v
    fi
    verdict "$runs times a rank was killed or stopped: all others say which, at most $longest tenths of a second later (deadline: $((10 * deadline)))"
fi

# --- hosts: each rank in a network of its own, all plugged into one switch ----------------------------

plug() { # HOST NUMBER: into the switch
    ip -n "$hub" link add "v$2" type veth peer name eth0 netns "$1" &&
        ip -n "$hub" link set "v$2" master switch up && ip -n "$1" link set lo up &&
        ip -n "$1" addr add "10.213.7.$2/24" dev eth0 && ip -n "$1" link set eth0 up
}
networks() {
    ip netns add "$hub" && ip -n "$hub" link set lo up && ip -n "$hub" link add switch type bridge &&
        ip -n "$hub" addr add 10.213.7.254/24 dev switch && ip -n "$hub" link set switch up || return 1
    for n in 1 2 3; do
        hosts+=("$hub-$n")
        ip netns add "$hub-$n" && plug "$hub-$n" $n || return 1
    done
}
# Open MPI's ssh: HOST COMMAND...
cat > "$work/agent" << END
#!/bin/bash
host=$hub-\${1##*.}
shift
exec ip netns exec "\$host" unshare --uts bash -c "hostname \$host; \$*"
END
chmod +x "$work/agent"
on_hosts=(timeout -k 5 60 ip netns exec "$hub" mpirun --enable-recovery --mca plm_rsh_agent "$work/agent"
    --host 10.213.7.1,10.213.7.2,10.213.7.3 --mca btl 'tcp,self' --mca pml ob1
    --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24)
[ "$(id -u)" -ne 0 ] || on_hosts+=(--allow-run-as-root)

if [ "$open_mpi" = 1 ] && { ! have ip || ! have unshare; }; then
    missing "ip (iproute2)" "ranks on hosts of their own"
elif [ "$open_mpi" = 1 ] && ! networks 2> "$work/networks"; then
    missing "the right to make networks ($(head -n 1 "$work/networks"))" "ranks on hosts of their own"
elif [ "$open_mpi" = 1 ]; then
    : > "$work/out"
    "${on_hosts[@]}" -n 3 "$program" > "$work/out" 2>&1
    grep -qx "weights=$word everywhere=yes identical=yes" "$work/out" || wrong+=("three ranks;")
    "${on_hosts[@]}" -n 3 "$program" --replicas 3 --microbatches 2 --workers 2 > "$work/out" 2>&1
    grep -qx "weights=$word everywhere=yes identical=yes" "$work/out" || wrong+=("three replicas;")
    verdict "three hosts, over TCP, as stages and as replicas: the weights of one process"

    longest=0
    for _ in $(seq "$faults"); do
        runs=$((runs + 1))
        ip -n "$hub" link set v2 up
        # Who was looked for without a cable is still unknown, and who asks then is refused.
        ip -n "$hub-2" neigh flush all
        if begin "${on_hosts[@]}" -n 3 "$work/rank" "$program" --deadline "$deadline" --epochs 100000000; then
            sleep "0.3$((RANDOM % 10))"
            ip -n "$hub" link set v2 down # the cable is pulled out
            await 0 1 2
            [ "$took" -le $((10 * deadline + slack)) ] || wrong+=("$took tenths of a second;")
            blames 1 0 2
            said 1 | grep -q 'no word from rank 0, rank 2$' || wrong+=("rank 1 says '$(said 1)';")
        else
            wrong+=("no training;")
        fi
        kill "$running"
        wait "$running" 2> /dev/null
    done
    verdict "$runs times a host loses its network: all three say so, at most $longest tenths of a second later (deadline: $((10 * deadline)))"
fi

# --- the sanitizers -----------------------------------------------------------------------------------

sanitized() { # NAME DIRECTORY FLAGS...
    mpicc -std=c99 -O1 -g "${@:3}" "$2/examples/08_mpi.c" -o "$work/$1" -pthread -lm > "$work/$1.build" 2>&1 &&
        return
    head -n 5 "$work/$1.build"
    wrong+=("$1 does not build;")
}
under() { # NAME RANKS OPTIONS...: the right word, and no report but of leaks that MPI itself allocated
    local name=$1 n=$2
    shift 2
    runs=$((runs + 1))
    "${mpirun[@]}" -n "$n" "$work/$name" "$@" > "$work/out" 2>&1
    grep -q "^weights=.* everywhere=yes" "$work/out" || wrong+=("$name, $n ranks $*: no weights;")
    if grep -qE 'ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error|#1 .*(08_mpi\.c|pipemlp\.h)' \
            "$work/out"; then
        grep -E -A12 'ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error' "$work/out" | head -n 30
        grep -E -B2 '#1 .*(08_mpi\.c|pipemlp\.h)' "$work/out" | head -n 6
        wrong+=("$name, $n ranks $*;")
    fi
}
export LSAN_OPTIONS=exitcode=0
sanitized address . -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
under address 2 --workers 4
under address 4 --replicas 2 --allreduce 1 --epochs 2
verdict "$runs times the sanitizer of addresses: nothing to report"

# That of threads cannot know the locks inside MPI's libraries, which are not compiled for it; so it
# looks away in there, and does not see what they read and write on their own, the messages.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1
# some kernels place memory where older thread sanitizers do not expect it
if setarch "$(uname -m)" -R true 2> /dev/null; then mpirun=(setarch "$(uname -m)" -R "${mpirun[@]}"); fi
races() { cat "$work"/out "$work"/rank.*.err 2> /dev/null | grep -A12 'WARNING: ThreadSanitizer'; }
alarm() { # NAME: workers of one rank wait at once, and hear of one that is gone
    program=$work/$1 fault KILL 3 4 --replicas 2 --workers 6 --allreduce 1
    races | head -n 30
    [ -z "$(races)" ] || wrong+=("$1, a rank killed;")
}
sanitized thread . -fsanitize=thread
under thread 2 --workers 4
under thread 4 --replicas 2 --workers 6 --schedule zb-h1 --microbatches 8 --epochs 2
under thread 4 --replicas 2 --workers 6 --allreduce 1 --epochs 2
[ "$open_mpi" = 0 ] || alarm thread
verdict "$runs times the sanitizer of threads: nothing to report"

planted() { # WHAT FILE SED-SCRIPT COMMAND...: which reports it at the latest when run a third time
    local what="planted: $1" file=$2 script=$3 copy=$work/planted found=0
    shift 3
    mkdir -p "$copy/examples"
    cp pipemlp.h "$copy/"
    cp examples/08_mpi.c "$copy/examples/"
    sed -i "$script" "$copy/$file"
    sanitized racing "$copy" -fsanitize=thread
    for _ in 1 2 3; do
        [ "$found" = 1 ] || "$@" > "$work/planted.log" 2>&1
        ! grep -q 'ThreadSanitizer: data race' "$work/planted.log" || found=1
    done
    wrong=() runs=0
    if cmp -s "$file" "$copy/$file"; then bad "$what: the text to change is no longer there"
    elif [ "$found" = 0 ]; then bad "$what: not found"
    else ok "$what: found"
    fi
}
planted "a count of messages that is not atomic" pipemlp.h \
    's/__atomic_store_n(&a->v, v, __ATOMIC_SEQ_CST)/a->v = v/' under racing 2 --workers 4 --epochs 1
[ "$open_mpi" = 0 ] || planted "workers that listen for an alarm without the lock" examples/08_mpi.c \
    '/^static pmlp_result listen_for_alarm/,/^}/s/pthread_mutex_\(un\)\?lock(&g->mutex);//' alarm racing
end
