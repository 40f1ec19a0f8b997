#!/bin/bash
# A pair of two processes on one host, over shared memory: both end in order, with RAM equal to the last byte.
# usage: shm.sh HOST
# shellcheck source-path=SCRIPTDIR source=../lab/lib.sh
source "$(dirname "$(readlink -f "$0")")/../lab/lib.sh"

host=$1
dir=$(mktemp -d "$(shared_dir)/shm.XXXXXX")
trap 'cp -f "$dir"/*.json "$dir"/*.log "$dir"/*.console "$TEST_OUT"/ 2>/dev/null; rm -rf --one-file-system "$dir"' EXIT
there=/shared/$(basename "$dir")
# shellcheck disable=SC2119 # the ordinary image
images=$(guest_images)
# Two guests, both ends and the lab's other hosts share two processors here: silence of 5 s is no death yet.
common="$images --append 'quiet ftvmm.run=redis-up&&redis-benchmark+-q+-n+50+-t+incr' --arbiter dir:/tmp --name shm-pair --peer-timeout 5000"

rc=0
lab run --timeout 480 "$host" -- "
    $ftvmm backup --listen shm:pair-test $common --status $there/backup.json --console $there/backup.console \
        >$there/backup.log 2>&1 </dev/null & backup=\$!
    sleep 1
    $ftvmm primary --backup shm:pair-test $common --verify $pace --status $there/primary.json --console $there/primary.console \
        >$there/primary.log 2>&1 </dev/null & primary=\$!
    trap 'kill \$primary \$backup 2>/dev/null' TERM
    wait \$primary; echo \$? >$there/primary.rc
    wait \$backup; echo \$? >$there/backup.rc" || rc=$?
[ $rc = 0 ] || fail "the pair did not end (status $rc): $(tail -qn 1 "$dir"/*.log)"
for role in primary backup; do
    [ "$(cat "$dir/$role.rc")" = 0 ] || fail "the $role ended with status $(cat "$dir/$role.rc"): $(tail -n 1 "$dir/$role.log")"
done
grep -q 'guest done: 0' "$dir/primary.console" || fail "the load in the guest failed: $(tail -n 3 "$dir/primary.console")"
expect_json "$dir/backup.json" end_compared true
expect_json "$dir/backup.json" ram_digest "$(json "$dir/primary.json" ram_digest)"
expect_json "$dir/backup.json" role '"backup"'
expect_more_than "$dir/backup.json" lockstep.positions_compared 10000
echo "positions compared $(json "$dir/backup.json" lockstep.positions_compared), RAM $(json "$dir/backup.json" ram_digest)"
