// Package rootfs says what a sandbox sees as files: the base system, the
// function's code in /var/task, its layers in /opt, the runtime client in
// /var/runtime (ENV-23 to ENV-30, ENV-36).
//
// It prepares folders and describes them as plain data, a [Tree]; it mounts
// nothing and needs no privilege. [Prepare] does the whole job for one function,
// [Base] only the part below the code. [PrepareImage] does the job for the files of a
// container image, which package rootfs/image gets.
//
// Code packages, layers and base trees are hostile input. Two rules keep them in
// their place:
//
//   - Files of a tree are only reached through [os.Root], so a link cannot lead a
//     reader or a writer to the host.
//   - A path inside the sandbox is resolved by walking the same combined view that
//     the sandbox will see, link by link, never by the host's own lookup.
package rootfs
