// Package image makes functions of container images: it finds the image, checks it,
// unpacks it into a [store.Store] and reads off its configuration what has to be
// started (ENV-24, ENV-25, ENV-36).
//
// An image comes from an OCI layout or the output of docker save, each as a directory
// or as a tar archive, or from a registry. Every blob is checked against the size and
// digest by which it is named, and every layer against its diffID, before anything
// that came out of it can be used.
//
// # Who does what
//
// [Prepare] parses nothing of an image. A [ReadJob] finds it and decompresses its layers,
// an [UnpackJob] unpacks one of them to a folder, each in a process of its own if Options says
// how. Prepare opens files for the first, passes on a layer to the second, checks it against the
// diffIDs by which it keeps the folder, and makes the tree of the folders.
//
// # One tree per image, whose files are those of layers
//
// A sandbox sees read-only bind mounts, and an overlay only where several sources
// share a target. Layers could become overlays of that kind, but their whiteouts
// would have to be character devices 0:0 and overlay's xattrs then, which need root to
// make and are what must never be taken from a stranger. So the layers are applied to
// one directory tree, in order, and a whiteout removes what it hides at that moment.
//
// Each layer is unpacked once, to an entry of the Store by the list of the diffIDs up to it: what
// its names mean depends on the links of lower layers. The tree of an image, an entry by the
// list of all diffIDs, gets hard links to the files of these entries, and directories of its
// own. So images that begin with the same layers share the layers' files, on the disk and in
// memory, and none of these layers is read again. A tree and its layers are in use together.
//
// # What is taken from a layer
//
// Directories, regular files, symbolic links and hard links to files of the same image.
// Devices, pipes and sockets only remove what they stand in the place of: sandboxes
// have their own /dev. Of the metadata only the permissions and the modification time
// of files are kept. All belongs to the daemon's user, root, whatever the layer says;
// a file that only its owner may read is thus out of the sandbox user's reach even if
// the layer says that it is the owner, which is also what happens on Lambda, where the
// sandbox user is none of the image's. Set-id and sticky bits and all extended
// attributes, file capabilities and overlay's own among them, are dropped.
//
// Layers are hostile input. The unpacker knows the names in the whole tree of lower layers and
// resolves every name in it by itself, link by link, with the tree's top as /. What it then
// asks of [os.Root] has no link on the way, so that a mistake here still could not
// leave the tree. Nothing is followed in the end: a link is replaced, never written
// through.
package image
