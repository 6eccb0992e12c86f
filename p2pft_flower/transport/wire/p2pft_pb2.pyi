from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    FLOAT32: _ClassVar[Dtype]
    FLOAT64: _ClassVar[Dtype]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    ACCEPTED: _ClassVar[Status]
    DUPLICATE: _ClassVar[Status]
    BAD_HEADER: _ClassVar[Status]
    CORRUPT: _ClassVar[Status]
    WRONG_RUN: _ClassVar[Status]
    WRONG_VIEW: _ClassVar[Status]
    NOT_NEIGHBOUR: _ClassVar[Status]
    WRONG_DTYPE: _ClassVar[Status]
    WRONG_LENGTH: _ClassVar[Status]
    BAD_SHARE: _ClassVar[Status]
    NOT_FINITE: _ClassVar[Status]
    FAR_OFF: _ClassVar[Status]
    CONFLICT: _ClassVar[Status]
    BUSY: _ClassVar[Status]
    SUPERSEDED: _ClassVar[Status]
    MISMATCH: _ClassVar[Status]
    STOPPED: _ClassVar[Status]
    NOT_AUTHENTIC: _ClassVar[Status]
    THROTTLED: _ClassVar[Status]
    REVOKED: _ClassVar[Status]
    PREPARING: _ClassVar[Status]
    LATER: _ClassVar[Status]
    UNSHARED: _ClassVar[Status]
DTYPE_UNSPECIFIED: Dtype
FLOAT32: Dtype
FLOAT64: Dtype
STATUS_UNSPECIFIED: Status
ACCEPTED: Status
DUPLICATE: Status
BAD_HEADER: Status
CORRUPT: Status
WRONG_RUN: Status
WRONG_VIEW: Status
NOT_NEIGHBOUR: Status
WRONG_DTYPE: Status
WRONG_LENGTH: Status
BAD_SHARE: Status
NOT_FINITE: Status
FAR_OFF: Status
CONFLICT: Status
BUSY: Status
SUPERSEDED: Status
MISMATCH: Status
STOPPED: Status
NOT_AUTHENTIC: Status
THROTTLED: Status
REVOKED: Status
PREPARING: Status
LATER: Status
UNSHARED: Status

