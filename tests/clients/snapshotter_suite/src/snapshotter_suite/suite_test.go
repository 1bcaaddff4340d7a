// containerd's own SnapshotterSuite against a service that listens on a socket.
//
// SNAPSHOTTER_ADDRESS  unix socket: of the service itself, or of a containerd that has it as a proxy plugin
// SNAPSHOTTER_NAME     the snapshotter's name there
//
// Built without modules from Debian's golang-github-containerd-containerd-dev; see ../../../test_snapshotter_suite.py.
package snapshotter_suite

import (
	"context"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestSnapshotter(t *testing.T) {
	address, name := os.Getenv("SNAPSHOTTER_ADDRESS"), os.Getenv("SNAPSHOTTER_NAME")
	if address == "" {
		t.Fatal("SNAPSHOTTER_ADDRESS names no socket")
	}
	connect := func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		connection, err := grpc.Dial("unix://"+address, grpc.WithInsecure())
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), name), connection.Close, nil
	}
	testsuite.SnapshotterSuite(t, name, connect)
}
