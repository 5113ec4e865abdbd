"""The version of this package: pip reads it here too."""

__version__ = "0.1.0"
