# Builds and tests this repository; everything lands under build/. A project that uses pipemlp needs
# none of this: it copies pipemlp.h, and pipemlp_cuda.cu if it wants a GPU.
#
#   make            the examples            make test       every test
#   make demo       trains, compares        make pictures   draws every schedule
#   make cuda       the GPU, too            make help       the list of targets

CFLAGS ?= -O3 -std=c99 -Wall -Wextra -Wpedantic -Wconversion
CXXFLAGS ?= -O3 -std=c++11 -Wall -Wextra -Wpedantic -Wconversion
LDLIBS  = -pthread -lm
PREFIX ?= /usr/local
VERSION = $(shell awk '/define PMLP_VERSION_/ {v = v d $$3; d = "."} END {print v}' pipemlp.h)

MPICC  ?= mpicc

# 08 is there if an MPI is.
without  = $(if $(shell command -v $(MPICC)),,build/08_mpi)
sources  = $(wildcard examples/*.c examples/*.cpp)
examples = $(filter-out $(without),$(patsubst examples/%,build/%,$(basename $(sources))))
found    = $(if $(shell command -v $(1)),$(1),no $(1))

# Where CUDA is: CUDA_HOME or CUDA_PATH, then the nvcc that a shell finds, then the usual place.
NVCC ?= $(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc) $(CUDA_PATH:%=%/bin/nvcc)) \
                    $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
NVCCFLAGS ?= -O3 -std=c++17

# Where NCCL is: NCCL_HOME, then the toolkit, the system, and the package of Python's that PyTorch
# brings with it. NCCL=no builds without it.
nccl_in   = $(or $(wildcard $(1:%=%/lib/libnccl.so) $(1:%=%/lib64/libnccl.so) \
                $(1:%=%/lib/*/libnccl.so)),$(wildcard $(1:%=%/lib/libnccl.so.2)))
nccl_homes = $(patsubst %/include/nccl.h,%,$(wildcard $(addsuffix /include/nccl.h,$(NCCL_HOME) \
                $(patsubst %/bin/nvcc,%,$(NVCC)) /usr /usr/local $(1))))
nccl_wheel = $(shell python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null)
ifeq ($(NCCL),no)
nccl_lib  =
else
nccl_lib := $(if $(NVCC),$(firstword $(foreach home,$(call nccl_homes),$(call nccl_in,$(home)))))
ifeq ($(nccl_lib),)
nccl_lib := $(if $(NVCC),$(firstword $(foreach home,$(call nccl_homes,$(nccl_wheel)), \
                $(call nccl_in,$(home)))))
endif
endif
nccl_home = $(patsubst %/,%,$(dir $(patsubst %/,%,$(dir $(nccl_lib)))))

ifeq ($(MAKELEVEL),0)
tools = $(firstword $(CC)) clang $(or $(NVCC),nvcc) $(MPICC) valgrind
$(info found: $(foreach tool,$(tools),$(call found,$(tool))) $(or $(nccl_lib),no NCCL))
endif

all: examples

examples: $(examples)

