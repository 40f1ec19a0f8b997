#!/bin/bash
# A witness on gamma, asked by alpha and beta over soft-RoCE: every promise of an arbiter; races between the two hosts;
# the same while the witness is killed, and its host loses power: never two winners.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

where=rdma:10.9.0.3:7480
witness=/src/build/witness/ftwitness
probe=/src/build/tests/unit/witness/witness-probe
lab up gamma 2>/dev/null # it may have been killed by a test before

# In the shared directory, so that the state outlives its host. One key for all VMs here.
shared=$(shared_dir)
run=$(mktemp -d "$shared/witness.XXXXXX")
chmod 755 "$run"
on_host=/shared/$(basename "$run")
pid=
leave() {
    [ -z "$pid" ] || lab run --timeout 20 gamma -- kill -- "-$pid" 2>/dev/null || true
    cp "$run"/*.log "$TEST_OUT/" 2>/dev/null || true
    rm -rf --one-file-system "$run"
}
trap leave EXIT

mkdir -m 700 "$run/keys" "$run/state"
(umask 077; head -c 32 /dev/urandom >"$run/keys/race")
for i in $(seq 11); do cp "$run/keys/race" "$run/keys/c$i"; cp "$run/keys/race" "$run/keys/c$i.1"; done
chown -R nobody: "$run/keys" "$run/state"

start() { # the witness, without any rights of root
    pid=$(lab run --background --log "$on_host/witness-$1.log" gamma -- \
        "$witness --listen 10.9.0.3:7480 --keys $on_host/keys --state $on_host/state --user nobody")
    for _ in $(seq 50); do
        ! grep -q 'witness at' "$run/witness-$1.log" 2>/dev/null || return 0
        sleep 0.2
    done
    fail "the witness does not start: $(cat "$run/witness-$1.log")"
}
start 1
for host in alpha beta; do
    lab run $host -- "mkdir -p -m 700 /run/witness && install -m 600 $on_host/keys/race /run/witness/key"
done
asked="-a $where -A /run/witness"

lab run --timeout 120 alpha -- "$probe $asked conformance 2>&1" >"$TEST_OUT/conformance.log" || fail "conformance: see conformance.log"
grep -a 'PASSED' "$TEST_OUT/conformance.log"

race() { # NAME SECONDS OPTIONS: in the background; its result is in NAME.log
    # shellcheck disable=SC2086 # options
    lab run --timeout "$2" alpha -- "$probe $asked -v race $3 first 7481 2>$on_host/$1-alpha.log" >"$TEST_OUT/$1.log" &
    first=$!
    lab run --timeout "$2" beta -- "$probe $asked -v race $3 second 10.9.0.1 7481 2>$on_host/$1-beta.log" >"$TEST_OUT/$1-second.log" &
    second=$!
}

race calm 240 '-t 90'
wait $first || fail "races: $(cat "$TEST_OUT/calm.log")"
wait $second || fail "races, beta"
cat "$TEST_OUT/calm.log"
grep -q '^both [0-9]* held 0 none 0 double 0$' "$TEST_OUT/calm.log" || fail "each race should have one winner"
read -r _ both _ <<<"$(grep '^both' "$TEST_OUT/calm.log")"
[ "$both" -ge 30 ] || fail "only $both races in 90 s"

# Somebody else's protocol at its port is told off, and changes nothing.
lab run --timeout 30 alpha -- "timeout 20 /src/build/tests/unit/channel/channel-probe -j 3000 send verbs:10.9.0.3:7480 2>&1" \
    >"$TEST_OUT/nonsense.log" && fail "a channel joined a witness"
grep -q 'does not speak this channel' "$TEST_OUT/nonsense.log" || fail "the channel says: $(cat "$TEST_OUT/nonsense.log")"
grep -q 'does not speak our version of the witness' "$run/witness-1.log" || fail "the witness says nothing of the stranger"

# Each death leaves at most one race without an end: who has won keeps it, the other may never hear.
race deaths 300 '-t 90 -p 4000'
for life in 2 3 4; do
    sleep 3
    lab run gamma -- kill -KILL -- "-$pid"
    sleep 1
    start $life
done
sleep 3
lab kill gamma
lab start gamma
start 5
wait $first || fail "races and deaths: $(cat "$TEST_OUT/deaths.log")"
wait $second || fail "races and deaths, beta"
cat "$TEST_OUT/deaths.log"
grep -q 'double 0$' "$TEST_OUT/deaths.log" || fail "two winners"
read -r _ both _ held _ none _ <<<"$(grep '^both' "$TEST_OUT/deaths.log")"
[ "$both" -gt 20 ] || fail "hardly a race was decided between the deaths"
[ $((held + none)) -le 4 ] || fail "more than one race for each death has come to nothing"

# SIGTERM ends it, in order.
lab run gamma -- kill -TERM -- "-$pid"
for _ in $(seq 25); do
    lab run gamma -- "kill -0 -- -$pid 2>/dev/null" || { pid=; break; }
    sleep 0.2
done
[ -z "$pid" ] || fail "SIGTERM does not end the witness"
