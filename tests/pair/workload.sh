#!/bin/bash
# Records one of the guest's workloads (scripts/guest.d/workload) on one lab host and replays it on the same: the run
# ends at the same position with RAM equal to the last byte, and so is the disk of the one that works on one.
#   workload.sh HOST NAME [OPTION...]   the options are for `ftvmm record`, for example --verify
# shellcheck source-path=SCRIPTDIR source=../lab/lib.sh
source "$(dirname "$(readlink -f "$0")")/../lab/lib.sh"

host=$1 name=$2
shift 2
dir=$(mktemp -d "$(shared_dir)/workload.XXXXXX")
trap 'cp -f "$dir"/*.json "$dir"/*.log "$dir"/console "$TEST_OUT"/ 2>/dev/null; rm -rf --one-file-system "$dir"
    lab run --timeout 20 "$host" -- "rm -f /tmp/$(basename "$dir")*"' EXIT
there=/shared/$(basename "$dir")
log=$there/recording # hundreds of megabytes, where forced syncs are many: a lab host's /tmp is its memory
image=/tmp/$(basename "$dir")
guest="$(guest_images --workloads)-${name%%-*} --memory 384 --append 'ftvmm.run=workload+$name'"
disk='' copy=''
if [ "$name" = postgres ]; then # mirrored: the replay has a copy of its own, as it was at the start
    lab run "$host" -- "truncate -s 160M $image.img $image.copy"
    disk="--disk $image.img" copy="--disk $image.copy"
fi

rc=0
lab run --timeout 400 "$host" -- "$ftvmm record $log $guest $disk $pace $* --status $there/record.json \
    --console $there/console >$there/record.log 2>&1 </dev/null" || rc=$?
[ $rc = 0 ] || fail "record ended with status $rc: $(tail -n 1 "$dir/record.log")"
grep -q 'guest done: 0' "$dir/console" || fail "the load in the guest failed; the console's end: $(tail -n 3 "$dir/console")"
expect_json "$dir/record.json" ended '"shutdown"'

lab run --timeout 600 "$host" -- "$ftvmm replay $log $guest $copy --status $there/replay.json >$there/replay.log 2>&1 </dev/null" || rc=$?
if [ $rc != 0 ]; then
    keep_recording "$host" "$log" "$dir" || true
    fail "replay ended with status $rc: $(tail -n 1 "$dir/replay.log")"
fi
expect_json "$dir/replay.json" end_compared true
for path in ram_digest ended lockstep.positions lockstep.forced_syncs; do
    expect_json "$dir/replay.json" "$path" "$(json "$dir/record.json" "$path")"
done
expect_more_than "$dir/replay.json" lockstep.positions 10000
if [ -n "$disk" ]; then
    expect_more_than "$dir/record.json" disk.flushes 100
    expect_json "$dir/record.json" disk.errors 0
    lab run --timeout 60 "$host" -- "cmp $image.img $image.copy" || fail "the disks differ"
fi

echo "$name: $(json "$dir/replay.json" lockstep.positions) positions, $(json "$dir/replay.json" lockstep.forced_syncs) forced syncs," \
    "$(stat -c %s "$dir/recording") bytes of log in $(($(json "$dir/record.json" uptime_ms) / 1000)) s," \
    "replayed in $(($(json "$dir/replay.json" uptime_ms) / 1000)) s, $(json "$dir/replay.json" exits.user_tsc_reads) programs' TSC reads, RAM $(json "$dir/replay.json" ram_digest)"
