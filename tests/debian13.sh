#!/bin/sh
# Run `make test`, `make run` or `make bench` on this tree's commit in a minimal Debian 13: `make debian13`. /root is closed to other
# users there.
#
#   make debian13                   make test as root, in /root/popkernel
#   make debian13 FOR=user          as an ordinary user, in its home directory
#   make debian13 TARGET=run        the demo, until Ctrl-C
#   make debian13 TARGET=bench      the benchmark beside that Debian's Dovecot (2.4), with the arguments in ARGS:
#                                   make debian13 TARGET=bench ARGS='--rows A,C,F'
#   make debian13 TARGET=deb        the package, which is then in this tree's dist/
#   make debian13 IN=DIR            where the system is kept (default /var/tmp/popkernel-debian13); the first call
#                                   makes it, in a minute or two
#
# Needs root and debootstrap(8). The mirror, apt's and pip's settings, certificates, proxies and ports are this machine's.
set -eu
in=${IN:-/var/tmp/popkernel-debian13} for=${FOR:-root} target=${TARGET:-test} args=${ARGS:-}
case $target in run | test | bench | deb) ;; *) echo "debian13: TARGET is run, test, bench or deb, not $target" >&2; exit 64 ;; esac
case $for in root | user) ;; *) echo "debian13: FOR is root or user, not $for" >&2; exit 64 ;; esac
[ "$(id -u)" -eq 0 ] || { echo "debian13: needs root, to make a system and to run in it" >&2; exit 77; }
for program in debootstrap unshare git; do
    command -v "$program" >/dev/null ||
        { echo "debian13: needs $program (Debian: apt install $program)" >&2; exit 69; }
done
tree=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$in" && in=$(cd "$in" && pwd)

if [ ! -e "$in/made" ]; then
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
    echo "debian13: making a Debian 13 in $in"
    debootstrap --variant=minbase --include=ca-certificates,git,make,python3,python3-venv trixie "$in" \
        ${mirror:+"$mirror"} >"$in.log" 2>&1 ||
        { echo "debian13: debootstrap failed; its last lines:" >&2; tail -n 5 "$in.log" >&2; exit 69; }
    chmod 755 "$in" && chmod 700 "$in/root"
    chroot "$in" useradd -m -s /bin/sh popkernel
    chmod 700 "$in/home/popkernel"
    touch "$in/made"
fi
# Settings with which registries are reached from this machine; copied each time, since they may change.
for path in /etc/apt/apt.conf.d /etc/pip.conf /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$path" ] || cp -rL "$path" "$in$(dirname "$path")/"
done
for path in "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    [ ! -e "$path" ] || cp -L "$path" "$in/etc/pip.conf"
done

home=/root && [ "$for" = root ] || home=/home/popkernel
rm -rf "$in$home/popkernel"
git -c safe.directory='*' clone -q "$tree" "$in$home/popkernel"
[ "$for" = root ] || chroot "$in" chown -R popkernel: "$home/popkernel"

if [ "$target" = bench ]; then  # Dovecot and what the load client is compiled with
    [ "$for" = root ] || { echo "debian13: the benchmark needs root: Dovecot does" >&2; exit 64; }
    [ -e "$in/usr/lib/dovecot/pop3" ] && [ -e "$in/usr/include/openssl/ssl.h" ] && [ -e "$in/usr/bin/cc" ] ||
        chroot "$in" sh -c 'export DEBIAN_FRONTEND=noninteractive
            apt-get -qq update && apt-get -qq install -y --no-install-recommends dovecot-pop3d gcc libc6-dev \
                libssl-dev openssl' >"$in.log" 2>&1 </dev/null ||
        { echo "debian13: packages could not be installed; the last lines:" >&2; tail -n 5 "$in.log" >&2; exit 69; }
fi

make="make $target ARGS=\"$args\""
if [ "$target" = deb ]; then  # with what the build needs
    [ "$for" = root ] || { echo "debian13: the build of the package installs what it needs: as root" >&2; exit 64; }
    make='sh packaging/make-deb.sh --install'
fi

# The environment has only the settings for registries; processes end with the namespace.
words=
for name in PIP_CERT PIP_DEFAULT_TIMEOUT PIP_INDEX_URL SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE \
    http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    value=$(printenv "$name") || continue
    words="$words $name='$value'"
done
as="" && [ "$for" = root ] || as="setpriv --reuid popkernel --regid popkernel --init-groups"
cat >"$in/enter" <<END
cd $home/popkernel
exec $as env -i $words HOME=$home PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=${TERM:-dumb} $make
END
inside='
    mount --bind "$0" "$0" && cd "$0" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&
        mount -t sysfs sysfs "$0/sys" || exit 71
    exec chroot "$0" sh /enter'
[ "$target" = deb ] || exec unshare --mount --pid --fork --kill-child sh -c "$inside" "$in"
unshare --mount --pid --fork --kill-child sh -c "$inside" "$in"
mkdir -p "$tree/dist" && cp "$in$home"/popkernel/dist/popkernel_* "$tree/dist/"
