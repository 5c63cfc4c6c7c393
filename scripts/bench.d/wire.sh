# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# S: 400 writes of 4 KiB, scattered over what is allocated. C: 8 MB in a few runs, as packages and logs change.
change_image() {
    python3 - "$1" "$2" <<'PY'
import os, random, sys
random.seed(7)
with open(sys.argv[2], "r+b") as image:
    data, size, at = [], os.path.getsize(sys.argv[2]), 0
    while at < size:
        try:
            at = os.lseek(image.fileno(), at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(image.fileno(), at, os.SEEK_HOLE)
        data += range(at // 4096, end // 4096)
        at = end
    writes = [(b, 1) for b in random.sample(data, 400)] if sys.argv[1] == "S" else [(b, 200) for b in random.sample(data[:-400], 10)]
    for block, count in writes:
        image.seek(block * 4096)
        image.write(os.urandom(4096 * count))
PY
}

make_wire_image() {
    mkdir -p images
    [ -e wire.raw ] && return 0
    content "$(scaled 280)" tree
    mkfs.ext4 -q -d tree wire.raw 2G >/dev/null 2>&1
    rm -rf tree
}

# What a repository of $2 (a command of restic or borg, as functions below) grows by, MB, when $1 has changed the image.
growth() {
    local before after
    rm -rf repo && cp --sparse=always wire.raw images/vm.raw
    "$2_init" && "$2_day"
    before=$(du -sb repo | cut -f1)
    change_image "$1" images/vm.raw
    "$2_day"
    after=$(du -sb repo | cut -f1)
    awk -v b="$before" -v a="$after" 'BEGIN { printf "%.2f", (a - b) / 1e6 }'
}

restic_init() { restic -q init -r repo; }

restic_day() { restic -q backup -r repo --no-cache images/vm.raw; }

borg_init() { borg init -e none repo 2>/dev/null; }

borg_day() { borg create -C zstd "repo::$(date +%s.%N)" images/vm.raw; }

bench_wire() {
    start_sshd
    make_wire_image
    local case format
    for format in qcow2 qcow2-plain raw; do
        for case in S C; do
            rm -rf store far box images/*
            mkdir store far
            cp --sparse=always wire.raw images/vm.raw
            local now=2026-11-19T01:00:00Z dest="b=127.0.0.1:$dir/far"
            bak-sync --outbox box --dest "$dest" --ssh "$ssh" --init
            day() {
                bak-dump -q --store store --images images --format "$format" --reserve 0 --now "$now" --all
                bak-link -q --store store --outbox box --dest "$dest" --now "$now"
                bak-sync --outbox box --dest "$dest" --ssh "$ssh" --now "$now" | jq '.sent.b.wire_out'
            }
            day >/dev/null
            change_image "$case" images/vm.raw
            now=2026-11-20T01:00:00Z
            local out goal new
            out=$(day)
            new=$([ "$case" = S ] && echo 1.64 || echo 8.19)
            # For compressed images a twentieth more than was measured with bare tools (9.3 and 8.9 MB); for the others a
            # tenth more than what has changed.
            case $format-$case in
            qcow2-S) goal=9.77 ;; qcow2-C) goal=9.35 ;; *-S) goal=1.80 ;; *-C) goal=9.01 ;;
            esac
            row "wire, $format, case $case: MB out against MB of new data" "$(awk -v b="$out" 'BEGIN { printf "%.2f", b / 1e6 }')" "$new" "$(awk -v b="$out" -v n="$new" 'BEGIN { printf "%.2f", b / 1e6 / n }')" "$goal MB"
        done
    done
    local tool
    export RESTIC_PASSWORD=x BORG_BASE_DIR=$dir/borg BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes
    for tool in restic:restic borg:borgbackup; do
        # Both put into their repository what would cross to one that is elsewhere.
        if ! (need "$tool"); then
            say "${tool%:*} cannot be installed here: left out" >&2
            continue
        fi
        for case in S C; do
            new=$([ "$case" = S ] && echo 1.64 || echo 8.19)
            out=$(growth $case "${tool%:*}")
            row "wire, ${tool%:*}, case $case: MB more in its repository" "$out" "$new" "$(awk -v b="$out" -v n="$new" 'BEGIN { printf "%.2f", b / n }')" -
        done
    done
}
