"""Who gets in over TLS, who does not, and what each is told; over real sockets."""

from __future__ import annotations

import logging
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pft_flower.lab.relay import relayed
from p2pft_flower.transport import (
    TLS13_ENVIRONMENT,
    Credentials,
    ExchangeRefusedError,
    ExchangeTimeoutError,
    Gossip,
    Heartbeats,
    Hello,
    Links,
    Looker,
    Loss,
    Mailbox,
    PeerServer,
    PeerUnreachableError,
    Pulse,
    Reply,
    Status,
    Stop,
    Terms,
    digest_of,
    endpoint,
    new_key,
)
from p2pft_flower.transport.admission import Throttle
from p2pft_flower.transport.trust.certificates import facts_of, target_name
from p2pft_flower.transport.wire.header import HEADER_KEY
from tests.transport.federation import Clock, Federation
from tests.transport.wire import PATIENCE, Host, message

TERMS = Terms("run", 8)
PEER_1 = target_name("north", 1)


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("north"))


@pytest.fixture(scope="module")
def south(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("south"), "south")


@pytest.fixture(scope="module")
def peers(north):
    return {i: north[i] for i in range(4)}


@pytest.fixture
def serving(peers):
    """Peer 1 over TLS: it receives from 0 and sends to 2; 3 is a stranger of the same federation."""
    mailbox = Mailbox(TERMS, [(0, 1)])
    stops = []
    with PeerServer(
        mailbox, {1: "127.0.0.1:0"}, out_edges=[(1, 2)], on_stop=stops.append, credentials=peers[1]
    ) as server:
        mailbox.address, mailbox.stops = server.bound_addresses[1], stops
        yield mailbox


def port_of(address):
    return int(address.rpartition(":")[2])


@contextmanager
def calling(address, own=None, name=PEER_1, metadata=()):
    """Call methods with raw bytes, as whoever has the certificate ``own`` could."""
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.insecure_channel(address, options[1:])
        if own is None
        else grpc.secure_channel(address, own if not isinstance(own, Credentials) else own.channel(), options)
    )
    with channel:

        def call(method, body, header=None):
            beside = metadata if header is None else (*metadata, (HEADER_KEY, header))
            unary = channel.unary_unary(f"/p2pft.v2.Exchange/{method}", None, None)
            return Reply.FromString(unary(body, metadata=beside, timeout=PATIENCE))

        yield call


def hello(sender, receiver=1):
    return Hello(run="run", sender=sender, receiver=receiver, length=8, dtype=1, phases=2).SerializeToString()


def stop(sender):
    return Stop(run="run", sender=sender, origin=7, reason="disk full", cause="OWN").SerializeToString()


def payload(sender, receiver=1, iteration=0, phase=0):
    header, body = message(TERMS, (sender, receiver), iteration, phase)
    return body, header


# Neighbours


def test_neighbours_are_heard_over_tls(serving, peers):
    for neighbour in (0, 2):
        with calling(serving.address, peers[neighbour]) as call:
            assert call("Hello", hello(neighbour)).status == Status.ACCEPTED
            assert call("Stop", stop(neighbour)).status == Status.ACCEPTED
    with calling(serving.address, peers[0]) as call:
        assert call("Deliver", *payload(0)).status == Status.ACCEPTED
    assert serving.take(1, 0, 0, 0, PATIENCE).vector.tolist() == [0.0] * 8
    assert len(serving.stops) == 2
    assert not serving.refused


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6: this machine has no ::1")
def test_neighbours_are_heard_over_ipv6(peers):
    hosts = [Host.open(TERMS, [i], [(0, 1), (1, 0)], {i: "[::1]:0"}, credentials=peers[i]) for i in range(2)]
    addresses = {i: host.server.bound_addresses[i] for i, host in enumerate(hosts)}
    assert addresses[0].startswith("[::1]:")
    for i, host in enumerate(hosts):
        host.connect(addresses, credentials=peers[i]).meet(PATIENCE)
    for host in hosts:
        host.close()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("Deliver", payload(2)), ("Hello", (hello(2),)), ("Stop", (stop(2),))],
)
def test_a_neighbour_that_claims_to_be_another_is_refused(serving, peers, caplog, method, arguments):
    caplog.set_level(logging.WARNING)
    with calling(serving.address, peers[0]) as call:
        replies = [call(method, *arguments) for _ in range(3)]
    assert [Status.Name(r.status) for r in replies] == ["NOT_AUTHENTIC"] * 3
    assert "peer 0" in replies[0].reason
    assert "peer 2" in replies[0].reason
    assert serving.refused == {"NOT_AUTHENTIC": 3}
    assert caplog.text.count("NOT_AUTHENTIC") == 1  # logged once
    assert serving.stops == []
    assert serving.pending((0, 1)) == 0


