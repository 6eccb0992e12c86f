"""A revoked certificate: refused at its next message by all others, without a restart; over real sockets."""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from p2pft_flower.errors import Cause, ConfigError
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.transport import (
    Credentials,
    ExchangeRefusedError,
    Gossip,
    Links,
    Loss,
    Mailbox,
    ObserverClient,
    ObserverServer,
    PeerReport,
    PeerServer,
    PeerUnreachableError,
    Prober,
    Status,
    Terms,
    digest_of,
    new_key,
    stop_run,
)
from p2pft_flower.transport.trust import revocation
from p2pft_flower.transport.trust.authority import create_authority, load_authority, renew
from p2pft_flower.transport.trust.certificates import Identity, read_certificate, target_name
from p2pft_flower.transport.trust.revocation import Revocations, read_lists
from p2pft_flower.transport.trust.revoking import revoke
from p2pft_flower.transport.wire.errors import RevokedError
from tests.transport.beating import Beating
from tests.transport.federation import Clock, Federation
from tests.transport.test_tls import calling, hello, payload, stop
from tests.transport.wire import PATIENCE, gossip_with

TERMS = Terms("run", 8)


@pytest.fixture(autouse=True)
def looking_always(monkeypatch):
    """The file is looked at by every call, so that no test waits for a second to pass."""
    monkeypatch.setattr(revocation, "LOOK", 0.0)


@pytest.fixture
def north(tmp_path):
    return Federation(tmp_path)


def publish(north, *sites):
    """Copy the authority's list into sites' folders, whole at once."""
    for site in sites:
        part = site.folder / "crl.pem.part"
        part.write_bytes((north.authority / "crl.pem").read_bytes())
        part.replace(site.folder / "crl.pem")


@contextmanager
def serving(own, on_gossip=None):
    """Peer 1: it receives from 0, sends to 2, and gossips with 0 to 3."""
    mailbox = Mailbox(TERMS, [(0, 1)])
    with PeerServer(
        mailbox,
        {1: "127.0.0.1:0"},
        out_edges=[(1, 2)],
        on_gossip=on_gossip or (lambda gossip: Gossip()),
        members=frozenset(range(4)),
        credentials=own,
    ) as server:
        yield server.bound_addresses[1]


# As a server


CALLS = {
    "Deliver": payload(0),
    "HandOver": (b"",),
    "Hello": (hello(0),),
    "Stop": (stop(0),),
    "Gossip": (Gossip(run="run", sender=0, receiver=1).SerializeToString(),),
    "Look": (b"",),
    "Fetch": (b"",),
}
"""A call of each method of the exchange."""


def refusal(call, method):
    """Call a method, see it refused for a revocation, and return the reason."""
    answer = call(method, *CALLS[method])
    if method in ("Gossip", "Look"):  # which have status and reason in fields of other numbers
        answer = Gossip.FromString(answer.SerializeToString())
    assert answer.status == Status.REVOKED
    return answer.reason


@pytest.mark.parametrize("method", CALLS)
def test_a_revoked_peer_is_refused_at_its_next_message_on_a_connection_that_is_open(north, method, caplog):
    own, other = north[1], north[0]
    with serving(own) as address, calling(address, other) as call:
        before = call("Hello", hello(0))
        assert before.status == Status.ACCEPTED
        revoke(north.authority, [other.folder])
        assert call("Hello", hello(0)).status == Status.ACCEPTED  # this site has no list yet
        publish(north, own)
        answer = refusal(call, method)
        assert "the certificate of peer 0 was revoked on " in answer
        assert f"serial {other.facts.serial:X}" in answer
        assert "needs one that was issued later" in answer
        with calling(address, other) as new_one:
            assert refusal(new_one, "Hello")
        with calling(address, north[2]) as neighbour:
            assert neighbour("Hello", hello(2)).status == Status.ACCEPTED
    assert "the certificate of peer 0 (serial" in caplog.text


def test_an_earlier_certificate_of_a_revoked_holder_is_refused_too_and_a_later_one_is_not(north):
    own, old, newer = north[1], north[0], north[0]
    revoke(north.authority, [old.folder])
    publish(north, own)
    later = north[0]
    assert (newer.facts.generation, later.facts.generation) == (0, 1)
    with serving(own) as address:
        for refused in (old, newer):
            with calling(address, refused) as call:
                answer = refusal(call, "Hello")
                assert f"serial {refused.facts.serial:X}" in answer
        with calling(address, later) as call:
            assert call("Hello", hello(0)).status == Status.ACCEPTED


