// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/ovn-org/libovsdb/cache"
	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
)

const (
	connectTimeout = 10 * time.Second
	retryFirst     = 50 * time.Millisecond
	retryLongest   = 2 * time.Second
	lookInterval   = 5 * time.Second
)

// database keeps one connection to one database. Each connection has a client, a schema and a
// cache of its own: libovsdb's own reconnect panics when it gives up and keeps the old schema.
type database struct {
	name   string
	socket string
	model  model.ClientDBModel
	tables []client.TableMonitor
	logger log.Logger
	// connected is called after a connection is made or lost, row after a monitored row changed.
	// Neither may block.
	connected func()
	row       func()

	mu      sync.Mutex
	current *session
}

// session is one connection with its monitored rows.
type session struct {
	client client.Client
	cache  *cache.TableCache
}

// session returns the connection, nil while there is none.
func (d *database) session() *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current
}

func (d *database) set(s *session) {
	d.mu.Lock()
	d.current = s
	d.mu.Unlock()
	d.connected()
}

// run connects, and connects again, until ctx ends.
func (d *database) run(ctx context.Context) {
	wait, failed := retryFirst, false
	for {
		s, err := d.connect(ctx)
		if err == nil {
			level.Info(d.logger).Log("event", "databaseConnected", "msg", "connected to the database", "database", d.name, "socket", d.socket)
			wait, failed = retryFirst, false
			d.set(s)
			if s.hold(ctx) {
				level.Warn(d.logger).Log("event", "databaseLost", "msg", "lost the connection to the database", "database", d.name)
			}
			s.client.Close()
			d.set(nil)
		} else if !failed && ctx.Err() == nil {
			// Once per outage: the attempts go on.
			failed = true
			level.Warn(d.logger).Log("event", "databaseUnreachable", "msg", "cannot connect to the database", "database", d.name, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, retryLongest)
		}
	}
}

// connect returns a session whose cache is filled.
func (d *database) connect(ctx context.Context) (*session, error) {
	sink := newLogger(d.logger)
	c, err := client.NewOVSDBClient(d.model, client.WithEndpoint("unix:"+d.socket), client.WithLogger(&sink))
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", d.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		return nil, fmt.Errorf("database %s: %w", d.name, err)
	}
	rows := c.Cache()
	if rows == nil {
		return nil, fmt.Errorf("database %s: %w", d.name, client.ErrNotConnected)
	}
	rows.AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(string, model.Model) { d.row() },
		UpdateFunc: func(string, model.Model, model.Model) { d.row() },
		DeleteFunc: func(string, model.Model) { d.row() },
	})
	monitor := c.NewMonitor()
	monitor.Tables = d.tables
	if _, err := c.Monitor(ctx, monitor); err != nil {
		c.Close()
		return nil, fmt.Errorf("database %s: monitor: %w", d.name, err)
	}
	return &session{client: c, cache: rows}, nil
}

// hold returns true when the connection is gone and false when ctx ended.
func (s *session) hold(ctx context.Context) bool {
	// The client tells only somebody who is listening at that very moment, so look as well.
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-s.client.DisconnectNotify():
			return true
		case <-look.C:
			if s.client.CurrentEndpoint() == "" {
				return true
			}
		}
	}
}
