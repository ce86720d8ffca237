"""What coverage.sh has measured, held against COVERAGE.md: python3 tests/coverage.py DIR

Reads DIR/all.json, which is gcovr's; writes DIR/missing and DIR/branches, prints the shares. Each
line that is not run and each branch that is not taken must be explained by exactly one section of
COVERAGE.md: one of the section's patterns, which are its indented lines, is found in the function's
name, a colon and the line. Exit status 1: one is not, or the share of lines is below 95 %.
"""
import json
import re
import sys

LEAST = 95.0
folder = sys.argv[1]
source = open("pipemlp.h").read().split("\n")

# The functions as a reader sees them: gcc has no name for those that it only inlines.
function, where = "", {}
for number, text in enumerate(source, 1):
    begin = re.match(r"(?!#|typedef|\s|/).*?\b(pmlp_\w+)\(", text)
    if begin:
        function = begin.group(1)
    where[number] = function

runs, branches = {}, {}
for file in json.load(open(folder + "/all.json"))["files"]:
    for line in file["lines"]:
        number = line["line_number"]
        if not line.get("gcovr/noncode"):
            runs[number] = runs.get(number, 0) + line["count"]
            for way, branch in enumerate(line["branches"]):
                key = number, way
                branches[key] = branches.get(key, 0) + branch["count"]

sections, title = [], ""
for text in open("tests/COVERAGE.md"):
    if text.startswith("## "):
        sections.append((text[3:].strip(), []))
    elif text.startswith("    ") and sections:
        sections[-1][1].append(text.strip())
used, wrong = set(), []


def explanations(number):
    """How many sections explain the line."""
    line = where[number] + ": " + source[number - 1].strip()
    found = set()
    for name, patterns in sections:
        for pattern in patterns:
            if re.search(pattern, line):
                used.add(pattern)
                found.add(name)
    if len(found) != 1:
        wrong.append("%5d: %s: %s" % (number, ", ".join(sorted(found)) or "not explained", line))


missing = sorted(n for n in runs if runs[n] == 0)
untaken = {}
for (number, way), count in sorted(branches.items()):
    if count == 0 and runs[number] > 0:
        untaken.setdefault(number, []).append(way)
for number in sorted(set(missing) | set(untaken)):
    explanations(number)

with open(folder + "/missing", "w") as out:
    for number in missing:
        print("%5d: %s: %s" % (number, where[number], source[number - 1].strip()), file=out)
with open(folder + "/branches", "w") as out: # of a line's branches, counted from 0, in gcc's order
    for number, ways in sorted(untaken.items()):
        of = sum(n == number for n, _ in branches)
        print("%5d: %s of %d: %s: %s" % (number, ",".join(map(str, ways)), of, where[number],
                                         source[number - 1].strip()), file=out)

share = 100.0 * (len(runs) - len(missing)) / len(runs)
taken = sum(count > 0 for count in branches.values())
print("pipemlp.h, lines: %.1f %%, %d of %d; the others: %s/missing" %
      (share, len(runs) - len(missing), len(runs), folder))
print("pipemlp.h, branches: %.1f %%, %d of %d; the others: %s/branches" %
      (100.0 * taken / len(branches), taken, len(branches), folder))
for name, patterns in sections:
    for pattern in patterns:
        if pattern not in used and name != "By chance":
            print("note: nothing is missing for this pattern of '%s': %s" % (name, pattern))
print("\n".join(["not explained by exactly one section of tests/COVERAGE.md:"] + wrong)
      if wrong else "each of them is explained in tests/COVERAGE.md")
sys.exit(1 if wrong or share < LEAST else 0)
