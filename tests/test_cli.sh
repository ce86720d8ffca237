#!/usr/bin/env bash
# The programs of examples/ as their users see them: what they print, one weights word however the
# work is cut, and one sentence for every bad option or file.
#
#     bash tests/test_cli.sh         PMLP_TEST_QUICK=1 trains less
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/cli
quick=${PMLP_TEST_QUICK:-0}
topic=cli
. tests/say.sh
word='[0-9a-f]\{16\}'


rm -rf "$work"
mkdir -p "$work"
if ! make --no-print-directory -j 2 examples > "$work/make.log" 2>&1; then
    tail -n 20 "$work/make.log"
    bad "make examples"
    end
fi
ok "make examples"
train=build/train

# --- the numbered examples -------------------------------------------------------------------------

arguments=()
example() { # NAME PATTERN...: with $arguments, exit status 0, nothing on stderr, a line for each pattern
    local name=$1 pattern
    shift
    if ! timeout 120 "build/$name" "${arguments[@]}" > "$work/$name.out" 2> "$work/$name.err" < /dev/null; then
        tail -n 5 "$work/$name.out" "$work/$name.err"
        bad "$name: exit status not 0"
        return 1
    fi
    if [ -s "$work/$name.err" ]; then
        bad "$name: writes to stderr: $(head -n 1 "$work/$name.err")"
        return 1
    fi
    for pattern in "$@"; do
        if ! grep -q "$pattern" "$work/$name.out"; then
            bad "$name: prints no '$pattern'"
            return 1
        fi
    done
}

if example 01_xor '^0 xor 0 = 0 ' '^0 xor 1 = 1 ' '^1 xor 0 = 1 ' '^1 xor 1 = 0 ' 'loss 0\.[0-9]'; then
    ok "01_xor: $(tail -n 1 "$work/01_xor.out")"
fi
if example 02_pipeline "loss .*weights $word" 'every bit equal'; then
    lines=$(grep -c "loss .*weights $word" "$work/02_pipeline.out")
    kinds=$(grep "loss .*weights $word" "$work/02_pipeline.out" | sort -u | wc -l)
    if [ "$lines" -ge 2 ] && [ "$kinds" = 1 ]; then
        ok "02_pipeline: $lines runs, one loss, one weights word"
    else
        bad "02_pipeline: $lines runs, $kinds different results"
    fi
fi
if example 03_schedules '^sequential' '^gpipe' '^1f1b' 'F0.*F1' 'PMLP_ERROR_SCHEDULE' \
        'PMLP_ERROR_DEADLOCK' '^all as expected$'; then
    ok "03_schedules: three timelines, two refusals"
fi
if example 04_your_own_schedule 'makespan 30' 'makespan 27' 'every bit equal after 20 steps'; then
    ok "04_your_own_schedule: refused twice, then as good as zb-h1"
fi
if example 05_deadlock 'STOPS, as replayed' 'deadlock: worker 0 waits' '^all as expected$'; then
    ok "05_deadlock: threads stop and go on as the replay says"
fi
arguments=(/nowhere 1)
if example 06_speed_vs_accuracy '^serial' '^pipedream-2bw' 'synchronous: the serial bits'; then
    ok "06_speed_vs_accuracy: equal words for the synchronous, others for the asynchronous"
fi
arguments=("$work")
if example 07_timeline '^worker 0' 'bounds of the speedup' && [ -s "$work/07_timeline.svg" ] &&
        [ -s "$work/07_timeline.json" ]; then
    ok "07_timeline: measured and simulated, a picture and a trace"
fi
arguments=()
if example 10_by_hand 'GPipe .*weights'; then
    kinds=$(sed -n 's/.*weights \([0-9a-f]*\)$/\1/p' "$work/10_by_hand.out" | sort -u | wc -l)
    if [ "$kinds" = 1 ]; then
        ok "10_by_hand: the trainer's bits"
    else
        bad "10_by_hand: $kinds different words"
    fi
fi
arguments=("$work/spiral.safetensors")
if example 09_embed 'stopped after [1-9]' 'saved and loaded: the same weights' 'still in use: 0$'; then
    ok "09_embed: trained in the background, cancelled, saved: $(sed -n 's/.*weights, //p' "$work/09_embed.out")"
