#!/usr/bin/env python3
"""Tests of prepare_data.py, of a copy of it, so that its data/ is the tests' own.

    python3 dev/test_prepare_data.py        make test runs it, too

What a server sends comes from addresses that need no network. Only the right text's arrival is not
tested here: that would take the text. Nothing else is ever stored as tinyshakespeare, under whatever
name.
"""
import os
import shutil
import subprocess
import sys
import tempfile

NOWHERE = "--url file:///no/such/text"
SHAKESPEARE = "data/tinyshakespeare.txt"
MINE = "mine"  # from this row on a file of this content stands where the text belongs
ROWS = [  # exit status, options, what it prints, what it says on stderr
    (0, "--input text", "data/text\n", "copied text to data/text, 59"),
    (0, "--input data/text", "data/text\n", "already in place"),
    (0, "--input text --output a/b/c", "a/b/c\n", "copied text to a/b/c"),
    (1, "--input empty", "", "empty is empty"),
    (1, "--input nowhere", "", "cannot read nowhere"),
    (2, "--input text --fallback", "", "not allowed with"),
    (2, "--colour red", "", "--colour"),
    (1, f"--input text --output {SHAKESPEARE}", "", "is not tinyshakespeare"),
    (1, "--input text --output data/link", "", "is not tinyshakespeare"),
    (1, "--url data:,dream", "", "is not tinyshakespeare: it has 5 bytes"),
    (1, NOWHERE, "", "could not download file:///no/such/text"),
    (1, "--url nonsense", "", "could not download nonsense"),
    MINE,
    (1, NOWHERE, "", "is there but is not tinyshakespeare: it has 4 bytes"),
    (0, f"{NOWHERE} --fallback", "data/fallback.txt\n", "THIS IS NOT SHAKESPEARE"),
    (1, "--input text --output empty/text", "", "cannot write empty/text"),
]
counts = {True: 0, False: 0}


def check(good, *what):
    counts[bool(good)] += 1
    if not good:
        print("FAILED:", *what)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def run_rows():
    for row in ROWS:
        if row == MINE:
            check(not os.path.exists(SHAKESPEARE), SHAKESPEARE, "is there")
            with open(SHAKESPEARE, "w") as file:
                file.write(MINE)
            continue
        status, options, printed, reason = row
        run = subprocess.run([sys.executable, "prepare_data.py", *options.split()],
                             capture_output=True, text=True)
        check(run.returncode == status and run.stdout == printed, options, run)
        check(reason in run.stderr.replace("\n", " "), options, run)  # a box breaks its lines
    check(content("text") == content("data/text") == content("a/b/c"), "copies")
    check(content("prepare_data.py") == content("data/fallback.txt"), "fallback: the files here")
    check(content(SHAKESPEARE) == MINE.encode(), "a failed download leaves what was there")
    check(not any(".tmp" in name for name in os.listdir("data")), "left behind", os.listdir("data"))


def main():
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "prepare_data.py")
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(script, directory)
        os.chdir(directory)
        os.mkdir("data")
        os.symlink("tinyshakespeare.txt", "data/link")
        with open("text", "w") as file:
            file.write("to be or not to be that is a dream\n" * 171)  # 5985 bytes
        open("empty", "w").close()
        run_rows()
        os.chdir("/")
    print(f"prepare_data: {counts[True]} passed, {counts[False]} failed")
    return counts[False] != 0


if __name__ == "__main__":
    sys.exit(main())
