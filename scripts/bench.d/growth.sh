# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# CPU and memory of each program against the size of what it works on.

# measured SIZE NAME COMMAND…: best of three.
measured() { python3 "$here/scripts/bench.d/measure.py" "$dir/grown" "${RUNS:-3}" "$@"; }

bench_growth() {
    : >grown
    local size
    for size in 1000 10000 ${quick:-100000}; do
        [ "$size" != yes ] || continue
        say "   $size" >&2
        rm -rf grow && mkdir -p grow/images
        grow_dumps "$size"
        grow_sent "$size"
        grow_guests "$size"
        grow_archives "$size"
        rm -rf grow
    done
    rm -rf scan.*
}

# What reads a store, or plans over one, of $1 dumps of $1/100 guests.
grow_dumps() {
    many grow/store $(($1 / 100)) 100
    local vm
    for vm in grow/store/*; do truncate -s 1M "grow/images/${vm##*/}.raw"; done
    measured "$1" 'find … cat' sh -c "find grow/store -name '*.dump.json' -exec cat {} +"
    measured "$1" 'bak-list' bak-list --store grow/store
    measured "$1" 'bak-dump -n' bak-dump -n --store grow/store --images grow/images --reserve 0 --all --now 2026-11-20T12:00:00Z
    RUNS=1 measured "$1" 'bak-dump, ten guests' bak-dump -q --store grow/store --images grow/images --format raw --reserve 0 \
        --now 2026-11-20T12:00:00Z vm-0000{0..9}
    measured "$1" 'bak-link -n' bak-link -n --store grow/store --dest box=/far --outbox grow/none --now 2026-11-20T12:00:00Z
    measured "$1" 'bak-prune -n' bak-prune -n grow/store --keep-daily 7 --now 2026-11-20T12:00:00Z
    measured "$1" 'bak-verify --quick' bak-verify --quick --store grow/store --all
}

# What works with a far side where $1 dumps are: all of them taken into the history, and then a pass with nothing to do.
grow_sent() {
    mkdir grow/far
    printf 'node = "pve1"\n' >grow/bak.toml
    bak-sync --config grow/bak.toml --outbox grow/box --dest "b=$dir/grow/far" --init
    mv grow/store/* grow/far/
    RUNS=1 measured "$1" 'bak-sync --reconcile' bak-sync --config grow/bak.toml --outbox grow/box --dest "b=$dir/grow/far" --reconcile
    [ "$(find grow/box/.bak/sent -name '*.dump.json' | wc -l)" = "$1" ] || { say "not all were adopted" >&2 && exit 1; }
    measured "$1" 'bak-sync, nothing to send' bak-sync --config grow/bak.toml --outbox grow/box --dest "b=$dir/grow/far"
    mkdir grow/empty
    measured "$1" 'bak-link, all of them sent' bak-link --config grow/bak.toml --store grow/empty --outbox grow/box --dest "b=$dir/grow/far" --now 2026-11-20T12:00:00Z
    rm -rf grow/far grow/box
}

# The database of $1 guests.
grow_guests() {
    guests "$1" >grow/guests
    bak-state observe -q --db grow/db - <grow/guests
    measured "$1" 'bak-state observe' bak-state observe -q --db grow/db - <grow/guests
    measured "$1" 'bak-state get' bak-state get --db grow/db vm-000321
}

# A directory of Proxmox with $1 archives.
grow_archives() {
    archives grow/made "$1"
    RUNS=1 measured "$1" 'bak-scan, all of them new' bak-scan -q --store grow/made
    measured "$1" 'bak-scan, none of them new' bak-scan -q --store grow/made
}
