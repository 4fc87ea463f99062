"""Exceptions a caller may catch.

Each one is also the standard-library error it stands for, so `except ValueError` keeps working. The command line prints
them without a traceback and exits with code 2. A message gives the place, the value, the rule and the remedy. Settings
that are built in Python raise pydantic's `ValidationError`, which is a `ValueError` as `SettingsError` is.
"""


# One base, so that the command line needs one `except` for all faults of the user.
class LeadspanError(Exception):
    """Any fault of the user's input, or of files on disk."""


class SettingsError(LeadspanError, ValueError):
    """A recipe, an override or an option that breaks a rule."""


class DataError(LeadspanError, ValueError):
    """Traces, tasks or tokenised examples that cannot be used as they are."""


class ModelError(LeadspanError, ValueError):
    """A model, tokenizer or chat template that does not fit its role."""


class TargetsError(LeadspanError, ValueError):
    """Teacher targets that do not fit the data, the loss or the models they are used with."""


class CacheError(LeadspanError, RuntimeError):
    """A damaged file that leadspan stores for reuse."""


class RunError(LeadspanError, RuntimeError):
    """A run directory that is missing, incomplete, or belongs to another recipe."""


class EvaluationError(LeadspanError, RuntimeError):
    """An evaluation that cannot give an honest number."""
