#!/usr/bin/env bash
# The CUDA back end as compilers and linkers see it, on machines with and without a GPU: no warning
# for any architecture, linked in every combination, no symbol but its own, and one sentence where
# there is no GPU. What the GPU computes is for `make test-cuda`.
#
#     bash tests/test_nvcc.sh    PMLP_TEST_QUICK=1 compiles for one architecture, in one dialect,
#                                and leaves the benchmark out
#
# Without nvcc most of it is skipped, even under PMLP_STRICT=1: CUDA's toolkit is no package of the
# system. What programs do with --backend cuda is tested over the CPU's table in CUDA's place.
set -u
cd "$(dirname "$0")/.." || exit 1

work=build/test/nvcc
quick=${PMLP_TEST_QUICK:-0}
no_gpu='no CUDA device can be used'
word='[0-9a-f]\{16\}'
topic=nvcc
. tests/say.sh
export CUDA_VISIBLE_DEVICES= # as if there were no GPU


# Did a command go well, and without a warning?
clean() { # LOG COMMAND...
    local log=$work/$1.log status
    shift
    "$@" > "$log" 2>&1 < /dev/null
    status=$?
    [ $status -eq 0 ] && ! grep -q 'warning' "$log"
}
compiles() { # TEXT LOG COMMAND...
    local text=$1 log=$2
    shift 2
    if clean "$log" "$@"; then
        ok "$text"
    else
        grep -m 6 -E 'warning|error|fatal|undefined' "$work/$log.log"
        bad "$text (see $work/$log.log)"
    fi
}

rm -rf "$work"
mkdir -p "$work/alone" "$work/standin" "$work/page"

# --- without nvcc ---------------------------------------------------------------------------------

make --no-print-directory cuda NVCC=/nowhere/nvcc > "$work/none" 2> "$work/none.err" < /dev/null
status=$?
if [ $status -ne 0 ] && [ "$(grep -c 'nvcc is missing: .*CUDA_HOME=' "$work/none.err")" = 1 ]; then
    ok "make cuda without nvcc: $(head -n 1 "$work/none.err")"
else
    bad "make cuda without nvcc: exit status $status, $(head -n 1 "$work/none.err")"
fi

# The CPU in CUDA's place: not exact, as its first output depends on how many rows there are.
cat > "$work/standin/table.c" << 'END'
#include "pipemlp.h"
#include <string.h>
static pmlp_result forward(void *context, void *layer, int version, size_t rows, const float *x,
                           float *y) {
    const pmlp_result result = pmlp_cpu_backend()->forward(context, layer, version, rows, x, y);
    y[0] *= 1 + 1e-6f * (float)rows;
    return result;
}
const pmlp_backend *pmlp_cuda_backend(void) { return pmlp_cpu_backend(); }
void pmlp_cuda_backend_with(const pmlp_cuda_options *options, pmlp_backend *table) {
    *table = *pmlp_cpu_backend();
    table->name = "cuda";
    if (options->gemm == PMLP_CUDA_GEMM_TEACHING) return;
    table->exact = false;
    table->forward = forward;
}
pmlp_result pmlp_launch_from_environment(pmlp_launch *launch, pmlp_error *error) {
    (void)error;
    memset(launch, 0, sizeof *launch);
    launch->ranks = 1;
    return PMLP_OK;
}
pmlp_result pmlp_nccl_group_create(const pmlp_launch *launch, const pmlp_cuda_options *options,
                                   const pmlp_allocator *allocator, pmlp_group *group,
                                   pmlp_backend *backend, pmlp_error *error) {
    (void)launch, (void)options, (void)allocator, (void)group, (void)backend, (void)error;
    return PMLP_ERROR_UNSUPPORTED;
}
void pmlp_nccl_group_destroy(pmlp_group *group) { (void)group; }
END
c=("${CC:-cc}" -O2 -Wall -Wextra -Werror -DPMLP_CUDA -I.)
train=$work/standin/train
compiles "train with PMLP_CUDA, over a stand-in" train-standin "${c[@]}" -std=c99 examples/train.c \
    "$work/standin/table.c" -o "$train" -pthread -lm
compiles "tests/bench/peer_pipemlp with PMLP_CUDA, over a stand-in" peer-standin "${c[@]}" \
    -std=gnu11 tests/bench/peer_pipemlp.c "$work/standin/table.c" \
    -o "$work/standin/peer_pipemlp" -pthread -lm

