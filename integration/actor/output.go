package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

// flood writes to standard error as fast as it can.
func flood(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	block := bytes.Repeat([]byte("x"), mib)
	if s.MS > 0 {
		for i := int(s.MS) - 1; i < len(block); i += int(s.MS) {
			block[i] = '\n'
		}
	}
	for e.N < s.N {
		n, err := os.Stderr.Write(block)
		e.N += int64(n)
		if err != nil {
			e.Fail(err)
			return
		}
	}
}

// frames writes framed log messages of level ERROR, once for each byte at which a frame
// can be split in two writes. The k-th, counted from 0, has " k" behind its text and a time
// k seconds after N, which is Unix time in seconds. The number of frames is noted.
func frames(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	fd, err := strconv.Atoi(os.Getenv("_LAMBDA_TELEMETRY_LOG_FD"))
	if err != nil {
		e.Fail(err)
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
			e.N = int64(k)
			return
		}
		_, err1 := f.Write(b[:k])
		time.Sleep(time.Millisecond) // the reader sees the first part alone
		_, err2 := f.Write(b[k:])
		if err := errors.Join(err1, err2); err != nil {
			e.Fail(err)
			return
		}
	}
}
