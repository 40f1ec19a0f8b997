#!/bin/bash
# What is wrong with the input is said in a sentence, soon, and leaves nothing behind.
# usage: bad_input.sh CASE alpha|beta | --list
cases=(no-command unknown-command unknown-option missing-kernel missing-kernel-option truncated-kernel kernel-is-text
    missing-initrd bad-nic bad-memory bad-name no-arbiter arbiter-missing arbiter-read-only wrong-arbiter-kind no-listener
    witness-no-auth witness-nobody witness-not-rdma witness-port-missing witness-is-a-backup
    ftwitness-as-root ftwitness-not-rdma ftwitness-no-state ftwitness-option
    etcd-no-port etcd-password-in-url etcd-nobody etcd-nonsense etcd-auth-over-http etcd-auth-for-all
    backup-alone bad-address port-missing replay-no-log replay-text replay-other-guest dump-exists log-text no-kvm console-unwritable
    control-no-directory control-in-use metrics-for-all ftctl-nobody
    key-missing key-for-all key-too-short key-differs key-on-one-side peer-talks-nonsense
    disk-missing disk-directory disk-odd-size disk-read-only disk-in-use disk-twice disk-wrong-mode)
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${cases[@]}"
    exit
fi
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

host=$2 own=10.9.0.1 other=10.9.0.2
[ "$host" = alpha ] || own=10.9.0.2 other=10.9.0.1
# shellcheck disable=SC2119 # of the usual image
images=$(guest_images)
kernel=${images#--kernel }
kernel=${kernel%% *}
pair="$images --arbiter dir:/tmp --name bad"
primary="$ftvmm primary $pair --join-timeout 2"
witness=/src/build/witness/ftwitness
asked="--arbiter-auth /tmp/bad-auth --backup shm:bad"
auth='mkdir -p /tmp/bad-auth; (umask 077; head -c 32 /dev/urandom >/tmp/bad-auth/key)'
prepare=:

# Per case: what is run, its exit status, and a word of the sentence that names the cause.
case $1 in
no-command) run="$ftvmm" status=2 word='command is missing' ;;
unknown-command) run="$ftvmm fly" status=2 word="no command 'fly'" ;;
unknown-option) run="$ftvmm run --wings" status=2 word=option ;;
missing-kernel) run="$ftvmm run --kernel /nowhere/vmlinuz" status=1 word=/nowhere/vmlinuz ;;
missing-kernel-option) run="$ftvmm run" status=2 word=--kernel ;;
truncated-kernel) prepare="head -c 1000000 $kernel >/tmp/bad-kernel" run="$ftvmm run --kernel /tmp/bad-kernel" status=1 word=/tmp/bad-kernel ;;
kernel-is-text) run="$ftvmm run --kernel /etc/passwd" status=1 word=/etc/passwd ;;
missing-initrd) run="$ftvmm run --kernel $kernel --initrd /nowhere/initrd" status=1 word=/nowhere/initrd ;;
bad-nic) run="$ftvmm run $images --net af_packet:nonic" status=1 word=nonic ;;
bad-memory) run="$ftvmm run $images --memory 12" status=2 word=--memory ;;
bad-name) run="$ftvmm primary $images --arbiter dir:/tmp --name 'a/b' --backup shm:bad" status=1 word=a/b ;;
no-arbiter) run="$ftvmm primary $images --backup verbs:$other:7471" status=2 word=--arbiter ;;
arbiter-missing) run="$ftvmm primary $images --arbiter dir:/nowhere --backup shm:bad" status=1 word=/nowhere ;;
arbiter-read-only) run="$ftvmm primary $images --arbiter dir:/src --backup shm:bad" status=1 word=/src ;;
wrong-arbiter-kind) run="$ftvmm primary $images --arbiter oracle:delphi --backup shm:bad" status=1 word=oracle:delphi ;;
witness-no-auth) run="$ftvmm primary $images --arbiter rdma:10.9.0.3:7998 --backup shm:bad" status=1 word=--arbiter-auth ;;
witness-nobody) prepare=$auth run="$ftvmm primary $images --arbiter rdma:$own:7998 $asked" status=1 word='nobody listens' ;;
witness-not-rdma) prepare=$auth run="$ftvmm primary $images --arbiter rdma:127.0.0.1:7998 $asked" status=1 word='RDMA device' ;;
witness-port-missing) prepare=$auth run="$ftvmm primary $images --arbiter rdma:10.9.0.3 $asked" status=1 word=HOST:PORT ;;
witness-is-a-backup)
    prepare="$auth; $ftvmm backup $pair --join-timeout 6 --listen verbs:$own:7999 >/dev/null 2>&1 </dev/null & sleep 2"
    run="$ftvmm primary $images --arbiter rdma:$own:7999 $asked" status=1 word='does not speak'
    after_s=7
    ;;
