"""containerd's snapshots service over our snapshots: unpack, call, pack. A proxy plugin of type "snapshot".

    Prepare View Mounts Commit Remove Stat Update List Usage Cleanup   ->   the method of `Snapshots`

An error becomes a status code (`serve.codes`); nothing is decided here. Every call is counted and timed. A Prepare for a
layer that the store has is answered by ALREADY_EXISTS: containerd then looks for the committed snapshot, and fetches nothing.

Source: containerd `api/services/snapshots/v1`; docs/snapshotter.md.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from layerstore.errors import AlreadyExists, FailedPrecondition
from layerstore.serve._proto import snapshots_pb2 as pb
from layerstore.serve.codes import message_of, status_code
from layerstore.snapshots import Info, SnapshotKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from layerstore.serve.metrics import CallMetrics
    from layerstore.snapshots import MountSpec, Snapshots

__all__ = ["SERVICE", "SnapshotsService"]

SERVICE = "containerd.services.snapshots.v1.Snapshots"

_log = logging.getLogger(__name__)

_KINDS = {
    SnapshotKind.VIEW: pb.VIEW,
    SnapshotKind.ACTIVE: pb.ACTIVE,
    SnapshotKind.COMMITTED: pb.COMMITTED,
}
_OF_KINDS = {number: kind for kind, number in _KINDS.items()}
_LIST_BATCH = 100  # infos in one message, as containerd sends them
_EXPECTED = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS)


class SnapshotsService:
    """The methods of the service. Thread safety: all methods, from any thread.

    At most one commit for each CPU reads and compresses at a time: each takes up to 200 MiB of memory.
    """

    def __init__(self, snapshots: Snapshots, metrics: CallMetrics) -> None:
        self._snapshots, self._metrics = snapshots, metrics
        self._committing = threading.BoundedSemaphore(os.cpu_count() or 1)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        unary: list[tuple[str, type[Message], Callable[[Any], Message]]] = [
            ("Prepare", pb.MakeRequest, self._prepare),
            ("View", pb.MakeRequest, self._view),
            ("Mounts", pb.KeyRequest, self._mounts),
            ("Commit", pb.CommitRequest, self._commit),
            ("Remove", pb.KeyRequest, self._remove),
            ("Stat", pb.KeyRequest, self._stat),
            ("Update", pb.UpdateRequest, self._update),
            ("Usage", pb.KeyRequest, self._usage),
            ("Cleanup", pb.CleanupRequest, self._cleanup),
        ]
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answering(name, call),
                request_deserializer=request.FromString,
                response_serializer=_serialized,
            )
            for name, request, call in unary
        }
        methods["List"] = grpc.unary_stream_rpc_method_handler(
            self._list,
            request_deserializer=pb.ListRequest.FromString,
            response_serializer=_serialized,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _answering(
        self, name: str, call: Callable[[Any], Message]
    ) -> Callable[[Any, grpc.ServicerContext], Message]:
        def answer(request: Any, context: grpc.ServicerContext) -> Message:
            with self._answered(name, request, context):
                return call(request)
            raise AssertionError("an aborted call does not come here")

        return answer

    @contextmanager
    def _answered(self, name: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        """Time a call, and end it with a status where it raises."""
        started_s = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            with self._metrics.in_flight():
                yield
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            code = status_code(error)
            _log_failure(name, request, code, error)
            context.abort(code, message_of(error))
        finally:
            duration_s = time.monotonic() - started_s
            self._metrics.observe(name, code.name, duration_s)
            _log.debug(
                "%s %s", name, code.name, extra={"key": _key_of(request), "duration_s": duration_s}
            )

    def _prepare(self, request: pb.MakeRequest) -> pb.MountsResponse:
        labels = dict(request.labels)
        offered = self._snapshots.offer(request.key, request.parent, labels)
        if offered is not None:
            self._metrics.count_offered()
            raise AlreadyExists(
                f"snapshot {offered.name} has what was to be unpacked: already exists"
            )
        self._snapshots.prepare(request.key, request.parent, labels)
        return self._mounts_of(request.key)

    def _view(self, request: pb.MakeRequest) -> pb.MountsResponse:
        self._snapshots.view(request.key, request.parent, dict(request.labels))
        return self._mounts_of(request.key)

    def _mounts(self, request: pb.KeyRequest) -> pb.MountsResponse:
        return self._mounts_of(request.key)

    def _mounts_of(self, key: str) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=map(_mount_message, self._snapshots.mounts(key)))

    def _commit(self, request: pb.CommitRequest) -> empty_pb2.Empty:
        if request.parent:
            active = self._snapshots.stat(request.key)
            if active.parent != request.parent:
                raise FailedPrecondition(
                    f"snapshot {request.key} stands on {active.parent!r}, not on {request.parent!r}"
                )
        with self._committing:
            self._snapshots.commit(request.name, request.key, dict(request.labels))
        return empty_pb2.Empty()

    def _remove(self, request: pb.KeyRequest) -> empty_pb2.Empty:
        self._snapshots.remove(request.key)
        return empty_pb2.Empty()

    def _stat(self, request: pb.KeyRequest) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info_message(self._snapshots.stat(request.key)))

    def _update(self, request: pb.UpdateRequest) -> pb.InfoResponse:
        info = self._snapshots.update(_info_of(request.info), list(request.update_mask.paths))
        return pb.InfoResponse(info=_info_message(info))

    def _usage(self, request: pb.KeyRequest) -> pb.UsageResponse:
        usage = self._snapshots.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def _cleanup(self, request: pb.CleanupRequest) -> empty_pb2.Empty:
        del request
        self._snapshots.cleanup()
        return empty_pb2.Empty()

    def _list(
        self, request: pb.ListRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListResponse]:
        with self._answered("List", request, context):
            batch: list[pb.Info] = []
            for info in self._snapshots.walk(list(request.filters)):
                batch.append(_info_message(info))
                if len(batch) == _LIST_BATCH:
                    yield pb.ListResponse(info=batch)
                    batch = []
            if batch:
                yield pb.ListResponse(info=batch)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _mount_message(spec: MountSpec) -> pb.Mount:
    return pb.Mount(type=spec.type, source=spec.source, options=spec.options)


def _info_message(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=info.labels,
    )


def _info_of(message: pb.Info) -> Info:
    """What a client says; only the name and the labels are looked at."""
    kind = _OF_KINDS.get(message.kind, SnapshotKind.ACTIVE)
    return Info(message.name, message.parent, kind, dict(message.labels), 0, 0)


def _timestamp(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // 10**9, nanos=time_ns % 10**9)


def _key_of(request: Any) -> str:
    """What a call is about, for logs."""
    if isinstance(request, pb.UpdateRequest):
        return request.info.name
    return str(getattr(request, "key", ""))


def _log_failure(name: str, request: Any, code: grpc.StatusCode, error: BaseException) -> None:
    if code in _EXPECTED:
        return  # part of a conversation: containerd asks before it makes
    is_bug = code is grpc.StatusCode.INTERNAL
    _log.log(
        logging.ERROR if is_bug else logging.WARNING,
        "%s: %s",
        name,
        error,
        exc_info=error if is_bug else None,
        extra={"key": _key_of(request), "code": code.name},
    )
