#!/usr/bin/env bash
# Puts a data set in MNIST's format into a directory: four files, unpacked.
#
#     tests/data.sh [DIR]            DIR is build/data if not given
#
# Takes what is there already; else Fashion-MNIST from Debian's package dataset-fashion-mnist,
# installed or downloaded and unpacked without root; else MNIST from a public mirror, with
# checksums. Exit status 1 and one sentence if none of that works. DIR never holds half a file:
# everything is unpacked and measured beside it, then moved.
set -u -o pipefail

target=${1:-build/data}
target=${target%/}
names=(train-images-idx3-ubyte train-labels-idx1-ubyte
       t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)
sizes=(47040016 60008 7840016 10008)
# of the .gz files of MNIST
sums=(f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432
      9fb629c4189551a2d022fa330f9573f3 ec29112dd5afa0611ce80d1b7f02629c)
mirror=https://ossci-datasets.s3.amazonaws.com/mnist
package=dataset-fashion-mnist

have() { command -v "$1" > /dev/null 2>&1; }

fail() {
    echo "data.sh: $*" >&2
    exit 1
}

# Are all four files in directory $1, each of its right size?
complete() {
    local i
    for i in "${!names[@]}"; do
        [ -f "$1/${names[i]}" ] && [ "$(wc -c < "$1/${names[i]}")" -eq "${sizes[i]}" ] || return 1
    done
}

# Unpacks the four .gz files of directory $1 and, if all is well, moves them to the target.
install_from() {
    local name
    mkdir -p "$work/ready" || return 1
    for name in "${names[@]}"; do
        gzip -dc "$1/$name.gz" > "$work/ready/$name" 2> /dev/null || return 1
    done
    complete "$work/ready" || return 1
    for name in "${names[@]}"; do
        mv -f "$work/ready/$name" "$target/$name" || return 1
    done
}

from_installed_package() {
    install_from /usr/share/datasets/fashion-mnist
}

from_debian() {
    local sandbox=()
    if ! have apt-get || ! have dpkg-deb; then
        why+=("no apt-get")
        return 1
    fi
    # apt's own unprivileged user need not be able to write here
    [ "$(id -u)" -ne 0 ] || sandbox=(-o APT::Sandbox::User=root)
    echo "data.sh: downloading Debian's $package (30 MB)"
    if ! (cd "$work" && LC_ALL=C apt-get -q "${sandbox[@]}" -o Acquire::http::Timeout=20 \
            -o Acquire::https::Timeout=20 -o Acquire::Retries=1 download "$package") \
            > "$work/apt.log" 2>&1; then
        if grep -q -i 'unable to locate\|no candidate\|installation candidate' "$work/apt.log"; then
            why+=("apt-get knows no $package: its lists are missing ('apt-get update') or lack it")
        else
            why+=("apt-get could not download $package")
        fi
        return 1
    fi
    if ! dpkg-deb -x "$work/$package"_*.deb "$work/package" > /dev/null 2>&1 ||
            ! install_from "$work/package/usr/share/datasets/fashion-mnist"; then
        why+=("$package is not what was expected")
        return 1
    fi
}

download() { # URL FILE
    if have curl; then
        curl -fsSL --connect-timeout 10 --max-time 120 -o "$2" "$1"
    else
        wget -q --tries=1 --connect-timeout=10 --read-timeout=30 -O "$2" "$1"
    fi
}

md5_of() {
    if have md5sum; then md5sum "$1" | cut -d ' ' -f 1
    elif have md5; then md5 -q "$1"
    else openssl md5 -r "$1" | cut -d ' ' -f 1
    fi
}

from_mirror() {
    local i file
    have curl || have wget || { why+=("neither curl nor wget"); return 1; }
    have md5sum || have md5 || have openssl || { why+=("no program for MD5 sums"); return 1; }
    echo "data.sh: downloading MNIST from $mirror (11 MB)"
    mkdir -p "$work/mirror" || return 1
    for i in "${!names[@]}"; do
        file=$work/mirror/${names[i]}.gz
        if ! download "$mirror/${names[i]}.gz" "$file" 2> /dev/null; then
            why+=("$mirror cannot be reached")
            return 1
        fi
        if [ "$(md5_of "$file")" != "${sums[i]}" ]; then
            why+=("${names[i]}.gz from $mirror has a wrong checksum")
            return 1
        fi
    done
    install_from "$work/mirror" || { why+=("what $mirror sent cannot be unpacked"); return 1; }
}

if complete "$target"; then
    echo "data.sh: $target is complete"
    exit 0
fi
mkdir -p "$target" 2> /dev/null || fail "the directory $target cannot be made"
work=$(mktemp -d "$target.XXXXXX" 2> /dev/null) || fail "no room for temporary files beside $target"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
work=$(cd "$work" && pwd) || fail "the temporary directory beside $target is not accessible"

why=()
if from_installed_package || from_debian || from_mirror; then
    echo "data.sh: $target is ready"
    exit 0
fi
rmdir "$target" 2> /dev/null
reasons=$(printf '; %s' "${why[@]}")
fail "no data set: ${reasons:2}"
