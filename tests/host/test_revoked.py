"""A peer whose certificate is revoked while a run lasts: the others go on without it, and nobody restarts."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.wires import Access
from p2pft_flower.transport.trust import revocation
from p2pft_flower.transport.trust.authority import renew
from p2pft_flower.transport.trust.revoking import revoke
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire.errors import RevokedError
from tests.transport.federation import Federation

from .hosts import best, events, tcp, until

PATIENT = {"peer-timeout": 48.0, "hang-timeout": 60.0}
"""Nobody is given up for its silence while a test runs."""


@pytest.fixture
def north(tmp_path, monkeypatch):
    monkeypatch.setattr(revocation, "LOOK", 0.05)
    return Federation(tmp_path / "north")


def publish(north, folders):
    for folder in folders:
        part = folder / "crl.pem.part"
        part.write_bytes((north.authority / "crl.pem").read_bytes())
        part.replace(folder / "crl.pem")


def test_a_revoked_peer_is_left_by_all_others_and_rejoins_with_a_later_certificate(
    federation, north, tmp_path
):
    net = federation(tcp(), iterations=200, **PATIENT)
    own = {p: north[p] for p in range(4)}
    begun = threading.Event()
    runs = [
        net.start(p, hook=lambda p, drawn: drawn > 20 and p == 2 and begun.set(), access=Access(own[p]))
        for p in range(4)
    ]
    assert begun.wait(60)
    revoke(north.authority, holder=2)
    publish(north, [own[p].folder for p in (0, 1, 3)])
    with pytest.raises(RevokedError, match="the certificate of peer 2 was revoked on "):
        runs[2].result(60)
    until(lambda: all(net.view_of(p) == 1 for p in (0, 1, 3)))
    for p in (0, 1, 3):
        until(lambda p=p: events(tmp_path, p, "view"))
        (view,) = events(tmp_path, p, "view")
        assert (view["peers"], view["lost"]) == ([0, 1, 3], [2])
        if p != 0:  # a neighbour of peer 2
            assert "revoked: the certificate of peer 2 was" in view["why"]["2"]
    renew(north.authority, own[2].folder)
    access = Access(Credentials.load(own[2].folder, 2))
    runs[2] = net.start(2, joining=True, hook=lambda *_: net.all_there.set(), access=access)
    for run in runs:
        (outcome,) = run.result(100)
        assert outcome.iterations == 200
    for p in range(4):
        assert events(tmp_path, p, "view")[-1]["peers"] == [0, 1, 2, 3]
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3


def test_a_peer_that_was_revoked_before_ends_the_run_by_name_before_its_first_iteration(
    federation, north, tmp_path
):
    net = federation(tcp(), iterations=150, **PATIENT)
    own = {p: north[p] for p in range(4)}
    revoke(north.authority, holder=2)
    publish(north, [own[p].folder for p in (0, 1, 3)])
    runs = [net.start(p, access=Access(own[p])) for p in range(4)]
    told = []
    for run in runs:
        with pytest.raises(P2PFTError) as ended:
            run.result(60)
        told.append(str(ended.value))
    assert any("the certificate of peer 2 was revoked on " in text for text in told)
    assert not [p for p in range(4) if events(tmp_path, p, "iteration")]
