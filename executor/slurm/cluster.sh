#!/bin/sh
# Runs a command with a Slurm cluster of this machine alone, and stops that again:
#
#	sh executor/slurm/cluster.sh go test -tags slurm ./executor/slurm
#
# The cluster is munged, slurmctld and slurmd with one node of 8 cores and 2 GB, all in
# a temporary folder, on ports of its own, as whoever runs this. It needs neither
# systemd nor cgroups, and touches no Slurm that is set up here. Debian's packages are
# installed where they are missing and root may.
set -eu

PATH=$PATH:/usr/sbin:/sbin
missing=
for tool in munged slurmctld slurmd sbatch squeue scancel scontrol; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "cluster.sh:$missing: not found. On Debian: apt-get install slurm-wlm munge" >&2
		exit 1
	fi
	echo "cluster.sh: installing slurm-wlm and munge"
	export DEBIAN_FRONTEND=noninteractive
	{ apt-get -q update && apt-get -q install -y --no-install-recommends slurm-wlm munge; } >/tmp/cluster-apt.$$ 2>&1 || {
		cat /tmp/cluster-apt.$$ >&2
		rm -f /tmp/cluster-apt.$$
		exit 1
	}
	rm -f /tmp/cluster-apt.$$
fi

dir=$(mktemp -d /tmp/caravan-slurm.XXXXXX)
chmod 755 "$dir" # munged insists that others may reach its socket
munged= ctld= slurmd=

stop() {
	trap '' INT TERM
	if [ -n "$slurmd" ]; then
		scancel --user="$(id -un)" 2>/dev/null || true
		tries=80 # more than KillWait
		while [ $tries -gt 0 ] && [ -n "$(timeout 5 squeue -h 2>/dev/null)" ]; do
			sleep 0.1
			tries=$((tries - 1))
		done
	fi
	for script in $(grep -lsF "$dir/spool/" /proc/[0-9]*/cmdline); do # of jobs that survive that
		pid=${script#/proc/}
		kill -9 -- "-${pid%/cmdline}" 2>/dev/null || true
	done
	for pid in $slurmd $ctld $munged; do
		kill "$pid" 2>/dev/null || continue
		tries=50
		while [ $tries -gt 0 ] && kill -0 "$pid" 2>/dev/null; do
			sleep 0.1
			tries=$((tries - 1))
		done
		kill -9 "$pid" 2>/dev/null || true
	done
	slurmd= ctld= munged=
}
trap 'stop; rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

configure() { # port
	cat >"$dir/slurm.conf" <<END
ClusterName=caravan
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmdPort=$(($1 + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=10
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=$host MaxTime=INFINITE State=UP
END
}

host=$(hostname -s)
export SLURM_CONF="$dir/slurm.conf"
mkdir "$dir/state" "$dir/spool"
(umask 077; head -c 1024 /dev/urandom >"$dir/munge.key")
munged --foreground --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
	--log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >"$dir/munged.out" 2>&1 &
munged=$!

start() { # port
	configure "$1"
	slurmctld -D >"$dir/slurmctld.out" 2>&1 &
	ctld=$!
	slurmd -D >"$dir/slurmd.out" 2>&1 &
	slurmd=$!
}

try=0
port=$((20000 + $$ % 5000 * 2))
start $port
until timeout 5 sinfo -h -t idle 2>/dev/null | grep -q idle; do
	try=$((try + 1))
	if [ $((try % 100)) = 0 ]; then # somebody else may have the ports
		kill -9 "$slurmd" "$ctld" 2>/dev/null || true
		if [ $try = 300 ]; then
			echo "cluster.sh: the cluster does not come up" >&2
			tail -n 20 "$dir"/*.log "$dir"/*.out >&2
			exit 1
		fi
		start $((port + try * 10))
	fi
	sleep 0.1
done

rc=0
"$@" || rc=$?
if [ $rc != 0 ]; then
	tail -n 40 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
fi
exit $rc
