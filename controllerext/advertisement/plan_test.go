// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	publicKey  = "egress-service.k8s.ovn.org/ns-s"
	standbyKey = "standby.metallb-egress.io/ns-s"
	digest     = "0123456789abcdef"
)

// aCluster has three nodes, of which a is the primary and b the standby of the service ns/s, a pool, a peer, and no advertisement.
// MetalLB announces by itself: back end external.
func aCluster(change ...func(*Cluster)) *Cluster {
	c := &Cluster{
		Namespace: "metallb-system", Features: Features{ServiceSelectors: true, ASPathPrepend: true},
		EgressServices: []EgressService{{
			Key: types.NamespacedName{Namespace: "ns", Name: "s"}, LabelKey: publicKey, StandbyLabelKey: standbyKey, Digest: digest, Primary: "a",
		}},
		Services: []Service{{
			Key: types.NamespacedName{Namespace: "ns", Name: "s"}, Labels: map[string]string{"app": "web", v1alpha1.ServiceLabel: digest},
			Pool: "pool", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		}},
		Nodes: []Node{
			{"a", map[string]string{"kubernetes.io/hostname": "a", "rack": "1", publicKey: ""}},
			{"b", map[string]string{"kubernetes.io/hostname": "b", "rack": "2", standbyKey: ""}},
			{"c", map[string]string{"kubernetes.io/hostname": "c", "rack": "3"}},
		},
		Pools: []*metallbv1beta1.IPAddressPool{{
			ObjectMeta: metav1.ObjectMeta{Name: "pool", Labels: map[string]string{"zone": "dmz"}},
			Spec:       metallbv1beta1.IPAddressPoolSpec{Addresses: []string{"192.0.2.0/28", "192.0.2.32-192.0.2.40"}},
		}},
		Peers: []*metallbv1beta2.BGPPeer{{ObjectMeta: metav1.ObjectMeta{Name: "tor"}}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// with adds an advertisement, whose spec is YAML.
func with(name, spec string, annotations ...string) func(*Cluster) {
	return func(c *Cluster) {
		a := &BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "metallb-system", ResourceVersion: "7"}}
		if err := yaml.UnmarshalStrict([]byte(spec), &a.Spec); err != nil {
			panic(err)
		}
		for i := 0; i < len(annotations); i += 2 {
			metav1.SetMetaDataAnnotation(&a.ObjectMeta, annotations[i], annotations[i+1])
		}
		c.Advertisements = append(c.Advertisements, a)
	}
}

func guarded(c *Cluster) { c.Guarded = true }
func manage(c *Cluster)  { c.Manage = true }
func nodeLabel(node int, key, value string) func(*Cluster) {
	return func(c *Cluster) { c.Nodes[node].Labels[key] = value }
}

// dump is a plan as text, one document per object.
func dump(t *testing.T, p Plan) string {
	t.Helper()
	var text strings.Builder
	show := func(title string, value any) {
		body, err := yaml.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("--- # " + title + "\n" + string(body))
	}
	for _, s := range p.Services {
		for _, a := range s.Owned {
			show("owned", a)
		}
		show(s.Key.String(), map[string]any{"label": s.Label, "findings": s.Findings})
	}
	for _, e := range p.Edits {
		show("edit of "+e.Advertisement.Name, map[string]any{"exclude": e.Exclude, "patch": string(e.Patch)})
	}
	for _, o := range p.Orphans {
		show("orphan", o.Name)
	}
	return text.String()
}

func TestPlans(t *testing.T) {
	tests := map[string]*Cluster{
		"nothing-of-others":        aCluster(),
		"guarded":                  aCluster(guarded),
		"attributes-are-copied":    aCluster(guarded, with("general", "{localPref: 200, asPathPrepend: 2, communities: ['65000:1', large:1:2:3], peers: [tor]}")),
		"several-attributes":       aCluster(with("one", "{localPref: 100, peers: [tor]}"), with("two", "{localPref: 200, peers: [tor2]}")),
		"racks":                    aCluster(with("one", "{localPref: 100, nodeSelectors: [{matchLabels: {rack: '1'}}]}"), with("two", "{localPref: 200, nodeSelectors: [{matchLabels: {rack: '2'}}]}")),
		"documented-by-hand":       aCluster(with("hand", "{ipAddressPools: [pool], nodeSelectors: [{matchLabels: {"+publicKey+": ''}}], communities: ['65000:1']}")),
		"documented-and-guarded":   aCluster(guarded, with("hand", "{ipAddressPools: [pool], nodeSelectors: [{matchLabels: {"+publicKey+": ''}}], communities: ['65000:1']}")),
		"reported":                 aCluster(with("general", "{ipAddressPoolSelectors: [{matchLabels: {zone: dmz}}]}")),
		"managed":                  aCluster(manage, with("general", "{}"), with("web", "{serviceSelectors: [{matchLabels: {app: web}}, {matchLabels: {app: db}}]}", "team", "net")),
		"managed-before":           aCluster(manage, with("general", "{serviceSelectors: [{matchExpressions: [{key: "+v1alpha1.ServiceLabel+", operator: DoesNotExist}]}]}", v1alpha1.OriginalSelectorsAnnotation, "null")),
		"no-longer-managed":        aCluster(with("general", "{serviceSelectors: [{matchExpressions: [{key: "+v1alpha1.ServiceLabel+", operator: DoesNotExist}]}]}", v1alpha1.OriginalSelectorsAnnotation, "null")),
		"before-service-selectors": aCluster(func(c *Cluster) { c.Features = Features{} }, with("general", "{}")),
		"vrf": aCluster(func(c *Cluster) {
			c.EgressServices[0].Network, c.EgressServices[0].VRF = "blue", true
			c.Peers = append(c.Peers, &metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "blue-tor"}, Spec: metallbv1beta2.BGPPeerSpec{VRFName: "blue"}})
		}, with("general", "{localPref: 200, peers: [tor]}")),
		"gone": aCluster(func(c *Cluster) { c.EgressServices = nil },
			with(Name("ns", "s"), "{}", v1alpha1.OwnerAnnotation, "ns/s"), with("users", "{}", v1alpha1.OwnerAnnotation, "ns/s")),
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) { golden(t, name+".yaml", dump(t, Make(c))) })
	}
}

