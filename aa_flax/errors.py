"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something given to aa_flax cannot be used: the message says what, and what to do.

    Commands print it as one line instead of a traceback.
    """
