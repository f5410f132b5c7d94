"""World: the processes that torchrun or accelerate launch started together, and what they tell each other.

Only the leader (rank 0) speaks, chooses the run folder, writes and runs the stages; the others wait for what it
shares, for days if need be, and train with it. What is told is JSON in the launcher's key-value store: it needs no GPU,
knows no time limit, and carries no pickle. The groups of torch.distributed have a limit; they serve the training only.

A process that fails writes `failed` and stays until the leader has said so; a leader that ends writes `over`. Every
process looks for both while it waits, and a thread of its own looks while it computes, where Python may be stuck in a
collective that will never end.
"""

import atexit
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, RecipeError, StageFailed, first_line

if TYPE_CHECKING:
    from torch.distributed import Store

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""A step, or one process saving a checkpoint, takes less; a GPU that hangs is noticed after it."""
MEETING_TIMEOUT = timedelta(minutes=10)
"""From the first process that has started to the last."""
LONGEST_PAUSE = 0.5
"""Seconds between two looks into the store."""
GRACE = 4.0
"""Seconds in which an error that all processes meet reaches the leader's own handling, which says it best."""
STAY = 60.0
"""Seconds for which a process that failed waits for the leader to say so, before it says it itself."""
BEAT = 10.0
"""Seconds between two signs of life that every process gives the leader."""
MISSED = 30
"""So many of them may be missing, in a row, before a process counts as gone: where no launcher looks after it."""
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK")
THEIRS = ("MASTER_ADDR", "MASTER_PORT")
# srun --mpi sets PMI_SIZE, from which accelerate would take that it is to distribute something on CPUs
PREFIXES = ("ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_")


class OtherFailed(DistillError):
    """Another process failed; `exit_code` is what it would exit with."""

    def __init__(self, rank: int, code: int, message: str):
        super().__init__(f"Process {rank}: {message}")
        self.exit_code = code


class JobOver(Exception):
    """The leader has ended this job of a sweep, or given it up; another may follow."""


JOB_OVER = "job over"


