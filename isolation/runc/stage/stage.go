// Package stage swaps the program that libcontainer executes for a new domain.
//
// libcontainer executes its own program for it, the daemon: a large one, whose packages
// are initialized before it sees what it is wanted for. This package, linked into the
// daemon, executes command sandbox-stage instead, which is that part of libcontainer and
// nothing else, before the Go runtime starts. Where descriptor [FD] is no sealed file,
// nothing is swapped, and the daemon's program does the same (package reexec).
package stage

/*
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

// Constructors of this priority run before libcontainer's, which starts with its work.
static void __attribute__((constructor(101))) swap(int argc, char **argv)
{
	if (argc != 2 || strcmp(argv[1], "init") != 0 || getenv("_LIBCONTAINER_INITPIPE") == NULL)
		return;
	int seals = fcntl(5, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_WRITE))
		return;
	setenv("GOMAXPROCS", "1", 1); // it does one thing at a time, and starts a quarter faster if it knows
	fexecve(5, argv, environ);
}
*/
import "C"

// FD is the descriptor at which libcontainer's process finds the program to be. It must
// be the third of libcontainer.Process.ExtraFiles.
const FD = 5
