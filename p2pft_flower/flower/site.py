"""A site's own settings, in its SuperNode's ``--node-config``; no coordinator can override them."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from p2pft_flower.config import LearningConfig, read_range
from p2pft_flower.errors import ConfigError
from p2pft_flower.flower.metrics import require_metrics
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.keeping.rejoining import interrupted, last_place
from p2pft_flower.keeping.run_folders import Found, find_run, folder_name
from p2pft_flower.learning.data.dataset_names import refuse_data_dir
from p2pft_flower.report.results import default_output_dir, runs_folder
from p2pft_flower.transport import Credentials, parse_address

__all__ = ["FLOWERS", "Site"]

_PAIR = re.compile(r"(\S+?)\s*=\s*('[^']*'|\"[^\"]*\"|\S+)")
"""A key and its value, as Flower finds them in ``--node-config`` but for the spaces around ``=``."""

MAX_SITE_NAME = 64
"""The most characters of a site's name."""

FLOWERS = frozenset({"partition-id", "num-partitions"})
"""Keys that Flower sets itself, in simulation."""


@dataclass(frozen=True)
class Site:
    """The settings of one site, whose SuperNode runs one peer.

    Parameters
    ----------
    peer_id : int
        ``peer-id``: the number of the site's peer.
    peer_address : str
        ``peer-address``: the address that its neighbours connect to, ``"host:port"`` (IPv6 in brackets);
        default empty: the topology's.
    bind_address : str
        ``bind-address``: the address that the peer listens on, if it is not ``peer-address`` (NAT,
        containers), such as ``"0.0.0.0:9000"``; default empty: ``peer-address``.
    certificates : str
        ``certificates``: the peer's folder with ca.pem, peer.pem and peer.key; default empty: none.
    insecure : bool
        ``insecure``: plain text may be sent and taken in beyond this machine; default false.
    data_dir : str
        ``data-dir``: the folder of the images, instead of the run-config's; default empty: the run-config's.
    output_dir : str
        ``output-dir``: the folder in which each run gets one of its own for logs and tails, named by the
        run's name and id; default empty: the run-config's, and if that is empty too, ``runs`` in
        ``$P2PFT_HOME``.
    pixel_range : str
        ``pixel-range``: ``auto`` or ``LOW:HIGH``, black and white of this site's images, instead of the
        run-config's; default empty: the run-config's.
    text_embeddings : str
        ``text-embeddings``: the file of text embeddings here, instead of the run-config's and of its text
        tower; default empty: the run-config's.
    site_name : str
        ``site-name``: the site's name for people, in messages, logs and tables; default empty: the name that
        the graph gives its peer.
    metrics_address : str
        ``metrics-address``: ``host:port`` at which Prometheus finds the site's numbers while its peer trains;
        default empty: they are served nowhere.

    Raises
    ------
    ConfigError
        When a value cannot be used; the message names the key and the right values.
    """

    peer_id: int
    peer_address: str = ""
    bind_address: str = ""
    certificates: str = ""
    insecure: bool = False
    data_dir: str = ""
    output_dir: str = ""
    pixel_range: str = ""
    text_embeddings: str = ""
    site_name: str = ""
    metrics_address: str = ""

    def __post_init__(self) -> None:
        if self.peer_id < 0:
            raise ConfigError(f"peer-id = {self.peer_id} in --node-config: peers are numbered from 0")
        for key, address in (("peer-address", self.peer_address), ("bind-address", self.bind_address)):
            if not address:
                continue
            try:
                parsed = parse_address(address)
            except ConfigError as error:
                raise ConfigError(f"{key} in --node-config: {error}") from error
            if parsed.path is None and parsed.port == 0:
                raise ConfigError(
                    f"{key} = {address!r} in --node-config: neighbours cannot know which port is chosen for "
                    "port 0; give a fixed one"
                )
        if self.pixel_range:
            try:
                read_range(self.pixel_range)
            except ConfigError as error:
                raise ConfigError(f"{error} (in --node-config)") from error
        name = self.site_name
        if name and not (name.isprintable() and name == name.strip() and len(name) <= MAX_SITE_NAME):
            raise ConfigError(
                f"site-name = {name!r} in --node-config: give printable text of at most {MAX_SITE_NAME} "
                "characters, without spaces around it"
            )
        if self.metrics_address:
            require_metrics(self.metrics_address)
        if self.certificates and self.insecure:
            raise ConfigError(
                "certificates and insecure = true in --node-config exclude each other: leave insecure out to "
                "use the certificates, or certificates to send in plain text"
            )

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Site | None:
        """Return the site that a SuperNode's node-config describes.

        None if the node-config has no keys but Flower's own, as in simulation.

        Parameters
        ----------
        node_config : mapping of str to bool, int, float or str
            ``context.node_config``.

        Raises
        ------
        ConfigError
            When a key is unknown, ``peer-id`` is missing, or a value has another type or cannot be used.
        """
        known = {f.name.replace("_", "-"): f for f in fields(cls)}
        given = {key: value for key, value in node_config.items() if key not in FLOWERS}
        if not given:
            return None
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(
                    f"unknown key {key!r} in --node-config: {hint}The keys are {', '.join(known)}"
                )
        if "peer-id" not in given:
            raise ConfigError(f"--node-config has {', '.join(sorted(given))} and no peer-id: give it, from 0")
        for key, value in given.items():
            default = known[key].default
            kind = int if default is MISSING else type(default)
            if type(value) is not kind:  # a bool is no int here
                form = {int: "a whole number", bool: "true or false", str: "text in quotes"}[kind]
                raise ConfigError(
                    f"{key} = {value!r} in --node-config is of type {type(value).__name__}, not {form}"
                )
        return cls(**{known[key].name: value for key, value in given.items()})

    @classmethod
    def parse(cls, text: str) -> Site:
        """Return the site that a SuperNode's ``--node-config`` describes.

        Parameters
        ----------
        text : str
            Pairs ``key=value``, also with spaces around ``=``, or the path of a TOML file, which ends in
            ``.toml``.

        Raises
        ------
        ConfigError
            When the text or the file cannot be read, has no ``peer-id``, or has a word that belongs to no
            pair, and when :meth:`of` raises it.
        """
        try:
            if text.endswith(".toml"):
                pairs = Path(text).expanduser().read_text(encoding="utf-8")
            else:
                pairs = _lines(text)
            given = tomllib.loads(pairs)
        except OSError as error:
            raise ConfigError(f"--node-config: {text} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(
                f'--node-config {text!r}: {error}; write pairs such as peer-id=3 certificates="/etc/p2pft"'
            ) from error
        site = cls.of(given)
        if site is None:
            raise ConfigError(f"--node-config {text!r} has no peer-id: give the text that the SuperNode has")
        return site

    def with_own_data(self, learning: LearningConfig) -> LearningConfig:
        """Return ``learning`` with this site's own folder of images and pixel range, if the site sets them.

        Raises
        ------
        ConfigError
            When the dataset does not read a ``data-dir``, or the site sets ``pixel-range`` for a problem of
            the user's own.
        """
        if not learning.problem:
            refuse_data_dir(learning.dataset, self.data_dir, " in --node-config")
        elif self.pixel_range:
            raise ConfigError(
                f"pixel-range = {self.pixel_range!r} in --node-config with problem = {learning.problem!r}: a "
                "problem of one's own reads its data itself; leave it out"
            )
        return replace(
            learning,
            data_dir=self.data_dir or learning.data_dir,
            pixel_range=self.pixel_range or learning.pixel_range,
            text_embeddings=self.text_embeddings or learning.text_embeddings,
        )

    def credentials(self) -> Credentials | None:
        """Return the peer's certificates, checked; None if the site has none.

        Raises
        ------
        ConfigError
            When the certificates cannot be used; the message names file and remedy.
        """
        return (
            Credentials.load(Path(self.certificates).expanduser(), self.peer_id)
            if self.certificates
            else None
        )

    def access(self) -> Access:
        """Return the address that this site's peer listens on, and the certificates that it shows.

        Raises
        ------
        ConfigError
            When :meth:`credentials` raises it.
        """
        return Access(self.credentials(), self.insecure, self.bind_address)

    def output_folder(self, run: str, chosen: str, name: str = "") -> Path:
        """Return the folder for logs and tails of ``run`` on this machine.

        Parameters
        ----------
        run : str
            The run's id.
        chosen : str
            The run-config's ``output-dir``, which counts if the site has none; empty: this machine's default.
        name : str
            The run-config's ``name``; default none.

        Raises
        ------
        ConfigError
            When the run's id is no plain name, so that it could lead out of the folder.
        """
        self._check_id(run)
        if self.output_dir:
            return Path(self.output_dir).expanduser() / folder_name(run, name)
        return Path(chosen).expanduser() if chosen else default_output_dir(run, name)

    def found(self, wanted: str) -> Found:
        """Return the run on this machine that has the id or the name ``wanted``.

        If there is none among the site's runs, it is the one that a killed process of this peer was in, in a
        folder that the run-config may have chosen. Else ``wanted`` is taken for an id, and the folder is the
        one that the run would have.

        Raises
        ------
        ConfigError
            When ``wanted`` is no plain name.
        """
        self._check_id(wanted)
        above = self._runs()
        return find_run(above, wanted) or last_place(self.peer_id, wanted) or Found(wanted, above / wanted)

    def interrupted(self, folder: Path | None = None) -> Found | str:
        """Return what :func:`~p2pft_flower.keeping.rejoining.interrupted` finds among the site's runs.

        Parameters
        ----------
        folder : Path, optional
            The run's own folder, where the run-config chose it.
        """
        return interrupted(self._runs(), self.peer_id, folder)

    def _runs(self) -> Path:
        return Path(self.output_dir).expanduser() if self.output_dir else runs_folder()

    def writable_folder(self, run: str, chosen: str, name: str = "") -> Path:
        """Return :meth:`output_folder`, after a check that files can be written to it.

        Raises
        ------
        ConfigError
            When nothing can be written to the folder, and when :meth:`output_folder` raises it.
        """
        folder = self.output_folder(run, chosen, name)
        named = f"output-dir = {self.output_dir!r} in --node-config" if self.output_dir else "output-dir"
        require_writable(
            named,
            folder,
            "choose another output-dir in --node-config, or another P2PFT_HOME of the SuperNode",
        )
        return folder

    def resumed_folder(self, resume: str) -> Path:
        """Return the folder with logs and checkpoints, on this machine, of the run to be resumed.

        Parameters
        ----------
        resume : str
            The run-config's ``resume``: the run's id or name, or, if this site has no ``output-dir`` of its
            own, the folder's absolute path.

        Raises
        ------
        ConfigError
            When ``resume`` is an absolute path, but this site has an ``output-dir`` of its own; when it is
            neither an absolute path nor a plain name.
        """
        if not (path := Path(resume).expanduser()).is_absolute():
            return self.found(resume).folder
        if self.output_dir:
            raise ConfigError(
                f"resume = {resume!r}: this site keeps its runs by their ids in its own output-dir; give the "
                "run's id"
            )
        return path

    @staticmethod
    def _check_id(run: str) -> None:
        if not re.fullmatch(r"[\w-]{1,64}", run, re.ASCII):
            raise ConfigError(f"run {run[:64]!r}: a run's id has letters, digits, - and _ only")


def _lines(text: str) -> str:
    """Return the pairs of a ``--node-config``, one a line of TOML.

    Raises
    ------
    ValueError
        When a word belongs to no pair: its key would be left out silently.
    """
    found = _PAIR.findall(text)
    if found and (odd := _PAIR.sub(" ", text).split()):
        raise ValueError(f"{' '.join(odd)!r} belongs to no pair of key and value")
    return "\n".join(f"{key} = {value}" for key, value in found)