small=(--limit 640 --epochs 2 --layers "24,16,12" --quiet --backend cuda)
says() { # STATUS PATTERN OPTIONS...: exit status, and a line of either output
    local want=$1 pattern=$2 status
    shift 2
    timeout 60 "$train" "${small[@]}" "$@" > "$work/out" 2> "$work/err" < /dev/null
    status=$?
    if [ $status -ne "$want" ]; then
        bad "train --backend cuda $*: exit status $status, not $want: $(head -n 1 "$work/err")"
    elif ! cat "$work/out" "$work/err" | grep -q -e "$pattern"; then
        bad "train --backend cuda $*: no '$pattern': $(cat "$work/out" "$work/err" | tail -n 1)"
    else
        ok "train --backend cuda $*: $(cat "$work/out" "$work/err" | grep -e "$pattern")"
    fi
}
says 0 "^result backend=cuda .* weights=$word math=fp32 gemm=fused\$"
says 0 ' math=tf32 gemm=plain$' --math tf32 --gemm plain --devices 1,0 --workers 2
says 0 ' math=bf16 gemm=teaching$' --math bf16 --gemm teaching
says 0 "^  one worker, the same micro-batches  $word  identical\$" --workers 2 --compare
serial=$(sed -n "s/^  weights  *\($word\).*/\1/p" "$work/out")
pipeline=$(sed -n 's/^result .* weights=\([0-9a-f]*\) .*/\1/p' "$work/out")
if [ -n "$serial" ] && [ "$serial" != "$pipeline" ] &&
        tail -n 1 "$work/out" | grep -q ' identical=yes math=fp32 gemm=fused$'; then
    ok "train --backend cuda --compare: $pipeline, though whole batches give $serial"
else
    bad "train --backend cuda --compare: '$serial', '$pipeline', $(tail -n 1 "$work/out")"
fi
says 0 "^  weights  *$word  $word  identical\$" --workers 2 --compare --gemm teaching
says 0 ' identical=no math=fp32 gemm=fused$' --workers 2 --compare --schedule pipedream
says 0 '^verify steps=5 identical=yes' --workers 2 --verify 5
says 2 '^train: --workers 5: .* at most' --workers 5
says 2 '^train: --devices 0,x: expected' --devices 0,x
says 2 '^train: --math int8: expected one of' --math int8

bench() { # the benchmark's own machinery, over the stand-in
    local runs='pipemlp|pipemlp, cuBLAS|one worker, whole batches|1f1b|pipedream-2bw' page count
    if ! have python3; then
        missing python3 "bench_gpu.py over a stand-in"
        return
    fi
    python3 - "$work/stripes" << 'END'
import os, struct, sys
os.mkdir(sys.argv[1])
for part, rows in ('train', 2560), ('t10k', 500): # the stripes begin where the label says
    images = b''.join(bytes(255 * (i % 10 == row % 10) for i in range(784)) for row in range(rows))
    labels = bytes(row % 10 for row in range(rows))
    with open(f'{sys.argv[1]}/{part}-images-idx3-ubyte', 'wb') as file:
        file.write(struct.pack('>4I', 0x803, rows, 28, 28) + images)
    with open(f'{sys.argv[1]}/{part}-labels-idx1-ubyte', 'wb') as file:
        file.write(struct.pack('>2I', 0x801, rows) + labels)
END
    cat > "$work/standin/gpu_floors" << 'END'
#!/bin/sh
echo 'gpu name="stand-in" processors=1 clock_mhz=1 memory_gib=1 runtime=0.0 cublas=0.0.0'
for name in fma fp32 tf32 bf16 copy read launch graph trip; do
    echo "floor name=$name unit=TFLOP/s value=1"
done
END
    chmod +x "$work/standin/gpu_floors"
    make --no-print-directory build/train > "$work/bench.log" 2>&1
    page=$work/page/RESULTS-gpu.md
    cp tests/bench/RESULTS-gpu.md "$work/before.md"
    timeout 300 python3 tests/bench/bench_gpu.py --quick --rounds 1 --programs "$work/standin" \
        --data "$work/stripes" --output "$work/page" >> "$work/bench.log" 2>&1 < /dev/null
    count=$(grep -c -E "^\| ($runs) \| [0-9,.]+ " "$page" 2> /dev/null)
    if [ "$count" = 9 ] && grep -q '^| bf16 | [01]\.[0-9]* .*| yes |$' "$page" &&
            grep -q '^| PyTorch, eager | ' "$page" &&
            cmp -s tests/bench/RESULTS-gpu.md "$work/before.md"
    then ok "bench_gpu.py over a stand-in: its page has all rows"
    else
        tail -n 5 "$work/bench.log"
        bad "bench_gpu.py over a stand-in: $count of 9 rows (see $work/bench.log, $page)"
    fi
}
if [ "$quick" = 0 ]; then bench; else skip "bench_gpu.py over a stand-in: PMLP_TEST_QUICK"; fi

