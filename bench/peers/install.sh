#!/bin/sh
# What the benchmarks compare with, from Debian's packages: ninja, Dask, PostgreSQL
# (for River), and a C compiler for the loop of vfork. Needs root. PostgreSQL's own
# service is not started: the benchmarks start a cluster of theirs, and end it.
set -eu

[ "$(id -u)" = 0 ] || { echo "bench-peers: only root can install packages" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "bench-peers: this is no Debian: install ninja, dask.distributed, PostgreSQL and cc by hand" >&2; exit 1; }

export DEBIAN_FRONTEND=noninteractive
# Installing PostgreSQL would make a cluster and start it.
mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/caravan-bench.conf
apt-get update -q
apt-get install -q -y --no-install-recommends make ninja-build findutils gcc libc6-dev python3-distributed postgresql
