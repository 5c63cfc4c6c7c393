# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
bench_memory() {
    make_big
    rm -rf m mbox mfar && mkdir m mfar
    bak-sync --outbox mbox --dest "b=$dir/mfar" --init
    local used
    used=$(peak bak-dump -q --store m --images big --reserve 0 --all)
    row "memory of bak-dump, MiB" "$used" - - 50
    used=$(peak bak-link -q --store m --outbox mbox --dest "b=$dir/mfar")
    row "memory of bak-link, MiB" "$used" - - 50
    used=$(peak bak-sync -q --outbox mbox --dest "b=$dir/mfar")
    row "memory of bak-sync, MiB" "$used" - - 50
    used=$(peak bak-restore big --store m --to "$dir/back.raw" --format raw)
    row "memory of bak-restore, MiB" "$used" - - 50
    used=$(peak bak-prune -q --store m --all --keep-last 1)
    row "memory of bak-prune, MiB" "$used" - - 50
    rm -f back.raw
}
