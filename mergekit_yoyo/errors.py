"""The one exception class of this package."""


class YoyoError(ValueError):
    """A mistake in what the user gave us, told in a sentence: what is wrong, where, what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
