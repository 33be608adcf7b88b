# Granary's one Makefile. `make help` lists the targets; V=1 shows the commands; O=DIR builds elsewhere.
# Variants live side by side under build/: release asan tsan fuzz cov.  Never put a comment behind a value.
O ?= build
VARIANT ?= release
B := $(O)/$(VARIANT)
PREFIX ?= /usr/local
UNITDIR ?= $(PREFIX)/lib/systemd/system
JOBS ?= 2
AR ?= ar
PKG_CONFIG ?= pkg-config

# ---- modules: what each folder may include and link (scripts/check-layering reads this) -----------------------------
MODULES := common vmfs snapshot iscsi-target hv backup-proxy
deps_common :=
deps_vmfs := common
deps_snapshot := vmfs common
deps_iscsi-target := common
deps_hv := common
deps_backup-proxy := common
# ---- external libraries (pkg-config names) of each module; a program gets those of its modules ----------------------
pkgs_common := jansson liburing gnutls libseccomp libisal libiscsi
pkgs_vmfs := nettle
pkgs_snapshot :=
pkgs_iscsi-target := gnutls libseccomp
pkgs_hv :=
pkgs_backup-proxy := libnbd sqlite3 libzstd libisal libseccomp zlib nettle
# ---- programs: FOLDER/main_NAME.c becomes build/VARIANT/bin/NAME, with its parts main_NAME_PART.c.  mods_NAME: the modules it is
# composed of (default: its folder and that folder's deps), pkgs_NAME: libraries beyond those of its modules. -----------
mods_granary := $(MODULES)
mods_granary-storaged := iscsi-target snapshot vmfs backup-proxy common
mods_granary-hostd := hv common
mods_granary-vmx := hv common
mods_granary-proxy := backup-proxy snapshot vmfs common
mods_granary-mount := backup-proxy snapshot vmfs common
pkgs_granary-mount := fuse3
mods_granary-fsread := backup-proxy common
pkgs_granary-fsread := tsk libseccomp
# ---- tests that need more than their module: mods_<test name>, pkgs_<test name> as for programs -----------------------
mods_backup-proxy_source_nbd := backup-proxy iscsi-target common
mods_common_bdev_iscsi := iscsi-target common
mods_vmfs_check := snapshot vmfs common
mods_vmfs_fields := snapshot vmfs common
mods_vmfs_mutated := snapshot vmfs common
mods_vmfs_data_crc := snapshot vmfs common
mods_vmfs_scrub := snapshot vmfs common
mods_vmfs_repair := snapshot vmfs common
mods_vmfs_faults := snapshot vmfs common
mods_vmfs_device_loss := snapshot vmfs common
mods_vmfs_loss_hosts := snapshot vmfs common
mods_vmfs_rescue := snapshot vmfs common
mods_vmfs_processes := snapshot vmfs common
mods_vmfs_crash := snapshot vmfs common
mods_vmfs_cipher := vmfs common
mods_vmfs_encrypted := snapshot vmfs common
mods_vmfs_crash_hosts := snapshot vmfs common
mods_mover_demo := iscsi-target common
mods_order_model := common
mods_source_cat := backup-proxy common
mods_lun_work := common
pkgs_lun_work := cmocka
mods_fs_model := common
pkgs_fs_model := cmocka
mods_fs_history := common
pkgs_fs_history := cmocka
mods_rpc_call := common
mods_fault_load := common
mods_iscsi_proxy := common
mods_guest_file := backup-proxy common

# ---- compilation ----------------------------------------------------------------------------------------------------
IS_CLANG := $(shell $(CC) --version 2>/dev/null | grep -ci clang)
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wformat=2 -Wwrite-strings \
        -Wcast-qual -Wpointer-arith -Wno-unused-parameter -Wno-missing-field-initializers
ifeq ($(IS_CLANG),0)
WARN += -Wimplicit-fallthrough=5 -Wno-clobbered -Wno-format-truncation
else
WARN += -Wimplicit-fallthrough -Wno-gnu-statement-expression
endif
flags_release := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
flags_asan := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
flags_tsan := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
flags_fuzz := -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
flags_cov := -O0 -g --coverage
flags_clang := -O1
ALL_PKGS := $(sort $(foreach m,$(MODULES),$(pkgs_$(m))) fuse3 tsk)
PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(ALL_PKGS) 2>/dev/null)
ALL_CFLAGS = -std=gnu17 -D_GNU_SOURCE -I. $(PKG_CFLAGS) -pthread -fno-strict-aliasing $(WARN) $(flags_$(VARIANT)) $(CFLAGS)
ALL_LDFLAGS = -pthread -Wl,--as-needed $(flags_$(VARIANT)) $(LDFLAGS)
$(foreach p,$(ALL_PKGS) cmocka,$(eval link_$(p) := $(shell $(PKG_CONFIG) --libs $(p) 2>/dev/null || echo -l$(p:lib%=%))))
# $(call archives,MODULES) and $(call libs,MODULES,EXTRA PACKAGES) of one link
archives = $(foreach m,$(1),$(B)/lib$(m).a)
libs = $(foreach p,$(sort $(foreach m,$(1),$(pkgs_$(m))) $(2)),$(link_$(p))) -lm
with_deps = $(1) $(deps_$(1))
# $(call mods_for,NAME,MODULE): composition of a program or test
mods_for = $(or $(mods_$(1)),$(call with_deps,$(2)))
# $(call main_objs,NAME): of a program
main_objs = $(patsubst %.c,$(B)/%.o,$(foreach m,$(MODULES),$(wildcard $(m)/main_$(1).c $(m)/main_$(1)_*.c)))

