// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// tap is the slog handler under GoBGP. It keeps the last error of every peer, since a wrong AS
// number or password makes no event, and passes warnings and errors on. GoBGP's informational
// lines go to debug: the speaker says the same in its own words. Debug lines are only read.
type tap struct {
	instance *instance
	peer     netip.Addr // from the attribute Key
}

// Enabled implements slog.Handler. "failed to connect" is a debug line.
func (*tap) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (t *tap) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *t
	for _, attr := range attrs {
		next.readKey(attr)
	}
	return &next
}

// WithGroup implements slog.Handler; GoBGP has no groups.
func (t *tap) WithGroup(string) slog.Handler { return t }

// readKey takes the peer's address from the attribute that GoBGP has it in: Key, and in BFD's lines
// Peer.
func (t *tap) readKey(attr slog.Attr) {
	if attr.Key != "Key" && attr.Key != "Peer" {
		return
	}
	if address, err := netip.ParseAddr(attr.Value.String()); err == nil {
		t.peer = address.Unmap()
	}
}

// Handle implements slog.Handler. It is called on GoBGP's goroutines, under its locks.
func (t *tap) Handle(_ context.Context, record slog.Record) error {
	text, worth := "", errorLines[record.Message]
	_, bfd := bfdLines[record.Message]
	if worth == nil && !bfd && record.Level < slog.LevelInfo || t.instance.stopped.Load() {
		return nil
	}
	line := *t
	attrs := map[string]slog.Value{}
	record.Attrs(func(attr slog.Attr) bool {
		line.readKey(attr)
		attrs[attr.Key] = attr.Value
		return true
	})
	if worth != nil {
		text = worth(attrs)
	} else if record.Level >= slog.LevelWarn {
		text = record.Message
		for _, key := range []string{"Error", "Err"} {
			if value, ok := attrs[key]; ok {
				text += ": " + value.String()
			}
		}
	}
	if runs, ok := bfdServerLines[record.Message]; ok && line.peer.IsValid() {
		t.instance.bfdServerEvent(line.peer, runs)
	} else if up, ok := bfdLines[record.Message]; ok && line.peer.IsValid() {
		t.instance.bfdEvent(line.peer, up)
	} else if text != "" && line.peer.IsValid() {
		t.instance.sessionError(line.peer, text)
	}
	line.forward(record, text)
	return nil
}

func (t *tap) forward(record slog.Record, text string) {
	var logger log.Logger
	switch {
	case record.Level >= slog.LevelError:
		logger = level.Error(t.instance.logger)
	case record.Level >= slog.LevelWarn:
		logger = level.Warn(t.instance.logger)
	default:
		logger = level.Debug(t.instance.logger)
	}
	keyvals := []any{"event", "gobgp"}
	if t.peer.IsValid() {
		keyvals = append(keyvals, "peer", t.peer)
	}
	if text != "" && text != record.Message {
		keyvals = append(keyvals, "error", text)
	}
	// A logger that can't write has nowhere to say so.
	_ = logger.Log(append(keyvals, "msg", record.Message)...)
}

// bfdLines say whether BFD came up or went down. The second is also a line, later, of a session that
// never was up.
var bfdLines = map[string]bool{"Set state to UP": true, "Expired": false, "Remote peer signaled BFD down": false}

// bfdServerLines say that GoBGP's BFD server has a session, or has ended it.
var bfdServerLines = map[string]bool{"Insert BFD peer": true, "Remove BFD peer": false}

// errorLines are the lines below warning that say why a session isn't there.
var errorLines = map[string]func(attrs map[string]slog.Value) string{
	"failed to connect": func(attrs map[string]slog.Value) string {
		// The address that is not bound yet says nothing.
		return "connecting: " + strings.NewReplacer("0.0.0.0:0->", "", "[::]:0->", "").Replace(attrs["Error"].String())
	},
	"outgoing connection IO error": func(attrs map[string]slog.Value) string {
		return "opening the session: " + attrs["reason"].String()
	},
	"sent notification":     func(attrs map[string]slog.Value) string { return "sent notification: " + notification(attrs) },
	"received notification": func(attrs map[string]slog.Value) string { return "received notification: " + notification(attrs) },
	"Peer Down": func(attrs map[string]slog.Value) string {
		return "session lost: " + attrs["Reason"].String()
	},
}

func notification(attrs map[string]slog.Value) string {
	code, subcode := number(attrs["Code"]), number(attrs["Subcode"])
	return gobgppacket.NewNotificationErrorCode(code, subcode).String()
}

func number(value slog.Value) uint8 {
	if value.Kind() != slog.KindInt64 {
		return 0
	}
	return uint8(value.Int64())
}