def test_a_neighbour_that_only_receives_may_not_send_payloads(serving, peers):
    with calling(serving.address, peers[2]) as call:
        assert call("Deliver", *payload(2)).status == Status.NOT_NEIGHBOUR


@pytest.mark.parametrize("claims", [3, 0])
def test_a_stranger_with_a_valid_certificate_is_refused(serving, peers, claims):
    with calling(serving.address, peers[3]) as call:
        for method, arguments in (
            ("Deliver", payload(claims)),
            ("Hello", (hello(claims),)),
            ("Stop", (stop(claims),)),
        ):
            reply = call(method, *arguments)
            assert Status.Name(reply.status) == "NOT_NEIGHBOUR"
            assert reply.reason == "peer 3 shares no edge with this host"
    assert serving.stops == []
    assert serving.pending((0, 1)) == 0


@pytest.mark.parametrize("shows_the_key", [True, False])
def test_the_coordinator_is_heard_for_a_stop_with_the_runs_key_and_for_nothing_else(
    shows_the_key, north, peers
):
    key = new_key()
    shown = (("p2pft-stop-key-bin", key if shows_the_key else new_key()),)
    coordinator = Credentials.load(north.coordinator(), "coordinator")
    mailbox, stops = Mailbox(TERMS, [(0, 1)]), []
    with PeerServer(
        mailbox,
        {1: "127.0.0.1:0"},
        on_stop=stops.append,
        on_look=lambda known: Gossip(),
        stop_digest=digest_of(key),
        look_digest=digest_of(key),
        credentials=peers[1],
    ) as server:
        address = server.bound_addresses[1]
        with Looker("run", shown[0][1], {1: address}, coordinator, timeout=PATIENCE) as looker:
            seen = looker.look([1], Gossip())[1]
            assert isinstance(seen, Gossip) if shows_the_key else "NOT_NEIGHBOUR" in str(seen), seen
        with calling(address, coordinator, metadata=shown) as call:
            for claims in (0, 3):
                for method, arguments in (("Deliver", payload(claims)), ("Hello", (hello(claims),))):
                    reply = call(method, *arguments)
                    assert Status.Name(reply.status) == "NOT_NEIGHBOUR"
                    assert reply.reason == (
                        "the coordinator is heard for a stop or a look with the run's key for it, and for "
                        "no more"
                    )
            answer = Status.Name(call("Stop", stop(0)).status)
        assert answer == ("ACCEPTED" if shows_the_key else "NOT_NEIGHBOUR")
    assert len(stops) == shows_the_key
    assert mailbox.pending((0, 1)) == 0


def test_nobody_takes_the_coordinator_for_a_peer(north, peers):
    coordinator = Credentials.load(north.coordinator(), "coordinator")
    with PeerServer(Mailbox(TERMS, [(0, 1)]), {1: "127.0.0.1:0"}, credentials=coordinator) as server:
        says = refused_at_once(server.bound_addresses[1], peers[0])
    assert "the certificate shown there is not accepted here" in says


def test_a_replayed_payload_is_not_used_again(serving, peers):
    with calling(serving.address, peers[0]) as call:
        for phase in range(2):
            assert call("Deliver", *payload(0, phase=phase)).status == Status.ACCEPTED
            serving.take(1, 0, 0, phase, PATIENCE)
        assert call("Deliver", *payload(0, phase=1)).status == Status.DUPLICATE
        assert call("Deliver", *payload(0, phase=0)).status == Status.FAR_OFF
        header, body = message(TERMS, (0, 1), 1, 0, run="another run")
        assert call("Deliver", body, header).status == Status.WRONG_RUN
    assert serving.pending((0, 1)) == 0


def test_a_certificate_is_read_once_however_many_payloads_come(serving, peers):
    facts_of.cache_clear()
    with calling(serving.address, peers[0]) as call:
        for k in range(10):
            for phase in range(2):
                assert call("Deliver", *payload(0, iteration=k, phase=phase)).status == Status.ACCEPTED
                serving.take(1, 0, k, phase, PATIENCE)
    assert facts_of.cache_info().misses == 1


# No handshake


