"""Progress of whatever takes more than two seconds: a bar where somebody looks, lines elsewhere.

On a terminal and in a notebook it is tqdm's bar, in which what matters most is kept where columns are few.
In a file (redirected, Slurm) it is a line of standard error whenever a minute has passed, and where the
caller asks for one, such as at the end of an epoch. Processes other than the first say nothing.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

EVERY = 60.0  # seconds between lines where there is no bar
_REDRAW = 0.1  # seconds between what a bar shows
_WINDOW = 30.0  # seconds, at least, over which the speed is measured
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| "  # and the status
_LEAST_BAR = 10  # columns

clock = time.monotonic
T = TypeVar("T")


def silent() -> bool:
    """True in every process but the first of several that work together."""
    rank = os.environ.get("RANK")
    distributed = sys.modules.get("torch.distributed")
    if rank is None and distributed is not None and distributed.is_available():
        rank = distributed.get_rank() if distributed.is_initialized() else 0
    return int(rank or 0) != 0


def say(sentence: str) -> None:
    """Write a sentence on a line of its own on standard error, above a bar where there is one."""
    if not silent():
        from tqdm.auto import tqdm

        tqdm.write(sentence, file=sys.stderr)
        sys.stderr.flush()


@functools.cache
def say_once(sentence: str) -> None:
    """Write a sentence as :func:`say` does, the first time in a process only."""
    say(sentence)


class Progress:
    """How far a piece of work is; use it in a ``with`` block.

    Args:
        total: units of the whole work.
        title: one or two words.
        unit: what is counted, in the singular.
        done: units that were done earlier.
        images: per unit, where its speed is to be told in images per second.
        leave: keep the bar on the screen at the end.

    Example:
        >>> with Progress(3, "train", "step") as progress:
        ...     for _ in range(3):
        ...         progress.update()
    """

    def __init__(
        self, total: int, title: str, unit: str, done: int = 0, images: int = 0, leave: bool = True
    ) -> None:
        from tqdm.auto import tqdm

        self.total, self.title, self.unit, self.done, self.images = total, title, unit, done, images
        self._silent = silent()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            leave=leave,
            bar_format=_FORMAT,
            dynamic_ncols=True,
            mininterval=_REDRAW,
            disable=True if self._silent else None,
        )
        self._status: tuple[str, ...] = ()
        now = clock()
        self._said = self._drawn = now
        self._marks = [(now, done)]  # when how many units were done, the older one first

    @property
    def has_bar(self) -> bool:
        """True where a bar is drawn; no lines are written then."""
        return not self._bar.disable

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.has_bar:
            self._draw()
        self._bar.close()

    def update(self, count: int = 1, *status: str) -> None:
        """Add finished units.

        Args:
            count: how many.
            status: what else to show, the most important first; as before where nothing is given.
        """
        self.done += count
        self._status = status or self._status
        now = clock()
        if now - self._marks[-1][0] >= _WINDOW:
            self._marks = [self._marks[-1], (now, self.done)]
        if self.has_bar:
            self._bar.update(count)
            if now - self._drawn >= _REDRAW:
                self._drawn = now
                self._draw()
        elif now - self._said >= EVERY:
            self.line()

    def show(self, *status: str) -> None:
        """Change what is shown besides the count. Args: status: the most important first."""
        self._status = status
        if self.has_bar:
            self._draw()

    def line(self) -> None:
        """Write a line now, where there is no bar."""
        self._said = clock()
        if not self.has_bar:
            percent = f" ({100 * self.done / self.total:.1f} %)" if self.total else ""
            count = f"{self.unit} {self.done:,} of {self.total:,}{percent}"
            self.say(f"{self.title}: {', '.join((count, *self._parts()))}")

    def say(self, sentence: str) -> None:
        """Write a sentence on a line of its own, above the bar where there is one."""
        say(sentence)

    def _parts(self) -> list[str]:
        """The time left, the status, and the speed: in this order of importance but for the first two."""
        (begin, before), now = self._marks[0], clock()
        rate = (self.done - before) / (now - begin) if now > begin else 0.0
        left = [f"{_time((self.total - self.done) / rate)} left"] if rate and self.done < self.total else []
        if self.images:
            speed = [f"{rate * self.images:,.0f} images/s"] if rate else []
        else:
            speed = [f"{rate:,.2f} {self.unit}/s"] if rate else []
        return [*self._status[:1], *left, *speed, *self._status[1:]]

    def _draw(self) -> None:
        """Show as many parts as leave the bar room."""
        parts, known = self._parts(), self._bar.format_dict
        columns = known.get("ncols")
        if isinstance(columns, int):
            used = len(f"{self.title} 100%||") + _LEAST_BAR
            while parts and used + sum(len(part) + 2 for part in parts) > columns - 1:
                parts.pop()
        self._bar.bar_format = _FORMAT + ", ".join(parts).replace("{", "{{").replace("}", "}}")
        self._bar.refresh()


def track(items: Iterable[T], title: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Go through items with a progress of their own.

    Args:
        items: with a length, unless ``total`` is given.
        title, unit: as of :class:`Progress`.
        total: how many items there are.

    Yields:
        The items.
    """
    with Progress(len(items) if total is None else total, title, unit, leave=False) as progress:
        for item in items:
            yield item
            progress.update()


def track_images(batches: Iterable[T], title: str, images: int, passes: int = 1) -> Iterator[T]:
    """Go through batches of (images, labels) with a progress that tells the images per second.

    Args:
        batches: tuples whose second entry has one value per image.
        title: as of :class:`Progress`.
        images: how many there are.
        passes: networks that each image goes through.

    Yields:
        The batches.
    """
    with Progress(images, title, "image", images=passes, leave=False) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch[1]))


def _time(seconds: float) -> str:
    """Such as 0:42, 12:05, 3:07:00 or 2 days 3:07:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock_time = f"{hours}:{minutes:02}:{seconds:02}" if hours or days else f"{minutes}:{seconds:02}"
    return f"{days} day{'s' * (days > 1)} {clock_time}" if days else clock_time
