#!/bin/bash
# Every link keeps its promises on a lab host, where there is soft-RoCE: the tests of tests/unit/channel, conformance, 120
# broken connections that are resumed, and 200 kills of either end.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

rc=0
lab run --timeout 180 alpha -- 'cd /tmp; FTVMM_TEST_VERBS=10.9.0.1 timeout 160 /src/build/tests/unit/channel/test_channel_links 2>&1' \
    >"$TEST_OUT/links.log" || rc=$?
grep -a 'FAILED\|PASSED\|ERROR\|LINE' "$TEST_OUT/links.log" || true
[ $rc = 0 ] || fail "status $rc"
[ "$(grep -ac 'PASSED' "$TEST_OUT/links.log")" = 2 ] || fail "the groups 'anywhere' and 'verbs' should both have run"
lab run --timeout 300 alpha -- 'cd /tmp; FTVMM_TEST_VERBS=10.9.0.1 timeout 280 /src/build/tests/unit/channel/test_channel_resume 2>&1' \
    >"$TEST_OUT/resume.log" || rc=$?
grep -a 'FAILED\|PASSED\|ERROR\|LINE\|resumes' "$TEST_OUT/resume.log" || true
[ $rc = 0 ] || fail "resumes: status $rc"
lab run --timeout 480 alpha -- 'cd /tmp; FTVMM_TEST_VERBS=10.9.0.1 timeout 460 /src/build/tests/unit/channel/test_channel_kill 2>&1' \
    >"$TEST_OUT/kill.log" || rc=$?
grep -a 'FAILED\|PASSED\|ERROR\|LINE\|deaths' "$TEST_OUT/kill.log" || true
[ $rc = 0 ] || fail "kills: status $rc"
