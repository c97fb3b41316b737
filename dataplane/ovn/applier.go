// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// transactTimeout bounds one transaction whatever the caller's context says.
const transactTimeout = 10 * time.Second

// recheckInterval is how long events alone are trusted to tell of changes.
const recheckInterval = 30 * time.Second

// ErrNotConnected is returned while the northbound database can't be reached. The applier goes
// on trying to.
var ErrNotConnected = errors.New("the OVN northbound database is not connected")

// ErrNotReady is returned while the northbound database lacks what OVN-Kubernetes puts there.
var ErrNotReady = errors.New("the OVN northbound database is not set up yet")

// Options say where the databases are.
type Options struct {
	// NorthboundSocket and OpenvSwitchSocket are paths of unix sockets.
	NorthboundSocket  string
	OpenvSwitchSocket string
	// IntegrationBridge is the bridge that ovn-controller reports on.
	IntegrationBridge string
	// Changed is called, from a goroutine of the applier, whenever a database was connected or
	// lost, the integration bridge reports another sequence, or the database differs from the
	// plan applied last. It must not block.
	Changed func()
}

// Applier writes plans to one zone's northbound database.
type Applier struct {
	options    Options
	logger     log.Logger
	northbound *database
	vswitch    *database
	rowChanged chan struct{}
	reading    sync.Mutex // held while installed is brought up to date
	installed  atomic.Int64
	drift      atomic.Uint64
	events     atomic.Uint64 // changes of rows so far
	cancel     context.CancelFunc
	done       sync.WaitGroup

	mu   sync.Mutex
	want *dataplane.OVN // the plan applied last, whether that succeeded or not
	// clean says when the database was last seen to hold want: nothing has to be compared until
	// something changes.
	clean   seen
	checked time.Time
	// sequence is that of the last commit, 0 when there was none or its result is unknown.
	sequence dataplane.Sequence
}

// New starts connecting to both databases. Close ends it.
func New(logger log.Logger, o Options) (*Applier, error) {
	northbound, err := northboundModel()
	if err != nil {
		return nil, err
	}
	vswitch, err := openvSwitchModel()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &Applier{options: o, logger: logger, cancel: cancel, rowChanged: make(chan struct{}, 1)}
	a.northbound = &database{
		name: northbound.Name(), socket: o.NorthboundSocket, model: northbound, tables: northboundTables(),
		logger: logger, connected: o.Changed, row: a.signalRow,
	}
	a.vswitch = &database{
		name: vswitch.Name(), socket: o.OpenvSwitchSocket, model: vswitch, tables: bridgeTables(o.IntegrationBridge),
		logger: logger, connected: a.readInstalled, row: a.readInstalled,
	}
	for _, run := range []func(context.Context){a.northbound.run, a.vswitch.run, a.watch} {
		a.done.Go(func() { run(ctx) })
	}
	return a, nil
}

// Close ends the connections and waits for the applier's goroutines.
func (a *Applier) Close() {
	a.cancel()
	a.done.Wait()
}

// Installed is the sequence that the integration bridge reports, 0 when unknown.
func (a *Applier) Installed() dataplane.Sequence { return dataplane.Sequence(a.installed.Load()) }

// Drift is how often rows were found that somebody else had changed.
func (a *Applier) Drift() uint64 { return a.drift.Load() }

// Connected says whether the northbound and the Open vSwitch database are connected.
func (a *Applier) Connected() (northbound, openvSwitch bool) {
	return a.northbound.session() != nil, a.vswitch.session() != nil
}