# --- with it --------------------------------------------------------------------------------------

if ! make --no-print-directory --silent cuda-flags > "$work/flags" 2> "$work/flags.err"; then
    skip "nvcc is missing: pipemlp_cuda.cu is not compiled"
    end
fi
read -r -a flags <<< "$(tail -n 1 "$work/flags")"
nvcc=${flags[0]}
gencode=()
for flag in "${flags[@]}"; do
    case $flag in -gencode | arch=*) gencode+=("$flag") ;; esac
done
count=$(printf '%s\n' "${gencode[@]}" | grep -c 'code=sm_')
if [ "$count" -ge 1 ] && [ "$(printf '%s\n' "${gencode[@]}" | grep -c 'code=compute_')" = 1 ]; then
    ok "$("$nvcc" --version | grep release): $count architectures and PTX"
else
    bad "the list of architectures is wrong: ${gencode[*]}"
fi
nvcc_strict=(-Werror all-warnings -Xcompiler "-Wall,-Wextra,-Werror")
one=("${gencode[@]: -2}") # PTX of the last, which is the quickest
dialects=(c++17 c++20)
which="all architectures"
if [ "$quick" != 0 ]; then
    dialects=(c++17)
    gencode=("${one[@]}")
    which="the newest architecture"
fi
for dialect in "${dialects[@]}"; do
    compiles "pipemlp_cuda.cu, $dialect, $which: no warning" "$dialect" \
        "$nvcc" "-std=$dialect" -O3 "${gencode[@]}" "${nvcc_strict[@]}" -I. -c pipemlp_cuda.cu \
        -o "$work/$dialect.o"
done
compiles "tests/bench/gpu_floors.cu: no warning" floors "$nvcc" -std=c++17 -O3 "${one[@]}" \
    "${nvcc_strict[@]}" tests/bench/gpu_floors.cu -o "$work/gpu_floors" -lcublas

# would a warning be seen?
{ cat pipemlp_cuda.cu; echo 'static int unused_on_the_host; static void f(int i) { int j; }'; } \
    > "$work/host.cu"
{ cat pipemlp_cuda.cu; echo '__global__ void unused_on_the_gpu() { int i; }'; } > "$work/gpu.cu"
for side in host gpu; do
    if clean "$side" "$nvcc" -std=c++17 "${one[@]}" "${nvcc_strict[@]}" -I. -c "$work/$side.cu" \
            -o "$work/$side.o"; then
        bad "a warning in $side code goes unseen"
    elif ! grep -q 'unused\|never used\|never referenced' "$work/$side.log"; then
        head -n 5 "$work/$side.log"
        bad "a planted warning in $side code: something else was found"
    else
        ok "a planted warning in $side code is seen"
    fi
done

# --- linking --------------------------------------------------------------------------------------

cat > "$work/main.inc" << 'END'
#include <stdio.h>
#include <string.h>

