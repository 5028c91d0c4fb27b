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

	Freeze = "freeze, until all is frozen"
	Thaw   = "thaw"
	Lives  = "sandboxes created and destroyed a second"
)

// Whom it is measured of.
const (
	Floor    = "floor"
	Sandboxd = "sandboxd"
	NoLinger = "sandboxd --linger=0"
	Pooled   = "sandboxd, pooled sandbox"
	Unpooled = "sandboxd, empty pool"
	Runc     = "runc run"
	Crun     = "crun run"
)

// Units.
const (
	MS        = "ms"
	PerSecond = "1/s"
	MB        = "MB"
	Percent   = "%"
)
