#!/usr/bin/env bash
# Power cuts: what a disk may have kept of two days' work, at every flush of it. For scripts/guest, with two disks: what is
# recorded, and the recording. Everything that was acknowledged must be there, and nothing by half.
#     scripts/guest -m 2048 -d 640M -d 1G tests/long/power.sh TARGET TYPE[:MOUNT-OPTIONS]…
#       TARGET: where the built programs are. TYPE: ext4, xfs or btrfs; with a `!` before it the programs' flushes do
#       nothing, and the faults that follow from that must be found
set -euo pipefail
PATH=$1:$PATH
shift
export BAK_ALLOW_NOW=1 TZ=UTC DM_DISABLE_UDEV=1
modprobe -a dm-mod dm-log-writes loop ext4 xfs btrfs
variants=1 every=60 # choices of unflushed writes at each point; after each so-and-so-many points a whole night

flushes=fsync,fdatasync,syncfs,sync_file_range

mark() { dmsetup message log 0 mark "$1"; }

# step BEGIN DONE COMMAND…: what the facts are that it may change, and what they are when it is done.
step() {
    mark "begin,$1"
    "${wrap[@]}" "${@:3}" >/dev/null
    mark "done,$2"
    # Somebody else's flush, which brings what was only renamed to the disk, too.
    dd if=/dev/zero of=here/poke bs=1 count=1 conv=fsync status=none
    dd if=/dev/zero of=there/poke bs=1 count=1 conv=fsync status=none
}

# day DATE [OLD]: both guests are dumped, linked, sent; then the dumps of that old day go, here and there.
day() {
    local a=web@$1T010000Z b=db@$1T010000Z at
    at=$(date -u -d "$1" +%Y-%m-%dT01:00:00Z)
    for vm in web db; do head -c 150000 /dev/urandom >"here/images/$vm.raw"; done
    sync
    step state:web:BACKUP_NECESSARY,state:db:BACKUP_NECESSARY,state:web:NEW,state:db:NEW,state:web:CLEAN,state:db:CLEAN \
        +state:web:BACKUP_NECESSARY,+state:db:BACKUP_NECESSARY,-state:web:NEW,-state:db:NEW,-state:web:CLEAN,-state:db:CLEAN \
        sh -c "bak-guests --images here/images | bak-state observe --store here/store --db here/db --now $at -"
    step "store:$a,store:$b,state:web:BACKUP_NECESSARY,state:db:BACKUP_NECESSARY,state:web:CLEAN,state:db:CLEAN,state:web:BACKUP_IN_PROGRESS,state:db:BACKUP_IN_PROGRESS" \
        "+store:$a,+store:$b,-state:web:BACKUP_NECESSARY,-state:db:BACKUP_NECESSARY,+state:web:CLEAN,+state:db:CLEAN,-state:web:BACKUP_IN_PROGRESS,-state:db:BACKUP_IN_PROGRESS" \
        bak-dump --images here/images --store here/store --db here/db --format raw --reserve 0 --now "$at" --all
    step "outbox:$a,outbox:$b" "+outbox:$a,+outbox:$b" bak-link --store here/store --dest "box=$PWD/there/far" --now "$at"
    step "outbox:$a,outbox:$b,sent:$a,sent:$b,far:$a,far:$b" "-outbox:$a,-outbox:$b,+sent:$a,+sent:$b,+far:$a,+far:$b" \
        bak-sync --store here/store --dest "box=$PWD/there/far" --now "$at"
    step state:web:CLEAN,state:web:ARCHIVED -state:web:CLEAN,+state:web:ARCHIVED bak-state set --db here/db --now "$at" ARCHIVED web
    step state:web:ARCHIVED,state:web:BACKUP_NECESSARY,state:web:CLEAN -state:web:ARCHIVED,-state:web:CLEAN,+state:web:BACKUP_NECESSARY \
        bak-state set --db here/db --now "$at" BACKUP_NECESSARY web
    [ -n "${2:-}" ] || return 0
    a=web@$2T010000Z b=db@$2T010000Z
    step "store:$a,store:$b" "-store:$a,-store:$b" bak-prune --keep-last 1 --now "$at" --all here/store
    step "far:$a,far:$b" "-far:$a,-far:$b" \
        bak-prune --store here/store --dest "box=$PWD/there/far" --keep-last 1 --now "$at" --all
}

