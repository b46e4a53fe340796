"""The one exception a user is meant to read: the command line prints it as a sentence and exits with 2."""


class SubloraError(Exception):
    """Wrong use or bad input. The message says in one sentence what is wrong, where, and how to fix it."""
