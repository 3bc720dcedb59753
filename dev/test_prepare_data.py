#!/usr/bin/env python3
"""Tests of prepare_data.py, of a copy of it, so that its data/ is the tests' own.

    python3 dev/test_prepare_data.py        make test runs it, too

What a server sends comes from addresses that need no network. Only the right text's arrival is not
tested here: that would take the text. Nothing else is ever stored as tinyshakespeare, under whatever
name. Of CIFAR-10's archive there are small ones, right but for one thing each; the copy under test
has the MD5 and the batch size of the right one. Shards come from a server of this program's own, which
knows ranges or not, and breaks off.
"""
import glob
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading

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
    run(NOWHERE, 1, "", "pass it with --cifar10 --input FILE.")
    run("--url data:,dream", 1, "", "is not cifar-10-binary.tar.gz: its MD5 is")
    run("--input empty", 1, "", "is not cifar-10-binary.tar.gz")
    run("--fallback", 2, "", "not allowed with")
    run(f"--url file://{os.getcwd()}/archive.tar.gz --output else", 0, "else\n", "wrote six")
    check(content("else/test_batch.bin") == MEMBERS[5][1], "from an address")
    check(not os.path.exists("evil") and not os.path.exists("../evil"), "nothing outside")


def shard_of(tokens, magic=20240520):
    return struct.pack("<256i", magic, 1, len(tokens), *[0] * 253) + struct.pack(
        f"<{len(tokens)}H", *tokens)


class Server(http.server.BaseHTTPRequestHandler):
    """Sends files of the dict `shards`, at most `most` bytes an answer."""
    shards, most, ranges, asked = {}, 1 << 30, True, []

    def do_GET(self):
        name, start = self.path.rpartition("/")[2], self.headers.get("Range")
        self.asked.append((name, start))
        data = self.shards.get(name)
        if data is None:
            return self.send_error(404)
        begin = int(start[6:-1]) if start and self.ranges else 0
        if begin >= len(data):
            return self.send_error(416)
        self.send_response(206 if start and self.ranges else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:begin + self.most])

    def log_message(self, *arguments):
        pass


