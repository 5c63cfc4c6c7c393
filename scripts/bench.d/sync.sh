# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
bench_sync() {
    bench_small
    bench_large
    bench_meter
}

# A store at $1 of $2 guests with a dump of 4 KiB to 256 KiB each, which does not compress: 130 MB of 1,000.
small_dumps() {
    python3 - "$@" <<'PY'
import hashlib, json, os, random, sys
top, guests = sys.argv[1], int(sys.argv[2])
random.seed(1)
for g in range(guests):
    vm, start, text = f"vm-{g:04d}", "20261119T010000Z", "2026-11-19T01:00:00Z"
    stem, content = f"{vm}-{start}", random.randbytes(random.randint(4 << 10, 256 << 10))
    os.makedirs(f"{top}/{vm}")
    with open(f"{top}/{vm}/{stem}.raw", "wb") as data:
        data.write(content)
    file = {"name": f"{stem}.raw", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    dump = {"v": 1, "type": "dump", "id": f"{vm}@{start}", "vm": vm, "kind": "qemu", "driver": "image", "started": text,
            "finished": text, "stem": stem, "bytes": len(content), "files": [file]}
    with open(f"{top}/{vm}/{stem}.dump.json", "w") as sidecar:
        sidecar.write(json.dumps(dump) + "\n")
PY
}

# All of a pass, against one rsync of the same files with the same options.
bench_small() {
    start_sshd
    rm -rf small far-* box-* && small_dumps small "$(scaled 1000)"
    local kind url ours bare shell
    for kind in ssh path; do
        mkdir -p "far-$kind"
        url=$dir/far-$kind shell=
        [ $kind = path ] || url=127.0.0.1:$url shell="-e '$ssh' -z --zl=1"
        bak-sync --outbox "box-$kind" --dest "b=$url" --ssh "$ssh" --init
        mv "box-$kind" "box-$kind.made" && mv "far-$kind" "far-$kind.made"
        # New places each time: ext4 takes its time with inodes that were freed just before.
        local away="for old in box-$kind far-$kind far-bare; do [ ! -e \$old ] || mv \$old \$old.\$(date +%N); done; mkdir far-bare"
        local again="$away; cp -a box-$kind.made box-$kind; cp -a far-$kind.made far-$kind; bak-link -q --store small --outbox box-$kind --dest b=$url; sync"
        by_turns "$again" "bak-sync -q --outbox box-$kind --dest b=$url --ssh '$ssh'" \
            "$away; sync" "rsync $shell -rt --fsync --partial-dir=.part small/ ${url%far-*}far-bare/"
        eval "$again" && bak-sync -q --outbox "box-$kind" --dest "b=$url" --ssh "$ssh"
        [ "$(find "far-$kind" -name '*.dump.json' | wc -l)" = "$(scaled 1000)" ] || { say "not all dumps were sent" >&2 && exit 1; }
        row "bak-sync, 1,000 small dumps, $kind: seconds against rsync" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
        rm -rf far-* box-*
    done
}

# A pass costs some rsyncs of a few names beside the one with the data, about half a second over ssh; so the image here is
# larger: 4 GiB with 2 GB of data.
bench_large() {
    start_sshd
    rm -rf far-* box-* huge && mkdir huge
    content "$(scaled 2000)" tree
    mkfs.ext4 -q -d tree huge/big.raw 4G >/dev/null 2>&1
    rm -rf tree d && mkdir d
    bak-dump -q --store d --images huge --format qcow2 --reserve 0 --all
    rm -rf huge
    local kind url ours bare
    for kind in path ssh; do
        mkdir -p "far-$kind"
        url=$dir/far-$kind
        [ $kind = path ] || url=127.0.0.1:$url
        bak-sync --outbox "box-$kind" --dest "b=$url" --ssh "$ssh" --init
        rm -rf "box-$kind.made" && cp -a "box-$kind" "box-$kind.made"
        local again="rm -rf far-$kind/big box-$kind; cp -a box-$kind.made box-$kind; bak-link -q --store d --outbox box-$kind --dest b=$url; sync"
        local file
        file=$(cd d && echo big/*.qcow2)
        local options=(-tR --fsync --partial-dir=.part) to=far-bare/
        if [ $kind = path ]; then
            options+=(--whole-file)
        else
            options+=(-e "'$ssh'" -z --zl=1 --no-whole-file --block-size=4096) to=127.0.0.1:$dir/far-bare/
        fi
        by_turns "$again" "bak-sync -q --outbox box-$kind --dest b=$url --ssh '$ssh'" \
            "rm -rf far-bare; mkdir far-bare; sync" "rsync ${options[*]} d/./$file $to"
        row "bak-sync, one dump, $kind: seconds against rsync" "$ours" "$bare" "$(ratio "$ours" "$bare")" 1.15
    done
}

# The meter alone: bak-sync runs a stand-in for rsync that has nothing to do but to send 4 GiB of zeros to its remote shell,
# which throws them away. The rate makes bak-sync put its meter in front of a mounted path, too; it is far from being reached.
bench_meter() {
    local store=d ours bare
    rm -rf far-meter box-meter d meter && mkdir -p far-meter stand-in d
    many d 1 1
    bak-sync --outbox box-meter --dest "b=$dir/far-meter" --init
    cat >stand-in/rsync <<SH
#!/bin/bash
while [ \$# -gt 0 ]; do
    [ "\$1" != -e ] || shell=\$2
    shift
done
begun=\$(date +%s%N)
head -c 4G /dev/zero | eval "\$shell here sh -c 'cat >/dev/null'"
echo \$((4294967296000 / (\$(date +%s%N) - begun))) >>'$dir/meter'
exit 23
SH
    chmod +x stand-in/rsync
    for _ in $(seq 0 "${RUNS:-5}"); do
        bak-link -q --store $store --outbox box-meter --dest "b=$dir/far-meter"
        PATH="$dir/stand-in:$PATH" bak-sync -q --outbox box-meter --dest "b=$dir/far-meter" --bwlimit 1000G --limit none 2>/dev/null || true
    done
    ours=$(median <meter)
    bare=$(seconds true "sh -c 'head -c 4G /dev/zero | cat >/dev/null'")
    bare=$(awk -v s="$bare" 'BEGIN { printf "%.0f", 4294.967296 / s }')
    row "metering alone: MB/s against head | cat" "$ours" "$bare" "$(ratio "$ours" "$bare")" ">= 500"
}
