"""How a rank finds the others from a scheduler's variables."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.launch import rendezvous as module
from stacking.launch.rendezvous import NoAddress, address, expand_counts, first_host, interfaces, port, rendezvous

SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "other[1-9]",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}


def test_slurms_variables_describe_the_whole_rendezvous() -> None:
    found = rendezvous(SLURM)
    assert found.pop("MASTER_ADDR") in ("127.0.0.1", "::1")
    assert 1024 < int(found.pop("MASTER_PORT")) < 32_768
    assert found == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}


def test_a_rank_that_already_has_its_number_is_left_alone() -> None:
    assert rendezvous({**SLURM, "RANK": "0"}) == {}


def test_an_address_and_a_port_that_are_set_are_kept() -> None:
    found = rendezvous({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert "MASTER_ADDR" not in found and "MASTER_PORT" not in found


def test_a_missing_launcher_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match="srun, mpirun or `stacking run`"):
        rendezvous({})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[07-09,12]-ib,login1", "gpu07-ib"),
        ("login1,gpu[07-09]", "login1"),
        ("rack[3-4]node[001,005]", "rack3node001"),
        ("a-b.cluster.example,c", "a-b.cluster.example"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(0, 100))
def test_ports_are_below_the_kernels_ephemeral_range(job: int, step: int, restart: int) -> None:
    assert 12_000 <= port(job, step, restart) < 32_768
    assert port(job, step, restart) != port(job + 1, step, restart) != port(job + 1, step + 1, restart)


def test_counts_per_node_are_parsed() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1] and expand_counts("16") == [16]


def test_the_sites_interface_is_used_unless_another_one_is_named() -> None:
    assert interfaces({"STACKING_INTERFACE": "ib0"}) == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}
    assert interfaces({"STACKING_INTERFACE": "ib0", "NCCL_SOCKET_IFNAME": "^lo"}) == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert interfaces({}) == {}


def test_ipv6_addresses_are_used_where_the_site_asks_for_them() -> None:
    assert address("::1", ipv6=True) == "::1"


def test_a_host_known_only_to_slurm_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_node_address", lambda node: "127.0.0.1")
    assert address("no-such-host.invalid", ipv6=False) == "127.0.0.1"


def test_a_temporarily_unknown_host_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, "127.0.0.1"])
    monkeypatch.setattr(module, "_node_address", lambda node: next(answers))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    assert address("no-such-host.invalid", ipv6=False) == "127.0.0.1"


def test_an_unknown_host_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_node_address", lambda node: None)
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with pytest.raises(NoAddress, match=r"no-such-host\.invalid: has no address"):
        address("no-such-host.invalid", ipv6=False)


@pytest.mark.distributed
def test_gloo_ranks_meet_at_an_ipv6_address() -> None:
    script = """
import os, sys
os.environ.update(RANK=sys.argv[1], WORLD_SIZE="2", MASTER_ADDR="::1", MASTER_PORT=sys.argv[2])
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
print(int(ones), flush=True)
sys.stdin.read()  # a rank that leaves early may break the other's connection
"""
    number, pipe = str(port(4711)), subprocess.PIPE
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, rank, number], stdin=pipe, stdout=pipe, text=True)
        for rank in ("0", "1")
    ]
    assert [rank.stdout.readline() for rank in ranks if rank.stdout] == ["2\n", "2\n"]
    for rank in ranks:
        rank.communicate(timeout=60)
