#!/bin/bash
# The memory of a loaded pair's backup is changed behind its back: it finds out, saves what it knows, is sent the guest anew
# while that runs on, and is then a backup that loses nothing when its primary dies.
# usage: heal.sh [OPTION of scripts/demo...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

# shellcheck disable=SC2086 # two words
"$top/scripts/demo" $silence --lab "$FTVMM_LAB" --kill alpha --spoil --seconds 90 --no-verify --seed "${TEST_SEED:-1}" \
    --out "$TEST_OUT" "$@"
result=$TEST_OUT/result.json
expect_json "$result" ok true
expect_json "$result" counter.lost 0
expect_json "$result" counter.duplicated 0
expect_json "$result" survivor '"beta"'
expect_more_than "$TEST_OUT/beta.json" lockstep.healed 0
grep -a 'the machines differ' "$TEST_OUT/beta.log" || fail "beta has not said that it differs"
grep -a 'is the primary.s again' "$TEST_OUT/beta.log" || fail "beta has not said that it is whole"
grep -a 'the backup is whole again' "$TEST_OUT/alpha.log" || fail "alpha has not said that its backup is whole"
saved=$(sed -n "s/.*what was found of the difference is in '\(.*\)'.*/\1/p" "$TEST_OUT/beta.log" | tail -n 1)
lab run --timeout 30 beta -- "cat '$saved'" >"$TEST_OUT/difference.json" || fail "beta has saved nothing of the difference"
expect_json "$TEST_OUT/difference.json" outcome '"healed"'
expect_more_than "$TEST_OUT/difference.json" differing_count 0
