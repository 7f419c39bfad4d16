"""Printing what rich has drawn: colours and full lines in a terminal, plain text anywhere else."""

from rich.console import Console, RenderableType


def show(drawn: RenderableType) -> None:
    """Print on stdout; where that is no terminal, without colours and without spaces at the ends of lines."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(drawn)
        return
    with console.capture() as captured:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
