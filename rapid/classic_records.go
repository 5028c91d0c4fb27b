package rapid

import (
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// beginLog begins the log of the current invocation.
func (m *classicMode) beginLog() {
	if inv := m.current.inv; inv.NoTail {
		m.s.log.BeginUnread(inv.ID)
	} else {
		m.s.log.Begin(inv.ID)
	}
}

// reportStart writes START, after all earlier output, and begins the log of the invocation
// (LOG-34).
func (m *classicMode) reportStart() {
	m.s.drain()
	if !m.inlineLog {
		m.beginLog()
	}
	m.s.reportStart(&m.current.invocation)
}

// reportRuntimeDone writes the record of TL-36, once for each invocation that was delivered.
func (m *classicMode) reportRuntimeDone(errorType string, status telemetry.Status) {
	c := m.current
	if !c.ready.IsZero() || c.released.IsZero() {
		return
	}
	c.ready = time.Now()
	m.s.drain() // the runtime's output comes before the record
	if f := c.result.fault; errorType == "" && status == telemetry.Success && f != nil {
		errorType, status = f.Type, telemetry.StatusOf(f.Type)
	}
	r := &telemetry.RuntimeDone{RequestID: c.inv.ID, Status: status, ErrorType: errorType,
		Metrics: &telemetry.RuntimeMetrics{Duration: telemetry.Millis(c.ready.Sub(c.released))},
		Spans:   c.spans(), Tracing: telemetry.NewTracing(c.inv.TraceID), TenantID: c.inv.TenantID}
	if !c.lastByte.IsZero() {
		r.Metrics.ProducedBytes = &c.produced
	}
	m.s.log.Platform(r)
}

// spans returns the spans of TL-45.
func (c *classicInvocation) spans() []telemetry.Span {
	spans := c.invocation.spans()
	if spans != nil {
		spans = append(spans, span("runtimeOverhead", c.lastByte, c.ready))
	}
	return spans
}

// reportFault writes the line of LOG-29.
func (m *classicMode) reportFault(f *Fault) {
	id := ""
	if m.current != nil {
		id = m.current.inv.ID
	}
	m.s.reportFault(id, f)
}

// reportEnd writes END and REPORT at Done, after all earlier output. An error that the
// function itself has posted is a success of the environment (LOG-23).
func (m *classicMode) reportEnd(errorType string, status telemetry.Status) {
	s, c, f := m.s, m.current, &m.s.cfg.Function
	s.flush()
	if f := c.result.fault; status == telemetry.Success && f != nil {
		errorType, status = f.Type, telemetry.StatusOf(f.Type)
	}
	d := time.Since(c.started)
	if status == telemetry.Timeout {
		d = min(d, f.Timeout)
	}
	billed := d
	r := &telemetry.Report{RequestID: c.inv.ID, Status: status, ErrorType: errorType, Tracing: telemetry.NewTracing(c.inv.TraceID)}
	if m.initTime != nil { // LOG-24: only in the first report after an initialization with its own phase
		millis := telemetry.Millis(*m.initTime)
		r.Metrics.InitDuration = &millis
		if s.cfg.Settings.BillInit {
			billed += *m.initTime
		}
		m.initTime = nil
	}
	if m.restoreTime != nil {
		millis, billed := telemetry.Millis(*m.restoreTime), telemetry.Billed(*m.restoreTime)
		r.Metrics.RestoreDuration, r.Metrics.BilledRestoreMillis = &millis, &billed
		m.restoreTime = nil
	}
	if len(s.agents) > 0 && !c.ready.IsZero() { // TL-46
		r.Spans = []telemetry.Span{span("extensionOverhead", c.ready, time.Now())}
	}
	r.Metrics.Duration, r.Metrics.BilledMillis = telemetry.Millis(d), telemetry.Billed(billed)
	r.Metrics.MemorySizeMB, r.Metrics.MaxMemoryUsedMB = f.MemoryMB, s.maxMemoryMB()
	s.log.Platform(&telemetry.End{RequestID: c.inv.ID})
	s.log.Platform(r)
	s.hub.Flush() // TL-17
	c.result.tail = s.log.End()
	c.reported, m.inlineLog = true, false
}
