// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"hash/fnv"
)

// rank is what is wrong with a node, the worst in the highest bit: the better of two nodes is that
// with the lower rank, compared component by component.
type rank uint8

const (
	cordoned rank = 1 << iota
	sessionless
	silent
	// anyRank is above all ranks.
	anyRank
)

func rankOf(n Node, isSilent bool) rank {
	var r rank
	if isSilent {
		r |= silent
	}
	if !n.SessionHeld {
		r |= sessionless
	}
	if n.Cordoned {
		r |= cordoned
	}
	return r
}

// advantage names the first component on which a rank is better than a higher one.
func advantage(better, than rank) Reason {
	switch differ := better ^ than; {
	case differ&silent != 0:
		return SpeakerSilent
	case differ&sessionless != 0:
		return NoBGPSession
	}
	return Cordoned
}

// candidate is a node with what is worked out once for all services.
type candidate struct {
	Node
	broken Reason
	order  uint8 // the rank, then whether there is a session at this moment
	hash   uint64
	load   int // services of which it is primary
}

func orderOf(n Node) uint8 {
	order := uint8(rankOf(n, n.Silent || n.Lost)) << 1
	if !n.SessionEstablished {
		order |= 1
	}
	return order
}

// rank is the node's when it is to be chosen.
func (n *candidate) rank() rank { return rank(n.order >> 1) }

// servingRank is the node's when it is primary: its routes outlive its speaker for a while.
func (n *candidate) servingRank() rank { return rankOf(n.Node, n.Lost) }

// seat is what is to be filled: the primary's or the standby's place.
type seat struct {
	*Service
	// claimed, or nil, is who gets the seat unless another has a better rank.
	claimed *candidate
	// below is the rank that the chosen one must stay below.
	below rank
	// evenAvoided allows nodes to be avoided, when there is no other.
	evenAvoided bool
	// beside, or nil, is the primary of the standby that is sought.
	beside *candidate
}

// fill finds the node for a seat, or nil.
func (e *Electorate) fill(s seat) *candidate {
	if found := e.fillFrom(s, false); found != nil || !s.evenAvoided || len(s.Avoid) == 0 {
		return found
	}
	return e.fillFrom(s, true)
}

// fillFrom looks among the nodes to be avoided, or among the others.
func (e *Electorate) fillFrom(s seat, avoided bool) *candidate {
	var found *candidate
	below := s.below
	if c := s.claimed; c != nil && s.Avoid[c.Name] == avoided && c.rank() < below {
		found, below = c, c.rank()
	}
	if better := e.best(s, below, avoided); better != nil {
		return better
	}
	return found
}

// best is the first in order of the nodes below a rank. It asks whether a node fits only when it
// is the best up to then: most selectors are not looked at.
func (e *Electorate) best(s seat, below rank, avoided bool) *candidate {
	if len(e.open) == 0 || e.open[0].rank() >= below {
		return nil // nobody can be better, as a rule: not even the hash is needed
	}
	var found *candidate
	key := hash(s.Key)
	for _, n := range e.open {
		if n.rank() >= below || found != nil && n.order > found.order {
			break
		}
		if n == s.beside || (len(s.Avoid) != 0 && s.Avoid[n.Name]) != avoided {
			continue
		}
		if (found == nil || s.compare(n, found, key) < 0) && n.reject(s.Service, false) == "" {
			found = n
		}
	}
	return found
}

// compare orders nodes of the same rank: for a standby another zone than the primary's first, then
// fewest services, then the rendezvous hash. Should even that be equal, the first by name is found
// first.
func (s *seat) compare(a, b *candidate, key uint64) int {
	if s.beside != nil {
		if elsewhere := s.elsewhere(a); elsewhere != s.elsewhere(b) {
			if elsewhere {
				return -1
			}
			return 1
		}
	}
	return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(weight(key, b.hash), weight(key, a.hash)))
}

// elsewhere is true for a node that is known to be in another zone than the primary.
func (s *seat) elsewhere(n *candidate) bool {
	return s.beside.Zone != "" && n.Zone != "" && n.Zone != s.beside.Zone
}

// weight is the rendezvous (highest random weight) hash of a service on a node: ties break
// alike everywhere, and a node that comes or goes moves only its own services.
func weight(service, node uint64) uint64 { return mix(service ^ node) }

func hash(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return mix(h.Sum64())
}

// mix is the finalizer of MurmurHash3: FNV alone mixes the last bytes badly.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
