#!/usr/bin/env bash
# Files as their users meet them: a training that is interrupted again and again, on other numbers
# of workers, killed while it saves, on a full disk; and files that go to PyTorch and come from it.
#
#     bash tests/test_files.sh       PMLP_TEST_QUICK=1  fewer interruptions
#                                    PMLP_TORCH_PYTHON=PROGRAM  a Python with PyTorch, safetensors
#                                    and NumPy, if it is not in build/torch
#                                    PMLP_STRICT=1  no such Python is a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/files
quick=${PMLP_TEST_QUICK:-0}
topic=files
. tests/say.sh

rm -rf "$work"
mkdir -p "$work"
if ! make --no-print-directory build/train > "$work/make.log" 2>&1 ||
        ! "${CC:-cc}" -std=c99 -O1 -Wall -Wextra -Werror tests/files_tool.c -o "$work/files_tool" \
            -pthread -lm > "$work/make.log" 2>&1; then
    head -n 20 "$work/make.log"
    bad "train or tests/files_tool.c does not build"
    end
fi
train=build/train
word_in() { sed -n 's/^result .* weights=\([0-9a-f]*\).*/\1/p' "$1"; }

# --- interrupted --------------------------------------------------------------------------------------

ways=("--workers 1" "--workers 2" "--workers 3 --microbatches 5 --schedule gpipe"
    "--workers 2 --schedule zb-v --microbatches 6" "--workers 2 --schedule interleaved --microbatches 4"
    "--workers 2 --no-threads --schedule zb-h1")

# Starts and stops one training, then lets it come to its end: by a signal after a moment, which
# saves, or, every other time, by kill -9, which leaves what --save-every has written.
interrupted() { # NAME EPOCHS OPTIONS...
    local name=$1 epochs=$2 whole got hops=0 killed=0 status file pid from=()
    shift 2
    file=$work/$name.training
    if ! $train "$@" --epochs "$epochs" --quiet > "$work/$name.whole" 2>&1; then
        bad "$name: $(tail -n 1 "$work/$name.whole")"
        return
    fi
    whole=$(word_in "$work/$name.whole")
    while [ $hops -le $stops ]; do
        # shellcheck disable=SC2086 # words split on purpose
        $train "$@" --epochs "$epochs" --quiet --save "$file" --save-every 7 "${from[@]}" \
            ${ways[hops % ${#ways[@]}]} > "$work/$name.part" 2> "$work/$name.err" < /dev/null &
        pid=$!
        [ $hops = $stops ] || sleep "$(printf '0.%03d' $((RANDOM % 150 + 40)))"
        if [ $hops = $stops ]; then :
        elif [ $((hops % 2)) = 0 ]; then kill -s TERM $pid
        else kill -s KILL $pid; fi 2> /dev/null
        wait $pid 2> /dev/null
        status=$?
        hops=$((hops + 1))
        [ ! -e "$file" ] || from=(--resume "$file")
        case $status in
            0) break ;;
            143)
                # the signal may come before the program listens
                if [ -s "$work/$name.err" ] && ! grep -q 'saved: go on with --resume' "$work/$name.err"; then
                    bad "$name: stopped, says: $(cat "$work/$name.err")"
                    return
                fi ;;
            137) killed=$((killed + 1)) ;;
            *)
                bad "$name: exit status $status: $(tail -n 1 "$work/$name.err")"
                return ;;
        esac
    done
    got=$(word_in "$work/$name.part")
    if [ "$status" = 0 ] && [ "$hops" -gt 2 ] && [ "$got" = "$whole" ] && [ -n "$whole" ]; then
        ok "$name: interrupted $((hops - 1)) times, $killed of them by kill -9, on six kinds of pipelines: $got"
    else
        bad "$name: after $hops parts weights $got, not $whole"
    fi
}

net=(--layers 96,48,24 --limit 2000 --batch 32)
stops=$((quick ? 8 : 20))
interrupted adam 30 "${net[@]}" --optimizer adam
interrupted momentum 100 "${net[@]}" --lr-decay none --clip 1

# Ctrl-C. A shell's background programs do not get it before they ask for it.
$train --layers 40,20 --epochs 1000 --save "$work/part" > "$work/int" 2> "$work/int.err" < /dev/null &
pid=$!
for ((i = 0; i < 300; i++)); do
    grep -q '^epoch 2/' "$work/int.err" 2> /dev/null && break
    sleep 0.1
done
kill -s INT $pid
wait $pid
status=$?
line=$(tail -n 1 "$work/int.err")
if [ $status = 130 ] && [ ! -s "$work/int" ] && [ "$("$work/files_tool" show "$work/part" | wc -w)" = 4 ] &&
        [ "$line" = "train: stopped by a signal and saved: go on with --resume $work/part" ]; then
    ok "Ctrl-C: the step is finished, the training saved, exit status 130"
else
    bad "Ctrl-C: exit status $status, says: $line"
fi

# Epoch by epoch, each with more workers.
short=(--layers 40,20 --limit 200 --batch 32 --lr-decay none --quiet)
$train "${short[@]}" --epochs 4 > "$work/whole"
$train "${short[@]}" --epochs 1 --save "$work/part" > "$work/parts"
for epochs in 2 3 4; do
    $train "${short[@]}" --epochs $epochs --workers $epochs --resume "$work/part" \
        --save "$work/part" > "$work/parts" 2>&1
