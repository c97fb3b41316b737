// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	defaultPort = 179

	// frr-k8s' defaults, which are FRR's.
	defaultHoldTime      = 180 * time.Second
	defaultKeepaliveTime = 60 * time.Second
	// defaultConnectTime is that of FRR's datacenter profile. The peer can't call this speaker,
	// which doesn't listen, so FRR's traditional 120 s would be the outage after a peer's restart.
	defaultConnectTime = 10 * time.Second

	minHoldTime = 3 * time.Second     // RFC 4271 §4.2
	maxTime     = 65535 * time.Second // two octets in OPEN; the CRD's bound for connectTime

	// maxPassword is the kernel's TCP_MD5SIG_MAXKEYLEN.
	maxPassword = 80
)

// neighborMerge is what the objects so far say about one neighbor.
type neighborMerge struct {
	Neighbor            // without Routes
	report   reporter   // of the object that came first
	nextHop4 netip.Addr // toAdvertise.nextHop.ipv4
	nextHop6 netip.Addr // toAdvertise.nextHop.ipv6
	routes   []Route    // ordered
	bfdAge   int        // of the object that BFD is of
	shared   bool       // routes are other neighbors' too, and must not be changed
}

// convert reads one neighbor, its routes aside. It is false when the neighbor is refused.
func (m *merger) convert(report source, localASN uint32, in *frrk8sv1beta1.Neighbor) (*neighborMerge, bool) {
	out := &neighborMerge{report: report.reporter, bfdAge: m.age}
	for _, step := range []func() error{
		func() (err error) { out.Address, err = parsePeer(in); return },
		func() (err error) { out.ASN, err = peerASN(localASN, in); return },
		func() (err error) { out.LocalASN, err = replacedASN(localASN, out.ASN, in); return },
		func() (err error) { out.Source, err = parseSource(out.Address, in.SourceAddress); return },
		func() (err error) { out.Password, err = m.password(in); return },
		func() (err error) { out.Families, err = families(report.reporter, out.Address, in); return },
	} {
		if err := step(); err != nil {
			report.problem("%v, the neighbor is refused", err)
			return nil, false
		}
	}
	out.Port = defaultPort
	if in.Port != nil && *in.Port != 0 {
		out.Port = *in.Port
	}
	out.HoldTime, out.KeepaliveTime = holdAndKeepalive(report.reporter, in)
	out.ConnectTime = connectTime(report.reporter, in.ConnectTime)
	out.EBGPMultiHop = in.EBGPMultiHop
	out.GracefulRestart = in.EnableGracefulRestart
	if in.BFDProfile != "" {
		var err error
		if out.BFD, err = report.bfd(in); err != nil {
			report.problem("bfdProfile %q: %v; the session runs without BFD", in.BFDProfile, err)
		}
	}
	reportIgnored(report.reporter, in)
	return out, true
}

// frr-k8s' defaults, which are FRR's, and bounds of BFD profiles.
const (
	defaultBFDInterval   = 300
	defaultBFDMultiplier = 3
	minBFDInterval       = 10
	maxBFDInterval       = 60_000
	minBFDMultiplier     = 2
)

// bfd is the profile that a neighbor names, where GoBGP can do what it says. Intervals for echo
// and the smallest TTL, which is for sessions over several hops, say nothing about a session
// without either.
func (s source) bfd(in *frrk8sv1beta1.Neighbor) (BFD, error) {
	profile := s.profiles[in.BFDProfile]
	switch {
	case profile == nil:
		return BFD{}, errors.New("the object has no such profile")
	case in.EBGPMultiHop:
		return BFD{}, errors.New("ebgpMultiHop: BFD over several hops is not supported")
	case in.SourceAddress != "":
		return BFD{}, errors.New("sourceaddress: BFD packets can't be given a source")
	case profile.EchoMode != nil && *profile.EchoMode:
		return BFD{}, errors.New("echoMode is not supported")
	case profile.PassiveMode != nil && *profile.PassiveMode:
		return BFD{}, errors.New("passiveMode is not supported")
	}
	receive, transmit := deref(profile.ReceiveInterval, defaultBFDInterval), deref(profile.TransmitInterval, defaultBFDInterval)
	multiplier := deref(profile.DetectMultiplier, defaultBFDMultiplier)
	for _, interval := range []uint32{receive, transmit} {
		if interval < minBFDInterval || interval > maxBFDInterval {
			return BFD{}, fmt.Errorf("an interval of %d ms is not between %d and %d", interval, minBFDInterval, maxBFDInterval)
		}
	}
	if multiplier < minBFDMultiplier || multiplier > math.MaxUint8 {
		return BFD{}, fmt.Errorf("detectMultiplier %d is not between %d and %d", multiplier, minBFDMultiplier, math.MaxUint8)
	}
	return BFD{
		ReceiveInterval:  time.Duration(receive) * time.Millisecond,
		TransmitInterval: time.Duration(transmit) * time.Millisecond,
		Multiplier:       uint8(multiplier),
	}, nil
}

