# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
bench_dump() {
    make_big
    local format options ours bare
    for format in qcow2 qcow2-plain raw; do
        case $format in
        qcow2) options='-O qcow2 -c -o compression_type=zstd' ;;
        qcow2-plain) options='-O qcow2' ;;
        raw) options='-O raw' ;;
        esac
        bare=$(seconds 'rm -rf out; sync' "qemu-img convert -f raw $options big/big.raw out && sync out")
        rm -f out
        ours=$(seconds 'rm -rf d; mkdir d; sync' "bak-dump -q --store d --images big --format $format --reserve 0 --all")
        row "bak-dump, $format: seconds against qemu-img convert; sync" "$ours" "$bare" "$(ratio "$ours" "$bare")" "$([ $format = qcow2 ] && echo 1.10 || echo -)"
    done
    rm -rf d
}
