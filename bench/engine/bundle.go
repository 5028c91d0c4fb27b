package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// makeBundle makes an OCI bundle of the files, namespaces, ids and limits that a sandbox
// has. What a sandbox has besides is left out, to the runtime's favour: the seccomp
// filter, the file system of /tmp, the listener of the Runtime API. With confined it has
// the same filter, and a tmpfs of the same size as its /tmp.
func makeBundle(ctx context.Context, o Options, confined bool) (dir string, spec *specs.Spec, err error) {
	tree, err := prepare(ctx, o)
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(o.Dir, "bundle")
	root := filepath.Join(dir, "rootfs")
	for _, d := range append([]string{"/", "/proc", "/dev", "/tmp"}, tree.Dirs...) {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", nil, err
		}
	}
	for _, l := range tree.Links {
		if err := os.Symlink(l.Target, filepath.Join(root, l.Path)); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", nil, err
		}
	}
	spec = ociSpec(tree)
	if confined {
		if err := confine(spec); err != nil {
			return "", nil, err
		}
	}
	config, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		return "", nil, err
	}
	return dir, spec, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644)
}

// confine adds to spec the seccomp profile of sandboxes, and a /tmp.
func confine(spec *specs.Spec) error {
	profile, err := isolation.SeccompConfig(isolation.DefaultProfile, runtime.GOARCH)
	if err != nil {
		return err
	}
	actions := map[configs.Action]specs.LinuxSeccompAction{configs.Allow: specs.ActAllow, configs.Errno: specs.ActErrno}
	operators := map[configs.Operator]specs.LinuxSeccompOperator{
		configs.EqualTo: specs.OpEqualTo, configs.LessThan: specs.OpLessThan, configs.MaskEqualTo: specs.OpMaskedEqual,
	}
	filter := &specs.LinuxSeccomp{DefaultAction: actions[profile.DefaultAction], DefaultErrnoRet: profile.DefaultErrnoRet}
	for _, rule := range profile.Syscalls {
		call := specs.LinuxSyscall{Names: []string{rule.Name}, Action: actions[rule.Action], ErrnoRet: rule.ErrnoRet}
		for _, a := range rule.Args {
			call.Args = append(call.Args, specs.LinuxSeccompArg{Index: a.Index, Value: a.Value, ValueTwo: a.ValueTwo, Op: operators[a.Op]})
		}
		filter.Syscalls = append(filter.Syscalls, call)
	}
	spec.Linux.Seccomp = filter
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=512m"},
	})
	return nil
}

// leastOf takes from spec what a container can do without.
func leastOf(spec *specs.Spec) {
	spec.Hostname = ""
	spec.Linux.UIDMappings, spec.Linux.GIDMappings, spec.Linux.Resources = nil, nil, nil
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
}

// ociSpec describes the container.
func ociSpec(tree *rootfs.Tree) *specs.Spec {
	bytes, period, quota, most := int64(memory), uint64(100_000), int64(cpus*100_000), int64(pids)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: subid.DefaultIDBase, Size: isolation.IDCount}}
	spec := &specs.Spec{
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
