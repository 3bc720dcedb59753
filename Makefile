# make          build ./lipgpt          make train   fetch Shakespeare, train, certify, sample
# make test     all tests               make bench   speed, as shares of this machine's peak
# make debug    build/lipgpt-debug: sanitizers, and the caps asserted after every step
# make clean    remove what was built   Options: CC=clang, NO_OMP=1, TRAIN='--steps 500 ...'

comma := ,
WARNINGS := -Wall -Wextra -Wpedantic
SOURCE := lipgpt.c Makefile

# try FLAGS,PROGRAM: the flags, if a program compiles *and links* with them.
try = $(shell mkdir -p build && printf '$(2)' > build/probe.c && \
        $(CC) $(1) build/probe.c -o build/probe -lm > /dev/null 2>&1 && printf '%s' '$(1)')
PLAIN := int main(void) { return 0; }
PARALLEL := \043include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }
LIBOMP := $(shell brew --prefix libomp 2> /dev/null)

ifneq ($(MAKECMDGOALS),clean)
ARCH ?= $(or $(call try,-march=native,$(PLAIN)),$(call try,-mcpu=native,$(PLAIN)))
ifndef NO_OMP
OMP := $(call try,-fopenmp,$(PARALLEL))
ifeq ($(OMP)$(if $(LIBOMP),,none),)
OMP := $(call try,-Xpreprocessor -fopenmp -I$(LIBOMP)/include -L$(LIBOMP)/lib -lomp,$(PARALLEL))
endif
endif
SIMD := $(if $(OMP),,$(call try,-fopenmp-simd,$(PLAIN)) -Wno-unknown-pragmas)
SANITIZE := $(call try,-fsanitize=address$(comma)undefined -fno-sanitize-recover=all,$(PLAIN))
$(info $(CC): $(or $(ARCH),no -march=native), $(if $(OMP),OpenMP,$(if $(NO_OMP),one thread as asked,\
  ONE THREAD ONLY: no OpenMP found; install libgomp (gcc)$(comma) libomp-dev (clang) or brew install libomp)))
endif

CFLAGS ?= -O3
PYTHON ?= python3
TRAIN ?= --preset tight --lipschitz 100 --batch 16 --eval-every 200
FLAGS = -std=c11 $(CFLAGS) $(ARCH) -ffp-contract=fast $(WARNINGS) $(OMP) $(SIMD)
DEBUG = -std=c11 -O1 -g $(ARCH) $(WARNINGS) -Wno-pass-failed $(OMP) $(SIMD) $(SANITIZE) -DCHECK_EVERY_STEP

lipgpt: $(SOURCE)
	$(CC) $(FLAGS) lipgpt.c -o $@ -lm

train: lipgpt
	@text=$$($(PYTHON) prepare_data.py --fallback) && ./lipgpt train --data "$$text" $(TRAIN)

debug: build/lipgpt-debug
build/lipgpt-debug: $(SOURCE)
	@mkdir -p build
	$(CC) $(DEBUG) lipgpt.c -o $@ -lm

build/test-float build/test-double: test_lipgpt.c $(SOURCE)
	@mkdir -p build
	$(CC) $(FLAGS) $(if $(findstring double,$@),-DTEST_DOUBLE) test_lipgpt.c -o $@ -lm
build/test-float-debug build/test-double-debug: test_lipgpt.c $(SOURCE)
	@mkdir -p build
	$(CC) $(DEBUG) $(if $(findstring double,$@),-DTEST_DOUBLE) test_lipgpt.c -o $@ -lm

# Float, double and command line; then the same once more under the sanitizers.
test: lipgpt build/test-float build/test-double build/lipgpt-debug build/test-float-debug \
      build/test-double-debug
	@test -n "$(SANITIZE)" || echo "no sanitizers: $(CC) cannot link them; the second pass runs without"
	@rm -f build/results; status=0; \
	for run in "test-float ./lipgpt" test-double "test-float-debug build/lipgpt-debug" \
	           test-double-debug; do \
	    echo "== $$run"; build/$$run > build/output 2>&1 || status=1; \
	    cat build/output; tail -n 1 build/output >> build/results; done; \
	awk '/passed, .* failed/ { passed += $$2; failed += $$4; runs++ } \
	     END { printf "%d passed, %d failed\n", passed, failed + (runs != 4) }' build/results; \
	exit $$status

build/bench: dev/bench.c $(SOURCE)
	@mkdir -p build
	$(CC) $(FLAGS) dev/bench.c -o $@ -lm -ldl
# The peers run in the same minutes if their packages are there; otherwise they say what to install.
bench: build/bench
	build/bench $(ARGS)
	-@$(PYTHON) dev/peers/peer_torch.py
	-@$(PYTHON) dev/peers/peer_jax.py

clean:
	rm -rf build lipgpt

.PHONY: train debug test bench clean
.DEFAULT_GOAL := lipgpt