func deref(value *uint32, otherwise uint32) uint32 {
	if value == nil {
		return otherwise
	}
	return *value
}

// reportIgnored reports the fields without which a neighbor still comes up.
func reportIgnored(report reporter, in *frrk8sv1beta1.Neighbor) {
	if in.AllowAsIn != "" && in.AllowAsIn != frrk8sv1beta1.AllowAsInNone {
		report.problem("allowAsIn: routes are not received from neighbors; ignored")
	}
	if in.ToReceive.Allowed.Mode == frrk8sv1beta1.AllowAll || len(in.ToReceive.Allowed.Prefixes) > 0 {
		report.problem("toReceive: received routes are not installed on the node; ignored, nothing is received")
	}
}

func parsePeer(in *frrk8sv1beta1.Neighbor) (netip.Addr, error) {
	if in.Interface != "" {
		return netip.Addr{}, fmt.Errorf("interface %q: unnumbered sessions are not supported yet", in.Interface)
	}
	address, err := netip.ParseAddr(in.Address)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address %q is not an IP address", in.Address)
	}
	if address.Zone() != "" || address.IsUnspecified() || address.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("address %q can't be a neighbor's", in.Address)
	}
	return address.Unmap(), nil
}

// peerASN is 0 for any AS number but the router's own.
func peerASN(local uint32, in *frrk8sv1beta1.Neighbor) (uint32, error) {
	switch {
	case in.ASN != 0 && in.DynamicASN != "":
		return 0, fmt.Errorf("asn and dynamicASN exclude each other")
	case in.ASN != 0:
		return in.ASN, nil
	case in.DynamicASN == frrk8sv1beta1.InternalASNMode:
		return local, nil
	case in.DynamicASN == frrk8sv1beta1.ExternalASNMode:
		return 0, nil
	case in.DynamicASN != "":
		return 0, fmt.Errorf("dynamicASN %q is neither internal nor external", in.DynamicASN)
	}
	return 0, fmt.Errorf("neither asn nor dynamicASN is set")
}

// replacedASN is in.LocalASN where it means something: on eBGP sessions, and other than the
// router's own.
func replacedASN(local, peer uint32, in *frrk8sv1beta1.Neighbor) (uint32, error) {
	if in.LocalASN == 0 || in.LocalASN == local {
		return 0, nil
	}
	if peer == local {
		return 0, fmt.Errorf("localASN %d: the session is internal, where frr-k8s has no localASN", in.LocalASN)
	}
	return in.LocalASN, nil
}

func parseSource(peer netip.Addr, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	source, err := netip.ParseAddr(text)
	if err != nil || source.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("sourceaddress %q: only IP addresses are supported", text)
	}
	source = source.Unmap()
	if source.Is4() != peer.Is4() || source.IsUnspecified() || source.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("sourceaddress %q can't be the source of a session with %s", text, peer)
	}
	return source, nil
}

func (m *merger) password(in *frrk8sv1beta1.Neighbor) (string, error) {
	password := in.Password
	if name := in.PasswordSecret.Name; name != "" {
		if password != "" {
			return "", fmt.Errorf("password and passwordSecret exclude each other")
		}
		var err error
		if password, err = m.secret(name); err != nil {
			return "", fmt.Errorf("passwordSecret %q: %w", name, err)
		}
		if password == "" {
			return "", fmt.Errorf("passwordSecret %q has no password", name)
		}
	}
	if len(password) > maxPassword {
		return "", fmt.Errorf("the password has %d bytes, more than the kernel's %d", len(password), maxPassword)
	}
	return password, nil
}

