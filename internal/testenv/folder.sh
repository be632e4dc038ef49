#!/bin/sh
# Prints the folder for the files of tests: one in memory if it has room for them and programs can be started from
# it, else the default one for temporary files. A synced write to memory costs a few microseconds, and one to a disk
# up to some milliseconds, which is half of the time of the tests. What a power failure leaves of files is tested
# on models of a disk (internal/faults) and on file systems of the tests' own, in any folder.
memory=/dev/shm
need=$((4 * 1024 * 1024)) # KiB

default=${TMPDIR:-/tmp}
use_default() {
	echo "$default"
	exit
}
[ -n "${TMPDIR:-}" ] && use_default # the caller has chosen
[ -d $memory ] && [ -w $memory ] && [ "$(stat -f -c %T $memory 2>/dev/null)" = tmpfs ] || use_default
room=$(df -Pk $memory | awk 'NR == 2 { print $4 }')
available=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
[ "${room:-0}" -ge $need ] && [ "${available:-0}" -ge $((2 * need)) ] || use_default
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
[ "$limit" = max ] || [ $((limit / 1024)) -ge $((2 * need)) ] || use_default
probe=$(mktemp -d $memory/caravan-test-XXXXXX) || use_default
trap 'rm -rf "$probe"' EXIT
printf '#!/bin/sh\n' >"$probe/program" && chmod +x "$probe/program" && "$probe/program" 2>/dev/null || use_default
echo $memory
