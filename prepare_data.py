#!/usr/bin/env python3
"""Put the training text in data/, checked, and print its path.

    python3 prepare_data.py                     download tinyshakespeare to data/tinyshakespeare.txt
    python3 prepare_data.py --input my.txt      use a text of your own: copied to data/my.txt
    python3 prepare_data.py --input my.txt --output elsewhere/name.txt
    python3 prepare_data.py --fallback          without network, make do with this project's files
    python3 prepare_data.py --url ADDRESS       download the same text from another address
    python3 prepare_data.py --cifar10           download CIFAR-10, 170 MB, to data/cifar-10-batches-bin;
                                                with --input, take its archive from a file

Tinyshakespeare is 1,115,394 bytes of Shakespeare's plays; size and SHA-256 are checked, and nothing
else is ever stored as data/tinyshakespeare.txt. A file given with --input that turns out to be
tinyshakespeare, whatever it is called, goes to that place too. A file that is already right is left
alone, and then no network is needed. CIFAR-10 comes as cifar-10-binary.tar.gz: its MD5 is checked
before it is unpacked, and of it only six files of the right size are written.

Stdout gets one line, the path to train on; everything else goes to stderr. The exit status is 0 on
success, 1 on failure, 2 on a wrong option. A file is complete or absent, never half-written.
Needs Python 3.8 or newer and nothing else.
"""

import argparse
import glob
import hashlib
import http.client
import io
import os
import sys
import tarfile
import textwrap
import time
import urllib.request

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SIZE = 1115394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "data", "tinyshakespeare.txt")
FALLBACK = os.path.join(HERE, "data", "fallback.txt")
FALLBACK_SOURCES = ("lipgpt.c", "test_lipgpt.c", "README.md", "Makefile",
                    "dev/*.md", "*.py", "dev/*.py", "dev/peers/*.py")
TIMEOUT = 10                # seconds without an answer before a download counts as failed
LONGEST_ANSWER = 1 << 28    # bytes to read from a server before giving up on it

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10 = "cifar-10-batches-bin"  # the folder in the archive, and in data/
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
BATCH_SIZE = 10000 * (1 + 3 * 32 * 32)  # of each: 10,000 labels with their images


class Failure(Exception):
    """What went wrong, as one sentence for the user."""


def say(text):
    print(text, file=sys.stderr)


def shown(path):
    """The path as the user would type it: relative if it lies below the current directory."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def difference(data):
    """How data differs from tinyshakespeare, or None if it is the right text."""
    if len(data) != SIZE:
        return f"it has {len(data)} bytes instead of {SIZE}"
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == SHA256 else f"its SHA-256 is {digest} instead of {SHA256}"


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}; give a text file with --input.")


def write(path, data):
    """Write beside the target, flush to disk, then rename over it: all or nothing."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
    except OSError as error:
        raise Failure(f"cannot write {shown(path)}: {error.strerror}; free the place or choose "
                      "another with --output.")


