#!/bin/bash
# ftbench net guest from gamma: iperf3 into and out of a protected guest, the same guest unprotected, and, with
# LAB_QEMU=1, under QEMU with vhost-net. Fails when something could not be measured, or a count that emulation does not
# distort is absurd; what it measured is in TEST_OUT.
# usage: net_guest.sh [OPTION of ftbench net guest...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=two_guests.sh
source "$(dirname "$(readlink -f "$0")")/two_guests.sh"

command -v iperf3 >/dev/null || fail "iperf3 is not installed (scripts/setup installs it)"
carry iperf3 libiperf libsctp
start_two_guests "$(guest_images --workloads)-iperf3 --memory 128" 5201
start_qemu "$(guest_images --workloads)-iperf3" 128 5201

measure net_guest 500 "net guest" --rounds 3 "$@"
python3 - "$dir/net_guest.json" <<'PYTHON' || fail "a measurement is missing or absurd"
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
values = {metric["name"]: metric["values"] for metric in result["metrics"]}
for direction in ("receive", "transmit"):
    assert min(values[f"protected_to_unprotected.{direction}"]) > 0, f"{direction} was not compared"
    assert min(values[f"log_mbit_per_second.{direction}.protected"]) > 0, f"{direction} made no log"
assert min(values["log_bytes_per_byte.receive.protected"]) > 0.9, "what a guest receives is in the log"
PYTHON
