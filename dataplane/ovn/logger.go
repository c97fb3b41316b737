// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/go-logr/logr"
)

// newLogger lets libovsdb log through ours: its errors as debug messages, because whatever
// matters comes back from a call or as a lost connection, and nothing else.
func newLogger(logger log.Logger) logr.Logger {
	return logr.New(sink{logger: logger})
}

type sink struct {
	logger log.Logger
}

func (s sink) Init(logr.RuntimeInfo)      {}
func (s sink) Enabled(verbosity int) bool { return verbosity == 0 }

func (s sink) Info(_ int, msg string, keysAndValues ...any) {
	level.Debug(s.with(keysAndValues)).Log("event", "libovsdb", "msg", msg)
}

func (s sink) Error(err error, msg string, keysAndValues ...any) {
	level.Debug(s.with(keysAndValues)).Log("event", "libovsdb", "msg", msg, "error", err)
}

func (s sink) WithValues(keysAndValues ...any) logr.LogSink {
	return sink{logger: s.with(keysAndValues)}
}

func (s sink) WithName(string) logr.LogSink { return s }

func (s sink) with(keysAndValues []any) log.Logger {
	if len(keysAndValues) == 0 {
		return s.logger
	}
	return log.With(s.logger, keysAndValues...)
}
