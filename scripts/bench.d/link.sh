# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
bench_link() {
    local plan bare ours flushed used
    # For what the flushes cost: a filter of system calls that answers each of them with success, and does nothing.
    cat >noflush <<'PY'
import ctypes, os, platform, struct, sys
numbers = {"x86_64": (74, 75, 162, 221, 306), "aarch64": (82, 83, 81, 223, 267)}[platform.machine()]
op = lambda code, yes, no, k: struct.pack("HBBI", code, yes, no, k)
code = op(0x20, 0, 0, 0) + b"".join(op(0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers))
code += op(0x06, 0, 0, 0x7FFF0000) + op(0x06, 0, 0, 0x00050000)
text = ctypes.create_string_buffer(code)
class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Filter(len(code) // 8, ctypes.addressof(text))), 0, 0):
    sys.exit("cannot turn flushes off: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
PY
    local at="--dest box=/far --now 2026-11-20T12:00:00Z"
    many lstore "$(scaled 1000)" 100
    bare=$(seconds true "find lstore -name '*.dump.json' -exec cat {} + >/dev/null")
    ours=$(seconds true "bak-link -nq --store lstore $at")
    row "bak-link -n, 100,000 dumps: seconds against find … cat" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
    # shellcheck disable=SC2086 # words
    used=$(peak bak-link -nq --store lstore $at)
    row "memory of that, MiB" "$used" - - 200
    rm -rf lstore
    ours=$(cd "$here" && BAK_PLAN_RECORDS=$(scaled 1000000) cargo test --release --locked --quiet -p bak-link plan::speed -- --nocapture |
        sed -n 's/^planned [0-9]* records in \([0-9.]*\) s$/\1/p')
    row "the planner alone, 1,000,000 records: seconds" "$ours" - - 1
    # New places each time: ext4 takes its time with inodes that were freed just before.
    many lone "$(scaled 10000)" 1
    # shellcheck disable=SC2016 # expanded for each run
    local away='for old in copy box; do [ ! -e $old ] || mv $old $old.$(date +%N); done; sync'
    bare=$(seconds "$away" "cp -al lone copy")
    plan=$(seconds true "bak-link -nq --store lone --outbox none $at")
    ours=$(seconds "$away" "python3 noflush bak-link -q --store lone --outbox box $at")
    row "bak-link, 10,000 dumps, not flushed: seconds against cp -al" "$ours" "$bare" "$(ratio "$ours" "$bare")" -
    ours=$(awk -v a="$ours" -v p="$plan" 'BEGIN { print a - p }')
    row "the same without what the plan takes" "$ours" "$bare" "$(ratio "$ours" "$bare")" 2
    bare=$(seconds "$away" "cp -al lone copy && sync -f copy")
    flushed=$(seconds "$away" "bak-link -q --store lone --outbox box $at")
    row "bak-link, 10,000 dumps: seconds against cp -al; sync" "$flushed" "$bare" "$(ratio "$flushed" "$bare")" -
    rm -rf lone copy* box*
}
