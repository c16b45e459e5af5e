# The menu: `make help`. Every target sets up what it needs by itself: a virtual environment in .venv with
# the pinned requirements, and the extension, built in place. A second call finds them and goes on at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ifeq ($(origin CC),default)
CC := gcc
endif
AR ?= ar

VENV := .venv
BIN := $(VENV)/bin
# Settings of some machines that make OpenBLAS slow or different: what is measured must not depend on them.
unexport OPENBLAS_CORETYPE OPENBLAS_L2_SIZE

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gspattern/__init__.py)
SONAME := libgspattern.so.0

C_FILES := $(shell find csrc -name '*.[ch]' -o -name '*.inc' -o -name '*.mk' | LC_ALL=C sort)
FORMATTED := $(filter %.c %.h,$(C_FILES)) $(wildcard tests/*/*.[ch] examples/*/*.[ch])

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# ------------------------------------------------------------------- set-up

READY := $(VENV)/ready
EXTENSION := build/extension
EXTRAS := torch,cli,plot,bench,examples,dev

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "gspattern needs Python 3.10 or newer: make PYTHON=/path/to/python3 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel numpy
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

$(EXTENSION): $(READY) setup.py $(C_FILES)
	$(BIN)/python setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

.PHONY: setup
setup: $(EXTENSION)  ## Set up only: .venv, requirements, extension

# --------------------------------------------------------------------- uses

.PHONY: demo
demo: $(EXTENSION)  ## Train, prune, compress and run a network on handwritten digits (ARGS=--quick)
	$(BIN)/python examples/digits/demo.py $(ARGS)

# The libraries to compare with are large, so that only this target installs them.
PEERS := $(VENV)/peers
$(PEERS): $(READY)
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[peers]'
	@touch $@

.PHONY: bench bench-masks
bench: $(EXTENSION) $(PEERS)  ## Time products against dense and sparse libraries (ARGS=--help)
	$(BIN)/python -m gspattern bench $(ARGS)

bench-masks: $(EXTENSION)  ## Time the choice of masks against torch.topk (ARGS=--help)
	$(BIN)/python benchmarks/bench_masks.py $(ARGS)

# -------------------------------------------------------------------- tests

.PHONY: test test-all pytest
test: lint ctest ctest-amx tsan pytest asan  ## Run every test: lint first, the C code under sanitizers last

RAY := $(VENV)/ray
$(RAY): $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[ray]'
	@touch $@

# Other random examples in every run, and more of them.
test-all: arm-tools lint ctest ctest-amx tsan arm $(RAY)  ## The same with more random examples, with fuzzing, and for Arm
	GSPATTERN_HYPOTHESIS=random $(MAKE) pytest
	$(MAKE) asan fuzz

PYTEST_ARGS ?=
pytest: $(EXTENSION)
	$(BIN)/pytest -q $(PYTEST_ARGS)

# ---------------------------------------------------------------- C, no Python

include csrc/kernels/flags.mk
isa_of = $(strip $(foreach isa,$(ISAS),$(if $(filter %_$(isa).c,$(1)),$(isa))))
ISAS := $(patsubst ISA_%,%,$(filter ISA_%,$(.VARIABLES)))
TAKEN := $(foreach isa,$(ISAS),$(shell \
    $(CC) $(ISA_$(isa)) -Werror -fsyntax-only -x c /dev/null 2>/dev/null && echo $(isa)))
CORE := $(foreach file,$(filter-out csrc/python/%,$(filter %.c,$(C_FILES))),$(if \
    $(filter-out $(TAKEN),$(call isa_of,$(file))),,$(file)))
HAVE := $(foreach isa,$(TAKEN),-DGSP_HAVE_$(shell echo $(isa) | tr a-z A-Z)=1)

CORE_FLAGS := -std=c11 -ffp-contract=off -fvisibility=hidden -pthread $(HAVE)
STRICT := -Wall -Wextra -Werror
SANITIZE_THREADS := -fsanitize=thread -fno-omit-frame-pointer
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LIBS := -pthread -lm

# For another processor: CC compiles for it, RUN runs its programs, and BUILD keeps them apart.
BUILD := build
RUN :=

# $(1): folder of the objects under BUILD, $(2): flags.
define compile
$(BUILD)/$(1)/%.o: %.c Makefile csrc/kernels/flags.mk
	@mkdir -p $$(@D)
	$$(CC) $$(CORE_FLAGS) $(2) $$(ISA_$$(call isa_of,$$<)) $$(CFLAGS) -MMD -MP -c $$< -o $$@
