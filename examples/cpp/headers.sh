#!/bin/sh
# Puts the headers of onnxruntime and nlohmann/json into ./include, without root and without changing the system: Debian's
# packages, unpacked. Debian has onnxruntime since release 13; its headers compile on Debian 12 too.
set -eu
cd "$(dirname "$0")"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
fail() { echo "headers.sh: $1; see README.md for other ways to the headers" >&2; exit 1; }

command -v apt-get >/dev/null && command -v dpkg >/dev/null && [ -f "$keys" ] || fail "this is not Debian"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)' 'Created-By: Packages' |
  awk '$2 == "Debian" && $3 == "Debian" && $4 == "main" { print $1; exit }')
[ -n "$mirror" ] || fail "apt knows no mirror of Debian"

work=$PWD/include.partial
rm -rf "$work"
mkdir -p "$work/lists/partial"
trap 'rm -rf "$work"' EXIT
echo "deb [signed-by=$keys] $mirror trixie main" >"$work/sources.list"
cd "$work"
apt() {
  apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update || fail "the mirror cannot be read"
apt download libonnxruntime-dev nlohmann-json3-dev || fail "the packages cannot be downloaded"
for package in *.deb; do dpkg -x "$package" unpacked; done
cd ..
rm -rf include
mv "$work/unpacked/usr/include" include
echo "headers in $PWD/include"