fi
arguments=()
mkdir -p "$work/alone/examples"
cp pipemlp.h "$work/alone/"
cp examples/*.c examples/*.cpp "$work/alone/examples/"
for source in examples/*.c examples/*.cpp; do # each says how it is compiled, and is; which is quicker at -O0
    name=$(basename "${source%.*}")
    sed -n 's/^[ /]*\(\(mpi\)\{0,1\}c[c+]* .*\.c[p]* .*[^ ]\) *\**\/*$/\1/p' "$source" | head -n 1 |
        sed 's/[[:space:]]*\*\/$//' > "$work/$name.line"
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    (cd "$work/alone/examples" && bash -c "$(cat "../../$name.line") -O0") > "$work/$name.log" 2>&1 &
done
wait
for source in examples/*.c examples/*.cpp; do
    name=$(basename "${source%.*}")
    line=$(cat "$work/$name.line")
    if [ -z "$line" ]; then
        bad "$source does not say how to compile it"
    elif ! have "${line%% *}"; then
        missing "${line%% *}" "$name compiles alone"
    elif [ ! -x "$work/alone/examples/$name" ]; then
        head -n 5 "$work/$name.log"
        bad "$source does not compile with its own line: $line"
    else
        ok "$name compiles alone, as it says: $line"
    fi
done

# --- a training ---------------------------------------------------------------------------------------

fields='backend schedule workers virtual microbatches batch epochs seconds samples_per_second'
fields="$fields train_loss test_accuracy weights"

# The last line of stdout is `result`, every field once and in order, numbers where numbers belong.
parseable() { # FILE EXTRA_FIELDS
    local names name value
    names=$(tail -n 1 "$1" | sed -n 's/^result //p' | tr ' ' '\n' | sed 's/=.*//' | tr '\n' ' ')
    [ "${names% }" = "$fields$2" ] || return 1
    for name in workers virtual microbatches batch epochs seconds samples_per_second train_loss \
            test_accuracy; do
        value=$(field "$1" $name)
        [[ $value =~ ^[0-9]+(\.[0-9]+)?$ ]] || return 1
    done
    [[ $(field "$1" weights) =~ ^[0-9a-f]{16}$ ]]
}

field() { tail -n 1 "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"; }

data=()
from="digits that the program draws"
limit=12800
if [ -f build/data/train-images-idx3-ubyte ] && [ -f build/data/t10k-labels-idx1-ubyte ]; then
    data=(--data build/data)
    from="build/data"
fi
[ "$quick" = 0 ] || limit=1280
counts=(1 2 3 5 8 16)
workers=(1 2 3 4)
schedules=(sequential gpipe 1f1b)
[ "$quick" = 0 ] || counts=(1 3 8) workers=(1 2 4)

first="" runs=0 wrong=""
for p in "${workers[@]}"; do
    for m in "${counts[@]}"; do
        for schedule in "${schedules[@]}"; do
            out=$work/train-$p-$m-$schedule
            if ! timeout 120 $train "${data[@]}" --limit $limit --epochs 1 --quiet --workers "$p" \
                    --microbatches "$m" --schedule "$schedule" > "$out" 2> "$out.err" < /dev/null; then
                wrong="exit status not 0: $(head -n 1 "$out.err")"
            elif [ -s "$out.err" ]; then
                wrong="--quiet, and yet on stderr: $(head -n 1 "$out.err")"
            elif ! parseable "$out" ''; then
                wrong="cannot be parsed: $(tail -n 1 "$out")"
            elif [ "$(field "$out" workers) $(field "$out" microbatches) $(field "$out" schedule)" != \
                    "$p $m $schedule" ]; then
                wrong="says something else: $(tail -n 1 "$out")"
            elif [ -n "$first" ] && [ "$(field "$out" weights)" != "$first" ]; then
                wrong="weights $(field "$out" weights), not $first"
            fi
            [ -n "$first" ] || first=$(field "$out" weights)
            runs=$((runs + 1))
            [ -z "$wrong" ] || { wrong="$p workers, $m micro-batches, $schedule: $wrong"; break 3; }
        done
    done
done
if [ -n "$wrong" ]; then
    bad "train --limit $limit: $wrong"
else
    ok "train --limit $limit on $from: $runs ways to cut the work, one weights word $first"
fi

# Other options end at the same word, or at another one where they must.
small=(--limit 640 --epochs 2 --layers "24,16,12" --quiet)
word_of() { # OPTIONS...: the weights word, or what went wrong
    if timeout 60 $train "${data[@]}" "${small[@]}" "$@" > "$work/word" 2> "$work/word.err" < /dev/null; then
        field "$work/word" weights
    else
        echo "error: $(head -n 1 "$work/word.err")"
    fi
}
base=$(word_of)
same() { # OPTIONS...
    local other
    other=$(word_of "$@")
    if [[ $base =~ ^[0-9a-f]{16}$ ]] && [ "$other" = "$base" ]; then ok "train $*: the same word"
    else bad "train $*: $other, not $base"
    fi
}
different() { # OPTIONS...
    local other piped
    other=$(word_of "$@")
    piped=$(word_of "$@" --workers 3 --microbatches 5)
    if [[ $other =~ ^[0-9a-f]{16}$ ]] && [ "$other" != "$base" ] && [ "$piped" = "$other" ]; then
        ok "train $*: another word, the same from a pipeline"
    else
        bad "train $*: $other, from a pipeline $piped, without $base"
    fi
}
printf '0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n' > "$work/two.csv"
same --workers 4 --no-threads
same --workers=2 --schedule "$work/two.csv"
same --loss xent --batch 128 --seed 1 --backend cpu --virtual 1 --cut layers
different --seed 2
different --loss mse
different --batch 100
different --optimizer adam
different --optimizer sgd --lr 0.02
different --optimizer nesterov --clip 0.5 --weight-decay 0.01

