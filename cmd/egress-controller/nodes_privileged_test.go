// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

// makeNode is the command "node": it makes a Node, Ready and with a speaker, or changes one.
func (w *world) makeNode(ctx context.Context, args ...string) error {
	if len(args) == 0 {
		return errUsage
	}
	name, changes := args[0], args[1:]
	if len(changes) == 1 && changes[0] == "delete" {
		w.silence(name)
		return w.client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	subnets, err := podSubnets(name)
	if err != nil {
		return err
	}
	speaks := true
	edit := func(node *corev1.Node) error {
		metav1.SetMetaDataAnnotation(&node.ObjectMeta, ovnkubernetes.NodeSubnets, subnets)
		for _, change := range changes {
			if change == "speaker=none" {
				speaks = false
				continue
			}
			if err := changeNode(node, change); err != nil {
				return err
			}
		}
		return nil
	}
	fresh, err := w.editNode(ctx, name, edit)
	if err != nil || !fresh || !speaks {
		return err
	}
	return w.speak(name, speakers.Behaviour{})
}

// speak starts a node's speaker, or changes how it behaves.
func (w *world) speak(node string, b speakers.Behaviour) error {
	if w.speaking[node] {
		w.fleet.Set(node, b)
		return nil
	}
	w.speaking[node] = true
	return w.fleet.Add(node, b)
}

// silence ends a node's speaker. What it wrote stays.
func (w *world) silence(node string) {
	w.fleet.Remove(node)
	delete(w.speaking, node)
}

// editNode creates the Node or updates it, and its status. Fresh is true for one that was created.
func (w *world) editNode(ctx context.Context, name string, edit func(*corev1.Node) error) (fresh bool, err error) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		result, err := controllerutil.CreateOrUpdate(ctx, w.client, node, func() error { return edit(node) })
		if err != nil {
			return err
		}
		fresh = fresh || result == controllerutil.OperationResultCreated
		if fresh {
			setCondition(node, corev1.NodeReady, corev1.ConditionTrue)
		}
		if err := edit(node); err != nil {
			return err
		}
		return w.client.Status().Update(ctx, node)
	})
	return fresh, err
}

// podSubnets is the annotation of a node's pod subnets: 10.244.<n>.0/24 and fd00:10:244:<n>::/64, where
// n is 1 for node a, 2 for node b, and so on.
func podSubnets(node string) (string, error) {
	if len(node) != 1 || node[0] < 'a' || node[0] > 'z' {
		return "", fmt.Errorf("node %q: its name must be a letter", node)
	}
	n := node[0] - 'a' + 1
	return fmt.Sprintf(`{"default":["10.244.%d.0/24","fd00:10:244:%d::/64"]}`, n, n), nil
}

// changeNode does what one word of the command says.
func changeNode(node *corev1.Node, change string) error {
	switch change {
	case "ready":
		setCondition(node, corev1.NodeReady, corev1.ConditionTrue)
	case "notready":
		setCondition(node, corev1.NodeReady, corev1.ConditionFalse)
	case "unknown":
		setCondition(node, corev1.NodeReady, corev1.ConditionUnknown)
	case "networkunavailable":
		setCondition(node, corev1.NodeNetworkUnavailable, corev1.ConditionTrue)
	case "networkavailable":
		setCondition(node, corev1.NodeNetworkUnavailable, corev1.ConditionFalse)
	case "cordon", "uncordon":
		node.Spec.Unschedulable = change == "cordon"
	case "exclude":
		metav1.SetMetaDataLabel(&node.ObjectMeta, corev1.LabelNodeExcludeBalancers, "")
	default:
		return changeLabel(node, change)
	}
	return nil
}

// changeLabel sets key=value, or removes key-.
func changeLabel(node *corev1.Node, change string) error {
	if key, removed := strings.CutSuffix(change, "-"); removed {
		delete(node.Labels, key)
		return nil
	}
	key, value, ok := strings.Cut(change, "=")
	if !ok {
		return fmt.Errorf("node %s: what is %q?", node.Name, change)
	}
	switch key {
	case "zone":
		key = corev1.LabelTopologyZone
	case "hostname":
		key = corev1.LabelHostname
	}
	metav1.SetMetaDataLabel(&node.ObjectMeta, key, value)
	return nil
}

func setCondition(node *corev1.Node, kind corev1.NodeConditionType, status corev1.ConditionStatus) {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == kind {
			c.Status = status
			return
		}
	}
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: kind, Status: status})
}

// makeSpeaker is the command "speaker": from now on the node's speaker behaves as the words say, and
// without words it is without fault.
func (w *world) makeSpeaker(ctx context.Context, args ...string) error {
	if len(args) == 0 {
		return errUsage
	}
	node := args[0]
	if len(args) == 2 && args[1] == "gone" {
		w.silence(node)
		return nil
	}
	behaviour, err := behaviourOf(args[1:])
	if err != nil {
		return err
	}
	if err := w.client.Get(ctx, client.ObjectKey{Name: node}, &corev1.Node{}); err != nil {
		return err
	}
	return w.speak(node, behaviour)
}

func behaviourOf(words []string) (speakers.Behaviour, error) {
	var b speakers.Behaviour
	flags := map[string]*bool{
		"dead": &b.Dead, "mute": &b.Mute, "notoffered": &b.NotOffered, "notannounced": &b.NotAnnounced, "nosession": &b.NoSession,
		"nogracefulrestart": &b.NoGracefulRestart,
	}
	var problems []error
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "refuse":
			b.Refuse = value
		case "lag":
			lag, err := time.ParseDuration(value)
			problems, b.Lag = append(problems, err), lag
		case "gateway":
			b.GatewayMode = value
		case "networks":
			b.Networks = strings.Split(value, ",")
		case "behind":
			b.Behind = strings.Split(value, ",")
		default:
			flag, known := flags[key]
			if !known {
				problems = append(problems, fmt.Errorf("what is %q?", word))
				continue
			}
			*flag = true
		}
	}
	return b, errors.Join(problems...)
}

// labelsOf are our labels on a node, in short: ns-s, and standby/ns-s.
func (w *world) labelsOf(ctx context.Context, name string) ([]string, error) {
	node := &corev1.Node{}
	if err := w.client.Get(ctx, client.ObjectKey{Name: name}, node); apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no node %s", strconv.Quote(name))
	} else if err != nil {
		return nil, err
	}
	return ourLabels(node), nil
}