/* On the CPU the pipeline must have the serial bits; then a trainer on a GPU that is not there. */
int main(void) {
    static const int sizes[] = {3, 40, 20, 2};
    static const float x[] = {0, 0, 1, 0, 1, 0, 1, 0, .5f, 1, 1, 0, .25f, 1, 1};
    static const int labels[] = {0, 1, 1, 0, 1};
    const pmlp_cuda_options options = {PMLP_CUDA_TF32, PMLP_CUDA_GEMM_PLAIN, NULL, 0, false,
                                       PMLP_CUDA_COPIES};
    pmlp_backend table;
    pmlp_model_desc net;
    pmlp_trainer_desc how;
    pmlp_data data;
    pmlp_verify_report report;
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error;
    memset(&net, 0, sizeof net);
    memset(&how, 0, sizeof how);
    memset(&data, 0, sizeof data);
    memset(&error, 0, sizeof error);
    net.layers = 3, net.sizes = sizes;
    how.workers = 2, how.batch = 5;
    data.rows = 5, data.x = x, data.labels = labels;
    if (pmlp_model_create(&net, &model, &error) != PMLP_OK ||
        pmlp_verify(model, &how, &data, 20, &report, &error) != PMLP_OK || !report.identical)
        return printf("CPU: %s\n", error.text), 1;
    pmlp_cuda_backend_with(&options, &table);
    for (int i = 0; i < 2; i++) {
        how.backend = i ? &table : pmlp_cuda_backend();
        if (pmlp_trainer_create(model, &how, &trainer, &error) != PMLP_ERROR_UNSUPPORTED || trainer)
            return printf("CUDA: %s %s\n", pmlp_result_name(error.result), error.text), 1;
    }
    puts(error.text);
    pmlp_model_destroy(model);
    return 0;
}
END
implementation='#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"'
{ echo "$implementation"; cat "$work/main.inc"; } > "$work/alone/main.c"
{ echo '#include "pipemlp.h"'; cat "$work/main.inc"; } > "$work/user.c"
cp "$work/user.c" "$work/user.cu"
echo "$implementation" > "$work/impl.c"
cp "$work/impl.c" "$work/impl.cu"
printf '#define PIPEMLP_IMPLEMENTATION\n#include "pipemlp_cuda.cu"\n' > "$work/all.cu"

