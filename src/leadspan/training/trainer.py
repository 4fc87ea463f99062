"""A thin `transformers.Trainer`: ours are the batches, the targets, the objective and the normalisation."""

import atexit
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from leadspan.costs.flops import StepCounts
from leadspan.data.examples import Examples
from leadspan.data.packing import Batch, pack
from leadspan.data.supervision import ScoredSelection
from leadspan.losses.objective import GROUPS, LossOutput, batch_loss, group_means, selected_weight
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.settings import ForwardKl, LossSettings, PolicyGradient
from leadspan.processes import end_data_workers, is_asked_to_end, prepare_data_worker
from leadspan.ranks import PeakMemory
from leadspan.rollout.source import Rollouts
from leadspan.status import Progress
from leadspan.teacher.source import TeacherSource
from leadspan.teacher.targets import Targets
from leadspan.training.callbacks import Clock
from leadspan.training.checkpoints import Handover, remove_old, writing
from leadspan.training.steps import speed_figures


def attach_objective(
    student: PreTrainedModel,
    settings: LossSettings,
    vocab_size: int | None,
    selection: ScoredSelection | None = None,
    end_ids: tuple[int, ...] = (),
) -> None:
    """Let the student's own `forward` compute the loss when it is given a `batch`.

    Tokens are selected in training mode only: validation counts every weighted position. Traces are not draws of
    the student, so under `policy_gradient` they are validated by cross-entropy.

    The loss must run inside `forward`: data-parallel and sharding wrappers average gradients and gather weights
    through the hooks of that call, and calling the inner module around them silently skips both.
    """
    # The method is replaced on the instance, so that `save_pretrained` and `generate` see the class they know.
    plain_forward = student.forward

    def forward(
        self: PreTrainedModel,
        *args: Any,
        batch: Batch | None = None,
        targets: Targets | None = None,
        loss: LossSettings | None = None,
        **kwargs: Any,
    ) -> Any:
        if batch is None:
            return plain_forward(*args, **kwargs)
        chosen = selection if self.training else None
        if not self.training and isinstance(settings.divergence, PolicyGradient):
            loss = settings.model_copy(update={"kl_weight": 0.0, "divergence": ForwardKl()})
        output = batch_loss(self, batch, targets, loss or settings, vocab_size, chosen, end_ids)
        return {name: getattr(output, name) for name in LossOutput.__slots__}

    student.forward = types.MethodType(forward, student)


