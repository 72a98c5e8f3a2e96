#!/bin/sh
# From a fresh machine to pods that talk (`./bootstrap.sh lab`), and to all tests (`./bootstrap.sh test`).
# Everything lands in .venv, build and .tox of this folder, but for missing packages, which apt installs when root runs this.
set -eu

usage="usage: ./bootstrap.sh lab [ARGUMENT...]    show two hosts whose pods talk; arguments of: flannel-udp lab demo
       ./bootstrap.sh test [ARGUMENT...]   run all tests; arguments of: tox
       ./bootstrap.sh help

Installs what is missing (on Debian and Ubuntu, as root; elsewhere it says what), builds, runs. Again it is quick."

cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/sbin" # where ip lives; a plain `su` leaves them out
log=build/bootstrap.log
python=""
missing=""
optional=""

say() {
    printf 'bootstrap: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

open_log() {
    { mkdir -p build && true >"$log"; } 2>/dev/null && return
    fail "cannot write to $PWD/build: copy this folder to where you may write, and run it there"
}

# step TEXT COMMAND...: announce and run; a failure is one line, with its cause.
step() {
    step_begins=$(grep -c '' "$log" || :)
    step_goes_on "$@"
}

# The same for a step that may fail for a cause that the step before it met, and survived.
step_goes_on() {
    say "$1"
    what=$1
    shift
    "$@" >>"$log" 2>&1 || fail "failed: $what: $(cause) (all of it: $log)"
}

# cause: what went wrong, of all that the step's commands said; pip's last lines are notes and hints.
cause() {
    if output | grep -q 'No space left on device' || ! probe_disk; then
        echo "No space left on device (df -h shows where)"
        return
    fi
    output | grep -E -m 1 ': (fatal )?error: |\.pyx:[0-9]+:[0-9]+: ' && return # a compiler's
    unreachable=$(output | grep -o -E -m 1 "$no_network" | head -n 1)
    if [ -n "$unreachable" ]; then
        echo "the packages cannot be reached ($unreachable): is this machine online?"
        return
    fi
    untrusted=$(output | grep -o -m 1 'certificate verify failed[^(]*[^( ]' | head -n 1)
    if [ -n "$untrusted" ]; then
        echo "the packages' server is not trusted ($untrusted): is the clock right, or is there a proxy here (PIP_CERT names its certificate)?"
        return
    fi
    output | grep -E -m 1 '^E: |No matching distribution|Permission denied' && return
    output | grep -E '^(ERROR|error): ' | tail -n 1 | grep . && return
    output | grep -v -E '^(note|hint|WARNING|W): |^\[(notice|end of output)' | tail -n 1
}

no_network="Temporary failure (in name resolution|resolving)|Name or service not known|Could not resolve [^ ]*|Network is unreachable\
|No route to host|Connection refused|timed out"

# output: what the step has written so far.
output() {
    tail -n "+$((step_begins + 1))" "$log" | sed 's/^[[:space:]]*//' | grep .
}

probe_disk() {
    probe=$log.probe
    status=0
    { head -c 65536 /dev/zero >"$probe"; } 2>/dev/null || status=$?
    rm -f "$probe"
    return "$status"
}

# need PACKAGES CHECK...: note the packages as missing unless the check succeeds.
need() {
    packages=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $packages"
}

find_python() {
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    return 1
}

compiles() {
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -x c -o /dev/null -
}

has_python_headers() {
    "$python" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))'
}

need_for_building() {
    need "gcc libc6-dev" compiles
    if find_python; then
        name=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        need "$name-venv" "$python" -c 'import ensurepip'
        need "$name-dev" has_python_headers
    else
        missing="$missing python"
    fi
}

need_for_lab() {
    need iproute2 command -v ip
    need iputils-ping command -v ping
    need iptables command -v iptables-restore
}

has_libfuzzer() {
    [ -e "$(clang -print-file-name="libclang_rt.fuzzer_no_main-$(uname -m).a")" ]
}