def run_shards():
    def run(options, status, printed, reason):
        run = subprocess.run([sys.executable, "prepare_data.py", *options.split()],
                             capture_output=True, text=True)
        check(run.returncode == status and run.stdout == printed, options, run)
        check(reason in run.stderr, options, run)

    def part_of(name):
        return content(f"data/fine/{name}.part")

    run("--shard text --out data/bytes --shard-tokens 2000", 0, "data/bytes/text_*.bin\n",
        "wrote 5985 tokens to 3 shards")
    names, text = sorted(os.listdir("data/bytes")), content("text")
    check(names == [f"text_{i:06d}.bin" for i in (1, 2, 3)] + ["text_tokens.txt"], names)
    for i, name in enumerate(names[:3]):
        check(content(f"data/bytes/{name}") == shard_of(text[1995 * i:1995 * (i + 1)]), name)
    lines = content("data/bytes/text_tokens.txt").decode().splitlines()
    check([json.loads(line) for line in lines] == [chr(b) for b in range(256)], "the bytes' strings")
    run("--shard empty --out data/bytes", 1, "", "empty is empty")
    run("--shard text --out data/bytes", 1, "", "text_000002.bin, from an earlier time")
    shutil.copy("text", "text_2.txt")   # the pattern of text would take its shards, too
    run("--shard text_2.txt --out data/bytes", 1, "", "the pattern of data/bytes/text_000001.bin")
    run("--shard text_2.txt --out data/more", 0, "data/more/text_2_*.bin\n", "to 1 shards")
    run("--shard text --out data/more --shard-tokens 2000", 1, "", "text_2_000001.bin, from an")
    run("--shard text_2.txt --out data/more", 0, "data/more/text_2_*.bin\n", "to 1 shards")
    for name in ("text_2_000001.bin", "text_2_tokens.txt"):     # the user's
        os.makedirs("data/own", exist_ok=True)
        shutil.copy("text", f"data/own/{name}")
        run("--shard text_2.txt --out data/own", 1, "", f"data/own/{name} is there already")
        check(content(f"data/own/{name}") == content("text") and len(os.listdir("data/own")) == 1, name)
        os.remove(f"data/own/{name}")
    os.mkfifo("data/pipe")
    run("--input text --output data/pipe", 1, "", "data/pipe is not a regular file")
    check(not os.path.isfile("data/pipe"), "a pipe is kept")
    shutil.copy("text", "a[1].txt")     # a pattern that finds them
    run("--shard a[1].txt --out data/odd*", 0, "data/odd[*]/a[[]1]_*.bin\n", "to 1 shards")
    check(len(glob.glob("data/odd[*]/a[[]1]_*.bin")) == 1, os.listdir("data/odd*"))
    run("--shard text", 2, "", "give a folder with --out")
    run("--shard text --out data/bytes --shard-tokens 0", 2, "", "at least 1 token")
    run("--fineweb 0", 2, "", "1 to 103 shards")
    for kind, other in (("cifar10", "fineweb 1"), ("cifar10", "shard text"),
                        ("cifar10", "vocab text"), ("vocab text", "out x"), ("input text", "out x"),
                        ("input text", "url x"),
                        ("fineweb 1", "output x"), ("fineweb 1", "shard-tokens 9"),
                        ("shard text", "output x")):
        run(f"--{kind} --{other} {NOWHERE}", 2, "", "not allowed with argument")
    run(f"--shard text --out data/bytes {NOWHERE}", 2, "", "--url: not allowed with argument")
    run("--shard= --out x", 1, "", "cannot read")
    run("--vocab=", 1, "", "cannot read")

    names = ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    Server.shards = {name: shard_of(range(100 * i, 100 * i + 9000)) for i, name in enumerate(names)}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"--fineweb 2 --out data/fine --url http://127.0.0.1:{server.server_port}/main"
    Server.most = 5000  # of 19024
    run(options, 1, "", "run this again to go on")
    first = len(part_of(names[0]))
    check(0 < first <= 5000, "a part is kept", first)
    run(options, 1, "", "run this again to go on")
    check(Server.asked[-1] == (names[0], f"bytes={first}-"), "goes on", Server.asked)
    check(part_of(names[0]) == Server.shards[names[0]][:first + 5000], "the second part")
    Server.most, Server.ranges = 1 << 30, False  # the whole again, from a server without ranges
    run(options, 0, "data/fine/fineweb_train_*.bin\n", "19024 bytes, as its header tells")
    check(sorted(os.listdir("data/fine")) == sorted(names), os.listdir("data/fine"))
    for name in names:
        check(content(f"data/fine/{name}") == Server.shards[name], name)
    Server.asked.clear()
    run(options, 0, "data/fine/fineweb_train_*.bin\n", "already there")
    check(not Server.asked, "fetched again", Server.asked)
    with open(f"data/fine/{names[1]}", "wb") as file:  # as if it had been cut short
        file.write(Server.shards[names[1]][:-1])
    run(options, 0, "data/fine/fineweb_train_*.bin\n", f"wrote data/fine/{names[1]}")
    check([name for name, _ in Server.asked] == [names[1]], "only that one", Server.asked)
    for wrong in (b"<html>" * 300, shard_of(range(9), 20240801), shard_of(range(9)) + b"x", b"one"):
        os.remove(f"data/fine/{names[2]}")
        Server.shards[names[2]] = wrong
        run(options, 1, "", "is no shard of uint16 tokens")
        check(not os.path.exists(f"data/fine/{names[2]}.part"), wrong[:9])
        open(f"data/fine/{names[2]}", "w").close()
    del Server.shards[names[2]]
    run(options, 1, "", "could not download")
    server.shutdown()

    tokens = ["!", "\u0120the", "\u0102", "\u00e9", "<|endoftext|>"]  # space, byte 2, half of UTF-8
    with open("vocab.json", "w") as file:
        json.dump({token: i for i, token in reversed(list(enumerate(tokens)))}, file)
    run("--vocab vocab.json", 0, "data/gpt2-tokens.txt\n", "wrote 5 tokens")
    check([json.loads(line) for line in content("data/gpt2-tokens.txt").splitlines()]
          == ["!", " the", "\x02", "\xe9", "<|endoftext|>"], content("data/gpt2-tokens.txt"))
    run("--vocab text", 1, "", "text is no vocab.json of GPT-2")
    for name, wrong in (("none.json", "{}"), ("deep.json", "[" * 100000)):
        with open(name, "w") as file:
            file.write(wrong)
        run(f"--vocab {name}", 1, "", f"{name} is no vocab.json of GPT-2")


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
        run_shards()
        with open("prepare_data.py") as file:
            run_archives(file.read())
        os.chdir("/")
    print(f"prepare_data: {counts[True]} passed, {counts[False]} failed")
    return counts[False] != 0


if __name__ == "__main__":
    sys.exit(main())
