#!/bin/sh
# Install the programs that tests use from Debian's packages: POP3 clients (tests/e2e/clients/test_mail_clients.py),
# tools (test_outside_tools.py), shells, what checks the unit and the manual, and mail servers. With the argument
# `desktop` also those that need a screen, and debootstrap, for the tests marked slow. Always exits with 0: a test that
# lacks its program is skipped and says so. getmail6 comes by pip, with the dev extra.

# Mail servers of tests/e2e/delivery/test_{opensmtpd,postfix}.py and tests/e2e/maildrop/test_migration.py, and swaks.
# Debian does not allow Postfix beside OpenSMTPD: it is downloaded and unpacked.
mail_servers() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        command -v smtpd >/dev/null 2>&1 && command -v swaks >/dev/null 2>&1 &&
            command -v dovecot >/dev/null 2>&1 ||
            echo "tests: left out, packages missing: opensmtpd swaks postfix dovecot-pop3d"
        return
    fi
    for pair in swaks:swaks smtpd:opensmtpd dovecot:dovecot-pop3d; do
        command -v "${pair%%:*}" >/dev/null 2>&1 && continue
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${pair##*:}" \
            >/dev/null 2>&1 ||
            echo "tests: left out, not available from apt-get: ${pair##*:}"
    done
    unpacked=${POPKERNEL_POSTFIX:-/var/tmp/popkernel-tests/postfix}
    if [ ! -e /usr/lib/postfix/sbin/master ] && [ ! -e "$unpacked/usr/lib/postfix/sbin/master" ]; then
        fetched=$(mktemp -d) && chmod 755 "$fetched"
        (cd "$fetched" && apt-get download -qq postfix >/dev/null 2>&1 &&
            mkdir -p "$unpacked" && dpkg -x postfix_*.deb "$unpacked") ||
            echo "tests: left out, not available from apt-get: postfix"
        rm -rf "$fetched"
    fi
    master=$unpacked/usr/lib/postfix/sbin/master
    if [ -e "$master" ] &&
        LD_LIBRARY_PATH=$unpacked/usr/lib/postfix ldd "$master" 2>/dev/null | grep -q 'not found'; then
        libraries=$(apt-cache depends postfix 2>/dev/null | sed -n 's/^ *Depends: \(lib[a-z0-9.+-]*\)$/\1/p')
        # shellcheck disable=SC2086  # a list of words
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $libraries \
            >/dev/null 2>&1 ||
            echo "tests: left out, libraries missing: postfix"
    fi
}
mail_servers

# fail2ban-regex for tests/e2e/login/test_fail2ban.py. It is unpacked: an installed fail2ban would run and ban.
fail2ban() {
    unpacked=${POPKERNEL_FAIL2BAN:-/var/tmp/popkernel-tests/fail2ban}
    if command -v fail2ban-regex >/dev/null 2>&1 || [ -e "$unpacked/usr/bin/fail2ban-regex" ]; then
        return
    fi
    fetched=$(mktemp -d) && chmod 755 "$fetched"
    (cd "$fetched" && apt-get download -qq fail2ban >/dev/null 2>&1 &&
        mkdir -p "$unpacked" && dpkg -x fail2ban_*.deb "$unpacked") ||
        echo "tests: left out, not available from apt-get: fail2ban"
    rm -rf "$fetched"
}
fail2ban

# lnav for tests/e2e/operator/test_log_readers.py, unpacked too.
lnav() {
    unpacked=${POPKERNEL_LNAV:-/var/tmp/popkernel-tests/lnav}
    if command -v lnav >/dev/null 2>&1 || [ -e "$unpacked/usr/bin/lnav" ]; then
        return
    fi
    fetched=$(mktemp -d) && chmod 755 "$fetched"
    (cd "$fetched" && apt-get download -qq lnav >/dev/null 2>&1 &&
        mkdir -p "$unpacked" && dpkg -x lnav_*.deb "$unpacked") ||
        echo "tests: left out, not available from apt-get: lnav"
    rm -rf "$fetched"
}
lnav

missing=
if [ "${1:-}" = desktop ]; then  # for pytest -m slow
    for pair in claws-mail:claws-mail sylpheed:sylpheed Xvfb:xvfb debootstrap:debootstrap; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
    done
fi
for name in curl fetchmail fish mandoc mpop mutt nmap ruby s-nail zsh; do
    command -v "$name" >/dev/null 2>&1 || missing="$missing $name"
done
command -v logrotate >/dev/null 2>&1 || [ -e /usr/sbin/logrotate ] || missing="$missing logrotate"
command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd"
command -v testssl >/dev/null 2>&1 || command -v testssl.sh >/dev/null 2>&1 || missing="$missing testssl.sh"
perl -MIO::Socket::SSL -MNet::POP3 -e1 2>/dev/null || missing="$missing libio-socket-ssl-perl"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests: left out, packages missing:$missing"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words
if ! apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1; then
    apt-get update -qq >/dev/null 2>&1
    for name in $missing; do
        apt-get install -qq -y --no-install-recommends "$name" >/dev/null 2>&1 ||
            echo "tests: left out, not available from apt-get: $name"
    done
fi
exit 0
