"""A client of containerd's snapshots service, as containerd is one: gRPC over a Unix socket."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf import empty_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from layerstore.serve._proto import snapshots_pb2 as pb
from layerstore.serve.snapshotter import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

__all__ = ["SnapshotsClient", "snapshots_client"]

Answer = TypeVar("Answer", bound="Message")

_TIMEOUT_S = 60


class SnapshotsClient:
    """A method for each call; errors are `grpc.RpcError` with `code()` and `details()`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[pb.Mount]:
        request = pb.MakeRequest(key=key, parent=parent, labels=labels)
        return list(self._call("Prepare", request, pb.MountsResponse).mounts)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[pb.Mount]:
        request = pb.MakeRequest(key=key, parent=parent, labels=labels)
        return list(self._call("View", request, pb.MountsResponse).mounts)

    def mounts(self, key: str) -> list[pb.Mount]:
        return list(self._call("Mounts", pb.KeyRequest(key=key), pb.MountsResponse).mounts)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        request = pb.CommitRequest(name=name, key=key, labels=labels, parent=parent)
        self._call("Commit", request, empty_pb2.Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", pb.KeyRequest(key=key), empty_pb2.Empty)

    def stat(self, key: str) -> pb.Info:
        return self._call("Stat", pb.KeyRequest(key=key), pb.InfoResponse).info

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> pb.Info:
        info = pb.Info(name=name, labels=labels)
        request = pb.UpdateRequest(info=info, update_mask=FieldMask(paths=paths))
        return self._call("Update", request, pb.InfoResponse).info

    def usage(self, key: str) -> pb.UsageResponse:
        return self._call("Usage", pb.KeyRequest(key=key), pb.UsageResponse)

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(), empty_pb2.Empty)

    def list(self, *filters: str) -> list[pb.Info]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/List", pb.ListRequest.SerializeToString, pb.ListResponse.FromString
        )
        answers = call(pb.ListRequest(filters=filters), timeout=_TIMEOUT_S)
        return [info for answer in answers for info in answer.info]

    def _call(self, method: str, request: Any, answer: type[Answer]) -> Answer:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", type(request).SerializeToString, answer.FromString
        )
        answered: Answer = call(request, timeout=_TIMEOUT_S)
        return answered


@contextmanager
def snapshots_client(socket: Path) -> Iterator[SnapshotsClient]:
    """A client of the service that listens there; waits until it does."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        grpc.channel_ready_future(channel).result(_TIMEOUT_S)
        yield SnapshotsClient(channel)
