"""Base of every error that a user can cause; the command line turns it into one message and exit status 2."""

__all__ = ["SigbitError"]


class SigbitError(ValueError):
    """Says what was found, what was expected and what to do."""