def no_answer(address, own, name=PEER_1):
    with calling(address, own, name) as call, pytest.raises(grpc.RpcError) as caught:
        call("Deliver", *payload(0))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details()


def test_plain_text_does_not_get_in(serving):
    no_answer(serving.address, None)
    assert not serving.refused
    assert serving.pending((0, 1)) == 0


def test_a_client_without_a_certificate_does_not_get_in(serving, peers):
    no_answer(serving.address, grpc.ssl_channel_credentials(peers[0]._authorities))
    assert serving.pending((0, 1)) == 0


def test_certificates_of_other_authorities_do_not_get_in(serving, peers, south, tmp_path):
    namesake = Federation(tmp_path / "namesake")  # the same names, another key
    for federation in (south, namesake):
        trusting = replace(federation[0], _authorities=peers[0]._authorities)
        no_answer(serving.address, trusting)
    assert serving.pending((0, 1)) == 0


def forged_by(authority, federation, peer):
    """Return certificate and key of ``peer`` of ``federation``, signed by another federation's authority."""
    root = x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes())
    root_key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    uri = x509.UniformResourceIdentifier(f"p2pft://{federation}/peer/{peer}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forged")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([uri, x509.DNSName(target_name(federation, peer))]), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(("claimed", "gets_in"), [("north", True), ("south", False)])
def test_an_authority_cannot_speak_for_another_federation(claimed, gets_in, north, south):
    """Who trusts north's and south's authority does not take north's word for a peer of the south."""
    chain, key = forged_by(north.authority, claimed, 0)
    mine = north if claimed == "north" else south
    both = north[0]._authorities + south[0]._authorities
    server_own, client = replace(mine[1], _authorities=both), replace(mine[0], _authorities=both)
    forger = replace(client, _chain=chain, _key=key)
    with PeerServer(Mailbox(TERMS, [(0, 1)]), {1: "127.0.0.1:0"}, credentials=server_own) as server:
        address, name = server.bound_addresses[1], target_name(claimed, 1)
        with calling(address, client, name) as call:
            assert call("Hello", hello(0)).status == Status.ACCEPTED
        if gets_in:
            with calling(address, forger, name) as call:
                assert call("Hello", hello(0)).status == Status.ACCEPTED
        else:
            no_answer(address, forger, name)


# Errors before training


def meet(address, own, deadline=PATIENCE):
    """Let peer 0 meet peer 1 at ``address``; return the error."""
    with (
        Links(TERMS, {1: address}, [(0, 1)], credentials=own) as links,
        pytest.raises((ExchangeRefusedError, PeerUnreachableError)) as caught,
    ):
        links.meet(deadline, remedy="start it")
    return caught.value


def lost(address, own):
    """Return what peer 0 makes of peer 1's silence, in mid-run."""
    now = [0.0]
    with Links(TERMS, {1: address}, [(0, 1)], credentials=own) as links:
        beats = Heartbeats(
            links, 8.0, 100.0, pulse=Pulse, tell=lambda _: Gossip(), hear=print, clock=lambda: now[0]
        )
        for now[0] in (0.0, 3.0, 6.0, 9.0):
            assert beats.absence(1) is None
        for thread in threading.enumerate():
            if thread.name == "p2pft-knock":
                thread.join(PATIENCE)
        return beats.absence(1)


def refused_at_once(address, own):
    error = meet(address, own)
    assert isinstance(error, ExchangeRefusedError)  # and not the error of a deadline that passed
    assert error.edge == (0, 1)
    assert f"no TLS with peer 1 at {address}" in str(error)
    return str(error)


def test_a_neighbour_of_another_authority_is_refused_at_once(peers, south):
    foreign = replace(south[1], _authorities=peers[0]._authorities)
    with PeerServer(Mailbox(TERMS, [(0, 1)]), {1: "127.0.0.1:0"}, credentials=foreign) as server:
        says = refused_at_once(server.bound_addresses[1], peers[0])
    assert "the certificate shown there is not accepted here: unable to get local issuer certificate" in says


def test_another_peer_at_a_neighbours_address_is_refused_at_once(peers):
    with PeerServer(Mailbox(TERMS, [(0, 2)]), {2: "127.0.0.1:0"}, credentials=peers[2]) as server:
        says = refused_at_once(server.bound_addresses[2], peers[0])
    assert "certificate is not valid for 'peer-1.north.p2pft.internal'" in says