done
if [ -n "$(word_in "$work/whole")" ] && [ "$(word_in "$work/whole")" = "$(word_in "$work/parts")" ]; then
    ok "--epochs counts those that are done: four epochs, one by one"
else
    bad "--epochs with --resume: $(cat "$work/parts"), not $(word_in "$work/whole")"
fi

# 4 epochs of 7 steps, saved behind every third, the last three kept; from any of these to the end
kept=$work/kept
for replicas in 1 2; do
    rm -f "$kept" "$kept".*
    $train "${short[@]}" --epochs 4 --replicas $replicas --save "$kept" --save-every 3 --keep 3 > "$kept.whole" 2>&1
    rm -f "$work/kept_words"
    for step in 21 24 27; do
        cp "$kept.$step" "$work/kept_part"
        $train "${short[@]}" --epochs 4 --workers 2 --resume "$work/kept_part" 2>&1 | sed -n 's/.* weights=\([0-9a-f]*\).*/\1/p' \
            >> "$work/kept_words"
    done
    if [ "$(cd "$work" && echo kept.[0-9]*)" = "kept.21 kept.24 kept.27" ] &&
            [ "$(sort -u "$work/kept_words")" = "$(word_in "$work/whole")" ] &&
            [ "$(wc -l < "$work/kept_words")" = 3 ] && [ "$(word_in "$kept.whole")" = "$(word_in "$work/whole")" ]; then
        ok "--keep 3, $replicas replicas: the last three are there, each ends in the same weights"
    else
        bad "--keep 3, $replicas replicas: $(cd "$work" && echo kept*): $(cat "$kept.whole" "$work/kept_words")"
    fi
done
$train "${short[@]}" --epochs 400 --save "$kept" --save-seconds 0.01 --keep 2 > "$work/kept.out" 2>&1
if [ "$(cd "$work" && echo kept.[0-9]* | wc -w)" -ge 2 ] && [ -s "$kept" ]; then
    ok "--save-seconds saves on the way"
else
    bad "--save-seconds: $(cd "$work" && echo kept*): $(cat "$work/kept.out")"
fi

# --load takes the weights alone
if $train --layers 40,20 --limit 200 --verify 1 --load "$work/part" --workers 2 > "$work/load" 2>&1 &&
        $train --layers 40,20 --limit 200 --epochs 1 --compare --load "$work/part" > "$work/load2" 2>&1 &&
        [ "$("$work/files_tool" show "$work/part" | cut -d ' ' -f 4)" != "$(word_in "$work/load2")" ]; then
    ok "--load, with --verify and --compare"
else
    bad "--load: $(tail -n 1 "$work/load" "$work/load2")"
fi

# --- full disks ---------------------------------------------------------------------------------------

full_disk() {
    local disk=$work/disk status
    mkdir -p "$disk"
    if ! mount -t tmpfs -o size=300k none "$disk" 2> "$work/mount.err"; then
        skip "a full disk: no small one can be made here: $(cat "$work/mount.err")"
        return
    fi
    # the first file fits, two do not
    $train --layers 40,20 --limit 200 --epochs 1 --quiet --save "$disk/it" > /dev/null 2> "$work/disk.err"
    status=$?
    cp "$disk/it" "$work/it"
    $train --layers 40,20 --limit 200 --epochs 3 --quiet --save "$disk/it" --resume "$disk/it" \
        --save-every 1 > /dev/null 2>> "$work/disk.err"
    status="$status $?"
    if [ "$status" = "0 1" ] && grep -q "it: cannot be written: No space left on device" "$work/disk.err" &&
            cmp -s "$disk/it" "$work/it" && [ "$(ls "$disk")" = it ]; then
        ok "a full disk: $(cut -d ' ' -f 2- "$work/disk.err" | tail -n 1 | sed "s|$disk/||"); the old file is whole"
    else
        bad "a full disk: exit status $status, $(cat "$work/disk.err"), there are $(ls "$disk")"
    fi
    umount "$disk"
}
full_disk

# --- PyTorch ------------------------------------------------------------------------------------------

python=${PMLP_TORCH_PYTHON:-build/torch/bin/python}
if ! "$python" -c 'import importlib.util as u
raise SystemExit(not all(u.find_spec(name) for name in ("torch", "safetensors", "numpy")))' \
        > /dev/null 2>&1; then
    missing "a Python with PyTorch, safetensors and NumPy (bash tests/torch_setup.sh)" "files of Python"
    end
fi
mkdir -p "$work/python"
"$python" tests/files_torch.py "$work/files_tool" $train "$work/python" < /dev/null > "$work/python.log" 2>&1
status=$?
grep -E '^(ok   |FAIL )' "$work/python.log"
passed=$((passed + $(grep -c '^ok   ' "$work/python.log")))
wrong=$(grep -c '^FAIL ' "$work/python.log")
failed=$((failed + wrong))
if [ "$wrong" -gt 0 ] || [ $status -ne 0 ]; then
    grep -v '^ok   ' "$work/python.log" | tail -n 12
    [ "$wrong" -gt 0 ] || bad "tests/files_torch.py: exit status $status"
fi
end
