package result

// What is measured.
const (
	WarmOne    = "warm invocation, one connection"
	WarmEight  = "warm invocation, eight connections"
	WarmRate   = "warm invocations a second, eight connections"
	WarmSpaced = "warm invocation after a pause of 20 ms"

	ColdNext  = "request to first next"
	ColdMain  = "request to main of the bootstrap"
	ColdTotal = "cold invocation, request to answer"

	FirstByte  = "first byte of a streamed response"
	StreamRate = "speed of a stream of 100 MiB"

	Creation  = "cold invocation, the nth sandbox, request to answer"
	OneOfMany = "invocation of a random one of n idle sandboxes"
	OnlyOne   = "invocation of the only sandbox, in turn with n"
	IdleCPU   = "CPU of the daemon and its init handlers, all idle"
	Memory    = "memory of an idle sandbox"

	Freeze = "freeze, until all is frozen"
	Thaw   = "thaw"
	Lives  = "sandboxes created and destroyed a second"

	WarmSmall   = "warm invocation, event of 1 KB"
	WarmLarge   = "warm invocation, event and answer of 6 MB"
	Start       = "start, until the API answers"
	Page        = "a page of ListFunctions, 50 functions"
	AllMemory   = "memory of all processes of serve (PSS)"
	InTurn      = "warm invocation, every 5 ms"
	Unavailable = "until callers are answered again"
)

// Whom it is measured of.
const (
	Floor    = "floor"
	Sandboxd = "sandboxd"
	NoLinger = "sandboxd --linger=0"
	Pooled   = "sandboxd, pooled sandbox"
	Unpooled = "sandboxd, empty pool"

	Tenth = "10th to 19th"
	Last  = "491st to 500th"

	Most = "500" // the last step of OneOfMany and OnlyOne

	InitHandlers = "init handler (PSS)"
	Daemon       = "growth of the daemon (PSS)"
	Kernel       = "kernel memory charged to the cgroup"
	WholeHost    = "what the host has less, all told, no function in it"

	Runc = "runc run"
	Crun = "crun run"

	RuncConfined = "runc run, same filter, tmpfs /tmp"
	CrunConfined = "crun run, same filter, tmpfs /tmp"
	Library      = "libcontainer alone, as runc run"
	Least        = "libcontainer alone, the least there is"

	Run   = "sandboxd run"
	Serve = "sandboxd serve, signed"

	ServeAdmin = "sandboxd serve, signed by an administrator"

	NoFunctions      = "no function"
	FewFunctions     = "100 functions"
	ManyFunctions    = "10,000 functions"
	OneFunction      = "one function"
	HundredFunctions = "100 functions in turn"

	PlainStart  = "a plain start"
	ControlDies = "the control process is killed"
	WorkerDies  = "the worker is killed"
)

// Units.
const (
	MS          = "ms"
	PerSecond   = "1/s"
	MBPerSecond = "MB/s"
	MB          = "MB"
	Percent     = "%"
)
