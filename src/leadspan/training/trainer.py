"""A thin `transformers.Trainer`: ours are the batches, the targets, the objective and the normalisation."""

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from leadspan.data.examples import Examples
from leadspan.data.packing import Batch, pack
from leadspan.data.selection import ScoredSelection
from leadspan.losses.config import LossSettings
from leadspan.losses.objective import GROUPS, LossOutput, batch_loss, group_means
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.selection import selected_weight
from leadspan.teacher.store import TargetStore
from leadspan.teacher.targets import Targets
from leadspan.training.callbacks import Clock
from leadspan.training.speed import Speed
from leadspan.training.targets import LiveTeacher, NoTeacher, StoredTeacher


def attach_objective(
    student: PreTrainedModel, settings: LossSettings, vocab_size: int | None, selection: ScoredSelection | None = None
) -> None:
    """Let the student's own `forward` compute the loss when it is given a `batch`.

    Tokens are selected in training mode only: validation counts every weighted position.

    The loss must run inside `forward`: data-parallel and sharding wrappers average gradients and gather weights
    through the hooks of that call, and calling the inner module around them silently skips both.
    """
    plain_forward = student.forward

    def forward(
        self: PreTrainedModel,
        *args: Any,
        batch: Batch | None = None,
        targets: Targets | None = None,
        **kwargs: Any,
    ) -> Any:
        if batch is None:
            return plain_forward(*args, **kwargs)
        chosen = selection if self.training else None
        output = batch_loss(self, batch, targets, settings, vocab_size, chosen)
        return {"loss_sum": output.loss_sum, "weight_sum": output.weight_sum, "totals": output.totals}

    student.forward = types.MethodType(forward, student)


class DistillationTrainer(Trainer):
    """Trains a student whose `forward` computes the objective (`attach_objective`)."""

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: PreTrainedModel | TargetStore | None,
        examples: Examples,
        validation: Examples | None,
        plan: list[list[int]],
        validation_plan: list[list[int]],
        arguments: TrainingArguments,
        one_cycle: bool = False,
        selection: ScoredSelection | None = None,
    ):
        """Wire the parts.

        Args:
            student: The model to train, or its PEFT wrapper.
            teacher: A frozen live teacher, a store of its targets, or None.
            examples: Training examples.
            validation: Validation examples, never cut, or None.
            plan: Micro-batches of the whole run, all ranks.
            validation_plan: Micro-batches of one validation.
            arguments: Transformers' arguments; one "epoch" is the whole run.
            one_cycle: Use PyTorch's one-cycle schedule instead of the one the arguments name.
            selection: The selection that the objective makes among the weighted positions.
        """
        self.selection = selection
        self.speed: Speed | None = None  # with one, log lines have figures of it
        self.plan, self.num_validation_batches = plan, len(validation_plan)
        super().__init__(
            model=student,  # pyright: ignore[reportArgumentType]  # a PEFT model is a Module
            args=arguments,
            data_collator=cast(Any, pack),
            train_dataset=cast(Any, examples),
            eval_dataset=cast(Any, validation),
        )
        self.validation_plan = validation_plan + validation_plan[-1:] * (-len(validation_plan) % self.args.world_size)
        self.loss_is_scaled_for_ga = True
        self.is_one_cycle = one_cycle
        self.teacher = self._teacher_side(teacher)
        self.totals = torch.zeros(len(GROUPS), 2 * len(ROW_COLUMNS), dtype=torch.float64, device=self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        """The planned micro-batches, dealt to the ranks in turn."""
        return self._loader(self.train_dataset, self.plan)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The planned validation batches."""
        return self._loader(eval_dataset or self.eval_dataset, self.validation_plan)

    def _loader(self, dataset: Any, plan: list[list[int]]) -> DataLoader:
        """This rank's share of a plan; its length is a multiple of the number of ranks."""
        own = plan[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(
            dataset,
            batch_sampler=own,
            collate_fn=self.teacher.collator,
            pin_memory=self.args.device.type == "cuda",
            num_workers=self.args.dataloader_num_workers,
        )

    def _teacher_side(self, teacher: PreTrainedModel | TargetStore | None) -> NoTeacher:
        if isinstance(teacher, TargetStore):
            return StoredTeacher(teacher, self.args.device)
        if teacher is None:
            return NoTeacher()
        return LiveTeacher(self.accelerator.prepare_model(teacher, evaluation_mode=True))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Weight sum of an optimiser step over its micro-batches and all ranks."""
        own = torch.stack([self._weight_of(batch) for batch in batch_samples]).sum().to(device)
        return cast(torch.Tensor, self.accelerator.gather(own)).sum()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step, timed."""
        with self._timed("data"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, timed."""
        with self._timed("micro_batch"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self._clock is None else self._clock.part(part)

    @property
    def _clock(self) -> Clock | None:
        return next((c for c in self.callback_handler.callbacks if isinstance(c, Clock)), None)

    def _speed_figures(self) -> dict[str, float]:
        if self._clock is None or self.speed is None:
            return {}
        num_steps, seconds = self._clock.lap()
        return self.speed.figures(self.state.global_step - num_steps, self.state.global_step, seconds)

    def _weight_of(self, batch: Batch) -> torch.Tensor:
        return batch["weights"].sum() if self.selection is None else selected_weight(batch, self.selection.share)

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
        output = self._forward(model, inputs)
        self.totals += output.totals.to(self.totals)
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
            for number, batch in enumerate(self.get_eval_dataloader(eval_dataset)):
                output = self._forward(model, cast(Batch, self._prepare_inputs(batch)))
                if number * ranks + self.accelerator.process_index >= self.num_validation_batches:
                    continue  # a repeat, so that every rank runs as many forward passes
                sums += torch.stack([output.loss_sum, output.weight_sum]).to(sums)
                totals += output.totals.to(totals)
        if self._clock is not None:
            self._clock.drop()
        sums, totals = self._summed(sums), self._summed(totals)
        metrics = {f"{metric_key_prefix}_loss": float(sums[0] / sums[1])}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in group_means(totals).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save = True  # so that the best weights can be gone back to
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means by section and place and the speed since the last log line."""
        if "loss" in logs:
            logs |= self._speed_figures()
            logs |= group_means(self._summed(self.totals.to(self.args.device)))
            self.totals.zero_()
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Transformers' schedules, or one cycle over the same warm-up."""
        optimizer = optimizer or self.optimizer
        if self.is_one_cycle and self.lr_scheduler is None:
            warmup = max(self.args.warmup_steps, 1) / num_training_steps
            self.lr_scheduler = OneCycleLR(
                optimizer, self.args.learning_rate, num_training_steps, pct_start=warmup, cycle_momentum=False
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: Any) -> int:
        """Counted elsewhere, exactly (`leadspan.costs.flops`)."""
        return 0

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks."""
        return cast(torch.Tensor, self.accelerator.reduce(values, "sum"))

    def _forward(self, model: torch.nn.Module, batch: Batch) -> LossOutput:
        with self._timed("teacher"):
            targets = self.teacher.targets(batch)
        with self._timed("student_forward"):
            return LossOutput(**model(batch=batch, targets=targets))
