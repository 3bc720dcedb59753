# make             build ./lipgpt               make train   fetch Shakespeare, train, certify, sample
# make test        all tests                    make train TEXT=my.txt   the same on your own text
# make double      build/lipgpt-double, the same program in double: tells rounding from mistake
# make search      build/search: the search for a certificate's worst pair of inputs, from below
# make mlp         fetch CIFAR-10, train a perceptron with an enforced constant, certify and attack it
# make golden      dev/golden/*: the numbers of one training step, for ports (dev/porting.md)
# make plot        out/plot.png: a run's log, its certificate layer by layer; FILES='...' overlays several
# make debug       build/lipgpt-debug: sanitizers, and the caps asserted after every step
# make bench       speed, as shares of this machine's peak
# make fuzz SECONDS=60   checkpoints, data and command lines from libFuzzer, each so long
# make clean       remove what was built        Options: CC=clang, NO_OMP=1, TRAIN='--steps 500 ...'

CFLAGS ?= -O3
PYTHON ?= python3
WARNINGS := -Wall -Wextra -Wpedantic
# On all cores, unless the command line has a -j.
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)

ifneq ($(and $(filter clean,$(MAKECMDGOALS)),$(filter-out clean,$(MAKECMDGOALS))),)
$(error clean comes alone: make clean && make $(filter-out clean,$(MAKECMDGOALS)))
endif

# Before anything else: a place to build in.
ifneq ($(MAKECMDGOALS),clean)
ifeq ($(shell mkdir -p build 2> /dev/null && test -w build && test -w . && echo yes),)
$(error cannot write to $(CURDIR)/build: is the source folder read-only? Copy it and make there)
endif
endif

# The compiler is asked once what it can do, and again when one of these changes: build/flags.mk keeps
# the answers, and everything that is built depends on it.
ASKED := $(CC) | $(CFLAGS) | $(ARCH) | $(NO_OMP)
-include build/flags.mk
ifneq ($(MAKECMDGOALS),clean)
ifneq ($(ASKED),$(ANSWERED))
# try FLAGS,PROGRAM: the flags, if a program compiles *and links* with them.
comma := ,
try = $(shell printf '$(2)' > build/probe.c && \
        $(CC) $(1) build/probe.c -o build/probe -lm > /dev/null 2>&1 && printf '%s' '$(1)')
PLAIN := int main(void) { return 0; }
PARALLEL := \043include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }
LIBOMP := $(shell brew --prefix libomp 2> /dev/null)
MACHINE := $(or $(filter -%,$(ARCH)),$(call try,-march=native,$(PLAIN)),$(call try,-mcpu=native,$(PLAIN)))
OMP := $(if $(NO_OMP),,$(call try,-fopenmp,$(PARALLEL)))
ifeq ($(OMP)$(NO_OMP)$(if $(LIBOMP),,none),)
OMP := $(call try,-Xpreprocessor -fopenmp -I$(LIBOMP)/include -L$(LIBOMP)/lib -lomp,$(PARALLEL))
endif
SIMD := $(if $(OMP),,$(call try,-fopenmp-simd,$(PLAIN)) -Wno-unknown-pragmas)
SANITIZE := $(call try,-fsanitize=address$(comma)undefined -fno-sanitize-recover=all,$(PLAIN))
$(shell printf '%s\n' 'ANSWERED := $(subst ','\'',$(ASKED))' 'MACHINE := $(MACHINE)' \
        'OMP := $(OMP)' 'SIMD := $(SIMD)' 'SANITIZE := $(SANITIZE)' > build/flags.mk)
$(info $(CC): $(or $(MACHINE),no -march=native), $(if $(OMP),OpenMP,$(if $(NO_OMP),one thread as asked,\
  ONE THREAD ONLY: no OpenMP found; install libgomp (gcc)$(comma) libomp-dev (clang) or brew install libomp)))
endif
endif

FLAGS = -std=c11 $(CFLAGS) $(MACHINE) -ffp-contract=fast $(WARNINGS) $(OMP) $(SIMD)
DEBUG = -std=c11 -O1 -g $(MACHINE) $(WARNINGS) -Wno-pass-failed $(OMP) $(SIMD) $(SANITIZE) \
        -DCHECK_EVERY_STEP
SOURCE := lipgpt.c Makefile build/flags.mk
build/flags.mk: ;

lipgpt: $(SOURCE)
	$(CC) $(FLAGS) lipgpt.c -o $@ -lm
build/lipgpt-double: $(SOURCE)
	$(CC) $(FLAGS) -DLIPGPT_DOUBLE lipgpt.c -o $@ -lm
build/lipgpt-debug: $(SOURCE)
	$(CC) $(DEBUG) lipgpt.c -o $@ -lm
build/search: dev/search.c $(SOURCE)
	$(CC) $(FLAGS) dev/search.c -o $@ -lm
build/search-debug: dev/search.c $(SOURCE)
	$(CC) $(DEBUG) dev/search.c -o $@ -lm
build/mlp: dev/mlp.c dev/search.c $(SOURCE)
	$(CC) $(FLAGS) dev/mlp.c -o $@ -lm
build/golden: dev/golden.c $(SOURCE)
	$(CC) $(FLAGS) dev/golden.c -o $@ -lm