// reasons are those of the findings, harmless ones in parentheses.
func reasons(findings []Finding) []string {
	var all []string
	for _, f := range findings {
		if f.Harmless {
			all = append(all, "("+f.Reason+")")
		} else {
			all = append(all, f.Reason)
		}
	}
	return all
}

func TestFindings(t *testing.T) {
	general := with("general", "{}")
	tests := []struct {
		name    string
		cluster *Cluster
		want    []string
		says    string // part of the first message
	}{
		{"none", aCluster(), nil, ""},
		{"general advertisement", aCluster(general), []string{"OtherAdvertisement"},
			`from nodes b, c; this excludes egress services from it: kubectl -n metallb-system patch bgpadvertisement general --type=json -p='[{"op":"add"`},
		{"general advertisement, guarded", aCluster(guarded, general), []string{"(OtherAdvertisement)"}, "the guard withholds it there"},
		{"general advertisement, to be managed", aCluster(manage, general), []string{"OtherAdvertisement"}, "until the service is excluded"},
		{"of another pool", aCluster(with("general", "{ipAddressPools: [elsewhere]}")), nil, ""},
		{"of other services", aCluster(with("general", "{serviceSelectors: [{matchLabels: {app: db}}]}")), nil, ""},
		{"excluded by the user", aCluster(with("general", "{serviceSelectors: [{matchExpressions: [{key: "+v1alpha1.ServiceLabel+", operator: DoesNotExist}]}]}")), nil, ""},
		{"from the primary only", aCluster(with("general", "{nodeSelectors: [{matchLabels: {rack: '1'}}]}")), nil, ""},
		{"misspelt", aCluster(with("hand", "{}", corev1.LastAppliedConfigAnnotation, `{"spec":{"nodeSelector":[{"matchLabels":{}}]}}`)),
			[]string{"NodeSelectorsMisspelt"}, "the field's name is nodeSelectors"},
		{"misspelt, guarded", aCluster(guarded, with("hand", "{}", corev1.LastAppliedConfigAnnotation, `{"spec":{"nodeSelector":[{"matchLabels":{}}]}}`)),
			[]string{"(NodeSelectorsMisspelt)"}, ""},
		{"by hand", aCluster(with("hand", "{nodeSelectors: [{matchLabels: {"+publicKey+": ''}}]}")), nil, ""},
		{"by hand, without service selectors", aCluster(func(c *Cluster) { c.Features = Features{} },
			with("hand", "{ipAddressPools: [pool], nodeSelectors: [{matchLabels: {"+publicKey+": ''}}]}")), []string{"(ServiceSelectorsMissing)"}, ""},
		{"general, without service selectors", aCluster(func(c *Cluster) { c.Features = Features{} }, general),
			[]string{"OtherAdvertisement", "(ServiceSelectorsMissing)"}, "take the pool pool out of it"},
		{"nothing, without service selectors", aCluster(func(c *Cluster) { c.Features = Features{} }),
			[]string{"ServiceSelectorsMissing", "NotAdvertised"}, "give the service an IPAddressPool of its own"},
		{"aggregate", aCluster(with("general", "{aggregationLength: 24}")), []string{"(AggregateAdvertised)"}, "while no node announces the address itself"},
		{"L2Advertisement", aCluster(func(c *Cluster) {
			c.L2Advertisements = []*metallbv1beta1.L2Advertisement{{ObjectMeta: metav1.ObjectMeta{Name: "l2"}}}
		}), []string{"L2Advertisement"}, "patch l2advertisement l2"},
		{"L2Advertisement, guarded", aCluster(guarded, func(c *Cluster) {
			c.L2Advertisements = []*metallbv1beta1.L2Advertisement{{ObjectMeta: metav1.ObjectMeta{Name: "l2"}}}
		}), []string{"L2Advertisement"}, ""},
		{"L2Advertisement of another pool", aCluster(func(c *Cluster) {
			c.L2Advertisements = []*metallbv1beta1.L2Advertisement{{Spec: metallbv1beta1.L2AdvertisementSpec{IPAddressPools: []string{"elsewhere"}}}}
		}), nil, ""},
		{"shared with an ordinary service", aCluster(with("general", "{serviceSelectors: [{matchLabels: {app: db}}]}"), func(c *Cluster) {
			c.Services = append(c.Services, Service{Key: types.NamespacedName{Namespace: "ns", Name: "db"}, Labels: map[string]string{"app": "db"},
				Pool: "pool", Addresses: c.Services[0].Addresses})
		}), []string{"SharedWithOrdinaryService"}, "Service ns/db, which is no egress service, has 192.0.2.1 too, and BGPAdvertisement general"},
		{"no pool", aCluster(func(c *Cluster) { c.Services[0].Pool = "" }), []string{"PoolUnknown"}, "has not said yet"},
		{"a pool that is not there", aCluster(func(c *Cluster) { c.Services[0].Pool = "gone" }), []string{"PoolUnknown"}, "there is no IPAddressPool gone"},
		{"an address of no pool", aCluster(func(c *Cluster) { c.Services[0].Addresses[0] = netip.MustParseAddr("192.0.2.31") }), []string{"AddressNotInPool"}, "192.0.2.31"},
		{"the last address of a range", aCluster(func(c *Cluster) { c.Services[0].Addresses[0] = netip.MustParseAddr("192.0.2.40") }), nil, ""},
		{"a pool of one family", aCluster(func(c *Cluster) { c.Services[0].DualStack = true }), []string{"(PoolLacksFamily)"}, ""},
		{"no peer", aCluster(func(c *Cluster) { c.Peers = nil }), []string{"NoBGPPeer"}, "no BGPPeer selects node a"},
		{"no peer of the advertisement", aCluster(with("general", "{peers: [tor2]}")), []string{"NoBGPPeer"}, ""},
		{"no peer on the node", aCluster(func(c *Cluster) {
			c.Peers[0].Spec.NodeSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{"rack": "2"}}}
		}), []string{"NoBGPPeer"}, ""},
		{"an excluded node", aCluster(nodeLabel(0, corev1.LabelNodeExcludeBalancers, "")), []string{"NodeExcluded"}, ""},
		{"an excluded node, ignored", aCluster(nodeLabel(0, corev1.LabelNodeExcludeBalancers, ""), func(c *Cluster) { c.IgnoreExclude = true }), nil, ""},
		{"other nodes are excluded", aCluster(general, nodeLabel(1, corev1.LabelNodeExcludeBalancers, ""), nodeLabel(2, corev1.LabelNodeExcludeBalancers, "")), nil, ""},
		{"conflict of the user's", aCluster(with("one", "{localPref: 1, serviceSelectors: [{matchLabels: {app: web}}]}"), with("two", "{localPref: 2, nodeSelectors: [{matchLabels: {rack: '1'}}]}")),
			[]string{"ConflictingAttributes", "OtherAdvertisement", "ConflictingAttributes"}, "BGPAdvertisement two"},
		{"a VRF without peers", aCluster(func(c *Cluster) { c.EgressServices[0].Network, c.EgressServices[0].VRF = "blue", true }), []string{"PeersNotInNetwork"}, ""},
		{"a plain table", aCluster(func(c *Cluster) { c.EgressServices[0].Network = "100" }), nil, ""},
		{"announced elsewhere", aCluster(func(c *Cluster) {
			c.BGPAnnouncements = []Announcement{{"b", c.Services[0].Key}, {"a", c.Services[0].Key}}
		}),
			[]string{"AnnouncedElsewhere"}, "from node b"},
		{"an aggregate elsewhere", aCluster(with("general", "{aggregationLength: 24}"), func(c *Cluster) { c.BGPAnnouncements = []Announcement{{"b", c.Services[0].Key}} }),
			[]string{"(AggregateAdvertised)"}, ""},
		{"a primary whose Node is gone", aCluster(func(c *Cluster) { c.Nodes = c.Nodes[1:] }), nil, ""},
		{"offered elsewhere, guarded", aCluster(guarded, func(c *Cluster) { c.BGPAnnouncements = []Announcement{{"b", c.Services[0].Key}} }), nil, ""},
		{"announced by layer 2", aCluster(guarded, func(c *Cluster) { c.L2Announcements = []Announcement{{"b", c.Services[0].Key}} }), []string{"L2AnnouncedElsewhere"}, ""},
		{"configuration not valid", aCluster(func(c *Cluster) { c.Invalid = map[string]string{"a": "peer tor: no ASN", "b": "x"} }), []string{"ConfigurationInvalid"}, "peer tor: no ASN"},
		{"network that waits for a label", aCluster(func(c *Cluster) { c.EgressServices[0] = EgressService{Key: c.Services[0].Key, EveryNode: true} },
			with("hand", "{nodeSelectors: [{matchExpressions: [{key: "+publicKey+", operator: Exists}]}]}")), []string{"SelectsMissingLabel"}, "sourceIPBy Network"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			findings := Make(test.cluster).Services[0].Findings
			if diff := cmp.Diff(test.want, reasons(findings)); diff != "" {
				t.Fatalf("-want +got:\n%s\n%v", diff, findings)
			}
			if len(findings) > 0 && !strings.Contains(findings[0].Message, test.says) {
				t.Errorf("says %q, want something with %q", findings[0].Message, test.says)
			}
		})
	}
}

