# Builds and tests this repository; everything lands under build/. A project that uses pipemlp needs
# none of this: it copies pipemlp.h.
#
#   make            the examples            make test       every test
#   make demo       trains, compares        make pictures   draws every schedule
#   make help       the list of targets

CFLAGS ?= -O3 -std=c99 -Wall -Wextra -Wpedantic -Wconversion
LDLIBS  = -pthread -lm
PREFIX ?= /usr/local
VERSION = $(shell awk '/define PMLP_VERSION_/ {v = v d $$3; d = "."} END {print v}' pipemlp.h)

examples = $(patsubst examples/%.c,build/%,$(wildcard examples/*.c))
found    = $(if $(shell command -v $(1)),$(1),no $(1))

ifeq ($(MAKELEVEL),0)
$(info found: $(foreach tool,$(firstword $(CC)) clang nvcc valgrind,$(call found,$(tool))))
endif

all: examples

examples: $(examples)

build/%: examples/%.c pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build:
	mkdir -p $@

demo_options = --workers 2 --compare --svg build/timeline.svg --trace build/trace.json

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

build/draw: tests/pictures.c pipemlp.h | build
	$(CC) $(CFLAGS) -I. $(CPPFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

# One runner for all: `bash tests/run.sh --help` says what a section is.
test check: examples
	@bash tests/run.sh

asan ubsan tsan valgrind: examples
	@bash tests/run.sh $@

install:
	install -d '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/share/pkgconfig'
	install -m 644 pipemlp.h '$(DESTDIR)$(PREFIX)/include/pipemlp.h'
	printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$${prefix}/include' '' 'Name: pipemlp' \
	    'Description: trains multilayer perceptrons as a pipeline; a single header' \
	    'Version: $(VERSION)' 'Cflags: -I$${includedir}' 'Libs: -pthread -lm' \
	    > '$(DESTDIR)$(PREFIX)/share/pkgconfig/pipemlp.pc'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/include/pipemlp.h' '$(DESTDIR)$(PREFIX)/share/pkgconfig/pipemlp.pc'

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
	    'make test, make check' 'runs every test; ends with "N passed, N failed"' \
	    'make asan'             'the C tests under the address and undefined-behaviour sanitizers' \
	    'make ubsan'            'the C tests under the undefined-behaviour sanitizer alone' \
	    'make tsan'             'the threaded C tests under the thread sanitizer' \
	    'make valgrind'         'a short training under valgrind' \
	    'make install'          'copies the header and a pkg-config file to PREFIX (and DESTDIR)' \
	    'make uninstall'        'removes them' \
	    'make clean'            'removes build/'

.PHONY: all examples demo pictures bench test check asan ubsan tsan valgrind install uninstall clean help