ifeq ($(V),)
Q := @
ifeq ($(findstring s,$(firstword -$(MAKEFLAGS))),)
say = @printf '  %-8s %s\n' '$(1)' '$(2)';
endif
endif

.PHONY: all
all:

testlib := $(B)/tests/libtest.a
testlib_objs := $(patsubst %.c,$(B)/%.o,$(wildcard tests/lib/*.c tests/model/*.c))
$(testlib): $(testlib_objs)
	$(call say,AR,$@)
	$(Q)mkdir -p $(@D); rm -f $@; $(AR) rcs $@ $(testlib_objs)

# $(call LINK,OUTPUT,OBJECTS,MODULES,EXTRA PACKAGES,EXTRA ARCHIVES AND FLAGS)
define LINK
$(1): $(2) $(filter %.a,$(5)) $(call archives,$(3))
	$$(call say,LINK,$(1))
	$$(Q)mkdir -p $$(@D); $$(CC) $$(ALL_LDFLAGS) -o $$@ $(2) -Wl,--start-group $(filter %.a,$(5)) $(call archives,$(3)) -Wl,--end-group $(call libs,$(3),$(4)) $(filter-out %.a,$(5))
endef

define PROGRAM
progs += $(B)/bin/$(2)
$(call LINK,$(B)/bin/$(2),$(call main_objs,$(2)),$(call mods_for,$(2),$(1)),$(pkgs_$(2)))
endef

define UNIT
units += $(B)/tests/unit/$(2)
$(call LINK,$(B)/tests/unit/$(2),$(B)/tests/unit/$(2).o,$(call mods_for,$(2),$(1)),cmocka $(pkgs_$(2)),$(testlib))
endef

# A fuzz target has libFuzzer's entry point; in the other variants it is linked with tests/replay.c, which runs the corpus.
define FUZZ
fuzzers += $(B)/tests/fuzz/$(2)
$(call LINK,$(B)/tests/fuzz/$(2),$(B)/tests/fuzz/$(2).o $(if $(filter fuzz,$(VARIANT)),,$(B)/tests/replay.o),$(call mods_for,$(2),$(1)),$(pkgs_$(2)),$(testlib) $(if $(filter fuzz,$(VARIANT)),-fsanitize=fuzzer))
endef

define MODULE
objs_$(1) := $(patsubst %.c,$(B)/%.o,$(filter-out $(1)/main_%,$(wildcard $(1)/*.c)))
$(B)/lib$(1).a: $$(objs_$(1))
	$$(call say,AR,$$@)
	$$(Q)mkdir -p $$(@D); rm -f $$@; $$(AR) rcs $$@ $$(objs_$(1))
$(foreach p,$(patsubst $(1)/main_%.c,%,$(wildcard $(1)/main_*.c)),$(if $(findstring _,$(p)),,$(eval $(call PROGRAM,$(1),$(p)))))
$(foreach t,$(patsubst tests/unit/%.c,%,$(wildcard tests/unit/$(1)_*.c)),$(eval $(call UNIT,$(1),$(t))))
$(foreach t,$(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/$(1)_*.c)),$(eval $(call FUZZ,$(1),$(t))))
endef
$(foreach m,$(MODULES),$(eval $(call MODULE,$(m))))

# tests/tools/NAME.c and tests/bench/NAME.c: helper programs of scripts; composed of all modules unless mods_NAME says less
define TOOL
tools += $(B)/$(1)
$(call LINK,$(B)/$(1),$(B)/$(1).o,$(or $(mods_$(notdir $(1))),$(MODULES)),$(pkgs_$(notdir $(1))),$(testlib))
endef
$(foreach t,$(patsubst %.c,%,$(wildcard tests/tools/*.c tests/bench/*.c)),$(eval $(call TOOL,$(t))))

# programs of a release from before the last feature of the format: one object is another one (tests/older)
older := granary granary-storaged
$(foreach p,$(older),$(eval $(call LINK,$(B)/older/bin/$(p),$(call main_objs,$(p)) $(B)/tests/older/feature_known.o,$(mods_$(p)),)))
$(B)/older/bin/granary-hostd: | $(B)/bin/granary-hostd
	$(Q)mkdir -p $(@D); ln -sf ../../bin/granary-hostd $@
tools += $(older:%=$(B)/older/bin/%) $(B)/older/bin/granary-hostd

# a test of the check: with objects in which it breaks the rules of vmfs/broken.h, one at a time
broken := disk_write record reap
$(B)/broken/%.o: vmfs/%.c
	$(call say,CC,$@)
	$(Q)mkdir -p $(@D); $(CC) $(ALL_CFLAGS) -DVMFS_BROKEN_BUILD -MMD -MP -c -o $@ $<
units += $(B)/tests/unit/snapshot_broken
$(eval $(call LINK,$(B)/tests/unit/snapshot_broken,$(B)/tests/broken/snapshot_broken.o $(broken:%=$(B)/broken/%.o),snapshot vmfs common,cmocka,$(testlib)))

# what a program is started with (LD_PRELOAD) to see another wall clock
tools += $(B)/tests/matrix/clock.so
$(B)/tests/matrix/clock.so: tests/matrix/clock.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D); $(CC) -std=gnu17 -D_GNU_SOURCE $(WARN) -O2 -fPIC -shared -o $@ $<

# and to be stopped in the middle of what it does with another host
tools += $(B)/tests/matrix/pause.so
$(B)/tests/matrix/pause.so: tests/matrix/pause.c
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D); $(CC) -std=gnu17 -D_GNU_SOURCE $(WARN) -O2 -fPIC -shared -o $@ $<

# and to be killed at a step of a take-over
tools += $(B)/tests/matrix/steps.so
$(B)/tests/matrix/steps.so: tests/matrix/steps.c tests/lib/take_steps.c tests/lib/take_steps.h vmfs/format.h
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D); $(CC) -std=gnu17 -D_GNU_SOURCE -I. $(WARN) -O2 -fPIC -shared -o $@ tests/matrix/steps.c tests/lib/take_steps.c

$(B)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D); $(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

.PHONY: progs units tools fuzzers
all: progs
progs: $(progs) $(call archives,$(MODULES))
units: $(units)
tools: $(tools)
fuzzers: $(fuzzers)

# ---- checks ---------------------------------------------------------------------------------------------------------
headers := $(filter-out %.tbl.h,$(wildcard $(MODULES:=/*.h) tests/lib/*.h tests/model/*.h))
$(B)/%.h.ok: %.h
	$(call say,HEADER,$<)
	$(Q)mkdir -p $(@D); $(CC) $(filter-out -O%,$(ALL_CFLAGS)) -U_FORTIFY_SOURCE -Wno-unused -MMD -MP -MT $@ -MF $@.d -fsyntax-only -x c -include $< /dev/null && touch $@

.PHONY: model check check-unit asan tsan cov clang lint lint-light fuzz fuzz-run bench soak
check: all lint-light check-unit
# the unit tests and the corpus of every fuzz target, TAP lines and a count at the end; where a sanitizer watches, the target has 3 loops
check-unit: $(units) $(fuzzers) $(if $(filter release,$(VARIANT)),$(tools)) progs
	$(Q)$(if $(filter asan tsan,$(VARIANT)),GRANARY_LOOPS=3 )tests/run --build $(B) --jobs $(JOBS) $(if $(SUMMARY),--summary $(SUMMARY)) units
lint-light: $(headers:%=$(B)/%.ok)
	$(Q)$(MAKE) --no-print-directory -s print-deps | scripts/check-layering
lint: lint-light
	$(Q)scripts/lint
asan:
	$(Q)$(MAKE) --no-print-directory VARIANT=asan check-unit
tsan:
	$(Q)$(MAKE) --no-print-directory VARIANT=tsan check-unit
# the other compiler's warnings
clang:
	$(Q)$(MAKE) --no-print-directory VARIANT=clang CC="$(if $(filter ccache,$(CC)),ccache )clang" all units fuzzers tools
cov:
	$(Q)$(MAKE) --no-print-directory VARIANT=cov check-unit
	$(Q)cd $(O)/cov && gcov -n $$(find . -name '*.gcno' -not -path './tests/*') 2>/dev/null | grep -A1 "^File '[a-z]" | grep -v '^--'
# RUNS inputs for each fuzz target (libFuzzer, clang); the libraries are instrumented too, else the fuzzer is blind
RUNS ?= 20000
fuzz:
	$(Q)$(MAKE) --no-print-directory VARIANT=fuzz CC="$(if $(filter ccache,$(CC)),ccache )clang" fuzz-run
fuzz-run: $(fuzzers)
	$(Q)for f in $(fuzzers); do n=$${f##*/}; mkdir -p $(B)/corpus/$$n $(B)/crashes tests/fuzz/corpus/$$n; echo "  FUZZ     $$n"; \
	  $$f -runs=$(RUNS) -max_len=65536 -timeout=10 -rss_limit_mb=1024 -artifact_prefix=$(B)/crashes/$$n- $(B)/corpus/$$n tests/fuzz/corpus/$$n \
	    > $(B)/crashes/$$n.log 2>&1 || { tail -n 60 $(B)/crashes/$$n.log; exit 1; }; done
bench: all tools
	$(Q)for b in tests/bench/*.sh; do [ -e "$$b" ] || continue; echo "== $$b"; B=$(B) "$$b" || exit 1; done
# the unit tests again, but long: GRANARY_SOAK seconds (default 600) for each randomised one, and tests/soak/*.sh
soak: all units fuzzers tools
	$(Q)GRANARY_SOAK=$(or $(GRANARY_SOAK),600) tests/run --build $(B) --jobs $(JOBS) --timeout 7200 units $(wildcard tests/soak/*.sh)

# the order of taking disks over: explored, missed step by step, and the code held to it; the largest site there is (docs/vmfs.md)
TRIALS ?= 1000
model: $(B)/tests/tools/order_model $(B)/tests/unit/vmfs_cluster $(B)/tests/unit/vmfs_matrix
	$(Q)$(B)/tests/tools/order_model $(if $(V),,--quiet)
	$(Q)GRANARY_TRIALS=$(TRIALS) GRANARY_HOSTS=256 GRANARY_DISKS=4096 $(B)/tests/unit/vmfs_cluster
	$(Q)GRANARY_TRIALS=$(TRIALS) $(B)/tests/unit/vmfs_matrix

# real processes, killed, stopped, starved and cut off: TRIALS of them (docs/developing.md)
.PHONY: matrix
matrix: all tools
	$(Q)GRANARY_BUILD=$(abspath $(B)) tests/matrix/run --trials $(if $(filter command environment,$(origin TRIALS)),$(TRIALS),0) $(if $(SEED),--seed $(SEED)) $(if $(FROM),--from $(FROM)) $(if $(KEEP),--keep $(KEEP)) --jobs $(JOBS)

# ---- install --------------------------------------------------------------------------------------------------------
.PHONY: install clean help print-deps
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/doc/granary $(DESTDIR)$(UNITDIR)
	install -m 755 $(progs) $(DESTDIR)$(PREFIX)/bin
	$(if $(wildcard docs/man/*.8),install -m 644 $(wildcard docs/man/*.8) $(DESTDIR)$(PREFIX)/share/man/man8)
	install -m 644 README.md $(wildcard LICENSE docs/*.md) $(DESTDIR)$(PREFIX)/share/doc/granary
	install -d $(DESTDIR)$(PREFIX)/share/doc/granary/examples
	install -m 644 $(wildcard scripts/cron/* docs/examples/*) $(DESTDIR)$(PREFIX)/share/doc/granary/examples
	$(foreach u,$(wildcard scripts/systemd/*),sed 's|@bindir@|$(PREFIX)/bin|g' $(u) > $(DESTDIR)$(UNITDIR)/$(notdir $(u)) && chmod 644 $(DESTDIR)$(UNITDIR)/$(notdir $(u)) &&) true
clean:
	rm -rf $(O)
print-deps:
	$(Q)$(foreach m,$(MODULES),printf '%s:%s\n' '$(m)' ' $(deps_$(m))';)
help:
	@echo 'make [all]       programs in build/release/bin/      VARIANT=release|asan|tsan|cov   CC="ccache gcc"|clang   V=1'
	@echo 'make check       quick lint, unit tests, fuzz corpora; also: make asan, make tsan, make cov, make clang'
	@echo 'make lint        layering, headers, banned functions, man pages, scripts, cppcheck'
	@echo 'make fuzz        each fuzz target for RUNS=20000 inputs (clang)'
	@echo 'make bench       measurements, against peers where they are installed'
	@echo 'make model       take-overs: every state within bounds, and TRIALS=1000 simulated sites; V=1 shows counter-examples'
	@echo 'make matrix      hosts killed, stopped, starved, cut off: TRIALS=500 SEED=n FROM=n (default: one of each cell); root'
	@echo 'make soak        randomised tests for GRANARY_SOAK=600 seconds each'
	@echo 'make install     DESTDIR= PREFIX=/usr/local UNITDIR='
	@echo 'scripts/test     everything, as CI runs it'

-include $(wildcard $(B)/*/*.d $(B)/tests/*.d $(B)/tests/*/*.d)
.SECONDARY:
.DELETE_ON_ERROR:
