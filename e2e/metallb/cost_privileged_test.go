// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
)

var (
	cost         = flag.Bool("cost", false, "measure what the work of a MetalLB speaker costs: -run TestCost -cost -timeout 1h")
	costServices = flag.Int("cost-services", 1000, "the `number` of Services for -cost")
	costMoves    = flag.Int("cost-moves", 2, "the `number` of moves to measure in each row of -cost")
	costNodes    = flag.Int("cost-nodes", 4, "the `number` of nodes for -cost: 4, or 2, of which a label moves from one to the other, where a speaker's start takes minutes")
	costRowTexts = flag.String("cost-rows", "", "the `rows` of -cost, such as 1x1,100x1,10x100: advertisements and the services of each")
)

const (
	// clockTicks is USER_HZ, in which Linux counts CPU time for programs (proc(5)).
	clockTicks = 100
	// A speaker is quiet when it uses less than idle ticks in a window. It may begin to work, after MetalLB's delay, when the first look
	// is over.
	idle, window, firstLook = 2, 2 * time.Second, 4 * time.Second
	// costPatience is how long a speaker may be at work. It writes 20 objects a second, and a new one looks at all services again for each
	// advertisement that it reads.
	costPatience = time.Hour
)

// costRow is one cluster that is measured: so many advertisements, each of so many services.
type costRow struct{ advertisements, services int }

// costWorld is a world of four nodes: one that loses a service, its standby, one that gets it, and one that has nothing to do with it. With
// two nodes the standby gets it.
type costWorld struct {
	*world
	rows     []costRow
	ads      []string // that are there
	excluded int      // how many of the services the default leaves out, the first ones
}

