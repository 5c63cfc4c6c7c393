# shellcheck shell=bash
# What the scripts share. To be sourced from the top of the checkout.

export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf '%s\n' "$*"; }

# need WHAT:PACKAGE… installs the packages of which a command, or a file (/…), is missing; without root it says which.
need() {
    local pair missing=()
    for pair; do
        case $pair in
        /*) [ -e "${pair%%:*}" ] || missing+=("${pair#*:}") ;;
        *) command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}") ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing: ${missing[*]}"
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            say "these Debian packages are missing, and only root can install them: ${missing[*]}" >&2
            return 1
        fi
        root=(sudo)
    fi
    local log
    log=$(mktemp)
    if ! { "${root[@]}" apt-get -o DPkg::Lock::Timeout=600 update &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# need_rust makes sure of cargo, of a C compiler, which it links with, and of the certificates by which it downloads.
need_rust() {
    need cc:gcc /usr/include/stdio.h:libc6-dev /etc/ssl/certs/ca-certificates.crt:ca-certificates || return 1
    command -v cargo >/dev/null 2>&1 || {
        say "cargo is missing: install Rust 1.89 or newer (https://rustup.rs)" >&2
        return 1
    }
}
