#!/bin/bash
# A fleet of two hosts with an agent on each, and etcd on gamma. A guest that was started alone on alpha gets its backup on
# beta, over soft-RoCE; alpha loses its power; when it is back, and its agent, the guest on beta gets its backup there. Nobody
# names an address. A client counts all the while.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

limit_s=180
guest_address=10.8.0.51
etcd=http://10.9.0.3:2379
shared=$(shared_dir)
run_dir=$(mktemp -d "$shared/fleet.XXXXXX")
host_dir=/shared/$(basename "$run_dir")
control=/run/fleet.sock
mkdir -p "$shared/arbiter-fleet"
(umask 077; head -c 32 /dev/urandom >"$run_dir/key")
declare -A address=([alpha]=10.9.0.1 [beta]=10.9.0.2)
groups=() # "HOST ID" of what runs in the background

leave() {
    local rc=$? group
    trap - EXIT
    set +e
    lab run --timeout 60 beta -- "timeout 50 /src/build/ftctl/ftctl --socket $control stop" >/dev/null 2>&1
    for group in "${groups[@]}"; do
        lab run --timeout 20 "${group% *}" -- "kill -TERM -- -${group#* }; sleep 1; kill -KILL -- -${group#* }" >/dev/null 2>&1
    done
    cp -f "$run_dir"/*.{log,json,console} "$TEST_OUT"/ 2>/dev/null
    rm -rf --one-file-system "$run_dir" "$shared/arbiter-fleet"
    exit "$rc"
}
trap leave EXIT

# shellcheck disable=SC2119,SC2206,SC2207 # words; of the usual image
guest=($(guest_images) --append "quiet ftvmm.ip=$guest_address/24" --net af_packet:lan --arbiter dir:/shared/arbiter-fleet
    --control $control --key /run/fleet.key --max-pause 400 $pace $silence)

agent() { # HOST: describes the guest there and starts the agent
    local host=$1 id
    python3 - "verbs:${address[$1]}:7472" "${guest[@]}" --console "$host_dir/$host.console" >"$run_dir/$host-vm.txt" <<'PYTHON'
import json, sys
print(json.dumps({"listen": sys.argv[1], "memory_mib": 256, "arguments": sys.argv[2:]}))
PYTHON
    id=$(lab run --background --log "$host_dir/$host.log" "$host" -- "install -m 600 $host_dir/key /run/fleet.key
        install -d -m 700 /run/fleet /run/fleet/vms; install -m 600 $host_dir/$host-vm.txt /run/fleet/vms/fleet.json
        exec /src/build/fleet/ftagent run --fleet $etcd --memory 256 --name $host --vms /run/fleet/vms --run /run/fleet/run \
            --ftvmm $ftvmm") || fail "no agent on $host"
    groups+=("$host $id")
}

# The guest lives on HOST, protected, and its backup is where the fleet has found room.
await_protected() { # HOST BACKUP
    local begun=$SECONDS
    until [ $((SECONDS - begun)) -ge $limit_s ]; do
        lab run --timeout 30 "$1" -- "timeout 10 /src/build/ftctl/ftctl --socket $control --json status" >"$run_dir/$1.json" 2>/dev/null || :
        if [ "$(json "$run_dir/$1.json" status.protected 2>/dev/null)" = true ]; then
            expect_json "$run_dir/$1.json" status.role '"primary"'
            expect_json "$run_dir/$1.json" status.protection.spare_host "\"$2\""
            return
        fi
        sleep 1
    done
    fail "the guest on $1 is not protected after $limit_s s: $(tail -n 5 "$run_dir"/*.log)"
}

id=$(lab run --background --log "$host_dir/etcd.log" gamma -- "exec etcd --data-dir /tmp/fleet-etcd --log-outputs stderr \
    --listen-client-urls $etcd --advertise-client-urls $etcd")
groups+=("gamma $id")
for _ in $(seq 150); do
    ! grep -q 'ready to serve client requests' "$run_dir/etcd.log" 2>/dev/null || break
    sleep 0.2
done
agent alpha
agent beta
words=$(printf " '%s'" "${guest[@]}")
id=$(lab run --background --log "$host_dir/guest.log" alpha -- "exec $ftvmm run --name fleet --memory 256 $words --fleet $etcd \
    --spare fleet:alpha --console $host_dir/first.console")
groups+=("alpha $id")
begun=$SECONDS
until [ "$(lab run --timeout 10 gamma -- "timeout 3 redis-cli -h $guest_address ping" 2>/dev/null)" = PONG ]; do
    [ $((SECONDS - begun)) -lt 240 ] || fail "redis in the guest does not answer: $(tail -n 5 "$run_dir/guest.log")"
    sleep 2
done
await_protected alpha beta
echo "the guest is up and has its backup on beta after $((SECONDS - begun)) s"
id=$(lab run --background --log "$host_dir/gamma.log" gamma -- "/src/build/bench/ftbench counter --host $guest_address \
    --connections 4 --pipeline 4 --seconds 3600 --patience 60 --json $host_dir/counter.json >$host_dir/counter.log 2>&1; \
    echo \$? >$host_dir/counter.rc" 2>/dev/null) || fail "the client does not start"
groups+=("gamma $id")
sleep 4
began=$SECONDS
lab kill alpha || fail "alpha does not die"
sleep 5
lab up alpha || fail "alpha does not boot again"
agent alpha
await_protected beta alpha
echo "alpha lost its power: the guest is on beta, and has its backup on alpha again after $((SECONDS - began)) s"
lab run --timeout 60 beta -- "/src/build/fleet/ftagent status --json --fleet $etcd" >"$run_dir/fleet.json" || fail "no status of the fleet"
[ "$(python3 -c 'import json, sys
print(sorted((h["name"], h["free_mib"]) for h in json.load(open(sys.argv[1]))["hosts"] if h["present"]))' "$run_dir/fleet.json")" = \
    "[('alpha', 0), ('beta', 0)]" ] || fail "the fleet is: $(cat "$run_dir/fleet.json")"
sleep 4
lab run gamma -- "kill -TERM \$(pidof ftbench)" || fail "the client cannot be stopped"
for _ in $(seq 60); do [ -s "$run_dir/counter.rc" ] && break; sleep 1; done
[ "$(cat "$run_dir/counter.rc" 2>/dev/null)" = 0 ] || fail "the client ended with $(cat "$run_dir/counter.rc" 2>/dev/null): $(tail -n 5 "$run_dir/counter.log")"
expect_json "$run_dir/counter.json" lost 0
expect_json "$run_dir/counter.json" duplicated 0
expect_json "$run_dir/counter.json" reconnects 0
echo "$(json "$run_dir/counter.json" acknowledged) increments, none lost, none twice, no new connection; longest gap" \
    "$(json "$run_dir/counter.json" longest_gap_ms) ms"
