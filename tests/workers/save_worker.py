"""A process that saves for ever, for test_checkpoint.py to kill."""

from itertools import count
from multiprocessing.connection import Connection

import torch

from companion import CodeSet, Encoder, save


def encoder(fill: float) -> Encoder:
    model = Encoder(64)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, fill)
    return model


def codes(fill: int) -> CodeSet:
    return CodeSet(torch.full((20_000, 7, 7), fill), torch.zeros(20_000, dtype=torch.int64), 8, "a")


def save_for_ever(folder: str, tell: Connection) -> None:
    torch.set_num_threads(1)
    models, sets = [encoder(fill) for fill in (1, 2)], [codes(fill) for fill in (1, 2)]
    for i in count():
        save(models[i % 2], f"{folder}/model.safetensors")
        sets[i % 2].save(f"{folder}/codes.safetensors")
        tell.send(i)
