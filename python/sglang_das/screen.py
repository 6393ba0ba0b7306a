"""Where a command is watched. Terminals get moving bars and colour; anything else gets plain lines without control
characters.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class Screen:
    """Progress bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, 120)  # a file has no width; do not fold the table

    def line(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table."""
        self._console.print(table)

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Show how far something with `total` parts is; the block gets a function to call after each part, or after
        several with their number.
        """
        if not self._console.is_terminal:
            yield self._plain_progress(label, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda parts=1: bars.advance(task, parts)

    def _plain_progress(self, label: str, total: int) -> Callable[..., None]:
        start, done = time.monotonic(), 0

        def advance(parts: int = 1) -> None:
            nonlocal done
            before, done = done, done + parts
            if before * 4 // total != done * 4 // total:  # a line for each quarter
                self.line(f"{label}: {done}/{total}, {time.monotonic() - start:.0f} s")

        return advance

    @contextlib.contextmanager
    def waiting(self, label: str) -> Iterator[Callable[[float], None]]:
        """Show that something is waited for; the block gets a function to call with the seconds so far."""
        if not self._console.is_terminal:
            self.line(label)
            yield lambda seconds: None
            return
        with self._console.status(label) as status:
            yield lambda seconds: status.update(f"{label} ({seconds:.0f} s)")