// Apply makes the database hold the plan and returns the sequence to wait for. Where nothing
// differs it commits nothing and returns the last sequence. The first Apply commits in any case,
// and so does the first after the database was replaced by one that has counted less far.
func (a *Applier) Apply(ctx context.Context, want dataplane.OVN) (dataplane.Sequence, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == nil || !a.want.Equal(want) {
		a.want, a.clean = &want, seen{}
	}
	s := a.northbound.session()
	if s == nil {
		return 0, ErrNotConnected
	}
	have, changes := a.differs(s, want)
	if have.router == nil {
		return 0, fmt.Errorf("%w: no logical router %s", ErrNotReady, dataplane.ClusterRouter)
	}
	if have.global == nil {
		return 0, fmt.Errorf("%w: no row in %s", ErrNotReady, tableGlobal)
	}
	// A bridge that is ahead of the database still shows a sequence of a database that was since
	// replaced. Counting on from there keeps that from being taken for ours.
	ahead := max(0, int(a.installed.Load())-have.global.NBCfg)
	known := a.sequence > 0 && int(a.sequence) <= have.global.NBCfg
	if len(changes) == 0 && known && ahead == 0 {
		return a.sequence, nil
	}
	sequence, err := a.commit(ctx, s, have, changes, ahead+1)
	if err != nil {
		return 0, err
	}
	level.Debug(a.logger).Log("event", "ovnCommitted", "msg", "committed to the northbound database", "operations", len(changes), "sequence", sequence)
	return sequence, nil
}

func (a *Applier) commit(ctx context.Context, s *session, have rows, changes []ovsdb.Operation, by int) (dataplane.Sequence, error) {
	// A transaction that fails on the way back may have been committed all the same. Then the
	// next Apply finds no difference, and must count once more.
	a.sequence = 0
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	ops := append([]ovsdb.Operation{routerStillThere(have.router)}, changes...)
	ops = append(ops, increment(have.global, by)...)
	results, err := s.client.Transact(ctx, ops...)
	if err != nil {
		return 0, fmt.Errorf("northbound transaction: %w", err)
	}
	if failed, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		for _, f := range failed {
			err = fmt.Errorf("%w: %w", err, f)
		}
		return 0, fmt.Errorf("northbound transaction: %w", err)
	}
	sequence, err := selected(results[len(ops)-1])
	if err != nil {
		return 0, err
	}
	a.sequence = sequence
	return sequence, nil
}

func selected(result ovsdb.OperationResult) (dataplane.Sequence, error) {
	if len(result.Rows) != 1 {
		return 0, fmt.Errorf("northbound transaction: %d rows of %s", len(result.Rows), tableGlobal)
	}
	value, ok := result.Rows[0]["nb_cfg"].(float64)
	if !ok {
		return 0, fmt.Errorf("northbound transaction: nb_cfg is %v", result.Rows[0]["nb_cfg"])
	}
	return dataplane.Sequence(value), nil
}

// seen is a moment of a connection.
type seen struct {
	session *session
	events  uint64
}

// differs returns what has to change for the database to hold want, and remembers if nothing does.
func (a *Applier) differs(s *session, want dataplane.OVN) (rows, []ovsdb.Operation) {
	// Events come after the rows: what is overlooked here has an event still to come.
	now := seen{s, a.events.Load()}
	have := readRows(s.cache)
	if have.router == nil || have.global == nil || a.clean == now && time.Since(a.checked) < recheckInterval {
		return have, nil
	}
	changes := difference(want, have)
	if len(changes) == 0 {
		a.clean, a.checked = now, time.Now()
	}
	return have, changes
}

func (a *Applier) signalRow() {
	a.events.Add(1)
	select {
	case a.rowChanged <- struct{}{}:
	default:
	}
}

// watch compares the database with the plan applied last after each change of a row, so that
// the applier's own commits and other people's rows disturb nobody.
func (a *Applier) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.rowChanged:
			if a.drifted() {
				a.drift.Add(1)
				a.options.Changed()
			}
		}
	}
}

func (a *Applier) drifted() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.northbound.session()
	if s == nil || a.want == nil {
		return false
	}
	_, changes := a.differs(s, *a.want)
	return len(changes) > 0
}

// readInstalled follows the integration bridge. While the database is away the value seen last
// stays: the flows do too.
func (a *Applier) readInstalled() {
	a.reading.Lock()
	defer a.reading.Unlock()
	s := a.vswitch.session()
	if s == nil {
		return
	}
	var installed int64
	for _, b := range table[bridge](s.cache, tableBridge) {
		// Anything but a number is as good as nothing.
		installed, _ = strconv.ParseInt(b.ExternalIDs[installedKey], 10, 64)
	}
	if a.installed.Swap(installed) != installed {
		a.options.Changed()
	}
}
