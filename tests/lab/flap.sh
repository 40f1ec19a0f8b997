#!/bin/bash
# The rail of a loaded pair is away for a while, and back before anybody gives the other up: the pair joins again by itself
# and goes on, the client loses nothing, and the machines stay equal.
# usage: flap.sh [OPTION of scripts/demo...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

"$top/scripts/demo" --lab "$FTVMM_LAB" --kill flap --seed "${TEST_SEED:-1}" --out "$TEST_OUT" --seconds 25 "$@"
result=$TEST_OUT/result.json
expect_json "$result" ok true
expect_json "$result" counter.lost 0
expect_json "$result" counter.duplicated 0
for host in alpha beta; do
    expect_more_than "$TEST_OUT/$host.json" channel.resumes 0
    expect_json "$TEST_OUT/$host.json" lockstep.divergences 0
    grep -a 'the link is' "$TEST_OUT/$host.log" || fail "$host has not said that the link was down, and up again"
done
echo "the client's longest pause: $(json "$result" counter.longest_gap_ms) ms"
