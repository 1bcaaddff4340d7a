// Pull an image as containerd's own clients do that unpack while they fetch: nerdctl, the CRI plugin, Docker.
//
//	pull_image SOCKET SNAPSHOTTER REFERENCE [NAMESPACE]
//
// `ctr images pull` of 1.6 fetches everything first and says nothing to the snapshotter; `Client.Pull` asks it for each
// layer, by the label containerd.io/snapshot.ref, and fetches only those that it does not have. Plain HTTP.
//
// Built without modules from Debian's golang-github-containerd-containerd-dev.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/snapshotters"
	"github.com/containerd/containerd/remotes/docker"
)

func main() {
	if len(os.Args) < 4 {
		fail(fmt.Errorf("usage: pull_image SOCKET SNAPSHOTTER REFERENCE [NAMESPACE]"))
	}
	address, snapshotter, reference, namespace := os.Args[1], os.Args[2], os.Args[3], "default"
	if len(os.Args) > 4 {
		namespace = os.Args[4]
	}
	client, err := containerd.New(address)
	if err != nil {
		fail(err)
	}
	defer client.Close()
	resolver := docker.NewResolver(docker.ResolverOptions{PlainHTTP: true})
	image, err := client.Pull(
		namespaces.WithNamespace(context.Background(), namespace),
		reference,
		containerd.WithResolver(resolver),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(reference)),
	)
	if err != nil {
		fail(err)
	}
	fmt.Println(image.Target().Digest)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "pull_image:", err)
	os.Exit(1)
}