# --- every schedule ------------------------------------------------------------------------------------

synchronous=(sequential gpipe 1f1b eager-1f1b interleaved looped-bfs zb-h1 zb-h2 zb-v dualpipe-v auto)
asynchronous=(pipedream pipedream-2bw)
drawn=(--limit 320 --epochs 2 --layers "64,48,48,32,32,24" --quiet) # on digits that it draws itself
run_drawn() { # OPTIONS...: the output is in $work/drawn, what went wrong in $wrong
    wrong=""
    if ! timeout 60 $train "${drawn[@]}" "$@" > "$work/drawn" 2> "$work/drawn.err" < /dev/null; then
        wrong="$*: exit status not 0: $(head -n 1 "$work/drawn.err")"
    elif [ -s "$work/drawn.err" ]; then
        wrong="$*: --quiet, and yet on stderr: $(head -n 1 "$work/drawn.err")"
    fi
}
resolved() { # WORKERS VIRTUAL MICROBATCHES: what the result line must say of the defaults
    local got
    got="$(field "$work/drawn" workers) $(field "$work/drawn" virtual) $(field "$work/drawn" microbatches)"
    [ -n "$wrong" ] || [ "$got" = "$*" ] ||
        wrong="$(field "$work/drawn" schedule): workers, virtual and microbatches are $got, not $*"
}

run_drawn
first=$(field "$work/drawn" weights) runs=1
resolved 1 1 1
for schedule in "${synchronous[@]}"; do
    for options in '--workers 1' '--workers 2' '--workers 3 --microbatches 6' '--workers 2 --virtual 2' \
            '--workers 2 --virtual 3 --microbatches 4' '--workers 2 --no-threads'; do
        [ -z "$wrong" ] || break 2
        case $schedule:$options in # how many stages per worker a schedule may have
            interleaved:* | looped-bfs:* | auto:*) ;;
            zb-v:*virtual\ 3* | dualpipe-v:*virtual\ 3*) continue ;;
            zb-v:* | dualpipe-v:*) ;;
            *virtual*) continue ;;
        esac
        read -r -a words <<< "$options"
        run_drawn --schedule "$schedule" "${words[@]}"
        [ -n "$wrong" ] || parseable "$work/drawn" '' || wrong="$schedule: $(tail -n 1 "$work/drawn")"
        [ -n "$wrong" ] || [ "$(field "$work/drawn" weights)" = "$first" ] ||
            wrong="$schedule $options: weights $(field "$work/drawn" weights), not $first"
        case $schedule:$options in
            *virtual* | *microbatches*) ;;
            interleaved:*1 | looped-bfs:*1 | zb-v:*1 | dualpipe-v:*1) resolved 1 2 2 ;;
            interleaved:* | looped-bfs:* | zb-v:* | dualpipe-v:*) resolved 2 2 4 ;;
            *1) resolved 1 1 1 ;;
            *) resolved 2 1 4 ;;
        esac
        runs=$((runs + 1))
    done
done
if [ -n "$wrong" ]; then bad "train --schedule $wrong"
else ok "train --schedule ${synchronous[*]}: $runs runs, one weights word $first"
fi

for schedule in "${asynchronous[@]}"; do
    both=""
    for _ in 1 2; do
        [ -n "$wrong" ] || run_drawn --schedule "$schedule" --workers 3
        [ -n "$wrong" ] || parseable "$work/drawn" ' staleness' || wrong="$schedule: $(tail -n 1 "$work/drawn")"
        [[ -n $wrong || $(field "$work/drawn" staleness) =~ ^[0-9]+\.[0-9]{2}(,[0-9]+\.[0-9]{2}){2}$ ]] ||
            wrong="$schedule: staleness=$(field "$work/drawn" staleness)"
        both="$both $(field "$work/drawn" weights)"
    done
    read -r a b <<< "$both"
    if [ -n "$wrong" ]; then bad "train --schedule $wrong"
    elif [ "$a" != "$b" ]; then bad "train --schedule $schedule: $a, and another time $b"
    elif [ "$a" = "$first" ]; then bad "train --schedule $schedule: the weights of serial training"
    else ok "train --schedule $schedule: another word, $a each time, staleness=$(field "$work/drawn" staleness)"
    fi
