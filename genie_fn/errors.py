"""The exception for errors that a user can correct."""


class UserError(Exception):
    """A user's error. Its message is one sentence: what is wrong, and what to do about it."""
