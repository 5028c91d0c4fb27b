package invoke

import (
	"encoding/binary"
	"hash/crc32"
)

// An eventType is the kind of a message of a response stream (INV-31).
type eventType struct {
	headers []byte // encoded
}

var (
	payloadChunk   = newEventType("PayloadChunk", "application/octet-stream")
	invokeComplete = newEventType("InvokeComplete", "application/json")
)

// Sizes of INV-30.
const (
	preludeSize  = 12 // total length, length of the headers, CRC of these two
	checksumSize = 4
	stringValue  = 7 // type of a header's value
)

func newEventType(name, contentType string) eventType {
	var b []byte
	for _, h := range [][2]string{{":message-type", "event"}, {":event-type", name}, {":content-type", contentType}} {
		b = append(append(b, byte(len(h[0]))), h[0]...)
		b = append(b, stringValue)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(h[1]))), h[1]...)
	}
	return eventType{headers: b}
}

// message returns one message (INV-30) in three parts, so that the payload is not copied. SDKs
// accept messages of at most 16 MiB.
func (e eventType) message(payload []byte) [3][]byte {
	head := make([]byte, 0, preludeSize+len(e.headers))
	head = binary.BigEndian.AppendUint32(head, uint32(preludeSize+len(e.headers)+len(payload)+checksumSize))
	head = binary.BigEndian.AppendUint32(head, uint32(len(e.headers)))
	head = binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(head))
	head = append(head, e.headers...)
	sum := crc32.Update(crc32.ChecksumIEEE(head), crc32.IEEETable, payload)
	return [...][]byte{head, payload, binary.BigEndian.AppendUint32(nil, sum)}
}
