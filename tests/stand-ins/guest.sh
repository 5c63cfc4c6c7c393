# shellcheck shell=sh
# What qm and pct have in common: `set ID --KEY VALUE …` and `destroy ID`, in the directory of the configurations.
case $1 in
set | destroy)
    printf '%s %s\n' "$(basename "$0")" "$*" >>"$PVE/guest.args"
    what=$1 id=$2
    [ -e "$id.conf" ] || { echo "Configuration file 'nodes/pve1/$(basename "$PWD")/$id.conf' does not exist" >&2 && exit 2; }
    behave=$(cat "$PVE/behave/$id" 2>/dev/null)
    shift 2
    ;;
esac
case ${what:-} in
set)
    case "$behave $*" in "stubborn --net"* | "deaf "*) echo "unable to apply pending change" >&2 && exit 255 ;; esac
    while [ $# -gt 0 ]; do
        { printf '%s: %s\n' "${1#--}" "$2" && grep -v "^${1#--}: " "$id.conf"; } >"$id.new"
        mv "$id.new" "$id.conf"
        shift 2
    done
    exit 0
    ;;
destroy)
    if [ "$behave" = lingers ]; then
        sleep 1000 >/dev/null 2>&1 &
        child=$!
        trap 'kill "$child"; exit 255' TERM
        # Whoever kills waits for this, so that nothing is left that nobody ends.
        : >"$PVE/lingers"
        wait "$child"
    fi
    ! grep -q '^protection: 1' "$id.conf" || { echo "can't remove VM $id - protection mode enabled" >&2 && exit 255; }
    [ "$(cat "$PVE/state/$id" 2>/dev/null)" != running ] || { echo "VM $id is running - destroy failed" >&2 && exit 255; }
    rm -rf "$id.conf" "$PVE/content/$id"
    exit 0
    ;;
esac