ftwitness-as-root) run="$witness --listen $own:7480 --keys /tmp --state /tmp" status=2 word=--user ;;
ftwitness-not-rdma)
    prepare="$auth; install -d -m 700 -o nobody /tmp/bad-state"
    run="$witness --listen 127.0.0.1:7480 --keys /tmp/bad-auth --state /tmp/bad-state --user nobody" status=1 word='RDMA device'
    ;;
ftwitness-no-state) prepare=$auth run="$witness --listen $own:7480 --keys /tmp/bad-auth --state /nowhere --user nobody" status=1 word=/nowhere ;;
ftwitness-option) run="$witness --listen $own:7480 --vms 0" status=2 word=--vms ;;
etcd-no-port) run="$ftvmm primary $images --arbiter etcd:https://$other --backup shm:bad" status=1 word='port is missing' ;;
etcd-password-in-url) run="$ftvmm primary $images --arbiter etcd:https://me:secret@$other:2379 --backup shm:bad" status=1 word='command line' ;;
etcd-nobody) run="$ftvmm primary $images --arbiter etcd:http://127.0.0.1:7998 --backup shm:bad" status=1 word=127.0.0.1:7998 ;;
etcd-nonsense)
    prepare="timeout 20 socat TCP-LISTEN:7998,reuseaddr SYSTEM:'read request; echo nonsense; sleep 1' >/dev/null 2>&1 & sleep 1"
    run="$ftvmm primary $images --arbiter etcd:http://127.0.0.1:7998 --backup shm:bad" status=1 word='no etcd'
    ;;
etcd-auth-over-http) run="$ftvmm primary $images --arbiter etcd:http://$other:2379 --arbiter-auth /etc --backup shm:bad" status=1 word=https:// ;;
etcd-auth-for-all)
    prepare="mkdir -p /tmp/bad-auth; echo me:secret >/tmp/bad-auth/user; chmod 644 /tmp/bad-auth/user"
    run="$ftvmm primary $images --arbiter etcd:https://$other:2379 --arbiter-auth /tmp/bad-auth --backup shm:bad" status=1 word='chmod 600'
    ;;
no-listener) run="$primary --backup verbs:$other:7999" status=1 word=$other:7999 ;;
backup-alone) run="$ftvmm backup $pair --join-timeout 2 --listen shm:bad" status=1 word='no sender' ;;
bad-address) run="$primary --backup pigeon:beta" status=1 word=pigeon:beta ;;
port-missing) run="$primary --backup verbs:$other" status=1 word=$other ;;
replay-no-log) run="$ftvmm replay /nowhere/log $images --join-timeout 2" status=1 word=/nowhere/log ;;
replay-text) run="$ftvmm replay /etc/passwd $images --join-timeout 2" status=1 word='no log of ftvmm' ;;
replay-other-guest)
    prepare="timeout 20 $ftvmm record /tmp/bad-log $images --stop-after 1 >/dev/null 2>&1"
    run="$ftvmm replay /tmp/bad-log $images --memory 128 --join-timeout 2" status=1 word=configuration
    ;;
dump-exists) run="$ftvmm replay /nowhere/log $images --dump /tmp" status=1 word='exists already' ;;
log-text) run="$ftvmm log /etc/passwd" status=1 word='no log of ftvmm' ;;
no-kvm) run="unshare -m sh -c 'mount --bind /dev/null /dev/kvm; exec $ftvmm run $images --stop-after 2'" status=1 word=kvm ;;
console-unwritable) run="$ftvmm run $images --console /nowhere/console" status=1 word=/nowhere/console ;;
control-no-directory) run="$ftvmm run $images --control /nowhere/control.sock" status=1 word=/nowhere/control.sock ;;
control-in-use)
    # A backup that waits for its primary: a guest that runs would take the emulated host's time.
    prepare="$ftvmm backup $pair --join-timeout 6 --listen shm:bad --control /tmp/bad-control >/dev/null 2>&1 </dev/null & sleep 2"
    run="$ftvmm run $images --control /tmp/bad-control" status=1 word='another ftvmm'
    after_s=7
    ;;
