#!/bin/bash
# A guest sends and takes files over TCP with every setting of its network card, is recorded, and replayed on the other
# host: what arrives is what was sent, and RAM is equal to the last byte. Says what each setting costs in log and exits.
# usage: offloads.sh [MIB]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

mib=${1:-8}
settings=("7000=all" "7010=tso_off" "7020=tx_off_sg_off_tso_off_gso_off")
dir=$(mktemp -d "$(shared_dir)/offloads.XXXXXX")
there=/shared/$(basename "$dir")
log=/tmp/$(basename "$dir")
server=
# shellcheck disable=SC2329 # called when the script ends
clean() {
    cp -f "$dir"/*.json "$dir"/*.log "$dir"/console "$TEST_OUT"/ 2>/dev/null
    rm -rf --one-file-system "$dir"
    lab run --timeout 20 alpha -- "rm -f /tmp/offloads.*"
    [ -z "$server" ] || lab run --timeout 20 gamma -- "kill -- -$server 2>/dev/null; rm -f /tmp/tcp.*" || true
}
trap clean EXIT
images=$(guest_images)
load=tcp-load+10.8.0.3+$mib
for setting in "${settings[@]}"; do load+=+$setting; done

# The other end: for each setting a listener that fetches the guest's file when asked, and one that gives it back.
# shellcheck disable=SC2016 # the other end's
echo 'busybox wget -q -O "/tmp/tcp.$1" http://10.8.0.10:8000/out' >"$dir/fetch"
cat >"$dir/serve" <<'SERVE'
bytes=$(($1 << 20))
shift
seq 1 $((bytes / 4)) | head -c $bytes >/tmp/tcp.out
for pair in "$@"; do
    port=${pair%%=*}
    socat -t 300 TCP-LISTEN:$port,reuseaddr EXEC:"sh ${0%/*}/fetch $port" &
    socat -u OPEN:/tmp/tcp.out TCP-LISTEN:$((port + 1)),reuseaddr &
done
echo ready
wait
SERVE
server=$(lab run --background --log /tmp/tcp.log gamma -- sh "$there/serve" "$mib" "${settings[@]}")

rc=0
lab run --timeout 420 alpha -- "$ftvmm record $log $images --net af_packet:lan \
    --append 'quiet ftvmm.ip=10.8.0.10/24 ftvmm.run=$load' $pace --status $there/record.json \
    --console $there/console >$there/record.log 2>&1 </dev/null" || rc=$?
[ $rc = 0 ] || fail "record ended with status $rc: $(tail -n 1 "$dir/record.log")"
grep -q 'tcp-load: all equal' "$dir/console" || fail "the load in the guest failed; the console's end: $(tail -n 3 "$dir/console")"
made=$(sed -n 's/^tcp-load: made: \([0-9a-f]*\).*/\1/p' "$dir/console")
[ -n "$made" ] || fail "the guest says no digest"
for setting in "${settings[@]}"; do
    port=${setting%%=*}
    came=$(lab run gamma -- "sha256sum /tmp/tcp.$port" | cut -c1-64)
    [ "$came" = "$made" ] || fail "with $setting the guest has sent $made, and $came has come"
done
expect_more_than "$dir/record.json" net.segmented_frames 10
for lost in hold_full hold_oversize malformed transmit card_send; do
    expect_json "$dir/record.json" "net.dropped_$lost" 0
done

lab run --timeout 60 alpha -- "$ftvmm log --json $log >$there/log.json" || fail "log ended with status $?"
python3 - "$mib" "$dir/log.json" "${settings[@]}" <<'COSTS'
import json, sys
mib, path, settings = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
records = [json.loads(line) for line in open(path, encoding="utf-8")]
records = [record for record in records if "kind" in record and "lsn" in record]

def ring_bytes(record):  # header, payload, sequence word, in units of 64
    return (32 + record["bytes"] + 8 + 63) // 64 * 64

def costs(name, port):
    mine = [i for i, record in enumerate(records) if f"10.8.0.3:{port} >" in record.get("frame", "")]
    part = records[mine[0]:mine[-1] + 1]
    built = [record["frames_built"] for record in part if "frames_built" in record]
    print(f"{name}.log_bytes_per_mib {sum(map(ring_bytes, part)) // mib} bytes")
    print(f"{name}.exits_per_mib {(part[-1]['position'] - part[0]['position']) // mib} exits")
    print(f"{name}.frames_in_per_mib {sum(record['kind'] == 'frame' for record in part) // mib} frames")
    print(f"{name}.frames_out_per_mib {(built[-1] - built[0]) // mib} frames")
    print(f"{name}.outputs_per_mib {sum(record['kind'] == 'output' for record in part) // mib} records")

for setting in settings:
    port, name = setting.split("=")
    costs(f"out.{name}", int(port))
    costs(f"in.{name}", int(port) + 1)
COSTS

lab run alpha -- mv "$log" "$there/log"
lab run --timeout 300 beta -- "$ftvmm replay $there/log $images \
    --append 'quiet ftvmm.ip=10.8.0.10/24 ftvmm.run=$load' --status $there/replay.json \
    >$there/replay.log 2>&1 </dev/null" || rc=$?
[ $rc = 0 ] || fail "replay ended with status $rc: $(tail -n 1 "$dir/replay.log")"
expect_json "$dir/replay.json" end_compared true
for path in ram_digest ended lockstep.positions lockstep.frame_records; do
    expect_json "$dir/replay.json" "$path" "$(json "$dir/record.json" "$path")"
done
rm -f "$dir"/log.json # large
echo "positions $(json "$dir/replay.json" lockstep.positions), frames $(json "$dir/replay.json" lockstep.frame_records)," \
    "RAM $(json "$dir/replay.json" ram_digest)"
