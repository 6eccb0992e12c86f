"""What a SuperNode's --node-config may say, and that it is obeyed."""

from __future__ import annotations

import json

import pytest
from flwr.common.config import parse_config_args

from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.flower.site import Site
from p2pft_flower.lab.ports import free_ports

from .engine import run_app

FULL = {
    "peer-id": 3,
    "peer-address": "ward-3.example:9000",
    "bind-address": "0.0.0.0:9000",
    "certificates": "/etc/p2pft/peer-3",
    "data-dir": "/data/ward",
    "output-dir": "/var/p2pft",
    "pixel-range": "-1000:400",
}


def test_every_key_is_read():
    assert Site.of(FULL) == Site(
        3,
        "ward-3.example:9000",
        "0.0.0.0:9000",
        "/etc/p2pft/peer-3",
        False,
        "/data/ward",
        "/var/p2pft",
        "-1000:400",
    )
    assert Site.of({"peer-id": 0, "insecure": True}) == Site(0, insecure=True)


@pytest.mark.parametrize(
    "text",
    [
        'peer-id=3 peer-address="ward-3.example:9000" bind-address="0.0.0.0:9000" '
        'certificates="/etc/p2pft/peer-3" data-dir="/data/ward" output-dir="/var/p2pft" '
        'pixel-range="-1000:400"',
        "peer-id=0 insecure=true output-dir='/with space/x'",
    ],
)
def test_the_text_of_a_node_config_is_read_as_flower_reads_it(text, tmp_path):
    assert Site.parse(text) == Site.of(parse_config_args([text]))
    file = tmp_path / "node.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in FULL.items()))
    assert Site.parse(str(file)) == Site.of(parse_config_args([str(file)])) == Site.of(FULL)


@pytest.mark.parametrize(
    "text",
    [
        'peer-id = 3 output-dir = "/var/p2pft"',
        "peer-id= 3 output-dir ='/var/p2pft'",
        'peer-id = 3\noutput-dir = "/var/p2pft"',
    ],
)
def test_spaces_around_the_sign_mean_what_they_mean_in_a_file(text):
    assert Site.parse(text) == Site(3, output_dir="/var/p2pft")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no peer-id"),
        ("peer-id=3 insecure", "'insecure' belongs to no pair of key and value; write pairs such as"),
        ("certificates peer-id=3", "'certificates' belongs to no pair"),
        ("3", "has no peer-id"),
        ("peer-id=three", "--node-config 'peer-id=three': .*write pairs such as"),
        ("/nowhere/node.toml", "/nowhere/node.toml cannot be read"),
        ("peerid=3", "did you mean 'peer-id'"),
    ],
)
def test_a_text_that_is_no_node_config_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        Site.parse(text)


def test_simulation_has_no_site():
    assert Site.of({}) is None
    assert Site.of({"partition-id": 0, "num-partitions": 2}) is None


@pytest.mark.parametrize(
    ("node_config", "says"),
    [
        ({"peer-id": 0, "peer-adress": "h:1"}, r"'peer-adress'.*did you mean 'peer-address'"),
        ({"peerid": 0}, r"'peerid'.*did you mean 'peer-id'"),
        ({"peer-address": "h:1"}, "has peer-address and no peer-id"),
        ({"peer-id": "0"}, r"peer-id = '0'.*type str, not a whole number"),
        ({"peer-id": True}, r"peer-id = True.*type bool, not a whole number"),
        ({"peer-id": -1}, r"peer-id = -1.*numbered from 0"),
        ({"peer-id": 0, "insecure": "yes"}, r"insecure = 'yes'.*not true or false"),
        ({"peer-id": 0, "insecure": 1}, r"insecure = 1.*type int"),
        ({"peer-id": 0, "data-dir": 7}, r"data-dir = 7.*not text in quotes"),
        ({"peer-id": 0, "peer-address": "nowhere"}, r"peer-address in --node-config: address 'nowhere'"),
        ({"peer-id": 0, "bind-address": "::1:80"}, "bind-address in --node-config"),
        ({"peer-id": 0, "peer-address": "h:0"}, r"peer-address = 'h:0'.*fixed one"),
        ({"peer-id": 0, "certificates": "/c", "insecure": True}, "exclude each other"),
        ({"peer-id": 0, "pixel-range": "0:4095,auto"}, r"pixel-range = '0:4095,auto': must be .*node-config"),
        ({"peer-id": 0, "pixel-range": "400:-1000"}, r"pixel-range = '400:-1000': must be auto or LOW:HIGH"),
    ],
)
def test_what_cannot_be_meant_is_refused(node_config, says):
    with pytest.raises(ConfigError, match=says):
        Site.of(node_config)


