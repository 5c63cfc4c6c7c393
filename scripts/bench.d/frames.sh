# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# vzdump stands in for itself: it sends a stream of VMA's kind. bak-dump compresses, hashes and publishes that; beside it zstd.
bench_frames() {
    make_big
    mkdir -p pve/nodes/pve1/qemu-server pve/nodes/pve1/lxc pve/content pve/state pve/behave f
    (cd pve && ln -sfn nodes/pve1 local && ln -sfn nodes/pve1/qemu-server qemu-server && ln -sfn nodes/pve1/lxc lxc)
    printf 'name: big\n' >pve/qemu-server/100.conf
    # The stream leaves holes out.
    (printf 'VMA\0' && head -c "$(scaled 1000000000)" big/big.raw) >stream
    tail -c +5 stream >pve/content/100
    printf '[vzdump]\netc = "%s"\n' "$dir/pve" >pve.toml
    local ours bare bytes changed rest
    cargo build --release --locked --quiet --manifest-path "$here/Cargo.toml" -p bak-dump --example frames
    local cold='rm -rf out f; mkdir f; cat stream >/dev/null; sync'
    by_turns "$cold" "$target/release/examples/frames <stream >out 2>sum && sync out" "$cold" 'zstd -q -T2 -3 <stream >out && sync out'
    row 'frames and their SHA-256: seconds against zstd -T2 -3; sync' "$ours" "$bare" "$(ratio "$ours" "$bare")" 1.11
    # Both behind the same pipe, as zstd is on a Proxmox node.
    local vzdump="PVE=$dir/pve PATH=$here/tests/stand-ins:$PATH"
    local dump="$vzdump bak-dump -q --config pve.toml --driver vzdump --store f --reserve 0 100"
    by_turns "$cold" "$dump" "$cold" "$vzdump sh -c 'vzdump 100 --stdout 2>words | zstd -q -T2 -3 >out && sync out'"
    row 'frames of vzdump: seconds against vzdump | zstd -T2 -3; sync' "$ours" "$bare" "$(ratio "$ours" "$bare")" 1.11
    sh -c "$cold; $dump && zstd -q -T2 -3 <stream >out"
    ours=$(stat -c %s f/*.zst) bare=$(stat -c %s out)
    row 'frames of vzdump: bytes against zstd -3' "$ours" "$bare" "$(ratio "$ours" "$bare")" 1.2
    # What rsync sends of the next dump where ten times 4 KiB were overwritten, and where 4 KiB were put in near the start.
    head -c 50000000 stream | tail -c +5 >part
    for changed in overwritten inserted; do
        rm -rf f && mkdir f
        cp part pve/content/100
        sh -c "$dump"
        mv f/*.zst before
        case $changed in
        overwritten) for rest in 0 1 2 3 4 5 6 7 8 9; do head -c 4096 /dev/urandom | dd of=pve/content/100 bs=4096 seek=$((rest * 1100 + 17)) conv=notrunc status=none; done ;;
        inserted) (head -c 100000 part && head -c 4096 /dev/urandom && tail -c +100001 part) >pve/content/100 ;;
        esac
        rm -rf f && mkdir f
        sh -c "$dump"
        bytes=$(rsync --no-whole-file --fuzzy --stats f/*.zst before | sed -n 's/,//g; s/^Total bytes sent: //p')
        row "frames, 10 x 4 KiB or once 4 KiB $changed: bytes sent" "$bytes" "$(stat -c %s before)" "$(ratio "$bytes" "$(stat -c %s before)")" '3000000'
    done
    rm -rf f pve stream part before out
}
