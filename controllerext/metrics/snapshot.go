// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Service is one EgressService as its metrics show it.
type Service struct {
	Namespace, Name string
	// Node is status.host: a node's name, ALL, or empty.
	Node string
	// Network is spec.network.
	Network string
	// Mode is LoadBalancerIP or Network.
	Mode string
	// Unassigned is the reason why Node is empty; ignored where it is not.
	Unassigned string
	// Conditions, at most one of each type. Types that are not this project's are left out.
	Conditions []metav1.Condition
}

// Snapshot is the state of the cluster as the controller knows it.
type Snapshot struct {
	// Services are all EgressServices, each once.
	Services []Service
	// Speakers is how many egress-speakers have reported; of SilentSpeakers the lease has expired.
	Speakers, SilentSpeakers int
}

var (
	infoDesc = prometheus.NewDesc("egress_service_info",
		"Always 1: where an EgressService is handled (node is ALL with sourceIPBy Network, and empty while no node is assigned) and how.",
		[]string{"namespace", "service", "node", "network", "mode"}, nil)
	conditionDesc = prometheus.NewDesc("egress_service_condition",
		"Always 1: the status that a condition of an EgressService has now.",
		[]string{"namespace", "service", "condition", "status"}, nil)
	assignedDesc = prometheus.NewDesc("egress_service_assigned",
		"EgressServices per status.host: a node, or ALL with sourceIPBy Network.", []string{"node"}, nil)
	unassignedDesc = prometheus.NewDesc("egress_service_unassigned",
		"EgressServices with an empty status.host, per reason.", []string{"reason"}, nil)
	speakersDesc = prometheus.NewDesc("egress_speakers",
		"Egress-speakers that have reported.", nil, nil)
	silentDesc = prometheus.NewDesc("egress_speaker_silent",
		"Egress-speakers that have reported and stopped renewing their lease.", nil, nil)
)

func (m *Metrics) describeSnapshot(out chan<- *prometheus.Desc) {
	if m.perService {
		out <- infoDesc
		out <- conditionDesc
	}
	for _, desc := range []*prometheus.Desc{assignedDesc, unassignedDesc, speakersDesc, silentDesc} {
		out <- desc
	}
}

// collectSnapshot shows nothing before the first Set: a controller that does not lead knows of no
// services, which is not the same as that there are none.
func (m *Metrics) collectSnapshot(out chan<- prometheus.Metric) {
	s := m.snapshot.Load()
	if s == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	assigned, unassigned := map[string]int{}, map[string]int{}
	for _, service := range s.Services {
		if service.Node != "" {
			assigned[service.Node]++
		} else {
			unassigned[unassignedReasons.bound(service.Unassigned)]++
		}
		if !m.perService {
			continue
		}
		gauge(infoDesc, 1, service.Namespace, service.Name, service.Node, service.Network, service.Mode)
		for _, condition := range service.Conditions {
			if slices.Contains(conditionTypes, condition.Type) {
				gauge(conditionDesc, 1, service.Namespace, service.Name, condition.Type, string(condition.Status))
			}
		}
	}
	for node, count := range assigned {
		gauge(assignedDesc, count, node)
	}
	for reason, count := range unassigned {
		gauge(unassignedDesc, count, reason)
	}
	gauge(speakersDesc, s.Speakers)
	gauge(silentDesc, s.SilentSpeakers)
}
