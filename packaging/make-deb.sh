#!/bin/sh
# Build the package for Debian 13 from this tree, on Debian 13: `make deb`. The results go into dist/, and lintian
# must find neither errors nor warnings in them.
#
#   sh packaging/make-deb.sh                 build; names the packages that the build needs if they are missing
#   sh packaging/make-deb.sh --install       install them first, as root
#
# The files of the package, packaging/debian, become debian/ in a copy of the tree, where Debian's tools want them.
set -eu
tree=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$tree/packaging/debian/changelog")
build=$tree/build/deb source=$tree/build/deb/popkernel-$version
rm -rf "$build"
mkdir -p "$source" "$tree/dist"
for part in actors benchmarks cli docs kernel packaging popkernel proto tests CHANGELOG.md LICENSE MANIFEST.in Makefile \
    README.md pyproject.toml setup.py; do
    cp -a "$tree/$part" "$source/"
done
find "$source" \( -name __pycache__ -o -name .hypothesis \) -prune -exec rm -r {} +
mv "$source/packaging/debian" "$source/debian"
cd "$source"

if [ "${1:-}" = --install ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # An answer, for files of /etc that are there already.
    apt-get -qq install -y --no-install-recommends -o Dpkg::Options::=--force-confold build-essential lintian
    apt-get -qq build-dep -y --no-install-recommends -o Dpkg::Options::=--force-confold ./
fi
for program in dpkg-buildpackage lintian; do
    command -v "$program" >/dev/null ||
        { echo "make deb: needs $program: as root, apt install build-essential lintian && apt build-dep $source" >&2; exit 69; }
done
dpkg-checkbuilddeps || { echo "make deb: as root, apt build-dep $source" >&2; exit 69; }
log=$build/log
dpkg-buildpackage --no-sign >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 70; }
lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$build"/*.changes
for made in "$build"/popkernel_*; do mv "$made" "$tree/dist/"; done
echo "made dist/popkernel_${version}_all.deb"