class PayloadHeader(_message.Message):
    __slots__ = ("run", "view", "sender", "receiver", "iteration", "phase", "length", "dtype", "share", "codec", "step", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: str
    view: int
    sender: int
    receiver: int
    iteration: int
    phase: int
    length: int
    dtype: Dtype
    share: float
    codec: str
    step: float
    checksum: int
    def __init__(self, run: _Optional[str] = ..., view: _Optional[int] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ..., iteration: _Optional[int] = ..., phase: _Optional[int] = ..., length: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., share: _Optional[float] = ..., codec: _Optional[str] = ..., step: _Optional[float] = ..., checksum: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("status", "reason", "progress", "cause")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    status: Status
    reason: str
    progress: int
    cause: Stop.Cause
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., progress: _Optional[int] = ..., cause: _Optional[_Union[Stop.Cause, str]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("process", "descriptor", "inode", "size")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    process: int
    descriptor: int
    inode: int
    size: int
    def __init__(self, process: _Optional[int] = ..., descriptor: _Optional[int] = ..., inode: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class LaidPayload(_message.Message):
    __slots__ = ("header", "offset", "size")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    offset: int
    size: int
    def __init__(self, header: _Optional[bytes] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class HandOver(_message.Message):
    __slots__ = ("run", "sender", "segment", "payloads")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: int
    segment: Segment
    payloads: _containers.RepeatedCompositeFieldContainer[LaidPayload]
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[int] = ..., segment: _Optional[_Union[Segment, _Mapping]] = ..., payloads: _Optional[_Iterable[_Union[LaidPayload, _Mapping]]] = ...) -> None: ...

class HandedOver(_message.Message):
    __slots__ = ("status", "reason", "failed", "replies", "peers")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    reason: str
    failed: _containers.RepeatedScalarFieldContainer[int]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    peers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., failed: _Optional[_Iterable[int]] = ..., replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ..., peers: _Optional[_Iterable[int]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("run", "view", "sender", "receiver", "config", "length", "dtype", "phases", "stage")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    run: str
    view: int
    sender: int
    receiver: int
    config: str
    length: int
    dtype: Dtype
    phases: int
    stage: int
    def __init__(self, run: _Optional[str] = ..., view: _Optional[int] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ..., config: _Optional[str] = ..., length: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., phases: _Optional[int] = ..., stage: _Optional[int] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("run", "sender", "receiver", "last", "ballast")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    BALLAST_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: int
    receiver: int
    last: bool
    ballast: bytes
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ..., last: bool = ..., ballast: _Optional[bytes] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("status", "reason", "time")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    status: Status
    reason: str
    time: float
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., time: _Optional[float] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("run", "sender", "origin", "iteration", "reason", "cause")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[Stop.Cause]
        OWN: _ClassVar[Stop.Cause]
        RUN: _ClassVar[Stop.Cause]
        LOST: _ClassVar[Stop.Cause]
        HEARSAY: _ClassVar[Stop.Cause]
        STOPPED: _ClassVar[Stop.Cause]
    CAUSE_UNSPECIFIED: Stop.Cause
    OWN: Stop.Cause
    RUN: Stop.Cause
    LOST: Stop.Cause
    HEARSAY: Stop.Cause
    STOPPED: Stop.Cause
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: int
    origin: int
    iteration: int
    reason: str
    cause: Stop.Cause
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[int] = ..., origin: _Optional[int] = ..., iteration: _Optional[int] = ..., reason: _Optional[str] = ..., cause: _Optional[_Union[Stop.Cause, str]] = ...) -> None: ...

class Pulse(_message.Message):
    __slots__ = ("view", "iteration", "activity", "progress", "busy", "slowest")
    class Activity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTIVITY_UNSPECIFIED: _ClassVar[Pulse.Activity]
        COMPUTING: _ClassVar[Pulse.Activity]
        WAITING: _ClassVar[Pulse.Activity]
        EVALUATING: _ClassVar[Pulse.Activity]
        PAUSED: _ClassVar[Pulse.Activity]
        FINISHED: _ClassVar[Pulse.Activity]
    ACTIVITY_UNSPECIFIED: Pulse.Activity
    COMPUTING: Pulse.Activity
    WAITING: Pulse.Activity
    EVALUATING: Pulse.Activity
    PAUSED: Pulse.Activity
    FINISHED: Pulse.Activity
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    SLOWEST_FIELD_NUMBER: _ClassVar[int]
    view: int
    iteration: int
    activity: Pulse.Activity
    progress: int
    busy: float
    slowest: float
    def __init__(self, view: _Optional[int] = ..., iteration: _Optional[int] = ..., activity: _Optional[_Union[Pulse.Activity, str]] = ..., progress: _Optional[int] = ..., busy: _Optional[float] = ..., slowest: _Optional[float] = ...) -> None: ...

class Edge(_message.Message):
    __slots__ = ("sender", "receiver")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    sender: int
    receiver: int
    def __init__(self, sender: _Optional[int] = ..., receiver: _Optional[int] = ...) -> None: ...

class Ballot(_message.Message):
    __slots__ = ("round", "member")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    round: int
    member: int
    def __init__(self, round: _Optional[int] = ..., member: _Optional[int] = ...) -> None: ...

class Composition(_message.Message):
    __slots__ = ("members", "incarnations", "broken", "iteration", "joined", "donors", "number")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    DONORS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    broken: _containers.RepeatedCompositeFieldContainer[Edge]
    iteration: int
    joined: _containers.RepeatedScalarFieldContainer[int]
    donors: _containers.RepeatedScalarFieldContainer[int]
    number: int
    def __init__(self, members: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., broken: _Optional[_Iterable[_Union[Edge, _Mapping]]] = ..., iteration: _Optional[int] = ..., joined: _Optional[_Iterable[int]] = ..., donors: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("ballot", "value")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    value: Composition
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., value: _Optional[_Union[Composition, _Mapping]] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("member", "incarnation", "signature")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    member: int
    incarnation: int
    signature: bytes
    def __init__(self, member: _Optional[int] = ..., incarnation: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("value", "ballot", "votes")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    value: Composition
    ballot: Ballot
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    def __init__(self, value: _Optional[_Union[Composition, _Mapping]] = ..., ballot: _Optional[_Union[Ballot, _Mapping]] = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("member", "incarnation", "version", "view", "phase", "iteration", "promised", "accepted", "proposal", "suspects", "broken", "reaches", "reason", "hanging", "vote")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[Record.Phase]
        RUNNING: _ClassVar[Record.Phase]
        CHANGING: _ClassVar[Record.Phase]
        JOINING: _ClassVar[Record.Phase]
        FINISHED: _ClassVar[Record.Phase]
        LEFT: _ClassVar[Record.Phase]
    PHASE_UNSPECIFIED: Record.Phase
    RUNNING: Record.Phase
    CHANGING: Record.Phase
    JOINING: Record.Phase
    FINISHED: Record.Phase
    LEFT: Record.Phase
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    REACHES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HANGING_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    member: int
    incarnation: int
    version: int
    view: int
    phase: Record.Phase
    iteration: int
    promised: Ballot
    accepted: Proposal
    proposal: Proposal
    suspects: _containers.RepeatedScalarFieldContainer[int]
    broken: _containers.RepeatedCompositeFieldContainer[Edge]
    reaches: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    hanging: _containers.RepeatedScalarFieldContainer[int]
    vote: bytes
    def __init__(self, member: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., view: _Optional[int] = ..., phase: _Optional[_Union[Record.Phase, str]] = ..., iteration: _Optional[int] = ..., promised: _Optional[_Union[Ballot, _Mapping]] = ..., accepted: _Optional[_Union[Proposal, _Mapping]] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ..., suspects: _Optional[_Iterable[int]] = ..., broken: _Optional[_Iterable[_Union[Edge, _Mapping]]] = ..., reaches: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., hanging: _Optional[_Iterable[int]] = ..., vote: _Optional[bytes] = ...) -> None: ...

class Signed(_message.Message):
    __slots__ = ("record", "signature")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    signature: bytes
    def __init__(self, record: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Known(_message.Message):
    __slots__ = ("members", "incarnations", "versions")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, members: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., versions: _Optional[_Iterable[int]] = ...) -> None: ...

class Gossip(_message.Message):
    __slots__ = ("run", "sender", "receiver", "pulse", "records", "steps", "certificates", "status", "reason", "known", "standings", "scores", "known_standings", "known_scores", "view_changes", "own_scores")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    PULSE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    STANDINGS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_STANDINGS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_SCORES_FIELD_NUMBER: _ClassVar[int]
    VIEW_CHANGES_FIELD_NUMBER: _ClassVar[int]
    OWN_SCORES_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: int
    receiver: int
    pulse: Pulse
    records: _containers.RepeatedCompositeFieldContainer[Signed]
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    status: Status
    reason: str
    known: Known
    standings: _containers.RepeatedCompositeFieldContainer[Signed]
    scores: _containers.RepeatedCompositeFieldContainer[Signed]
    known_standings: Known
    known_scores: Known
    view_changes: _containers.RepeatedScalarFieldContainer[bytes]
    own_scores: _containers.RepeatedCompositeFieldContainer[PeerScores]
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ..., pulse: _Optional[_Union[Pulse, _Mapping]] = ..., records: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., certificates: _Optional[_Iterable[bytes]] = ..., status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., known: _Optional[_Union[Known, _Mapping]] = ..., standings: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., known_standings: _Optional[_Union[Known, _Mapping]] = ..., known_scores: _Optional[_Union[Known, _Mapping]] = ..., view_changes: _Optional[_Iterable[bytes]] = ..., own_scores: _Optional[_Iterable[_Union[PeerScores, _Mapping]]] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("member", "incarnation", "version", "view", "iteration", "state", "busy", "awaited", "rate", "edges")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Standing.State]
        PREPARING: _ClassVar[Standing.State]
        COMPUTING: _ClassVar[Standing.State]
        WAITING: _ClassVar[Standing.State]
        EVALUATING: _ClassVar[Standing.State]
        CHANGING: _ClassVar[Standing.State]
        FINISHED: _ClassVar[Standing.State]
    STATE_UNSPECIFIED: Standing.State
    PREPARING: Standing.State
    COMPUTING: Standing.State
    WAITING: Standing.State
    EVALUATING: Standing.State
    CHANGING: Standing.State
    FINISHED: Standing.State
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    member: int
    incarnation: int
    version: int
    view: int
    iteration: int
    state: Standing.State
    busy: float
    awaited: int
    rate: float
    edges: _containers.RepeatedCompositeFieldContainer[EdgeTraffic]
    def __init__(self, member: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., view: _Optional[int] = ..., iteration: _Optional[int] = ..., state: _Optional[_Union[Standing.State, str]] = ..., busy: _Optional[float] = ..., awaited: _Optional[int] = ..., rate: _Optional[float] = ..., edges: _Optional[_Iterable[_Union[EdgeTraffic, _Mapping]]] = ...) -> None: ...

class EdgeTraffic(_message.Message):
    __slots__ = ("sender", "receiver", "payloads", "bytes", "seconds")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    sender: int
    receiver: int
    payloads: int
    bytes: int
    seconds: float
    def __init__(self, sender: _Optional[int] = ..., receiver: _Optional[int] = ..., payloads: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("member", "incarnation", "version", "peers")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    member: int
    incarnation: int
    version: int
    peers: _containers.RepeatedCompositeFieldContainer[PeerScores]
    def __init__(self, member: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[PeerScores, _Mapping]]] = ...) -> None: ...

class PeerScores(_message.Message):
    __slots__ = ("peer", "iteration", "loss", "accuracy", "accuracy_unseen", "bytes_sent", "sketch")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_UNSEEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    peer: int
    iteration: int
    loss: float
    accuracy: float
    accuracy_unseen: float
    bytes_sent: int
    sketch: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, peer: _Optional[int] = ..., iteration: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., accuracy_unseen: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., sketch: _Optional[_Iterable[float]] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("run", "view", "sender", "receiver")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    run: str
    view: int
    sender: int
    receiver: int
    def __init__(self, run: _Optional[str] = ..., view: _Optional[int] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ...) -> None: ...

class Fetched(_message.Message):
    __slots__ = ("status", "reason", "header", "vector")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    status: Status
    reason: str
    header: PayloadHeader
    vector: bytes
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., header: _Optional[_Union[PayloadHeader, _Mapping]] = ..., vector: _Optional[bytes] = ...) -> None: ...

class PeerReport(_message.Message):
    __slots__ = ("run", "peer", "iteration", "loss", "accuracy", "accuracy_unseen", "sketch", "bytes_sent", "seconds", "note", "live", "standing", "view_change")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_UNSEEN_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_CHANGE_FIELD_NUMBER: _ClassVar[int]
    run: str
    peer: int
    iteration: int
    loss: float
    accuracy: float
    accuracy_unseen: float
    sketch: _containers.RepeatedScalarFieldContainer[float]
    bytes_sent: int
    seconds: float
    note: str
    live: _containers.RepeatedScalarFieldContainer[int]
    standing: Standing
    view_change: bytes
    def __init__(self, run: _Optional[str] = ..., peer: _Optional[int] = ..., iteration: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., accuracy_unseen: _Optional[float] = ..., sketch: _Optional[_Iterable[float]] = ..., bytes_sent: _Optional[int] = ..., seconds: _Optional[float] = ..., note: _Optional[str] = ..., live: _Optional[_Iterable[int]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ..., view_change: _Optional[bytes] = ...) -> None: ...
