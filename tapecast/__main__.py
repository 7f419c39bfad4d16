"""`python -m tapecast`."""

from tapecast.cli import main

main()
