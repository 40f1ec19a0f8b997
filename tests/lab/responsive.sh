#!/bin/bash
# How a guest answers that computes without a pause and without exits: pings, TCP, console and clock of a protected guest
# that spins, of the same guest unprotected, and of both idle; p50 and p99 of each. Fails when something cannot be measured,
# a ping in twenty gets no answer, or a guest's clock is a tenth off: times of emulated hosts are reported, not judged.
# usage: responsive.sh [OPTION of ftvmm for both guests...], for example --max-input-delay 2000
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=two_guests.sh
source "$(dirname "$(readlink -f "$0")")/two_guests.sh"

# shellcheck disable=SC2034 # start_two_guests uses it: not the lab's usual pace, which is what is measured here
pace="$*"
# The smallest of those that have the agent.
start_two_guests "$(guest_images --workloads)-sqlite --memory 128" 7100

rc=0
lab run --timeout 500 gamma -- "python3 /src/tests/lab/responsive.py ${RESPONSIVE_ROUNDS:-2} ${RESPONSIVE_PINGS:-100} \
    protected=$protected=$there/alpha.console unprotected=$unprotected=$there/alone.console \
    >$there/responsive.txt 2>$there/responsive.log" || rc=$?
[ $rc = 0 ] || fail "not measured (status $rc): $(tail -n 1 "$dir/responsive.log")"
cp "$dir"/*.json "$TEST_OUT"/
python3 - "$dir" "$TEST_OUT/responsive.json" <<'PYTHON' || fail "the guest is not as responsive as it must be anywhere"
import json, os, sys

def at(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

found, bad = {}, []
for line in open(os.path.join(sys.argv[1], "responsive.txt"), encoding="utf-8"):
    side, load, kind, value = line.split()
    found.setdefault((side, load), {}).setdefault(kind, []).append(float(value))
result = {}
for (side, load), kinds in sorted(found.items()):
    pings = [ms for ms in kinds["ping_ms"] if ms >= 0]
    lost = len(kinds["ping_ms"]) - len(pings)
    if lost * 20 > len(kinds["ping_ms"]):
        bad.append(f"{side} {load}: {lost} pings without an answer")
    if not all(0.9 < clock < 1.1 for clock in kinds["clock"]):
        bad.append(f"{side} {load}: the clock runs at {kinds['clock']}")
    of = result[f"{side} {load}"] = {"pings": len(kinds["ping_ms"]), "pings_lost": lost, "clock": kinds["clock"]}
    for kind, values in (("ping_ms", pings), ("agent_ms", kinds["agent_ms"]), ("console_ms", kinds["console_ms"])):
        of[kind] = {"p50": at(values, 50), "p99": at(values, 99), "max": max(values)}
    print(f"{side} {load}: {of['pings']} pings, {lost} lost, ms p50/p99/max "
          + "; ".join(f"{kind[:-3]} {of[kind]['p50']:.1f}/{of[kind]['p99']:.1f}/{of[kind]['max']:.1f}"
                      for kind in ("ping_ms", "agent_ms", "console_ms"))
          + f"; clock {min(of['clock']):.4f}..{max(of['clock']):.4f}")
alone, pair = (result[f"{side} spin"]["ping_ms"] for side in ("unprotected", "protected"))
within = [ms for ms in found["protected", "spin"]["ping_ms"] if 0 <= ms < alone["p99"] + 20]
result["protected_beyond_unprotected_ms"] = {p: pair[p] - alone[p] for p in ("p50", "p99")}
result["protected_within_20_ms_of_unprotected_p99"] = len(within) / len(found["protected", "spin"]["ping_ms"])
print("spinning, protected beyond unprotected: p50 {p50:+.1f} ms, p99 {p99:+.1f} ms".format(
    **result["protected_beyond_unprotected_ms"]))
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(result, file, indent=2)
for line in bad:
    print("WRONG:", line)
sys.exit(bool(bad))
PYTHON
