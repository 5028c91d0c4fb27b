package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// templateVersion changes whenever the images of [TmpTemplate] do.
const templateVersion = 1

const (
	blockBytes     = 4096
	inodeBytes     = 256
	bytesPerInode  = 16 << 10          // mke2fs's own default
	groupBytes     = 128 << 20         // of one block group with blocks of 4 KiB
	kernelReserve  = 4096 * blockBytes // ext4 keeps this from every user of a file system with extents
	ownInodes      = 10                // of ext4 itself; the eleventh was lost+found
	rootInodeMode  = 0o041777
	maxTmpBytes    = 1 << 40 // ENV-30 allows 10,240 MB
	superblockAt   = 1024
	superblockSize = 1024
)

// templateFile is the name of the image in the tree of a template's entry.
const templateFile = "tmp.ext4"

// TmpTemplate gives the path of an ext4 image for /tmp on which ordinary users can
// store at least bytes, and a few percent more at most (ENV-30). Its root has mode
// 1777 and is empty, without lost+found; inodes are bounded, one for each 16 KiB;
// there is no journal, and nothing that the kernel would initialise later in the
// background. The file is sparse and must not be changed: sandboxes get copies.
//
// Images are entries of the store, by size; ref refers to that of the image. The work is
// done by mke2fs and debugfs.
func (s *Store) TmpTemplate(ctx context.Context, bytes int64) (path string, ref *Ref, err error) {
	if bytes < 1<<20 || bytes > maxTmpBytes {
		return "", nil, &invalid.Error{Kind: invalid.ErrTooLarge, File: "/tmp", Reason: fmt.Sprintf("cannot have %d bytes", bytes),
			Fix: "ask for 1 MiB to 1 TiB"}
	}
	name := fmt.Sprintf("template of /tmp, form %d, %d bytes", templateVersion, bytes)
	origin := Origin{KindTmp, fmt.Sprintf("/tmp of %s", invalid.Megabytes(bytes))}
	check := func(tree string) error { return checkImage(filepath.Join(tree, templateFile), bytes) }
	ref, err = s.addTree(ctx, name, origin, check, func(root *os.Root) (int64, error) {
		image := filepath.Join(root.Name(), templateFile)
		if err := makeImage(ctx, image, bytes); err != nil {
			return 0, err
		}
		info, err := os.Stat(image)
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	})
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(ref.Dir, templateFile), ref, nil
}

// makeImage makes the file system and checks that it is what was asked for.
func makeImage(ctx context.Context, image string, usable int64) error {
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	debugfs, err := findTool("debugfs")
	if err != nil {
		return err
	}
	inodes := max(usable/bytesPerInode, 1024)
	size := usable + usable/256 + kernelReserve + inodes*inodeBytes + 1<<20 // 1/256: indirect and directory blocks
	size += (size/groupBytes + 1) * 4 * blockBytes                          // bitmaps, copies of the superblock
	size = (size + blockBytes - 1) / blockBytes * blockBytes
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return fmt.Errorf("template of /tmp: %w", err)
	}
	if err := os.Truncate(image, size); err != nil {
		return fmt.Errorf("template of /tmp: %w", err)
	}
	// Features are listed one by one, so that the host's mke2fs.conf does not matter
	// and every kernel that we run on can mount the image. Without checksums of group
	// descriptors there is no lazy initialisation.
	err = runTool(ctx, "", mke2fs, "-q", "-F", "-b", fmt.Sprint(blockBytes), "-I", fmt.Sprint(inodeBytes), "-N", fmt.Sprint(inodes),
		"-m", "0", "-e", "continue", "-O", "none,extent,flex_bg,filetype,sparse_super,large_file,huge_file,dir_nlink,dir_index,extra_isize",
		"-E", "lazy_itable_init=0", image)
	if err != nil {
		return err
	}
	// mke2fs's own root_perms is newer than Debian 12.
	if err := runTool(ctx, "rmdir lost+found\nset_inode_field / mode 041777\n", debugfs, "-w", "-f", "-", image); err != nil {
		return err
	}
	if err := checkImage(image, usable); err != nil {
		return fmt.Errorf("%s made an unexpected file system: %w", mke2fs, err)
	}
	return nil
}

// checkImage reads the superblock and the root's inode: debugfs succeeds even if
// its commands fail.
func checkImage(image string, usable int64) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	sb := make([]byte, superblockSize)
	if _, err := f.ReadAt(sb, superblockAt); err != nil {
		return err
	}
	le := binary.LittleEndian
	const magicAt, magic = 56, 0xEF53
	if le.Uint16(sb[magicAt:]) != magic {
		return errors.New("no ext4 superblock")
	}
	if info, err := f.Stat(); err != nil {
		return err
	} else if blocks := le.Uint32(sb[4:]); info.Size() != int64(blocks)*blockBytes {
		return fmt.Errorf("the file has %d bytes, its file system %d blocks", info.Size(), blocks)
	}
	inodes, freeBlocks, freeInodes := le.Uint32(sb[0:]), le.Uint32(sb[12:]), le.Uint32(sb[16:])
	if inodes-freeInodes != ownInodes {
		return fmt.Errorf("%d inodes are used, not %d", inodes-freeInodes, ownInodes)
	}
	if free := int64(freeBlocks)*blockBytes - kernelReserve; free < usable {
		return fmt.Errorf("%d bytes are usable of %d", free, usable)
	}
	group := make([]byte, 32) // descriptor of the first block group, in block 1
	if _, err := f.ReadAt(group, blockBytes); err != nil {
		return err
	}
	mode := make([]byte, 2)
	if _, err := f.ReadAt(mode, int64(le.Uint32(group[8:]))*blockBytes+inodeBytes); err != nil { // inode 2 is the root
		return err
	}
	if got := le.Uint16(mode); got != rootInodeMode {
		return fmt.Errorf("mode of the root is %06o", got)
	}
	return nil
}

// findTool looks for a program of e2fsprogs also where only root's PATH leads.
func findTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", &invalid.Error{Kind: invalid.ErrTool, File: name, Reason: "is not installed on this host", Fix: "apt-get install e2fsprogs"}
}

// runTool runs a program with a fixed environment and tells its last words.
func runTool(ctx context.Context, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"LC_ALL=C", "MKE2FS_CONFIG=/dev/null"}
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, invalid.Shorten(strings.TrimSpace(stderr.String())))
	}
	return nil
}
