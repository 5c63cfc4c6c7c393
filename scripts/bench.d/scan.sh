# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# $2 archives of Proxmox in $1, each with a header as vma-writer.c makes it, and a log of some kilobytes as vzdump writes it.
archives() {
    python3 - "$@" <<'PY'
import os, struct, subprocess, sys
top, count = sys.argv[1], int(sys.argv[2])
os.makedirs(top)
def archive(vm):
    conf = f"boot: order=scsi0\nmemory: 4096\nname: guest-{vm}\nsmbios1: uuid=6d0c1c5e-0000-4000-8000-{vm:012d}\n".encode()
    blob = b"\0"
    name, data = len(blob), 0
    blob += struct.pack("<H", 17) + b"qemu-server.conf\0"
    data = len(blob)
    blob += struct.pack("<H", len(conf)) + conf
    head = bytearray(12288)
    for at, number in ((0, 0x564d4100), (4, 1), (48, 12288), (52, len(blob)), (56, 12288 + len(blob)), (2044, name), (3068, data)):
        struct.pack_into(">I", head, at, number)
    return subprocess.run(["zstd", "-qc"], input=bytes(head) + blob + bytes(4096), capture_output=True, check=True).stdout
made = [archive(vm) for vm in range(100, 600)]
for n in range(count):
    vm, day, hour = 100 + n % 500, n // 500 % 28 + 1, n // 500 // 28
    stem = f"vzdump-qemu-{vm}-2026_10_{day:02d}-{hour:02d}_00_02"
    date = f"2026-10-{day:02d} {hour:02d}:00:02"
    lines = [f"Starting Backup of VM {vm} (qemu)", "status = running", f"VM Name: guest-{vm}", "backup mode: snapshot", "ionice priority: 7",
             f"creating vzdump archive '/var/lib/vz/dump/{stem}.vma.zst'"]
    lines += [f" {p:2d}% ({p / 10:.1f} GiB of 10.0 GiB) in {p}s, read: 120.0 MiB/s, write: 60.0 MiB/s" for p in range(60)]
    lines += ["transferred 10.00 GiB in 60 seconds (170.7 MiB/s)", "archive file size: 0KB", f"Finished Backup of VM {vm} (00:01:00)"]
    with open(f"{top}/{stem}.vma.zst", "wb") as out:
        out.write(made[n % 500])
    with open(f"{top}/{stem}.log", "w") as out:
        out.write("".join(f"{date} INFO: {line}\n" for line in lines))
PY
}

# Found and proved; all adopted, and flushed; and once more, when nothing is left to adopt: against what it takes to find the ends of
# their logs.
bench_scan() {
    need zstd:zstd
    local ours bare again logs="find scan -name '*.log' -exec tail -qn1 {} + >/dev/null"
    archives made "$(scaled 20000)"
    # New places each time: ext4 takes its time with inodes that were freed just before.
    # shellcheck disable=SC2016 # expanded for each run
    again='[ ! -e scan ] || mv scan scan.$(date +%N); cp -al made scan'
    cp -al made scan
    bare=$(seconds "$logs" "$logs")
    ours=$(seconds "$logs" "bak-scan -nq --store scan")
    row "bak-scan -n, 20,000 archives found and proved: seconds against find, tail -n1" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
    by_turns "$again; $logs; sync" "bak-scan -q --store scan" "$again; $logs; sync" "$logs"
    row "bak-scan, 20,000 archives adopted: seconds against the same" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
    if [ -w /proc/sys/vm/drop_caches ]; then
        local cold="$again; sync; echo 3 >/proc/sys/vm/drop_caches"
        by_turns "$cold" "bak-scan -q --store scan" "$cold" "$logs"
        row "bak-scan, 20,000 archives adopted, nothing in the caches: seconds against the same" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
    fi
    sh -c "$again" && bak-scan -q --store scan
    [ "$(find scan -name '*.dump.json' | wc -l)" = "$(scaled 20000)" ] || { say "not all archives were adopted" >&2 && exit 1; }
    bare=$(seconds "$logs" "$logs")
    ours=$(seconds "$logs" "bak-scan -q --store scan")
    row "bak-scan, 20,000 adopted before: seconds against the same" "$ours" "$bare" "$(ratio "$ours" "$bare")" 3
    rm -rf made scan scan.*
}
