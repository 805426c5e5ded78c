"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, and what to do about it."""