def test_a_coordinator_whose_certificate_was_revoked_stops_no_run(north):
    own, key = north[1], new_key()
    coordinator = Credentials.load(north.coordinator(), "coordinator")
    stops = []
    with PeerServer(
        Mailbox(TERMS, [(0, 1)]),
        {1: "127.0.0.1:0"},
        on_stop=stops.append,
        stop_digest=digest_of(key),
        credentials=own,
    ) as server:
        revoke(north.authority, holder="coordinator")
        publish(north, own)
        why = stop_run("run", key, {1: server.bound_addresses[1]}, "enough", coordinator, timeout=PATIENCE)
    assert "the certificate of the coordinator was revoked on " in why[1]
    assert stops == []


# As a client


def test_nothing_is_sent_any_more_to_a_peer_that_was_revoked_though_the_connection_is_open(north):
    own, other, heard = north[0], north[1], []
    with (
        serving(other, lambda gossip: heard.append(gossip) or Gossip()) as address,
        Links(TERMS, {1: address}, [(0, 1)], credentials=own, timeout=PATIENCE) as links,
    ):
        assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), Gossip)
        links.send(0, 0, 0, np.zeros(8, np.float32))
        links.flush(PATIENCE)
        revoke(north.authority, [other.folder])
        publish(north, own)
        told = gossip_with(links, 1, Gossip(sender=0), PATIENCE)
        assert isinstance(told, PeerUnreachableError)
        assert "the certificate of peer 1 was revoked on " in str(told)
        links.send(0, 0, 1, np.zeros(8, np.float32))
        with pytest.raises(PeerUnreachableError, match="the certificate of peer 1 was revoked on "):
            links.flush(PATIENCE)
    assert len(heard) == 1


def test_an_answer_that_comes_after_the_revocation_is_void_and_a_call_under_way_is_cut(north):
    own, other = north[0], north[1]
    begun, go_on = threading.Event(), threading.Event()

    def slowly(_):
        begun.set()
        assert go_on.wait(PATIENCE)
        return Gossip()

    with (
        serving(other, slowly) as address,
        Links(TERMS, {1: address}, [(0, 1)], credentials=own) as links,
    ):
        first = links.start_gossip(1, Gossip(sender=0), PATIENCE)
        assert begun.wait(PATIENCE)
        revoke(north.authority, [other.folder])
        publish(north, own)
        go_on.set()
        assert "is void: the certificate of peer 1 was revoked on " in str(first.result(PATIENCE))
    later, second = north[1], north[2]
    begun.clear()
    go_on.clear()
    with (
        serving(later, slowly) as address,
        Links(TERMS, {1: address}, [(2, 1)], credentials=second) as links,
    ):
        first = links.start_gossip(1, Gossip(sender=2), PATIENCE)
        assert begun.wait(PATIENCE)
        revoke(north.authority, [later.folder])
        publish(north, second)
        assert isinstance(gossip_with(links, 1, Gossip(sender=2), PATIENCE), PeerUnreachableError)
        assert "was cut: the certificate of peer 1 was revoked on " in str(first.result(PATIENCE))
        go_on.set()


def test_a_peer_with_a_later_certificate_is_reached_by_those_with_the_list_and_those_without(north):
    with_list, without = north[0], north[2]
    revoke(north.authority, [north.issue(1)])
    publish(north, with_list)
    with serving(north[1]) as address:
        for me, own in ((0, with_list), (2, without)):
            with Links(TERMS, {1: address}, [(me, 1)], credentials=own) as links:
                assert isinstance(gossip_with(links, 1, Gossip(sender=me), PATIENCE), Gossip)


def test_who_meets_a_revoked_peer_says_so_at_once(north):
    own, other = north[0], north[1]
    revoke(north.authority, [other.folder])
    publish(north, own)
    with serving(other) as address, Links(TERMS, {1: address}, [(0, 1)], credentials=own) as links:
        with pytest.raises(ExchangeRefusedError, match=r"no TLS with peer 1 at .* was revoked on "):
            links.meet(PATIENCE)
        assert "was revoked on" in links.no_tls_with(1)


def test_the_revoked_peer_learns_it_by_name_and_the_others_go_on_without_it(north):
    own, other = north[1], north[0]
    revoke(north.authority, [other.folder])
    publish(north, own)
    with serving(own) as address, Links(TERMS, {1: address}, [(0, 1)], credentials=other) as links:
        told = gossip_with(links, 1, Gossip(sender=0), PATIENCE)
        assert isinstance(told, RevokedError)
        assert told.cause is Cause.OWN
        assert "the certificate of peer 0 was revoked on " in str(told)


