"""Judging other implementations: what they really compute, and how that differs."""

from .budget import Budget
from .calling import AnswerError, Fixed, fixed
from .candidates import Candidate
from .case import Case
from .checking import check, diagnose, parametrize
from .isolation import isolated
from .masks import read_mask
from .precision import Precision, read_precision
from .probes import Sizes
from .report import Report
from .suite import cases

__all__ = [
    "AnswerError",
    "Budget",
    "Candidate",
    "Case",
    "Fixed",
    "Precision",
    "Report",
    "Sizes",
    "cases",
    "check",
    "diagnose",
    "fixed",
    "isolated",
    "parametrize",
    "read_mask",
    "read_precision",
]  # fmt: skip
