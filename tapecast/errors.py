"""What ends a command with exit code 2."""


class UsageError(Exception):
    """What the operator asked for cannot be."""
