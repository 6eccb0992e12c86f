"""``key=value`` words of the command line, checked before anything is started."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pft_flower.algorithms import ALGORITHMS, check_graph
from p2pft_flower.algorithms.codecs import is_own_codec
from p2pft_flower.config import RunConfig, config_keys
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.flower.method import make_method
from p2pft_flower.flower.resume import (
    check_length,
    earlier_run,
    known_length,
    no_extension_alone,
    resumed_folder,
)
from p2pft_flower.flower.rounds import check_resumable
from p2pft_flower.flower.strategies import (
    is_strategy,
    make_strategy,
    refuse_method_keys,
    refuse_own_problem,
    unknown_algorithm,
)
from p2pft_flower.host.callbacks import require_watchers
from p2pft_flower.keeping.resuming import config_differences, refuse
from p2pft_flower.keeping.run_folders import find_run
from p2pft_flower.learning.settings import check_learning, require_here
from p2pft_flower.plugins import check_reference, is_reference
from p2pft_flower.report.results import FILE, read_results, runs_folder
from p2pft_flower.resources import resource_dir
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import is_own_schedule, scheduled

__all__ = [
    "check",
    "method_settings",
    "parse_settings",
    "read_value",
    "settings_of_resumed",
]


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the run-config values in ``key=value`` words, of the keys' types; texts need no quotes.

    Paths are made absolute.

    Raises
    ------
    ConfigError
        When a word has no ``=``, a key is unknown, or a value that must be a number (or true or false) is
        none.
    """
    keys = config_keys()
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            meant = f"; did you mean {word}=VALUE, without a blank?" if word in keys else ""
            raise ConfigError(f"{word!r} is not of the form key=value{meant}")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"unknown run-config key {key!r}: {hint}The keys are {', '.join(keys)}")
        values[key] = read_value(key, text)
    return {key: _absolute(key, value) for key, value in values.items()}


def _absolute(key: str, value: Any) -> Any:
    """Return ``value``, absolute if it is a path: the processes of a simulation run in another folder."""
    if not value or not isinstance(value, str):
        return value
    kind, colon, place = value.partition(":")
    if key == "dataset" and kind in ("folder", "features", "table"):
        return kind + colon + str(Path(place).expanduser().absolute())
    if key == "text-tower" and kind == "local-dir":
        return kind + colon + str(Path(place).expanduser().absolute())
    location, _, name = value.rpartition(":")
    if key in ("algorithm", "problem", "model", "dataset", "partition", "callbacks") and location.endswith(
        ".py"
    ):
        return f"{Path(location).expanduser().absolute()}:{name}"
    path = Path(value).expanduser()
    is_run = os.path.isdir(path / "peers")  # noqa: PTH112 - Path's own raises where a name is too long
    is_there = key == "resume" and os.path.lexists(path)
    is_path = {
        "data-dir": True,
        "output-dir": True,
        "resume": os.sep in value or is_run or (is_there and find_run(runs_folder(), value) is None),
        "topology": path.suffix in (".yaml", ".yml"),
        "text-embeddings": True,
        "class-names": True,
        "prompts": "{}" not in value and (os.sep in value or path.suffix == ".txt"),
        "weights": value not in ("pretrained", "none"),
    }
    return str(path.absolute()) if is_path.get(key, False) else value


def read_value(key: str, text: str) -> bool | int | float | str:
    """Return ``text`` as the type of the run-config key ``key``.

    Raises
    ------
    ConfigError
        When ``text`` is no value of this type.
    """
    wanted = type(config_keys()[key])
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key} = {text!r}: must be true or false")
        return text.lower() == "true"
    try:
        return wanted(text)  # type: ignore[no-any-return]  # a key's default is one of the four types
    except ValueError as error:
        kinds = {int: "a whole number", float: "a number"}
        raise ConfigError(f"{key} = {text!r}: must be {kinds[wanted]}") from error


