#!/bin/sh
# Make the Debian systems in which `python -m benchmarks.peers` runs other servers. Their packages exclude one another,
# so each server has a system of its own.
#
#   sh benchmarks/peers/systems.sh              all that are missing
#   sh benchmarks/peers/systems.sh courier      this one
#
# IN is where they are kept (default /var/tmp/popkernel-peers), PYTHON the interpreter (default .venv/bin/python). Needs
# root and debootstrap(8). The mirror and apt's settings are this machine's. Nothing is started in them.
set -eu
cd "$(dirname "$0")/../.."
in=${IN:-/var/tmp/popkernel-peers} python=${PYTHON:-.venv/bin/python}
[ "$(id -u)" -eq 0 ] || { echo "systems: needs root, to make systems" >&2; exit 77; }
command -v debootstrap >/dev/null || { echo "systems: needs debootstrap (Debian: apt install debootstrap)" >&2; exit 69; }
mkdir -p "$in"
chmod 755 "$in"
exec 9>"$in/lock"  # two at a time would spoil each other's systems
flock -n 9 || { echo "systems: another systems.sh works in $in" >&2; exit 75; }

# base RELEASE: a minimal system that the others are copies of
base() {
    [ ! -e "$in/base-$1/made" ] || return 0
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
    rm -rf --one-file-system "$in/base-$1"  # an interrupted debootstrap may have left /proc mounted
    debootstrap --variant=minbase --include=ca-certificates "$1" "$in/base-$1" ${mirror:+"$mirror"} \
        >"$in/base-$1.log" 2>&1 || { tail -n 5 "$in/base-$1.log" >&2; return 1; }
    chmod 755 "$in/base-$1"
    printf '#!/bin/sh\nexit 101\n' >"$in/base-$1/usr/sbin/policy-rc.d"  # an installed server is not started
    chmod 755 "$in/base-$1/usr/sbin/policy-rc.d"
    touch "$in/base-$1/made"
}

# system NAME RELEASE PACKAGE...
system() {
    name=$1 release=$2
    shift 2
    [ ! -e "$in/$name/made" ] || return 0
    echo "systems: $name ($release): $*"
    base "$release" || return 1
    rm -rf --one-file-system "${in:?}/$name"
    cp -a "$in/base-$release" "$in/$name"
    rm "$in/$name/made"
    for path in /etc/apt/apt.conf.d /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$path" ] || cp -rL "$path" "$in/$name$(dirname "$path")/"
    done
    chroot "$in/$name" sh -c 'export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"' sh "$@" \
        >"$in/$name.log" 2>&1 </dev/null || { tail -n 5 "$in/$name.log" >&2; return 1; }
    chroot "$in/$name" apt-get clean
    touch "$in/$name/made"
}

failed=0
list=$("$python" -m benchmarks.peers --list)
while read -r name release packages; do
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    # shellcheck disable=SC2086  # a list of words
    system "$name" "$release" $packages || { echo "systems: $name could not be made" >&2; failed=1; }
done <<END
$list
END
exit $failed
