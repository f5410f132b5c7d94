"""Together: the trainer as one of several processes, each with its share of every batch.

The loss is that of one process: sums over all processes, divided by the weight of all counted tokens. transformers and
accelerate believe that they are alone (`distill.distributed.join` takes the launcher's variables away), so what is
divided, averaged, gathered or written once is all here, and one process runs exactly what it always ran.
Dropout is drawn by each process for its own rows: with it, a run depends on the number of processes; without it, not.
"""

import contextlib
import json
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from distill.distributed import World, world
from distill.errors import StageFailed, first_line
from distill.stages import _sharding
from distill.stages._checkpoints import load_checkpoint
from distill.stages._loading import Source, read_to_cut
from distill.stages._trainer import DistillTrainer, InOrder

ROWS = "rows"
"""Folder beside the trainer's in which each process writes the numbers of the rows that it learnt from."""


class Arguments(TrainingArguments):
    """On this process's own GPU; only the leader writes."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        device = TrainingArguments._setup_devices.func(self)  # type: ignore[attr-defined]
        self._n_gpu = min(self._n_gpu, 1)
        if device.type != "cuda":
            return device
        # transformers takes the first GPU, as it knows of no other process
        torch.cuda.set_device(world().local_rank)
        return torch.device("cuda", world().local_rank)

    @property
    def should_save(self) -> bool:
        return world().leads


class TogetherTrainer(DistillTrainer):
    """See `distill.stages._trainer`; `cut` says that the student's blocks are sharded already, and the rest is not."""

    def __init__(self, *, together: World, cut: bool, **arguments: Any):
        if cut:  # first: what is no part of a block has no storage yet in processes other than the leader
            _sharding.root(arguments["step"], _sharding.mesh_of(together))
        super().__init__(**arguments)
        self.world, self.cut = together, cut
        self.micro_batches = self.args.gradient_accumulation_steps
        self.seen: list[int] = []
        # else all processes would drop the same places of their different rows
        torch.manual_seed(self.args.seed * together.size + together.rank)

    def train(self, *arguments, **more):
        try:
            return super().train(*arguments, **more)
        except RuntimeError as error:
            # a collective's error means that another process is gone
            if not any(word in str(error) for word in ("gloo", "NCCL", "Connection reset", "Broken pipe")):
                raise
            raise StageFailed(
                "Another process ended while this one waited for it "
                f"({first_line(error)}).\nThe same command goes on from the last checkpoint."
            ) from error

    def get_train_dataloader(self) -> DataLoader:
        share = self.plan.share(self.world.rank, self.world.size, self.micro_batches)
        return DataLoader(
            cast(Any, self.train_dataset),
            batch_size=share.shape[2],
            sampler=InOrder(share),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _wrap_model(self, model, training=True, dataloader=None) -> nn.Module:
        """The step, as transformers is to call it. (It wraps nothing further that is not the model itself.)"""
        if self.cut:
            return self.step
        gpu = [self.world.local_rank] if self.args.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.13 calls the option by another name, which 2.8 lacks
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.step, device_ids=gpu, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _get_num_items_in_batch(self, batch_samples, device):
        return self._sum(super()._get_num_items_in_batch(batch_samples, device))

    def training_step(self, model, inputs, num_items_in_batch=None):
        last = self.accelerator.sync_gradients
        self.seen += inputs["rows"].tolist()
        # a cut student sends its gradients after every micro-batch: kept whole, they would fill the memory it saved
        accumulates = not last and isinstance(model, DistributedDataParallel)
        with cast(DistributedDataParallel, model).no_sync() if accumulates else contextlib.nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if last:
            self._write_rows()
        return loss

    def _total(self, model: nn.Module, inputs) -> Tensor:
        # the gradients of all processes are averaged, the count is global
        return model(inputs) * self.world.size

    def _clip_grad_norm(self, model):
        norm = cast(Any, super()._clip_grad_norm(model))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _maybe_log_save_evaluate(self, tr_loss, *arguments, **more):
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            tr_loss.copy_(self._sum(tr_loss) / self.world.size)
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **more)

    def _weights_are_finite(self) -> bool:
        mine = all(_local(p).isfinite().all() for p in self._student.parameters() if p.requires_grad)
        return bool(self._sum(torch.tensor(float(mine), device=self.args.device)) == self.world.size)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.world.wait()  # what the leader has deleted or written, the others see

    def _finish_checkpoint(self, folder: Path) -> None:
        self.world.wait()  # every process's part is there
        if self.world.leads:
            super()._finish_checkpoint(folder)

    def _save(self, output_dir=None, state_dict=None) -> None:
        if self.cut:
            state_dict = _sharding.whole_weights(self.model, keep=self.world.leads)
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        if not self.cut:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = _sharding.whole_optimizer(self.optimizer, keep=self.world.leads)
        if self.world.leads:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if not self.cut:  # what is cut was loaded before it was
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if not self.cut or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        folder = Path(checkpoint)
        # mapped: a process reads its own part of the file
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
        optimizer = cast(Any, getattr(self.optimizer, "optimizer", self.optimizer))
        optimizer.load_state_dict(_sharding.cut_optimizer(optimizer, state))
        cast(Any, self.lr_scheduler).load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _save_rng_state(self, output_dir) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        torch.save(state, folder / self._rng_file)

    def _load_rng_state(self, checkpoint) -> None:
        file = Path(checkpoint) / self._rng_file
        if not file.exists():  # it was written by another number of processes
            torch.manual_seed((self.args.seed + self.state.global_step) * self.world.size + self.world.rank)
            return
        state = torch.load(file, weights_only=True)
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.args.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"])

    @property
    def _rng_file(self) -> str:
        return f"rng_state_{self.world.rank}_of_{self.world.size}.pth"

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def _write_rows(self) -> None:
        step = self.state.global_step + 1
        line = {"step": step, "of": self.world.size, "rows": sorted(self.seen)}
        self.seen = []
        folder = self._output_folder.parent / ROWS
        folder.mkdir(exist_ok=True)
        with (folder / f"rank-{self.world.rank:03d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def cut_models(
    student: Any,
    teacher: Any,
    sharding: Literal["auto", "none", "full"],
    together: World,
    checkpoint: Path | None,
    *,
    bf16: bool,
) -> tuple[bool, Any, Callable[..., Tensor] | None]:
    """Cuts the student's blocks, and a live teacher's, where `sharding` wants it, before an optimizer exists.

    Gives whether it did; the teacher, which is read only now where it came as a `Source`, so that the leader holds one
    whole model at a time; and what computes the teacher's hidden states where it is cut. The weights of `checkpoint`,
    from which the training goes on, are put into the leader's student while that is whole.
    """
    mesh = _sharding.mesh_of(together)
    # the leader's choice, for GPUs may differ, and it alone is sure to have weights
    cut = together.share(_sharding.choose(sharding, student) if together.leads else None) == "full"
    if not cut:
        return False, teacher.read(None) if isinstance(teacher, Source) else teacher, None
    if checkpoint is not None and together.leads:
        load_checkpoint(student, checkpoint)
    _sharding.shard_blocks(student, mesh, bf16=bf16)
    if isinstance(teacher, Source):
        teacher = read_to_cut(teacher, together)
    return True, teacher, None if teacher is None else _sharding.shard_teacher(teacher, mesh)


def _local(parameter: Tensor) -> Tensor:
    return cast(Any, parameter).to_local() if hasattr(parameter, "to_local") else parameter
