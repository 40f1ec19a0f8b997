#!/bin/bash
# Instructions per record on the committing and on the receiving thread, counted by valgrind: the same on every run and
# every machine with the same build, so that a change of one shows. Prints `name value unit`. With a budget, a file of
# `name value`, it fails when a figure is more than 3 % above its own, and says when one is as far below.
# usage: channel_instructions.sh [--budget FILE] PROGRAM [PAYLOAD_BYTES...]
set -euo pipefail

budget=
if [ "${1:-}" = --budget ]; then
    budget=$2
    shift 2
fi
program=$1
shift
[ $# -gt 0 ] || set -- 8 24 216 4056
records=5000

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
    for name in commit receive; do
        [ $name = commit ] && functions=(channel_reserve channel_commit) || functions=(channel_next channel_consume)
        value=$(counted "$payload" "${functions[@]}")
        echo "${name}_payload_${payload}B $value instructions/record" | tee -a "$work/figures"
    done
done
[ -n "$budget" ] || exit 0
awk 'NR == FNR { if ($1 !~ /^#/ && NF == 2) budget[$1] = $2; next }
     !($1 in budget) { print "channel_instructions: error: no budget for " $1; wrong = 1; next }
     $2 > budget[$1] * 1.03 { print "channel_instructions: error: " $1 " takes " $2 " instructions, its budget is " budget[$1]; wrong = 1 }
     $2 < budget[$1] * 0.97 { print "channel_instructions: " $1 " takes less than its budget of " budget[$1] "; lower it" }
     END { exit wrong }' "$budget" "$work/figures"