metrics-for-all) run="$ftvmm run $images --metrics 0.0.0.0:9101" status=1 word=loopback ;;
ftctl-nobody) run="/src/build/ftctl/ftctl --socket /nowhere/control.sock status" status=1 word=/nowhere/control.sock ;;
key-missing) run="$primary --backup shm:bad --key /nowhere/key" status=1 word=/nowhere/key ;;
key-for-all) prepare="head -c 32 /dev/urandom >/tmp/bad-key; chmod 644 /tmp/bad-key" run="$primary --backup shm:bad --key /tmp/bad-key" status=1 word='chmod 600' ;;
key-too-short) prepare="head -c 31 /dev/urandom >/tmp/bad-key; chmod 600 /tmp/bad-key" run="$primary --backup shm:bad --key /tmp/bad-key" status=1 word='31 bytes' ;;
key-differs | key-on-one-side)
    # The backup waits on for a good one, in vain.
    keys="(umask 077; for i in 1 2; do head -c 32 /dev/urandom >/tmp/bad-key\$i; done)"
    prepare="$keys; $ftvmm backup $pair --join-timeout 3 --listen tcp:127.0.0.1:7999 --key /tmp/bad-key1 >/dev/null 2>&1 & sleep 1"
    run="$ftvmm primary $pair --join-timeout 2 --backup tcp:127.0.0.1:7999" status=1 word='shared key'
    [ "$1" != key-differs ] || run+=" --key /tmp/bad-key2" word='same key'
    after_s=3
    ;;
peer-talks-nonsense)
    prepare="(sleep 1; head -c 1000 /dev/urandom >/dev/tcp/127.0.0.1/7999) 2>/dev/null &"
    run="$ftvmm backup $pair --join-timeout 3 --listen tcp:127.0.0.1:7999" status=1 word='does not speak'
    ;;
disk-missing) run="$ftvmm run $images --disk /nowhere/disk" status=1 word=/nowhere/disk ;;
disk-directory) run="$ftvmm run $images --disk /tmp" status=1 word='is a directory' ;;
disk-odd-size) prepare="head -c 1000 /dev/zero >/tmp/bad-disk" run="$ftvmm run $images --disk /tmp/bad-disk" status=1 word='1000 bytes' ;;
disk-read-only) run="$ftvmm run $images --disk /src/LICENSE" status=1 word=',readonly' ;;
disk-in-use)
    prepare="truncate -s 1M /tmp/bad-disk
        $ftvmm backup $pair --join-timeout 6 --listen shm:bad --disk /tmp/bad-disk >/dev/null 2>&1 </dev/null & sleep 2"
    run="$ftvmm run $images --disk /tmp/bad-disk" status=1 word='in use'
    after_s=7
    ;;
disk-twice) run="$ftvmm run $images --disk /tmp/a --disk /tmp/b" status=2 word='one disk' ;;
disk-wrong-mode) run="$ftvmm run $images --disk /tmp/a,mode=striped" status=2 word=mode=striped ;;
*) fail "there is no case '$1'; --list names them" ;;
esac

limit_s=30
after_s=${after_s:-0} # what was prepared ends by itself after so long
remains='pidof ftvmm; ls -A /dev/shm | grep ftvmm; ls -A /tmp | grep "^\.\(claim\|probe\)\."; true'
before=$(lab run "$host" -- "$remains")
rc=0
lab run --timeout $((limit_s + 40)) "$host" -- "$prepare
    timeout -k 2 $limit_s $run </dev/null >/tmp/bad-out 2>/tmp/bad-err; rc=\$?; sleep $after_s; exit \$rc" || rc=$?
said=$(lab run "$host" -- 'cat /tmp/bad-err; rm -rf /tmp/bad-*')
after=$(lab run "$host" -- "$remains")
echo "status $rc: $said"
[ $rc != 124 ] || fail "not done after $limit_s s"
[ $rc = "$status" ] || fail "exit status $rc instead of $status"
grep -q 'error: .* ' <<<"$said" || fail "no sentence that begins with 'error:'"
grep -qi -- "$word" <<<"$said" || fail "the sentence does not name the cause, '$word'"
[ "$(wc -l <<<"$said")" -le 4 ] || fail "more words than a person will read"
[ "$before" = "$after" ] || fail "left behind: $after"
