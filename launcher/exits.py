"""Exit codes by which a rank, and a command, says what is to become of the run. Whoever starts ranks reads nothing else."""

from __future__ import annotations

DONE = 0
"""The run has ended; nothing is left to do."""
FAILED = 1
"""Something unforeseen: another attempt from the newest good checkpoint may well go through."""
AGAIN = 75
"""State is saved and the same command goes on from it (EX_TEMPFAIL): a signal, a time limit, a preemption."""
NEVER = 78
"""Another attempt would end the same way (EX_CONFIG): a recipe, corpus or checkpoint that cannot be."""


def said_by(rank: int, code: int) -> int:
    """The code that a rank ends with. Rank 0 alone says AGAIN: srun --kill-on-bad-exit ends all ranks at the first code that is
    not 0, and rank 0 has trackers to close when the others have left; that all is saved was agreed on before."""
    return DONE if code == AGAIN and rank else code