done

all=""
for p in 1 2 3; do
    run_drawn --schedule pipedream-2bw --microbatches 4 --workers $p
    all="$all ${wrong:-$(field "$work/drawn" weights)}"
done
read -r a b c <<< "$all"
if [[ $a =~ ^[0-9a-f]{16}$ ]] && [ "$a" = "$b" ] && [ "$a" = "$c" ]; then
    ok "train --schedule pipedream-2bw: $a with 1, 2 and 3 workers"
else
    bad "train --schedule pipedream-2bw with 1, 2 and 3 workers:$all"
fi
run_drawn --schedule pipedream --workers 3 --cut layers # the first layer's backward reads no weights
a=$(field "$work/drawn" weights)
run_drawn --schedule pipedream --workers 3 --cut layers --no-stashing
if [ -z "$wrong" ] && [ "$(field "$work/drawn" weights)" != "$a" ]; then
    ok "train --schedule pipedream --no-stashing: another word again"
else
    bad "train --schedule pipedream --no-stashing: ${wrong:-$(tail -n 1 "$work/drawn")}"
fi
# where an asynchronous pipeline is cut decides on its results: counted, not measured
narrow=$(printf '8,%.0s' {1..20})
if $train --layers "${narrow%,}" --workers 2 --schedule pipedream --compare --limit 300 --epochs 1 > "$work/drawn" \
        2>&1 < /dev/null && grep -q '^ *0 *0 *76\.3 % .* 784-8$' "$work/drawn"; then
    ok "train --schedule pipedream: cut by what can be counted"
else
    bad "train --schedule pipedream: not cut by what can be counted: $(grep -A1 'stage  worker' "$work/drawn")"
fi
if timeout 60 $train "${drawn[@]}" --schedule pipedream --workers 2 --compare > "$work/drawn" 2>&1 < /dev/null &&
        parseable "$work/drawn" ' staleness speedup identical' &&
        [ "$(field "$work/drawn" identical)" = no ] && grep -q 'staleness, mean' "$work/drawn" &&
        grep -q '^ *accuracy [-+]0\.[0-9]*, loss' "$work/drawn"; then
    ok "train --schedule pipedream --compare: differs, which is no failure"
else
    bad "train --schedule pipedream --compare: $(tail -n 1 "$work/drawn")"
fi

# --- pictures and traces ---------------------------------------------------------------------------------

well_formed() { # FILE.svg
    if command -v python3 > /dev/null 2>&1; then
        python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$1"
    else
        head -n 1 "$1" | grep -q '^<svg ' && tail -n 1 "$1" | grep -q '</svg>$' &&
            [ "$(grep -o '<text' "$1" | wc -l)" = "$(grep -o '</text>' "$1" | wc -l)" ]
    fi
}
valid_json() { # FILE.json
    if command -v python3 > /dev/null 2>&1; then
        python3 -c 'import json, sys; sys.exit(not json.load(open(sys.argv[1]))["traceEvents"])' "$1"
    else
        grep -q '"traceEvents"' "$1" &&
            [ "$(tr -dc '[{' < "$1" | wc -c)" = "$(tr -dc ']}' < "$1" | wc -c)" ]
    fi
}
printf '0F0,0B0,0F1,0B1\n1F0,1B0,1F1,1B1\n' > "$work/<a> & \"b\".csv"
wrong="" runs=0
for options in '--workers 1' '--workers 2 --compare' '--workers 3 --no-threads' "--schedule zb-h1 --workers 2" \
        '--schedule interleaved --workers 2' '--schedule auto --workers 2' \
        '--schedule pipedream --workers 2' '--schedule pipedream-2bw --workers 2 --compare' FILE; do
    read -r -a words <<< "$options"
    [ "$options" != FILE ] || words=(--schedule "$work/<a> & \"b\".csv")
    echo old > "$work/old.svg"
    rm -f "$work/new.json"
    run_drawn "${words[@]}" --svg "$work/old.svg" --trace "$work/new.json"
    if [ -z "$wrong" ] && ! well_formed "$work/old.svg" 2> "$work/xml.err"; then
        wrong="$options: no SVG: $(tail -n 1 "$work/xml.err")"
    elif [ -z "$wrong" ] && ! grep -q '784-64-48-48-32-32-24-10' "$work/old.svg"; then
        wrong="$options: the SVG does not name the network"
    elif [ -z "$wrong" ] && ! valid_json "$work/new.json" 2> "$work/json.err"; then
        wrong="$options: no JSON: $(tail -n 1 "$work/json.err")"
    elif [ -z "$wrong" ] && ! tail -n 1 "$work/drawn" | grep -q '^result '; then
        wrong="$options: the last line is no result"
    fi
    [ -z "$wrong" ] || break
    runs=$((runs + 1))
