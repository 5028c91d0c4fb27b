package message

import "time"

// LogsPath is what control asks the worker for the lines of a function: GET, with the queries
// function, from (a position), since (milliseconds) and follow; answered with lines of JSON, each
// an admin.LogLine. 404 says that the function has no lines, and that nobody was to wait for
// them.
const LogsPath = "/logs"

// LogSegmentBytes is the most bytes of a segment of the logs of functions.
const LogSegmentBytes = 256 << 10

// LogConfig is the operator's choices about the logs of functions.
type LogConfig struct {
	Segments    int           // of all functions; 0 keeps no logs
	PerFunction int           // segments of one function
	Age         time.Duration // of lines, after which they are removed
	Existing    []int         // numbers of the segments that exist when the worker starts
}

// LogNumbers are what the worker counts of logs.
type LogNumbers struct {
	Bytes   int64  // of all segments
	Dropped uint64 // lines that could not be written
}
