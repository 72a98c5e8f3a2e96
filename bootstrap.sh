#!/bin/sh
# From a fresh machine to pods that talk (`./bootstrap.sh lab`), and to all tests (`./bootstrap.sh test`).
# Everything lands in .venv, build and .tox of this folder, but for missing packages, which apt installs when root runs this.
# Where there is a folder `bundle`, as in the archives that `./bootstrap.sh bundle` makes, the lab needs no network.
set -eu

usage="usage: ./bootstrap.sh lab [ARGUMENT...]    show two hosts whose pods talk; arguments of: flannel-udp lab demo
       ./bootstrap.sh test [ARGUMENT...]   run all tests; arguments of: tox
       ./bootstrap.sh bundle               make an archive for machines without a network: unpack, ./bootstrap.sh lab
       ./bootstrap.sh help

Installs what is missing (on Debian and Ubuntu, as root; elsewhere it says what), builds, runs. Again it is quick."

cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/sbin" # where ip lives; a plain `su` leaves them out
log=build/bootstrap.log
python=""
missing=""
optional=""
bundle=bundle # where an archive's own folder has what would come by the network
stage=build/bundle

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

# step TEXT COMMAND...: announce and run; a failure is one line, with its cause. In a function that is run so, `set -e` does
# nothing: what may fail there is followed by `|| return`.
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

# name_of_python: as Debian's packages call it: python3.11.
name_of_python() {
    "$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'
}

need_for_building() {
    need "gcc libc6-dev" compiles
    if find_python; then
        name=$(name_of_python)
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
    need iperf3 command -v iperf3
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
    step "reading the package lists" from_sources update
    packages=""
    for package in $missing; do
        case $package in
        python) package=$(newest_packaged_python) ;;
        libclang-rt-dev) is_packaged "$package" || continue ;; # before LLVM 15 it came with clang
        esac
        packages="$packages $package"
    done
    for package in $optional; do
        if is_packaged "$package"; then
            packages="$packages $package"
        fi
    done
    # shellcheck disable=SC2086 # a list of words
    step_goes_on "installing with apt:$packages" from_sources install -y --no-install-recommends $packages
    case $packages in *etcd-server*) say "note: Debian starts an etcd of its own now (systemctl disable --now etcd)" ;; esac
    find_python || fail "there is no Python 3.11 or later"
}

# from_sources ARGUMENT...: apt-get with the machine's sources, or the bundle's alone.
from_sources() {
    if [ -d "$bundle" ]; then
        lists=$PWD/build/lists
        mkdir -p "$lists/partial"
        here=$(printf '%s' "$PWD" | sed 's/%/%25/g; s/ /%20/g; s/#/%23/g') # sources.list(5) would end at these
        printf 'deb [trusted=yes] file:%s ./\n' "$here/$bundle/debs" >build/sources.list
        set -- -o "Dir::Etc::sourcelist=$PWD/build/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$lists" "$@"
    fi
    apt-get "$@"
}

# What others only mention (Ubuntu 22.04's kubernetes-client) succeeds, too, and shows nothing.
is_packaged() {
    apt-cache show "$1" 2>/dev/null | grep -q .
}

newest_packaged_python() {
    for name in python3.14 python3.13 python3.12 python3.11; do
        if is_packaged "$name-venv"; then
            echo "$name $name-venv $name-dev"
            return
        fi
    done
    fail "this release has no package of Python 3.11 or later: install one and run this again"
}

# Its scripts name the folder that it was made in: moved with this folder they would not run, copied they would run what is
# in the old one. tox's environments are of the same kind.
make_venv() {
    here=$(pwd -P)
    # One that was made before this was written down: where it says that it is of here, it is.
    if [ ! -e .venv/folder ] && grep -qsF "$here/.venv" .venv/bin/activate; then
        printf '%s\n' "$here" >.venv/folder
    fi
    if [ "$(cat .venv/folder 2>/dev/null)" != "$here" ] || ! .venv/bin/python -c '' 2>/dev/null; then
        rm -rf .tox
        step "making .venv with $python" "$python" -m venv --clear .venv
        printf '%s\n' "$here" >.venv/folder
    fi
}

