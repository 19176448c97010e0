"""Fuzz one harness: `python -m tests.fuzz NAME --seconds N`.

Guided by coverage if atheris is installed (`pip install atheris`). Inputs that reach new code go to --corpus
(a scratch directory by default). Failing inputs are written to failed-* beside the committed corpus, and
tests/fuzz/test_fuzz.py replays them. Without atheris it mutates the corpus unguided, and says so.
"""

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time

from tests.fuzz.harness import NAMES, corpus_of, inputs, load

MOST = 4096  # octets of an input


def write_failure(name, data):
    os.makedirs(corpus_of(name), exist_ok=True)
    path = os.path.join(corpus_of(name), f"failed-{hashlib.sha256(data).hexdigest()[:12]}")
    with open(path, "wb") as file:
        file.write(data)
    print(f"failed: {path}", flush=True)


def guided(name, seconds, corpus):
    """Run libFuzzer's loop over popkernel's code; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["popkernel"]):
        one = load(name).one
    known = tempfile.mkdtemp(prefix="fuzz-seeds-")
    for number, (_, data) in enumerate(inputs(name)):
        with open(os.path.join(known, str(number)), "wb") as file:
            file.write(data)

    def test(data):
        try:
            one(data)
        except BaseException:
            write_failure(name, data)
            raise

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MOST}",
        "-print_final_stats=1",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={known}/",
    ]
    atheris.Setup([sys.argv[0], *options, corpus, known], test)
    atheris.Fuzz()


def unguided(name, seconds):
    """Cut and join inputs of the corpus at random."""
    print("atheris is not installed: no guidance by coverage", flush=True)
    one, known, chance = load(name).one, [data for _, data in inputs(name)], random.Random(1)
    began, runs = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        data = bytearray(chance.choice(known))
        for _ in range(chance.randint(1, 8)):
            at = chance.randint(0, len(data))
            match chance.randint(0, 3):
                case 0:
                    data[at:at] = chance.randbytes(chance.randint(1, 8))
                case 1:
                    del data[at : at + chance.randint(1, 16)]
                case 2:
                    other = chance.choice(known)
                    cut = chance.randint(0, len(other))
                    data[at:] = other[cut:]
                case _ if at < len(data):
                    data[at] = chance.randint(0, 255)
                case _:
                    pass
        data = bytes(data[:MOST])
        try:
            one(data)
        except BaseException:
            write_failure(name, data)
            raise
        runs += 1
    print(f"{name}: {runs} executions, {runs / seconds:.0f} a second")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", help="directory that what is new is put into")
    options = parser.parse_args()
    corpus = options.corpus or tempfile.mkdtemp(prefix=f"fuzz-{options.name}-")
    os.makedirs(corpus, exist_ok=True)
    try:
        import atheris  # noqa: F401
    except ImportError:
        unguided(options.name, options.seconds)
    else:
        guided(options.name, options.seconds, corpus)


if __name__ == "__main__":
    main()