done
if [ -n "$wrong" ]; then bad "train --svg --trace $wrong"
else ok "train --svg --trace: $runs runs, well-formed XML, valid JSON"
fi
echo keep > "$work/kept.svg"
rm -f "$work/new.json"
$train --svg "$work/kept.svg" --trace "$work/new.json" --data /nonexistent > /dev/null 2>&1 < /dev/null
if [ "$(cat "$work/kept.svg")" = keep ] && [ ! -e "$work/new.json" ]; then
    ok "train --svg --trace: files stay as they are until there is something to write"
else
    bad "train --svg --trace: touches its files, and then does not train"
fi

# --- comparing ------------------------------------------------------------------------------------------

if timeout 60 $train --limit 256 --epochs 1 --workers 2 --cut layers --compare --quiet > "$work/layers" 2>&1 \
        < /dev/null && grep -q 'balance of the cut *1\.617x' "$work/layers" &&
        grep -q 'cuts between whole layers: 1\.617x' "$work/layers" &&
        grep -q 'what binds: balance; ' "$work/layers" && grep -q '[0-9] % of that was reached' "$work/layers"; then
    ok "train --cut layers --compare: 1.617x at most, by the balance of the cut"
else
    bad "train --cut layers --compare: $(grep -A 5 ceiling "$work/layers")"
fi

if timeout 60 $train "${data[@]}" --limit 640 --layers 24,16,12 --workers 2 --verify 5 --quiet \
        > "$work/verify" 2>&1 < /dev/null && grep -q "^verify steps=5 identical=yes weights=$word\$" "$work/verify"
then ok "train --verify 5: $(tail -n 1 "$work/verify")"
else bad "train --verify 5: $(tail -n 1 "$work/verify")"
fi

timeout 60 $train --limit 640 --layers 24,16,12 --schedule pipedream --workers 2 --verify 5 > "$work/verify" \
    2> "$work/verify.err" < /dev/null
status=$?
if [ $status -eq 1 ] && [ ! -s "$work/verify" ] && [ "$(wc -l < "$work/verify.err")" -eq 1 ] &&
        grep -q 'step 1: .*serially.*staleness.*stage 0 [0-9.]* .*stage 1 0\.00' "$work/verify.err"; then
    ok "train --schedule pipedream --verify 5: $(cat "$work/verify.err")"
else
    bad "train --schedule pipedream --verify 5: exit status $status, $(head -n 1 "$work/verify.err")"
fi

if ! timeout 120 $train "${data[@]}" --limit 2560 --epochs 1 --workers 2 --compare --quiet \
        > "$work/compare" 2> "$work/compare.err" < /dev/null; then
    bad "train --compare: exit status not 0: $(head -n 1 "$work/compare.err")"
elif ! parseable "$work/compare" ' speedup identical' || [ "$(field "$work/compare" identical)" != yes ]; then
    bad "train --compare: $(tail -n 1 "$work/compare")"
elif ! grep -q 'regular .*parallel' "$work/compare" || ! grep -q '^ *time .*[0-9]\.[0-9]' "$work/compare" ||
        ! grep -q '^ *speedup .*[0-9]\.[0-9]' "$work/compare" || ! grep -q '^ *improvement ' "$work/compare" ||
        ! grep -q 'accuracy' "$work/compare"; then
    bad "train --compare: the table lacks a line"
else
    ok "train --compare: the table, speedup=$(field "$work/compare" speedup), identical=yes"
fi

for options in '--replicas 2' '--replicas 3 --workers 2' '--replicas 2 --no-threads' '--replicas 2 --allreduce'; do
    want=yes
    [ "${options%--allreduce}" = "$options" ] || want=no
    # shellcheck disable=SC2086
    if timeout 120 $train "${drawn[@]}" $options --compare --quiet > "$work/compare" 2> "$work/compare.err" \
            < /dev/null && [ "$(field "$work/compare" identical)" = $want ] &&
            [ ! -s "$work/compare.err" ] &&
            tail -n 1 "$work/compare" | grep -q " identical=$want replicas=[23]\$"; then
        ok "train $options --compare: identical=$want"
    else
        bad "train $options --compare: $(tail -n 1 "$work/compare") $(head -n 1 "$work/compare.err")"
    fi
