#!/usr/bin/env python3
"""Put the training text in data/, checked, and print its path.

    python3 prepare_data.py                     download tinyshakespeare to data/tinyshakespeare.txt
    python3 prepare_data.py --input my.txt      use a text of your own: copied to data/my.txt
    python3 prepare_data.py --input my.txt --output elsewhere/name.txt
    python3 prepare_data.py --fallback          without network, make do with this project's files
    python3 prepare_data.py --url ADDRESS       download the same text from another address
    python3 prepare_data.py --cifar10           download CIFAR-10, 170 MB, to
                                                data/cifar-10-batches-bin; with --input, take its
                                                archive from a file
    python3 prepare_data.py --shard my.txt --out FOLDER [--shard-tokens N]
                                                token shards of any text, a byte a token, and
                                                FOLDER/my_tokens.txt for --vocabulary-file
    python3 prepare_data.py --fineweb N         download the first N shards of FineWeb, 200 MB each,
                                                and the one to validate on, to data/fineweb10B-gpt2
    python3 prepare_data.py --vocab vocab.json  GPT-2's tokens, given its vocab.json: a JSON string
                                                of a token's bytes a line, to data/gpt2-tokens.txt

Tinyshakespeare is 1,115,394 bytes of Shakespeare's plays; size and SHA-256 are checked, and nothing
else is ever stored as data/tinyshakespeare.txt. A file given with --input that turns out to be
tinyshakespeare, whatever it is called, goes to that place too. A file that is already right is left
alone, and then no network is needed. CIFAR-10 comes as cifar-10-binary.tar.gz: its MD5 is checked
before it is unpacked, and of it only six files of the right size are written. Of a shard, header
and size are checked; one that is there is left alone, and one that broke off goes on where it did.

Stdout gets one line, the path to train on, or a pattern for --data; everything else goes to stderr.
The exit status is 0 on success, 1 on failure, 2 on a wrong option. A file is complete or absent,
never half-written. Needs Python 3.8 or newer and nothing else.
"""

import argparse
import glob
import hashlib
import http.client
import io
import json
import os
import struct
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
                    "dev/*.md", "*.py", "dev/*.py", "dev/port/*.py")
TIMEOUT = 10                # seconds without an answer before a download counts as failed
LONGEST_ANSWER = 1 << 28    # bytes to read from a server before giving up on it

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10 = "cifar-10-batches-bin"  # the folder in the archive, and in data/
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
BATCH_SIZE = 10000 * (1 + 3 * 32 * 32)  # of each: 10,000 labels with their images

FINEWEB_URL = "https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main"
SHARDS = 103                # of them that train
SHARD_HEADER = struct.Struct("<3i1012x")  # magic, version, tokens; then that many uint16
SHARD_MAGIC = 20240520
SHARD_TOKENS = 100_000_000  # of one, at most

# What may be given beside each kind of source; the last is a text.
TAKES = {"cifar10": {"input", "output", "url"}, "shard": {"out", "shard_tokens"},
         "fineweb": {"out", "url"}, "vocab": {"output"}, "input": {"fallback", "output", "url"}}


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
    if os.path.exists(path) and not os.path.isfile(path):
        raise Failure(f"{shown(path)} is not a regular file: choose another --output.")
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
        option = ("--input FILE, or pass a text of your own that way" if known == URL else
                  "--cifar10 --input FILE")
        raise Failure(f"could not download {url} ({reason}): fetch {place} by hand and pass it "
                      f"with {option}.")
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


def shard_size(start):
    """The size of a shard's file that begins with these bytes, or None if that is no shard."""
    if len(start) < SHARD_HEADER.size:
        return None
    magic, version, tokens = SHARD_HEADER.unpack(start[:SHARD_HEADER.size])
    whole = magic == SHARD_MAGIC and version == 1 and tokens >= 0
    return SHARD_HEADER.size + 2 * tokens if whole else None


