package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sandboxd/sandboxd/instance"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// makeBundle makes an OCI bundle of the files, namespaces, ids and limits that a sandbox
// has. What a sandbox has besides is left out, to the runtime's favour: the seccomp
// filter, the file system of /tmp, the listener of the Runtime API.
func makeBundle(ctx context.Context, o Options) (dir string, err error) {
	tree, err := prepare(ctx, o)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(o.Dir, "bundle")
	root := filepath.Join(dir, "rootfs")
	for _, d := range append([]string{"/", "/proc", "/dev"}, tree.Dirs...) {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	for _, l := range tree.Links {
		if err := os.Symlink(l.Target, filepath.Join(root, l.Path)); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	config, err := json.MarshalIndent(ociSpec(tree), "", " ")
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644)
}

// ociSpec describes the container.
func ociSpec(tree *rootfs.Tree) specs.Spec {
	bytes, period, quota, most := int64(memory), uint64(100_000), int64(cpus*100_000), int64(pids)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: instance.DefaultIDBase, Size: isolation.IDCount}}
	spec := specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: "sandbox",
		Process: &specs.Process{
			Args: []string{program}, Cwd: "/", NoNewPrivileges: true,
			User: specs.User{UID: isolation.UserID, GID: isolation.GroupID},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=16m"}},
		},
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids,
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &bytes, Swap: &bytes},
				CPU:    &specs.LinuxCPU{Period: &period, Quota: &quota},
				Pids:   &specs.LinuxPids{Limit: &most},
			},
		},
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.UserNamespace, specs.CgroupNamespace, specs.NetworkNamespace,
	} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	for _, m := range tree.Mounts {
		spec.Mounts = append(spec.Mounts, bind(m))
	}
	return spec
}

// bind is a mount of the tree: an overlay if it has several sources.
func bind(m rootfs.Mount) specs.Mount {
	options := []string{"rbind", "ro", "nosuid", "nodev"}
	if len(m.Sources) != 1 {
		panic(fmt.Sprintf("%s has %d sources; a function without layers has one", m.Target, len(m.Sources)))
	}
	return specs.Mount{Destination: m.Target, Type: "bind", Source: m.Sources[0], Options: options}
}
