// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// Where the Debian packages have them.
	northboundSchema  = "/usr/share/ovn/ovn-nb.ovsschema"
	openvSwitchSchema = "/usr/share/openvswitch/vswitch.ovsschema"
	southboundSchema  = "/usr/share/ovn/ovn-sb.ovsschema"
)

// Database is an ovsdb-server with one database.
type Database struct {
	Socket string

	dir     string
	schema  string
	control []string
	server  *exec.Cmd
	log     bytes.Buffer

	northdLog bytes.Buffer
}

// NewNorthbound starts an OVN northbound database.
func NewNorthbound(t *testing.T) *Database {
	t.Helper()
	RequireTools(t, "ovsdb-server", "ovsdb-tool", "ovn-nbctl")
	return newDatabase(t, northboundSchema, "ovn-nbctl")
}

// NewOpenvSwitch starts an Open vSwitch database, without a switch.
func NewOpenvSwitch(t *testing.T) *Database {
	t.Helper()
	RequireTools(t, "ovsdb-server", "ovsdb-tool", "ovs-vsctl")
	return newDatabase(t, openvSwitchSchema, "ovs-vsctl", "--no-wait")
}

// NewSouthbound starts an OVN southbound database and an ovn-northd that fills it from a northbound
// one.
func NewSouthbound(t *testing.T, northbound *Database) *Database {
	t.Helper()
	RequireTools(t, "ovsdb-server", "ovsdb-tool", "ovn-sbctl", "ovn-northd", "ovn-trace")
	d := newDatabase(t, southboundSchema, "ovn-sbctl")
	northd := exec.Command("ovn-northd", "--ovnnb-db=unix:"+northbound.Socket, "--ovnsb-db=unix:"+d.Socket,
		"--unixctl="+filepath.Join(d.dir, "northd.ctl"), "-vconsole:warn")
	northd.Stderr = &d.northdLog
	if err := northd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = northd.Process.Kill()
		_ = northd.Wait()
		if t.Failed() {
			t.Logf("ovn-northd:\n%s", d.northdLog.String())
		}
	})
	return d
}

func newDatabase(t *testing.T, schema string, control ...string) *Database {
	t.Helper()
	// Not t.TempDir: the path of a socket has to be short.
	dir, err := os.MkdirTemp("", "ovsdb")
	if err != nil {
		t.Fatal(err)
	}
	d := &Database{dir: dir, Socket: filepath.Join(dir, "sock"), schema: schema, control: control}
	t.Cleanup(func() {
		d.Stop(t)
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(schema), d.log.String())
		}
	})
	d.Wipe(t)
	d.Start(t)
	return d
}

// Wipe makes the database file anew. The server must not be running.
func (d *Database) Wipe(t *testing.T) {
	t.Helper()
	file := filepath.Join(d.dir, "db")
	if err := os.RemoveAll(file); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ovsdb-tool", "create", file, d.schema).CombinedOutput(); err != nil {
		t.Fatalf("ovsdb-tool: %v\n%s", err, out)
	}
}

// Start starts the server and sets its database up.
func (d *Database) Start(t *testing.T) {
	t.Helper()
	d.server = exec.Command("ovsdb-server", "--remote=punix:"+d.Socket, "--unixctl="+filepath.Join(d.dir, "ctl"),
		"-vconsole:warn", filepath.Join(d.dir, "db"))
	d.server.Stderr = &d.log
	if err := d.server.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "ovsdb-server listens", func() bool {
		_, err := os.Stat(d.Socket)
		return err == nil
	})
	d.Control(t, "init")
}

// Stop kills the server.
func (d *Database) Stop(t *testing.T) {
	t.Helper()
	if d.server == nil {
		return
	}
	_ = d.server.Process.Kill()
	_ = d.server.Wait()
	d.server = nil
	_ = os.Remove(d.Socket)
}

// Control runs ovn-nbctl or ovs-vsctl on the database and returns what it printed, trimmed.
func (d *Database) Control(t *testing.T, args ...string) string {
	t.Helper()
	all := append([]string{"--db=unix:" + d.Socket}, d.control[1:]...)
	out, err := exec.Command(d.control[0], append(all, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", d.control[0], args, err, out)
	}
	return strings.TrimSpace(string(out))
}
