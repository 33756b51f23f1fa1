"""Data and training: tokens, batches, the loop, metrics, checkpoints and a picture."""

from .checkpoint import Checkpoint, load, restore, save
from .curves import curves
from .data import Shuffled, Windows, held_out
from .loop import History, class_loss, fit, next_token_loss
from .metrics import accuracy, bits, macro_f1, perplexity
from .schedule import Settings
from .tokens import BytePairs

__all__ = [
    "BytePairs", "Checkpoint", "History", "Settings", "Shuffled", "Windows", "accuracy", "bits",
    "class_loss", "curves", "fit", "held_out", "load", "macro_f1", "next_token_loss", "perplexity",
    "restore", "save",
]  # fmt: skip