def test_a_neighbour_that_does_not_accept_our_certificate_is_named_at_once(serving, peers, south):
    own = south[0]
    trusting = replace(own, facts=peers[0].facts, _authorities=peers[0]._authorities)
    says = refused_at_once(serving.address, trusting)
    assert f"it closed the connection after seeing our certificate, {own.folder}/peer.pem" in says


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_certificate_that_expired_meanwhile_is_named_at_once(whose, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.ahead = timedelta(days=-10)
    north = Federation(tmp_path / "north")
    expired = {i: north.issue(i, days=5) for i in range(2)}
    clock.ahead = timedelta(days=-8)
    old = {i: Credentials.load(folder, i) for i, folder in expired.items()}
    good = {i: north[i] for i in range(2)}
    clock.ahead = timedelta(0)
    own, theirs = (old[0], good[1]) if whose == "ours" else (good[0], old[1])
    with PeerServer(Mailbox(TERMS, [(0, 1)]), {1: "127.0.0.1:0"}, credentials=theirs) as server:
        address = server.bound_addresses[1]
        says, loss = refused_at_once(address, own), lost(address, own)
    peer = 0 if whose == "ours" else 1
    date = f"{old[peer].facts.not_after:%Y-%m-%d %H:%M} UTC"
    assert loss.how is Loss.CUT_OFF
    for part in (f"peer {peer} of federation 'north'", f"expired on {date}", "p2pft certs renew"):
        assert part in says
        assert part in str(loss)
    assert ("after seeing our certificate" if whose == "ours" else "certificate has expired") in says


def test_a_failed_handshake_is_explained_also_when_our_files_have_been_moved_meanwhile(
    serving, peers, south, tmp_path
):
    folder = tmp_path / "own"
    shutil.copytree(south.issue(0), folder)
    foreign = Credentials.load(folder)
    own = replace(foreign, facts=peers[0].facts, _authorities=peers[0]._authorities)
    folder.rename(tmp_path / "moved")
    says = refused_at_once(serving.address, own)
    assert f"it closed the connection after seeing our certificate, {folder}/peer.pem" in says


def test_a_handshake_is_tried_with_the_certificate_that_was_loaded_not_with_the_one_renewed_since(
    serving, north
):
    own = Credentials.load(north.issue(0), 0)
    for name in ("peer.pem", "peer.key"):
        (own.folder / name).write_text("nothing of use")
    assert own.diagnose(serving.address, 1) is None


@pytest.mark.parametrize("address", [f"{'a' * 64}.example:9000", "127.0.0.1:0", "unix:/nowhere/1.sock"])
def test_where_no_handshake_can_be_tried_there_is_nothing_to_explain(address, peers):
    assert peers[0].diagnose(address, 1) is None


def test_a_neighbour_in_plain_text_is_named_at_once(peers):
    with PeerServer(Mailbox(TERMS, [(0, 1)]), {1: "127.0.0.1:0"}) as server:
        assert "does not speak TLS 1.3" in refused_at_once(server.bound_addresses[1], peers[0])


def test_a_relay_with_nobody_behind_it_is_waited_for(peers):
    """Such as a container's port that is published before its process listens."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with relayed(f"127.0.0.1:{port}") as relay:
        error = meet(relay.address, peers[0], deadline=1.5)
    assert isinstance(error, PeerUnreachableError)
    assert "start it" in str(error)


def test_of_a_handshake_that_was_closed_without_a_reason_nothing_is_said(peers, monkeypatch):
    """As happens now and then behind such a relay."""

    def closed(*_):
        error = ssl.SSLError("closed")
        error.reason = None
        raise error

    monkeypatch.setattr("p2pft_flower.transport.trust.tls._is_let_in", closed)
    assert peers[0].diagnose("127.0.0.1:9", 1) is None


# In the middle


class Flip:
    """Alters one byte, once: well behind the handshake, in the first connection that carries so much."""

    def __init__(self, at=20_000):
        self.at, self.done = at, False

    def __call__(self, connection, passed, data):
        if self.done or not passed <= self.at < passed + len(data):
            return data
        self.done = True
        data = bytearray(data)
        data[self.at - passed] ^= 0x10
        return bytes(data)


@pytest.mark.parametrize("secure", [True, False])
def test_a_man_in_the_middle_cannot_alter_a_payload(secure, peers):
    terms = Terms("run", 100_000)
    vector = np.arange(terms.length, dtype=np.float32)
    mailbox = Mailbox(terms, [(0, 1)])
    own = peers if secure else dict.fromkeys(range(2))
    flip = Flip()
    with (
        PeerServer(mailbox, {1: "127.0.0.1:0"}, credentials=own[1]) as server,
        relayed(server.bound_addresses[1], alter=flip) as relay,
        Links(terms, {1: relay.address}, [(0, 1)], timeout=PATIENCE, credentials=own[0]) as links,
    ):
        links.send(0, 0, 0, vector)
        links.flush(PATIENCE)
        assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == vector.tobytes()
        assert flip.done
        if secure:  # the connection breaks, and the payload is sent again over a new one
            assert relay.connections > 1
            assert not mailbox.refused
        else:  # the checksum tells, and it is sent again over the same one
            assert mailbox.refused == {"CORRUPT": 1}


def test_a_link_that_alters_every_payload_is_given_up():
    terms, mailbox = Terms("run", 1000), Mailbox(Terms("run", 1000), [(0, 1)])
    at_first = np.zeros(terms.length, np.float32).tobytes()[:64]

    def zeros_to_ones(connection, passed, data):
        return data.replace(at_first, b"\x01" * 64)

    with (
        PeerServer(mailbox, {1: "127.0.0.1:0"}) as server,
        relayed(server.bound_addresses[1], alter=zeros_to_ones) as relay,
        Links(terms, {1: relay.address}, [(0, 1)], timeout=PATIENCE) as links,
    ):
        links.send(0, 0, 0, np.zeros(terms.length, np.float32))
        with pytest.raises(ExchangeRefusedError, match=r"edge 0 -> 1, iteration 0.*CORRUPT"):
            links.flush(PATIENCE)
        assert mailbox.refused["CORRUPT"] == 10
        assert mailbox.pending((0, 1)) == 0


def tls_context(own, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=own._authorities.decode())
    context.load_cert_chain(own.folder / "peer.pem", own.folder / "peer.key")
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize(
    ("version", "status"), [(ssl.TLSVersion.TLSv1_3, "ACCEPTED"), (ssl.TLSVersion.TLSv1_2, "NOT_AUTHENTIC")]
)
def test_what_comes_over_tls_1_2_is_refused_unread(version, status, serving, peers):
    """A neighbour's own certificate, over a connection of the version before."""
    tls = tls_context(peers[0], version), PEER_1
    if "GRPC_SSL_CIPHER_SUITES" in os.environ:
        pytest.fail("this process must run with gRPC's own cipher suites: unset GRPC_SSL_CIPHER_SUITES")
    with relayed(serving.address, tls=tls) as relay, calling(relay.address) as call:
        reply = call("Hello", hello(0))
    assert Status.Name(reply.status) == status
    assert reply.reason == ("" if status == "ACCEPTED" else "the connection uses TLSv1.2, not TLSv1.3")


def test_with_the_environment_for_it_tls_1_2_fails_in_the_handshake(peers):
    """In a process of its own: gRPC reads its environment when it is imported."""
    script = f"""
    import sys
    from pathlib import Path
    from p2pft_flower.transport import Credentials, Mailbox, PeerServer, Terms
    own = Credentials.load(Path({str(peers[1].folder)!r}), 1)
    with PeerServer(Mailbox(Terms("run", 8), [(0, 1)]), {{1: "127.0.0.1:0"}}, credentials=own) as server:
        print(server.bound_addresses[1], flush=True)
        sys.stdin.read()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | TLS13_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = port_of(child.stdout.readline().strip())

        def connect(version):
            plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
            context = tls_context(peers[0], version)
            return context.wrap_socket(plain, server_hostname=PEER_1)

        with closing(connect(ssl.TLSVersion.TLSv1_3)) as secure:
            assert secure.version() == "TLSv1.3"
            assert secure.recv(1)  # it is let in
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            connect(ssl.TLSVersion.TLSv1_2)
    finally:
        child.communicate("", timeout=PATIENCE)


# Limits


def test_who_sends_what_is_refused_again_and_again_is_no_longer_looked_at(serving, peers):
    with calling(serving.address, peers[0]) as bad, calling(serving.address, peers[2]) as good:
        statuses = [bad("Deliver", b"not a payload", b"not a header").status for _ in range(60)]
        names = [Status.Name(s) for s in statuses]
        assert names[0] == "BAD_HEADER"
        assert names[-1] == "THROTTLED"
        assert names.count("BAD_HEADER") < 50
        assert bad("Deliver", *payload(0)).status == Status.THROTTLED  # also what would have been good
        assert good("Hello", hello(2)).status == Status.ACCEPTED  # the others are not concerned
    assert serving.pending((0, 1)) == 0


def test_who_was_refused_too_often_and_sends_what_is_right_again_and_again_is_heard(serving, peers):
    with calling(serving.address, peers[0]) as caller:
        while caller("Deliver", b"not a payload", b"not a header").status != Status.THROTTLED:
            pass
        end = time.monotonic() + PATIENCE
        while (status := caller("Deliver", *payload(0)).status) == Status.THROTTLED:
            assert time.monotonic() < end
    assert status == Status.ACCEPTED


def test_a_caller_in_plain_text_is_counted_by_its_connection():
    mailbox = Mailbox(TERMS, [(0, 1)])
    with PeerServer(mailbox, {1: "127.0.0.1:0"}) as server:
        address = server.bound_addresses[1]
        with calling(address) as bad:
            while bad("Hello", b"\xff").status != Status.THROTTLED:
                pass
            with calling(address) as good:
                assert good("Hello", hello(0)).status == Status.ACCEPTED


def test_a_throttle_opens_again_when_refusals_stop():
    now = [0.0]
    throttle = Throttle(burst=4, rate=2.0, clock=lambda: now[0])
    for _ in range(4):
        assert not throttle.is_closed("peer 0")
        throttle.refused("peer 0")
    assert throttle.is_closed("peer 0")
    assert not throttle.is_closed("peer 1")
    now[0] = 1.0
    assert not throttle.is_closed("peer 0")
    for _ in range(1000):
        throttle.refused("peer 0")
    now[0] = 9.0
    assert throttle.is_closed("peer 0")
    now[0] = 12.0  # however long it went on
    assert not throttle.is_closed("peer 0")


def test_a_throttle_remembers_a_bounded_number_of_callers():
    throttle = Throttle(burst=1, clock=lambda: 0.0)
    for k in range(5000):
        throttle.refused(f"ipv4:127.0.0.1:{k}")
    assert len(throttle._levels) <= 1024
    assert throttle.is_closed("ipv4:127.0.0.1:4999")


@pytest.fixture
def silence_is_no_reason(monkeypatch):
    """Whoever says nothing is not cut off while a test lasts."""
    longer = ("grpc.server_handshake_timeout_ms", int(10_000 * PATIENCE))
    options = [o for o in endpoint._SERVER_OPTIONS if o[0] != longer[0]]
    assert len(options) == len(endpoint._SERVER_OPTIONS) - 1
    monkeypatch.setattr(endpoint, "_SERVER_OPTIONS", (*options, longer))


def test_connections_beyond_the_limit_are_closed(silence_is_no_reason, serving):
    """Nothing is sent on them: who only connects must not take the places of neighbours for ever."""
    sockets = [socket.create_connection(("127.0.0.1", port_of(serving.address)), PATIENCE) for _ in range(60)]
    left, end = list(sockets), time.monotonic() + PATIENCE
    try:
        while len(left) > 20:
            readable, _, _ = select.select(left, [], [], max(0.0, end - time.monotonic()))
            assert readable, f"{len(left)} of 60 are open"
            for plain in readable:
                with suppress(ConnectionResetError):
                    assert plain.recv(1) == b""
                left.remove(plain)
    finally:
        for plain in sockets:
            plain.close()


def test_no_log_and_no_answer_holds_anything_of_a_payload(serving, peers, caplog):
    caplog.set_level(logging.DEBUG)
    secret = np.frombuffer(b"SECRETSECRETSECRETSECRETSECRETSE", np.float32)
    header, body = message(TERMS, (0, 1), 0, 0, secret)
    flipped = bytes([body[0] ^ 1]) + body[1:]
    with calling(serving.address, peers[0]) as call:
        replies = [call("Deliver", b, h) for b, h in ((flipped, header), (body[:-4], header), (body, b"x"))]
        replies.append(call("Deliver", *reversed(message(TERMS, (0, 1), 5, 0, secret))))
    told = caplog.text + "".join(r.reason for r in replies)
    assert serving.refused.total() == 4
    assert "SECRET" not in told
    assert str(float(secret[0])) not in told


def test_a_deadline_still_ends_a_wait_for_a_neighbour_that_accepts_and_stays_silent(peers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = meet(f"127.0.0.1:{silent.getsockname()[1]}", peers[0], deadline=1.0)
    assert isinstance(error, PeerUnreachableError | ExchangeTimeoutError)
    assert error.deadline == 1.0
