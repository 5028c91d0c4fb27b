package reexec

/*
#define _GNU_SOURCE
#include <errno.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CGROUP_FD 6

static int is_on(int fd, long magic)
{
	struct statfs fs;
	return fstatfs(fd, &fs) == 0 && fs.f_type == magic;
}

// clone is called by libcontainer's nsexec alone, which finds this one before libc's: for
// the process that becomes the domain's, and by that for another one.
int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	if ((flags & CLONE_VM) || getenv("_LIBCONTAINER_INITPIPE") == NULL) {
		errno = EINVAL; // not nsexec's, then
		return -1;
	}
	struct clone_args args = { .flags = (unsigned)flags & ~CSIGNAL };
	if (!(flags & CLONE_PARENT)) // else the signal is the one of the caller's end
		args.exit_signal = flags & CSIGNAL;
	int fd = CGROUP_FD;
	for (;; fd++) {
		if (is_on(fd, CGROUP_SUPER_MAGIC)) {
			if (write(fd, "0", 1) != 1)
				return -1;
		} else if (is_on(fd, CGROUP2_SUPER_MAGIC)) {
			args.flags |= CLONE_INTO_CGROUP;
			args.cgroup = fd;
		} else {
			break;
		}
	}
	pid_t pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -1;
	while (--fd >= CGROUP_FD)
		close(fd); // nothing inside may have them
	if (pid == 0)
		_exit(fn(arg)); // on a copy of the caller's stack: fn jumps back to where clone was called
	return pid;
}
*/
import "C"

// CgroupFD is the first of the descriptors by which libcontainer's process enters the
// cgroups of its domain: of each v1 cgroup its file tasks, open for writing, and the
// directory of the v2 cgroup, in any order. It must be the fourth of
// libcontainer.Process.ExtraFiles.
//
// libcontainer has its parent write its process id to cgroup.procs. That takes a lock for
// which the kernel waits 10 to 15 ms, a grace period of RCU, if nobody has taken it
// just before. A thread that moves itself, and a process that is born in its cgroup
// (CLONE_INTO_CGROUP, Linux 5.7), take no such lock (cgroup_procs_write_start and
// cgroup_css_set_fork in the kernel's kernel/cgroup/cgroup.c).
const CgroupFD = C.CGROUP_FD