// Where others may be told not to announce a labelled Service, the label waits for the primary; and it never goes away because that does.
func TestLabelWaitsForThePrimary(t *testing.T) {
	for _, test := range []struct {
		name              string
		guarded, labelled bool
		primary           string
		want              bool
	}{
		{"no primary yet", false, false, "", false},
		{"primary", false, false, "a", true},
		{"primary lost", false, true, "", true},
		{"guarded", true, false, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := aCluster(func(c *Cluster) {
				c.Guarded, c.EgressServices[0].Primary = test.guarded, test.primary
				if !test.labelled {
					delete(c.Services[0].Labels, v1alpha1.ServiceLabel)
				}
			})
			if got := Make(c).Services[0]; got.Label != test.want || len(got.Owned) != 1 {
				t.Errorf("label %v, %d advertisements; want %v and one", got.Label, len(got.Owned), test.want)
			}
		})
	}
}

func TestComplement(t *testing.T) {
	in := func(key string, values ...string) requirement {
		return requirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
	}
	sets := []map[string]string{{}, {"rack": "1"}, {"rack": "2"}, {"rack": "1", "zone": "x"}, {"rack": "3", "zone": "y"}, {"zone": "x"}}
	for _, items := range [][][]requirement{
		{{in("rack", "1")}},
		{{in("rack", "1"), in("zone", "x")}},
		{{in("rack", "1")}, {lacks("zone")}},
		{{in("rack", "1", "2"), opposite(in("zone", "x"))}, {opposite(lacks("zone")), in("rack", "3")}},
		{nil},
	} {
		rest, ok := complement(items)
		if !ok {
			t.Fatal("too many")
		}
		matches := func(alternatives [][]requirement, set map[string]string) bool {
			return slices.ContainsFunc(alternatives, func(all []requirement) bool {
				m, ok := parse([]metav1.LabelSelector{selector(all)})
				return ok && m.match(set)
			})
		}
		for _, set := range sets {
			if matches(items, set) == matches(rest, set) {
				t.Errorf("%v and its complement %v: the same for %v", items, rest, set)
			}
		}
	}
	if _, ok := complement(slices.Repeat([][]requirement{{in("a", "1"), in("b", "1"), in("c", "1")}}, 10)); ok {
		t.Error("3^10 alternatives are not too many")
	}
}
