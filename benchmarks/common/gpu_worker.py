"""One process of ``make gpu``: takes jobs, one line of JSON each, and appends what it finds to files.

    python -P benchmarks/common/gpu_worker.py --device cuda --jobs common.gpu_jobs --records A.jsonl B.jsonl

It imports torch and growtas first and then waits, so that a spare one is ready when a kernel takes its
process down. A record is written the moment it is known, in one system call per file: whatever ends this
process, what it had finished is on disk. Its end of the conversation is the former standard output; all that
anything else prints goes to standard error, the run's log.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any


def append(paths: Sequence[str], record: Mapping[str, Any]) -> None:
    """Append one record to files, whole or not at all.

    Args:
        paths: files of JSON lines.
        record: what to add.
    """
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    for path in paths:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def read(path: str) -> list[dict[str, Any]]:
    """The whole records of a file; a last line that was cut off is left out."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def one_line(error: BaseException) -> str:
    """An error in one short line."""
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {text}"[:300]


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: nothing of a run outlives it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def serve(jobs: Any, context: Any, requests: Any, replies: Any) -> int:
    """Run jobs until there are no more.

    Args:
        jobs: a module; a job is one of its functions, ``function(context, **args)``.
        context: what all of them get; its ``healthy()`` says why the device can no longer be used, or "".
        requests: lines ``{"do": name, "args": {...}}``.
        replies: gets one line per job, ``{"status": "ok" or a reason}``.

    Returns:
        The exit status: 3 where a job broke the device for all that would follow.
    """
    for line in requests:
        request = json.loads(line)
        try:
            getattr(jobs, request["do"])(context, **request["args"])
            status = "ok"
        except Exception as error:
            traceback.print_exc()
            status = one_line(error)
        broken = context.healthy()
        print(json.dumps({"status": broken or status}), file=replies, flush=True)
        if broken:
            return 3
    return 0


def main(argv: list[str] | None = None) -> int:
    """Set up, say that it is ready, and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", default="common.gpu_jobs")
    parser.add_argument("--records", nargs="+", required=True)
    options = parser.parse_args(argv)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs = importlib.import_module(options.jobs)
    context = jobs.Context(options.device, options.records)
    print(json.dumps({"status": "ready"}), file=replies, flush=True)
    return serve(jobs, context, sys.stdin, replies)


if __name__ == "__main__":
    sys.exit(main())
