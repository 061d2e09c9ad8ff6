"""The training loop: updates, and between them the record, checkpoints, a look at the signals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lib.engine.checkpoint import save_checkpoint
from lib.engine.failed_update import save_failed_update
from lib.engine.profile import Profile
from lib.engine.record import Record
from lib.engine.runs import checkpoint_folder
from lib.engine.signals import StopSignals
from lib.engine.trainer import NonFiniteLossError, Trainer
from lib.structures import TrainingSample

logger = logging.getLogger(__name__)


def train(
    trainer: Trainer,
    samples: Iterator[TrainingSample],
    run: Path,
    max_iter: int,
    *,
    checkpoint_period: int,
    keep_checkpoints: int,
    log_period: int,
    checkpoint_extra: Mapping[str, Any],
    image_period: int = 0,
    picture: Callable[[nn.Module], np.ndarray] | None = None,
    profile: bool = False,
) -> int | None:
    """Updates the model from where it stands until `max_iter`, and keeps a record in `run`.

    Writes ckpt/ (every `checkpoint_period` updates and at the end), history.jsonl, tensorboard/
    and mining/. SIGINT and SIGTERM, to any rank, end it after the update in hand, with a
    checkpoint. Of several ranks the first alone writes.

    Args:
        samples: the images of this rank from `trainer.first_sample` on.
        checkpoint_extra: further entries of the checkpoints, tensors and plain values.
        image_period: updates from one picture to the next; 0 draws none.
        picture: draws what the model does, (H, W, 3) uint8 RGB.
        profile: also writes profile/, see Profile.

    Returns:
        The signal that ended it, None when it reached `max_iter`.

    Raises:
        NonFiniteLossError: the last checkpoint stays; failed_update.pt keeps what led to it.
        OSError: something could not be written; the last checkpoint stays.
    """
    ranks = trainer.ranks
    with ExitStack() as stack:
        record = None
        if ranks.is_first:
            shown = ("total", *trainer.loss_weights)
            record = stack.enter_context(
                Record(run, trainer.iteration, max_iter, shown, trainer.device)
            )
        stop = stack.enter_context(StopSignals(second_ends=ranks.count == 1))
        profiler = stack.enter_context(Profile(run / "profile", ranks, profile))
        while trainer.iteration < max_iter:
            start = time.perf_counter()
            try:
                values = trainer.update(samples)
            except NonFiniteLossError as error:
                if ranks.is_first:
                    save_failed_update(run, trainer, error, checkpoint_extra)
                ranks.wait()
                raise
            # Looked at once: a signal may come at any moment, and to one rank before another.
            stopped_by = next(filter(None, ranks.gather(stop.received)), None)
            last = stopped_by is not None or trainer.iteration == max_iter
            if record is not None:
                record.add({**values, "seconds": time.perf_counter() - start})
                if last or trainer.iteration % log_period == 0:
                    record.write(trainer.iteration, trainer.images_per_update)
                if picture is not None and image_period and trainer.iteration % image_period == 0:
                    record.show(trainer.iteration, "mining", picture(trainer.model))
                if last or trainer.iteration % checkpoint_period == 0:
                    content = {**trainer.state_dict(), **checkpoint_extra}
                    path = save_checkpoint(checkpoint_folder(run), content, keep_checkpoints)
                    logger.info("update %d: saved %s", trainer.iteration, path)
            profiler.step()
            if last:
                ranks.wait()  # for the checkpoint: torchrun may kill all when the first one leaves
            if stopped_by is not None:
                return stopped_by
    return None
