"""Accuracies of many subnets, each evaluated once: an append-only log remembers them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas import atomic
from growtas.chain import Chain
from growtas.progress import track
from growtas.searching.evaluate import Evaluator
from growtas.training.calibration import calibration, kept_statistics
from growtas.training.external import weights_hash

if TYPE_CHECKING:
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet
    from growtas.training.data import Splits


def top1_of(
    net: AnySupernet,
    splits: Splits,
    subnets: Sequence[AnySubnet],
    split: str = "test",
    amp: str = "none",
    calibrated: bool = True,
    log: Path | None = None,
    desc: str = "evaluate",
) -> list[float]:
    """Top-1 accuracy of subnets with the weights they inherit.

    Args:
        net: the supernet, on the device to compute on.
        splits: the data; a net with BatchNorm is calibrated on its training images.
        subnets: to evaluate, in the order of the answers.
        split: ``test``, ``search`` or ``train``.
        amp: ``bfloat16`` for autocast, ``none`` for float32.
        calibrated: whether a net with BatchNorm gets the statistics of each subnet; otherwise it is run with
            those that it has.
        log: file that remembers what was evaluated, by weights, split and subnet; an interrupted call goes
            on there, and equal evaluations are not repeated.
        desc: of the progress bar.

    Returns:
        Per cent, one per subnet.
    """
    dataset = getattr(splits, split)
    own = calibrated and net.needs_calibration
    key = f"{weights_hash(net)} {split} {len(dataset)} {amp} {'calibrated' if own else 'as it is'}"
    known = _read(log, key)
    wanted = [subnet for subnet in dict.fromkeys(subnets) if str(subnet) not in known]
    if wanted:
        calibrate = calibration(net, splits.train, amp) if own else lambda subnet: None
        evaluator = Evaluator(net, dataset, amp=amp, calibrate=calibrate)
        with kept_statistics(net):
            for subnet in track(wanted, desc, "subnet"):
                known[str(subnet)] = evaluator.top1(subnet)
                if log is not None:
                    _append(log, {"of": key, "subnet": str(subnet), "top1": known[str(subnet)]})
    return [known[str(subnet)] for subnet in subnets]


def _read(log: Path | None, key: str) -> dict[str, float]:
    """Read the log's results for these weights; an unfinished line of a killed process is passed over."""
    if log is None or not log.exists():
        return {}
    found = {}
    for line in log.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = Chain().read(line)  # several processes write: each line has a checksum of its own
            if record["of"] == key:
                found[record["subnet"]] = float(record["top1"])
    return found


def damaged_lines(log: Path) -> list[int]:
    """The numbers of the lines that are passed over, but for one that a killed process did not finish."""
    found = []
    for number, line in enumerate(log.read_bytes().splitlines(), start=1):
        try:
            record = Chain().read(line) if line.endswith(b"}") else {}
            float(record["top1"]) if record else None
        except (ValueError, KeyError, TypeError):
            found.append(number)
    return found


def _append(log: Path, record: dict[str, Any]) -> None:
    atomic.make_folder(log.parent)
    try:
        with open(log, "ab") as file:  # a line of its own even where the last one is unfinished
            file.write(b"\n" + Chain().write(record))
    except OSError as error:
        raise atomic.not_written(log, error) from error