class DistillationTrainer(Trainer):
    """Trains a student whose `forward` computes the objective (`attach_objective`)."""

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: TeacherSource,
        examples: Examples,
        validation: Examples | None,
        plan: list[list[int]],
        validation_plan: list[list[int]],
        arguments: TrainingArguments,
        one_cycle: bool = False,
        selection: ScoredSelection | None = None,
        steps: Rollouts | None = None,
    ):
        """Wire the parts.

        Args:
            student: The model to train, or its PEFT wrapper.
            teacher: The teacher's side, loaded.
            examples: Training examples.
            validation: Validation examples, never cut, or None.
            plan: Micro-batches of the whole run, all ranks, which is one "epoch" to Transformers.
            validation_plan: Micro-batches of one validation.
            arguments: Transformers' arguments.
            one_cycle: Use PyTorch's one-cycle schedule instead of the one the arguments name.
            selection: The selection that the objective makes among the weighted positions.
            steps: Makes the examples of each step; the plan then says how many micro-batches there are, and no more.
        """
        self.selection, self.steps = selection, steps
        self.counts: Sequence[StepCounts] = ()  # of all steps of the plan; with them, log lines have the speed
        self.peak_flops: float | None = None  # operations a second of all ranks' devices, where known
        self.memory: PeakMemory | None = None
        self.num_asked = torch.zeros(())
        self.agreements: list[torch.Tensor] = []  # of the micro-batches of a step that was made for itself
        self.earlier_peak = self.last_figures = 0
        self.plan, self.num_validation_batches = plan, len(validation_plan)
        super().__init__(
            model=student,  # pyright: ignore[reportArgumentType]  # a PEFT model is a Module
            args=arguments,
            data_collator=cast(Any, pack),
            train_dataset=cast(Any, examples),
            eval_dataset=cast(Any, validation),
        )
        # Ranks must make the same number of collective calls; repeated batches at the end are not counted twice
        # (`num_validation_batches`).
        self.validation_plan = validation_plan + validation_plan[-1:] * (-len(validation_plan) % self.args.world_size)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            # What enters and leaves `forward` is weights, targets and sums, too, which FSDP would round to bfloat16.
            policy = replace(plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None)
            plugin.mixed_precision_policy = policy
        # `compute_loss` divides by the weight of the whole step, so Transformers must not divide by micro-batches.
        self.loss_is_scaled_for_ga = True
        self.is_one_cycle = one_cycle
        self.teacher = teacher
        teacher.prepare(self.accelerator)
        self.totals = torch.zeros(len(GROUPS), 2 * len(ROW_COLUMNS), dtype=torch.float64, device=self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        """The planned micro-batches, dealt to the ranks in turn; empty ones where each step makes its own."""
        if self.steps is not None:
            num_batches = len(self.plan) // self.accelerator.num_processes
            return DataLoader(cast(Any, range(num_batches)), collate_fn=lambda _: {})
        return self._loader(self.train_dataset, self.plan)

    def _loader(self, dataset: Any, plan: list[list[int]]) -> DataLoader:
        """This rank's share of a plan; its length is a multiple of the number of ranks."""
        # Micro-batch `i` belongs to rank `i % num_ranks`, as in `training.steps.StepPlan`.
        rank_plan = plan[self.accelerator.process_index :: self.accelerator.num_processes]
        if self.args.dataloader_num_workers:
            atexit.unregister(end_data_workers)
            atexit.register(end_data_workers)  # last, so that it runs before multiprocessing waits for them
        return DataLoader(
            dataset,
            batch_sampler=rank_plan,
            collate_fn=self.teacher.collator,
            pin_memory=self.args.device.type == "cuda",
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=prepare_data_worker,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Weight sum of an optimiser step over its micro-batches and all ranks."""
        weights = [
            batch["weights"].sum() if self.selection is None else selected_weight(batch, self.selection.share)
            for batch in batch_samples
        ]
        rank_weight = torch.stack(weights).sum().to(device)
        # In the same reduction: how many ranks got a signal to end, so that all of them stop at the same step.
        end_requested = torch.full_like(rank_weight, float(is_asked_to_end()))
        weight, self.num_asked = cast(
            torch.Tensor, self.accelerator.reduce(torch.stack([rank_weight, end_requested]), "sum")
        )
        return weight

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step, timed."""
        if self.steps is not None:
            for _ in zip(range(num_batches), epoch_iterator, strict=False):  # steps are counted by the loader
                pass
            self.agreements = []
            with self._timed("rollout"):
                student = self.accelerator.unwrap_model(cast(torch.nn.Module, self.model))
                batches = self.steps.batches(self.state.global_step, student)
            if (loss := self.steps.loss_at(self.state.global_step)) is None or loss.kl_weight:
                self.teacher.ask_ahead(batches)
            return batches, self._get_num_items_in_batch(batches, device)
        with self._timed("data"):
            batches, weight = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.teacher.ask_ahead(batches)
        return batches, weight

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, timed."""
        with self._timed("micro_batch"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock.part(part)

    @property
    def clock(self) -> Clock | None:
        """The clock among the callbacks, which is another one after a resume."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, Clock)), None)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch, scaled so that the gradient of the step is that of one weighted mean.

        Data-parallel wrappers average gradients over the ranks, hence the factor.
        """
        loss = None if self.steps is None else self.steps.loss_at(self.state.global_step)
        output = self._forward(model, inputs, loss)
        self.totals += output.totals.to(self.totals)
        if self.steps is not None:
            self.agreements.append(output.agreement.detach())
        # `num_items_in_batch` is the weight sum of the whole step (`_get_num_items_in_batch`).
        loss = output.loss_sum * self.accelerator.num_processes / num_items_in_batch
        return (loss, output) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Weighted mean of the objective over all validation examples, with the row quantities by section and place."""
        model = cast(torch.nn.Module, self.model_wrapped).eval()
        device, ranks = self.args.device, self.accelerator.num_processes
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        totals = torch.zeros_like(self.totals, device=device)
        with torch.no_grad(), self.compute_loss_context_manager():
            loader = self._loader(eval_dataset or self.eval_dataset, self.validation_plan)
            progress = Progress("validating", len(loader), "batches")
            for number, batch in enumerate(loader):
                output = self._forward(model, cast(Batch, self._prepare_inputs(batch)))
                progress.report(number + 1)
                if number * ranks + self.accelerator.process_index >= self.num_validation_batches:
                    continue  # a repeat, so that every rank runs as many forward passes
                sums += torch.stack([output.loss_sum, output.weight_sum]).to(sums)
                totals += output.totals.to(totals)
        sums, totals = self._summed(sums), self._summed(totals)
        metrics = {f"{metric_key_prefix}_loss": float(sums[0] / sums[1])}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in group_means(totals).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save = True  # so that the best weights can be gone back to
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means by section and place and the speed since the last log line.

        Transformers' summary at the end is left out: after a resume it is of the last process alone.
        """
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            if self.clock is not None:
                (num_steps, seconds), last = self.clock.lap(), self.state.global_step
                logs |= speed_figures(self.counts[last - num_steps : last], seconds, self.peak_flops)
            if self.steps is not None:
                logs |= self.steps.figures(self.last_figures, self.state.global_step)
                self.last_figures = self.state.global_step
            logs |= group_means(self._summed(self.totals.to(self.args.device)))
            self.totals.zero_()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint with the state that the next process needs, seal it, and remove those it replaces."""
        directory = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        # On every rank, since the sums are collective calls; only the first rank writes.
        made, recorded = ({}, None) if self.steps is None else self.steps.state()
        handover = Handover(
            loss=float(self._summed(self._tr_loss)) / self.args.world_size,
            last_logged=self._globalstep_last_logged,
            totals=self._summed(self.totals.to(self.args.device)).tolist(),
            peak_memory_bytes=self.peak_memory_bytes,
            steps=made,
            recorded=recorded,
        )
        with writing(directory):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            handover.complete(directory)
            remove_old(directory.parents[1], self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    @property
    def peak_memory_bytes(self) -> int:
        """Peak memory of training, also of the processes before this one."""
        return max(self.earlier_peak, 0 if self.memory is None else self.memory.read())

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Transformers' schedules, or one cycle over the same warm-up."""
        optimizer = optimizer or self.optimizer
        if self.is_one_cycle and self.lr_scheduler is None:
            # OneCycleLR divides by the steps between the first and the peak, and between the peak and the last. A peak
            # at the first step lies a little before it; the last step is never the peak.
            rate, warmup = self.args.learning_rate, min(self.args.warmup_steps, num_training_steps - 1)
            share = (warmup if warmup > 1 else 1 - 1e-9) / num_training_steps
            self.lr_scheduler = OneCycleLR(optimizer, rate, num_training_steps, pct_start=share, cycle_momentum=False)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: Any) -> int:
        """Counted elsewhere, exactly (`leadspan.costs.flops`)."""
        return 0

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks."""
        return cast(torch.Tensor, self.accelerator.reduce(values, "sum"))

    def _forward(self, model: torch.nn.Module, batch: Batch, loss: LossSettings | None = None) -> LossOutput:
        with self._timed("teacher"):
            targets = None if loss is not None and not loss.kl_weight else self.teacher.targets(batch)
        with self._timed("student_forward"):
            return LossOutput(**model(batch=batch, targets=targets, loss=loss))


@dataclass(eq=False)
class StepEvents(TrainerCallback):
    """Gives a trainer the state of its checkpoint, if there is one, and decides what follows each step."""

    trainer: DistillationTrainer
    checkpoint: Path | None
    validations: frozenset[int]

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore the state, after the trainer has reset its own sums; sums over all ranks go to the first rank."""
        if self.checkpoint is None:
            return
        trainer, handover = self.trainer, Handover.of(self.checkpoint)
        # Each rank gets the mean: Transformers averages the sums of the ranks when it logs.
        trainer._tr_loss.fill_(handover.loss)
        trainer._globalstep_last_logged = trainer.last_figures = handover.last_logged
        trainer.earlier_peak = handover.peak_memory_bytes
        if trainer.steps is not None:
            trainer.steps.restore(handover.steps)
        if trainer.is_world_process_zero():
            trainer.totals.copy_(torch.tensor(handover.totals, dtype=torch.float64))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record a step that was made for itself; ask for a log line, a validation, a checkpoint and the end.

        A logged loss is a mean since the last log line; with a line at every checkpoint a resumed run takes its means
        over the same steps as an uninterrupted one.
        """
        if self.trainer.steps is not None:  # before any checkpoint of the step
            self.trainer.steps.end_step(self.trainer.agreements)
        is_last = state.global_step == state.max_steps
        control.should_evaluate |= state.global_step in self.validations and args.eval_strategy != "no"
        control.should_log |= is_last or control.should_evaluate or state.global_step % args.save_steps == 0
        # With several ranks, whether any of them got a signal before the step: all end at the same one.
        if is_asked_to_end() if args.world_size == 1 else bool(self.trainer.num_asked):
            control.should_save = control.should_training_stop = True
