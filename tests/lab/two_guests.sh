# Two guests side by side, for what measures the one against the other: a pair on alpha and beta (10.8.0.10), and the same
# guest without protection on alpha (10.8.0.11). Sourced after lib.sh by the scripts that measure.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # those who source this use them; lib.sh sets others
protected=10.8.0.10 unprotected=10.8.0.11
# Both ftvmm serve their metrics on alpha's loopback; the client reaches them over the rail.
protected_metrics=10.9.0.1:9101 unprotected_metrics=10.9.0.1:9102
guest_limit_s=300

dir=$(mktemp -d "$(shared_dir)/guests.XXXXXX")
there=/shared/$(basename "$dir")
started=() # "HOST PID": of what runs there, each the leader of a process group

# shellcheck disable=SC2317 # a trap calls it
leave_guests() {
    local rc=$? one
    trap - EXIT
    set +e
    for one in "${started[@]}"; do # HOST PID
        lab run --timeout 30 "${one% *}" -- "kill -TERM -- -${one#* } 2>/dev/null; for i in \$(seq 50); do
            kill -0 -- -${one#* } 2>/dev/null || exit 0; sleep 0.2; done; kill -KILL -- -${one#* }" >/dev/null 2>&1
    done
    cp -f "$dir"/*.* "$TEST_OUT"/ 2>/dev/null
    rm -rf --one-file-system "$dir"
    exit "$rc"
}
trap leave_guests EXIT

start_on() { # HOST NAME COMMAND: in the background, with NAME.log
    started+=("$1 $(lab run --background --log "$there/$2.log" "$1" -- "$3")")
}

# What both guests and the pair have in common; then they boot.
start_two_guests() { # GUEST_OPTIONS APPEND
    local host guest=$1 append=$2
    mkdir -p "$dir/arbiter"
    start_on beta beta "exec $ftvmm backup --listen verbs:10.9.0.2:7471 $guest --name bench --net af_packet:lan \
        --append 'ftvmm.ip=$protected/24 $append' --arbiter dir:$there/arbiter --control none --status $there/beta.json \
        --console $there/beta.console"
    start_on alpha alpha "exec $ftvmm primary --backup verbs:10.9.0.2:7471 $guest --name bench --net af_packet:lan \
        --append 'ftvmm.ip=$protected/24 $append' --arbiter dir:$there/arbiter --control none --status $there/alpha.json \
        --console $there/alpha.console --metrics 127.0.0.1:${protected_metrics##*:} $pace"
    start_on alpha alone "exec $ftvmm run $guest --name alone --net af_packet:lan --append 'ftvmm.ip=$unprotected/24 $append' \
        --control none --status $there/alone.json --console $there/alone.console \
        --metrics 127.0.0.1:${unprotected_metrics##*:} $pace"
    for host in "$protected_metrics" "$unprotected_metrics"; do
        start_on alpha "forward-${host##*:}" \
            "exec socat TCP-LISTEN:${host##*:},bind=${host%:*},fork,reuseaddr TCP:127.0.0.1:${host##*:}"
    done
}

await_service() { # ADDRESS COMMAND: until the command succeeds on the client's host
    local begun=$SECONDS
    until lab run --timeout 15 gamma -- "timeout 10 $2" >/dev/null 2>&1; do
        [ $((SECONDS - begun)) -lt $guest_limit_s ] ||
            fail "the guest at $1 does not answer after $guest_limit_s s: $(tail -qn 1 "$dir"/*.log "$dir"/*.console | tr -d '\r' | tail -n 6)"
        sleep 1
    done
    echo "the guest at $1 answers after $((SECONDS - begun)) s"
}