build/bench: dev/bench.c $(SOURCE)
	$(CC) $(FLAGS) dev/bench.c -o $@ -lm -ldl
build/test-float build/test-double: test_lipgpt.c dev/test_mlp.c dev/mlp.c dev/search.c dev/golden.c $(SOURCE)
	$(CC) $(FLAGS) $(if $(findstring double,$@),-DLIPGPT_DOUBLE) test_lipgpt.c -o $@ -lm
build/test-float-debug build/test-double-debug: test_lipgpt.c dev/test_mlp.c dev/mlp.c dev/search.c dev/golden.c $(SOURCE)
	$(CC) $(DEBUG) $(if $(findstring double,$@),-DLIPGPT_DOUBLE) test_lipgpt.c -o $@ -lm

# With a text of one's own nothing is fetched.
OWN := $(or $(TEXT),$(findstring --data,$(TRAIN)))
train: lipgpt
	@text='$(subst ','\'',$(TEXT))'; $(if $(OWN),,text=$$($(PYTHON) prepare_data.py --fallback) &&) \
	./lipgpt train $${text:+--data "$$text"} $(TRAIN)

double: build/lipgpt-double
debug: build/lipgpt-debug
search: build/search
	@echo 'build/search --model CHECKPOINT --data FILE [--search-steps N] [--pair FILE] [--windows N] [--seed N]'
golden: build/golden
	build/golden
plot: lipgpt
	$(PYTHON) dev/plot.py $(FILES)

mlp: build/mlp
	@data=$$($(PYTHON) prepare_data.py --cifar10) && build/mlp train --data "$$data" --out out/mlp.safetensors $(MLP) && \
	build/mlp certify --data "$$data"

# Float, double and command line; the same once more under the sanitizers; and scripts: all at once,
# the longest first, each with a report of its own in build/.
RUNS := test-float-debug test-float test-double-debug test-double
SCRIPTS := prepare_data plot tradeoff
REPORTS := $(RUNS:%=build/%.txt) $(SCRIPTS:%=build/%.txt)
build/test-float-debug.txt: PROGRAMS := build/lipgpt-debug build/search-debug
build/test-float-debug.txt: build/lipgpt-debug build/search-debug build/mlp
build/test-float.txt: PROGRAMS := ./lipgpt build/search
build/test-float.txt: lipgpt build/search build/mlp
# report COMMAND: what it says, and a failure if it ended by one and did not count any.
report = @$(1) > $@ 2>&1 || tail -n 1 $@ | grep -q ', [1-9][0-9]* failed$$' || \
         echo '$*: 0 passed, 1 failed' >> $@; printf '== %s\n%s\n' '$*' "$$(cat $@)"
$(RUNS:%=build/%.txt): build/%.txt: build/%
	$(call report,build/$* $(PROGRAMS))
$(SCRIPTS:%=build/%.txt): build/%.txt: lipgpt
	$(call report,if $(PYTHON) -c '' 2> /dev/null; then $(PYTHON) dev/test_$*.py; \
	              else echo 'not tested: no $(PYTHON)'; fi)
test: $(REPORTS)
	@test -n "$(SANITIZE)" || echo "no sanitizers: $(CC) cannot link them; the second pass runs without"
	@cat $^ | awk '/^[a-z_-]+: [0-9]+ passed, [0-9]+ failed$$/ { passed += $$2; failed += $$4 } \
	     /^(float|double): [0-9]+ passed/ { runs++ } \
	     END { failed += runs != 4; printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }'

# The ports take the same steps in the same minutes, if their packages are there.
bench: build/bench
	build/bench $(ARGS)
	@for port in "torch" "torch --compile" "jax"; do set -- $$port; \
	    if ! $(PYTHON) -c "import $$1, safetensors" 2> /dev/null; then \
	        echo "no $$port to compare with: pip install $$1 numpy safetensors"; \
	    else $(PYTHON) dev/port/lipgpt_$$1.py bench --preset paper $$2; fi; done

# Fuzzing wants clang, whatever CC is; the seeds are written by the test program.
SECONDS ?= 60
TARGETS := checkpoint data arguments
FUZZER = -std=c11 -O1 -g -Wall -Wextra -Wno-unknown-pragmas -fsanitize=fuzzer,address,undefined
build/fuzz: dev/fuzz.c lipgpt.c Makefile
	clang $(FUZZER) dev/fuzz.c -o $@ -lm
fuzz: build/fuzz build/test-float
	@mkdir -p $(foreach t,$(TARGETS),build/seeds/$t build/corpus/$t)
	@build/test-float --seeds build/seeds
	@for t in $(TARGETS); do echo "== fuzz $$t, $(SECONDS) s"; \
	    TARGET=$$t build/fuzz -max_total_time=$(SECONDS) -timeout=20 -detect_leaks=0 -close_fd_mask=3 \
	        -artifact_prefix=build/ build/corpus/$$t build/seeds/$$t > build/fuzz-$$t.txt 2>&1 || \
	        { tail -n 30 build/fuzz-$$t.txt; exit 1; }; \
	    grep '^Done' build/fuzz-$$t.txt; done

clean:
	rm -rf build lipgpt

.PHONY: train double debug search mlp golden plot test bench fuzz clean $(REPORTS)
.DEFAULT_GOAL := lipgpt
