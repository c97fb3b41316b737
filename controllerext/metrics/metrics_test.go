// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

// conditions are all that a service can have.
func conditions() []metav1.Condition {
	var list []metav1.Condition
	for _, kind := range conditionTypes {
		list = append(list, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "R", Message: "192.0.2.1"})
	}
	return list
}

func compare(t *testing.T, m *Metrics, want string, names ...string) {
	t.Helper()
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestSnapshot(t *testing.T) {
	m := New(true)
	gauges := []string{"egress_service_info", "egress_service_condition", "egress_service_assigned", "egress_service_unassigned", "egress_speakers", "egress_speaker_silent"}
	t.Run("nothing is known before the first sync", func(t *testing.T) { compare(t, m, "", gauges...) })

	web := Service{Namespace: "a", Name: "web", Node: "n1", Network: "blue", Mode: "LoadBalancerIP", Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}, {Type: v1alpha1.ConditionAnnounced, Status: metav1.ConditionUnknown},
		{Type: "SomebodyElses", Status: metav1.ConditionTrue},
	}}
	all := Snapshot{Speakers: 3, SilentSpeakers: 1, Services: []Service{
		web, {Namespace: "b", Name: "web", Node: "n1", Mode: "LoadBalancerIP"}, {Namespace: "b", Name: "mail", Node: "ALL", Mode: "Network"},
		{Namespace: "b", Name: "sip", Mode: "LoadBalancerIP", Unassigned: v1alpha1.ReasonNoEligibleNode},
		{Namespace: "b", Name: "ftp", Mode: "LoadBalancerIP", Unassigned: "dial 192.0.2.1: refused"},
	}}
	m.Set(all)
	t.Run("every gauge", func(t *testing.T) {
		compare(t, m, `
# HELP egress_service_assigned EgressServices per status.host: a node, or ALL with sourceIPBy Network.
# TYPE egress_service_assigned gauge
egress_service_assigned{node="ALL"} 1
egress_service_assigned{node="n1"} 2
# HELP egress_service_condition Always 1: the status that a condition of an EgressService has now.
# TYPE egress_service_condition gauge
egress_service_condition{condition="Announced",namespace="a",service="web",status="Unknown"} 1
egress_service_condition{condition="Ready",namespace="a",service="web",status="True"} 1
# HELP egress_service_info Always 1: where an EgressService is handled (node is ALL with sourceIPBy Network, and empty while no node is assigned) and how.
# TYPE egress_service_info gauge
egress_service_info{mode="LoadBalancerIP",namespace="a",network="blue",node="n1",service="web"} 1
egress_service_info{mode="LoadBalancerIP",namespace="b",network="",node="",service="ftp"} 1
egress_service_info{mode="LoadBalancerIP",namespace="b",network="",node="",service="sip"} 1
egress_service_info{mode="LoadBalancerIP",namespace="b",network="",node="n1",service="web"} 1
egress_service_info{mode="Network",namespace="b",network="",node="ALL",service="mail"} 1
# HELP egress_service_unassigned EgressServices with an empty status.host, per reason.
# TYPE egress_service_unassigned gauge
egress_service_unassigned{reason="NoEligibleNode"} 1
egress_service_unassigned{reason="Other"} 1
# HELP egress_speaker_silent Egress-speakers that have reported and stopped renewing their lease.
# TYPE egress_speaker_silent gauge
egress_speaker_silent 1
# HELP egress_speakers Egress-speakers that have reported.
# TYPE egress_speakers gauge
egress_speakers 3
`, gauges...)
	})
	t.Run("a service that moved, and one that is gone, leave no series", func(t *testing.T) {
		moved := web
		moved.Node, moved.Conditions = "n2", []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}}
		m.Set(Snapshot{Services: []Service{moved}})
		compare(t, m, `
# HELP egress_service_assigned EgressServices per status.host: a node, or ALL with sourceIPBy Network.
# TYPE egress_service_assigned gauge
egress_service_assigned{node="n2"} 1
# HELP egress_service_condition Always 1: the status that a condition of an EgressService has now.
# TYPE egress_service_condition gauge
egress_service_condition{condition="Ready",namespace="a",service="web",status="False"} 1
# HELP egress_service_info Always 1: where an EgressService is handled (node is ALL with sourceIPBy Network, and empty while no node is assigned) and how.
# TYPE egress_service_info gauge
egress_service_info{mode="LoadBalancerIP",namespace="a",network="blue",node="n2",service="web"} 1
# HELP egress_speaker_silent Egress-speakers that have reported and stopped renewing their lease.
# TYPE egress_speaker_silent gauge
egress_speaker_silent 0
# HELP egress_speakers Egress-speakers that have reported.
# TYPE egress_speakers gauge
egress_speakers 0
`, gauges...)
	})
}

