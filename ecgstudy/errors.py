"""The one exception for bad input: it says what is wrong, where, and what would be right."""


class StudyError(Exception):
    """Bad input (a file, a record, a parameter), described in one sentence that names it."""
