# How the test scripts of this folder speak and count, as run.sh wants it: `topic=NAME`, then
# `. tests/say.sh`.
passed=0 failed=0 skipped=0
strict=${PMLP_STRICT:-0} # 1: a missing tool is a failure

have() { command -v "$1" > /dev/null 2>&1; }
ok() { echo "ok   $topic: $*"; passed=$((passed + 1)); }
bad() { echo "FAIL $topic: $*"; failed=$((failed + 1)); }
skip() { echo "skip $topic: $*"; skipped=$((skipped + 1)); }
missing() { # TOOL WHAT: what cannot run without it
    if [ "$strict" = 1 ]; then bad "$2: $1 is missing"; else skip "$2: $1 is missing"; fi
}
end() {
    local line="$passed passed, $failed failed"
    [ "$skipped" -eq 0 ] || line="$line, $skipped skipped"
    echo "$line"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
    exit
}