func TestCounted(t *testing.T) {
	m := New(true)
	m.Moved(v1alpha1.CauseFirstAssignment, true, time.Hour)
	m.Moved(string(election.NotReady), false, 150*time.Millisecond)
	m.Moved(string(election.NotReady), false, 90*time.Second)
	m.Moved("node n1 is broken", false, -time.Second)
	m.Moved(v1alpha1.CauseUnrecorded, false, 0)
	m.Waited(PhaseDataplane, 10*time.Second)
	m.Failed("status", "status")
	compare(t, m, `
# HELP egress_service_failovers_total Completed moves of an EgressService from one primary to another, per cause.
# TYPE egress_service_failovers_total counter
egress_service_failovers_total{cause="NotReady"} 2
egress_service_failovers_total{cause="Other"} 1
egress_service_failovers_total{cause="Unrecorded"} 1
# HELP egress_service_failover_duration_seconds From when another primary is first wanted for an EgressService until it announces, per cause.
# TYPE egress_service_failover_duration_seconds histogram
`+histogram("egress_service_failover_duration_seconds", `cause="NotReady"`, 90.15, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)+
		histogram("egress_service_failover_duration_seconds", `cause="Other"`, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)+`
# HELP egress_service_gate_wait_seconds What a new primary was waited for, first assignments included: dataplane, until it is promoted; announce, from then until it announces.
# TYPE egress_service_gate_wait_seconds histogram
`+histogram("egress_service_gate_wait_seconds", `phase="dataplane"`, 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1)+`
# HELP egress_service_reconcile_errors_total Writes to the API server that failed, per what was to be written.
# TYPE egress_service_reconcile_errors_total counter
egress_service_reconcile_errors_total{controller="status",reason="status"} 1
`)
}

// histogram writes one in Prometheus' text format; its cumulative counts follow the buckets.
func histogram(name, label string, sum float64, count int, cumulative ...int) string {
	var text strings.Builder
	for i, bucket := range buckets {
		fmt.Fprintf(&text, "%s_bucket{%s,le=\"%v\"} %d\n", name, label, bucket, cumulative[i])
	}
	fmt.Fprintf(&text, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %v\n%s_count{%s} %d\n", name, label, count, name, label, sum, name, label, count)
	return text.String()
}

// fill lets every metric have as many series as it can.
func fill(m *Metrics, services, nodes int) {
	var s Snapshot
	for i := range services {
		service := Service{Namespace: "ns", Name: fmt.Sprint("service-", i), Network: fmt.Sprint("vrf-", i), Mode: "LoadBalancerIP", Conditions: conditions()}
		if i%2 == 0 {
			service.Node = fmt.Sprint("node-", i/2%nodes)
		} else {
			service.Unassigned = word(unassignedReasons, i/2)
		}
		s.Services = append(s.Services, service)
	}
	m.Set(s)
	for i := range 1000 {
		m.Moved(word(moveCauses, i), false, time.Second)
		m.Waited(word(phases, i), time.Second)
		m.Failed("status", "status")
	}
}

// word is one of the list, and beyond its end one that nobody knows.
func word(list words, i int) string {
	if i < len(list) {
		return list[i]
	}
	return fmt.Sprintf("error %d at 192.0.2.1", i)
}

func TestSeriesAreBounded(t *testing.T) {
	const nodes = 10
	// With Other, but for condition types; a histogram has its buckets, +Inf, the sum and the count. Unrecorded moves have no duration.
	fixed := len(moveCauses) + 1 + (len(moveCauses)+len(phases)+1)*(len(buckets)+3) +
		len(unassignedReasons) + 1 + 2 + 1
	tests := []struct {
		name       string
		perService bool
		services   int
		want       int
	}{
		{"200 services", true, 200, fixed + nodes + 200*7},
		{"2000 services", true, 2000, fixed + nodes + 2000*7},
		{"2000 services without series of their own", false, 2000, fixed + nodes},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := New(test.perService)
			fill(m, test.services, nodes)
			if got := series(t, m); got != test.want {
				t.Errorf("%d series, want %d", got, test.want)
			}
		})
	}
	t.Logf("at most %d series beside those of services and nodes", fixed)
}

// series counts as Prometheus does, and fails when a label's value is an address or a sentence.
func series(t *testing.T, m *Metrics) int {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := m.Register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, family := range families {
		for _, metric := range family.Metric {
			if h := metric.Histogram; h != nil {
				count += len(h.Bucket) + 3
			} else {
				count++
			}
			for _, label := range metric.Label {
				if strings.Contains(label.GetValue(), "192.0.2.1") {
					t.Errorf("%s{%s=%q}", family.GetName(), label.GetName(), label.GetValue())
				}
			}
		}
	}
	return count
}

func TestNamesLint(t *testing.T) {
	m := New(true)
	fill(m, 100, 3)
	problems, err := testutil.CollectAndLint(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if got, want := testutil.CollectAndCount(m, "egress_service_info"), 100; got != want {
		t.Errorf("%d series were looked at, want %d", got, want)
	}
}

func TestNilDoesNothing(t *testing.T) {
	var m *Metrics
	m.Set(Snapshot{})
	m.Moved("x", false, 0)
	m.Waited("x", 0)
	m.Failed("x", "y")
	registry := prometheus.NewRegistry()
	if err := m.Register(registry); err != nil {
		t.Error(err)
	}
	if got := testutil.CollectAndCount(m); got != 0 {
		t.Errorf("%d series", got)
	}
}

// For the race detector: scrapes run beside the loops.
func TestScrapesBesideSyncs(t *testing.T) {
	m := New(true)
	services := make([]Service, 5)
	for i := range services {
		services[i] = Service{Namespace: "ns", Name: fmt.Sprint("service-", i), Node: "n1", Conditions: conditions()}
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				m.Set(Snapshot{Services: services})
				m.Moved(v1alpha1.CauseSharedAddress, false, time.Second)
				m.Waited(PhaseAnnounce, time.Second)
				m.Failed("status", "status")
			}
		})
		group.Go(func() {
			for range 50 {
				if got := testutil.CollectAndCount(m, "egress_service_info"); got != 0 && got != 5 {
					t.Errorf("a scrape saw %d of 5 services", got)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkScrape(b *testing.B) {
	m := New(true)
	fill(m, 5000, 100)
	registry := prometheus.NewRegistry()
	if err := m.Register(registry); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
