#!/bin/sh
# Other people's POP3 clients for tests/e2e/test_clients.py, from Debian: installed where they are missing and can be.
# Exit 0 always: a client that is not there is a test that is skipped, and says so. getmail6 comes by pip, with the dev extra.
missing=
for name in curl fetchmail mpop; do
    command -v "$name" >/dev/null 2>&1 || missing="$missing $name"
done
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
