"""What an optional part of the library needs, asked for by name when it is used."""

import importlib
from typing import Any


def require(module: str, *, extra: str, what: str) -> Any:
    """Import ``module``, or say which extra installs it.

    Raises:
        ImportError: the module is not installed; the message names ``what`` needs it and the command that adds it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the module is there; something it needs is not
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'companion[{extra}]'") from error
