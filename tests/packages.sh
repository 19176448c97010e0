#!/bin/sh
# Other people's POP3 clients for tests/e2e/clients/test_mail_clients.py and tools for test_outside_tools.py, from Debian: installed where they are missing and can be.
# With the argument `desktop` also those that want a screen, for the tests marked slow.
# Exit 0 always: a client that is not there is a test that is skipped, and says so. getmail6 comes by pip, with the dev extra.

# The mail servers of tests/e2e/delivery/test_{opensmtpd,postfix}.py and tests/e2e/maildrop/test_migration.py, and swaks.
# Postfix can't be installed beside OpenSMTPD: it is fetched and unpacked.
mail_servers() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        command -v smtpd >/dev/null 2>&1 && command -v swaks >/dev/null 2>&1 && command -v dovecot >/dev/null 2>&1 ||
            echo "tests: left out, for want of their packages: opensmtpd swaks postfix dovecot-pop3d"
        return
    fi
    for pair in swaks:swaks smtpd:opensmtpd dovecot:dovecot-pop3d; do
        command -v "${pair%%:*}" >/dev/null 2>&1 && continue
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${pair##*:}" >/dev/null 2>&1 ||
            echo "tests: left out, not to be had from apt-get: ${pair##*:}"
    done
    unpacked=${POPKERNEL_POSTFIX:-/var/tmp/popkernel-tests/postfix}
    if [ ! -e /usr/lib/postfix/sbin/master ] && [ ! -e "$unpacked/usr/lib/postfix/sbin/master" ]; then
        fetched=$(mktemp -d) && chmod 755 "$fetched"
        (cd "$fetched" && apt-get download -qq postfix >/dev/null 2>&1 && mkdir -p "$unpacked" && dpkg -x postfix_*.deb "$unpacked") ||
            echo "tests: left out, not to be had from apt-get: postfix"
        rm -rf "$fetched"
    fi
    master=$unpacked/usr/lib/postfix/sbin/master
    if [ -e "$master" ] && LD_LIBRARY_PATH=$unpacked/usr/lib/postfix ldd "$master" 2>/dev/null | grep -q 'not found'; then
        libraries=$(apt-cache depends postfix 2>/dev/null | sed -n 's/^ *Depends: \(lib[a-z0-9.+-]*\)$/\1/p')
        # shellcheck disable=SC2086  # a list of words
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $libraries >/dev/null 2>&1 ||
            echo "tests: left out, for want of its libraries: postfix"
    fi
}
mail_servers

# fail2ban-regex for tests/e2e/login/test_fail2ban.py: unpacked, for an installed fail2ban would be a service that bans.
fail2ban() {
    unpacked=${POPKERNEL_FAIL2BAN:-/var/tmp/popkernel-tests/fail2ban}
    if command -v fail2ban-regex >/dev/null 2>&1 || [ -e "$unpacked/usr/bin/fail2ban-regex" ]; then
        return
    fi
    fetched=$(mktemp -d) && chmod 755 "$fetched"
    (cd "$fetched" && apt-get download -qq fail2ban >/dev/null 2>&1 && mkdir -p "$unpacked" && dpkg -x fail2ban_*.deb "$unpacked") ||
        echo "tests: left out, not to be had from apt-get: fail2ban"
    rm -rf "$fetched"
}
fail2ban

missing=
if [ "${1:-}" = desktop ]; then  # for pytest -m slow
    for pair in claws-mail:claws-mail sylpheed:sylpheed Xvfb:xvfb; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
    done
fi
for name in curl fetchmail mpop mutt nmap ruby s-nail; do
    command -v "$name" >/dev/null 2>&1 || missing="$missing $name"
done
command -v testssl >/dev/null 2>&1 || command -v testssl.sh >/dev/null 2>&1 || missing="$missing testssl.sh"
perl -MIO::Socket::SSL -MNet::POP3 -e1 2>/dev/null || missing="$missing libio-socket-ssl-perl"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests: left out, for want of their packages:$missing"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words
if ! apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1; then
    apt-get update -qq >/dev/null 2>&1
    for name in $missing; do
        apt-get install -qq -y --no-install-recommends "$name" >/dev/null 2>&1 || echo "tests: left out, not to be had from apt-get: $name"
    done
fi
exit 0