class World:
    """The processes of a run as one of them sees them. One process alone is a world of one, in which nothing waits."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: "Store | None" = None):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self._told = 0
        self._leaving = False
        self._connected = False
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self.broken = False
        """Set once a stage that all processes run together has failed here: they are no longer in step."""
        self.on_failure: Callable[[str], None] = lambda message: None
        """Called in the leader with the message of another process that failed, before everything ends."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """The leader's value, in every process; it must be plain JSON. The others wait for it.

        Raises:
            JobOver: in the others, where the leader said `job_over` instead.
        """
        if self.size == 1:
            return value
        key = self._next_key()
        if self.leads:
            self._set(key, value)
            return value
        told = json.loads(self._wait_for(key))
        if told == JOB_OVER:
            raise JobOver
        return told

    def job_over(self) -> None:
        """The leader's word that a job has come to its end, wherever the others are in it."""
        if not self.broken:
            self.share(JOB_OVER)

    def gather(self, value: Any = None) -> list[Any]:
        """The values of all processes by rank, in every process. The leader waits for each of them."""
        if self.size == 1:
            return [value]
        key = self._next_key()
        if not self.leads:
            self._set(f"{key}/{self.rank}", value)
            return self.share()
        values = [value, *(json.loads(self._wait_for(f"{key}/{rank}")) for rank in range(1, self.size))]
        return self.share(values)

    def wait(self) -> None:
        """Returns once every process has come here."""
        self.gather()

    def connect(self) -> str:
        """Joins torch.distributed's default group, once; gives the device type of its collectives, "cuda" or "cpu"."""
        import torch
        import torch.distributed as dist

        cuda = torch.cuda.is_available()
        if self.size > 1 and not self._connected:
            device = None
            if cuda:
                device = torch.device("cuda", self.local_rank)
                torch.cuda.set_device(device)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.PrefixStore("collectives", self._raw()),
                rank=self.rank,
                world_size=self.size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=device,
            )
            self._connected = True
            # it warns of a group that nobody told it of, and is right not to use it
            logging.getLogger("transformers.training_args").setLevel(logging.ERROR)
        return "cuda" if cuda else "cpu"

    def fail(self, code: int, message: str) -> None:
        """Says that this process, which is not the leader, failed, and stays until the leader has ended.

        Raises:
            SystemExit: with the leader's exit code. Where the leader is gone, with this one's.
        """
        with contextlib.suppress(RuntimeError):  # the store went with the leader
            self._set("failed", {"rank": self.rank, "code": code, "message": message})
            until = time.monotonic() + STAY
            while time.monotonic() < until:
                if self._over() is not None:
                    raise SystemExit(self._acknowledge())
                time.sleep(LONGEST_PAUSE)
        os.write(2, f"Process {self.rank}: {message}\n".encode())
        raise SystemExit(code)

    def leave(self, code: int) -> None:
        """The leader's last word: the others end with this exit code."""
        if self.size == 1 or not self.leads or self._leaving:
            return
        self._leaving = True
        with contextlib.suppress(RuntimeError):
            self._set("over", code)
            until = time.monotonic() + 2 * GRACE
            while self._raw().add("gone", 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(0.02)  # where the leader holds the store, it goes last

    def outlive(self) -> None:
        """This process has more to do once the leader has ended; it is no longer watched."""
        self._leaving = True

    def _next_key(self) -> str:
        self._told += 1
        return str(self._told)

    def _raw(self) -> "Store":
        assert self._store is not None
        return self._store

    def _set(self, key: str, value: Any) -> None:
        self._raw().set(key, json.dumps(value))

    def _get(self, key: str) -> Any:
        return json.loads(self._raw().get(key)) if self._raw().check([key]) else None

    def _over(self) -> int | None:
        return self._get("over")

    def _acknowledge(self) -> int:
        code = self._over()
        self._raw().add("gone", 1)
        return 1 if code is None else code

    def _wait_for(self, key: str) -> str:
        # short looks, not one long wait: that would keep Ctrl-C from reaching Python
        pause = 0.001
        while not self._raw().check([key]):
            if self.leads and (failed := self._get("failed")):
                raise OtherFailed(failed["rank"], failed["code"], failed["message"])
            if not self.leads and self._over() is not None:
                raise SystemExit(self._acknowledge())
            time.sleep(pause)
            pause = min(1.3 * pause, LONGEST_PAUSE)
        return self._raw().get(key).decode()

    def start_watching(self, store: "Store") -> None:
        """See `watch`. `store`: a connection of the watching thread's own."""
        self._watcher = threading.Thread(target=self.watch, args=(store,), daemon=True)
        self._watcher.start()
        atexit.register(self.unwatch)

    def watch(self, store: "Store") -> None:
        """Runs in a thread of its own: ends this process when it is stuck in a collective that others never come to."""
        try:
            self._watch_others(store) if self.leads else self._watch_leader(store)
        except RuntimeError:  # the store went with the process that held it
            if not (self._ended.wait(GRACE) or self._leaving):
                os._exit(1)

    def unwatch(self) -> None:
        """Ends the watching thread: Python kills it inside the store's C++ otherwise, which aborts the process."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join(timeout=GRACE)

    def _watch_leader(self, store: "Store") -> None:
        while not store.check(["over"]):
            store.add(f"beats/{self.rank}", 1)
            for _ in range(round(BEAT / LONGEST_PAUSE)):
                if self._ended.wait(LONGEST_PAUSE):
                    return
                if store.check(["over"]):
                    break
        # the main thread, where it is free, ends in good order
        if self._ended.wait(GRACE) or self._leaving:
            return
        code = json.loads(store.get("over"))
        store.add("gone", 1)
        os._exit(code)

    def _watch_others(self, store: "Store") -> None:
        beats, missed = [0] * self.size, [0] * self.size
        while not store.check(["failed"]):
            for _ in range(round(BEAT / LONGEST_PAUSE)):
                if self._ended.wait(LONGEST_PAUSE):
                    return
                if store.check(["failed"]):
                    break
            before, beats = beats, [0, *(store.add(f"beats/{rank}", 0) for rank in range(1, self.size))]
            missed = [count + 1 if now == then else 0 for count, now, then in zip(missed, beats, before, strict=True)]
            silent = next((rank for rank in range(1, self.size) if missed[rank] >= MISSED), None)
            if silent is not None:
                gone = {"rank": silent, "code": 1, "message": "gone without a word. The same command goes on."}
                store.set("failed", json.dumps(gone))
        if self._ended.wait(GRACE) or self._leaving:
            return
        said = json.loads(store.get("failed"))
        self.on_failure(f"Process {said['rank']}: {said['message']}")
        self.leave(said["code"])
        os._exit(said["code"])


ALONE = World()
_world = ALONE
_by_hand = False


def started_by_hand() -> None:
    """Notes that this process began with the command line; what a launcher unpickles elsewhere did not."""
    global _by_hand
    _by_hand = True


def is_started_by_hand() -> bool:
    """Whether `started_by_hand` was called in this very process."""
    return _by_hand


def world() -> World:
    """The processes that this one belongs to; `ALONE` before `join` and where there is one only."""
    return _world


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def join() -> World:
    """Meets the other processes that a launcher started; a world of one where there is no launcher.

    The launcher's variables are taken out of the environment: the processes that a run starts (a server, a check in a
    fresh process) are none of its own, and neither transformers nor accelerate are to distribute anything beside us.

    Raises:
        RecipeError: the launcher is told to shard or to round, which the recipe decides, or its variables are not all
            there.
        StageFailed: the processes did not meet.
    """
    global _world
    if not several():
        return _world
    _refuse_launchers_own()
    missing = [name for name in ("RANK", *THEIRS) if name not in os.environ]
    if missing:
        raise RecipeError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but {', '.join(missing)} "
            "are not set. Start them with torchrun --nproc-per-node N -m distill … (or accelerate launch)."
        )
    store, watched, rank, size = _meet()
    _world = World(rank, size, int(os.environ.get("LOCAL_RANK") or 0), store)
    for name in list(os.environ):
        if name in (*OURS, *THEIRS) or name.startswith(PREFIXES):
            del os.environ[name]
    _world.start_watching(watched)
    return _world


def _meet() -> "tuple[Store, Store, int, int]":
    from torch.distributed import DistError
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING_TIMEOUT))
        # a connection of the watching thread's own: one serves one question at a time
        watched, *_ = next(rendezvous("env://"))
    except DistError as error:
        raise StageFailed(
            f"Process {os.environ['RANK']} did not meet the other {int(os.environ['WORLD_SIZE']) - 1} at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {first_line(error)}\n"
            "All of them have to start within ten minutes, and reach process 0 there, whose port has to be free.\n"
            "MASTER_ADDR and MASTER_PORT name another place; with SLURM, in hydra.launcher.setup or before srun."
        ) from error
    return store, watched, rank, size


def _refuse_launchers_own() -> None:
    asked = [what for what in ("FSDP", "DEEPSPEED", "MEGATRON_LM") if _is_on(f"ACCELERATE_USE_{what}")]
    rounding = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if rounding != "no":
        asked.append(f"mixed_precision={rounding}")
    if asked:
        raise RecipeError(
            f"accelerate is configured for {', '.join(asked)}, which the recipe decides here.\n"
            "Give training.sharding=full (or none) and training.bf16=true (or false) instead, and start with\n"
            "torchrun --nproc-per-node N -m distill … or accelerate launch --mixed_precision no …"
        )


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in {"1", "true", "yes"}