def first_absence(beats, remote):
    """Ask until a neighbour is lost; a broken test asks to the end."""
    end, never = time.monotonic() + PATIENCE / 2, threading.Event()
    while (lost := beats.absence(remote)) is None:
        assert time.monotonic() < end
        never.wait(0.02)
    return lost


def test_a_revoked_neighbour_is_lost_at_once_by_name(north):
    addresses = free_addresses(2)
    own = [north[0], north[1]]
    with (
        Beating(0, [(0, 1), (1, 0)], addresses, own[0]) as zero,
        Beating(1, [(0, 1), (1, 0)], addresses, own[1]) as one,
    ):
        zero.beats.start()
        one.beats.start()
        zero.wait_until(lambda gossip: gossip.sender == 1)
        assert zero.beats.absence(1) is None
        revoke(north.authority, [own[1].folder])
        publish(north, own[0])
        assert zero.links.revoked(1) is not None
        zero.beats.heard(1)  # a payload that was in the inbox when the list came
        lost = first_absence(zero.beats, 1)
        with pytest.raises(RevokedError, match="the certificate of peer 1 was revoked on "):
            first_absence(one.beats, 0)  # its own gossip has told it
    assert lost.how is Loss.REVOKED
    assert lost.lost == 1
    assert str(lost).startswith("peer 0, edge ")
    assert "peer 1 is lost (revoked): the certificate of peer 1 was revoked on " in str(lost)


def test_a_neighbour_that_has_a_later_certificate_is_not_lost_when_the_list_comes(north):
    addresses, edges = free_addresses(2), [(0, 1), (1, 0)]
    own, old = north[0], north[1]
    revoke(north.authority, [old.folder])
    later = north[1]
    with Beating(0, edges, addresses, own) as zero, Beating(1, edges, addresses, later) as one:
        zero.beats.start()
        one.beats.start()
        zero.wait_until(lambda gossip: gossip.sender == 1)
        zero.beats.interval, one.beats.interval = PATIENCE, 0.1
        publish(north, own)
        assert zero.links.revoked(1) is not None
        assert zero.beats.absence(1) is None, "it has not had the time to speak"
        zero.beats.interval = 0.1
        end, never = time.monotonic() + PATIENCE, threading.Event()
        while zero.beats.revoked(1):  # until it has spoken
            assert time.monotonic() < end
            never.wait(0.02)
        never.wait(3 * zero.beats.interval)  # longer than a neighbour has to speak
        assert zero.beats.absence(1) is None


# Observer and probe


def test_an_observer_and_its_peers_refuse_each_other_once_either_is_revoked(north, caplog):
    office, own, third = Credentials.load(north.coordinator(), "coordinator"), north[1], north[2]
    seen, came = [], threading.Semaphore(0)

    def on_report(report):
        seen.append(report.iteration)
        came.release()

    def report(client, iteration):
        client.report(PeerReport(run="r", peer=1, iteration=iteration))

    with ObserverServer("127.0.0.1:0", on_report, credentials=office) as server:
        with ObserverClient(server.address, credentials=own) as client:
            report(client, 1)
            assert came.acquire(timeout=PATIENCE)
            revoke(north.authority, holder=1)
            publish(north, office)
            report(client, 2)
            client.close(PATIENCE)
        assert client.dropped == 1
        assert "REVOKED: the certificate of peer 1 was revoked on" in caplog.text
        with ObserverClient(server.address, credentials=third, timeout=PATIENCE) as client:
            client.report(PeerReport(run="r", peer=2, iteration=3))
            assert came.acquire(timeout=PATIENCE)
            client._timeout = 1.0  # of the next one, which nobody takes
            revoke(north.authority, holder="coordinator")
            publish(north, third)
            client.report(PeerReport(run="r", peer=2, iteration=4))
            client.close(PATIENCE)
        assert client.dropped == 1
    assert seen == [1, 3]


