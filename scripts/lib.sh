# shellcheck shell=bash
# What the scripts share. To be sourced from the top of the checkout.

export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf '%s\n' "$*"; }

# need COMMAND:PACKAGE… installs the packages whose commands are missing; without root it says which.
need() {
    local pair missing=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
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

# need_rust makes sure of cargo, and of a C compiler, which it links with.
need_rust() {
    need cc:gcc || return 1
    command -v cargo >/dev/null 2>&1 || {
        say "cargo is missing: install Rust 1.89 or newer (https://rustup.rs)" >&2
        return 1
    }
}
