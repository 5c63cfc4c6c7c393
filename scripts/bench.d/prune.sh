# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# Beside restic, whose snapshots are written as it encrypts them (scripts/restic-snapshots.py), and beside rm.
bench_prune() {
    need restic:restic
    cargo build --release --locked --quiet --manifest-path "$here/Cargo.toml" -p bak-prune --example plan
    local plan=$target/release/examples/plan rules='--keep-last 3 --keep-hourly 24 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --keep-yearly 3'
    local best memory ours bare seconds
    best=$(for _ in 1 2 3; do "$plan" "$(scaled 1000000)" 1000; done | sort -n | head -n 1)
    read -r ours memory _ <<<"$best"
    row "bak-prune, plan of 1,000,000 dumps of 1,000 guests: seconds" "$ours" - - 1.5
    row "bak-prune, the same: MiB" "$memory" - - 600
    # In memory, so that neither waits for a disk.
    local shm
    shm=$(mktemp -d /dev/shm/bak-bench.XXXXXX)
    starts "$(scaled 100000)" 100 >lines
    export RESTIC_PASSWORD=x
    restic -q init -r "$shm/repo" --repository-version 1
    "$here/scripts/restic-snapshots.py" "$shm/repo" <lines
    bare=$(RUNS=3 seconds true "restic --no-cache -r $shm/repo forget --dry-run --json $rules")
    ours=$(for _ in 1 2 3; do "$plan" "$(scaled 100000)" 100; done | sort -n | head -n 1 | cut -d ' ' -f 1)
    row "bak-prune, plan of 100,000: seconds against restic forget -n" "$ours" "$bare" "$(ratio "$bare" "$ours")x" ">= 20x"
    rm -rf "$shm/repo"
    dumps "$shm/store" lines
    ours=$(RUNS=3 seconds true "bak-prune -n -q $shm/store $rules")
    row "bak-prune -n, 100,000 sidecars read: seconds against restic" "$ours" "$bare" "$(ratio "$bare" "$ours")x" -
    rm -rf "$shm/store"
    starts $(($(scaled 10000) + 1)) 1 >lines
    dumps "$shm/made" lines
    (cd "$shm/made" && find . -type f ! -name 'vm-0-20261120T120000Z.*' >"$dir/names")
    seconds="rm -rf $shm/store && cp -a $shm/made $shm/store"
    ours=$(seconds "$seconds" "bak-prune -q $shm/store --keep-last 1")
    [ "$(find "$shm/store" -name '*.raw' | wc -l)" = 1 ] || { say "10,000 dumps were not removed" >&2 && exit 1; }
    bare=$(seconds "$seconds" "sh -c 'cd $shm/store && xargs rm -f <$dir/names'")
    row "bak-prune, 10,000 dumps removed: seconds against rm" "$ours" "$bare" "$(ratio "$ours" "$bare")" 2
    rm -rf "$shm"
}
