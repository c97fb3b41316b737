// SPDX-License-Identifier: Apache-2.0

package election

import "testing"

func TestSoftCriteria(t *testing.T) {
	on := Service{Primary: "a", Standby: "b"}
	run(t, []row{
		{
			name:  "lost speaker: the routes are gone, the primary is replaced",
			nodes: []Node{node("a", lose), node("b"), node("c")}, service: on,
			want: Result{Primary: "b", Standby: "c", Cause: SpeakerSilent},
		},
		{
			name:  "silent speaker, routes still there: nothing moves yet",
			nodes: []Node{node("a", silence), node("b")}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "silent standby: another is made ready",
			nodes: []Node{node("a"), node("b", silence), node("c")}, service: on,
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "silent nodes are chosen last",
			nodes: []Node{node("a", silence), node("b", noSession, cordon), node("c", noSession)},
			want:  Result{Primary: "c", Standby: "b"},
		},
		{
			name:  "lost speaker, nobody better: stays",
			nodes: []Node{node("a", lose), node("b", silence)}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "R4 no BGP session: the address would not be announced",
			nodes: []Node{node("a", noSession), node("b")}, service: on,
			want: Result{Primary: "b", Standby: "a", Cause: NoBGPSession},
		},
		{
			name:  "no BGP session, on hold: the router may be back at once",
			nodes: []Node{node("a", held), node("b")}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "no BGP session, and the other's is not held yet",
			nodes: []Node{node("a", noSession), node("b", justBack)}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "standby without a session: another is made ready",
			nodes: []Node{node("a"), node("b", noSession), node("c")}, service: on,
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "a session at this moment breaks ties of the first choice only",
			nodes: []Node{node("a", held), node("b", held), node("c")}, load: map[string]int{"c": 9},
			want: Result{Primary: "c", Standby: first("a", "b")},
		},
		{
			name:  "U10 a cordoned primary moves to an uncordoned node",
			nodes: []Node{node("a", cordon), node("b"), node("c")}, service: on,
			want: Result{Primary: "b", Standby: "c", Cause: Cordoned},
		},
		{
			name:  "U10 a cordoned primary stays where all are cordoned",
			nodes: []Node{node("a", cordon), node("b", cordon)}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "U10 a cordoned primary stays where the uncordoned one is not eligible",
			nodes: []Node{node("a", cordon), node("b", cordon), node("c", notReady)}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "U10 a cordoned primary stays where the uncordoned one has no session",
			nodes: []Node{node("a", cordon), node("b", noSession)}, service: on,
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "U10 a cordoned standby: an uncordoned one is made ready",
			nodes: []Node{node("a"), node("b", cordon), node("c")}, service: on,
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "an uncordoned old primary does not take its services back",
			nodes: []Node{node("a"), node("b")}, service: Service{Primary: "b", Standby: "a"},
			want: Result{Primary: "b", Standby: "a"},
		},
		{
			name:  "the cause is the worst that the new one does better",
			nodes: []Node{node("a", lose, noSession, cordon), node("b", noSession), node("c", silence)}, service: on,
			want: Result{Primary: "b", Standby: "c", Cause: SpeakerSilent},
		},
		{
			name:  "what both lack is not the cause",
			nodes: []Node{node("a", noSession, cordon), node("b", noSession)}, service: on,
			want: Result{Primary: "b", Standby: "a", Cause: Cordoned},
		},
		{
			name:  "what both lack is not the cause, be it the worst",
			nodes: []Node{node("a", lose, noSession), node("b", silence)}, service: on,
			want: Result{Primary: "b", Standby: "a", Cause: NoBGPSession},
		},
		{
			name:  "who is lost is silent",
			nodes: []Node{node("a", func(n *Node) { n.Lost = true }), node("b", noSession)},
			want:  Result{Primary: "b", Standby: "a"},
		},
		{
			name:  "a better one goes before the standby",
			nodes: []Node{node("a", noSession), node("b", cordon), node("c")}, service: on,
			want: Result{Primary: "c", Standby: "b", Cause: NoBGPSession},
		},
		{
			name:  "a better one goes before the standby of a dead primary",
			nodes: []Node{node("a", notReady), node("b", noSession), node("c")}, service: on,
			want: Result{Primary: "c", Standby: "b", Cause: NotReady},
		},
		{
			name:  "the old primary is standby again when it is the best of the others",
			nodes: []Node{node("a", cordon), node("b"), node("c", noSession)}, service: on,
			want: Result{Primary: "b", Standby: "a", Cause: Cordoned},
		},
		{
			name:  "the old primary has no privilege as standby",
			nodes: []Node{node("a", silence, noSession), node("b", cordon), node("c", noSession)}, service: on,
			want: Result{Primary: "b", Standby: "c", Cause: NoBGPSession},
		},
	})
}