build/%: examples/%.c pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build/%: examples/%.cpp pipemlp.h | build
	$(CXX) $(CXXFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build/08_mpi: examples/08_mpi.c pipemlp.h | build
	$(MPICC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build:
	mkdir -p $@

# --- CUDA ---

cuda: build/cuda/train

# Machine code for each of these GPUs that the compiler knows, and for newer ones the form that
# their driver compiles. CUDA_ARCH=90, say, builds for one, which is faster.
gpus    = $(or $(CUDA_ARCH),$(filter 70 75 80 86 89 90 100 120, \
               $(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch 2>/dev/null))))
gencode = $(foreach gpu,$(gpus),-gencode arch=compute_$(gpu),code=sm_$(gpu)) \
          $(foreach gpu,$(lastword $(gpus)),-gencode arch=compute_$(gpu),code=compute_$(gpu))

# cuBLAS is found when a program starts, too, wherever the toolkit lies.
cuda_lib  = $(wildcard $(patsubst %/bin/nvcc,%/lib64,$(realpath $(shell command -v $(NVCC)))))
cuda_libs = -lcublas -lcublasLt $(nccl_libs) -lpthread -lm $(cuda_lib:%=-Xlinker -rpath=%)
# The file itself: a package of Python's has no link to it.
nccl_libs  = $(if $(nccl_lib),$(nccl_lib) -Xlinker -rpath=$(patsubst %/,%,$(dir $(nccl_lib))))
nccl_flags = $(if $(nccl_lib),$(patsubst %,-I%,$(wildcard $(nccl_home)/include)),-DPMLP_NO_NCCL)

# What is made by nvcc depends on this file, which changes with the compiler and the list above.
build/cuda/flags: always
	@if ! command -v '$(or $(NVCC),nvcc)' > /dev/null 2>&1; then \
	    echo 'nvcc is missing: install the CUDA toolkit from developer.nvidia.com, or say where' \
	        'it is: make $(firstword $(MAKECMDGOALS)) CUDA_HOME=/usr/local/cuda' >&2; \
	    exit 1; \
	fi
	@mkdir -p build/cuda
	@echo '$(NVCC) $(NVCCFLAGS) $(nccl_flags) $(gencode)' | cmp -s - $@ || \
	    echo '$(NVCC) $(NVCCFLAGS) $(nccl_flags) $(gencode)' > $@

build/cuda/pipemlp_cuda.o: pipemlp_cuda.cu pipemlp.h build/cuda/flags
	$(NVCC) $(NVCCFLAGS) $(nccl_flags) $(gencode) -I. -c -o $@ $<

# C stays with the C compiler, so that the CPU's bits are those of the other programs.
build/cuda/%.o: examples/%.c pipemlp.h build/cuda/flags
	$(CC) $(CFLAGS) -DPMLP_CUDA -I. $(CPPFLAGS) -c -o $@ $<

build/cuda/%.o: tests/%.c pipemlp.h build/cuda/flags
	$(CC) $(CFLAGS) -DPMLP_CUDA -I. $(CPPFLAGS) -c -o $@ $<

build/cuda/%.o: tests/bench/%.c tests/bench/peer.h pipemlp.h build/cuda/flags
	$(CC) -O3 -std=gnu11 -DPMLP_CUDA -I. $(CPPFLAGS) -c -o $@ $<

build/cuda/%: build/cuda/%.o build/cuda/pipemlp_cuda.o
	$(NVCC) -o $@ $^ $(cuda_libs)

build/cuda/gpu_floors: tests/bench/gpu_floors.cu build/cuda/flags
	$(NVCC) $(NVCCFLAGS) $(gencode) -o $@ $< $(cuda_libs)

# On a GPU; without one both say so and are done.
test-cuda: build/cuda/train
	@NVCC='$(NVCC)' MAKE='$(MAKE)' bash tests/cuda.sh

bench-cuda: build/train build/cuda/train build/cuda/peer_pipemlp build/cuda/gpu_floors
	@python3 tests/bench/bench_gpu.py $(BENCH)

# For tests/test_nvcc.sh.
cuda-flags: build/cuda/flags
	@cat $<

demo_options = --workers 2 --schedule eager-1f1b --compare --svg build/timeline.svg --trace build/trace.json

demo: build/train
	@if bash tests/data.sh; then \
	    echo 'build/train --data build/data $(demo_options)'; \
	    build/train --data build/data $(demo_options); \
	else \
	    echo 'No data set could be fetched: training on digits that the program draws itself.'; \
	    echo 'build/train $(demo_options)'; \
	    build/train $(demo_options); \
	fi

# One page with the timelines of all schedules, simulated.
pictures: build/draw
	@mkdir -p build/pictures
	@build/draw build/pictures

# Beside PyTorch, NumPy and others; writes tests/bench/RESULTS.md. `make bench BENCH=--quick`: less.
bench:
	@bash tests/bench/setup.sh && CC='$(CC)' CXX='$(CXX)' python3 tests/bench/bench.py $(BENCH)

# What many GPUs would do: simulated, not measured. Writes tests/bench/SCALE.md.
scale: build/scale
	build/scale > build/SCALE.md
	mv build/SCALE.md tests/bench/SCALE.md

build/scale: tests/bench/scale.c pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build/draw: tests/pictures.c pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

# One runner for all: `bash tests/run.sh --help` says what a section is.
test check: examples
	@bash tests/run.sh

# Random trainings against serial ones: an hour, or make endure ENDURE='--seconds 60'.
build/endure: tests/endure.c tests/test.h tests/faulty.h pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

endure: build/endure
	@build/endure $(ENDURE)

# Which lines and branches of the header the C tests run, and whether the others are explained.
coverage:
	@bash tests/coverage.sh

asan ubsan tsan valgrind: examples
	@bash tests/run.sh $@

# Inputs that libFuzzer makes up, for all that reads files. `make fuzz RUNS=100000000 TARGET=idx`
fuzz: | build
	@RUNS='$(or $(RUNS),2000000)' TARGET='$(TARGET)' bash tests/test_fuzz.sh

install:
	install -d '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/share/pipemlp' \
	    '$(DESTDIR)$(PREFIX)/share/pkgconfig'
	install -m 644 pipemlp.h '$(DESTDIR)$(PREFIX)/include/pipemlp.h'
	install -m 644 pipemlp_cuda.cu '$(DESTDIR)$(PREFIX)/share/pipemlp/pipemlp_cuda.cu'
	printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$${prefix}/include' \
	    'cuda_source=$${prefix}/share/pipemlp/pipemlp_cuda.cu' '' 'Name: pipemlp' \
	    'Description: trains multilayer perceptrons as a pipeline; a single header' \
	    'Version: $(VERSION)' 'Cflags: -I$${includedir}' 'Libs: -pthread -lm' \
	    > '$(DESTDIR)$(PREFIX)/share/pkgconfig/pipemlp.pc'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/include/pipemlp.h' '$(DESTDIR)$(PREFIX)/share/pkgconfig/pipemlp.pc' \
	    '$(DESTDIR)$(PREFIX)/share/pipemlp/pipemlp_cuda.cu'
	[ ! -d '$(DESTDIR)$(PREFIX)/share/pipemlp' ] || rmdir '$(DESTDIR)$(PREFIX)/share/pipemlp'

clean:
	rm -rf build

help:
	@printf '%-22s %s\n' \
	    'make, make all'        'builds the examples into build/' \
	    'make demo'             'fetches a data set, trains serially and pipelined, compares;' \
	    ''                      'draws build/timeline.svg, writes build/trace.json' \
	    'make pictures'         'draws every schedule; open build/pictures/index.html' \
	    'make bench'            'measures beside PyTorch, NumPy, dlib and others (about 13 min);' \
	    ''                      'writes tests/bench/RESULTS.md and its pictures' \
	    'make cuda'             'builds build/cuda/train, which has --backend cuda; wants nvcc;' \
	    ''                      'CUDA_ARCH=90 for one kind of GPU, CUDA_HOME=DIR or NVCC=PROGRAM;' \
    ''                      'NCCL_HOME=DIR, or NCCL=no to build without it' \
	    'make test-cuda'        'tests the CUDA back end, if this machine has a GPU' \
	    'make bench-cuda'       'measures it beside PyTorch, if this machine has a GPU;' \
	    ''                      'writes tests/bench/RESULTS-gpu.md' \
	    'make scale'            'predicts steps on 8 to 1,024 GPUs; writes tests/bench/SCALE.md' \
	    'make test, make check' 'runs every test; ends with "N passed, N failed"' \
	    'make asan'             'the C tests under the address and undefined-behaviour sanitizers' \
	    'make ubsan'            'the C tests under the undefined-behaviour sanitizer alone' \
	    'make tsan'             'the threaded C tests under the thread sanitizer' \
	    'make valgrind'         'a short training under valgrind' \
	    'make fuzz'             'made-up files for every reader, 2 million each; wants clang; RUNS=N' \
	    'make endure'           'random trainings against serial ones, for an hour' \
	    'make coverage'         'the share of lines and branches of pipemlp.h that the tests run, and' \
	    ''                      'whether the others are explained; wants gcovr and python3' \
	    'make install'          'copies both files and one for pkg-config to PREFIX (and DESTDIR)' \
	    'make uninstall'        'removes them' \
	    'make clean'            'removes build/'

.PHONY: all examples demo pictures bench scale test check asan ubsan tsan valgrind coverage endure \
        install uninstall clean help fuzz cuda test-cuda bench-cuda cuda-flags always
.SECONDARY:
