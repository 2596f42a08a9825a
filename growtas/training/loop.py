"""The training loop: one for every method, resumable at any step.

Nothing in a step depends on what was drawn before it: order, augmentation, mixup, drop-path and subnets are
functions of the seed and the step (or epoch and image). So a checkpoint is the weights, the optimizer, the
step and little else, and a run that was killed ends bit for bit where an uninterrupted one does.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from growtas.errors import GrowtasError
from growtas.methods import TrainingContext
from growtas.progress import Progress as Display
from growtas.space import Subnet
from growtas.supernet import SingleModel
from growtas.training import checkpoint
from growtas.training.calibration import calibration
from growtas.training.data import Splits
from growtas.training.data.images import seed_globally
from growtas.training.data.loader import TrainingLoader
from growtas.training.data.workers import worker_count
from growtas.training.environment import environment
from growtas.training.evaluate import evaluate, watched_subnets
from growtas.training.external import Teacher
from growtas.training.guards import Interrupted, stop_signals
from growtas.training.initial import load_into
from growtas.training.inputs import draw_images
from growtas.training.interference import InterferenceMonitor
from growtas.training.log import RunLog
from growtas.training.optimizer import create_optimizer, create_scheduler, set_schedule
from growtas.training.precision import precision
from growtas.training.ranks import Ranks
from growtas.training.run import Run, versions
from growtas.training.run_method import create_run_method
from growtas.training.steps import spacing
from growtas.training.trackers import Trackers
from growtas.training.update import Update

MOST_SKIPPED_IN_A_ROW = 10


class Trainer:
    """Trains a run from where it stands to its end.

    Args:
        run: its folder and settings.
        splits: its data.
        device: to compute on.
        ranks: the processes that share the work.
        state: the checkpoint to continue from; None for the beginning.
        initial: weights to begin with, where there is no checkpoint; random ones where None.
        teacher: another model that teaches, where ``distill`` says so.

    Raises:
        UsageError: method, optimizer, batch or initial weights do not fit.
        GrowtasError: the checkpoint does not belong to the run.
    """

    def __init__(
        self,
        run: Run,
        splits: Splits,
        device: torch.device,
        ranks: Ranks,
        state: dict | None = None,
        initial: Mapping[str, Tensor] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.run, self.splits, self.device, self.ranks = run, splits, device, ranks
        self.config = config = run.config
        self.loader = TrainingLoader(splits.train, config, ranks.rank, ranks.world)
        self.method = create_run_method(run)
        seed_globally("weights", config.seed)
        self.net = run.new_net().to(device).train()
        if initial is not None:
            load_into(self.net, initial, config.initial)
        self.optimizer = create_optimizer(self.net, config, device)
        self.scheduler = create_scheduler(self.optimizer, run)
        self.ema = ModelEmaV3(self.net, config.ema_decay) if config.ema_decay is not None else None
        self.workers = worker_count(config.workers)
        self.calibrate = calibration(self.net, splits.train, config.amp, self.workers)
        self.context = TrainingContext(
            self.net,
            self.optimizer,
            device,
            draw_images=partial(draw_images, splits, config.seed, device, ranks, self.workers),
            autocast=partial(precision, config.amp, device),
            restart_average=self._restart_average,
            calibrate=self.calibrate,
            smoothing=config.smoothing,
        )
        self.update = Update(run, self.method, self.context, self.ema, ranks.world, teacher)
        self.interference = InterferenceMonitor(run, self.context)
        self.watched = watched_subnets(run.space, config.eval_subnets)
        self.progress = checkpoint.Progress()
        self._unassessed = False
        if state is not None:
            self._restore(state)

    def _restore(self, state: dict) -> None:
        path = self.run.checkpoint_path
        checkpoint.check_belongs(state, self.run.identity(), path)
        checkpoint.load_weights(self.net, state, path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.method.load_state_dict(state["method"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            torch.set_rng_state(state["generator"])
            self.update.scaler.load_state_dict(state.get("scaler", {}))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise GrowtasError(
                f"{path} does not fit the optimizer of config.yaml ({error}). Nothing was changed."
            ) from error
        self.progress = checkpoint.Progress(
            state["step"], state["skipped"], state["skipped_in_a_row"], checkpoint_step=state["step"]
        )
        self._unassessed = state.get("to_assess", False)
        self._note()

    def _restart_average(self) -> None:
        if self.ema is not None:
            self.ema.set(self.net)

    # -- the run -----------------------------------------------------------------------------------------

    def train(self, log: RunLog | None, curves: Trackers | None) -> None:
        """Train to the end. Args: log, curves: of rank 0; None on the others.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the state was saved first.
            GrowtasError: ten updates in a row were not finite, or the disk is full.
        """
        self.log, self.curves = log, curves
        progress, run = self.progress, self.run
        self.display = Display(run.steps, "train", "step", progress.step, self.config.batch_size)
        with self.display, stop_signals() as signals:
            if self._unassessed:  # first: what else is prepared may draw random numbers
                self._assess()
            if progress.step == run.steps:
                return
            self.method.prepare(self.context)
            batches = self.loader.batches(progress.step, self.device)
            while progress.step < run.steps:
                stage = self.method.begins_at(progress.step)
                if stage is not None:
                    self._begin_stage(stage)
                if progress.step == 0:
                    self._measure_interference()
                images, labels = self._next(batches, signals)
                loss, received = self._step(images, labels, signals)
                self.display.update(1, *self._status(loss))
                self._after_step(received)

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]], signals: list[int]) -> tuple[Tensor, Tensor]:
        """The next batch; where a signal to all processes ended those that load it, the run stops here."""
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError):  # it depends on where it was when they ended
            if not signals:
                raise
            self._save()
            saved = self._saved() if self.ranks.first else f"what was saved is in {self.run.path}."
            raise self._interrupted(signals[0], saved) from None  # other ranks may be in the middle of a step

    def _interrupted(self, received: int, saved: str) -> Interrupted:
        return Interrupted(
            f"Interrupted after step {self.progress.step} of {self.run.steps}; {saved} "
            f"Continue with: {self.run.resume_command}",
            received,
        )

    def _after_step(self, received: int) -> None:
        """Evaluate, save and stop as it is due; ``received`` is a signal's number, or 0."""
        progress = self.progress
        ends_epoch = progress.step % self.run.steps_per_epoch == 0
        ends_run = progress.step == self.run.steps
        if progress.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            self._give_up()
        if ends_epoch:
            self.display.line()
        self._unassessed = self._evaluates() or self.interference.due(progress.step)
        if ends_epoch or received or progress.checkpoint_due(self.config):
            self._save()
        if received and (self._unassessed or not ends_run):
            raise self._interrupted(received, self.ranks.on_first(self._saved))
        if self._unassessed:
            self._assess()

    def _evaluates(self) -> bool:
        """Return whether an evaluation is due after this step."""
        every = self.config.eval_every
        epoch, rest = divmod(self.progress.step, self.run.steps_per_epoch)
        return self.progress.step == self.run.steps or not rest and every and epoch % every == 0

    def _assess(self) -> None:
        """Measure and evaluate what is due; a checkpoint that was saved before has a resume do it again."""
        step, epoch = self.progress.step, self.progress.step // self.run.steps_per_epoch
        self._measure_interference()
        if self._evaluates():
            self._evaluate(epoch)
        self._unassessed = False
        if step == self.run.steps:
            if self.log is not None:
                self.log.write("finish", step, epoch, skipped=self.progress.skipped)
            self._save()

    def _begin_stage(self, number: int) -> None:
        done = self.method.begin_stage(number, self.context)
        groups = list(self.method.stages[number].groups)
        if self.log is not None:
            space = self.run.space
            axis = {f"{space.group_axis}s": [space.groups[group] for group in groups]}
            self.log.write(
                "stage",
                self.progress.step,
                self.progress.step // self.run.steps_per_epoch,
                stage=number,
                groups=groups,
                **axis,
                **done,
            )

    # -- one step ----------------------------------------------------------------------------------------

    def _step(self, images: Tensor, labels: Tensor, signals: list[int]) -> tuple[float, int]:
        """One update. Returns: the loss, and the number of a signal that any rank received, or 0."""
        progress, method = self.progress, self.method
        step = progress.step
        self._set_learning_rate(step)
        subnets, mean_loss = self.update.gradients(step, images, labels, self.ranks.rank)
        total = torch.zeros(4, dtype=torch.float64, device=self.device)
        total[0] = mean_loss
        total[1], total[3] = (number in signals for number in (signal.SIGINT, signal.SIGTERM))
        self.ranks.sum(total)
        self.update.unscale()
        method.before_update(step, self.context)
        norm = self.update.norm()
        total[2] = norm  # of the averaged gradients: the same on every rank
        summed, interrupted, norm_value, terminated = total.tolist()  # the step's only wait for the device
        mean = summed / self.ranks.world
        skipped = not math.isfinite(mean) or not math.isfinite(norm_value)
        if skipped:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        else:
            self.update.apply(norm)
            progress.skipped_in_a_row = 0
        self._record(step, mean, skipped, subnets)
        self.context.loss = mean
        done = method.after_step(step, self.context)
        if isinstance(self.net, SingleModel):  # its BatchNorm's statistics: a checkpoint has one set of them
            self.ranks.average_buffers(self.net.model.buffers())
        if self.ema is not None and not skipped:
            self.ema.update(self.net)
        if done and self.log is not None:
            self.log.write("method", step, step // self.run.steps_per_epoch, **done)
        progress.step += 1
        return mean, signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0

    def _set_learning_rate(self, step: int) -> None:
        set_schedule(self.scheduler, self.config.sched_step, step, self.run.steps_per_epoch)
        rate = self.method.learning_rate(step)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    def _learning_rate(self) -> float:
        """That of the last layer, where layers have their own."""
        group = self.optimizer.param_groups[-1]
        return group["lr"] / group.get("lr_scale", 1.0)

    def _record(self, step: int, loss: float, skipped: bool, subnets: tuple[Subnet, ...]) -> None:
        config = self.config
        if self.log is None or step % config.log_every and not skipped:
            return
        stage = self.method.stage_of(step)
        rate = self._learning_rate()
        every = spacing(self.run.steps, config.log_every, config.log_steps)
        complete = skipped or step % every == 0
        write = partial(self.log.write, "step")
        if every > config.log_every:
            write = partial(self.log.write_step, complete=complete)
        write(
            step,
            step // self.run.steps_per_epoch,
            stage=stage,
            groups=list(self.method.stages[stage].groups),
            group=[self.run.space.group_of(subnet) for subnet in subnets],
            subnets=[str(subnet) for subnet in subnets],
            loss=loss if math.isfinite(loss) else None,
            lr=rate,
            **({"skipped": True} if skipped else {}),
        )
        if complete and not skipped:
            self.curves.add(step, train__loss=loss, train__lr=rate, train__stage=stage)

    def _status(self, loss: float) -> tuple[str, ...]:
        """The status of the last step, the most important part first."""
        step, run = self.progress.step - 1, self.run
        stage, rate = self.method.stage_of(step), self._learning_rate()
        skipped = (f"skipped {self.progress.skipped}",) if self.progress.skipped else ()
        return (
            f"loss {loss:.3f}",
            f"stage {stage + 1}/{len(self.method.stages)}",
            *skipped,
            f"epoch {step // run.steps_per_epoch + 1}/{run.config.epochs}",
            f"lr {rate:.1e}",
        )

    # -- evaluation and checkpoints ----------------------------------------------------------------------

    def _measure_interference(self) -> None:
        step = self.progress.step
        if self.interference.due(step):
            measured = self.interference.measure(step)
            if self.log is not None:
                self.log.write("interference", step, step // self.run.steps_per_epoch, **measured)

    def _evaluate(self, epoch: int) -> None:
        options = (self.device, self.config.amp, self.workers, self.ranks, self.calibrate)
        results = evaluate(self.net, self.watched, self.splits.search, *options)
        if self.log is not None:
            self.log.write("eval", self.progress.step, epoch, split="search", results=results)
            for result in results:
                self.display.say(
                    f"epoch {epoch}: {result['name']} {result['subnet']}: {result['params']:,} parameters, "
                    f"top-1 {result['top1']:.2f} % on the search split"
                )
            top1 = {f"search_top1__{result['name']}": result["top1"] for result in results}
            self.curves.add(self.progress.step, **top1)

    def _save(self) -> None:
        """Replace the checkpoint, unless the state is not one to come back to."""
        progress = self.progress
        last = progress.step == self.run.steps
        if self.log is None or progress.skipped_in_a_row and not last:
            return
        if not all(torch.isfinite(parameter).all() for parameter in self.net.parameters()):
            if last:
                raise GrowtasError(f"The weights are not finite at the end of the run; {self._saved()}")
            return
        state = {
            "run": self.run.identity(),
            "step": progress.step,
            "skipped": progress.skipped,
            "skipped_in_a_row": progress.skipped_in_a_row,
            "log_offset": self.log.sync(),
            "log_check": self.log.check,
            "weights": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "generator": torch.get_rng_state(),
            "versions": versions(),
            "ranks": self.ranks.world,
            "environment": environment(self.device),
            "to_assess": self._unassessed,
        }
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        if self.update.scaler.is_enabled():
            state["scaler"] = self.update.scaler.state_dict()
        checkpoint.save(self.run.checkpoint_path, state)
        self.curves.flush()
        progress.saved()
        self._note()

    def _give_up(self) -> None:
        step, saved = self.progress.step, self.ranks.on_first(self._saved)
        raise GrowtasError(
            f"The loss or its gradient was not finite in {MOST_SKIPPED_IN_A_ROW} updates in a row (steps "
            f"{step - MOST_SKIPPED_IN_A_ROW} to {step - 1}); the run is stopped and {saved} "
            "Start again with a lower lr, a longer warm-up, or amp='none'."
        )

    def _saved(self) -> str:
        if self.progress.checkpoint_step is None:
            return "no checkpoint was written yet."
        return f"the checkpoint of step {self.progress.checkpoint_step} is in {self.run.path}."

    def _note(self) -> None:
        self.ranks.note(f"{self._saved()} Continue with: {self.run.resume_command}")
