#!/bin/bash
# ftbench channel between alpha and beta: the channel and its yardsticks over the same link, in the same run. Fails when
# something could not be measured; what it measured is in TEST_OUT. In the lab it tells behaviour, not speed.
# usage: channel_bench.sh [verbs|tcp] [OPTION of ftbench channel...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

link=${1:-verbs}
shift || true
case $link in
verbs | tcp) address=$link:10.9.0.2:7600 ;;
*) fail "there is no link '$link' between hosts; give verbs or tcp" ;;
esac
ftbench=/src/build/bench/ftbench
limit_s=400

dir=$(mktemp -d "$(shared_dir)/channel.XXXXXX")
there=/shared/$(basename "$dir")
receiver=
# shellcheck disable=SC2317 # a trap calls it
leave() {
    [ -z "$receiver" ] || { kill "$receiver" 2>/dev/null && wait "$receiver"; } || true
    cp -f "$dir"/* "$TEST_OUT"/ 2>/dev/null || true
    rm -rf --one-file-system "$dir"
}
trap leave EXIT

# Emulated CPUs: a loop that spins takes the time that the other host needs, and everything takes a thousand times longer.
how="--spin-us 0 --sleep-us 20 --patience 30"
lab run --timeout $((limit_s + 40)) beta -- \
    "timeout -k 2 $limit_s $ftbench channel --receive $address $how --join-timeout 120 >$there/receiver.log 2>&1 </dev/null" &
receiver=$!
rc=0
lab run --timeout $((limit_s + 40)) alpha -- \
    "timeout -k 2 $limit_s $ftbench channel $address $how --join-timeout 60 --rounds 3 --run-ms 500 --samples 500 \
        --sizes 64,1024 --json $there/channel.json --csv $there/channel.csv --svg $there/channel.svg $* \
        >$there/channel.txt 2>$there/leader.log </dev/null" || rc=$?
[ $rc = 0 ] || fail "not measured (status $rc): $(tail -qn 1 "$dir/leader.log" "$dir/receiver.log")"
rc=0
wait "$receiver" || rc=$?
receiver=
[ $rc = 0 ] || fail "the receiver ended with status $rc: $(tail -n 1 "$dir/receiver.log")"
cat "$dir/channel.txt"
expect_json "$dir/channel.json" link "\"$link\""
python3 - "$dir/channel.json" "$link" <<'PYTHON' || fail "a measurement is missing or empty"
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
series = {s["name"]: s["samples"] for s in result["latency_ns"]}
bare = {"verbs": "bare_write_to_ack", "tcp": "socket_one_way"}[sys.argv[2]]
for name in ("commit_to_ack", "commit_to_consumed", bare):
    assert series.get(name, 0) > 0, f"no samples of {name}"
rates = [m for m in result["metrics"] if m["name"].startswith("records_per_s.")]
sizes = {m["name"].split(".")[1] for m in rates}
assert "64B" in sizes and len(rates) == 3 * len(sizes), "a rate is missing"
assert all(value > 0 for m in rates for value in m["values"]), "a rate is 0"
if sys.argv[2] == "verbs":
    coalesced = next(m for m in result["metrics"] if m["name"] == "coalesced_to_one_write_each.64B")
    assert coalesced["median"] > 1, f"coalescing gained nothing: {coalesced['values']}"
PYTHON
