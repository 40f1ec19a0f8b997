#!/bin/bash
# An operator asks a loaded pair how it is, and moves its guest to the backup: the client loses nothing, and the old
# primary is done.
# usage: control.sh [OPTION of scripts/demo...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

# shellcheck disable=SC2086 # two words
"$top/scripts/demo" $silence --lab "$FTVMM_LAB" --kill handover --seed "${TEST_SEED:-1}" --out "$TEST_OUT" --seconds 25 --no-verify "$@"
result=$TEST_OUT/result.json
expect_json "$result" ok true
expect_json "$result" counter.lost 0
expect_json "$result" counter.duplicated 0
expect_json "$result" survivor '"beta"'
expect_json "$result" hosts.alpha.exit_status 3
expect_json "$result" handover.handover.state '"done"'
expect_json "$result" handover_on_backup.state '"done"'
# What the operator was told while all was well, and when it was over.
grep -q '^demo: primary, running, protected, generation [0-9]*$' "$TEST_OUT/alpha.status" || fail "alpha's status: $(head -n 1 "$TEST_OUT/alpha.status")"
grep -q '^demo: backup, running, generation [0-9]*$' "$TEST_OUT/beta.status" || fail "beta's status: $(head -n 1 "$TEST_OUT/beta.status")"
grep -q '^demo: alone, running, NOT PROTECTED' "$TEST_OUT/beta-live.status" || fail "beta's later status: $(head -n 1 "$TEST_OUT/beta-live.status")"
for word in "backup's lag" 'ack latency' 'output held' 'exits'; do
    grep -q "^  $word  *.*[0-9]" "$TEST_OUT/alpha.status" || fail "alpha's status does not tell '$word'"
done
for event in joined handover decided live; do
    grep -q "\"event\":\"$event\"" "$TEST_OUT/events.json" || fail "beta's events lack '$event'"
done
echo "the client's longest pause: $(json "$result" counter.longest_gap_ms) ms; the guest stood still on alpha and was live on beta" \
    "within $(python3 -c "import json; h = json.load(open('$result'))['handover']['handover']; print(round((h['taken_us'] - h['stopped_us']) / 1000, 1))") ms, as alpha saw it"