done
if timeout 60 $train "${drawn[@]}" --replicas 2 --workers 2 --verify 5 --quiet > "$work/verify" 2>&1 < /dev/null &&
        grep -q "^verify steps=5 identical=yes weights=$word\$" "$work/verify"
then ok "train --replicas 2 --verify 5: $(tail -n 1 "$work/verify")"
else bad "train --replicas 2 --verify 5: $(tail -n 1 "$work/verify")"
fi

if $train --help > "$work/help" 2> "$work/help.err" < /dev/null && [ ! -s "$work/help.err" ]; then
    lost=""
    for option in data layers loss batch epochs lr optimizer seed workers virtual microbatches schedule cut \
            backend math gemm devices limit save save-every load resume trace svg compare verify quiet \
            help memory replicas allreduce \
            no-stashing no-threads "${synchronous[@]}" "${asynchronous[@]}"; do
        grep -q -e "--$option\b" -e " ${option}[,;:]" "$work/help" || lost="$lost --$option"
    done
    if [ -z "$lost" ]; then ok "train --help lists every option and schedule"; else bad "train --help lacks$lost"; fi
else
    bad "train --help: exit status not 0, or text on stderr"
fi

# --- what is refused ----------------------------------------------------------------------------------

refused=0
refuse() { # STATUS THING OPTIONS...
    local status=$1 thing=$2 got
    shift 2
    timeout 60 $train "$@" > "$work/refused.out" 2> "$work/refused.err" < /dev/null
    got=$?
    if [ $got -ne "$status" ]; then bad "train $*: exit status $got, not $status"
    elif [ -s "$work/refused.out" ]; then bad "train $*: writes to stdout"
    elif [ "$(wc -l < "$work/refused.err")" -ne 1 ]; then
        bad "train $*: $(wc -l < "$work/refused.err") lines on stderr"
    elif ! grep -q -F -e "$thing" "$work/refused.err"; then
        bad "train $*: does not name $thing: $(cat "$work/refused.err")"
    elif [ "$(wc -w < "$work/refused.err")" -lt 4 ]; then
        bad "train $*: no sentence: $(cat "$work/refused.err")"
    else
        refused=$((refused + 1))
    fi
}
refusals() { # TEXT
    [ "$failed" != "$failed_before" ] || ok "$1: $refused options refused, one line each"
    failed_before=$failed refused=0
}
failed_before=$failed

refuse 2 --nonsense --nonsense
refuse 2 --nonsense --nonsense 3
refuse 2 --layer --layer 3
refuse 2 -x -x
refuse 2 word word
for option in data layers loss batch epochs lr optimizer seed workers virtual microbatches schedule cut \
        backend math gemm devices limit svg trace memory replicas save save-every \
        save-seconds keep load resume; do
    refuse 2 "--$option" --quiet "--$option"
    refuse 2 "--$option" "--$option" ''
done
refuse 2 --quiet --quiet=yes
refuse 2 --compare --compare=1
refusals "unknown options, missing values"

for option in workers microbatches batch epochs limit virtual replicas save-every keep; do
    for value in 0 -1 x 1x 1.5 99999999999999999999 ' 3' '+3'; do
        refuse 2 "--$option" "--$option" "$value"
    done
done
for value in -1 x 1e3 ''; do refuse 2 --seed --seed "$value"; done
for value in 0 -0.1 nan inf x 0.1x; do refuse 2 --lr --lr "$value"; done
for value in 0 -1 nan x 1MiB; do refuse 2 --memory --schedule auto --memory "$value"; done
for value in 12,,3 ,12 "12," x 0 12,-3 '12;3' 12,0,3 99999999999; do refuse 2 --layers --layers "$value"; done
for option in loss optimizer cut backend math gemm; do refuse 2 "--$option" "--$option" nonsense; done
refuse 2 nonsense --schedule nonsense
refuse 2 --workers --workers 5 --layers 12,12,12
refuse 2 --workers --workers 3 --layers 12 --compare
refuse 2 --workers --workers 2 --virtual 2 --schedule interleaved --layers 12
refusals "values out of range"

refuse 1 'make cuda' --backend cuda
refuse 1 'make cuda' --backend cuda --math bf16 --gemm plain --devices 1,0 --workers 2 --compare
refusals "what another program has"

refuse 2 --save --save-every 7
refuse 2 --save --save-seconds 7
refuse 2 --save --keep 7
refuse 2 --save-every --save "$work/none" --keep 7
refuse 2 --save-seconds --save "$work/none" --save-seconds 7 --replicas 2
refuse 2 --load --load x --resume y
for option in save resume; do
    refuse 2 "--$option" --compare "--$option" "$work/none"
    refuse 2 "--$option" --verify 1 "--$option" "$work/none"