record() { # TYPE OPTIONS
    local sectors half=$((half_bytes / 512)) options=$2 name
    sectors=$((2 * half))
    dd if=/dev/zero of=/dev/vdb bs=1M count=1 conv=fsync status=none
    dmsetup create log --table "0 $sectors log-writes /dev/vda /dev/vdb"
    dmsetup create here --table "0 $half linear /dev/mapper/log 0"
    dmsetup create there --table "0 $half linear /dev/mapper/log $half"
    mkdir -p /run/power/here /run/power/there
    cd /run/power
    for name in here there; do
        case $1 in
        ext4) mkfs.ext4 -q -E nodiscard -J size=4 "/dev/mapper/$name" ;;
        xfs) mkfs.xfs -q -K "/dev/mapper/$name" ;;
        btrfs) mkfs.btrfs -q -K "/dev/mapper/$name" ;;
        esac
        mount -t "$1" -o "$options" "/dev/mapper/$name" $name
        mountpoint -q $name
    done
    mkdir here/store here/images there/far
    bak-sync --store here/store --dest "box=$PWD/there/far" --init
    # What all programs do on what is left. With what is damaged nothing works, which is looked for elsewhere.
    cat >here/night <<END
at=2026-11-25T01:00:00Z
bak-state set -q --force --db db --now \$at BACKUP_NECESSARY web
for vm in web db; do head -c 5000 /dev/urandom >images/\$vm.raw; done
bak-guests --images images | bak-state observe --due --store store --db db --now \$at - |
    bak-dump --images images --store store --db db --format raw --reserve 0 --now \$at -
# What was begun goes first.
for again in 1 2; do
    bak-link --store store --dest box=$PWD/there/far --now \$at
    bak-sync --store store --dest box=$PWD/there/far --now \$at
done
bak-prune --keep-last 1 --now \$at --all store
bak-prune --store store --dest box=$PWD/there/far --keep-last 1 --now \$at --all
bak-list store --explain
END
    sync
    mark ready
    wrap=(env)
    [ -z "$broken" ] || wrap=(strace -f -qq -o /dev/null -e "trace=$flushes" -e "inject=$flushes:retval=0")
    day 20261119
    day 20261120 20261119
    cd /
    umount /run/power/here /run/power/there
    dmsetup remove here there
    dmsetup remove log
}

for what; do
    broken=''
    [ "${what#!}" = "$what" ] || broken=y
    what=${what#!} type=${what%%:*} options=defaults half_bytes=$((48 << 20))
    case $what in *:*) options=${what#*:} ;; esac
    case $type in xfs) half_bytes=$((310 << 20)) ;; btrfs) half_bytes=$((128 << 20)) ;; esac
    then=$SECONDS
    record "$type" "$options"
    echo "${broken:+without flushes: }$what: recorded in $((SECONDS - then)) s"
    then=$SECONDS rc=0
    bak-test-power /dev/vdb $half_bytes "$type" "$options" "$variants" "$every" >/run/faults || rc=$?
    head -n 40 /run/faults
    [ "$(wc -l </run/faults)" -le 40 ] || tail -n 1 /run/faults
    echo "$what: replayed in $((SECONDS - then)) s"
    [ $rc -le 1 ] || exit $rc
    if [ -n "$broken" ]; then
        [ $rc -eq 1 ] || { echo 'without flushes nothing was lost: this test is blind' && exit 1; }
    else
        [ $rc -eq 0 ] || failed=y
    fi
done
[ -z "${failed:-}" ] || exit 1
