# lib.sh: what test/run, test/chroot and demo/run share; sourced with $top, the
# top of the source tree, set.
#
# Copyright (c) 2026, the kliv_mail developers

# A bare machine has no other locale, and a missing one makes every Perl warn.
unset LC_ALL LANGUAGE
export LANG=C.UTF-8
# What root makes here must be readable for the user that PostgreSQL runs as.
umask 022

say()
{
    printf '== %s\n' "$*"
}

die()
{
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# as_root COMMAND...: through sudo where we are not root.
as_root()
{
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# installed NAME: is this Debian package installed?
installed()
{
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# newest_pg_config: the newest installed PostgreSQL with server headers.
newest_pg_config()
{
    local config newest=
    for config in $(ls -v -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null); do
        [ -f "$("$config" --pgxs)" ] && newest=$config
    done
    echo "$newest"
}

# package_list: the lists (those of demo and tests, or $package_lists) without comments;
# MAJOR filled in, or those lines left out when PG_CONFIG says which PostgreSQL to use.
package_list()
{
    local major config lists=("$top/demo/packages" "$top/test/packages")
    [ -z "${package_lists:-}" ] || lists=("${package_lists[@]}")
    if [ -n "${PG_CONFIG:-}" ]; then
        cat "${lists[@]}" | sed '/^#/d; /^$/d; /MAJOR/d'
        return
    fi
    config=$(newest_pg_config)
    if [ -n "$config" ]; then
        major=$(echo "$config" | cut -d/ -f5)
    else
        major=$(apt-cache show postgresql 2>/dev/null |
            sed -n 's/^Depends: postgresql-\([0-9]*\).*/\1/p' | sort -rn | head -n 1)
    fi
    cat "${lists[@]}" | sed '/^#/d; /^$/d' | sed "s/MAJOR/${major:-unknown}/"
}

# mail_server: the mail server of this machine, as a package, unless it is Postfix.
mail_server()
{
    command -v dpkg-query >/dev/null || return 0
    dpkg-query -W -f '${db:Status-Status}/${Package}/${Provides}\n' 2>/dev/null |
        sed -n '/^installed\/postfix\//d; s/^installed\/\([^/]*\)\/.*mail-transport-agent.*/\1/p' | head -n 1
}

# missing_packages: those of the list that are not installed; Postfix never where
# it would take another mail server's place.
missing_packages()
{
    local name
    for name in $(package_list); do
        case $name in
            *:*) command -v "${name%%:*}" >/dev/null || echo "${name##*:}"; continue ;;
            postfix) [ -z "$(mail_server)" ] || continue ;;
        esac
        installed "$name" || echo "$name"
    done
}

# install_packages: what is missing, without starting any service.
install_packages()
{
    local policy=/usr/sbin/policy-rc.d own_policy=no status=0

    if ! command -v apt-get >/dev/null; then
        say "not a Debian system: going on with what is there (the lists are demo/packages and test/packages)"
        return
    fi
    [ -n "$(missing_packages)" ] || return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "these packages are missing, and only root can install them:" $(missing_packages)
    fi
    say "package lists"
    as_root apt-get -qq update
    say "installing" $(missing_packages)
    # Neither PostgreSQL's own cluster nor a mail server is to run because of
    # us: deny starts meanwhile, and let Postfix be unconfigured.
    if [ ! -e $policy ]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    if [ ! -e /etc/postfix/main.cf ] && command -v debconf-set-selections >/dev/null; then
        echo 'postfix postfix/main_mailer_type select No configuration' |
            as_root debconf-set-selections
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-remove --no-install-recommends \
        -o Dpkg::Use-Pty=0 install $(missing_packages) >"$scratch/apt.log" 2>&1 || status=$?
    [ $own_policy = no ] || as_root rm -f $policy
    if [ $status -ne 0 ]; then
        tail -n 40 "$scratch/apt.log" >&2
        die "could not install the packages"
    fi
}

# unpack_relays: what KlivMail::Relays runs, where it stays for the next run.
unpacked=/var/cache/kliv_mail
unpack_relays()
{
    ! command -v apt-get >/dev/null || as_root sh "$top/test/unpack" $unpacked exim4-daemon-light opensmtpd
}

# copy_tree FOLDER: the sources, without what was built from them.
copy_tree()
{
    mkdir "$1"
    tar -C "$top" -cf - --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.d' \
        --exclude=./tmp_check --exclude=./results --exclude=node_modules . |
        tar -C "$1" -xf - --no-same-owner
}

# choose_pg_config: PG_CONFIG, else the newest PostgreSQL that is installed.
choose_pg_config()
{
    PG_CONFIG=${PG_CONFIG:-$(newest_pg_config)}
    PG_CONFIG=${PG_CONFIG:-$(command -v pg_config || true)}
    [ -x "$PG_CONFIG" ] || die "no pg_config: set PG_CONFIG"
    say "building for $("$PG_CONFIG" --version)"
}

# build_copy [VARIABLE=VALUE...]: build a copy of the tree in $scratch/tree, with
# those variables of make, and install it into a copy of PostgreSQL in
# $scratch/pg.  Sets PG_CONFIG to that one.
build_copy()
{
    choose_pg_config
    copy_tree "$scratch/tree"
    PG_CONFIG=$(sh "$top/test/pgcopy" "$scratch/pg" "$PG_CONFIG")
    if ! make -s -C "$scratch/tree" -j"$(nproc)" PG_CONFIG="$PG_CONFIG" "$@" all >"$scratch/build.log" 2>&1 ||
        ! make -s -C "$scratch/tree" PG_CONFIG="$PG_CONFIG" "$@" install >>"$scratch/build.log" 2>&1; then
        tail -n 40 "$scratch/build.log" >&2
        die "the build failed"
    fi
}

# choose_user: who runs PostgreSQL, which refuses root: $run_user, who gets the
# built tree too (the checkout may lie where only root may look).
choose_user()
{
    run_user=$(id -un)
    if [ "$(id -u)" = 0 ]; then
        run_user=postgres
        id $run_user >/dev/null 2>&1 || run_user=nobody
        chown -R $run_user "$scratch/tree"
    fi
}

# sanitizer_reports: what sanitizers find goes to $scratch/reports.  PostgreSQL
# frees nothing at its exit, so leaks are not looked for.
sanitizer_reports()
{
    mkdir -m 1777 "$scratch/reports"
    export ASAN_OPTIONS="detect_leaks=0:log_path=$scratch/reports/address"
    export UBSAN_OPTIONS="print_stacktrace=1:log_path=$scratch/reports/undefined"
}

# as_user COMMAND...: as $run_user.
as_user()
{
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid="$run_user" --regid="$(id -gn "$run_user")" --init-groups \
            env HOME="$scratch" USER="$run_user" LOGNAME="$run_user" "$@"
    else
        "$@"
    fi
}
