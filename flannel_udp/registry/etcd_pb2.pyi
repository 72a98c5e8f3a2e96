from collections.abc import Iterable as _Iterable
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper

DESCRIPTOR: _descriptor.FileDescriptor

class AuthenticateRequest(_message.Message):
    __slots__ = ["name", "password"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    name: str
    password: str
    def __init__(self, name: str | None = ..., password: str | None = ...) -> None: ...

class AuthenticateResponse(_message.Message):
    __slots__ = ["token"]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: str | None = ...) -> None: ...

class Compare(_message.Message):
    __slots__ = ["key", "mod_revision", "result", "target", "version"]
    class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__: list[str] = []
    class Target(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__: list[str] = []
    EQUAL: Compare.Result
    KEY_FIELD_NUMBER: _ClassVar[int]
    MOD: Compare.Target
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VERSION: Compare.Target
    VERSION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    mod_revision: int
    result: Compare.Result
    target: Compare.Target
    version: int
    def __init__(self, result: Compare.Result | str | None = ..., target: Compare.Target | str | None = ..., key: bytes | None = ..., version: int | None = ..., mod_revision: int | None = ...) -> None: ...

class DeleteRangeRequest(_message.Message):
    __slots__ = ["key"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: bytes | None = ...) -> None: ...

class DeleteRangeResponse(_message.Message):
    __slots__ = ["header"]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: ResponseHeader | _Mapping[str, object] | None = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ["kv", "type"]
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__: list[str] = []
    DELETE: Event.Type
    KV_FIELD_NUMBER: _ClassVar[int]
    PUT: Event.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    kv: KeyValue
    type: Event.Type
    def __init__(self, type: Event.Type | str | None = ..., kv: KeyValue | _Mapping[str, object] | None = ...) -> None: ...

class KeyValue(_message.Message):
    __slots__ = ["key", "lease", "mod_revision", "value"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    lease: int
    mod_revision: int
    value: bytes
    def __init__(self, key: bytes | None = ..., mod_revision: int | None = ..., value: bytes | None = ..., lease: int | None = ...) -> None: ...

class LeaseGrantRequest(_message.Message):
    __slots__ = ["ttl"]
    TTL_FIELD_NUMBER: _ClassVar[int]
    ttl: int
    def __init__(self, ttl: int | None = ...) -> None: ...

class LeaseGrantResponse(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: int | None = ...) -> None: ...

class LeaseKeepAliveRequest(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: int | None = ...) -> None: ...

class LeaseKeepAliveResponse(_message.Message):
    __slots__ = ["ttl"]
    TTL_FIELD_NUMBER: _ClassVar[int]
    ttl: int
    def __init__(self, ttl: int | None = ...) -> None: ...

class LeaseRevokeRequest(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: int | None = ...) -> None: ...

class LeaseRevokeResponse(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class LeaseTimeToLiveRequest(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: int | None = ...) -> None: ...

class LeaseTimeToLiveResponse(_message.Message):
    __slots__ = ["ttl"]
    TTL_FIELD_NUMBER: _ClassVar[int]
    ttl: int
    def __init__(self, ttl: int | None = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ["key", "lease", "value"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    lease: int
    value: bytes
    def __init__(self, key: bytes | None = ..., value: bytes | None = ..., lease: int | None = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ["header"]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: ResponseHeader | _Mapping[str, object] | None = ...) -> None: ...

class RangeRequest(_message.Message):
    __slots__ = ["key", "limit", "range_end", "revision"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    limit: int
    range_end: bytes
    revision: int
    def __init__(self, key: bytes | None = ..., range_end: bytes | None = ..., limit: int | None = ..., revision: int | None = ...) -> None: ...

class RangeResponse(_message.Message):
    __slots__ = ["header", "kvs", "more"]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KVS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    kvs: _containers.RepeatedCompositeFieldContainer[KeyValue]
    more: bool
    def __init__(self, header: ResponseHeader | _Mapping[str, object] | None = ..., kvs: _Iterable[KeyValue | _Mapping[str, object]] | None = ..., more: bool = ...) -> None: ...

class RequestOp(_message.Message):
    __slots__ = ["delete_range", "put", "range"]
    DELETE_RANGE_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    delete_range: DeleteRangeRequest
    put: PutRequest
    range: RangeRequest
    def __init__(self, range: RangeRequest | _Mapping[str, object] | None = ..., put: PutRequest | _Mapping[str, object] | None = ..., delete_range: DeleteRangeRequest | _Mapping[str, object] | None = ...) -> None: ...

class ResponseHeader(_message.Message):
    __slots__ = ["revision"]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: int | None = ...) -> None: ...

class ResponseOp(_message.Message):
    __slots__ = ["delete_range", "put", "range"]
    DELETE_RANGE_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    delete_range: DeleteRangeResponse
    put: PutResponse
    range: RangeResponse
    def __init__(self, range: RangeResponse | _Mapping[str, object] | None = ..., put: PutResponse | _Mapping[str, object] | None = ..., delete_range: DeleteRangeResponse | _Mapping[str, object] | None = ...) -> None: ...

class TxnRequest(_message.Message):
    __slots__ = ["compare", "failure", "success"]
    COMPARE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    compare: _containers.RepeatedCompositeFieldContainer[Compare]
    failure: _containers.RepeatedCompositeFieldContainer[RequestOp]
    success: _containers.RepeatedCompositeFieldContainer[RequestOp]
    def __init__(self, compare: _Iterable[Compare | _Mapping[str, object]] | None = ..., success: _Iterable[RequestOp | _Mapping[str, object]] | None = ..., failure: _Iterable[RequestOp | _Mapping[str, object]] | None = ...) -> None: ...

class TxnResponse(_message.Message):
    __slots__ = ["header", "responses", "succeeded"]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    responses: _containers.RepeatedCompositeFieldContainer[ResponseOp]
    succeeded: bool
    def __init__(self, header: ResponseHeader | _Mapping[str, object] | None = ..., succeeded: bool = ..., responses: _Iterable[ResponseOp | _Mapping[str, object]] | None = ...) -> None: ...

class WatchCreateRequest(_message.Message):
    __slots__ = ["key", "progress_notify", "range_end", "start_revision"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_NOTIFY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    START_REVISION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    progress_notify: bool
    range_end: bytes
    start_revision: int
    def __init__(self, key: bytes | None = ..., range_end: bytes | None = ..., start_revision: int | None = ..., progress_notify: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ["create"]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    create: WatchCreateRequest
    def __init__(self, create: WatchCreateRequest | _Mapping[str, object] | None = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ["cancel_reason", "canceled", "compact_revision", "created", "events", "header"]
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REASON_FIELD_NUMBER: _ClassVar[int]
    COMPACT_REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    cancel_reason: str
    canceled: bool
    compact_revision: int
    created: bool
    events: _containers.RepeatedCompositeFieldContainer[Event]
    header: ResponseHeader
    def __init__(self, header: ResponseHeader | _Mapping[str, object] | None = ..., created: bool = ..., canceled: bool = ..., compact_revision: int | None = ..., cancel_reason: str | None = ..., events: _Iterable[Event | _Mapping[str, object]] | None = ...) -> None: ...
