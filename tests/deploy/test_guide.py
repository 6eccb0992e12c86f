"""deploy/: the guide's blocks are run as written, on one machine; what cannot be run here is checked."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from p2pft_flower.errors import P2PFTError
from p2pft_flower.lab.ports import free_ports
from tests.blocks import blocks_of
from tests.cli.real import environment, marked
from tests.flower.engine import run_app
from tests.flower.sameness import tails

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
GUIDE = (DEPLOY / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.text for block in blocks_of(DEPLOY / "README.md") if block.language == "bash"]


@pytest.fixture
def env(tmp_path):
    yield (env := environment(tmp_path))
    # A SuperNode's helper sees within seconds that its SuperNode has ended, and ends too.
    _, left = psutil.wait_procs(marked(env), timeout=30)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=20)
    assert not left, f"left running: {left}"


@pytest.mark.timeout(900)
def test_the_guide_can_be_followed_exactly_as_written_and_gives_the_simulations_theta(env, tmp_path):
    try:
        ports = map(str, free_ports(3, "127.0.0.1", "127.0.0.2", "127.0.0.3"))
    except P2PFTError:
        pytest.skip("no loopback addresses: 127.0.0.2 and 127.0.0.3 cannot be listened on")
    env |= dict(zip(("SUPERLINK_PORT", "SUPERNODE_PORT", "PEER_PORT"), ports, strict=True))
    env["OMP_NUM_THREADS"] = "1"
    folder = tmp_path / "guide"
    folder.mkdir()
    # One shell, as a reader has one; it ends at the first command that fails.
    script = "\n".join(f"echo '### block {i}'\n{block}" for i, block in enumerate(BLOCKS))
    with (folder / "said").open("w+") as said:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=840,
            check=False,
        )
        said.seek(0)
        assert done.returncode == 0, said.read() + (folder / "office" / "superlink.log").read_text()[-3000:]
    results = json.loads((folder / "office" / "first-run" / "results.json").read_text())
    assert results["status"] == "completed"
    assert results["hosts"] == [[0], [1], [2]]
    sites = []
    for p, site in enumerate(("north", "south", "east")):
        (peers,) = (folder / site / "results").glob("*/peers")
        kept = ("jsonl", "safetensors", "checkpoints", "plan.json")
        assert {f.name for f in peers.iterdir()} == {f"peer-{p}.{what}" for what in kept}
        sites.append(peers.parent)
    run_app(tmp_path / "simulated", topology="directed-ring:3", iterations=20)
    simulated = tails(tmp_path / "simulated", range(3))
    assert [tails(site, [p])[0] for p, site in enumerate(sites)] == simulated


@functools.cache
def options_of(program, *command):
    said = subprocess.run(
        [shutil.which(program), *command, "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    return set(re.findall(r"--[a-z][a-z-]+", said))


def commands():
    """Yield (where, words) of every command of Flower in the compose file and the systemd units."""
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        yield f"compose: {name}", service["command"]
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        text = unit.read_text().replace("\\\n", " ")
        (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
        yield unit.name, shlex.split(line)


@pytest.mark.parametrize(("where", "words"), [pytest.param(w, c, id=w) for w, c in commands()])
def test_the_programs_and_options_of_containers_and_services_exist(where, words):
    program = Path(words[0]).name
    assert program in ("flower-superlink", "flower-supernode", "p2pft")
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used
    assert used <= options_of(*([program, words[1]] if program == "p2pft" else [program]))


# The keys of the Compose specification that the file uses, and the type of each value.
SERVICE = {
    "image": str,
    "build": dict,
    "restart": str,
    "init": bool,
    "read_only": bool,
    "cap_drop": list,
    "security_opt": list,
    "tmpfs": list,
    "command": list,
    "environment": dict,
    "ports": list,
    "volumes": list,
    "depends_on": list,
}


def test_the_compose_file_keeps_to_the_specification():
    """Docker is not needed for this, and was not run: keys, types, volumes and build context are checked."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes"}
    for service in compose["services"].values():
        for key, value in service.items():
            assert isinstance(value, SERVICE[key]), key
        assert all(other in compose["services"] for other in service.get("depends_on", ()))
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert source in compose["volumes"] or source.startswith("./")
            assert target.startswith("/")
    context = DEPLOY / compose["x-p2pft"]["build"]["context"]
    assert (context / compose["x-p2pft"]["build"]["dockerfile"]).is_file()
    assert (context / "pyproject.toml").is_file()


def test_node_configs_in_the_compose_file_are_what_a_site_may_say():
    from flwr.common.config import parse_config_args

    from p2pft_flower.flower.site import Site

    told = [word for _, words in commands() for word in words if word.startswith("--node-config=")]
    sites = [Site.of(parse_config_args([word.partition("=")[2]])) for word in told]
    assert [site.peer_id for site in sites] == [0, 1, 2]
    assert all(site.bind_address == "0.0.0.0:9000" for site in sites)


def test_every_key_of_a_node_config_is_in_the_guide():
    import dataclasses

    from p2pft_flower.flower.site import Site

    keys = {field.name.replace("_", "-") for field in dataclasses.fields(Site)}
    assert keys == set(re.findall(r"^\| `([a-z-]+)` \|", GUIDE, re.MULTILINE))


def test_the_units_are_sections_of_keys_and_point_to_the_guides_files():
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        text = unit.read_text().replace("\\\n", " ")
        assert re.findall(r"^\[(\w+)\]$", text, re.MULTILINE) == ["Unit", "Service", "Install"]
        for line in filter(None, text.splitlines()):
            assert re.match(r"^(\[\w+\]|#.*|[A-Z]\w+=.+)$", line), line
