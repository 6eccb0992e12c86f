"""Pages that say what the code says: which versions meet, which numbers are served, keys, public names."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import msgspec
import pytest
import yaml

import p2pft_flower
import p2pft_flower.algorithms
import p2pft_flower.topology
from p2pft_flower.config import RunConfig, config_keys
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import metrics
from p2pft_flower.flower.site import Site
from p2pft_flower.keeping import checkpoints
from p2pft_flower.keeping.lines import read_line
from p2pft_flower.learning import exports
from p2pft_flower.learning.store import trunk_store
from p2pft_flower.learning.workload import TAIL_SCHEMA
from p2pft_flower.plan import Plan
from p2pft_flower.report import results
from p2pft_flower.report.status import status_of
from p2pft_flower.transport import endpoint
from tests.report.test_status import bulletin, peer
from tools.site_pages import API, settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
UPGRADE = (DOCS / "upgrade.md").read_text(encoding="utf-8")


def words_of_the_page() -> list[re.Pattern[str]]:
    """Return the words in the last column of the page's table; ``…`` stands for any text."""
    rows = re.findall(r"^\| (?!what meets|---).* \| (`.*) \|$", UPGRADE, re.MULTILINE)
    quoted = [words for row in rows for words in re.findall(r"`([^`]*)`", row)]
    return [re.compile(".*".join(map(re.escape, words.split("…")))) for words in quoted]


def write_results(folder: Path) -> None:
    (folder / results.FILE).write_text('{"schema": "p2pft.results/0"}')
    results.read_results(folder)


def read_checkpoint(folder: Path) -> None:
    text = msgspec.json.encode({"schema": "p2pft.checkpoint/1"}).decode()
    checkpoints._document(text, folder / "iteration-1.safetensors")


@pytest.mark.parametrize(
    "meet",
    [
        lambda folder: Plan.from_json('{"schema": "p2pft.plan/0", "digest": "", "plan": {}}'),
        lambda folder: RunConfig.from_mapping({"learning-rte": 1.0}),
        write_results,
        read_checkpoint,
        lambda folder: read_line(b'{"event":"start"}\n', folder / "peer-0.jsonl"),
    ],
    ids=["plan", "run-config", "results", "checkpoint", "journal"],
)
def test_what_meets_another_version_is_refused_with_the_words_of_the_page(meet, tmp_path: Path) -> None:
    with pytest.raises(P2PFTError) as refused:
        meet(tmp_path)
    assert any(words.search(str(refused.value)) for words in words_of_the_page()), refused.value


def test_the_page_on_upgrades_has_every_schema_that_is_compared() -> None:
    schemas = [
        checkpoints.SCHEMA,
        results.SCHEMA,
        TAIL_SCHEMA,
        exports.SCHEMA,
        trunk_store.SCHEMA,
        "p2pft.plan/1",
    ]
    assert [name for name in (*schemas, endpoint.EXCHANGE) if name not in UPGRADE] == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("flower/run.py", "install the same versions"),
        ("flower/client.py", "not the versions that the run began with: "),
        ("flower/resume.py", "it goes on, but not bit for bit"),
        ("keeping/checkpoints.py", "the method was changed; "),
        ("transport/calls.py", "its host speaks another version of the peers' protocol than "),
    ],
)
def test_words_that_need_two_versions_stand_in_the_code_and_on_the_page(module: str, words: str) -> None:
    source = (DOCS.parent / "p2pft_flower" / module).read_text(encoding="utf-8")
    assert words in source
    assert words in UPGRADE


def test_the_page_on_monitoring_has_every_number_that_a_site_serves() -> None:
    told = bulletin(peer(0), peer(1), written=0.0)
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics._families(status_of([told], 0.0))
    }
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(p2pft_\w+)` \|", text, re.MULTILINE)) == served
    assert len(served) > 10
    (rules,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (group,) = yaml.safe_load(rules)["groups"]
    for rule in group["rules"]:
        assert set(re.findall(r"p2pft_\w+", rule["expr"])) <= served


def test_the_page_of_settings_has_every_key_and_the_values_of_those_with_bounds() -> None:
    page = settings()
    keys = [*config_keys(), *(name.replace("_", "-") for name in Site.__dataclass_fields__)]
    assert re.findall(r"^### `([a-z-]+)`$", page, re.MULTILINE) == keys
    assert "### `codec-step`\n\na number from 0 to 1 · default `0.0`\n" in page
    assert '### `on-failure`\n\n`continue` \\| `wait` \\| `stop` · default `"continue"`\n' in page
    assert "### `peer-id`\n\na whole number · default none, it must be given\n" in page
    assert "``" not in page.replace("`````", "")
    assert not re.search(r":\w+:`", page)


def test_the_page_of_the_api_has_every_public_name_and_each_is_there() -> None:
    names = [name for part in API.values() for name in part]
    assert len(set(names)) == len(names)
    for name in names:
        assert pkgutil.resolve_name(name) is not None
    for package in (p2pft_flower, p2pft_flower.topology, p2pft_flower.algorithms):
        for public in set(package.__all__) - {"__version__"}:
            thing = getattr(package, public)
            assert any(pkgutil.resolve_name(name) is thing for name in names), f"{package.__name__}.{public}"
