"""Weights & Biases as a tracker: offline unless an account is configured, one wandb run for all resumes of a run.

The id of the wandb run is kept in `<run>/wandb_id`. wandb's own step counter only ever grows, while a resume may go
back to a checkpoint; so every value is logged against our `step`, which the charts use as x-axis. Offline, each process
leaves a directory `<run>/wandb/offline-run-…-<id>`; `wandb sync <run>/wandb/offline-run-*` uploads them in order of
time, and the id they share joins them.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from launcher.callbacks.base import Callback, RunView, StepRecord, ValidationRecord
from launcher.callbacks.metrics import strict
from models.formats.telemetry import headline as formats_headline
from models.moe.telemetry import headline

Mode = Literal["auto", "online", "offline", "off"]
MODES: tuple[Mode, ...] = ("auto", "online", "offline", "off")
ID_FILE = "wandb_id"

_log = logging.getLogger(__name__)


def account_configured() -> bool:
    """Whether a key for the wandb server is in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(directory: Path) -> str:
    """The id of the wandb run that belongs to a run directory, made and stored at the first call."""
    path = directory / ID_FILE
    if path.exists() and (known := path.read_text().strip()):
        return known
    fresh = secrets.token_hex(4)
    draft = path.with_name(ID_FILE + ".new")
    draft.write_text(fresh + "\n")
    os.replace(draft, path)
    return fresh


class WandbTracker(Callback):
    """Sends the run to wandb. A failure of wandb is logged once and ends the tracking, never the training.

    `auto` is online with an account and offline without one or when the server cannot be reached; an explicit
    `WANDB_MODE` in the environment decides before it.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        project: str = "triaxis",
        entity: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"wandb mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
        self.mode = mode
        self.project, self.entity, self.group, self.tags = project, entity, group, tags
        self._wandb: Any = None
        self._run: Any = None

    def resolved_mode(self) -> Literal["online", "offline", "off"]:
        """What `auto` means in this environment; the other modes mean themselves."""
        if self.mode != "auto":
            return self.mode
        asked = os.environ.get("WANDB_MODE", "")
        if asked in ("disabled", "dryrun", "offline"):
            return "off" if asked == "disabled" else "offline"
        return "online" if account_configured() else "offline"

    def on_start(self, run: RunView) -> None:
        """Start the wandb run, or continue it after a resume."""
        mode = self.resolved_mode()
        if mode == "off":
            return
        try:
            self._run = self._open(run, mode)
        except Exception as error:  # wandb raises many kinds, none of which may stop a run
            if mode == "online" and self.mode == "auto":
                _log.warning("wandb cannot be reached, tracking offline: %s", error)
                self._guard(lambda: setattr(self, "_run", self._open(run, "offline")))
            else:
                self._give_up(error)

    def on_step(self, record: StepRecord) -> None:
        """Log the step under `train/`."""
        names = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds", "data_seconds")
        values = {f"train/{name}": getattr(record, name) for name in names}
        values["train/skipped_total"] = record.skipped_total
        if record.flops_utilisation is not None:
            values["train/flops_utilisation"] = record.flops_utilisation
        told = headline(record.routing) | formats_headline(record.formats)
        values |= {f"train/{name}": value for name, value in told.items()}
        self._record(record.step, {"tokens": record.tokens, **values})

    def on_validation(self, record: ValidationRecord) -> None:
        """Log the result under `validation/`."""
        values = {"validation/loss": record.validation_loss, "validation/bits_per_byte": record.bits_per_byte}
        self._record(record.step, {"tokens": record.tokens, **values})

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """Log the text as a one-row table."""
        if self._run is not None:
            table = [[step, prompt, text]]
            columns = ["step", "prompt", "text"]
            self._guard(lambda: self._run.log({"samples": self._wandb.Table(columns, table), "step": step}))

    def on_event(self, step: int, kind: str, message: str) -> None:
        """Keep the last event of each kind in the summary."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update({f"event/{kind}": f"step {step}: {message}"}))

    def on_end(self, outcome: str) -> None:
        """Finish the wandb run; an interrupted one is left to be continued."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update({"outcome": outcome}))
        if self._run is not None:
            self._guard(lambda: self._run.finish(exit_code=1 if outcome == "failed" else 0))
        self._run = None

    def _open(self, run: RunView, mode: Literal["online", "offline"]) -> Any:
        import wandb  # only here: the package is slow to import and need not be installed

        self._wandb = wandb
        settings = wandb.Settings(
            console="off",  # the live display owns the terminal
            silent=True,
            init_timeout=30,
            finish_timeout=60,
            finish_timeout_raises=False,
        )
        opened = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags) or None,
            name=run.name,
            id=run_id(run.directory),
            resume="allow",
            dir=str(run.directory),
            config={**strict(run.config), "parameters": run.parameters, "facts": strict(run.facts)},
            mode=mode,
            settings=settings,
        )
        opened.define_metric("step", hidden=True)
        for pattern in ("train/*", "validation/*", "tokens"):
            opened.define_metric(pattern, step_metric="step")
        return opened

    def _record(self, step: int, values: dict[str, Any]) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.log({"step": step, **values}))

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # see on_start
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _log.warning("wandb is switched off for the rest of this process: %s: %s", type(error).__name__, error)
