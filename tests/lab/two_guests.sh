# Two guests side by side, for what measures the one against the other: a pair on alpha and beta (10.8.0.10), and the same
# guest without protection on alpha (10.8.0.11). Sourced after lib.sh by the scripts that measure.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # those who source this use them; lib.sh sets others
protected=10.8.0.10 unprotected=10.8.0.11 other=10.8.0.12
# Both ftvmm serve their metrics on alpha's loopback; the client reaches them over the rail.
protected_metrics=10.9.0.1:9101 unprotected_metrics=10.9.0.1:9102
guest_limit_s=300

dir=$(mktemp -d "$(shared_dir)/guests.XXXXXX")
there=/shared/$(basename "$dir")
started=() # "HOST PID": of what runs there, each the leader of a process group
bridged=   # alpha's LAN card is

# shellcheck disable=SC2317 # a trap calls it
leave_guests() {
    local rc=$? one
    trap - EXIT
    set +e
    for one in "${started[@]}"; do # HOST PID
        lab run --timeout 30 "${one% *}" -- "kill -TERM -- -${one#* } 2>/dev/null; for i in \$(seq 50); do
            kill -0 -- -${one#* } 2>/dev/null || exit 0; sleep 0.2; done; kill -KILL -- -${one#* }" >/dev/null 2>&1
    done
    [ -z "$bridged" ] || lab run --timeout 30 alpha -- "ip link delete br-lan; ip link delete qemu" >/dev/null 2>&1
    cp -f "$dir"/*.* "$TEST_OUT"/ 2>/dev/null
    rm -rf --one-file-system "$dir"
    exit "$rc"
}
trap leave_guests EXIT

# Programs of this machine that the hosts lack.
with_carried="PATH=$there/bin:\$PATH LD_LIBRARY_PATH=$there/bin"
carry() { # PROGRAM LIBRARY-PREFIX...: to where $with_carried finds them on a host
    local program=$1 prefix
    mkdir -p "$dir/bin"
    cp -L "$(command -v "$program")" "$dir/bin/"
    for prefix in "${@:2}"; do
        ldd "$dir/bin/$program" | awk -v prefix="$prefix" 'index($1, prefix) == 1 { print $3 }' | xargs -I{} cp -L {} "$dir/bin/"
    done
}

start_on() { # HOST NAME COMMAND: in the background, with NAME.log
    started+=("$1 $(lab run --background --log "$there/$2.log" "$1" -- "$3")")
}

# On ramfs, because a tmpfs for the initrd's files takes no more than half of what is left of RAM, and the rest of them would be
# missing. The pair first and the other one when the pair has settled: three emulated hosts are slow to boot two guests at once,
# and what is measured here is no failover, so silence is borne for long.
start_two_guests() { # GUEST_OPTIONS SERVICE_PORT [PAIR_OPTIONS ALONE_OPTIONS]: both answer at the port when they are up
    local guest=$1 port=$2 pair=${3:-} alone=${4:-}
    mkdir -p "$dir/arbiter"
    start_on beta beta "exec $ftvmm backup --listen verbs:10.9.0.2:7471 $guest $pair --name bench --net af_packet:lan \
        --append 'rootfstype=ramfs ftvmm.ip=$protected/24' --arbiter dir:$there/arbiter --peer-timeout 20000 --control none \
        --status $there/beta.json --console $there/beta.console"
    start_on alpha alpha "exec $ftvmm primary --backup verbs:10.9.0.2:7471 $guest $pair --name bench --net af_packet:lan \
        --append 'rootfstype=ramfs ftvmm.ip=$protected/24' --arbiter dir:$there/arbiter --peer-timeout 20000 --control none \
        --status $there/alpha.json --console $there/alpha.console --metrics 127.0.0.1:${protected_metrics##*:} $pace"
    start_forward "$protected_metrics"
    await_service $protected "$port"
    start_on alpha alone "exec $ftvmm run $guest $alone --name alone --net af_packet:lan --append 'rootfstype=ramfs ftvmm.ip=$unprotected/24' \
        --control none --status $there/alone.json --console $there/alone.console \
        --metrics 127.0.0.1:${unprotected_metrics##*:} $pace"
    start_forward "$unprotected_metrics"
    await_service $unprotected "$port"
}

# And, with LAB_QEMU=1, the same guest under QEMU with vhost-net beside them on alpha (10.8.0.12); else $with_other stays empty.
# Its card is joined to the LAN by a bridge, which takes nothing from the ports of the others: they see a frame before it does.
# Not by default: on an emulated host QEMU's guest mostly hangs as its kernel starts (docs/lab.md).
with_other=
start_qemu() { # GUEST_IMAGES MIB SERVICE_PORT
    local kernel initrd tsc
    [ -n "${LAB_QEMU:-}" ] || return 0
    with_other="--other $other"
    read -r _ kernel _ initrd <<<"$1"
    carry qemu-system-x86_64 lib
    cp -L /usr/share/seabios/bios-256k.bin /usr/share/qemu/{kvmvapic,linuxboot_dma}.bin "$dir/bin/"
    lab run alpha -- "modprobe -a vhost_net tun && ip link add br-lan type bridge forward_delay 0 mcast_snooping 0 &&
        ip link set br-lan up && ip link set lan master br-lan &&
        ip tuntap add qemu mode tap vnet_hdr && ip link set qemu master br-lan && ip link set qemu up"
    bridged=1
    # On an emulated host the kernel hangs in its trials of timers, and may find a TSC several times too fast.
    tsc=$(lab run alpha -- "grep -o 'tsc_early_khz=[0-9]*' /proc/cmdline || true")
    start_on alpha qemu "exec env $with_carried qemu-system-x86_64 -M pc,hpet=off -accel kvm -cpu host -m $2 \
        -kernel $kernel -initrd $initrd -append 'console=ttyS0 quiet no_timer_check \
        tsc=reliable $tsc ftvmm.ip=$other/24' -L $there/bin -nodefaults -no-user-config \
        -display none -serial file:$there/qemu.console \
        -netdev tap,id=lan,ifname=qemu,script=no,downscript=no,vhost=on \
        -device virtio-net-pci,netdev=lan,romfile=,mac=52:54:00:0a:08:0c"
    await_service $other "$3"
}

# Both, and the third if there is one, by a workload of ftbench on gamma. What came out is $dir/NAME.json and its like, and as a
# page in TEST_OUT. A test fails when it could not be measured.
measure() { # NAME LIMIT_S WORKLOAD OPTION...
    local name=$1 limit_s=$2 rc=0
    lab run --timeout $((limit_s + 20)) gamma -- "$with_carried timeout -k 2 $limit_s /src/build/bench/ftbench $3 \
        --protected $protected,metrics=$protected_metrics --unprotected $unprotected,metrics=$unprotected_metrics $with_other \
        --note 'three emulated lab hosts on one machine' \
        --json $there/$name.json --csv $there/$name.csv --svg $there/$name.svg ${*:4} \
        >$there/$name.txt 2>$there/$name.log" || rc=$?
    [ $rc = 0 ] || fail "not measured (status $rc): $(tail -n 1 "$dir/$name.log")"
    cat "$dir/$name.txt"
    "$top/build/bench/ftbench" report --out "$TEST_OUT/$name.html" "$dir/$name.json"
}

need_guests_of() { # COUNT MIB: and the huge pages, on alpha
    local have_mib need_mib=$(($1 * $2 + 1200))
    have_mib=$(lab run alpha -- "awk '/^MemTotal/ { print int(\$2 / 1024) }' /proc/meminfo")
    [ "$have_mib" -ge $need_mib ] ||
        fail "$1 guests of $2 MB do not fit into alpha's $have_mib MB: LAB_MEMORY_MIB=2560 scripts/lab up, after a down"
}

start_forward() { # HOST:PORT: of alpha's rail, to the same port of its loopback
    start_on alpha "forward-${1##*:}" "exec socat TCP-LISTEN:${1##*:},bind=${1%:*},fork,reuseaddr TCP:127.0.0.1:${1##*:}"
}

await_service() { # ADDRESS PORT: until somebody accepts there
    local begun=$SECONDS
    until lab run --timeout 15 gamma -- "socat -T 5 -u OPEN:/dev/null TCP:$1:$2,connect-timeout=5" >/dev/null 2>&1; do
        [ $((SECONDS - begun)) -lt $guest_limit_s ] ||
            fail "the guest at $1 does not answer after $guest_limit_s s: $(tail -qn 1 "$dir"/*.log "$dir"/*.console | tr -d '\r' | tail -n 6)"
        sleep 1
    done
    echo "the guest at $1 answers after $((SECONDS - begun)) s"
}