func families(report reporter, peer netip.Addr, in *frrk8sv1beta1.Neighbor) (Families, error) {
	if slices.Contains(in.AddressFamilies, frrk8sv1beta1.AddressFamilyEVPN) {
		if !slices.Contains(in.AddressFamilies, frrk8sv1beta1.AddressFamilyUnicast) {
			return Families{}, fmt.Errorf("addressFamilies: evpn is not supported")
		}
		report.problem("addressFamilies: evpn is not supported, the session is unicast only")
	}
	return Families{
		IPv4: peer.Is4() || in.DualStackAddressFamily,
		IPv6: peer.Is6() || in.DualStackAddressFamily,
	}, nil
}

func holdAndKeepalive(report reporter, in *frrk8sv1beta1.Neighbor) (hold, keepalive time.Duration) {
	if in.HoldTime == nil && in.KeepaliveTime == nil {
		return defaultHoldTime, defaultKeepaliveTime
	}
	refuse := func(reason string) (time.Duration, time.Duration) {
		report.problem("%s, holdTime %s and keepaliveTime %s apply", reason, defaultHoldTime, defaultKeepaliveTime)
		return defaultHoldTime, defaultKeepaliveTime
	}
	if in.HoldTime == nil || in.KeepaliveTime == nil {
		return refuse("holdTime and keepaliveTime must be set together")
	}
	hold, keepalive = in.HoldTime.Truncate(time.Second), in.KeepaliveTime.Truncate(time.Second)
	switch {
	case hold == 0:
		return refuse("holdTime 0, a session without keepalives, is not supported")
	case hold < minHoldTime || hold > maxTime:
		return refuse(fmt.Sprintf("holdTime %s is not between %s and %s", in.HoldTime.Duration, minHoldTime, maxTime))
	case keepalive < time.Second || keepalive > hold:
		return refuse(fmt.Sprintf("keepaliveTime %s is not between 1s and holdTime", in.KeepaliveTime.Duration))
	}
	return hold, keepalive
}

func connectTime(report reporter, in *metav1.Duration) time.Duration {
	if in == nil {
		return defaultConnectTime
	}
	if in.Duration < time.Second || in.Duration > maxTime || in.Duration%time.Second != 0 {
		report.problem("connectTime %s is not whole seconds between 1s and %s, %s applies", in.Duration, maxTime, defaultConnectTime)
		return defaultConnectTime
	}
	return in.Duration
}

// join adds what a younger object says about the same neighbor. What says which session it is
// must agree; of the rest the older value stays.
func (n *neighborMerge) join(report reporter, younger *neighborMerge) {
	older := n.report.object
	for _, field := range []struct {
		name  string
		equal bool
	}{
		{"asn", n.ASN == younger.ASN},
		{"localASN", n.LocalASN == younger.LocalASN},
		{"port", n.Port == younger.Port},
		{"sourceaddress", n.Source == younger.Source},
		{"password", n.Password == younger.Password},
	} {
		if !field.equal {
			report.problem("%s contradicts that of the older %s, the neighbor is refused here", field.name, older)
			return
		}
	}
	for _, field := range []struct {
		name  string
		equal bool
	}{
		{"holdTime", n.HoldTime == younger.HoldTime},
		{"keepaliveTime", n.KeepaliveTime == younger.KeepaliveTime},
		{"connectTime", n.ConnectTime == younger.ConnectTime},
		{"ebgpMultiHop", n.EBGPMultiHop == younger.EBGPMultiHop},
		{"enableGracefulRestart", n.GracefulRestart == younger.GracefulRestart},
		{"dualStackAddressFamily", n.Families == younger.Families},
	} {
		if !field.equal {
			report.problem("%s contradicts that of the older %s, ignored here", field.name, older)
		}
	}
	switch none := (BFD{}); {
	case younger.BFD != none && n.EBGPMultiHop:
		report.problem("bfdProfile: ebgpMultiHop, of the older %s: BFD over several hops is not supported; the session runs without BFD", older)
	case n.BFD == none:
		n.BFD, n.bfdAge = younger.BFD, younger.bfdAge
	case younger.BFD != none && younger.BFD != n.BFD:
		report.problem("bfdProfile contradicts that of the older %s, ignored here", older)
	}
	n.joinRoutes(report, younger)
}
