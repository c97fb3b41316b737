// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package crds_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/metallb-egress/metallb-egress/api"
	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// namespace is where every object of the tests is.
const namespace = "rules"

func TestCRDs(t *testing.T) {
	server := startUp(t)
	c := clientFor(t, server)
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	t.Run("objects from before the rules", func(t *testing.T) { testOlderObjects(t, server, c) })
	t.Run("EgressService", func(t *testing.T) { testEgressServices(t, c) })
	t.Run("EgressService: default", func(t *testing.T) { testDefault(t, c) })
	t.Run("EgressService: documented examples", func(t *testing.T) { testExamples(t, c) })
	t.Run("EgressService: columns", func(t *testing.T) { testColumns(t, server, c) })
	t.Run("EgressAssignment", func(t *testing.T) { testAssignments(t, c) })
	t.Run("EgressNode", func(t *testing.T) { testNodes(t, c) })
}

// startUp starts an API server that ends with the test. It has no definitions yet.
func startUp(t *testing.T) *controlplane.ControlPlane {
	t.Helper()
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	binaries := func(name string) (string, error) { return cache.Binary(root, name) }
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := binaries(name); err != nil {
			missing(t, err)
		}
	}
	processes, err := process.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := processes.StopAll(ctx); err != nil {
			t.Error(err)
		}
	})
	o := controlplane.Options{Dir: filepath.Join(t.TempDir(), "control-plane"), RepoRoot: root, Binaries: binaries}
	server, err := controlplane.Up(t.Context(), o, processes, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skipf("SKIPPED, this checks nothing: %v", err)
}

// clientFor is an admin's client, whose objects must not have unknown fields.
func clientFor(t *testing.T, server *controlplane.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(server.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return client.WithFieldValidation(c, metav1.FieldValidationStrict)
}

func egressService(name string, spec egressv1.EgressServiceSpec) *egressv1.EgressService {
	return &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
}

// refused compares an answer with what it has to say; empty: accepted.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one that says %q", err, want)
	}
}

// withoutRules are the definitions as upstream has its own: without rules in CEL and defaults.
func withoutRules(t *testing.T) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(api.CRDs, "crds/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(api.CRDs, name)
		if err != nil {
			t.Fatal(err)
		}
		var content map[string]any
		if err := yaml.Unmarshal(text, &content); err != nil {
			t.Fatal(err)
		}
		removeRules(content)
		if text, err = yaml.Marshal(content); err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	return files
}

func removeRules(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "x-kubernetes-validations")
		delete(value, "default")
		for _, inner := range value {
			removeRules(inner)
		}
	case []any:
		for _, inner := range value {
			removeRules(inner)
		}
	}
}

// testOlderObjects replaces a definition without rules, as upstream's is, by ours: an object that the
// rules refuse must still be told so in its status, and be edited elsewhere.
func testOlderObjects(t *testing.T, server *controlplane.ControlPlane, c client.Client) {
	if err := server.InstallCRDs(t.Context(), withoutRules(t)); err != nil {
		t.Fatal(err)
	}
	old := egressService("old", egressv1.EgressServiceSpec{
		SourceIPBy: egressv1.SourceIPLoadBalancer, Network: "a b",
		NodeSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone", Operator: "In"}}},
	})
	if err := c.Create(t.Context(), old.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := server.InstallCRDs(t.Context(), api.CRDs); err != nil {
		t.Fatal(err)
	}
	// The API server takes new rules over some time after it has them.
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		probe := old.DeepCopy()
		probe.Name = "new"
		return c.Create(ctx, probe, client.DryRunAll) != nil, nil
	})
	if err != nil {
		t.Fatalf("the rules are not in force: %v", err)
	}
	edits := []struct {
		name, patch, want string
		status            bool
	}{
		{"its status", `{"status": {"host": "", "conditions": [{"type": "Ready", "status": "False", "reason": "InvalidNodeSelector", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}`, "", true},
		{"an annotation", `{"metadata": {"annotations": {"a": "b"}}}`, "", false},
		{"another wrong network", `{"spec": {"network": "c d"}}`, "without spaces", false},
		{"a right one", `{"spec": {"network": "cd"}}`, "", false},
	}
	for _, edit := range edits {
		t.Run(edit.name, func(t *testing.T) {
			patch := client.RawPatch("application/merge-patch+json", []byte(edit.patch))
			if edit.status {
				refused(t, c.Status().Patch(t.Context(), old.DeepCopy(), patch), edit.want)
				return
			}
			refused(t, c.Patch(t.Context(), old.DeepCopy(), patch), edit.want)
		})
	}
}

