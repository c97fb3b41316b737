// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"io"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/go-logr/logr"
)

// NewLogger writes JSON lines, as MetalLB's programs do. Levels: all, debug, info, warn,
// error, none.
func NewLogger(w io.Writer, levelName string) (log.Logger, error) {
	var option level.Option
	switch levelName {
	case "all", "debug":
		option = level.AllowDebug()
	case "info":
		option = level.AllowInfo()
	case "warn":
		option = level.AllowWarn()
	case "error":
		option = level.AllowError()
	case "none":
		option = level.AllowNone()
	default:
		return nil, fmt.Errorf("log level %q: want all, debug, info, warn, error or none", levelName)
	}
	logger := level.NewFilter(log.NewJSONLogger(log.NewSyncWriter(w)), option)
	return log.With(logger, "ts", log.DefaultTimestampUTC), nil
}

// sink hands the log lines of controller-runtime and client-go to a go-kit logger.
type sink struct {
	logger log.Logger
	name   string
}

// Logr wraps a go-kit logger for the libraries that speak logr.
func Logr(logger log.Logger) logr.Logger { return logr.New(sink{logger: logger}) }

func (s sink) Init(logr.RuntimeInfo) {}

// Enabled leaves the choice to the go-kit logger's own level filter; logr's verbose levels are
// debug lines, of which those above 4 (client-go's request dumps) are dropped.
func (s sink) Enabled(verbosity int) bool { return verbosity <= 4 }

func (s sink) Info(verbosity int, msg string, keysAndValues ...any) {
	logger := level.Debug(s.logger)
	if verbosity == 0 {
		logger = level.Info(s.logger)
	}
	_ = log.With(logger, keysAndValues...).Log("logger", s.name, "msg", msg)
}

func (s sink) Error(err error, msg string, keysAndValues ...any) {
	_ = log.With(level.Error(s.logger), keysAndValues...).Log("logger", s.name, "msg", msg, "error", err)
}

func (s sink) WithValues(keysAndValues ...any) logr.LogSink {
	s.logger = log.With(s.logger, keysAndValues...)
	return s
}

func (s sink) WithName(name string) logr.LogSink {
	if s.name != "" {
		name = s.name + "." + name
	}
	s.name = name
	return s
}
