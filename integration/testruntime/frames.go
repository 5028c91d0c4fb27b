package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// frames writes Data as framed log messages of level ERROR, once for each byte at
// which a frame can be split in two writes. The k-th, counted from 0, has " k" behind
// its text and a time k seconds after N, which is Unix time in seconds. The number of
// frames is noted.
func frames(_ *testRuntime, s script.Step, r *script.Result) {
	fd, err := strconv.Atoi(os.Getenv("_LAMBDA_TELEMETRY_LOG_FD"))
	if err != nil {
		fail(r, err)
		return
	}
	f := os.NewFile(uintptr(fd), "frames")
	for k := 0; ; k++ {
		text := fmt.Sprintf("%s %d", s.Data, k)
		b := binary.BigEndian.AppendUint32(nil, 0xA55A0017)
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = binary.BigEndian.AppendUint64(b, uint64(s.N+int64(k))*1e6)
		b = append(b, text...)
		if k > len(b) {
			r.N = int64(k)
			return
		}
		_, err1 := f.Write(b[:k])
		time.Sleep(time.Millisecond) // the reader sees the first part alone
		_, err2 := f.Write(b[k:])
		if err := errors.Join(err1, err2); err != nil {
			fail(r, err)
			return
		}
	}
}
