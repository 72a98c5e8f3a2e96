#!/bin/sh
# Makes etcd_pb2.py and etcd_pb2.pyi anew from etcd.proto.
#
# The generator is old on purpose: what grpcio-tools 1.49.1 (protoc 3.21) writes loads on every protobuf from 4.21 to 7,
# what a newer one writes asks for a runtime at least as new as itself. It has wheels for Python 3.11 and earlier only.
set -eu
cd "$(dirname "$0")/../../.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3.11 -m venv "$venv"
"$venv/bin/pip" install --quiet grpcio-tools==1.49.1 'setuptools<80'
"$venv/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. flannel_udp/registry/etcd/etcd.proto
# Strict checking refuses a Mapping without its arguments and an empty list without its type.
sed -i 's/_Mapping\]/_Mapping[str, object]]/g' flannel_udp/registry/etcd/etcd_pb2.pyi
sed -i 's/__slots__ = \[\]/__slots__: list[str] = []/' flannel_udp/registry/etcd/etcd_pb2.pyi
