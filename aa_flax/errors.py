"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something given to aa_flax cannot be used: the message says what, and what to do.

    Commands print it as one line instead of a traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