def test_a_preflight_names_the_revoked_peer_on_both_sides(north):
    addresses = free_addresses(2)
    own, other = north[0], north[1]
    revoke(north.authority, [other.folder])
    publish(north, own)
    with (
        Prober("r", 0, addresses[0], {1: addresses[1]}, credentials=own) as zero,
        Prober("r", 1, addresses[1], {0: addresses[0]}, credentials=other) as one,
    ):
        found = {}
        threads = [
            threading.Thread(target=lambda p=p, k=k: found.update({k: p.probe(PATIENCE)}))
            for k, p in enumerate((zero, one))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert "the certificate of peer 1 was revoked on" in found[0][0].error
    assert "the certificate of peer 1 was revoked on" in found[1][0].error


# The list


def test_a_bad_list_is_refused_by_name_and_the_last_good_one_stays_in_force(north, tmp_path, caplog):
    own, revoked = north[1], north[0]
    stranger = Federation(tmp_path / "stranger")  # of the same name, and another authority
    revoke(stranger.authority)
    revoke(north.authority, [revoked.folder])
    first = (north.authority / "crl.pem").read_bytes()
    revoke(north.authority)
    second = (north.authority / "crl.pem").read_bytes()
    file = own.folder / "crl.pem"
    bad = {
        "is damaged": second[: len(second) // 2],
        "is damaged or no list": b"",
        "signed by none of the authorities": (stranger.authority / "crl.pem").read_bytes(),
        "older than list 2": first,
        "is gone": None,
    }
    file.write_bytes(second)
    assert own.revocations.reason(revoked.facts) is not None
    for k, (why, content) in enumerate(bad.items()):
        caplog.clear()
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
            os.utime(file, (k, k))
        for _ in range(3):
            assert own.revocations.reason(revoked.facts) is not None, why
        assert [why in r.getMessage() for r in caplog.records] == [True], (why, caplog.text)  # logged once
        assert "stays in force" in caplog.text
        assert str(file) in caplog.text
    revoke(north.authority)
    publish(north, own)
    assert [one.number for one in own.revocations.lists] == [3]


def test_a_list_is_not_replaced_by_another_one_with_its_number(north, caplog):
    own, first, second = north[1], north[0], north[2]
    revoke(north.authority, [first.folder])
    publish(north, own)
    assert own.revocations.reason(first.facts)
    (north.authority / "crl.pem").unlink()  # an authority that was restored from an old backup
    revoke(north.authority, [second.folder])
    publish(north, own)
    for _ in range(2):
        assert own.revocations.reason(first.facts)
    assert "another one than list 1" in caplog.text


def test_a_file_that_is_being_copied_is_no_fault(north, caplog):
    own = north[1]
    revoke(north.authority, [north.issue(0)])
    content = (north.authority / "crl.pem").read_bytes()
    (own.folder / "crl.pem").write_bytes(content[:100])
    assert own.revocations.lists == ()
    (own.folder / "crl.pem").write_bytes(content)
    assert [one.number for one in own.revocations.lists] == [1]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_list_that_is_overdue_stays_in_force_with_a_warning_a_day(north, monkeypatch, caplog):
    clock = Clock(monkeypatch)
    own, revoked = north[1], north[0]
    revoke(north.authority, [revoked.folder], days=1)
    publish(north, own)
    assert own.revocations.reason(revoked.facts)
    assert "promised a newer list" not in caplog.text
    for days in (1.5, 1.6, 2.6):
        clock.ahead = timedelta(days=days)
        assert own.revocations.reason(revoked.facts)
    assert caplog.text.count("promised a newer list") == 2


def test_the_file_is_looked_at_once_a_second_and_not_at_every_message(north, monkeypatch):
    monkeypatch.setattr(revocation, "LOOK", 1.0)
    now = [0.0]
    own = north[1]
    root = load_authority(north.authority).root
    watched = Revocations(own.folder / "crl.pem", [root], clock=lambda: now[0])
    revoked = north[0]
    revoke(north.authority, [revoked.folder])
    publish(north, own)
    now[0] = 0.9
    assert watched.reason(revoked.facts) is None
    now[0] = 1.0
    assert watched.reason(revoked.facts) is not None
    assert watched.since(revoked.facts.identity) == 1.0


def test_no_host_starts_with_a_revoked_certificate_or_a_list_that_cannot_be_used(north):
    own = north[1]
    (own.folder / "crl.pem").write_bytes(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    with pytest.raises(ConfigError, match=r"crl\.pem is damaged"):
        Credentials.load(own.folder, 1)
    revoke(north.authority, [own.folder])
    publish(north, own)
    with pytest.raises(ConfigError, match=r"peer\.pem: the certificate of peer 1 was revoked on .* renew"):
        Credentials.load(own.folder, 1)
    renew(north.authority, own.folder)
    assert Credentials.load(own.folder, 1).facts.generation == 1


def test_a_list_whose_entries_name_no_holder_is_refused(north):
    """As other programs make it: a client would not know whom not to call."""
    own, authority = north[1], load_authority(north.authority)
    now = own.facts.not_before
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.root.subject)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(7).revocation_date(now).build()
        )
        .sign(authority.key, hashes.SHA256())
    )
    file = own.folder / "crl.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="its entry of serial 7 names no holder"):
        read_lists(file, [authority.root])


