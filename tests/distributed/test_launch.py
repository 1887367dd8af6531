"""Who a process is, from the environment of torchrun and of srun."""

from __future__ import annotations

import pytest

from undiffuse.util.launch import Launch, first_host, launch

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_NODELIST": "gpu[01-08]",
}  # fmt: skip
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_one_process_is_alone() -> None:
    assert launch({}) == Launch()
    assert launch({"WORLD_SIZE": "1", "RANK": "0", **SLURM}) == Launch()
    assert launch({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) == Launch()


def test_torchrun_comes_before_slurm() -> None:
    expected = Launch(rank=3, world_size=4, local_rank=1, address="node0", port=29500, by="torchrun")
    assert launch(TORCHRUN) == launch({**SLURM, **TORCHRUN}) == expected
    with pytest.raises(ValueError, match="WORLD_SIZE is 4, but RANK, MASTER_PORT is not set"):
        launch({"WORLD_SIZE": "4", "MASTER_ADDR": "node0"})
    with pytest.raises(ValueError, match="RANK of the environment must be a whole number of 0 or more, got 'x'"):
        launch({**TORCHRUN, "RANK": "x"})


def test_srun() -> None:
    found = launch(SLURM)
    assert (found.rank, found.world_size, found.local_rank, found.address, found.by) == (5, 8, 1, "gpu07", "srun")
    assert 1024 < found.port < 32768  # below the ports that systems give to outgoing connections
    assert launch({**SLURM, "SLURM_STEP_ID": "3"}).port != found.port
    assert launch({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "77"}).port == 77
    with pytest.raises(ValueError, match="srun started 8 processes, but SLURM_LOCALID is not set"):
        launch({name: value for name, value in SLURM.items() if name != "SLURM_LOCALID"})


def test_a_batch_script_without_srun_is_one_process() -> None:
    script = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert launch(script) == Launch()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-010,012],login1", "gpu007"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("rack[1,3]n[5-6]", "rack1n5"),
        ("a[3]-ib,b", "a3-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