endef
$(eval $(call compile,lib/objects,-O3 -fPIC))
$(eval $(call compile,ctest,-O2 -g $(STRICT) -Icsrc))
$(eval $(call compile,ctest-asan,-O1 -g $(STRICT) $(SANITIZE) -Icsrc))
$(eval $(call compile,ctest-amx,-O1 -g $(STRICT) $(SANITIZE) -Icsrc))
$(BUILD)/ctest-amx/csrc/kernels/%_amx.o: CFLAGS += -include tests/c/amx_model.h
$(eval $(call compile,ctest-tsan,-O1 -g $(STRICT) $(SANITIZE_THREADS) -Icsrc))
-include $(shell find $(addprefix $(BUILD)/,lib ctest ctest-asan ctest-amx ctest-tsan) -name '*.d' 2>/dev/null)

.PHONY: lib
LIB := $(BUILD)/lib
lib: $(LIB)/libgspattern.a $(LIB)/$(SONAME) $(LIB)/gspattern.pc  ## Build the C library, without Python

$(LIB)/libgspattern.a: $(CORE:%.c=$(LIB)/objects/%.o)
	@rm -f $@
	$(AR) rcs $@ $^

$(LIB)/$(SONAME): $(CORE:%.c=$(LIB)/objects/%.o)
	$(CC) -shared -Wl,-soname,$(SONAME) -Wl,--no-undefined $(LDFLAGS) $^ $(LIBS) -o $@
	@ln -sf $(SONAME) $(LIB)/libgspattern.so

# The folder can be copied as it is: the paths in the file are relative to the file.
$(LIB)/gspattern.pc: csrc/gspattern.h gspattern/__init__.py Makefile
	@mkdir -p $(LIB)/include
	@cp csrc/gspattern.h $(LIB)/include/
	@printf '%s\n' 'prefix=$${pcfiledir}' 'Name: gspattern' \
	    'Description: load-balanced gather-scatter patterns for sparse neural networks' \
	    'Version: $(VERSION)' 'Cflags: -I$${prefix}/include' 'Libs: -L$${prefix} -lgspattern' \
	    'Libs.private: $(LIBS)' > $@

C_TESTS := $(patsubst %.c,%,$(wildcard tests/c/test_*.c))
FUZZERS := $(patsubst %.c,%,$(wildcard tests/fuzz/fuzz_*.c))
# $(1): folder under BUILD, $(2): flags, $(3): the core.
define link
$(C_TESTS:%=$(BUILD)/$(1)/%): %: %.o $(3:%.c=$(BUILD)/$(1)/%.o)
	$$(CC) $(2) $$^ $$(LIBS) -o $$@
$(FUZZERS:%=$(BUILD)/$(1)/%): %: %.o $(BUILD)/$(1)/tests/fuzz/replay.o $(3:%.c=$(BUILD)/$(1)/%.o)
	$$(CC) $(2) $$^ $$(LIBS) -o $$@
endef
$(eval $(call link,ctest,,$(CORE)))
$(eval $(call link,ctest-asan,$(SANITIZE),$(CORE)))
$(eval $(call link,ctest-tsan,$(SANITIZE_THREADS),$(CORE)))
$(eval $(call link,ctest-amx,$(SANITIZE),$(filter-out %/gsp_permission.c,$(CORE)) tests/c/amx_model.c))
.SECONDARY:

.PHONY: ctest ctest-fuzz ctest-asan
ctest: $(C_TESTS:%=$(BUILD)/ctest/%)  ## Run the C tests
	@for test in $^; do $(RUN) $$test; done

ctest-fuzz: $(FUZZERS:%=$(BUILD)/ctest/%)
	@for fuzz in $^; do $(RUN) $$fuzz --seconds $(FUZZ_SECONDS); done

# Leaks are found here: under Python they cannot be told from what the interpreter keeps.
FUZZ_SECONDS ?= 3
ctest-asan: $(C_TESTS:%=$(BUILD)/ctest-asan/%) $(FUZZERS:%=$(BUILD)/ctest-asan/%)
	@for test in $(C_TESTS:%=$(BUILD)/ctest-asan/%); do ASAN_OPTIONS=detect_leaks=1 $$test; done
	@for fuzz in $(FUZZERS:%=$(BUILD)/ctest-asan/%); do $$fuzz --seconds $(FUZZ_SECONDS); done

