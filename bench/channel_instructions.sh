#!/bin/bash
# Instructions per record on the committing and on the receiving thread, counted by valgrind: the same on every run and
# every machine with the same build, so that a change of one shows. Prints `name value unit`.
# usage: channel_instructions.sh PROGRAM [PAYLOAD_BYTES...]
set -euo pipefail

program=$1
shift
[ $# -gt 0 ] || set -- 24 216 4056
records=20000

command -v valgrind >/dev/null || { echo "valgrind is not installed; Debian's package valgrind has it"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

counted() { # PAYLOAD FUNCTION...: instructions per record within these functions
    local payload=$1 toggles=()
    shift
    for function in "$@"; do toggles+=("--toggle-collect=$function"); done
    timeout 120 valgrind --tool=callgrind --callgrind-out-file="$work/out" "${toggles[@]}" \
        "$program" "$records" "$payload" >"$work/said" 2>&1 ||
        { cat "$work/said" >&2; echo "channel_instructions: error: the run under valgrind failed" >&2; exit 1; }
    awk -v records="$records" '/Collected *:/ { printf "%.1f\n", $NF / records; found = 1 } END { exit !found }' "$work/said"
}

for payload in "$@"; do
    echo "commit_payload_${payload}B $(counted "$payload" channel_reserve channel_commit) instructions/record"
    echo "receive_payload_${payload}B $(counted "$payload" channel_next channel_consume) instructions/record"
done