def is_shard(path):
    """Whether a file is a shard, of the size that its header tells."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return shard_size(file.read(SHARD_HEADER.size)) == os.path.getsize(path)


def shard(source, folder, most):
    """Write the bytes of a text as shards of at most `most` tokens, all about as long."""
    data = read(source)
    count = -(-len(data) // most)
    if not count:
        raise Failure(f"{source} is empty: give a text.")
    name = os.path.splitext(os.path.basename(source))[0]
    pattern = f"{glob.escape(os.path.join(folder, name))}_*.bin"
    paths = [os.path.join(folder, f"{name}_{i + 1:06d}.bin") for i in range(count)]
    for other in sorted(set(glob.glob(pattern)) - set(paths)):
        raise Failure(f"{shown(other)}, from an earlier time, would be taken for a shard of this "
                      "text: remove it, or choose another --out.")
    for other in glob.glob(os.path.join(glob.escape(folder), "*_000001.bin")):
        if name.startswith(os.path.basename(other)[:-len("000001.bin")]):
            raise Failure(f"the pattern of {shown(other)} and the next would take the shards of this text, "
                          "too: remove them, or choose another --out.")
    symbols = "".join(json.dumps(chr(b)) + "\n" for b in range(256)).encode()
    listed = os.path.join(folder, f"{name}_tokens.txt")
    for path in [path for path in paths + [listed] if os.path.exists(path)]:
        if not is_shard(path) and (path != listed or read(path) != symbols):
            raise Failure(f"{shown(path)} is there already, and is none of this program's: remove it, or "
                          "choose another --out.")
    for i, path in enumerate(paths):
        part = data[len(data) * i // count:len(data) * (i + 1) // count]
        tokens = bytearray(2 * len(part))
        tokens[::2] = part      # uint16, little-endian
        write(path, SHARD_HEADER.pack(SHARD_MAGIC, 1, len(part)) + tokens)
    write(listed, symbols)
    say(f"wrote {len(data)} tokens to {count} shards in {shown(folder)}")
    return pattern


def fetch_shard(url, path):
    """Download a shard; what an earlier try left in path.part is not fetched again."""
    part = path + ".part"
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    shown_at = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            again = have and getattr(answer, "status", 200) == 206
            with open(part, "ab" if again else "wb") as file:
                while True:
                    piece = answer.read(1 << 16)
                    if not piece:
                        break
                    file.write(piece)
                    if time.monotonic() > shown_at + 2:
                        shown_at = time.monotonic()
                        say(f"{os.path.basename(path)}: {file.tell()} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "code", None) != 416:     # else the part was whole, or is too long
            reason = getattr(error, "reason", None) or error
            raise Failure(f"could not download {url} ({reason}): run this again to go on.")
    with open(part, "rb") as file:
        size = shard_size(file.read(SHARD_HEADER.size))
    have = os.path.getsize(part)
    if size is None or have > size:
        os.remove(part)
        raise Failure(f"what {url} sent is no shard of uint16 tokens, so nothing was stored.")
    if have < size:
        raise Failure(f"{url} ended after {have} of {size} bytes: run this again to go on.")
    os.replace(part, path)


def fineweb(count, url, folder):
    """The first shards of FineWeb, and the one to validate on."""
    names = ["fineweb_val_000000.bin"] + [f"fineweb_train_{i + 1:06d}.bin" for i in range(count)]
    try:
        os.makedirs(folder, exist_ok=True)
        for name in names:
            path = os.path.join(folder, name)
            if is_shard(path):
                say(f"{shown(path)} is already there")
                continue
            fetch_shard(f"{url}/{name}", path)
            say(f"wrote {shown(path)}, {os.path.getsize(path)} bytes, as its header tells")
    except OSError as error:
        raise Failure(f"cannot write to {shown(folder)}: {error.strerror}; choose another --out.")
    return os.path.join(glob.escape(folder), "fineweb_train_*.bin")


def vocabulary(source, path):
    """GPT-2's tokens from its vocab.json, where a byte is a printable character, in order of id."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    byte_of = {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}
    try:
        ids = json.loads(read(source).decode())
        tokens = sorted(ids, key=ids.get)
        if not ids or [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("ids are not 0, 1, 2 ...")
        text = ["".join(chr(byte_of[c]) for c in token) for token in tokens]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise Failure(f"{source} is no vocab.json of GPT-2: {error}.")
    write(path, "".join(json.dumps(token) + "\n" for token in text).encode())
    say(f"wrote {len(tokens)} tokens to {shown(path)}")
    return path


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
    source.add_argument("--shard", metavar="FILE", help="make token shards of this text, by bytes")
    source.add_argument("--fineweb", metavar="N", type=int, help="the first N shards of FineWeb")
    source.add_argument("--vocab", metavar="FILE", help="GPT-2's vocab.json, for --vocabulary-file")
    parser.add_argument("--out", metavar="FOLDER", help="where shards go")
    parser.add_argument("--shard-tokens", metavar="N", type=int,
                        help=f"tokens of a shard, at most (default: {SHARD_TOKENS})")
    parser.add_argument("--output", metavar="PATH",
                        help="where to put it (default: data/ beside this script)")
    parser.add_argument("--url", help="download from here instead of the usual place")
    args = parser.parse_args()
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    kind = next((name for name in TAKES if name in given), "input")
    for name in sorted(given - {kind} - TAKES[kind]):
        parser.error(f"argument --{name}: not allowed with argument --{kind}".replace("_", "-"))
    if args.input is not None and args.url is not None:
        parser.error("argument --url: not allowed with argument --input")
    if kind == "shard" and not args.out:
        parser.error("argument --shard: give a folder with --out")
    if args.shard_tokens is None:
        args.shard_tokens = SHARD_TOKENS
    if args.shard_tokens < 1 or (args.fineweb is not None and not 1 <= args.fineweb <= SHARDS):
        parser.error(f"give at least 1 token a shard, and 1 to {SHARDS} shards of FineWeb")
    output = os.path.abspath(args.output) if args.output else None
    try:
        if kind == "cifar10":
            path = cifar10(args.input, args.url or CIFAR10_URL,
                           output or os.path.join(HERE, "data", CIFAR10))
        elif kind == "shard":
            path = shard(args.shard, os.path.abspath(args.out), args.shard_tokens)
        elif kind == "fineweb":
            path = fineweb(args.fineweb, args.url or FINEWEB_URL, os.path.abspath(
                args.out or os.path.join(HERE, "data", "fineweb10B-gpt2")))
        elif kind == "vocab":
            path = vocabulary(args.vocab, output or os.path.join(HERE, "data", "gpt2-tokens.txt"))
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
        say("prepare_data.py: interrupted; what is whole stays, and what there is of a shard: run "
            "this again to go on.")
        return 130
    print(shown(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
