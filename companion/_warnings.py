"""Warnings that name the caller's line, however deep in this package they arise."""

import sys
import warnings

import torch


def warn(message: str) -> None:
    """Warn with the file and line of the innermost caller that is neither in this package nor in torch.

    A fixed ``stacklevel`` cannot do this: between a caller and ``forward`` there are as many frames as there are
    modules and wrappers. Nothing is said while torch compiles, which cannot trace frames.
    """
    if torch.compiler.is_compiling():
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _ours_or_torchs(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _ours_or_torchs(module: str) -> bool:
    package, _, rest = module.partition(".")
    return package == "torch" or (package == "companion" and not rest.startswith("course"))
