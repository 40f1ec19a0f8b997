#!/bin/bash
# Records a guest that works its disk, and replays it: RAM must be equal to the last byte, and so must the image.
# usage: disk.sh HOST mirrored|shared [OPTION of ftvmm record...]
# shellcheck source-path=SCRIPTDIR source=../lab/lib.sh
source "$(dirname "$(readlink -f "$0")")/../lab/lib.sh"

host=$1 mode=$2
shift 2
dir=$(mktemp -d "$(shared_dir)/disk.XXXXXX")
trap 'cp -f "$dir"/*.json "$dir"/*.log "$dir"/console "$TEST_OUT"/ 2>/dev/null; rm -rf --one-file-system "$dir"
    lab run --timeout 20 "$host" -- "rm -f /tmp/disk-test.*"' EXIT
there=/shared/$(basename "$dir")
work=/tmp/disk-test
# shellcheck disable=SC2119 # the ordinary image
images=$(guest_images)
load=disk-load+check+4

# Not a whole number of blocks or requests; something is on it already. A replay of a mirrored disk has a copy of its
# own, as it was at the start; one of a shared disk learns what was read from the log and leaves the image alone.
lab run "$host" -- "head -c 1234567 /dev/urandom >$work.img; truncate -s 20000256 $work.img; cp $work.img $work.copy"
copy=$([ "$mode" = mirrored ] && echo $work.copy || echo $work.img)

rc=0
lab run --timeout 250 "$host" -- "$ftvmm record $work.log $images --disk $work.img,mode=$mode --append 'quiet ftvmm.run=$load' $pace $* \
    --status $there/record.json --console $there/console >$there/record.log 2>&1 </dev/null" || rc=$?
[ $rc = 0 ] || fail "record ended with status $rc: $(tail -n 1 "$dir/record.log")"
grep -q 'disk-load: all equal' "$dir/console" || fail "the load in the guest failed; the console's end: $(tail -n 5 "$dir/console")"
expect_json "$dir/record.json" disk.errors 0
expect_json "$dir/record.json" disk.under_way 0
expect_more_than "$dir/record.json" disk.read_bytes 12000000
expect_more_than "$dir/record.json" disk.write_bytes 12000000
expect_more_than "$dir/record.json" disk.flushes 0
recorded=$(lab run "$host" -- "sha256sum <$work.img")

lab run --timeout 250 "$host" -- "$ftvmm replay $work.log $images --disk $copy,mode=$mode --append 'quiet ftvmm.run=$load' \
    --status $there/replay.json >$there/replay.log 2>&1 </dev/null" || rc=$?
if [ $rc != 0 ]; then
    keep_recording "$host" "$work.log" "$dir" || true
    fail "replay ended with status $rc: $(tail -n 1 "$dir/replay.log")"
fi
expect_json "$dir/replay.json" end_compared true
for path in ram_digest ended lockstep.positions lockstep.disk_records lockstep.forced_syncs; do
    expect_json "$dir/replay.json" "$path" "$(json "$dir/record.json" "$path")"
done
expect_more_than "$dir/replay.json" lockstep.disk_records 100
[ "$(lab run "$host" -- "sha256sum <$work.img")" = "$recorded" ] || fail "the replay has changed the recording's image"
[ "$(lab run "$host" -- "sha256sum <$copy")" = "$recorded" ] || fail "the images differ"
if [ "$mode" = shared ]; then
    expect_json "$dir/replay.json" disk.reads 0
    expect_json "$dir/replay.json" disk.writes 0
fi
if [ "$mode" = mirrored ]; then
    # The copy has changed by now, so a replay cannot be the same: said at the start, not after a while.
    lab run --timeout 60 "$host" -- "$ftvmm replay $work.log $images --disk $copy --append 'quiet ftvmm.run=$load' --join-timeout 2 \
        >$there/refused.log 2>&1 </dev/null" && fail "a replay with another image was not refused"
    grep -q "this host's disk is not the one that the guest began with" "$dir/refused.log" ||
        fail "the refusal does not name its cause: $(tail -n 1 "$dir/refused.log")"
fi
echo "disk records $(json "$dir/replay.json" lockstep.disk_records), RAM $(json "$dir/replay.json" ram_digest), image $recorded," \
    "log $(lab run "$host" -- "stat -c %s $work.log") bytes, positions $(json "$dir/replay.json" lockstep.positions)"
