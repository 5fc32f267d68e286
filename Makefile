# kliv_mail: make help lists the targets.

EXTENSION  = kliv_mail
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" kliv_mail.control)

# Loaded by the sender, and by a session at its first use: what needs libcurl,
# libsodium or the replies' rules, in whole folders where it can be said so.
NET_SRCS = src/kliv_mail_net.c \
	$(wildcard src/smtp/*.c src/feedback/*.c src/secret/*.c src/net/*.c) \
	src/db/outbox.c src/db/account.c src/db/bounce_mailbox.c $(wildcard src/worker/sender*.c) src/worker/fetcher.c \
	src/worker/identity.c \
	$(addprefix src/functions/,account_arguments.c as_owner.c bounce_mailbox.c bounces.c configure.c holds.c keys.c \
	preview.c probe_rows.c providers.c replies.c reports.c requests.c test_smtp.c unsubscribe.c webhooks.c)
NET_OBJS = $(NET_SRCS:.c=.o)

# Loaded by a session at its first use of a template: what needs md4c.
TEMPLATE_SRCS = src/kliv_mail_template.c $(wildcard src/template/*.c src/functions/template*.c)
TEMPLATE_OBJS = $(TEMPLATE_SRCS:.c=.o)

# Preloaded into every process of the cluster: all the rest.
MODULE_big = kliv_mail
OBJS = $(patsubst %.c,%.o,$(filter-out $(NET_SRCS) $(TEMPLATE_SRCS),$(wildcard src/*.c src/*/*.c)))

LIBRARIES = kliv_mail_net kliv_mail_template

DATA_built = sql/$(EXTENSION)--$(EXTVERSION).sql
DATA       = $(wildcard sql/*--*--*.sql)

TESTS          = $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql))
REGRESS        = $(TESTS)
REGRESS_OPTS   = --inputdir=test --outputdir=. --load-extension=pgcrypto --load-extension=kliv_mail
ISOLATION      = $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec))
ISOLATION_OPTS = --inputdir=test --outputdir=. --load-extension=pgcrypto --load-extension=kliv_mail
TAP_TESTS      = 1
PROVE_TESTS    = test/t/*.pl

# What make sanitize runs: all layers once, without the long campaigns.
SANITIZED = 001 002 010 012 014 016 017 018 040 041 042 054

PG_CONFIG ?= pg_config
PG_CPPFLAGS = -Isrc -DKLIV_MAIL_VERSION='"$(EXTVERSION)"'
PG_CFLAGS   = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-cast-function-type
# What is exported is marked so, as PostgreSQL 16 and newer have it for modules.
PG_CFLAGS   += -fvisibility=hidden
PG_CPPFLAGS += -DPGDLLEXPORT='__attribute__((visibility("default")))'
# clang: the server's headers mark functions gnu_printf, its flags are gcc's.
ifneq ($(findstring clang,$(CC)),)
PG_CFLAGS += -Wno-ignored-attributes -Wno-ignored-optimization-argument -Wno-unknown-warning-option
endif
# WERROR=1, which the tests say: a warning is an error.  A user's compiler may be
# newer than those we know; and of the code that gcc's sanitizers make it warns
# where there is nothing wrong.
ifeq ($(findstring -fsanitize,$(COPT)),)
PG_CFLAGS += $(if $(WERROR),-Werror)
endif
SHLIB_LINK  = -lidn2
NET_LIBS    = -lcurl -lsodium -lidn2 -lssl -lcrypto
TEMPLATE_LIBS = -lmd4c

EXTRA_CLEAN = $(LIBRARIES:=.so) $(NET_OBJS) $(TEMPLATE_OBJS) $(NET_OBJS:.o=.d) $(TEMPLATE_OBJS:.o=.d) \
	sql/$(EXTENSION)--$(EXTVERSION).sql

# No JIT inlining of functions that wait for I/O: no bitcode is built.
override with_llvm = no

# What needs no server headers must work before they are installed.
ifneq ($(filter-out help demo web test test-chroot test-production crashtest soak feed packages compilers majors gallery browser bench bench-%,$(or $(MAKECMDGOALS),all)),)
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
PROVE_FLAGS += -I test/perl

all: $(LIBRARIES:=.so)

# -l:kliv_mail.so makes another library bring the first along; PostgreSQL then
# runs the first one's _PG_init when the other one's asks for it.
LINK = $(CC) $(CFLAGS) $(LDFLAGS) $(LDFLAGS_SL) -shared -o $@ $(filter %.o,$^) -L. -l:kliv_mail.so -Wl,-rpath,'$$ORIGIN'
kliv_mail_net.so: $(NET_OBJS) kliv_mail.so
	$(LINK) $(NET_LIBS)
kliv_mail_template.so: $(TEMPLATE_OBJS) kliv_mail.so
	$(LINK) $(TEMPLATE_LIBS)

$(OBJS) $(NET_OBJS) $(TEMPLATE_OBJS): $(wildcard src/*/*.h) kliv_mail.control