def receive(url, known):
    """What a server sends, with a line of progress if that takes long; known is its usual address."""
    data, shown_at = io.BytesIO(), time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            size = answer.headers.get("Content-Length") or "?"
            while data.tell() < LONGEST_ANSWER:
                part = answer.read(1 << 16)
                if not part:
                    break
                data.write(part)
                if time.monotonic() > shown_at + 2:
                    shown_at = time.monotonic()
                    say(f"{data.tell()} of {size} bytes")
            if size.isdigit() and data.tell() != int(size):
                raise OSError(f"it ended after {data.tell()} of {size} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        place = "it" if url == known else known
        raise Failure(f"could not download {url} ({reason}): fetch {place} by hand and pass it "
                      "with --input FILE, or pass a text of your own that way.")
    return data.getvalue()


def download(url):
    data = receive(url, URL)
    wrong = difference(data)
    if wrong:
        raise Failure(f"what {url} sent is not tinyshakespeare: {wrong}, so nothing was stored.")
    return data


def unpack(data, origin):
    """The six batches {name: bytes} of CIFAR-10's archive."""
    digest = hashlib.md5(data).hexdigest()
    if digest != CIFAR10_MD5:
        raise Failure(f"{origin} is not cifar-10-binary.tar.gz: its MD5 is {digest} instead of "
                      f"{CIFAR10_MD5}, so nothing was stored.")
    batches = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                folder, _, name = member.name.rstrip("/").partition("/")
                if folder != CIFAR10 or "/" in name or not (member.isfile() or member.isdir()):
                    raise Failure(f"{origin} has a member {member.name!r}, which does not belong "
                                  "there, so nothing was stored.")
                if name in BATCHES and member.isfile() and member.size == BATCH_SIZE:
                    batches[name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Failure(f"{origin} cannot be unpacked ({error}), so nothing was stored.")
    for name in BATCHES:
        if name not in batches:
            raise Failure(f"{origin} has no {name} of {BATCH_SIZE} bytes, so nothing was stored.")
    return batches


def cifar10(source, url, folder):
    """Make folder hold CIFAR-10's batches, from an archive or the network unless it does already."""
    paths = {name: os.path.join(folder, name) for name in BATCHES}
    if all(os.path.isfile(path) and os.path.getsize(path) == BATCH_SIZE for path in paths.values()):
        say(f"{shown(folder)} is already there, with six batches of {BATCH_SIZE} bytes")
        return folder
    data = receive(url, CIFAR10_URL) if source is None else read(source)
    for name, batch in unpack(data, url if source is None else source).items():
        write(paths[name], batch)
    say(f"wrote six batches of {BATCH_SIZE} bytes to {shown(folder)}, MD5 of the archive as expected")
    return folder


def from_file(source, output):
    """Copy a local text into place; return where it went."""
    data = read(source)
    if not data:
        raise Failure(f"{source} is empty: give a text of at least a few thousand characters.")
    wrong = difference(data)
    path = output or os.path.join(HERE, "data", os.path.basename(source))
    if not output and not wrong:
        path = TINY
    if os.path.realpath(path) == os.path.realpath(TINY) and wrong:
        raise Failure(f"{source} is not tinyshakespeare ({wrong}), so it cannot be stored as "
                      f"{shown(TINY)}: choose another name with --output.")
    if os.path.exists(path) and os.path.samefile(source, path):
        say(f"{shown(path)} is already in place, {len(data)} bytes")
    else:
        write(path, data)
        say(f"copied {source} to {shown(path)}, {len(data)} bytes")
    return path


def from_network(url, path):
    """Make path hold tinyshakespeare, from the network unless it does already."""
    if os.path.exists(path):
        wrong = difference(read(path))
        if not wrong:
            say(f"{shown(path)} is already there, size and SHA-256 are right")
            return path
        say(f"{shown(path)} is there but is not tinyshakespeare: {wrong}")
    write(path, download(url))
    say(f"wrote {shown(path)}, {SIZE} bytes, SHA-256 as expected")
    return path


def from_this_project(why):
    """Something to train on when there is no network: the project's own text."""
    names = []
    for pattern in FALLBACK_SOURCES:
        names += sorted(glob.glob(os.path.join(glob.escape(HERE), pattern)))
    write(FALLBACK, b"\n".join(read(name) for name in names))
    bar = "*" * 78
    say(f"\n{bar}")
    for paragraph in (
            "THIS IS NOT SHAKESPEARE. The download failed:", str(why),
            f"{shown(FALLBACK)} stands in for it: {os.path.getsize(FALLBACK)} bytes of this "
            "project's own source code and documentation. That is enough to see the program work, "
            "but the README's losses, accuracies and bounds DO NOT APPLY."):
        say(textwrap.fill(paragraph, 78, initial_indent="***  ", subsequent_indent="***  ",
                          break_long_words=False, break_on_hyphens=False))
    say(f"{bar}\n")
    return FALLBACK


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--input", metavar="FILE", help="use this local text; no network")
    source.add_argument("--fallback", action="store_true",
                        help="if the download fails, write data/fallback.txt from this project's "
                             "own files and succeed")
    parser.add_argument("--cifar10", action="store_true", help="CIFAR-10 instead of a text")
    parser.add_argument("--output", metavar="PATH",
                        help="where to put it (default: data/ beside this script)")
    parser.add_argument("--url", help="download from here instead of the usual place")
    args = parser.parse_args()
    if args.cifar10 and args.fallback:
        parser.error("argument --fallback: not allowed with argument --cifar10")
    output = os.path.abspath(args.output) if args.output else None
    try:
        if args.cifar10:
            path = cifar10(args.input, args.url or CIFAR10_URL,
                           output or os.path.join(HERE, "data", CIFAR10))
        elif args.input is not None:
            path = from_file(args.input, output)
        else:
            try:
                path = from_network(args.url or URL, output or TINY)
            except Failure as failure:
                if not args.fallback:
                    raise
                path = from_this_project(failure)
    except Failure as failure:
        say(f"prepare_data.py: {failure}")
        return 1
    except KeyboardInterrupt:
        say("prepare_data.py: interrupted, nothing was stored.")
        return 130
    print(shown(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
