#!/bin/sh
# Shows Caravan from end to end: a server on a free port with a data folder of its
# own, one graph submitted, its end awaited, its record printed. Nothing is left.
# `make demo` builds the binary and calls this; the argument is the binary.
set -eu
caravan=${1:-bin/caravan}
graph=$(dirname "$0")/quickstart.json

dir=$(mktemp -d)
: >"$dir/log"
"$caravan" serve --listen 127.0.0.1:0 --data "$dir/data" 2>"$dir/log" &
server=$!
finish() {
	code=$?
	trap '' HUP INT PIPE TERM
	kill "$server" 2>/dev/null && wait "$server" || true
	tries=0 # its worker ends soon after it, and writes until then
	until rm -rf "$dir" 2>/dev/null || [ $tries -ge 300 ]; do tries=$((tries + 1)); sleep 0.1; done
	exit "$code"
}
trap finish EXIT
trap 'exit 130' HUP INT PIPE TERM

until grep -q msg=ready "$dir/log"; do
	kill -0 "$server" 2>/dev/null || { cat "$dir/log"; exit 1; }
	sleep 0.1
done
CARAVAN_SERVER=http://$(sed -n 's/.*msg=listening address=\([^ ]*\).*/\1/p' "$dir/log")
export CARAVAN_SERVER

echo "A server listens at $CARAVAN_SERVER."
echo
echo "\$ caravan submit $graph"
run=$("$caravan" submit "$graph")
echo "$run"
echo
echo "\$ caravan wait $run"
"$caravan" wait "$run"
echo
echo "\$ caravan get $run"
"$caravan" get "$run"
echo
echo "\$ caravan get $run -o json"
"$caravan" get "$run" -o json
