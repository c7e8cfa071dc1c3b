"""What ends a command with exit code 1 and one sentence."""


class CommandError(Exception):
    """Something the user can put right; str() says what."""
