"""Text to a finished corpus: see `data.build.run`."""

from data.build.job import Progress
from data.build.run import build

__all__ = ["Progress", "build"]
