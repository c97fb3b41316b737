// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// apply is the cluster after the controller has made the plan true, and how many objects that took. MetalLB's webhook has its say.
func apply(before *advertisement.Cluster, plan advertisement.Plan) (after *advertisement.Cluster, writes int, err error) {
	c := clone(before)
	digests := map[types.NamespacedName]string{}
	for _, s := range plan.Services {
		for _, want := range s.Owned {
			if write(c, want) {
				writes++
			}
		}
		if s.Label {
			digests[s.Key] = s.Digest
		}
	}
	for i := range c.Services {
		if label(&c.Services[i], digests) {
			writes++
		}
	}
	for _, e := range plan.Edits {
		if err := patch(c, e.Advertisement.Name, e.Patch); err != nil {
			return nil, 0, fmt.Errorf("patch BGPAdvertisement %s with %s: %w", e.Advertisement.Name, e.Patch, err)
		}
		writes++
	}
	for _, orphan := range plan.Orphans {
		c.Advertisements = slices.DeleteFunc(c.Advertisements, func(a *advertisement.BGPAdvertisement) bool { return a.Name == orphan.Name })
		writes++
	}
	if writes > 0 {
		err = refused(c)
	}
	return c, writes, err
}

// write creates or replaces an advertisement, and is true when that changed something.
func write(c *advertisement.Cluster, want *advertisement.BGPAdvertisement) bool {
	i := index(c, want.Name)
	if i < 0 {
		c.Advertisements = append(c.Advertisements, stored(want, "1"))
		return true
	}
	have := c.Advertisements[i]
	if equality.Semantic.DeepEqual(have.Spec, want.Spec) && maps.Equal(have.Labels, want.Labels) && maps.Equal(have.Annotations, want.Annotations) {
		return false
	}
	c.Advertisements[i] = stored(want, next(have.ResourceVersion))
	return true
}

// label gives a Service the label that it has to have, or takes it away.
func label(s *advertisement.Service, digests map[types.NamespacedName]string) bool {
	want, wanted := digests[s.Key]
	have, labelled := s.Labels[v1alpha1.ServiceLabel]
	if want == have && wanted == labelled {
		return false
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	delete(s.Labels, v1alpha1.ServiceLabel)
	if wanted {
		s.Labels[v1alpha1.ServiceLabel] = want
	}
	return true
}

// patch applies a JSON patch as the API server does.
func patch(c *advertisement.Cluster, name string, body []byte) error {
	have := c.Advertisements[index(c, name)]
	operations, err := jsonpatch.DecodePatch(body)
	if err != nil {
		return err
	}
	document, err := json.Marshal(have)
	if err != nil {
		return err
	}
	if document, err = operations.Apply(document); err != nil {
		return err
	}
	var after advertisement.BGPAdvertisement
	if err := json.Unmarshal(document, &after); err != nil {
		return err
	}
	c.Advertisements[index(c, name)] = stored(&after, next(have.ResourceVersion))
	return nil
}

// stored is what a client reads that has written a: what is empty is left out.
func stored(a *advertisement.BGPAdvertisement, resourceVersion string) *advertisement.BGPAdvertisement {
	body, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	var after advertisement.BGPAdvertisement
	if err := json.Unmarshal(body, &after); err != nil {
		panic(err)
	}
	if len(after.Annotations) == 0 {
		after.Annotations = nil
	}
	after.ResourceVersion = resourceVersion
	return &after
}

func next(resourceVersion string) string {
	n, err := strconv.Atoi(resourceVersion)
	if err != nil {
		panic(err)
	}
	return strconv.Itoa(n + 1)
}

func index(c *advertisement.Cluster, name string) int {
	return slices.IndexFunc(c.Advertisements, func(a *advertisement.BGPAdvertisement) bool { return a.Name == name })
}

// settle plans and applies until nothing changes: after three times nothing may.
func settle(c *advertisement.Cluster) (*advertisement.Cluster, advertisement.Plan, error) {
	for round := 0; ; round++ {
		plan := advertisement.Make(c)
		after, writes, err := apply(c, plan)
		switch {
		case err != nil:
			return nil, plan, fmt.Errorf("round %d: %w", round+1, err)
		case writes == 0:
			return c, plan, nil
		case round == 3:
			return nil, plan, fmt.Errorf("round 4 writes %d more objects", writes)
		}
		c = after
	}
}

// clone is another cluster with the same content.
func clone(c *advertisement.Cluster) *advertisement.Cluster {
	after := *c
	after.EgressServices, after.Services, after.Nodes = slices.Clone(c.EgressServices), slices.Clone(c.Services), slices.Clone(c.Nodes)
	for i := range after.Services {
		after.Services[i].Labels, after.Services[i].Addresses = maps.Clone(c.Services[i].Labels), slices.Clone(c.Services[i].Addresses)
	}
	for i := range after.Nodes {
		after.Nodes[i].Labels = maps.Clone(c.Nodes[i].Labels)
	}
	after.Pools, after.Peers = copies(c.Pools), copies(c.Peers)
	after.Advertisements, after.L2Advertisements = copies(c.Advertisements), copies(c.L2Advertisements)
	after.BGPAnnouncements, after.L2Announcements = slices.Clone(c.BGPAnnouncements), slices.Clone(c.L2Announcements)
	after.Invalid = maps.Clone(c.Invalid)
	return &after
}

func copies[T interface{ DeepCopy() T }](items []T) []T {
	after := slices.Clone(items)
	for i := range after {
		after[i] = after[i].DeepCopy()
	}
	return after
}
