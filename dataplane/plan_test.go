// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"reflect"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// TestPlanner: it computes anew whenever anything of the input is another, however deep.
func TestPlanner(t *testing.T) {
	full := func() dataplane.Input {
		in := cluster()
		in.Node = "n1"
		s := service("ns/a", "172.19.0.100", "fd00:19::100")
		s.Role, s.Primary, s.Standby, s.Epoch, s.FailClosed = dataplane.RolePrimary, "n1", "n2", 3, true
		in.Services = []dataplane.Service{s}
		in.Guards = []dataplane.Guard{{Address: addr("172.19.0.100"), Service: "ns/a", Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}}}}
		in.StraysPass = true
		return in
	}
	var planner dataplane.Planner
	first, _ := planner.Plan(full())
	again, _ := planner.Plan(full())
	if &first.OVN.Policies[0] != &again.OVN.Policies[0] {
		t.Error("the same input was computed twice")
	}
	var spoil func(what string, v reflect.Value, changed func())
	spoil = func(what string, v reflect.Value, changed func()) {
		for i := range v.NumField() {
			field, name := v.Field(i), what+"."+v.Type().Field(i).Name
			if field.Kind() == reflect.Slice && field.Len() > 0 && field.Index(0).Kind() == reflect.Struct && field.Index(0).CanSet() && field.Type().Elem().PkgPath() != "net/netip" {
				spoil(name, field.Index(0), changed)
			}
			before := reflect.New(field.Type()).Elem()
			before.Set(field)
			field.SetZero()
			changed()
			if t.Failed() {
				t.Fatalf("%s was overlooked", name)
			}
			field.Set(before)
		}
	}
	in := full()
	spoil("Input", reflect.ValueOf(&in).Elem(), func() {
		var planner dataplane.Planner
		before, _ := planner.Plan(full())
		after, _ := planner.Plan(in)
		if len(after.OVN.Policies) > 0 && &before.OVN.Policies[0] == &after.OVN.Policies[0] {
			t.Fail()
		}
	})
}

// TestHostEqual: no field is left out.
func TestHostEqual(t *testing.T) {
	full := dataplane.Host{
		Internal: prefixes("10.0.0.0/8"), Translations: make([]dataplane.Translation, 1), Accounts: make([]dataplane.Account, 1),
		Holds: make([]dataplane.Hold, 1), Counted: []string{"ns/a"}, Pods: prefixes("10.0.0.0/8"), OwnPods: prefixes("10.0.0.0/8"),
		Guards: []dataplane.Guard{{Ports: make([]dataplane.Port, 1)}},
	}
	if same := full; !full.Equal(same) {
		t.Error("not equal to itself")
	}
	for i := range reflect.TypeFor[dataplane.Host]().NumField() {
		other := full
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if full.Equal(other) || other.Equal(full) {
			t.Errorf("equal without %s", reflect.TypeFor[dataplane.Host]().Field(i).Name)
		}
	}
	other := full
	other.Guards = make([]dataplane.Guard, 1)
	if full.Equal(other) {
		t.Error("equal with other ports")
	}
}
