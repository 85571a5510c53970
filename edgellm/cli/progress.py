"""Progress on stderr: a bar at a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgellm.cli.render import is_terminal, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edgellm.models.files import Progress


@contextmanager
def shown_progress(title: str) -> Generator[Progress]:
    """A Progress to hand to the store. Where nothing happens, and where nobody looks, nothing is shown."""
    from edgellm.models.files import silent

    if not is_terminal(sys.stderr):
        yield silent
        return
    # rich costs a tenth of a second: only who looks at a bar pays for it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as bars:
        task = bars.add_task(one_line(title, 60), total=None, visible=False)

        def tell(done: int, total: int, what: str) -> None:
            # `visible` comes with the first news: a model that is there already shows no bar.
            bars.update(
                task, completed=done, total=total or None, description=one_line(what, 60), visible=True
            )

        yield tell


@contextmanager
def shown_steps(title: str) -> Generator[Callable[[int, int, str], None] | None]:
    """A bar of steps done and in all; None where nobody looks."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as bars:
        task = bars.add_task(one_line(title, 40), total=None)

        def tell(done: int, total: int, what: str) -> None:
            bars.update(
                task, completed=done, total=total, description=f"{one_line(title, 40)}: {one_line(what, 30)}"
            )

        yield tell
