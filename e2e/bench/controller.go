// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

const (
	controllerProcess = "egress-controller"
	// clockTicks is USER_HZ, in which Linux counts CPU time for programs (proc(5)).
	clockTicks = 100
)

// controller is the running egress-controller.
type controller struct {
	*world
	metricsURL string
}

// startController starts the real program, as one replica of a Deployment would run.
func (w *world) startController(ctx context.Context) (*controller, error) {
	c := &controller{world: w}
	args := []string{"-kubeconfig", w.kubeconfig}
	// The program's usage goes to standard error, and asking for it is no success.
	usage, _ := exec.CommandContext(ctx, w.bench.controller, "-h").CombinedOutput()
	if bytes.Contains(usage, []byte("-metrics-bind-address")) {
		address, err := freeAddress(ctx)
		if err != nil {
			return nil, err
		}
		args = append(args, "-metrics-bind-address", address, "-metrics-secure=false")
		c.metricsURL = "http://" + address + "/metrics"
	}
	return c, w.processes.Start(ctx, process.Spec{Name: controllerProcess, Path: w.bench.controller, Args: args})
}

func (c *controller) stop(ctx context.Context) error { return c.processes.Stop(ctx, controllerProcess) }

// alive is an error once the controller has ended by itself.
func (c *controller) alive() error {
	_, err := c.proc(controllerProcess, "stat")
	return err
}

// waitLabels waits for labels, and says what the controller says where they do not come.
func (w *world) waitLabels(ctx context.Context, labels *labelWatch, c *controller) error {
	err := labels.wait(ctx, time.Minute, c.alive)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var assignments v1alpha1.EgressAssignmentList
	if listErr := w.admin.List(ctx, &assignments, client.InNamespace(benchNamespace)); listErr != nil {
		return errors.Join(err, listErr)
	}
	said := map[string]int{}
	for _, a := range assignments.Items {
		if condition := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionNodeAssigned); condition != nil {
			said[condition.Reason]++
		}
	}
	err = fmt.Errorf("%w; %d assignments, condition NodeAssigned: %v", err, len(assignments.Items), said)
	return errors.Join(err, w.fleet.Err())
}

// freeAddress finds a free port of the loopback interface.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// cpu is the CPU time that the controller has used so far.
func (c *controller) cpu() (time.Duration, error) { return c.cpuOf(controllerProcess) }

// serverCPU is the CPU time that the API server and its store have used so far. It says how much work a run was, however busy the machine
// is with other things.
func (w *world) serverCPU() (time.Duration, error) {
	server, err := w.cpuOf("kube-apiserver")
	store, storeErr := w.cpuOf("etcd")
	return server + store, errors.Join(err, storeErr)
}

func (w *world) cpuOf(name string) (time.Duration, error) {
	text, err := w.proc(name, "stat")
	if err != nil {
		return 0, err
	}
	// utime and stime are fields 14 and 15; field 2, in parentheses, may hold spaces.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

// memory is the controller's resident memory now, and the most it ever was, in bytes.
func (c *controller) memory() (now, peak int64, err error) {
	text, err := c.proc(controllerProcess, "status")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		switch fields[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return now, peak, nil
}

func (w *world) proc(name, file string) (string, error) {
	pid, alive := w.processes.PID(name)
	if !alive {
		return "", fmt.Errorf("%s has ended, see %s", name, w.processes.LogPath(name))
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	return string(text), err
}

// syncs are how often each of the controller's loops has run, and for how long in all.
type syncs map[string]struct {
	count   int
	seconds float64
}

// syncs reads the controller's own metrics; nil where it has none.
func (c *controller) syncs(ctx context.Context) (syncs, error) {
	if c.metricsURL == "" {
		return nil, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.metricsURL, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(response.Body)
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return nil, err
	}
	found := syncs{}
	for s := range samples(text, "controller_runtime_reconcile_time_seconds") {
		loop := found[s.labels["controller"]]
		switch s.name {
		case "controller_runtime_reconcile_time_seconds_count":
			loop.count = int(s.value)
		case "controller_runtime_reconcile_time_seconds_sum":
			loop.seconds = s.value
		default:
			continue
		}
		found[s.labels["controller"]] = loop
	}
	return found, nil
}
