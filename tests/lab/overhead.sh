#!/bin/bash
# ftbench overhead from gamma: programs in a protected guest against the same guest unprotected. Fails when something could
# not be measured; what it measured is in TEST_OUT. In the lab the log's figures tell something, the times do not.
# Two guests of 512 MB: LAB_MEMORY_MIB=2560 for the lab. With wrk on this machine
# nginx is among the programs; gamma gets a copy of it.
# usage: overhead.sh [OPTION of ftbench overhead...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=two_guests.sh
source "$(dirname "$(readlink -f "$0")")/two_guests.sh"

run=redis=300,redis_pipelined=2000,pgbench=40,openssl=2,compile=2,sqlite=1000,python=1
run+=,stress_cpu=2,stress_vm=40,stress_switch=2,stress_timer=2,stress_signal=2
if command -v wrk >/dev/null; then
    run+=,nginx=5,nginx_large=40
    carry wrk libluajit
fi
need_guests_of 2 512
images="$(guest_images --workloads) --memory 512"
# A disk for each of the three, on its own host; the database is on them already.
"$top/tests/lab/database_disk.sh" "$("$top/scripts/guest-image" --workloads)/initrd-postgres" "$dir/database.raw" ||
    fail "no disk with a database"
lab run alpha -- "cp --sparse=always $there/database.raw /tmp/bench.img && cp --sparse=always $there/database.raw /tmp/alone.img"
lab run beta -- "cp --sparse=always $there/database.raw /tmp/bench.img"
rm "$dir/database.raw"
start_two_guests "$images" 6379 "--disk /tmp/bench.img" "--disk /tmp/alone.img"

measure overhead 2400 overhead --rounds 2 --run "$run" --limit 400 "$@"
python3 - "$dir/overhead.json" "$run" <<'PYTHON' || fail "a measurement is missing or absurd"
import json, sys
result = json.load(open(sys.argv[1], encoding="utf-8"))
values = {metric["name"]: metric["values"] for metric in result["metrics"]}
for program in (item.split("=")[0] for item in sys.argv[2].split(",")):
    assert min(values[f"protected_to_unprotected.{program}"]) > 0, f"{program} was not compared"
    assert min(values[f"log_mbit_per_second.{program}.protected"]) > 0, f"{program} made no log"
PYTHON
