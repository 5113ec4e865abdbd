"""From the words of a command line to a command, and from what goes wrong to one line."""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import torch

from companion._extras import require
from companion.commands import COMMANDS
from companion.commands.results import Command, Result, is_main, read_config, say

PROGRAM = "python -m companion"
ABOUT = """From a folder of pictures to new ones, in four commands:

    python -m companion train-tokenizer pictures
    python -m companion tokenize pictures
    python -m companion train-prior
    python -m companion sample

Each says with --help what it can do, and writes its result into a folder of its own, under runs/ if nothing else is
asked for.
"""
USAGE, FAILED, STOPPED = 2, 1, 130  # exit codes


@dataclass(frozen=True)
class Run:
    """Run a command again as a configuration says; options after it replace those in it.

    For example:

        python -m companion run runs/tokenizer/config.json --out runs/second
    """

    config: Path
    """The config.json that a command wrote beside its result."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for what the user can mend, 1 where training failed, 130 where it was stopped.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            name, command = parsed(words)
            return carry_out(name, command)
    except (ValueError, ImportError, OSError) as error:
        _complain(error)
        return USAGE
    except FloatingPointError as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        say("stopped: the same command goes on")
        return STOPPED
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def parsed(words: Sequence[str]) -> tuple[str, Command]:
    """The name of a command, and the command with its options.

    Raises:
        SystemExit: a word is wrong, which is said, or help was asked for.
        ValueError: the configuration to run again is none.
    """
    tyro = require("tyro", extra="cli", what=PROGRAM)
    if words[:1] == ["run"] and len(words) > 1 and not words[1].startswith("-"):
        words = [*words_of(Path(words[1])), *words[2:]]
    kinds: dict[str, Any] = {**COMMANDS, "run": Run}
    conf = tyro.conf
    markers = (
        *(conf.PositionalRequiredArgs, conf.PositionalMetavarFromFieldName),
        *(conf.FlagCreatePairsOff, conf.DisallowNone),
    )
    if words and words[0] in kinds:
        name, *rest = words
        made = tyro.cli(kinds[name], prog=f"{PROGRAM} {name}", args=rest, config=markers, console_outputs=is_main())
        return name, made
    briefly = {name: _with_first_line(kind) for name, kind in kinds.items()}  # help, or a word that is no command
    tyro.extras.subcommand_cli_from_dict(
        briefly, prog=PROGRAM, description=ABOUT, args=words, config=markers, console_outputs=is_main()
    )
    raise AssertionError(f"a command that is not in COMMANDS: {words}")


def _with_first_line(kind: type) -> Callable[[], None]:
    def stub() -> None: ...

    stub.__doc__ = (kind.__doc__ or "").partition("\n")[0]
    return stub


def words_of(path: Path) -> list[str]:
    """The command line that a configuration stands for.

    Raises:
        ValueError: it is no configuration, or one of a command that is not there.
    """
    config = read_config(path)
    if config is None:
        raise ValueError(f"config: {path} is not there, want a config.json that a command wrote")
    name, options = config["command"], dict(config["options"])
    if name not in COMMANDS:
        raise ValueError(f"config: {path} is of the command {name!r}, want one of {', '.join(COMMANDS)}")
    words, known = [name], COMMANDS[name].__dataclass_fields__
    for option, value in options.items():
        flag = option.replace("_", "-")
        if option in known and known[option].default is MISSING:  # positional
            words.append(str(value))
        elif isinstance(value, bool):
            if option not in known or value != known[option].default:
                words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def carry_out(name: str, command: Command) -> int:
    """Run a command in the folder of its result."""
    if not command.joins and not is_main():
        return 0
    result = Result(name, command)
    if not result.begin():
        return 0
    numbers = command.run(result)
    if numbers is None:
        say("stopped: the same command goes on")
        return STOPPED
    result.finish(numbers)
    return 0


def _complain(error: BaseException) -> None:
    print(f"error: {error}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if is_main():
        print(f"warning: {message}", file=sys.stderr)
