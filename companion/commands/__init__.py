"""``python -m companion``: from a folder of pictures to new ones, one command a step.

A command is a dataclass in a file of its own. Its fields are the options; its ``run`` is what somebody would write who
does the step with the library, and reads from top to bottom. Around it:

* ``command_line``: from words to a command, and from an error to one line.
* ``results``: the folder of a result, with the configuration that makes it again, pictures, and a line in a table.
* ``inputs``: pictures, tokenizers and priors, by the folders that earlier commands wrote.
"""

from companion.commands.diagnose import Diagnose
from companion.commands.evaluate import Evaluate
from companion.commands.reconstruct import Reconstruct
from companion.commands.results import Command
from companion.commands.sample import Sample
from companion.commands.tokenize import Tokenize
from companion.commands.train_prior import TrainPrior
from companion.commands.train_tokenizer import TrainTokenizer

__all__ = ["COMMANDS"]

COMMANDS: dict[str, type[Command]] = {
    "train-tokenizer": TrainTokenizer,
    "tokenize": Tokenize,
    "train-prior": TrainPrior,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "evaluate": Evaluate,
    "diagnose": Diagnose,
}