need_for_tests() {
    need "clang libclang-rt-dev" has_libfuzzer
    need containernetworking-plugins test -x /usr/lib/cni/bridge
    need iptables command -v iptables
    need etcd-server command -v etcd
    need etcd-client command -v etcdctl
    need nftables command -v nft
    need openssl command -v openssl
    need procps command -v sysctl
    need man-db command -v man
    need groff-base command -v groff
    need zsh command -v zsh
    need tcsh command -v tcsh
    need socat command -v socat
    need shellcheck command -v shellcheck
    need systemd command -v systemd-analyze
    # Its test is skipped where a release has no such package.
    command -v kubectl >/dev/null || optional=kubernetes-client
}

install_missing() {
    [ -n "$missing" ] || return 0
    case " $missing " in *" python "*) wanted="Python 3.11 or later with its -venv and -dev packages, and:" ;; *) wanted="" ;; esac
    named="$wanted$(printf '%s' "$missing" | sed 's/ python$//; s/ python / /')"
    command -v apt-get >/dev/null || fail "install these (Debian's names) and run this again: $named"
    [ "$(id -u)" = 0 ] || fail "run this as root once, or install: $named (sudo apt-get install ...)"
    export DEBIAN_FRONTEND=noninteractive
    step "reading the package lists" apt-get update
    packages=""
    for package in $missing; do
        if [ "$package" = python ]; then
            package=$(newest_packaged_python)
        fi
        packages="$packages $package"
    done
    for package in $optional; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            packages="$packages $package"
        fi
    done
    # shellcheck disable=SC2086 # a list of words
    step_goes_on "installing with apt:$packages" apt-get install -y --no-install-recommends $packages
    case $packages in *etcd-server*) say "note: Debian starts an etcd of its own now (systemctl disable --now etcd)" ;; esac
    find_python || fail "there is no Python 3.11 or later"
}

newest_packaged_python() {
    for name in python3.14 python3.13 python3.12 python3.11; do
        if apt-cache show "$name-venv" >/dev/null 2>&1; then
            echo "$name $name-venv $name-dev"
            return
        fi
    done
    fail "this release has no package of Python 3.11 or later: install one and run this again"
}

make_venv() {
    if ! .venv/bin/python -c '' 2>/dev/null; then
        step "making .venv with $python" "$python" -m venv --clear .venv
    fi
}

# `ip netns exec` remounts /, so / must be a mount point, and in a plain chroot it is none: go on in one that is.
leave_plain_chroot() {
    if [ "$(id -u)" != 0 ] || mountpoint -q /; then
        return
    fi
    say "/ is no mount point here (a chroot?), and ip netns needs one: going on below /mnt, bound to /"
    mount --rbind / /mnt
    mount --make-rslave /mnt
    trap 'umount --lazy /mnt' EXIT
    trap 'exit 130' INT TERM
    status=0
    chroot /mnt "$PWD/bootstrap.sh" "$@" || status=$?
    exit "$status"
}

# once STAMP INPUTS TEXT COMMAND...: run the step unless it succeeded before with the same inputs.
once() {
    stamp=.venv/$1
    inputs=$2
    shift 2
    if [ "$(cat "$stamp" 2>/dev/null)" != "$inputs" ]; then
        step "$@"
        printf '%s\n' "$inputs" >"$stamp"
    fi
}

lab() {
    [ "$(id -u)" = 0 ] || fail "a lab is made of network namespaces: run it as root"
    need_for_building
    need_for_lab
    install_missing
    make_venv
    inputs=$(cat setup.py pyproject.toml _fastpath/*.pyx _fastpath/*.pxd | cksum)
    once built "$inputs" "building flannel-udp, about a minute" .venv/bin/pip install --editable .
    exec .venv/bin/flannel-udp lab demo "$@"
}

run_tests() {
    [ "$(id -u)" = 0 ] || say "not root: tests that need network namespaces will be skipped"
    need_for_building
    need_for_lab
    need_for_tests
    install_missing
    make_venv
    once tox "tox>=4.21,<5" "installing tox" .venv/bin/pip install "tox>=4.21,<5"
    exec .venv/bin/tox run "$@"
}

command=${1:-help}
[ $# = 0 ] || shift
case $command in
lab)
    open_log
    leave_plain_chroot lab "$@"
    lab "$@"
    ;;
test)
    open_log
    leave_plain_chroot test "$@"
    run_tests "$@"
    ;;
help | -h | --help) printf '%s\n' "$usage" ;;
*) fail "unknown command '$command' (see: ./bootstrap.sh help)" ;;
esac
