#!/bin/sh
# Installs what Tollstream's laptop engines, its build and its tests need, and only what is missing. As root on Debian or Ubuntu it
# installs; otherwise it prints the line that would and fails. `make up` runs it first, and `make test` with --tests, for what
# only the tests need.
set -eu

packages=""
need() { # need COMMAND PACKAGE...: the packages are wanted if the command is not there
    command=$1
    shift
    command -v "$command" >/dev/null 2>&1 || packages="$packages $*"
}

java_is_new_enough() {
    command -v java >/dev/null 2>&1 || return 1
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${version:-0}" -ge 17 ]
}

java_package() { # Debian 13 and later have no Java 17; their default is newer
    # shellcheck disable=SC1091
    id=$(. /etc/os-release && echo "${ID:-}") version=$(. /etc/os-release && echo "${VERSION_ID:-0}")
    if [ "$id" = debian ] && [ "${version%%.*}" -ge 13 ]; then
        echo default-jre-headless
    else
        echo openjdk-17-jre-headless
    fi
}

if [ -r /etc/os-release ]; then
    java_is_new_enough || packages="$packages $(java_package)"
else
    java_is_new_enough || packages="$packages openjdk-17-jre-headless"
fi
need mvn maven
need node nodejs
need npm npm
need cc gcc libc6-dev
need c++ g++
need make make
need setpriv util-linux
need tar tar
need gzip gzip
need curl curl
need python3 python3
need pkg-config pkg-config
# Kafka's client is compiled along and links the system's OpenSSL.
pkg-config --exists openssl 2>/dev/null || packages="$packages libssl-dev"
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages="$packages ca-certificates"
# Debian ships the venv module without what it needs to make an environment.
if ! command -v python3 >/dev/null 2>&1 || ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
    packages="$packages python3-venv"
fi

# promtool checks the alert rules. Prometheus itself is not wanted as a service; one that is there is left alone.
new_service=false
if [ "${1:-}" = --tests ] && ! command -v promtool >/dev/null 2>&1; then
    packages="$packages prometheus"
    command -v prometheus >/dev/null 2>&1 || new_service=true
fi

[ -n "$packages" ] || exit 0

line="apt-get update && apt-get install -y --no-install-recommends$packages"
[ "$new_service" = false ] || line="$line; systemctl disable --now prometheus"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$packages (as Debian names them); install them with this system's package manager" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "missing:$packages; install with: sudo sh -c '$line'" >&2
    exit 1
fi
echo "installing:$packages" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# Debian starts a service when its package is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ "$new_service" = true ] && [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\n[ "$1" != prometheus ] || exit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $packages
if [ "$new_service" = true ] && command -v systemctl >/dev/null 2>&1; then
    # Nor at the next boot.
    systemctl disable --now prometheus.service >/dev/null 2>&1 || true
fi
