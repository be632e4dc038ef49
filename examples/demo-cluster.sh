#!/bin/sh
# Shows a cluster on this machine: an authority and three nodes with certificates, a run of many tasks, and
# the loss of the node that leads it, with its folder, in the middle of the run. The other two finish it.
# Nothing is left. `make demo-cluster` builds the binary and calls this; the argument is the binary.
set -eu
caravan=${1:-bin/caravan}
tasks=200
partitions=6 # the default of a cluster; run r is of partition r modulo 6

dir=$(mktemp -d)
nodes="n1 n2 n3"
base=$((10000 + $$ % 5000 * 4)) # ports of the nodes; their API listens on free ones
cluster=n1=127.0.0.1:$((base + 1)),n2=127.0.0.1:$((base + 2)),n3=127.0.0.1:$((base + 3))

# kill_workers ends the workers of a node that is gone. They outlive their server, but not their machine.
kill_workers() {
	for file in $(grep -lsF "$dir/$1/data" /proc/[0-9]*/cmdline); do # grep finds itself, too, and has ended
		process=${file%/cmdline}
		kill -9 "${process#/proc/}" 2>/dev/null || true
	done
}
finish() {
	code=$?
	trap '' HUP INT PIPE TERM
	for node in $nodes; do
		[ ! -e "$dir/$node/pid" ] || kill "$(cat "$dir/$node/pid")" 2>/dev/null || true
	done
	wait
	for node in $nodes; do kill_workers "$node"; done
	rm -rf "$dir"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' HUP INT PIPE TERM

echo "\$ caravan tls init"
"$caravan" tls init --ca-dir "$dir/ca"
for node in $nodes; do
	mkdir "$dir/$node"
	echo "\$ caravan tls node $node --tls-dir $node/tls"
	"$caravan" tls node $node --ca-dir "$dir/ca" --tls-dir "$dir/$node/tls"
done
for node in $nodes; do
	echo "\$ caravan serve --node $node --worker-lease 5s --cluster $cluster --tls-dir $node/tls --data $node/data &"
	"$caravan" serve --node $node --worker-lease 5s --cluster $cluster --tls-dir "$dir/$node/tls" --data "$dir/$node/data" \
		--listen 127.0.0.1:0 2>"$dir/$node/log" &
	echo $! >"$dir/$node/pid"
done

# await_ready waits until a node serves requests.
await_ready() {
	until address=$(sed -n 's/.*msg=listening address=\([^ ]*\).*/\1/p' "$dir/$1/log") && [ -n "$address" ] &&
		"$caravan" cluster status --server "http://$address" 2>/dev/null | grep -q '^0  *n'; do
		kill -0 "$(cat "$dir/$1/pid")" 2>/dev/null || { cat "$dir/$1/log"; exit 1; }
		sleep 0.1
	done
}
for node in $nodes; do await_ready $node; done

CARAVAN_SERVER=http://$address # of n3
export CARAVAN_SERVER
echo
echo "\$ caravan cluster status"
"$caravan" cluster status

echo
echo "\$ caravan submit fan-out.json    # $tasks tasks, then one"
run=$("$caravan" submit - <<GRAPH
{
  "tag": "fan-out",
  "parameters": {"N": ["$(seq -s '","' $tasks)"]},
  "tasks": {
    "part": {"job": {"commandString": "echo \$CARAVAN_TASK \$CARAVAN_ATTEMPT >>$dir/begun; sleep 0.5{{N}}", "cores": "0.1", "memoryMB": "1"}},
    "sum": {"job": {"command": ["echo", "done"]}, "parents": ["part"]}
  }
}
GRAPH
)
echo "$run"
# completed lists the tasks of the fan-out that are COMPLETED.
completed() { "$caravan" get "$run" --state COMPLETED --limit 0 | sed -n 's/^\(part_[0-9]*\) .*/\1/p'; }
until [ "$(completed | wc -l)" -ge 20 ]; do sleep 0.1; done

leader=$("$caravan" cluster status | sed -n "s/^$((run % partitions))  *\(n[0-9]*\) .*/\1/p")
for node in $nodes; do # a node that stays
	if [ "$node" != "$leader" ]; then
		await_ready $node
		CARAVAN_SERVER=http://$address
	fi
done
completed | sort >"$dir/completed"
begun=$(wc -l <"$dir/begun")
echo
echo "The machine of $leader, which leads the run, is lost: kill -9, and its folder is removed."
kill -9 "$(cat "$dir/$leader/pid")"
kill_workers "$leader"
rm -rf "$dir/$leader/data"

echo
echo "\$ caravan wait $run"
"$caravan" wait "$run"
echo
echo "\$ caravan cluster status"
"$caravan" cluster status
echo
echo "\$ caravan get $run --limit 5"
"$caravan" get "$run" --limit 5

# A task that was COMPLETED before the loss does not begin again, and no attempt begins twice. An attempt that
# was lost with its machine has a successor with another number.
again=$(tail -n +$((begun + 1)) "$dir/begun" | cut -d ' ' -f 1 | sort -u | comm -12 - "$dir/completed"; sort "$dir/begun" | uniq -d)
[ -z "$again" ] || { echo "these tasks have begun again:"; echo "$again"; exit 1; }
[ "$(cut -d ' ' -f 1 "$dir/begun" | sort -u | wc -l)" = $tasks ]
echo
echo "The fan-out has $(completed | wc -l) COMPLETED tasks of $tasks. No attempt began twice, and no COMPLETED task again."
