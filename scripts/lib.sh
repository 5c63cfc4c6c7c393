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
    install_packages "${missing[@]}"
}

# as_root COMMAND… runs it as root, by sudo if need be.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# install_packages PACKAGE… from Debian, with ${apt_options[@]}; what is installed already is never removed for it.
apt_options=(-o DPkg::Lock::Timeout=600)
install_packages() {
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        say "these Debian packages are missing, and only root can install them: $*" >&2
        return 1
    fi
    local log
    log=$(mktemp)
    if ! { as_root apt-get "${apt_options[@]}" update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get "${apt_options[@]}" install -y --no-install-recommends --no-remove "$@"; } \
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
