"""Which of several processes this one is, as torchrun or Slurm's srun says in the environment. Light to import."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STARTED", "Launch", "first_host", "is_main_process", "launch", "own_rank"]

STARTED = time.monotonic()
"""When this process started, or rather imported this module, which commands do first, on the clock that never jumps."""
_PORTS = (20_000, 10_000)
"""The first and the number of the ports that jobs under srun use, chosen by the number of the job."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        local_rank: Number of this process on its machine, which chooses its GPU.
        address: Host of rank 0; "" if it is not known.
        port: Port on that host where the processes meet; 0 if it is not known.
        by: "torchrun" (or another launcher that sets its variables), "srun", or "" for a process started alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    by: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reports and finishes files."""
        return self.rank == 0


def launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Reads how this process was started.

    torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) come first. Without them, a process
    that srun started as one of several takes SLURM_PROCID, SLURM_STEP_NUM_TASKS and SLURM_LOCALID; rank 0 is on the
    first host of SLURM_STEP_NODELIST. A batch script without srun is one process, whatever SLURM_NTASKS says.

    Args:
        environ: The environment; by default that of the process.

    Raises:
        ValueError: A variable is missing or no number.
    """
    values = os.environ if environ is None else environ
    if values.get("WORLD_SIZE", "1") != "1":
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in values]
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {values['WORLD_SIZE']}, but {', '.join(missing)} is not set; start the processes with "
                "torchrun or srun"
            )
        rank = _number(values, "RANK")
        local = _number(values, "LOCAL_RANK") if "LOCAL_RANK" in values else rank
        return Launch(
            rank=rank, world_size=_number(values, "WORLD_SIZE"), local_rank=local, address=values["MASTER_ADDR"],
            port=_number(values, "MASTER_PORT"), by="torchrun",
        )  # fmt: skip
    if "WORLD_SIZE" in values:  # torchrun with one process
        return Launch()
    count = values.get("SLURM_STEP_NUM_TASKS") or (values.get("SLURM_NTASKS") if "SLURM_STEP_ID" in values else None)
    if count in (None, "1"):
        return Launch()
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if name not in values]
    nodes = values.get("SLURM_STEP_NODELIST") or values.get("SLURM_JOB_NODELIST") or values.get("SLURM_NODELIST", "")
    address = values.get("MASTER_ADDR") or first_host(nodes)
    if missing or not address:
        names = [*missing, *([] if address else ["SLURM_STEP_NODELIST"])]
        raise ValueError(f"srun started {count} processes, but {', '.join(names)} is not set; start them with torchrun")
    job, step = (_number(values, name) if name in values else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    low, many = _PORTS
    port = _number(values, "MASTER_PORT") if "MASTER_PORT" in values else low + (job * 31 + step) % many
    return Launch(
        rank=_number(values, "SLURM_PROCID"),
        world_size=int(str(count)) if str(count).isdecimal() else _number(values, "SLURM_NTASKS"),
        local_rank=_number(values, "SLURM_LOCALID"),
        address=address,
        port=port,
        by="srun",
    )


def own_rank() -> int:
    """Returns the rank of this process, 0 for the only one."""
    text = os.environ.get("RANK", "")
    if text.isdecimal():  # also where a launcher sets nothing else
        return int(text)
    try:
        return launch().rank
    except ValueError:  # reported where the processes are joined
        return 0


def is_main_process() -> bool:
    """Whether this process may write to the terminal: rank 0 of several processes, or the only one."""
    return own_rank() == 0


def first_host(nodes: str) -> str:
    """Returns the first host of a list as Slurm writes it, for example "gpu007" of "gpu[007-010,012],login1"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first is not None else ""


def _number(values: Mapping[str, str], name: str) -> int:
    text = values[name]
    if not text.isdecimal():
        raise ValueError(f"the variable {name} of the environment must be a whole number of 0 or more, got {text!r}")
    return int(text)