done
refuse 1 'No such file' --save "$work/no/such/file"
refuse 1 'no regular file' --save "$work"
refuse 1 'no regular file' --save /dev/null
for option in load resume; do
    refuse 1 'No such file' "--$option" "$work/none" --limit 50
    refuse 1 "$work" "--$option" "$work" --limit 50
    refuse 1 'too few' "--$option" /dev/null --limit 50
    refuse 1 'tests/say.sh' "--$option" tests/say.sh --limit 50
done
$train --limit 50 --layers 12 --epochs 1 --quiet --save "$work/small" > "$work/refused.out"
refuse 1 '[12][784], the model' --load "$work/small" --limit 50 --layers 13
refuse 1 'has 2 layers, the model has 3' --resume "$work/small" --limit 50 --layers 12,12 --epochs 2
refuse 2 --epochs --resume "$work/small" --limit 50 --layers 12 --epochs 1
refuse 2 "--batch: 128 in the training of" --resume "$work/small" --limit 50 --layers 12 --batch 64
refuse 2 "--seed: 1 in the training of" --resume "$work/small" --limit 50 --layers 12 --seed 2
refuse 2 "--optimizer: momentum in the" --resume "$work/small" --limit 50 --layers 12 --optimizer adam
refusals "files that cannot be written, read or gone on with"

refuse 1 '--lr must be smaller: step' --lr 900 --quiet --limit 2000 --epochs 3
refuse 1 'weights have been updated with it' --lr 900 --quiet --limit 2000 --epochs 3 --workers 2 --schedule pipedream
refusals "trainings that diverge"

refuse 2 --allreduce --allreduce
refuse 2 --allreduce --allreduce --replicas 1
refuse 2 --replicas --replicas 2 --schedule pipedream --workers 2
refuse 2 --math --math tf32
refuse 2 --math --backend cpu --math fp32
refuse 2 --gemm --gemm fused
refuse 2 --devices --devices 0
for value in x -1 "0," ",0" 0,,1 1.5 99999999; do refuse 2 --devices --backend cuda --devices "$value"; done
refusals "what only cuda has"

for schedule in zb-v dualpipe-v; do
    refuse 2 --virtual --virtual 3 --workers 2 --schedule $schedule
    refuse 2 --virtual --virtual 1 --workers 2 --schedule $schedule
done
for schedule in sequential gpipe 1f1b eager-1f1b zb-h1 zb-h2 pipedream pipedream-2bw; do
    refuse 2 --virtual --virtual 2 --workers 2 --schedule $schedule
done
refuse 2 --microbatches --microbatches 7 --workers 4 --schedule dualpipe-v
refuse 2 --microbatches --microbatches 7 --workers 3 --schedule interleaved
refuse 2 --microbatches --microbatches 2 --workers 3 --schedule pipedream-2bw
for schedule in "${synchronous[@]}" "$work/two.csv"; do
    refuse 2 --no-stashing --no-stashing --workers 2 --schedule "$schedule"
done
for schedule in "${asynchronous[@]}"; do refuse 2 --clip --clip 1 --workers 2 --schedule $schedule; done
refuse 2 --memory --memory 10
refuse 2 --memory --memory 10 --schedule "$work/two.csv"
refuse 2 --memory --memory 0.001 --schedule auto --workers 2
refusals "what a schedule cannot have"

refuse 1 /nonexistent/a.svg --svg /nonexistent/a.svg
refuse 1 /nonexistent/a.json --trace /nonexistent/a.json
refuse 1 "$work" --svg "$work"
refuse 1 "$work" --trace "$work"
refuse 2 --trace --svg "$work/a" --trace "$work/a"
refuse 2 --svg --svg "$work/a" --verify 3
refuse 2 --trace --trace "$work/a" --verify 3
refusals "pictures that cannot be"