// TestCost prints, as a table in Markdown, the CPU time that speakers use for the move of one advertisement's label from one node to
// another. Each advertisement is like one of this project's: two nodeSelectors, one serviceSelector. Services of none are announced from
// everywhere by an advertisement that excludes the others.
func TestCost(t *testing.T) {
	if !*cost {
		t.Skip("only with -cost")
	}
	requireTools(t, frrK8s)
	rows, err := costRows(*costRowTexts, *costServices)
	must(t, err)
	w, err := startWorld(t.Context(), frrK8s, *costNodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
	c := &costWorld{world: w, rows: rows}
	must(t, c.prepare(t.Context()))
	var table strings.Builder
	fmt.Fprintf(&table, "%d services, CPU seconds per move of one label:\n\n", *costServices)
	table.WriteString("| Advertisements | Services of each | Start of a speaker | Old node | Standby | New node | Any other node |" +
		" API server, etcd | Objects written by all speakers |\n")
	table.WriteString("|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, row := range rows {
		text, err := c.measure(t.Context(), row)
		must(t, err)
		t.Log(text)
		table.WriteString(text + "\n")
	}
	fmt.Println(table.String())
}

// costRows reads the flag. Services only ever leave the default advertisement, so rows go from few services to many.
func costRows(text string, services int) (rows []costRow, err error) {
	if text == "" {
		n := services
		return []costRow{{1, 1}, {n / 10, 1}, {n, 1}, {1, n}, {10, n / 10}, {n / 10, 10}}, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		var row costRow
		if _, err := fmt.Sscanf(one, "%dx%d", &row.advertisements, &row.services); err != nil {
			return nil, fmt.Errorf("-cost-rows %q: %w", text, err)
		}
		if many := row.services > 1 && row.advertisements*row.services != services; many || row.advertisements*row.services > services {
			return nil, fmt.Errorf("-cost-rows %q: a row is of advertisements for one of the services each, or for all services together", text)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// prepare makes the services, labelled for every row, and the default advertisement.
func (c *costWorld) prepare(ctx context.Context) error {
	if err := c.stopSpeakers(ctx); err != nil {
		return err
	}
	err := errors.Join(c.client.Create(ctx, newPool("cost", "198.18.0.0/16")), c.client.Create(ctx, newAdvertisement("default", others())))
	if err != nil {
		return err
	}
	err = parallel(ctx, *costServices, func(ctx context.Context, i int) error {
		s := service{pool: "cost", labels: map[string]string{"number": strconv.Itoa(i)}}
		for _, row := range c.rows {
			s.labels[groupKey(row.advertisements)] = strconv.Itoa(i % row.advertisements)
		}
		return c.createService(ctx, costService(i), s)
	})
	if err != nil {
		return err
	}
	return parallel(ctx, *costServices, func(ctx context.Context, i int) error {
		return pollFor(ctx, costPatience, "an address", func(ctx context.Context) error {
			_, err := c.addresses(ctx, costService(i))
			return err
		})
	})
}

func costService(i int) string { return fmt.Sprintf("service-%d", i) }

func groupKey(groups int) string { return fmt.Sprintf("group-of-%d", groups) }

// set makes a row's advertisements, with their labels on the nodes: the first one's standby is n2.
func (c *costWorld) set(ctx context.Context, row costRow) error {
	if err := parallel(ctx, len(c.ads), func(ctx context.Context, i int) error {
		return c.client.Delete(ctx, newAdvertisement(c.ads[i], spec{}))
	}); err != nil {
		return err
	}
	c.ads = nil
	labels := map[string]map[string]*string{}
	for _, node := range c.nodes {
		labels[node] = map[string]*string{}
	}
	for i := range row.advertisements {
		c.ads = append(c.ads, fmt.Sprintf("egress-%d", i))
		primary, standby := c.nodes[i%len(c.nodes)], c.nodes[(i+1)%len(c.nodes)]
		labels[primary][primaryKey(i)], labels[standby][standbyKey(i)] = new(""), new("")
	}
	if err := c.restoreNodes(ctx); err != nil {
		return err
	}
	for node, set := range labels {
		if err := c.labelNode(ctx, node, set); err != nil {
			return err
		}
	}
	key := "number"
	if row.services > 1 {
		key = groupKey(row.advertisements)
	}
	err := parallel(ctx, row.advertisements, func(ctx context.Context, i int) error {
		return c.client.Create(ctx, newAdvertisement(c.ads[i], spec{
			IPAddressPools:   []string{"cost"},
			NodeSelectors:    slices.Concat(having(primaryKey(i), ""), having(standbyKey(i), "")),
			ServiceSelectors: having(key, strconv.Itoa(i)),
		}))
	})
	// The rows' order is such that no service comes back to the default.
	for ; err == nil && c.excluded < row.advertisements*row.services; c.excluded++ {
		err = c.labelService(ctx, costService(c.excluded), map[string]*string{v1alpha1.ServiceLabel: new("x")})
	}
	return err
}

func primaryKey(i int) string { return fmt.Sprintf("%sexample-%d", egressv1.LabelPrefix, i) }

func standbyKey(i int) string { return fmt.Sprintf("%sexample-%d", v1alpha1.StandbyLabelPrefix, i) }

// measure starts new speakers for a row, and moves the label of its first advertisement between n1 and n3.
func (c *costWorld) measure(ctx context.Context, row costRow) (string, error) {
	if err := errors.Join(c.stopSpeakers(ctx), c.set(ctx, row)); err != nil {
		return "", err
	}
	for _, node := range c.nodes {
		if err := c.plane.StartMetalLBSpeaker(ctx, c.nodeProcess(node)); err != nil {
			return "", err
		}
	}
	if err := c.quiet(ctx); err != nil {
		return "", err
	}
	start, err := c.cpu()
	if err != nil {
		return "", err
	}
	revision, err := c.revision(ctx)
	if err != nil {
		return "", err
	}
	from, to := "n1", c.nodes[len(c.nodes)/2]
	for range *costMoves {
		// The new node first, as a controller does who wants the address announced all the time.
		for _, change := range []struct {
			node  string
			label *string
		}{{to, new("")}, {from, nil}} {
			if err := c.labelNode(ctx, change.node, map[string]*string{primaryKey(0): change.label}); err != nil {
				return "", err
			}
			if err := c.quiet(ctx); err != nil {
				return "", err
			}
		}
		from, to = to, from
	}
	end, err := c.cpu()
	if err != nil {
		return "", err
	}
	now, err := c.revision(ctx)
	if err != nil {
		return "", err
	}
	each := func(names ...string) string {
		var sum time.Duration
		for _, name := range names {
			if _, there := end[name]; !there {
				return "-"
			}
			sum += end[name] - start[name]
		}
		return fmt.Sprintf("%.2f", sum.Seconds()/float64(*costMoves))
	}
	speaker := controlplane.MetalLBSpeakerProcess
	return fmt.Sprintf("| %d | %d | %.2f | %s | %s | %s | %s | %s | %d |", row.advertisements, row.services, start[speaker(c.nodes[len(c.nodes)-1])].Seconds(),
		each(speaker("n1")), each(speaker("n2")), each(speaker("n3")), each(speaker("n4")), each("kube-apiserver", "etcd"),
		(now-revision)/int64(*costMoves)), nil
}

func (c *costWorld) stopSpeakers(ctx context.Context) error {
	var problems []error
	for _, node := range c.nodes {
		problems = append(problems, c.processes.Stop(ctx, controlplane.MetalLBSpeakerProcess(node)))
	}
	return errors.Join(problems...)
}

// revision is the store's newest: it counts every write of every object.
func (c *costWorld) revision(ctx context.Context) (int64, error) {
	list := &metallbv1beta2.BGPPeerList{}
	if err := c.client.List(ctx, list); err != nil {
		return 0, err
	}
	return strconv.ParseInt(list.ResourceVersion, 10, 64)
}

// quiet returns when all speakers have been idle for a while.
func (c *costWorld) quiet(ctx context.Context) error {
	begin := time.Now()
	var before map[string]time.Duration
	var since time.Time
	return pollFor(ctx, costPatience, "the speakers are at work", func(context.Context) error {
		now, err := c.cpu()
		if err != nil {
			return err
		}
		busy := time.Duration(0)
		for name, used := range now {
			if strings.HasPrefix(name, controlplane.MetalLBSpeakerProcess("")) {
				busy = max(busy, used-before[name])
			}
		}
		if before == nil || busy > idle*time.Second/clockTicks {
			before, since = maps.Clone(now), time.Now()
		}
		if time.Since(since) < window || time.Since(begin) < firstLook {
			return fmt.Errorf("%v ago one used %v", time.Since(since), busy)
		}
		return nil
	})
}

// cpu is the CPU time that each process has used so far.
func (c *costWorld) cpu() (map[string]time.Duration, error) {
	names, err := c.processes.Names()
	if err != nil {
		return nil, err
	}
	used := map[string]time.Duration{}
	for _, name := range names {
		pid, alive := c.processes.PID(name)
		if !alive {
			return nil, fmt.Errorf("%s has ended, see %s", name, c.processes.LogPath(name))
		}
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			return nil, err
		}
		// utime and stime are fields 14 and 15; field 2, in parentheses, may hold spaces.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return nil, err
			}
			used[name] += time.Duration(ticks) * time.Second / clockTicks
		}
	}
	return used, nil
}
