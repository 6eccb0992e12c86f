"""A simulation on a Ray cluster: two nodes of Ray's on this machine, each at an address of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.ray_cluster import RayCluster, look, share_of_cpus
from p2pft_flower.cli.run import federation
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower.nodes import ONE_HOST
from p2pft_flower.lab import supervisor
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.topology import Graph
from tests.blocks import blocks_of
from tests.commands import CliRunner
from tests.flower.engine import run_app
from tests.flower.sameness import tails
from tests.quadratics import QUADRATICS

from .real import environment, marked

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [block.text for block in blocks_of(ROOT / "deploy" / "cluster.md")]
ADDRESSES, HEAD, OTHER, RUN, _, SLURM = BLOCKS
NODES = ("127.0.0.2", "127.0.0.3")


@pytest.fixture
def env(tmp_path):
    try:
        (port,) = free_ports(1, *NODES)
    except P2PFTError:
        pytest.skip("no loopback addresses: 127.0.0.2 and 127.0.0.3 cannot be listened on")
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    made = environment(tmp_path)
    with supervisor.Programs(made | {"TMPDIR": str(scratch)}) as programs:
        yield programs.environment | {"RAY_PORT": str(port), "RAY_TEMP": str(scratch)}
    shutil.rmtree(scratch)
    assert not marked(made)


@pytest.mark.timeout(600)
def test_the_page_on_clusters_can_be_followed_and_two_nodes_end_with_the_bits_of_one(env, tmp_path):
    settings = {"problem": QUADRATICS, "iterations": 5, "topology": "directed-ring:4"}
    env["SETTINGS"] = " ".join(f"{key}={value}" for key, value in settings.items())
    script = "\n".join((ADDRESSES, HEAD, OTHER, RUN))
    with (tmp_path / "said").open("w+") as said:  # no pipe, which Ray's processes would keep open
        done = subprocess.run(
            ["bash", "-eu", "-c", script],
            env=env,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=500,
            check=False,
        )
        said.seek(0)
        told = said.read()
    assert done.returncode == 0, told
    for node in NODES:
        assert f"on Ray's node {node} " in told
    assert "iteration 5/5" in told  # progress came over TCP
    run_app(tmp_path / "one", nodes=2, slots=2, **settings)
    assert tails(tmp_path / "first-run", range(4)) == tails(tmp_path / "one", range(4))
    assert not list((tmp_path / "first-run").glob(".p2pft-*"))


STAND_INS = {
    "scontrol": "echo one; echo two",
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
    "hostname": "echo 10.0.0.1 10.0.0.9",
    "ray": 'echo "ray $*" >> said',
    "python": 'echo "$2" | grep -o "int.*" >> said',
    "p2pft": 'echo "p2pft $*" >> said',
}


def test_the_slurm_job_starts_ray_on_each_node_and_then_the_run(tmp_path):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o700)
    job = {"JOB_NODELIST": "[one-two]", "JOB_ID": "123456", "CPUS_PER_TASK": "8", "JOB_NUM_NODES": "2"}
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **{f"SLURM_{key}": value for key, value in job.items()}}
    script = SLURM + "wait\n"
    done = subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    common = "--num-cpus 8 --disable-usage-stats --block"
    head = "ray start --head --node-ip-address 10.0.0.1 --port 23456 --temp-dir /tmp/ray-123456"
    assert sorted((tmp_path / "said").read_text().splitlines()) == sorted(
        [
            f"{head} --include-dashboard false {common}",
            "int('1'))",
            f"ray start --address 10.0.0.1:23456 {common}",
            "int('2'))",
            "p2pft run --ray-address 10.0.0.1:23456 topology=exponential:16 epochs=10 --out run-123456",
        ]
    )


def test_a_cluster_and_a_connection_exclude_each_other():
    done = CliRunner().invoke(app, ["run", "--ray-address", "127.0.0.1:9", "--connection", "sites"])
    assert done.exit_code == 2
    assert "--ray-address is for a simulation, --connection for a deployment" in done.output


def test_many_peers_of_one_machine_are_on_one_host_unless_sockets_are_asked_for():
    def hosts(peers, **settings):
        config = RunConfig.from_mapping({"topology": f"ring:{peers}", **settings})
        return federation(config, Graph.load(f"ring:{peers}")).split()[0]

    assert hosts(ONE_HOST) == "num-supernodes=1"
    assert (hosts(4), hosts(ONE_HOST, transport="grpc")) == (
        f"num-supernodes={min(4, os.cpu_count())}",
        f"num-supernodes={os.cpu_count()}",
    )


def test_hosts_get_so_many_cpus_that_they_fill_all_nodes():
    assert share_of_cpus([2, 2], 4) == 1
    assert share_of_cpus([8, 8], 4) == 4
    assert share_of_cpus([8, 8], 3) == 4
    assert share_of_cpus([16, 4], 4) == 4
    assert share_of_cpus([0, 3], 9) == 1
    assert RayCluster("", (2, 2)).federation(1) == "num-supernodes=1 client-resources-num-cpus=2"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("unix:/tmp/ray", "is host:port"),
        ("ray://10.0.0.1:10001", "neither"),
        ("127.0.0.1:{}", "nobody answers there"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused_before_anything_starts(address, problem):
    with pytest.raises(ConfigError, match=problem):
        look(address.format(*free_ports(1)))