install: install-libraries
install-libraries: $(LIBRARIES:=.so)
	for library in $(LIBRARIES); do $(INSTALL_SHLIB) $$library.so '$(DESTDIR)$(pkglibdir)/' || exit 1; done
uninstall: uninstall-libraries
uninstall-libraries:
	rm -f $(LIBRARIES:%='$(DESTDIR)$(pkglibdir)/%.so')
.PHONY: install-libraries uninstall-libraries
endif

# The comments of configure_smtp() and test_smtp() name the providers that there are.
PROVIDERS = $(shell sed -n 's/^\t\t\.name = "\(.*\)",/\1/p' src/smtp/providers.c | paste -sd ' ' | sed 's/ / | /g')

# Templates to begin with: a row ('en', 'welcome', '...') each.
STARTERS = $(sort $(wildcard sql/templates/*/*.md))

# What http_request() shows: a branch WHEN 'overview' THEN '...' each.
PAGES = $(sort $(wildcard sql/pages/*.html sql/pages/*.css))
TEXTS = $(sort $(wildcard sql/pages/texts/*.json))

sql/$(EXTENSION)--$(EXTVERSION).sql: $(sort $(wildcard sql/install/*.sql)) $(STARTERS) $(PAGES) $(TEXTS) src/smtp/providers.c kliv_mail.control
	for file in $(STARTERS); do \
		echo "        ('$$(basename $$(dirname $$file))', '$$(basename $$file .md)', '$$(base64 $$file | tr -d '\n')'),"; \
	done | sed '$$s/,$$//' > $@.starters
	rm -f $@.html $@.css $@.json
	for file in $(PAGES) $(TEXTS); do \
		name=$$(basename $$file); \
		echo "        WHEN '$${name%.*}' THEN '$$(base64 $$file | tr -d '\n')'" >> $@.$${name##*.}; \
	done; cat $@.html $@.css > $@.pages
	cat $(sort $(wildcard sql/install/*.sql)) | \
		sed -e 's/@PROVIDERS@/$(PROVIDERS)/' -e '/@STARTER_TEMPLATES@/r $@.starters' -e '/@STARTER_TEMPLATES@/d' \
			-e '/@PAGES@/r $@.pages' -e '/@PAGES@/d' -e '/@TEXTS@/r $@.json' -e '/@TEXTS@/d' > $@
	rm $@.starters $@.html $@.css $@.json $@.pages

## demo: from packages to a mail that a real SMTP server received (root or sudo)
demo:
	bash demo/run

## web: the administrator's pages on the demo's cluster, until Ctrl-C; prints address and sign-in (PORT; Node.js 18, npm)
web:
	PORT='$(PORT)' bash demo/run web

## test: every test on throw-away clusters, root or not; installs what is missing
test:
	bash test/run

## test-chroot: make demo and make test in a fresh Debian chroot (root, debootstrap)
test-chroot:
	bash test/chroot

## test-production: the commands of README.md and doc/production.md, as they are written, in a bare Debian 12 and a bare Debian 13 (root, debootstrap)
test-production:
	TARGETS=production bash test/chroot bookworm trixie

## crashtest: a sender killed at each point of a mail's way, 50 times, with one sender and with two (RUNS, POINTS, SENDERS, CONNECTIONS)
crashtest:
	RUNS='$(RUNS)' POINTS='$(POINTS)' SENDERS='$(SENDERS)' CONNECTIONS='$(CONNECTIONS)' bash test/run crash

## soak: an hour of mail with faults, kills and restarts, then ledger against outbox (MINUTES)
soak:
	KLIV_MAIL_SOAK_MINUTES='$(or $(MINUTES),60)' PROVE_FLAGS=-v bash test/run tap 066_soak

## feed: what outcomes() tells beside eight writers, late commits, kills and restarts, for ten minutes (MINUTES)
feed:
	KLIV_MAIL_FEED_SECONDS=$$((60 * $(or $(MINUTES),10))) PROVE_FLAGS=-v bash test/run tap 034_feed

## packages: what building and testing needs, where it is missing (demo/packages, test/packages; Debian or Ubuntu)
packages:
	bash test/run packages

## compilers: the tree built by gcc and by clang, every warning an error
compilers:
	bash test/compilers

## majors: make compilers and make test on this machine's PostgreSQL, and on 17, 18 and 19 in chroots of Debian trixie, sid and experimental (root, debootstrap; CHROOTS=FOLDER keeps them)
majors:
	bash test/compilers
	bash test/run
	TARGETS='compilers test' CHROOTS='$(CHROOTS)' bash test/chroot trixie sid experimental

## sanitize: unit tests with gcc's sanitizers and under valgrind (to be installed), SQL and TAP tests with that for undefined behaviour
sanitize:
	SANITIZE=address,undefined bash test/run unit
	SANITIZE=undefined bash test/run tap $(SANITIZED)
	VALGRIND=1 bash test/run unit

## fuzz: the pure modules under libFuzzer (clang), three minutes each unless SECONDS_EACH says otherwise
fuzz:
	bash test/fuzz/run

## gallery: the starter templates in Chromium: checked, and as pictures in gallery/ (Node.js 20, npm; installs Chromium)
gallery:
	UPDATE='$(UPDATE)' bash test/gallery/run

## browser: the pages through the gateway in Chromium: looked at, worked with, attacked; pictures in browser/ (PARTS: walk work gateway)
browser:
	bash test/browser/run $(PARTS)

## bench: the benchmarks against what people would use instead, one table of ratios (ROUNDS, QUICK=1; UPDATE=1 writes doc/); bench-latency (drain, far, send, snapshot, history, memory, idle, backlog, pages, views, retention): one
bench:
	bash bench/run
bench-latency bench-drain bench-far bench-send bench-snapshot bench-history bench-memory bench-idle bench-backlog bench-pages bench-views bench-retention:
	bash bench/run $(@:bench-%=%)

## bench-growth: how speed and memory bend as backlog, history, databases, attachments, distance and connections grow
bench-growth:
	HISTORY=1000000,10000000 DATABASES=200,1000 bash bench/run growth history idle backlog

## bench-sustained: MINUTES (30) at half the drain's maximum, alone and beside a held snapshot and pg_dump
bench-sustained:
	bash bench/run sustained

## lint: layers, symbol prefix, what the preloaded library links
lint: all
	perl test/lint

## help: this list
help:
	@sed -n 's/^## //p' Makefile

.PHONY: demo web test test-chroot test-production crashtest soak feed packages compilers majors gallery browser bench bench-latency bench-drain bench-far bench-send bench-snapshot \
	bench-history bench-memory bench-idle bench-backlog bench-pages bench-views bench-retention bench-growth bench-sustained lint help
