# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# Hashing alone: what the tools of a format do beside it takes as long as those take.
bench_verify() {
    make_big
    mkdir v
    bak-dump -q --store v --images big --format raw --reserve 0 --all
    local file ours bare
    file=$(echo v/big/*.raw)
    ours=$(seconds "cat $file >/dev/null" 'bak-verify -q --store v --all')
    bare=$(seconds "cat $file >/dev/null" "sha256sum $file")
    row 'bak-verify, a raw image of 2 GiB: seconds against sha256sum' "$ours" "$bare" "$(ratio "$ours" "$bare")" 1.11
    rm -rf v
}
