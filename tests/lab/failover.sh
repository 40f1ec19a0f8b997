#!/bin/bash
# A pair loses alpha, beta or its rail while a client counts: nothing is lost, and exactly one host goes on.
# usage: failover.sh alpha|beta|rail [OPTION of scripts/demo...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

what=$1
shift
# shellcheck disable=SC2086 # two words
"$top/scripts/demo" $silence --lab "$FTVMM_LAB" --kill "$what" --seed "${TEST_SEED:-1}" --out "$TEST_OUT" "$@"
result=$TEST_OUT/result.json
expect_json "$result" ok true
expect_json "$result" counter.lost 0
expect_json "$result" counter.duplicated 0
case $what in
alpha) expect_json "$result" survivor '"beta"' ;;
beta) expect_json "$result" survivor '"alpha"' ;;
esac
