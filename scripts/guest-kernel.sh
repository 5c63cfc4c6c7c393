# shellcheck shell=bash
# What scripts/guest boots: QEMU, Debian's kernel, and a root of a few megabytes that finds the real one. To be sourced
# after lib.sh.

guest_cache=${XDG_CACHE_HOME:-$HOME/.cache}/bak-tests
# What the first root loads by itself, with whatever these need.
guest_modules='virtio_pci virtio_console virtio_blk virtio_rng 9pnet_virtio 9p overlay'

# need_guest makes sure of it all, and sets guest_kernel, a directory: vmlinux, lib/modules, busybox.
need_guest() {
    if [ "$(uname -m)" != x86_64 ] || ! command -v apt-get >/dev/null 2>&1; then
        say 'the guest wants an x86-64 machine with Debian: its kernel comes from there' >&2
        return 1
    fi
    need cpio:cpio depmod:kmod xz:xz-utils zstd:zstd gzip:gzip timeout:coreutils || return 1
    need_qemu || return 1
    local dir
    for dir in "$guest_cache"/kernel-*/; do
        [ -e "$dir/vmlinux" ] && guest_kernel=${dir%/}
    done
    [ -n "${guest_kernel:-}" ] || fetch_kernel
}

# QEMU's packages must be of one version. Where qemu-utils came from Debian's backports, so must the emulator: from lists
# of our own, to leave the machine's as they are.
need_qemu() {
    command -v qemu-system-x86_64 >/dev/null 2>&1 && return 0
    local have suite lists rc=0
    have=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) || have=
    case $have in
    *~bpo*) ;;
    *)
        need qemu-system-x86_64:qemu-system-x86
        return
        ;;
    esac
    say 'installing: qemu-system-x86 from backports'
    suite=$(. /etc/os-release && say "$VERSION_CODENAME")
    lists=$(mktemp -d)
    chmod 755 "$lists"
    mkdir -p "$lists/lists/partial"
    printf 'deb http://deb.debian.org/debian %s main\n' "$suite" "$suite-backports" >"$lists/sources.list"
    local apt_options=("${apt_options[@]}" -o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$lists/lists" -o "APT::Default-Release=$suite-backports")
    install_packages "qemu-system-x86=$have" || rc=$?
    as_root rm -rf "$lists"
    return $rc
}

# fetch PACKAGE DIR unpacks Debian's package there without installing it.
fetch() {
    local at
    at=$(mktemp -d)
    (cd "$at" && apt-get -q download "$1" >log 2>&1) || {
        cat "$at/log" >&2
        rm -rf "$at"
        return 1
    }
    dpkg-deb -x "$at"/*.deb "$2" && rm -rf "$at"
}

fetch_kernel() {
    local image new
    image=$(kernel_package)
    if [ -z "$image" ]; then
        as_root apt-get "${apt_options[@]}" -q update >/dev/null
        image=$(kernel_package)
    fi
    [ -n "$image" ] || {
        say 'apt knows no package linux-image-amd64' >&2
        return 1
    }
    say "fetching: $image"
    mkdir -p "$guest_cache"
    new=$(mktemp -d "$guest_cache/new.XXXXXX")
    if ! fetch "$image" "$new" || ! fetch busybox-static "$new"; then
        rm -rf "$new"
        return 1
    fi
    # Debian 13 has them compressed, which the first root's busybox cannot read.
    find "$new" -name '*.ko.xz' -exec xz -d {} +
    # From Debian 13 on the tree may lie below usr; here it always lies at lib/modules.
    [ -d "$new/lib/modules" ] || mv "$new/usr/lib" "$new/lib"
    find "$new" -name busybox -type f -exec mv {} "$new/busybox" \;
    depmod -b "$new" "${image#linux-image-}"
    extract_vmlinux "$new"/boot/vmlinuz-* >"$new/vmlinux"
    rm -rf "${new:?}"/{boot,usr,bin}
    chmod 755 "$new"
    guest_kernel=$guest_cache/kernel-${image#linux-image-}
    mv -T "$new" "$guest_kernel"
}

kernel_package() {
    apt-cache show --no-all-versions linux-image-amd64 2>/dev/null | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p'
}

# extract_vmlinux BZIMAGE prints the kernel itself, which boots without unpacking itself under emulation. Where it lies the
# boot protocol's header tells: setup_sects (a byte at 0x1f1), payload_offset and payload_length (at 0x248). The build
# appends the unpacked size, four bytes, to what has no such field of its own.
extract_vmlinux() {
    local sectors offset length start
    sectors=$(od -An -tu1 -j $((0x1f1)) -N 1 "$1")
    read -r offset length < <(od -An -tu4 -j $((0x248)) -N 8 "$1")
    start=$(((sectors + 1) * 512 + offset))
    payload() { dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$2" status=none; }
    case $(payload "$1" 4 | od -An -tx1 | tr -d ' ') in
    1f8b*) payload "$1" "$length" | gzip -dc ;;
    fd377a58) payload "$1" $((length - 4)) | xz -dc ;;
    28b52ffd) payload "$1" $((length - 4)) | zstd -dcq ;;
    *)
        say "$1 is compressed in a way unknown to scripts/guest-kernel.sh" >&2
        return 1
        ;;
    esac
}

# make_initramfs DIR writes DIR/initramfs: the first root, which runs the script on standard input in the real one.
make_initramfs() {
    local root=$1/initramfs.d release module
    mkdir -p "$root/modules"
    cp "$guest_kernel/busybox" "$root/busybox"
    cp "${BASH_SOURCE[0]%/*}/guest-init.sh" "$root/init"
    chmod 755 "$root/init"
    cat >"$root/script"
    release=$(basename "$guest_kernel"/lib/modules/*)
    # insmod takes one after the other; busybox's own modprobe would need the whole tree.
    for module in $guest_modules; do
        modprobe -d "$guest_kernel" -S "$release" -D "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$1/insmod"
    while read -r module; do
        cp "$module" "$root/modules/"
        basename "$module"
    done <"$1/insmod" >"$root/modules/order"
    (cd "$root" && find . | cpio -o -H newc --quiet) >"$1/initramfs"
}