# The kernels of AMX on a CPU without: with tiles in plain C, under sanitizers.
AMX_TESTS := $(BUILD)/ctest-amx/tests/c/test_kernels $(BUILD)/ctest-amx/tests/c/test_guard
AMX_FUZZER := $(BUILD)/ctest-amx/tests/fuzz/fuzz_multiply
.PHONY: ctest-amx
ctest-amx: $(if $(filter amx,$(TAKEN)),$(AMX_TESTS) $(AMX_FUZZER))
	@for test in $(filter $(AMX_TESTS),$^); do $$test amx; done
	@for fuzz in $(filter $(AMX_FUZZER),$^); do $$fuzz --seconds $(FUZZ_SECONDS); done

# ---------------------------------------------------------------------- Arm

# On an x86-64 machine, by emulation: results are right or wrong, times mean nothing.
ARM_CC := aarch64-linux-gnu-gcc
ARM_RUN := qemu-aarch64 -L /usr/aarch64-linux-gnu
ARM_MAKE := CC=$(ARM_CC) BUILD=build/arm64 'RUN=$(ARM_RUN)' CFLAGS=-DGSP_TEST_EMULATED
.PHONY: arm arm-tools
arm: arm-tools $(EXTENSION)  ## Run the C tests and examples/c for 64-bit Arm, by emulation
	$(MAKE) $(ARM_MAKE) ctest ctest-fuzz
	GSPATTERN_CROSS="$(ARM_MAKE)" $(BIN)/pytest -q -k 'products or folder or reads or broken' \
	    tests/test_c_example.py

arm-tools:
	@for tool in $(ARM_CC) $(firstword $(ARM_RUN)); do command -v $$tool > /dev/null || { \
	    echo "$$tool is missing. On Debian: apt-get install" \
	        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"; exit 1; }; done

# --------------------------------------------------------------- sanitizers

ASAN := build/asan
ASAN_TESTS := $(wildcard $(patsubst %,tests/test_%.py,core masks matrices files plans engine gather_bench))
$(ASAN)/built: $(EXTENSION) $(wildcard gspattern/*.py gspattern/*/*.py)
	@rm -rf $(ASAN)/lib/gspattern/*.py
	CC='$(CC)' GSPATTERN_WERROR=1 GSPATTERN_SANITIZE=1 $(BIN)/python setup.py -q \
	    build --build-base $(ASAN) --build-lib $(ASAN)/lib
	@touch $@

.PHONY: asan
asan: ctest-asan $(ASAN)/built  ## Run the tests of the C code under AddressSanitizer and UBSan
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=$(ASAN)/lib \
	    GSPATTERN_HYPOTHESIS=sanitized \
	    $(BIN)/pytest -q -p no:cacheprovider -m 'not slow' $(PYTEST_ARGS) $(ASAN_TESTS)

# What threads share: the pool, and products on it.
TSAN_TESTS := $(patsubst %,$(BUILD)/ctest-tsan/tests/c/test_%,context pool threads)
.PHONY: tsan
tsan: $(TSAN_TESTS)  ## Run the C tests of threads under ThreadSanitizer
	@for test in $^; do $$test; done

# With clang by libFuzzer, and plain C only: its coverage is what guides the search.
.PHONY: fuzz
fuzz: FUZZ_SECONDS = 60
fuzz: $(FUZZERS:%=$(BUILD)/ctest-asan/%)  ## Fuzz what reads untrusted arrays (FUZZ_SECONDS=60)
	@for file in $(FUZZERS); do \
	    if command -v clang > /dev/null; then \
	        out=build/fuzz/$$(basename $$file); mkdir -p $$out.corpus; \
	        clang $(filter-out $(HAVE),$(CORE_FLAGS)) -O1 -g -Icsrc -fsanitize=fuzzer,address,undefined \
	            $$file.c $(filter-out $(foreach isa,$(ISAS),%_$(isa).c),$(CORE)) $(LIBS) -o $$out; \
	        $$out -max_total_time=$(FUZZ_SECONDS) $$out.corpus; \
	    else \
	        $(BUILD)/ctest-asan/$$file --seconds $(FUZZ_SECONDS); \
	    fi; \
	done

# --------------------------------------------------------------------- lint

.PHONY: lint format
lint: $(READY)  ## Check style, types and the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	@echo "house rules"
	@! grep -rnE '<Python\.h>|numpy/' csrc --include='*.[ch]' --exclude-dir=python
	@! grep -rnE '\<(printf|fprintf|puts|perror|abort|exit) *\(' csrc
	@! grep -nE '.{121}' $(FORMATTED)
	@! grep -rnE 'march=[n]ative|ffast[-]math' Makefile setup.py csrc examples

format: $(READY)  ## Format Python and C
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

.PHONY: clean
clean:  ## Remove what was built (not .venv)
	rm -rf build dist *.egg-info gspattern/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(if $(wildcard examples/c/Makefile),$(MAKE) -s -C examples/c clean)