printf '0F0,0F1,0B0,0B1\n1F0,1B0\n' > "$work/lacking.csv"
printf '0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n' > "$work/stuck.csv"
printf '0F0,nonsense\n' > "$work/nonsense.csv"
printf '0F0,0B0\n1F0,1B0\n2F0,2B0\n' > "$work/three.csv"
: > "$work/empty.csv"
for name in lacking stuck nonsense empty; do refuse 1 "$work/$name.csv" --schedule "$work/$name.csv"; done
mistake() { # ROW ACTION REASON TEXT: the sentence names the file and these
    local before=$refused thing
    printf '%b' "$4" > "$work/mistake.csv"
    refuse 1 "$work/mistake.csv" --schedule "$work/mistake.csv"
    [ "$refused" -gt "$before" ] || return
    for thing in "row $1" "$2" "$3"; do
        grep -q -F -e "$thing" "$work/refused.err" ||
            bad "train --schedule of $4: does not say '$thing': $(cat "$work/refused.err")"
    done
}
mistake 1 "cell 2: 'nonsense'" 'does not begin with a stage' '0F0,nonsense\n'
mistake 1 "cell 2: '0X0'" 'has no op' '0F0,0X0\n'
mistake 1 "cell 1: '0F'" 'does not end with a micro-batch' '0F,0B0\n'
mistake 1 "cell 1: '0F0;0B0'" 'behind the action' '0F0;0B0\n'
mistake 2 "cell 1: '1RECV_F0'" 'leave those out' '0F0,0B0\n1RECV_F0,1F0,1B0\n'
mistake 2 '' 'is empty' '0F0,0B0\n\n1F0,1B0\n'
mistake 2 'cell 1' 'stage 1, which belongs to worker 0' '0F0,0B0,1F0\n1B0\n'
mistake 2 1F1 'never' '0F0,0F1,0B0,0B1\n1F0,1B0\n'
mistake 2 1W1 'never' '0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1I1\n'
mistake 1 0F0 'twice' '0F0,0F0,0B0\n'
mistake 1 0I0 'twice' '0F0,0B0,0I0,0W0\n'
mistake 1 0U 'twice' '0F0,0B0,0U,0U\n'
mistake 1 0B0 'before 0F0' '0B0,0F0\n'
mistake 1 0W0 'before 0I0' '0F0,0W0,0I0\n'
mistake 1 0W1 'before 0W0: gradients accumulate in ascending order' '0F0,0F1,0I0,0I1,0W1,0W0\n'
mistake 1 0U 'before it has the gradient of micro-batch 0' '0F0,0U,0B0\n'
mistake 2 1RECV_F1 'hands over' '0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n'
mistake 1 'worker 0 waits for' 'deadlock' '0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n'
refuse 2 --schedule --schedule "$work"
refuse 2 --workers --schedule "$work/two.csv" --workers 3
refuse 2 --microbatches --schedule "$work/two.csv" --microbatches 3
refuse 2 "$work/three.csv" --schedule "$work/three.csv" --layers 12
refusals "schedule files"

# A data set of 6 images of 2 x 3 pixels.
pixels() { head -c "$1" /dev/zero | tr '\0' '\7'; }
images() { printf '\0\0\10\3\0\0\0\6\0\0\0\2\0\0\0\3'; pixels 36; }
labels() { printf '\0\0\10\1\0\0\0\6\0\1\2\3\1\0'; }
data_set() { # makes $work/data anew
    rm -rf "$work/data"
    mkdir -p "$work/data"
    for set in train t10k; do
        images > "$work/data/$set-images-idx3-ubyte"
        labels > "$work/data/$set-labels-idx1-ubyte"
    done
}
refuse 1 /nonexistent --data /nonexistent
refuse 1 Makefile --data Makefile
for name in train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
    data_set
    rm "$work/data/$name"
    refuse 1 "$name" --data "$work/data"
    : > "$work/data/$name"
    refuse 1 "$name" --data "$work/data"
    data_set
    head -c 10 "$work/data/$name" > "$work/cut" && cp "$work/cut" "$work/data/$name"
    refuse 1 "$name" --data "$work/data"
    data_set
    printf 'x' >> "$work/data/$name"
    refuse 1 "$name" --data "$work/data"
    data_set
    printf '\1\2\3\4' | dd of="$work/data/$name" conv=notrunc status=none
    refuse 1 "$name" --data "$work/data"
    rm "$work/data/$name"
    mkdir "$work/data/$name"
    refuse 1 "$name" --data "$work/data"
done
data_set
{ printf '\0\0\10\3\0\0\0\6\0\0\0\3\0\0\0\3'; pixels 54; } > "$work/data/t10k-images-idx3-ubyte"
refuse 1 "$work/data" --data "$work/data"
refusals "broken data sets"

data_set
if $train --data "$work/data" --layers 5 --epochs 3 --workers 2 --quiet > "$work/tiny" 2>&1 < /dev/null &&
        parseable "$work/tiny" ''; then
    ok "train on a data set of six images of 2 x 3 pixels"
else
    bad "train on a tiny data set: $(tail -n 1 "$work/tiny")"
fi
# a full disk is found at the end
if [ -w /dev/full ]; then
    if $train --data "$work/data" --layers 5 --epochs 1 --quiet > /dev/full 2> "$work/full" < /dev/null; then
        bad "train > /dev/full: exit status 0"
    else
        ok "train > /dev/full: $(head -n 1 "$work/full")"
    fi
fi
end
