// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
)

// settleTime bounds every wait of the demo: MetalLB alone takes three seconds to hand a route
// over, and the machine may be busy.
const settleTime = 40 * time.Second

// Line is one line of the demo's report.
type Line struct {
	// Number is the point of the report, for example "1" or "7b".
	Number string
	// Claim is what the line checks.
	Claim string
	check func(context.Context, *Lab) (seen string, err error)
}

// Demo runs the documented example, line by line, and calls report with what was seen. It
// stops at nothing: the lines that fail are joined in the error. It leaves the example running.
func (l *Lab) Demo(ctx context.Context, report func(line Line, seen string, err error, took time.Duration)) error {
	var errs []error
	for _, line := range demo {
		begin := time.Now()
		seen, err := line.check(ctx, l)
		report(line, seen, err, time.Since(begin))
		if err != nil {
			errs = append(errs, fmt.Errorf("line %s: %w", line.Number, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

// demo is the documented example, in the order in which it is run.
var demo = []Line{
	{"0", "the documented example is applied with kubectl", applyExample},
	{"1", "one node is elected: it alone has the label, and status.host agrees", checkElected},
	{"2", "the BGPAdvertisement was made, with that nodeSelector", checkAdvertisement},
	{"3", "the ToR has exactly one path, through the elected node", checkPath},
	{"4", "the service answers from outside, through that node only", checkIngress},
	{"5", "every pod of the service leaves with the LoadBalancer IP", checkEgress},
	{"6", "everything else keeps its own address", checkOthers},
	{"7a", "after another nodeSelector all of that holds for the other node", checkMove},
	{"8", "with a selector-less BGPAdvertisement the ToR still has one path", checkGuard},
	{"7b", "after the EgressService is deleted nothing of ours is left", checkDelete},
	{"9", "without the acknowledgement neither label nor route appears; with it both do", checkAcknowledgement},
}

// Reset removes the example, so that the demo can run again.
func (l *Lab) Reset(ctx context.Context) error {
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: ExampleService.Namespace, Name: ExampleService.Name}}
	if err := client.IgnoreNotFound(l.Client.Delete(ctx, egress)); err != nil {
		return err
	}
	_, err := Eventually(ctx, settleTime, l.leftovers)
	return err
}