def check(values: dict[str, Any], *, here: bool, any_graph: bool = False) -> tuple[RunConfig, Graph]:
    """Refuse settings whose faults show within a second, without starting anything or importing torch.

    Parameters
    ----------
    values : dict
        Run-config keys and values.
    here : bool
        Whether the peers run on this machine, so that the files, folders, modules and devices in the settings
        must be here. In a deployment the sites have their own.
    any_graph : bool, default False
        Whether a graph that the method refuses passes: if several methods are compared, the run of such a
        method fails with the reason.

    Returns
    -------
    config : RunConfig
        The settings.
    graph : Graph
        The graph, with the weights of ``schedule-graph`` unless that is a function of the user's own.

    Raises
    ------
    ConfigError, DataError, TopologyError
        When a setting is wrong; the same error as the coordinator or the peers would raise.
    """
    config = RunConfig.from_mapping(values)
    for key, value in values.items():
        if isinstance(value, str) and not _is_unicode(value):
            raise ConfigError(
                f"{key} = {value!r}: it is not UTF-8, which Flower's run-config needs; rename it"
            )
    no_extension_alone(config)
    graph, turns = Graph.load(config.runtime.topology), config.method.schedule_graph
    own_turns = is_own_schedule(turns)  # the coordinator's affair, which alone may import the module
    graph = graph if own_turns else scheduled(graph, turns)
    name = config.method.algorithm
    method = None
    if name in ALGORITHMS:
        method = make_method(config.method)
        if not any_graph and not own_turns:
            check_graph(method, graph)
    elif is_strategy(name):
        make_strategy(config.method, graph.n)
        refuse_method_keys(config.method, config.learning)
        refuse_own_problem(config)
        check_resumable(config)
    elif not is_reference(name):
        raise unknown_algorithm(name)
    if config.method.strategy_options and not is_strategy(name):
        raise ConfigError(f"strategy-options: algorithm {name!r} is no strategy of Flower")
    pooled = bool(getattr(method, "pooled", False))
    check_learning(config.learning, graph.n, pooled=pooled)
    _check_runtime(config, graph, here=here, pooled=pooled)
    if here:
        app = resource_dir("apps") / "p2pft"
        if is_reference(name) and name not in ALGORITHMS:
            check_reference(name, key="algorithm", beside=[app])  # the coordinator's only place for modules
        if own_turns:
            check_reference(turns, key="schedule-graph", beside=[app])
        if is_own_codec(config.method.codec):
            check_reference(config.method.codec, key="codec", beside=[app])
        require_here(config.learning, graph.n, [app, Path.cwd()])
        # With a strategy the coordinator has the callback, which looks for modules in the app only.
        require_watchers(config.runtime, [app, *(() if is_strategy(name) else (Path.cwd(),))])
    return config, graph


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_runtime(config: RunConfig, graph: Graph, *, here: bool, pooled: bool) -> None:
    """Refuse settings that a simulation (``here``) or a deployment cannot follow.

    Raises
    ------
    ConfigError
        When there is such a setting; the message names its key.
    """
    runtime = config.runtime
    if runtime.min_peers > graph.n:
        raise ConfigError(f"min-peers = {runtime.min_peers}: the graph {graph.name} has {graph.n} peers")
    if here and runtime.preflight_only:
        raise ConfigError(
            "preflight-only = true: a preflight looks at the links between SuperNodes of a deployment, and a "
            "simulation has none: p2pft preflight --connection …"
        )
    if not here and (pooled or (runtime.transport == "memory" and graph.n > 1)):
        raise ConfigError(
            "the peers run on separate SuperNodes, so their data cannot be pooled nor their payloads stay in "
            "memory: run algorithm = centralized and transport = memory in simulation"
        )


_OWN_TO_A_RUN = ("data-changed", "extend", "output-dir", "preflight-only", "resume")
"""Keys that a resumed run does not take from the earlier run."""


def settings_of_resumed(values: Mapping[str, Any], *, simulated: bool) -> dict[str, Any]:
    """Return ``values``, completed by the settings of the run that their ``resume`` names.

    ``values`` alone are returned if a run that is not simulated has no checkpoint on this machine.

    Parameters
    ----------
    values : mapping
        Run-config keys and values that the user gave, ``resume`` among them.
    simulated : bool
        Whether the run to be resumed must be on this machine; sites of a deployment have their own files.

    Raises
    ------
    ConfigError
        When a setting differs that must not (the message lists the differences); when a simulated run is not
        here; when the run has completed and is not to become longer.
    DataError
        When a folder of checkpoints cannot be read.
    """
    folder = resumed_folder(values["resume"])
    about = earlier_run(folder)
    if about is None:
        _refuse_completed(folder, values["resume"], values.get("extend", False))
        if simulated:
            named = not Path(values["resume"]).expanduser().is_absolute()
            if named and not folder.exists():
                raise ConfigError(
                    f"resume = {values['resume']!r}: there is no checkpoint in good state, as no run in "
                    f"{runs_folder()} has this id or name; a run that was made with --out, named or not, "
                    "lies in that folder alone: give it (--resume path/of/out), or set P2PFT_HOME if "
                    "the runs lie elsewhere"
                )
            raise ConfigError(
                f"resume = {values['resume']!r}: there is no checkpoint in good state in {folder}; give the "
                "id or name of a run in P2PFT_HOME, or the folder of one that has its own (--out)"
            )
        return dict(values)
    earlier = about.config
    differences = config_differences(earlier, {**earlier, **values})
    dropped = {*_OWN_TO_A_RUN, *(("iterations",) if "epochs" in values else ())}
    defaults = config_keys()
    kept = {k: v for k, v in earlier.items() if k in defaults and v != defaults[k] and k not in dropped}
    now = {**kept, **values}
    config = RunConfig.from_mapping(now)
    length = known_length(about, config)
    if length is None and not config.runtime.extend:
        differences.append(
            f"epochs: {about.iterations} iterations in the checkpoint, {config.runtime.epochs} epochs now "
            "(extend = true, or p2pft run --extend, lengthens a run; give iterations if it is as long)"
        )
    elif length is not None:
        differences += check_length(config, about.iterations, length)
    refuse(values["resume"], differences)
    _refuse_completed(folder, values["resume"], length != about.iterations)
    return now


def _refuse_completed(folder: Path, resume: str, longer: bool) -> None:
    """Refuse to resume a run that has completed, unless it is to become ``longer``: nothing would be done."""
    try:
        results = read_results(folder)
    except DataError:
        return  # it has left none, so there may be something to do
    if results["status"] == "completed" and not longer:
        raise ConfigError(
            f"resume = {resume!r}: that run has completed, {results['iterations']} iterations on all peers "
            f"(its results: {folder / FILE}), so nothing is left to train; p2pft run --resume {resume} "
            "--extend epochs=… or iterations=… lengthens it"
        )


def method_settings(common: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of the method ``name``, from the settings that several methods share.

    ``strategy-options`` are left out if the method is none of Flower's strategies.
    """
    dropped = () if is_strategy(name) else ("strategy-options",)
    return {**{k: v for k, v in common.items() if k not in dropped}, "algorithm": name}
