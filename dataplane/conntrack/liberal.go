// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tcpBeLiberal is IP_CT_TCP_FLAG_BE_LIBERAL (linux/netfilter/nf_conntrack_tcp.h): a packet outside of
// the window is not invalid.
const tcpBeLiberal = 0x08

// Loosen has the entries of TCP connections that these pods have opened to the outside, in every zone,
// let pass what is outside of the window that they know, and returns their number. A node that a service
// comes back to has seen nothing of them in the meantime; nor has Open vSwitch, where the way to the
// management port passes its connection tracking. Entries that are made in the middle of a connection
// are such from the beginning.
func (c *Cleaner) Loosen(pods []netip.Addr, internal []netip.Prefix) (uint, error) {
	byFamily := map[netlink.InetFamily]map[netip.Addr]bool{}
	for _, pod := range pods {
		family := familyOf(pod)
		if byFamily[family] == nil {
			byFamily[family] = map[netip.Addr]bool{}
		}
		byFamily[family][pod] = true
	}
	var total uint
	var failed error // the first
	for family, wanted := range byFamily {
		flows, err := c.list(family)
		if err != nil {
			return total, err
		}
		for _, flow := range flows {
			to := address(flow.Forward.DstIP)
			if flow.Forward.Protocol != unix.IPPROTO_TCP || !wanted[address(flow.Forward.SrcIP)] ||
				slices.ContainsFunc(internal, func(p netip.Prefix) bool { return p.Contains(to) }) {
				continue
			}
			switch err := c.loosen(family, flow); {
			case err == nil:
				total++
			case errors.Is(err, unix.ENOENT): // it has ended meanwhile
			case failed == nil:
				failed = fmt.Errorf("conntrack: loosen %s > %s in zone %d: %w", flow.Forward.SrcIP, flow.Forward.DstIP, flow.Zone, err)
			}
		}
	}
	return total, failed
}

func (c *Cleaner) list(family netlink.InetFamily) ([]*netlink.ConntrackFlow, error) {
	for attempt := 1; ; attempt++ {
		flows, err := c.handle.ConntrackTableList(netlink.ConntrackTable, family)
		if errors.Is(err, netlink.ErrDumpInterrupted) && attempt < dumpAttempts {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("conntrack: %w", err)
		}
		return flows, nil
	}
}

// loosen updates one entry. The library has no words for a TCP entry's flags.
func (c *Cleaner) loosen(family netlink.InetFamily, flow *netlink.ConntrackFlow) error {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_REPLACE)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: c.socket}}
	request.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
	request.AddData(tuple(flow.Forward))
	if flow.Zone != 0 {
		request.AddData(nl.NewRtAttr(nl.CTA_ZONE, nl.BEUint16Attr(flow.Zone)))
	}
	flags := []byte{tcpBeLiberal, tcpBeLiberal} // flags and their mask
	info := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO, nil)
	tcp := info.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO_TCP, nil)
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, flags)
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_REPLY, flags)
	request.AddData(info)
	_, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// tuple names an entry by its original direction.
func tuple(t netlink.IPTuple) *nl.RtAttr {
	source, destination, sourceType, destinationType := t.SrcIP.To4(), t.DstIP.To4(), nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if source == nil {
		source, destination, sourceType, destinationType = t.SrcIP, t.DstIP, nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	attribute := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	ip := attribute.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(sourceType, source)
	ip.AddRtAttr(destinationType, destination)
	proto := attribute.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{t.Protocol})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(t.SrcPort))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(t.DstPort))
	return attribute
}
