#!/usr/bin/env python3
"""Tests of prepare_data.py, of a copy of it, so that its data/ is the tests' own.

    python3 dev/test_prepare_data.py        make test runs it, too

What a server sends comes from addresses that need no network. Only the right text's arrival is not
tested here: that would take the text. Nothing else is ever stored as tinyshakespeare, under whatever
name. Of CIFAR-10's archive there are small ones, right but for one thing each; the copy under test
has the MD5 and the batch size of the right one.
"""
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
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
CIFAR10 = "cifar-10-batches-bin"
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
MEMBERS = [(f"{CIFAR10}/{name}", name.encode() * 2) for name in BATCHES]
MEMBERS = [(name, text[:20]) for name, text in MEMBERS] + [(f"{CIFAR10}/readme.html", b"read")]
ARCHIVES = [  # what is put in place of a member; exit status, what it prints, what it says
    ({}, 0, "data/cifar-10-batches-bin\n", "wrote six batches of 20 bytes"),
    ({3: (f"{CIFAR10}/data_batch_4.bin", b"short")}, 1, "", "has no data_batch_4.bin of 20 bytes"),
    ({5: (f"{CIFAR10}/other.bin", bytes(20))}, 1, "", "has no test_batch.bin"),
    ({6: ("../evil", b"evil")}, 1, "", "has a member '../evil'"),
    ({6: (f"{CIFAR10}/../../evil", b"evil")}, 1, "", "which does not belong there"),
    ({6: ("/tmp/evil", b"evil")}, 1, "", "which does not belong there"),
    ({6: (f"{CIFAR10}/link", None)}, 1, "", "which does not belong there"),
    (None, 1, "", "cannot be unpacked"),
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


def archive_of(changes):
    """An archive's bytes: the members, some replaced; content None is a link. None: no archive."""
    data = io.BytesIO()
    if changes is None:
        return b"no archive"
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for i, member in enumerate(MEMBERS):
            name, text = changes.get(i, member)
            info = tarfile.TarInfo(name)
            info.size = len(text or b"")
            if text is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info, io.BytesIO(text or b""))
    return data.getvalue()


def run_archives(source):
    script = re.sub("BATCH_SIZE = .*", "BATCH_SIZE = 20", source)

    def run(options, status, printed, reason):
        run = subprocess.run([sys.executable, "cifar.py", "--cifar10", *options.split()],
                             capture_output=True, text=True)
        check(run.returncode == status and run.stdout == printed, options, run)
        check(reason in run.stderr, options, run)

    for changes, status, printed, reason in ARCHIVES[::-1]:  # the right one last
        with open("archive.tar.gz", "wb") as file:
            file.write(archive_of(changes))
        with open("cifar.py", "w") as file:
            digest = hashlib.md5(content("archive.tar.gz")).hexdigest()
            file.write(re.sub('CIFAR10_MD5 = ".*"', f'CIFAR10_MD5 = "{digest}"', script))
        run("--input archive.tar.gz", status, printed, reason)
        check(os.path.exists(f"data/{CIFAR10}") == (status == 0), changes, "stored or not")
    for name, text in MEMBERS[:6]:
        check(content(f"data/{name}") == text, name)
    check(sorted(os.listdir(f"data/{CIFAR10}")) == sorted(BATCHES), "nothing but the batches")
    run(NOWHERE, 0, f"data/{CIFAR10}\n", "already there")
    os.remove(f"data/{CIFAR10}/test_batch.bin")  # as if it had been cut short
    run(NOWHERE, 1, "", "could not download file:///no/such/text")
    run("--url data:,dream", 1, "", "is not cifar-10-binary.tar.gz: its MD5 is")
    run("--input empty", 1, "", "is not cifar-10-binary.tar.gz")
    run("--fallback", 2, "", "not allowed with")
    run(f"--url file://{os.getcwd()}/archive.tar.gz --output else", 0, "else\n", "wrote six")
    check(content("else/test_batch.bin") == MEMBERS[5][1], "from an address")
    check(not os.path.exists("evil") and not os.path.exists("../evil"), "nothing outside")


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
        with open("prepare_data.py") as file:
            run_archives(file.read())
        os.chdir("/")
    print(f"prepare_data: {counts[True]} passed, {counts[False]} failed")
    return counts[False] != 0


if __name__ == "__main__":
    sys.exit(main())