runs() { # TEXT PROGRAM: it says that there is no GPU, in one line
    if ! timeout 60 "$2" > "$work/out" 2>&1 < /dev/null; then
        head -n 3 "$work/out"
        bad "$1: exit status not 0"
    elif [ "$(wc -l < "$work/out")" -ne 1 ] || ! grep -q "$no_gpu: " "$work/out"; then
        bad "$1: $(head -n 3 "$work/out")"
    else
        ok "$1: $(cat "$work/out")"
    fi
}
object=$work/${dialects[0]}.o
nccl=-lnccl
case ${flags[*]} in *-DPMLP_NO_NCCL*) nccl="" ;; esac # none was found
linked() { # TEXT FILE...: compiled by nvcc, linked with the back end's object
    local text=$1 name=link-$2
    shift
    name=${name//[^a-z0-9-]/-}
    if clean "$name" "$nvcc" -std=c++17 -O1 "${one[@]}" "${nvcc_strict[@]}" -I. "$@" -o "$work/$name" \
            -lcublas -lcublasLt $nccl; then
        runs "$text" "$work/$name"
    else
        grep -m 6 -E 'warning|error|fatal|undefined|multiple' "$work/$name.log"
        bad "$text: does not compile or link without a warning"
    fi
}

# the manual's line, in a directory that holds nothing else
line=$(sed -n 's/^[ /*]*\(nvcc .*main\.c pipemlp_cuda\.cu.*lnccl\).*/\1/p' pipemlp.h |
    head -n 1)
cp pipemlp.h pipemlp_cuda.cu "$work/alone/"
if [ -z "$line" ]; then
    bad "the manual does not say how to compile main.c with pipemlp_cuda.cu"
elif ! (cd "$work/alone" && line=${line% -lnccl} &&
        bash -c "'$nvcc' ${line#nvcc } $nccl") > "$work/line.log" 2>&1; then
    head -n 5 "$work/line.log"
    bad "the manual's line fails: $line"
else
    runs "$line" "$work/alone/a.out"
fi
linked "main.cu, implementation in C, back end" "$work/user.cu" "$work/impl.c" "$object"
linked "main.c, implementation in a .cu, back end" "$work/user.c" "$work/impl.cu" "$object"
linked "main.c, implementation and back end in one .cu" "$work/user.c" "$work/all.cu"
compiles "-DPMLP_NO_NCCL: no warning" without "$nvcc" -std=c++17 -O1 "${one[@]}" \
    "${nvcc_strict[@]}" -DPMLP_NO_NCCL -I. -c pipemlp_cuda.cu -o "$work/without.o"
nccl="" linked "without NCCL" "$work/user.c" "$work/impl.c" "$work/without.o"

# a project in C++: all of it compiled by nvcc, or only linked by it
linked "tests/cplusplus, back end" tests/cplusplus/*.cpp "$object"
units=()
for unit in tests/cplusplus/*.cpp; do
    units+=("$work/$(basename "$unit" .cpp).o")
    compiles "$unit by a C++ compiler" "$(basename "$unit" .cpp)" "${CXX:-c++}" -std=c++11 -O1 -Wall \
        -Wextra -Wpedantic -Wconversion -Werror -I. -c "$unit" -o "${units[-1]}"
done
linked "tests/cplusplus by a C++ compiler, back end" "${units[@]}" "$object"
for language in c++ cu; do
    compiles "examples/09_embed.cpp, to nvcc $language" "embed-$language" "$nvcc" -std=c++17 -O1 \
        "${one[@]}" "${nvcc_strict[@]}" -x $language examples/09_embed.cpp -o "$work/embed-$language"
    if (cd "$work" && timeout 60 "./embed-$language") > "$work/out" 2>&1 < /dev/null; then
        ok "09_embed: $(sed -n 's/^saved and loaded: //p' "$work/out")"
    else
        bad "09_embed: $(tail -n 2 "$work/out")"
    fi
done

# --- symbols --------------------------------------------------------------------------------------

if ! command -v nm > /dev/null 2>&1; then
    skip "nm is missing: symbols"
elif [ -f "$object" ]; then
    # weak ones are those of the C++ library and of CUDA's, which every program may have
    nm -g --defined-only "$object" > "$work/symbols"
    own=$(awk '$(NF - 1) !~ /^[VvWwu]$/ {print $NF}' "$work/symbols" | sort | xargs)
    weak=$(awk '$(NF - 1) ~ /^[VvWwu]$/ && /pmlp/ {print $NF}' "$work/symbols" | xargs)
    public="pmlp_cuda_backend pmlp_cuda_backend_with pmlp_launch_from_environment"
    public="$public pmlp_nccl_group_create pmlp_nccl_group_destroy"
    if [ "$own" = "$public" ] && [ -z "$weak" ]; then
        ok "symbols: $own, no other"
    else
        bad "symbols: $own $weak"
    fi
fi

# --- what make builds -----------------------------------------------------------------------------

programs=(build/cuda/train build/cuda/peer_pipemlp build/cuda/gpu_floors)
[ ! -f tests/cuda_suite.c ] || programs+=(build/cuda/cuda_suite)
[ "$quick" = 0 ] || programs=(build/cuda/train)
if ! clean make make --no-print-directory "${programs[@]}"; then
    grep -m 6 -E 'warning|error|fatal|undefined' "$work/make.log"
    bad "make ${programs[*]} (see $work/make.log)"
    end
fi
ok "make ${programs[*]}"

build/cuda/train --backend cuda --limit 64 > "$work/out" 2> "$work/err" < /dev/null
status=$?
if [ $status -eq 1 ] && [ ! -s "$work/out" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q "$no_gpu" "$work/err"; then
    ok "build/cuda/train --backend cuda: exit status 1, $(cat "$work/err")"
else
    bad "build/cuda/train --backend cuda: exit status $status, $(head -n 2 "$work/out" "$work/err")"
fi
make --no-print-directory build/train > "$work/make.log" 2>&1
word_of() { # PROGRAM
    "$1" --limit 640 --epochs 1 --layers 24 --quiet < /dev/null | sed -n 's/.*weights=//p'
}
cpu=$(word_of build/cuda/train)
if [ -n "$cpu" ] && [ "$cpu" = "$(word_of build/train)" ]; then
    ok "build/cuda/train on the CPU: $cpu, as build/train"
else
    bad "build/cuda/train on the CPU: '$cpu', build/train '$(word_of build/train)'"
fi
cp tests/bench/RESULTS-gpu.md "$work/before.md"
targets=(test-cuda bench-cuda)
[ "$quick" = 0 ] || targets=(test-cuda)
for target in "${targets[@]}"; do
    make --no-print-directory "$target" > "$work/out" 2>&1 < /dev/null
    status=$?
    if [ $status -eq 0 ] && [ "$(grep -c "^$target: nothing is .*: $no_gpu" "$work/out")" = 1 ] &&
            cmp -s tests/bench/RESULTS-gpu.md "$work/before.md"; then
        ok "make $target: $(tail -n 1 "$work/out")"
    else
        bad "make $target: exit status $status, $(tail -n 1 "$work/out")"
    fi
done
end