func TestChoice(t *testing.T) {
	three := []Node{node("a"), node("b"), node("c")}
	zones := []Node{node("a", zone("x")), node("b", zone("x")), node("c", zone("y"))}
	run(t, []row{
		{
			name:  "fewest services first, then the standby",
			nodes: three, load: map[string]int{"a": 2, "c": 1},
			want: Result{Primary: "b", Standby: "c"},
		},
		{
			name:  "U13 whoever serves goes on, whatever the load",
			nodes: three, load: map[string]int{"a": 9, "b": 8}, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "the standby follows a dead primary, whatever its load",
			nodes: []Node{node("a", notReady), node("b"), node("c")}, load: map[string]int{"b": 7},
			service: Service{Primary: "a", Standby: "b"},
			want:    Result{Primary: "b", Standby: "c", Cause: NotReady},
		},
		{
			name:  "a standby that is waited for becomes the first primary",
			nodes: three, load: map[string]int{"b": 7}, service: Service{Standby: "b"},
			want: Result{Primary: "b", Standby: first("a", "c")},
		},
		{
			name:  "the standby is sought in another zone",
			nodes: zones, load: map[string]int{"b": 1, "c": 5},
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "a zone is no reason to move a standby",
			nodes: zones, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "health goes before another zone",
			nodes:   []Node{node("a", zone("x")), node("b", zone("x")), node("c", zone("y"), cordon)},
			service: Service{Primary: "a"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "an unknown zone is not another one",
			nodes: []Node{node("a", zone("x")), node("b"), node("c", zone("y"))}, load: map[string]int{"c": 5},
			service: Service{Primary: "a"},
			want:    Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "without the primary's zone the load decides",
			nodes: []Node{node("a"), node("b"), node("c", zone("y"))}, load: map[string]int{"c": 5},
			service: Service{Primary: "a"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "the zone of a primary is no criterion",
			nodes: zones, load: map[string]int{"a": 1, "b": 1},
			want: Result{Primary: "c", Standby: first("a", "b")},
		},
	})
}

func TestAvoid(t *testing.T) {
	b, both := set("b"), set("a", "b", "c")
	run(t, []row{
		{
			name:    "an avoided standby does not follow while another can",
			nodes:   []Node{node("a", notReady), node("b"), node("c", silence)},
			service: Service{Primary: "a", Standby: "b", Avoid: b},
			want:    Result{Primary: "c", Standby: "b", Cause: NotReady},
		},
		{
			name:  "an avoided node is not the first choice",
			nodes: []Node{node("b"), node("c", noSession)}, service: Service{Avoid: b},
			want: Result{Primary: "c", Standby: "b"},
		},
		{
			name:  "the only node is taken although it is avoided",
			nodes: []Node{node("b")}, service: Service{Avoid: b},
			want: Result{Primary: "b"},
		},
		{
			name:    "a dead primary is followed although all are avoided",
			nodes:   []Node{node("a", notReady), node("b"), node("c", cordon)},
			service: Service{Primary: "a", Standby: "c", Avoid: both},
			want:    Result{Primary: "b", Standby: "c", Cause: NotReady},
		},
		{
			name:  "where all are avoided the standby keeps its turn",
			nodes: []Node{node("a", notReady), node("b"), node("c")}, load: map[string]int{"c": 9},
			service: Service{Primary: "a", Standby: "c", Avoid: both},
			want:    Result{Primary: "c", Standby: "b", Cause: NotReady},
		},
		{
			name:  "a primary that could go on is not replaced by an avoided one",
			nodes: []Node{node("a", lose), node("b")}, service: Service{Primary: "a", Standby: "b", Avoid: b},
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "a better node that is not avoided replaces the primary",
			nodes:   []Node{node("a", lose), node("b"), node("c", noSession)},
			service: Service{Primary: "a", Standby: "b", Avoid: b},
			want:    Result{Primary: "c", Standby: "a", Cause: SpeakerSilent},
		},
		{
			name:  "an avoided standby is replaced",
			nodes: []Node{node("a"), node("b"), node("c")}, service: Service{Primary: "a", Standby: "b", Avoid: b},
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "an avoided standby stays where there is no other",
			nodes: []Node{node("a"), node("b")}, service: Service{Primary: "a", Standby: "b", Avoid: b},
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "a primary that is avoided stays",
			nodes: []Node{node("a"), node("b")}, service: Service{Primary: "b", Standby: "a", Avoid: b},
			want: Result{Primary: "b", Standby: "a"},
		},
	})
}
