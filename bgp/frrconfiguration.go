// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"bytes"
	"encoding/json"
	"fmt"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// FRRConfiguration is frr-k8s' kind with what its newest CRD has and the Go types of v0.0.26 lack:
// AS path prepending (v0.0.27, which MetalLB v0.16.2 writes). It is read from the API server, never
// written.
type FRRConfiguration struct {
	frrk8sv1beta1.FRRConfiguration
	prepends []routerPrepends // of spec.bgp.routers, by index; shorter or nil when the rest has none
	unread   error            // why prepends could not be read
}

// FRRConfigurationList is a list of FRRConfiguration.
type FRRConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FRRConfiguration `json:"items"`
}

// ASPathPrepend is one item of toAdvertise.withAsPathPrepend.
type ASPathPrepend struct {
	Prefixes []string `json:"prefixes"`
	// Times is how often the session's AS number is prepended.
	Times int64 `json:"asPathPrepend"`
}

type routerPrepends struct {
	Neighbors []struct {
		ToAdvertise struct {
			WithASPathPrepend []ASPathPrepend `json:"withAsPathPrepend"`
		} `json:"toAdvertise"`
	} `json:"neighbors"`
}

// asPathPrepend is the field's name.
const asPathPrepend = "withAsPathPrepend"

// UnmarshalJSON reads the object, a second time only where it has the fields that are new.
func (c *FRRConfiguration) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, &c.FRRConfiguration); err != nil {
		return err
	}
	c.prepends, c.unread = nil, nil
	if !bytes.Contains(data, []byte(asPathPrepend)) {
		return nil
	}
	var more struct {
		Spec struct {
			BGP struct {
				Routers []routerPrepends `json:"routers"`
			} `json:"bgp"`
		} `json:"spec"`
	}
	// One object that can't be read would keep all others from being listed: Merge tells of it.
	if err := json.Unmarshal(data, &more); err != nil {
		c.unread = fmt.Errorf("toAdvertise.%s can't be read, ignored: %w", asPathPrepend, err)
		return nil
	}
	c.prepends = more.Spec.BGP.Routers
	return nil
}

// asPathPrepends are those of one neighbor.
func (c *FRRConfiguration) asPathPrepends(router, neighbor int) []ASPathPrepend {
	if router >= len(c.prepends) || neighbor >= len(c.prepends[router].Neighbors) {
		return nil
	}
	return c.prepends[router].Neighbors[neighbor].ToAdvertise.WithASPathPrepend
}

// DeepCopyObject implements runtime.Object. What is read only is shared.
func (c *FRRConfiguration) DeepCopyObject() runtime.Object {
	return &FRRConfiguration{*c.FRRConfiguration.DeepCopy(), c.prepends, c.unread}
}

// DeepCopyObject implements runtime.Object.
func (l *FRRConfigurationList) DeepCopyObject() runtime.Object {
	out := &FRRConfigurationList{TypeMeta: l.TypeMeta, Items: make([]FRRConfiguration, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items[i] = FRRConfiguration{*l.Items[i].FRRConfiguration.DeepCopy(), l.Items[i].prepends, l.Items[i].unread}
	}
	return out
}

// AddToScheme adds frr-k8s' kinds, FRRConfiguration as the type of this package.
func AddToScheme(scheme *runtime.Scheme) error {
	group := frrk8sv1beta1.GroupVersion
	scheme.AddKnownTypes(group, &frrk8sv1beta1.BGPSessionState{}, &frrk8sv1beta1.BGPSessionStateList{})
	scheme.AddKnownTypeWithName(group.WithKind("FRRConfiguration"), &FRRConfiguration{})
	scheme.AddKnownTypeWithName(group.WithKind("FRRConfigurationList"), &FRRConfigurationList{})
	metav1.AddToGroupVersion(scheme, group)
	return nil
}
