"""What ranks do in the tests of batches whose shape changes: training over a list of (rows, length), one a step."""

from __future__ import annotations

import gc

import torch

from parallel.engines.base import Batch
from parallel.engines.pipeline import Stage
from parallel.mesh import Mesh
from parallel.shapes import check_shapes
from tests.parallel.cases import DOCUMENT_END, LENGTH, VOCABULARY, Case
from tests.parallel.jobs import Curve, laid_out

Shapes = list[tuple[int, int]]


def shaped_batch(step: int, first: int, shape: tuple[int, int], mesh: Mesh, encoder: int) -> Batch:
    """This data rank's rows of a made-up global batch whose first row has the global index `first`. Every second token can be
    foretold, documents end here and there, and some targets count half or nothing."""
    rows, length = shape
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (rows, length + 1), generator=generator)
    tokens[:, 1::2] = (tokens[:, 0 : length // 2 * 2 + 1 : 2][:, : tokens[:, 1::2].shape[1]] * 3 + 1) % VOCABULARY
    tokens[step % 2 :: 2, (5 * step + 3) % length] = DOCUMENT_END
    weights = torch.ones(rows, length)
    weights[step % rows, : length // 3] = 0
    weights[(3 * step + 1) % rows] *= 0.5
    weights[:, :encoder] = 0  # what an encoder reads is not predicted
    share = rows // mesh.config.data
    start = mesh.place.data * share
    own = slice(start, start + share)
    return Batch(tokens[own, :-1].contiguous(), tokens[own, 1:].contiguous(), weights[own], first + start)


def stages_alive(case: Case, shapes: Shapes) -> int:
    """How many stages of torch's pipeline this rank keeps after steps of these shapes, where nobody collects garbage."""
    with laid_out(case) as (engine, mesh):
        gc.collect()
        gc.disable()
        try:
            for step, shape in enumerate(shapes):
                engine.step(shaped_batch(step, 0, shape, mesh, case.model.encoder_length), 1e-3)
            return sum(isinstance(found, Stage) for found in gc.get_objects())
        finally:
            gc.enable()


def train_shapes(case: Case, shapes: Shapes) -> Curve:
    """Train a step of each shape; after every third validate with batches of the next two shapes, and ask for logits."""
    curve, first = Curve(), 0
    with laid_out(case) as (engine, mesh):
        check_shapes(mesh.config, case.model, shapes, micro_batch=case.micro_batch, sequence_length=LENGTH)
        for step, shape in enumerate(shapes):
            result = engine.step(
                shaped_batch(step, first, shape, mesh, case.model.encoder_length), case.optimizer.learning_rate
            )
            first += shape[0]
            curve.losses.append(result.loss)
            curve.norms.append(result.grad_norm)
            curve.skipped.append(result.skipped)
            curve.routing.append(result.routing)
            if step % 3 == 2:
                for further in (1, 2):
                    seen = shapes[(step + further) % len(shapes)]
                    loss, tokens = engine.evaluate(shaped_batch(1000 + step, 0, seen, mesh, case.model.encoder_length))
                    curve.validation.append(loss / tokens)
                length = shapes[step][1]
                tokens = torch.arange(2 * length).view(2, length) % VOCABULARY
                curve.logits.append(engine.next_logits(tokens, length // 2)[:1])
        curve.state = engine.state()
    return curve
