#!/bin/sh
# flannel's name and flags for `flannel-udp docker-opts`, so that unit files which call it work unchanged.
set -eu

usage() {
    echo "usage: ${0##*/} [-f FLANNEL_ENV] [-d DOCKER_ENV] [-i] [-c] [-m] [-k KEY] (see: flannel-udp docker-opts --help)" >&2
    exit 1
}

flannel_env=/run/flannel/subnet.env
docker_env=/run/docker_opts.env
key=DOCKER_OPTS
individual=false
combined=false
no_ip_masq=false
while getopts f:d:k:icm option; do
    case $option in
    f) flannel_env=$OPTARG ;;
    d) docker_env=$OPTARG ;;
    k) key=$OPTARG ;;
    i) individual=true ;;
    c) combined=true ;;
    m) no_ip_masq=true ;;
    *) usage ;;
    esac
done
exec flannel-udp docker-opts -f="$flannel_env" -d="$docker_env" -k="$key" -i="$individual" -c="$combined" -m="$no_ip_masq"
