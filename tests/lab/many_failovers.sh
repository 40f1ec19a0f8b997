#!/bin/bash
# One guest, started once, outlives its hosts' ftvmm again and again: killed, or asked to hand over, in turn; each time
# the survivor gives the running guest a new backup by itself. A client counts all the while over connections that it
# opened at the beginning.
# usage: many_failovers.sh [LAPS]   (default 4)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

laps=${1:-4}
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

guest="--name many $(guest_images) --append ftvmm.ip=$guest_address/24 --net af_packet:lan --arbiter dir:/shared/arbiter-many \
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

await() { # HOST PATH VALUE
    local begun=$SECONDS
    until [ "$(status "$1" "$2")" = "$3" ]; do
        [ $((SECONDS - begun)) -lt $lap_limit_s ] || fail "$1's $2 is not $3 after $lap_limit_s s: $(tail -n 5 "$run_dir/$1.log")"
        sleep 1
    done
}

supervise beta backup alpha
supervise alpha primary beta
begun=$SECONDS
until [ "$(lab run --timeout 10 gamma -- "timeout 3 redis-cli -h $guest_address ping" 2>/dev/null)" = PONG ]; do
    [ $((SECONDS - begun)) -lt 240 ] || fail "redis in the guest does not answer: $(tail -n 5 "$run_dir/alpha.log")"
    sleep 2
done
await alpha protected true
echo "the guest is up after $((SECONDS - begun)) s"
pid[gamma]=$(lab run --background --log "$host_dir/gamma.log" gamma -- "/src/build/bench/ftbench counter --host $guest_address \
    --connections 4 --pipeline 4 --seconds 3600 --patience 60 --json $host_dir/counter.json >$host_dir/counter.log 2>&1; \
    echo \$? >$host_dir/counter.rc" 2>/dev/null) || fail "the client does not start"

live=alpha other=beta
for lap in $(seq "$laps"); do
    sleep 4
    began=$SECONDS
    if [ $((lap % 3)) = 0 ]; then
        how="hands over"
        lab run --timeout 60 $live -- "/src/build/ftctl/ftctl --socket $control failover" >/dev/null || fail "$live does not hand over"
    else
        how="is killed"
        lab run $live -- "kill -KILL \$(cat /run/many.pid)" || fail "ftvmm on $live cannot be killed"
    fi
    [ $live = alpha ] && live=beta other=alpha || live=alpha other=beta
    await $live role '"primary"' # it was alone in between, and did not stay so
    await $live protected true
    await $other role '"backup"'
    [ ! -s "$run_dir/counter.rc" ] || fail "the client has ended: $(tail -n 3 "$run_dir/counter.log")"
    echo "lap $lap: $other $how, $live protected again after $((SECONDS - began)) s; transfer $(status $live protection.took_ms) ms," \
        "$(($(status $live protection.sent_bytes) >> 20)) MiB in $(status $live protection.rounds) rounds, pause $(status $live protection.pause_us) us"
done
sleep 4
lab run gamma -- "kill -TERM \$(pidof ftbench)" || fail "the client cannot be stopped"
for _ in $(seq 60); do [ -s "$run_dir/counter.rc" ] && break; sleep 1; done
[ "$(cat "$run_dir/counter.rc" 2>/dev/null)" = 0 ] || fail "the client ended with $(cat "$run_dir/counter.rc" 2>/dev/null): $(tail -n 5 "$run_dir/counter.log")"
expect_json "$run_dir/counter.json" lost 0
expect_json "$run_dir/counter.json" duplicated 0
expect_json "$run_dir/counter.json" reconnects 0
echo "$laps failovers of one guest; $(json "$run_dir/counter.json" acknowledged) increments, none lost, none twice, no new connection; longest gap" \
    "$(json "$run_dir/counter.json" longest_gap_ms) ms"
