# shellcheck shell=bash
# Sourced by the other scripts: finding out what is missing on this machine, and getting it.
# Everything here does nothing, and needs no network and no rights, when there is nothing to do.

# shellcheck disable=SC2034  # used by the scripts that source this file
RUN_PACKAGES=(fuse3 kmod)
# What pip needs to build pyfuse3, which has no binary packages.
# shellcheck disable=SC2034
BUILD_PACKAGES=(ca-certificates gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv)

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "$(basename -- "$0"): $*"
    exit 1
}

# as_root COMMAND...: run it with the rights of root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root: run as root, install sudo, or run yourself: $*"
    fi
}

# need_packages NAME...: install the Debian packages that are not installed.
need_packages() {
    local name missing=()
    command -v dpkg-query >/dev/null || {
        say "not a Debian system: hoping that these are installed: $*"
        return 0
    }
    for name in "$@"; do
        # ${Status} is dpkg's, not the shell's.
        # shellcheck disable=SC2016
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed$' || missing+=("$name")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}

# need_postgresql: PostgreSQL's programs, without the database that Debian makes and starts at installation.
need_postgresql() {
    local settings=/etc/postgresql-common/createcluster.conf
    ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || return 0
    need_packages postgresql-common
    [ ! -e "$settings" ] || as_root sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' "$settings"
    need_packages postgresql postgresql-contrib
}

# newest_python: print the newest python3 that is new enough and can make a virtualenv and be built for.
newest_python() {
    local minor candidate
    for minor in 19 18 17 16 15 14 13 12 11; do
        for candidate in "python3.$minor" "/usr/bin/python3.$minor"; do
            candidate=$(command -v "$candidate") || continue
            if "$candidate" -c 'import ensurepip, os, sysconfig, venv
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null; then
                printf '%s\n' "$candidate"
                return 0
            fi
        done
    done
    fail "no Python >= 3.11 with venv and headers (Debian: python3-venv, python3-dev)"
}

# need_venv plain|test: make .venv and install this project into it, as far as that is not done; for tests it
# is installed with what they need, and for development, so that changes of the sources are seen at once.
need_venv() {
    local extra="$1" stamp python
    # Changed sources must be installed anew, except for development, where they are used in place.
    if [ "$extra" = test ]; then
        stamp=".venv/installed-test-$(sha256sum <pyproject.toml | cut -c1-16)"
    else
        stamp=".venv/installed-plain-$(find pyproject.toml mountstore -type f -not -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 cat | sha256sum | cut -c1-16)"
    fi
    if [ -x .venv/bin/python ] && ! .venv/bin/python -c '' 2>/dev/null; then
        fail ".venv is broken (was its Python removed?): delete it and run this again"
    fi
    if [ ! -x .venv/bin/pip ]; then
        python=$(newest_python)
        say "making .venv with $python"
        "$python" -m venv .venv >&2
    fi
    [ ! -e "$stamp" ] || return 0
    if [ "$extra" = test ]; then
        say "installing the project for development into .venv"
        .venv/bin/pip install -q -e '.[test]' >&2
    else
        [ -z "$(find .venv -maxdepth 1 -name 'installed-test-*' -print -quit)" ] || return 0
        say "installing the project into .venv"
        .venv/bin/pip install -q . >&2
    fi
    touch "$stamp"
}

# need_fuse: what FUSE needs besides its packages.
need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    # fusermount3 looks there for the mounts of an ordinary user; systemd makes it at boot, containers may lack it.
    [ -e /etc/mtab ] || as_root ln -s ../proc/self/mounts /etc/mtab
    [ -e /dev/fuse ] || fail "/dev/fuse does not exist and modprobe fuse did not make it (in a container, pass it in)"
}
