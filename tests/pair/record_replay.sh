#!/bin/bash
# Records a boot and a load on one host, replays it on the same or another one: RAM must be equal to the last byte, at
# the end and where a replay is told to stop; and the log must say of itself what the recorder counted.
# usage: record_replay.sh HOST REPLAY_HOST [OPTION of ftvmm record...]
# shellcheck source-path=SCRIPTDIR source=../lab/lib.sh
source "$(dirname "$(readlink -f "$0")")/../lab/lib.sh"

host=$1 replay_host=$2
shift 2
dir=$(mktemp -d "$(shared_dir)/record.XXXXXX")
# A host's /tmp lies in its memory: a log left there would be missed by the next guest.
trap 'cp -f "$dir"/*.json "$dir"/*.log "$dir"/console "$TEST_OUT"/ 2>/dev/null; rm -rf --one-file-system "$dir"
    lab run --timeout 20 "$host" -- "rm -f /tmp/record.*"' EXIT
there=/shared/$(basename "$dir")
log=/tmp/$(basename "$dir")
# shellcheck disable=SC2119 # the ordinary image
images=$(guest_images)
load="redis-up&&redis-benchmark+-q+-n+200+-t+incr"

rc=0
lab run --timeout 200 "$host" -- "$ftvmm record $log $images --append 'ftvmm.run=$load' $pace $* --status $there/record.json \
    --console $there/console >$there/record.log 2>&1 </dev/null" || rc=$?
[ $rc = 0 ] || fail "record ended with status $rc: $(tail -n 1 "$dir/record.log")"
grep -q 'requests per second' "$dir/console" || fail "redis-benchmark has measured nothing; the console's end: $(tail -n 3 "$dir/console")"
grep -q 'guest done: 0' "$dir/console" || fail "the load in the guest failed; the console's end: $(tail -n 3 "$dir/console")"
expect_json "$dir/record.json" ended '"shutdown"'

if [ "$replay_host" != "$host" ]; then
    lab run "$host" -- mv "$log" "$there/log"
    log=$there/log
fi
lab run --timeout 200 "$replay_host" -- "$ftvmm replay $log $images --append 'ftvmm.run=$load' --status $there/replay.json \
    >$there/replay.log 2>&1 </dev/null" || rc=$?
if [ $rc != 0 ]; then
    keep_recording "$replay_host" "$log" "$dir" || true
    fail "replay ended with status $rc: $(tail -n 1 "$dir/replay.log")"
fi
expect_json "$dir/replay.json" end_compared true
for path in ram_digest ended lockstep.positions lockstep.forced_syncs; do
    expect_json "$dir/replay.json" "$path" "$(json "$dir/record.json" "$path")"
done
expect_more_than "$dir/replay.json" lockstep.positions 10000
if [[ " $* " == *" --verify "* ]]; then
    expect_more_than "$dir/replay.json" lockstep.positions_compared 10000
    expect_more_than "$dir/replay.json" lockstep.segments_compared 5
fi
# What the log says of itself. It says it on this machine too: no guest is needed.
lab run --timeout 60 "$host" -- "$ftvmm log --summary --json $log >$there/summary.json" || fail "log ended with status $?"
expect_json "$dir/summary.json" state '"whole"'
expect_json "$dir/summary.json" records "$(json "$dir/record.json" channel.records)"
expect_json "$dir/summary.json" file_bytes "$(json "$dir/record.json" channel.record_bytes)"
expect_json "$dir/summary.json" last_position "$(json "$dir/record.json" lockstep.positions)"
expect_json "$dir/summary.json" kinds.time.records "$(json "$dir/record.json" lockstep.time_records)"
if [ "$(json "$dir/record.json" lockstep.forced_syncs)" != 0 ]; then
    expect_json "$dir/summary.json" forced_syncs.count "$(json "$dir/record.json" lockstep.forced_syncs)"
    expect_json "$dir/summary.json" forced_syncs.pages "$(json "$dir/record.json" lockstep.forced_pages)"
fi

# Two replays that stop at one position, one of them on the recording host, stand alike.
until=3000
for stop_host in "$host" "$replay_host"; do
    name=$([ -e "$dir/stop-1" ] && echo stop-2 || echo stop-1)
    lab run --timeout 100 "$stop_host" -- "$ftvmm replay $log $images --append 'ftvmm.run=$load' --until $until --dump $there/$name \
        >$there/$name.log 2>&1 </dev/null" || fail "replay --until ended with status $?: $(tail -n 1 "$dir/$name.log")"
    grep -q "stopped at position $until, .*RAM digest" "$dir/$name.log" || fail "replay --until does not say where it stopped"
    grep -q "registers rip=" "$dir/$name.log" || fail "replay --until says no registers"
done
diff -r "$dir/stop-1" "$dir/stop-2" || fail "two replays that stopped at position $until differ"
expect_json "$dir/stop-2/state.json" machine.position "$until"

echo "positions $(json "$dir/replay.json" lockstep.positions), compared $(json "$dir/replay.json" lockstep.positions_compared)," \
    "forced syncs $(json "$dir/replay.json" lockstep.forced_syncs), RAM $(json "$dir/replay.json" ram_digest)"
