#!/usr/bin/env bash
# The text form against the program it is meant for: PyTorch reads, lowers, simulates and trains our
# schedules, we read PyTorch's, and both refuse what is broken (tests/torch_loader.py).
#
#     bash tests/test_torch.sh       needs PyTorch 2.12 or newer: bash tests/torch_setup.sh
#                                    PMLP_TORCH_PYTHON=PROGRAM  the Python that has it, if it is
#                                    neither in build/torch nor python3
#                                    PMLP_TEST_QUICK=1  fewer schedules
#                                    PMLP_STRICT=1  no PyTorch is a failure
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/torch
program=$work/torch_schedules
quick=${PMLP_TEST_QUICK:-0}
topic=torch
. tests/say.sh


# --- our half, which needs no PyTorch -------------------------------------------------------------

rm -rf "$work"
mkdir -p "$work/ours/lowered" "$work/theirs"
if ! "${CC:-cc}" -std=c99 -O2 -Wall -Wextra tests/torch_schedules.c -o "$program" -pthread -lm \
        > "$work/build.log" 2>&1; then
    head -n 20 "$work/build.log"
    bad "tests/torch_schedules.c does not build"
    end
fi
options=()
[ "$quick" = 0 ] || options=(quick)
if ! "$program" write "$work/ours" "${options[@]}" > "$work/kinds" ||
        ! "$program" check "$work"/ours/*.csv > "$work/checked"; then
    bad "the schedules cannot be written or read"
    end
fi
count=$(wc -l < "$work/checked")
wrong=$(grep -v -c '^ok$' "$work/checked")
if [ "$wrong" -ne 0 ]; then
    grep -v '^ok$' "$work/checked" | head -n 5
    bad "$wrong of $count schedules fail once they were written and read again"
else
    ok "$count schedules of $(wc -l < "$work/kinds") kinds written, read again, proved"
fi

# --- PyTorch's ------------------------------------------------------------------------------------

has_torch() { # PYTHON: without importing it, which takes seconds
    "$1" -c 'from importlib.metadata import version
major, minor = version("torch").split(".")[:2]
raise SystemExit((int(major), int(minor)) < (2, 12))' > /dev/null 2>&1
}
python=""
if [ -n "${PMLP_TORCH_PYTHON:-}" ]; then
    if ! has_torch "$PMLP_TORCH_PYTHON"; then
        bad "$PMLP_TORCH_PYTHON has no PyTorch 2.12 or newer (PMLP_TORCH_PYTHON)"
        end
    fi
    python=$PMLP_TORCH_PYTHON
else
    for candidate in build/torch/bin/python python3; do
        if has_torch "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ]; then
    why="PyTorch is missing: run 'bash tests/torch_setup.sh', or set PMLP_TORCH_PYTHON to a Python"
    why="$why that has PyTorch 2.12 or newer"
    if [ "$strict" = 1 ]; then bad "$why"; else skip "$why"; fi
    end
fi

"$python" tests/torch_loader.py --program "$program" --work "$work/theirs" "$work"/ours/*.csv \
    < /dev/null 2>&1 | tee "$work/loader.log"
status=${PIPESTATUS[0]}
passed=$((passed + $(grep -c '^ok   ' "$work/loader.log")))
wrong=$(grep -c '^FAIL ' "$work/loader.log")
failed=$((failed + wrong))
if [ "$status" -ne 0 ] && [ "$wrong" -eq 0 ]; then
    bad "tests/torch_loader.py: exit status $status"
fi
end