def test_a_sites_own_folders_win_over_the_run_configs(monkeypatch):
    site, learning = Site.of(FULL), LearningConfig(dataset="cifar10", data_dir="/elsewhere")
    assert site.with_own_data(learning).data_dir == "/data/ward"
    assert site.with_own_data(learning).pixel_range == "-1000:400"
    assert Site.of({"peer-id": 0}).with_own_data(learning) == learning
    assert Site(0).with_own_data(learning) == learning
    assert str(site.output_folder("17", "/from/the/coordinator")) == "/var/p2pft/17"
    assert str(Site(0).output_folder("17", "/from/the/coordinator")) == "/from/the/coordinator"
    monkeypatch.setenv("P2PFT_HOME", "/this/machines/home")
    assert str(Site(0).output_folder("17", "")) == "/this/machines/home/runs/17"
    assert str(Site(0).output_folder("17", "", "pets")) == "/this/machines/home/runs/pets-17"
    assert str(site.output_folder("17", "/from/the/coordinator", "pets")) == "/var/p2pft/pets-17"


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_logs_and_tails_lie_where_the_site_says(algorithm, tmp_path):
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "output-dir": str(tmp_path / f"site-{p}")}
        for p, port in enumerate(free_ports(2))
    ]
    run_app(
        tmp_path / "coordinator",
        slots=2,
        node_configs=nodes,
        topology="ring:2",
        partition="iid",
        epochs=1,
        algorithm=algorithm,
    )
    for p in range(2):
        (run,) = (tmp_path / f"site-{p}").iterdir()
        assert {f.name for f in (run / "peers").iterdir()} == {
            f"peer-{p}.jsonl",
            f"peer-{p}.safetensors",
            *([f"peer-{p}.checkpoints", f"peer-{p}.plan.json"] if algorithm == "p2pft" else []),
        }
    assert not (tmp_path / "coordinator" / "peers").exists()


def test_a_mistake_in_node_config_ends_the_run_before_training_and_names_the_peer(tmp_path):
    nodes = [{"peer-id": 0, "peer-address": "127.0.0.1:1"}, {"peer-id": 1, "data_dir": "/x"}]
    with pytest.raises(
        RunFailedError, match=r"peer 1 on .*: unknown key 'data_dir'.*did you mean 'data-dir'"
    ):
        run_app(tmp_path, slots=2, node_configs=nodes, topology="ring:2")


def test_a_run_config_has_no_key_of_a_sites_alone():
    shared = {"data-dir", "output-dir", "pixel-range"}
    assert shared <= RunConfig().to_mapping().keys()
    assert not (FULL.keys() | {"insecure"}) - shared & RunConfig().to_mapping().keys()


@pytest.mark.parametrize("run", ["../../etc/x", "/tmp/abs", "a/b", "", ".."])
def test_no_run_id_leads_out_of_the_sites_folder(run, tmp_path):
    site = Site(peer_id=0, output_dir=str(tmp_path))
    assert site.output_folder("12345", "") == tmp_path / "12345"
    with pytest.raises(ConfigError, match="run's id"):
        site.output_folder(run, "")
