#!/bin/bash
# A guest writes numbered sectors, each durably, and reports each over the network. The primary's host loses its power,
# the guest goes on, the other host loses its power as well: what was reported is on the disk that was left, and what
# was reported before the first loss is on both copies. With `again` the first host comes back before the second loss, its
# copy spoilt, as the new backup of the running guest; and is the one that is left in the end.
# usage: disk_failover.sh mirrored|shared [again]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

mode=$1 again=${2:-}
seed=${TEST_SEED:-1}
dir=$(mktemp -d "$(shared_dir)/disk.XXXXXX")
there=/shared/$(basename "$dir")
images=$(guest_images)
mkdir -p "$dir/arbiter"

# shellcheck disable=SC2317 # a trap calls it
leave() {
    local rc=$? host
    trap - EXIT
    set +e
    cp -f "$dir"/*.{json,log,console} "$dir/reports" "$TEST_OUT"/ 2>/dev/null
    for host in alpha beta; do lab kill $host 2>/dev/null; done
    [ -z "${listener:-}" ] || lab run --timeout 20 gamma -- "kill -- -$listener" 2>/dev/null
    lab up alpha beta 2>/dev/null || echo "the lab's hosts could not be booted again" >&2
    rm -rf --one-file-system "$dir"
    exit "$rc"
}
trap leave EXIT

reports() { if [ -e "$dir/reports" ]; then wc -l <"$dir/reports"; else echo 0; fi; }
await_reports() { # NUMBER LIMIT_S
    local begun=$SECONDS
    until [ "$(reports)" -ge "$1" ]; do
        [ $((SECONDS - begun)) -lt "$2" ] || fail "$(reports) reports after $2 s, not $1: $(tail -qn 1 "$dir"/*.log)"
        sleep 0.2
    done
}

# The images outlive their hosts; a host that loses its power loses all that it had only cached of them.
for host in alpha beta; do truncate -s 16M "$dir/$host.img"; done
disk() { if [ "$mode" = mirrored ]; then echo "$there/$1.img"; else echo "$there/alpha.img,mode=shared"; fi; }
guest="$images --name disk --append 'quiet ftvmm.ip=10.8.0.10/24 ftvmm.run=disk-load+append+10.8.0.3+7000' --net af_packet:lan \
    --arbiter dir:$there/arbiter $silence"
listener=$(lab run --background --log /tmp/disk-reports.log gamma -- "socat -u TCP-LISTEN:7000,reuseaddr OPEN:$there/reports,creat,append")
lab run --background --log "$there/beta.log" beta -- "$ftvmm backup --listen verbs:10.9.0.2:7471 $guest --disk $(disk beta) \
    --spare verbs:10.9.0.1:7471 --max-pause 400 --status $there/beta.json --console $there/beta.console" >/dev/null
lab run --background --log "$there/alpha.log" alpha -- "$ftvmm primary --backup verbs:10.9.0.2:7471 $guest --disk $(disk alpha) \
    $pace --status $there/alpha.json --console $there/alpha.console" >/dev/null

await_reports 10 300
RANDOM=$seed
sleep "$((RANDOM % 5)).$(printf %03d $((RANDOM % 1000)))"
before=$(reports)
lab kill alpha
# Seen after the deed, and reported before it or by the survivor: the disk that is left must have it either way.
await_reports $((before + 20)) 120
survivor=beta
if [ "$again" = again ]; then
    lab up alpha
    [ "$mode" = shared ] || head -c 16M /dev/urandom >"$dir/alpha.img"
    lab run --background --log "$there/again.log" alpha -- "for i in 1 2 3; do $ftvmm backup --listen verbs:10.9.0.1:7471 \
        --join-timeout 0 $guest --disk $(disk alpha) --status $there/again.json --console $there/again.console && break; done" >/dev/null
    begun=$SECONDS
    until [ "$(json "$dir/beta.json" protected 2>/dev/null)" = true ]; do
        [ $((SECONDS - begun)) -lt 180 ] || fail "the new backup does not come: $(tail -qn 2 "$dir"/*.log)"
        sleep 1
    done
    echo "protected again: $(json "$dir/beta.json" protection)"
    await_reports $(($(reports) + 20)) 120
    survivor=alpha
fi
lab kill beta
if [ $survivor = alpha ]; then
    await_reports $(($(reports) + 20)) 120
    lab kill alpha
fi
sleep 1
python3 - "$dir" "$mode" "$before" "$survivor" <<'PYTHON' || fail "what the guest has reported is not on disk"
import sys
directory, mode, before = sys.argv[1], sys.argv[2], int(sys.argv[3])
lines = open(directory + "/reports", encoding="ascii").read().split("\n")[:-1]
numbers = [int(line) for line in lines]
wrong = [] if numbers == list(range(1, len(numbers) + 1)) else ["the reports are not 1, 2, 3, ..."]
def missing(name, numbers):
    image = open(f"{directory}/{name}.img", "rb").read()
    return [n for n in numbers if image[512 * n:512 * n + 512] != b"%-511d\n" % n]
survivor = sys.argv[4] if mode == "mirrored" else "alpha"
lost = missing(survivor, numbers)
if lost:
    wrong.append(f"reported, and not on the survivor's disk: {lost[:10]} ({len(lost)} in all)")
lost = missing("alpha", numbers[:before]) # if it came back: these too have come with the copy
if lost:
    wrong.append(f"reported before the power loss, and not on the first primary's disk: {lost[:10]}")
for sentence in wrong:
    print("WRONG:", sentence)
print(f"{len(numbers)} sectors reported, {before} of them before the first power loss; {mode}")
sys.exit(bool(wrong))
PYTHON
grep -q 'live at position' "$dir/beta.log" || fail "beta has not gone live: $(tail -n 1 "$dir/beta.log")"
