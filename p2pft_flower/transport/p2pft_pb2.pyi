from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional, Union as _Union

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
    PREPARING: _ClassVar[Status]
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
PREPARING: Status

class PayloadHeader(_message.Message):
    __slots__ = ("run", "view", "sender", "receiver", "iteration", "phase", "length", "dtype", "share", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
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
    checksum: int
    def __init__(self, run: _Optional[str] = ..., view: _Optional[int] = ..., sender: _Optional[int] = ..., receiver: _Optional[int] = ..., iteration: _Optional[int] = ..., phase: _Optional[int] = ..., length: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., share: _Optional[float] = ..., checksum: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("status", "reason", "progress")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    reason: str
    progress: int
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., reason: _Optional[str] = ..., progress: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("run", "sender", "origin", "iteration", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: int
    origin: int
    iteration: int
    reason: str
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[int] = ..., origin: _Optional[int] = ..., iteration: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PeerReport(_message.Message):
    __slots__ = ("run", "peer", "iteration", "loss", "accuracy", "accuracy_unseen", "sketch", "bytes_sent", "seconds", "note")
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
    def __init__(self, run: _Optional[str] = ..., peer: _Optional[int] = ..., iteration: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., accuracy_unseen: _Optional[float] = ..., sketch: _Optional[_Iterable[float]] = ..., bytes_sent: _Optional[int] = ..., seconds: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...