# `ip netns exec` remounts /, so / must be a mount point, and in a plain chroot it is none: go on in one that is.
leave_plain_chroot() {
    if [ "$(id -u)" != 0 ] || mountpoint -q /; then
        return
    fi
    say "/ is no mount point here (a chroot?), and ip netns needs one: going on below /mnt, bound to /"
    # What a run that was killed has left: bound again with all of that below it, mounts double with each run, and every
    # `ip netns exec` copies them all. While another run lives there it stays.
    while [ "$(stat -c %d:%i /mnt)" = "$(stat -c %d:%i /)" ] && ! readlink /proc/[0-9]*/root 2>/dev/null | grep -qx /mnt; do
        umount --lazy /mnt
    done
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
    if [ -d "$bundle" ]; then
        install_bundle
    else
        need_for_building
        need_for_lab
        install_missing
        make_venv
        inputs=$(cat setup.py pyproject.toml _fastpath/*.pyx _fastpath/*.pxd | cksum)
        once built "$inputs" "building flannel-udp, about a minute" .venv/bin/pip install --editable .
    fi
    exec .venv/bin/flannel-udp lab demo "$@"
}

# Without a network

# this_machine: what a bundle has to fit: distribution, release and architecture.
this_machine() {
    (
        ID="" VERSION_ID=""
        # shellcheck source=/dev/null
        . /etc/os-release 2>/dev/null
        echo "$ID-$VERSION_ID-$(dpkg --print-architecture 2>/dev/null || uname -m)"
    )
}

install_bundle() {
    { read -r fits && read -r name; } 2>/dev/null <$bundle/about || damaged about
    [ "$fits" = "$(this_machine)" ] ||
        fail "the folder $bundle is for $fits, and this is $(this_machine): make one there (./bootstrap.sh bundle), or remove it to use the network"
    sums=$(cksum 2>/dev/null <$bundle/SHA256SUMS) || damaged SHA256SUMS
    if [ "$(cat build/checked 2>/dev/null)" != "$sums" ]; then
        say "checking the folder $bundle"
        wrong=$(cd $bundle && { sha256sum --check --strict --quiet SHA256SUMS 2>/dev/null || echo SHA256SUMS; } | head -n 1)
        [ -z "$wrong" ] || damaged "${wrong%%:*}"
        printf '%s\n' "$sums" >build/checked
    fi
    python=$name
    need "$name $name-venv" "$python" -c 'import ensurepip'
    need_for_lab
    install_missing
    make_venv
    once built "$sums" "installing flannel-udp" .venv/bin/pip install --no-index --find-links "$bundle/wheels" flannel-udp
}

damaged() {
    fail "the folder $bundle is damaged ($bundle/$1): copy and unpack the archive again, or make another one"
}

make_bundle() {
    command -v apt-get >/dev/null || fail "a bundle is made of Debian's packages: make it on Debian or Ubuntu, of the same release"
    need_for_building
    install_missing
    make_venv
    rm -rf $stage build/lib build/lib.* # setuptools would pack what an earlier build left there
    mkdir -p $stage/debs/partial $stage/wheels
    name=$(name_of_python)
    step "building flannel-udp and getting what it needs from PyPI, about a minute" .venv/bin/pip wheel --wheel-dir $stage/wheels .
    step "getting packages: $name-venv iproute2 iputils-ping iptables, and all that they need" \
        get_packages "$name" "$name-venv" iproute2 iputils-ping iptables
    step "writing down what there is" list_packages
    { this_machine && echo "$name"; } >$stage/about
    (cd $stage && find about debs wheels -type f -exec sha256sum {} + >SHA256SUMS)
    archive=build/flannel-udp-$(this_machine).tar
    step "packing $archive" pack
    rm -r $stage
    say "made $archive, $(du -m "$archive" | cut -f 1) MB. On a machine without a network: tar xf ${archive#build/} && cd flannel-udp && ./bootstrap.sh lab"
}

# get_packages PACKAGE...: these and all that they need, as if nothing were installed, for who knows what is elsewhere.
get_packages() {
    : >$stage/nothing
    apt-get install --download-only -y --no-install-recommends -o Debug::NoLocking=true \
        -o "Dir::State::status=$PWD/$stage/nothing" -o "Dir::Cache::archives=$PWD/$stage/debs" "$@" || return
    rm -r $stage/nothing $stage/debs/partial
}

# list_packages: the index by which apt finds them (deb-src-control(5), sources.list(5)).
list_packages() {
    for deb in "$stage"/debs/*.deb; do
        plain=$(printf '%s' "$deb" | sed 's/%3a/+/') # apt would take it for a colon
        [ "$plain" = "$deb" ] || mv "$deb" "$plain"
        dpkg-deb --field "$plain" || return
        printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
            "${plain##*/}" "$(wc -c <"$plain")" "$(sha256sum "$plain" | cut -d ' ' -f 1)" || return
    done >$stage/Packages
    mv $stage/Packages $stage/debs/Packages
}

# pack: this folder without what was made in it, and the stage as its folder `bundle`; whatever the umask was here, others
# than root have to read it there, apt's own user among them.
pack() {
    find . -mindepth 1 \( -name '.?*' -o -name __pycache__ -o -name '*.so' -o -name '*.egg-info' -o -path ./build -o -path ./$bundle \) \
        -prune -o -type f -print >build/packed || return
    find $stage -type f >>build/packed || return
    tar -cf "$archive" --owner=0 --group=0 --mode=u+rw,go-w,a+rX --transform "s,^$stage,$bundle,;s,^\./,,;s,^,flannel-udp/," -T build/packed || return
    rm build/packed
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
bundle)
    open_log
    make_bundle
    ;;
help | -h | --help) printf '%s\n' "$usage" ;;
*)
    say "unknown command '$command' (see: ./bootstrap.sh help)"
    exit 2
    ;;
esac
