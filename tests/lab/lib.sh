# What tests in the lab share; sourced by the scripts in tests/lab and tests/pair, which scripts/test starts with
#   FTVMM_LAB   a lab that runs     TEST_OUT   a directory for what should be kept     TEST_SEED   of random moments
# A test ends with 0, with 77 and its reason as the last line (skipped), or otherwise has failed.
# shellcheck shell=bash
set -euo pipefail

top=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
# shellcheck disable=SC2034 # those who source this use it
ftvmm=/src/build/vmm/ftvmm
# Under emulation a guest is slow to reach positions of its own; forced ones at the usual pace would slow it more.
# shellcheck disable=SC2034
pace="--max-input-delay 40000"
# Three emulated hosts on a machine that may be busy with other things: one of them may well stand still for a second.
# shellcheck disable=SC2034
silence="--peer-timeout 3000"

fail() { echo "FAIL: $*" >&2; exit 1; }
lab() { "$top/scripts/lab" --name "$FTVMM_LAB" "$@"; }

[ -n "${FTVMM_LAB:-}" ] || fail "this test runs in a lab; scripts/test starts it, or: FTVMM_LAB=lab TEST_OUT=/tmp/out $0"
TEST_OUT=${TEST_OUT:?a directory for logs}
mkdir -p "$TEST_OUT"

shared_dir() { # where the hosts' /shared is outside
    local dir
    dir=$(lab status | sed -n 's/^shared directory: //p')
    [ -n "$dir" ] || fail "lab '$FTVMM_LAB' does not run"
    echo "$dir"
}

guest_images() { # [OPTION of scripts/guest-image]: --kernel and --initrd as hosts see them
    local images
    images=$("$top/scripts/guest-image" "$@") || fail "no guest image"
    images=/cache/$(basename "$images")
    echo "--kernel $images/vmlinuz --initrd $images/initrd"
}

json() { # FILE PATH: the value at a dotted path, as JSON writes it
    python3 - "$1" "$2" <<'PYTHON'
import json, sys
value = json.load(open(sys.argv[1], encoding="utf-8"))
for name in sys.argv[2].split("."):
    value = value[name]
print(json.dumps(value))
PYTHON
}

expect_json() { # FILE PATH VALUE
    local found
    found=$(json "$1" "$2" 2>/dev/null) || found=nothing
    [ "$found" = "$3" ] || fail "$2 in $(basename "$1") should be $3 and is $found"
}

expect_more_than() { # FILE PATH NUMBER
    local found
    found=$(json "$1" "$2" 2>/dev/null) || found=nothing
    if ! [[ $found =~ ^[0-9]+$ ]] || [ "$found" -le "$3" ]; then
        fail "$2 in $(basename "$1") should exceed $3 and is $found"
    fi
}

keep_recording() { # HOST LOG DIRECTORY (in /shared, as seen here): a log that replays differently is what one needs most
    lab run --timeout 60 "$1" -- cp "$2" "/shared/$(basename "$3")/recording.kept" &&
        mv "$3/recording.kept" "$TEST_OUT/recording" && echo "the recording is kept: $TEST_OUT/recording"
}
