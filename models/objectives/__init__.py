"""Objectives: what a model sees of a sample and what it must predict, with which weight.

Each is a pure function of packed samples, independent of model and stream: `base.py` has the seam, `build.py` makes one of its
options, `config.py` has them.
"""

from __future__ import annotations

from models.objectives.base import Columns as Columns
from models.objectives.base import Example as Example
from models.objectives.base import Objective as Objective
from models.objectives.base import Samples as Samples
from models.objectives.base import Vocabulary as Vocabulary
from models.objectives.build import build_objective as build_objective
