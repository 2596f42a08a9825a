"""Lets coverage guide the mutations of one target: python tests/fuzz/guided.py TARGET N SEED OUT.

Needs atheris (pip install atheris). libFuzzer keeps what reaches new lines of growtas or PyYAML, and mutates
that further, by the target's own mutations. It ends this process, so fuzz.py --guided starts one per target.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["growtas", "yaml"]):
    from harness import judge
    from targets import TARGETS

    NAME, COUNT, SEED, OUT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    TARGET = TARGETS[NAME]
    SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(SCRATCH)
    SEEDS = list(TARGET.seeds())
    for seed in SEEDS:  # imports what is imported late
        judge(TARGET, seed, SCRATCH / "case")

verdicts: Counter[str] = Counter()
told = set()


def test_one(data: bytes) -> None:
    verdict, said = judge(TARGET, data, SCRATCH / "case")
    verdicts[verdict] += 1
    kind = said[:60]
    if verdict == "failure" and kind not in told:
        told.add(kind)
        OUT.mkdir(parents=True, exist_ok=True)
        kept = OUT / f"{NAME}-guided-{SEED}-{sum(verdicts.values())}"
        kept.write_bytes(data)
        print(
            f"FAILURE {NAME}: {said}\n  again: python tests/fuzz/fuzz.py --target {NAME} {kept}", flush=True
        )
    if sum(verdicts.values()) == COUNT:
        print(f"{NAME}, guided: {dict(verdicts)}", flush=True)
        os._exit(min(1, verdicts["failure"]))


def mutate(data: bytes, most: int, seed: int) -> bytes:
    rng = random.Random(seed)
    return (TARGET.mutate(rng, data) if rng.random() < 0.7 else atheris.Mutate(data, most))[:most]


if __name__ == "__main__":
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    longest = 4 * max(map(len, SEEDS))
    options = [
        f"-seed={SEED + 1}",
        f"-max_len={longest}",
        "-verbosity=0",
        f"-runs={2 * COUNT}",
        "-timeout=300",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one, custom_mutator=mutate)
    atheris.Fuzz()