// testEgressServices has each rule both ways.
func testEgressServices(t *testing.T, c client.Client) {
	type spec = egressv1.EgressServiceSpec
	network := func(name string) spec { return spec{Network: name} }
	selector := func(list ...metav1.LabelSelectorRequirement) spec {
		return spec{NodeSelector: metav1.LabelSelector{MatchExpressions: list}}
	}
	expression := func(operator string, values ...string) spec {
		return selector(metav1.LabelSelectorRequirement{Key: "zone", Operator: metav1.LabelSelectorOperator(operator), Values: values})
	}
	var many []metav1.LabelSelectorRequirement
	for i := range 1000 {
		many = append(many, metav1.LabelSelectorRequirement{Key: fmt.Sprint("zone-", i), Operator: metav1.LabelSelectorOpIn, Values: []string{"a", "b"}})
	}
	const printable, operators, need, no = "printable, without spaces", "operators are In", "need values", "take no values"
	tests := []struct {
		name string
		spec spec
		want string // part of the refusal; empty: accepted
	}{
		{"nothing said", spec{}, ""},
		{"sourceIPBy Network", spec{SourceIPBy: egressv1.SourceIPNetwork, Network: "blue"}, ""},
		{"sourceIPBy Network without a network", spec{SourceIPBy: egressv1.SourceIPNetwork}, ""},
		{"sourceIPBy Luck", spec{SourceIPBy: "Luck"}, "Unsupported value"},

		{"a table's number", network("1001"), ""},
		{"a table's name", network("blue"), ""},
		{"a VRF device", network("vrf-red.100@x:_"), ""},
		{"a name in another script", network("ネット"), ""},
		{"64 characters", network(strings.Repeat("x", 64)), ""},
		{"65 characters", network(strings.Repeat("x", 65)), "Too long"},
		{"a space", network("blue red"), printable},
		{"a space at the end", network("blue "), printable},
		{"a no-break space", network("blue\u00a0"), printable},
		{"a slash", network("../blue"), printable},
		{"a line's end", network("blue\n"), printable},
		{"an invisible character", network("blue\u200b"), printable},

		{"labels", spec{NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"node-role.kubernetes.io/worker": ""}}}, ""},
		{"In", expression("In", "a", "b"), ""},
		{"NotIn", expression("NotIn", ""), ""},
		{"Exists", expression("Exists"), ""},
		{"DoesNotExist", expression("DoesNotExist"), ""},
		{"1000 expressions", selector(many...), ""},
		{"an operator in lower case", expression("in", "a"), operators},
		{"an operator of node affinity", expression("Gt", "1"), operators},
		{"no operator", expression("", "a"), operators},
		{"In without values", expression("In"), need},
		{"NotIn without values", expression("NotIn"), need},
		{"Exists with a value", expression("Exists", "a"), no},
		{"DoesNotExist with a value", expression("DoesNotExist", "a"), no},
		{"only the second is wrong", selector(many[0], metav1.LabelSelectorRequirement{Key: "zone", Operator: "NotIn"}), need},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			refused(t, c.Create(t.Context(), egressService("new", test.spec), client.DryRunAll), test.want)
			// The rules on the selector refuse exactly what could not be parsed.
			_, err := metav1.LabelSelectorAsSelector(&test.spec.NodeSelector)
			if aboutSelector := test.want == operators || test.want == need || test.want == no; (err != nil) != aboutSelector {
				t.Errorf("the selector is parsed with error %v", err)
			}
		})
	}
}

func testDefault(t *testing.T, c client.Client) {
	got := egressService("default", egressv1.EgressServiceSpec{})
	if err := c.Create(t.Context(), got, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if got.Spec.SourceIPBy != egressv1.SourceIPLoadBalancer {
		t.Errorf("sourceIPBy is %q", got.Spec.SourceIPBy)
	}
	network := egressService("default", egressv1.EgressServiceSpec{SourceIPBy: egressv1.SourceIPNetwork})
	if err := c.Create(t.Context(), network, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if network.Spec.SourceIPBy != egressv1.SourceIPNetwork {
		t.Errorf("sourceIPBy is %q, not as given", network.Spec.SourceIPBy)
	}
}

// testColumns asks for what kubectl get prints.
func testColumns(t *testing.T, server *controlplane.ControlPlane, c client.Client) {
	service := egressService("web", egressv1.EgressServiceSpec{SourceIPBy: egressv1.SourceIPLoadBalancer, Network: "blue"})
	if err := c.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	service.Status = egressv1.EgressServiceStatus{Host: "n1", Standby: "n2", Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionAnnounced, Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonSpeakerSilent, LastTransitionTime: metav1.Now()},
		{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSpeakerSilent, LastTransitionTime: metav1.Now()},
	}}
	if err := c.Status().Update(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(server.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	body, err := clientset.Discovery().RESTClient().Get().AbsPath("/apis/k8s.ovn.org/v1/namespaces", namespace, "egressservices/web").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(body, &table); err != nil {
		t.Fatal(err)
	}
	var columns, wide []string
	row := map[string]any{}
	for i, column := range table.ColumnDefinitions {
		if name := strings.ToUpper(column.Name); column.Priority == 0 {
			columns = append(columns, name)
		} else {
			wide = append(wide, name)
		}
		if len(table.Rows) == 1 {
			row[strings.ToUpper(column.Name)] = table.Rows[0].Cells[i]
		}
	}
	if diff := cmp.Diff([]string{"NAME", "HOST", "STANDBY", "SOURCE", "NETWORK", "READY", "AGE"}, columns); diff != "" {
		t.Errorf("columns: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"REASON"}, wide); diff != "" {
		t.Errorf("columns with -o wide: -want +got:\n%s", diff)
	}
	if age, ok := row["AGE"].(string); !ok || !strings.HasSuffix(age, "s") {
		t.Errorf("age %v, want some seconds", row["AGE"])
	}
	delete(row, "AGE")
	want := map[string]any{"NAME": "web", "HOST": "n1", "STANDBY": "n2", "SOURCE": "LoadBalancerIP", "NETWORK": "blue", "READY": "False", "REASON": v1alpha1.ReasonSpeakerSilent}
	if diff := cmp.Diff(want, row); diff != "" {
		t.Errorf("row: -want +got:\n%s", diff)
	}
}
