#!/bin/sh
# Installs the references of the benchmarks from Debian's packages: ninja, Dask, PostgreSQL (for
# River), and a C compiler for the loop of vfork. Needs root. The service of PostgreSQL is not
# started: the benchmarks start and stop a cluster of their own.
set -eu

[ "$(id -u)" = 0 ] || { echo "bench-peers: only root can install packages" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "bench-peers: this is not Debian: install ninja, dask.distributed, PostgreSQL and cc by hand" >&2; exit 1; }

export DEBIAN_FRONTEND=noninteractive
# Without this the package makes a cluster and starts it.
mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/caravan-bench.conf
apt-get update -q
apt-get install -q -y --no-install-recommends make ninja-build findutils gcc libc6-dev python3-distributed postgresql
