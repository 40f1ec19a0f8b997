#!/bin/bash
# One guest, started once, outlives its hosts, and each time gets a new backup by itself. A client counts all the while
# over connections that it opened at the beginning; others write, read and count, and their history must be linearizable.
# usage: many_failovers.sh [WHAT...]   one after the other: power (the host where the guest lives loses it), kill (only
#        its ftvmm), backup (that of the other host is killed), rail (cut, both alive), handover. Default: one of each
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

laps=("$@")
[ $# -gt 0 ] || laps=(power backup rail handover kill)
lap_limit_s=150
guest_address=10.8.0.50
shared=$(shared_dir)
run_dir=$(mktemp -d "$shared/many.XXXXXX")
host_dir=/shared/$(basename "$run_dir")
control=/run/many.sock
mkdir -p "$shared/arbiter-many"
(umask 077; head -c 32 /dev/urandom >"$run_dir/key")
declare -A pid=() address=([alpha]=10.9.0.1 [beta]=10.9.0.2)

leave() {
    local rc=$? host
    trap - EXIT
    set +e
    for host in gamma alpha beta; do
        [ -z "${pid[$host]:-}" ] || lab run --timeout 30 "$host" -- "touch /run/many.stop; kill -TERM -- -${pid[$host]} 2>/dev/null
            for i in \$(seq 50); do kill -0 -- -${pid[$host]} 2>/dev/null || exit 0; sleep 0.2; done
            kill -KILL -- -${pid[$host]}" >/dev/null 2>&1
    done
    cp -f "$run_dir"/*.{log,json,console} "$TEST_OUT"/ 2>/dev/null
    rm -rf --one-file-system "$run_dir" "$shared/arbiter-many"
    exit "$rc"
}
trap leave EXIT

# shellcheck disable=SC2119 # of the usual image
guest="--name many $(guest_images) --append 'quiet ftvmm.ip=$guest_address/24' --net af_packet:lan --arbiter dir:/shared/arbiter-many \
    --control $control --key /run/many.key --max-pause 400 $pace $silence"

# What a unit with Restart=always does: whoever ends is a backup next.
supervise() { # HOST FIRST_COMMAND OTHER
    local host=$1 listen="verbs:${address[$1]}:7471" spare="verbs:${address[$3]}:7471"
    pid[$host]=$(lab run --background --log "$host_dir/$host.log" "$host" -- "
        install -m 600 $host_dir/key /run/many.key; rm -f /run/many.stop; trap : TERM
        command='$2'
        until [ -e /run/many.stop ]; do
            case \$command in
            primary) role='primary --backup $spare' ;;
            *) role='backup --listen $listen --join-timeout 0' ;;
            esac
            /src/build/vmm/ftvmm \$role --spare $spare $guest --console $host_dir/$host.console &
            echo \$! >/run/many.pid
            wait \$!; echo \"ftvmm has ended with status \$?\"
            command=backup
        done")
}

status() { # HOST PATH: a value of its status; "none" if nobody answers
    lab run --timeout 30 "$1" -- "timeout 10 /src/build/ftctl/ftctl --socket $control --json status" >"$run_dir/$1.json" 2>/dev/null || :
    json "$run_dir/$1.json" "status.$2" 2>/dev/null || echo none
}

other_of() { [ "$1" = alpha ] && echo beta || echo alpha; }

# The host that has the guest, protected in a later generation than that one.
await_protected() { # GENERATION
    local begun=$SECONDS host found
    until [ $((SECONDS - begun)) -ge $lap_limit_s ]; do
        for host in alpha beta; do
            [ "$(status $host role)" = '"primary"' ] || continue
            [ "$(json "$run_dir/$host.json" status.protected)" = true ] || continue
            found=$(json "$run_dir/$host.json" status.generation)
            [ "$found" -gt "$1" ] || continue
            live=$host generation=$found
            return
        done
        [ ! -s "$run_dir/counter.rc" ] || fail "the client has ended: $(tail -n 3 "$run_dir/counter.log")"
        sleep 1
    done
    fail "the guest is not protected after $lap_limit_s s: $(tail -n 5 "$run_dir/alpha.log" "$run_dir/beta.log")"
}

supervise beta backup alpha
supervise alpha primary beta
begun=$SECONDS
until [ "$(lab run --timeout 10 gamma -- "timeout 3 redis-cli -h $guest_address ping" 2>/dev/null)" = PONG ]; do
    [ $((SECONDS - begun)) -lt 240 ] || fail "redis in the guest does not answer: $(tail -n 5 "$run_dir/alpha.log")"
    sleep 2
done
await_protected 0
echo "the guest is up after $((SECONDS - begun)) s"
pid[gamma]=$(lab run --background --log "$host_dir/gamma.log" gamma -- "/src/build/bench/ftbench counter --host $guest_address \
    --connections 4 --pipeline 4 --seconds 10800 --patience 60 --json $host_dir/counter.json >$host_dir/counter.log 2>&1 & \
    /src/build/bench/ftbench history --host $guest_address --clients 3 --pause 200 --seconds 10800 --patience 60 \
    --json $host_dir/history.json >$host_dir/history.log 2>&1; echo \$? >$host_dir/history.rc; wait \$!; \
    echo \$? >$host_dir/counter.rc" 2>/dev/null) || fail "the client does not start"

for what in "${laps[@]}"; do
    sleep 4
    began=$SECONDS was=$live
    case $what in
    power) lab kill "$live" ;;
    kill) lab run "$live" -- "kill -KILL \$(cat /run/many.pid)" ;;
    backup) lab run "$(other_of "$live")" -- "kill -KILL \$(cat /run/many.pid)" ;;
    rail) lab cut alpha rail ;;
    handover) lab run --timeout 60 "$live" -- "/src/build/ftctl/ftctl --socket $control failover" >/dev/null ;;
    *) fail "'$what' is none of power, kill, backup, rail, handover" ;;
    esac || fail "no $what"
    case $what in
    power)
        sleep 5
        lab up "$was" || fail "$was does not boot again"
        supervise "$was" backup "$(other_of "$was")"
        ;;
    rail)
        sleep 8
        lab join alpha rail
        ;;
    esac
    await_protected "$generation"
    echo "$what: the guest was on $was and is on $live, protected again after $((SECONDS - began)) s; transfer" \
        "$(json "$run_dir/$live.json" status.protection.took_ms) ms, $(($(json "$run_dir/$live.json" status.protection.sent_bytes) >> 20)) MiB in" \
        "$(json "$run_dir/$live.json" status.protection.rounds) rounds, pause $(json "$run_dir/$live.json" status.protection.pause_us) us"
done
sleep 4
lab run gamma -- "kill -TERM \$(pidof ftbench)" || fail "the client cannot be stopped"
for _ in $(seq 60); do [ -s "$run_dir/counter.rc" ] && break; sleep 1; done
[ "$(cat "$run_dir/counter.rc" 2>/dev/null)" = 0 ] || fail "the client ended with $(cat "$run_dir/counter.rc" 2>/dev/null): $(tail -n 5 "$run_dir/counter.log")"
expect_json "$run_dir/counter.json" lost 0
expect_json "$run_dir/counter.json" duplicated 0
expect_json "$run_dir/counter.json" reconnects 0
[ "$(cat "$run_dir/history.rc")" = 0 ] || fail "the history: $(tail -n 5 "$run_dir/history.log")"
expect_json "$run_dir/history.json" linearizable true
expect_json "$run_dir/history.json" reconnects 0
echo "history: $(json "$run_dir/history.json" register_operations) operations on a register and" \
    "$(json "$run_dir/history.json" counter_operations) on a counter, linearizable"
echo "one guest, ${#laps[@]} failures; $(json "$run_dir/counter.json" acknowledged) increments, none lost, none twice, no new connection; longest gap" \
    "$(json "$run_dir/counter.json" longest_gap_ms) ms"
