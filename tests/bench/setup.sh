#!/usr/bin/env bash
# Installs what pipemlp is measured beside, from Debian's packages.
#
#     tests/bench/setup.sh [--help]
#
# With root and apt-get: installs what is missing. Without: names it and goes on, since whatever is
# missing is named as missing in the results, too. Exit status 0 either way.
set -u -o pipefail

packages=(g++ python3 python3-torch python3-numpy python3-sklearn python3-matplotlib
          libdlib-dev libfann-dev libopenblas-dev libopenblas0-pthread libopenblas0-openmp
          libblis-dev libdnnl-dev libxsmm-dev liblapack-dev)

if [ $# -gt 0 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    [ "$1" = --help ] && exit 0
    exit 2
fi

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2> /dev/null)" = "ii " ]
}

# Sets `missing`.
find_missing() {
    local package
    missing=()
    for package in "${packages[@]}"; do
        installed "$package" || missing+=("$package")
    done
}

if ! command -v dpkg-query > /dev/null 2>&1; then
    echo "setup.sh: no Debian packages here; what the benchmark finds, it uses" >&2
    exit 0
fi
find_missing
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null 2>&1; then
    echo "setup.sh: not installed, and only root can: ${missing[*]}" >&2
    exit 0
fi
echo "setup.sh: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
get=(apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 install)
if ! "${get[@]}" "${missing[@]}" > /dev/null 2>&1; then
    apt-get -q update > /dev/null 2>&1
    if ! "${get[@]}" "${missing[@]}" > /dev/null 2>&1; then # whatever can be had, one by one
        for package in "${missing[@]}"; do "${get[@]}" "$package" > /dev/null 2>&1; done
    fi
fi
find_missing
[ ${#missing[@]} -eq 0 ] || echo "setup.sh: could not be installed: ${missing[*]}" >&2
exit 0
