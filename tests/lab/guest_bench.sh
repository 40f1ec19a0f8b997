#!/bin/bash
# ftbench guest from gamma: the redis of a protected guest against that of the same guest unprotected, and, with
# LAB_QEMU=1, under QEMU with vhost-net. Fails when something could not be measured, or a count that emulation does not
# distort is absurd; what it measured is in TEST_OUT. LAB_MEMORY_MIB=2560 for the lab.
# usage: guest_bench.sh [OPTION of ftbench guest...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=two_guests.sh
source "$(dirname "$(readlink -f "$0")")/two_guests.sh"

need_guests_of 2 256
# shellcheck disable=SC2119 # the ordinary image
start_two_guests "$(guest_images)" 6379
# shellcheck disable=SC2119
start_qemu "$(guest_images)" 256 6379

# Emulated CPUs: a client that spins takes the time that the guests' hosts need.
measure guest 600 guest --spin-us 0 --rounds 3 --requests 200 --warmup 20 --idle-ms 2000 "$@"
python3 - "$dir/guest.json" <<'PYTHON' || fail "a measurement is missing or absurd"
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
values = {metric["name"]: metric["values"] for metric in result["metrics"]}
for side in ("protected", "unprotected"):
    assert min(values[f"exits_per_request.{side}"]) > 1, f"a request of the {side} guest makes exits"
    assert min(values[f"frames_in_per_request.{side}"]) > 0.9, "each request is a frame"
    for step in ("input_wait", "guest", "exit", "release", "send"):
        assert min(values[f"step_us.{side}.{step}"]) > 0, f"{step} takes no time in the {side} guest"
assert min(values["output_records_per_request.protected"]) > 0.9, "each reply waits for a record"
assert min(values["log_bytes_per_request.protected"]) > 64, "the log is empty"
assert min(values["step_us.protected.append"]) > 0, "appending takes no time"
PYTHON
