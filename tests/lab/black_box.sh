#!/bin/bash
# The primary of a pair under load loses its power. Its last seconds are replayed from the log that the backup has kept: on
# real KVM, with Debian's kernel, from a base that was taken while the guest ran. Every register at every position and all
# RAM each second were logged by the lost primary, and the replay compares them.
# usage: black_box.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

dir=$(mktemp -d "$(shared_dir)/box.XXXXXX")
there=/shared/$(basename "$dir")
mkdir -p "$dir/arbiter"

# shellcheck disable=SC2317 # a trap calls it
leave() {
    local rc=$?
    trap - EXIT
    set +e
    cp -f "$dir"/*.{json,log,console} "$TEST_OUT"/ 2>/dev/null
    [ -z "${backup:-}" ] || lab run --timeout 20 beta -- "kill -- -$backup" 2>/dev/null
    lab up alpha 2>/dev/null || echo "the lab's host could not be booted again" >&2
    rm -rf --one-file-system "$dir"
    exit "$rc"
}
trap leave EXIT

await() { # LIMIT_S WHAT COMMAND...
    local begun=$SECONDS limit=$1 what=$2
    shift 2
    until "$@" 2>/dev/null; do
        [ $((SECONDS - begun)) -lt "$limit" ] || fail "$what does not come: $(tail -qn 2 "$dir"/*.log)"
        sleep 1
    done
}

# shellcheck disable=SC2119 # no options for the image
guest="$(guest_images) --name box --append 'quiet ftvmm.run=redis-up&&redis-benchmark+-q+-n+1000000+-t+incr'"
pair="$guest --arbiter dir:$there/arbiter $silence"
backup=$(lab run --background --log "$there/beta.log" beta -- "$ftvmm backup --listen verbs:10.9.0.2:7471 $pair \
    --keep-log $there/kept,minutes=0.3 --status $there/beta.json --console $there/beta.console")
lab run --background --log "$there/alpha.log" alpha -- "$ftvmm primary --backup verbs:10.9.0.2:7471 $pair --verify $pace \
    --spare none --status $there/alpha.json --console $there/alpha.console" >/dev/null

# shellcheck disable=SC2317
based() { [ "$(find "$dir/kept" -name '*-at-[1-9]*.log' | wc -l)" -ge 1 ]; }
await 400 "a base" based
RANDOM=${TEST_SEED:-1}
sleep "$((RANDOM % 10)).$(printf %03d $((RANDOM % 1000)))"
lab kill alpha
# shellcheck disable=SC2317
alone() { [ "$(json "$dir/beta.json" role)" = '"alone"' ]; }
await 60 "the failover" alone
lab run --timeout 60 beta -- "kill -TERM -- -$backup"
# shellcheck disable=SC2317
ended() { [ "$(json "$dir/beta.json" ended)" = '"stopped"' ]; }
await 60 "the survivor's end" ended
expect_json "$dir/beta.json" kept_log.breaks 0

lab run --timeout 200 beta -- "$ftvmm replay $guest --status $there/replay.json $there/kept >$there/replay.log 2>&1" ||
    fail "the kept log does not replay: $(tail -n 3 "$dir/replay.log")"
live=$(sed -n 's/.*] live at position \([0-9]*\),.*/\1/p' "$dir/beta.log")
grep -Eq "the log that was kept ends here, (in the midst of|behind) position $live\$" "$dir/replay.log" ||
    fail "the replay does not end at position $live: $(tail -n 3 "$dir/replay.log")"
expect_more_than "$dir/replay.json" lockstep.positions_compared 1000
expect_more_than "$dir/replay.json" lockstep.segments_compared 0
echo "went live at $live; replayed from $(sed -n "s/.*replaying '.*\/\(.*\)'/\1/p" "$dir/replay.log"):" \
    "$(json "$dir/replay.json" lockstep.positions_compared) positions and $(json "$dir/replay.json" lockstep.segments_compared)" \
    "times all RAM compared; parts $(json "$dir/beta.json" kept_log.parts)"