def test_of_a_list_with_any_byte_changed_nothing_is_believed(north, tmp_path):
    revoke(north.authority, [north.issue(3)])
    root, file = load_authority(north.authority).root, tmp_path / "crl.pem"
    (right,) = read_lists(north.authority / "crl.pem", [root])
    raw = x509.load_pem_x509_crl(right.pem).public_bytes(serialization.Encoding.DER)
    for place in range(len(raw)):
        content = base64.encodebytes(raw[:place] + bytes([raw[place] ^ 0x16]) + raw[place + 1 :])
        file.write_bytes(b"-----BEGIN X509 CRL-----\n" + content + b"-----END X509 CRL-----\n")
        with pytest.raises(ConfigError):
            read_lists(file, [root])


# The authority


def test_each_revocation_of_a_holder_begins_a_generation_whose_certificates_have_its_name(north):
    folder = north.issue(3, addresses=["ward.example"])
    revoke(north.authority, holder=3)
    renew(north.authority, folder)
    once = read_certificate(folder / "peer.pem")
    done = revoke(north.authority, [folder])
    assert [(e.holder.peer, e.generation) for e in done.added] == [(3, 2)]
    assert done.present.number == 2
    assert len(done.present.entries) == 2
    renew(north.authority, folder)
    twice = read_certificate(folder / "peer.pem")
    assert (once.generation, twice.generation) == (1, 2)
    assert once.names == twice.names == ("ward.example",)
    certificate = x509.load_pem_x509_certificate((folder / "peer.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        *(target_name("north", 3, g) for g in range(3)),
        "ward.example",
    ]
    assert target_name("north", 3, 2) == "r2.peer-3.north.p2pft.internal"


def test_to_revoke_again_adds_nothing_and_makes_a_list_with_a_new_date(north):
    folder = north.issue(3)
    first = revoke(north.authority, [folder])
    again = revoke(north.authority, [folder / "peer.pem"], holder=3)
    assert (len(first.added), again.added, again.present.number) == (1, (), 2)
    assert again.present.entries == first.present.entries


def test_only_an_authoritys_own_certificates_are_revoked(north, tmp_path):
    other = Federation(tmp_path / "south", "south")
    with pytest.raises(ConfigError, match="not a certificate that the authority"):
        revoke(north.authority, [other.issue(1)])
    with pytest.raises(ConfigError, match="not a certificate that the authority"):
        revoke(north.authority, [north.authority / "ca.pem"])
    with pytest.raises(ConfigError, match="has no copy of a certificate of peer 5"):
        revoke(north.authority, holder=5)
    assert not (north.authority / "crl.pem").exists()


def test_while_authorities_change_the_lists_of_both_are_in_force(north, tmp_path):
    """docs/security.md, rotation: certificates renewed by the new authority, ca.pem with both."""
    new = tmp_path / "new-authority"
    create_authority(new, "north")
    stolen = north[3]
    revoke(north.authority, [stolen.folder])
    renew(north.authority, stolen.folder)
    site = north[1]
    for folder in (site.folder, stolen.folder):
        with (folder / "ca.pem").open("ab") as file:
            file.write((new / "ca.pem").read_bytes())
    publish(north, site, stolen)
    renew(new, stolen.folder, previous=north.authority / "ca.pem")
    renew(new, site.folder, previous=north.authority / "ca.pem")
    now = Credentials.load(site.folder, 1)
    assert [one.number for one in now.revocations.lists] == [1]
    assert now.target(3) == target_name("north", 3, 1)
    assert Credentials.load(stolen.folder, 3).facts.generation == 1
    revoke(new, [stolen.folder])
    with (site.folder / "crl.pem").open("ab") as file:
        file.write((new / "crl.pem").read_bytes())
    assert now.target(3) == target_name("north", 3, 2)
    assert len(now.revocations.lists) == 2


def umask():
    """Return the process's umask, which can only be read by setting it."""
    now = os.umask(0o077)
    os.umask(now)
    return now


def test_new_folders_have_the_authoritys_list(north):
    revoke(north.authority, [north.issue(3)])
    folder = north.issue(1)
    assert Credentials.load(folder, 1).target(3) == target_name("north", 3, 1)
    assert (folder / "crl.pem").stat().st_mode & 0o777 == 0o644 & ~umask()


def test_the_identity_of_an_entry_is_read_back_as_it_was_written():
    for holder in (0, 999_999_999, "coordinator"):
        identity = Identity("a" * 40, holder)
        value = revocation.holder_entry(identity, 123_456).value
        assert value[0] == 0x0C
        assert value[1] == len(value) - 2 < 128
