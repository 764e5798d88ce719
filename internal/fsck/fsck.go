// Package fsck compares what crid knows with what is on the machine: listings in, findings out. It is pure: it does not
// know how anything is listed, measured or mended, nor whether crid runs.
package fsck

import (
	"cmp"
	"slices"
)

// Kind is what sort of thing something on the machine is.
type Kind string

// The kinds of things.
const (
	Record     Kind = "record"
	Rootfs     Kind = "rootfs"
	Trash      Kind = "trash" // of root filesystems that were removed
	Mount      Kind = "mount"
	Namespace  Kind = "namespace"
	Cgroup     Kind = "cgroup"
	Unit       Kind = "unit"    // of systemd, without a cgroup
	Monitor    Kind = "monitor" // files of one: the bundle, the exit record
	Process    Kind = "process"
	PodFiles   Kind = "pod files"
	Attachment Kind = "cni cache" // what libcni remembers of an ADD
	Lease      Kind = "ip lease"
	Log        Kind = "log"
	Layer      Kind = "layer"
	Image      Kind = "image"
	StoreLease Kind = "image lease" // the container of the store that keeps an image for crid
)

// OwnerKind is what sort of object a thing is made for.
type OwnerKind string

// The kinds of owners. A volume is an image that is mounted for containers, by the image's id.
const (
	Pod       OwnerKind = "pod"
	Container OwnerKind = "container"
	Volume    OwnerKind = "image volume"
	Nobody    OwnerKind = "" // things that no object owns: what is wrong with them is their Fault
)

// Ref names an object.
type Ref struct {
	Kind OwnerKind `json:"kind,omitempty"`
	ID   string    `json:"id,omitempty"`
}

// Size is what a thing takes on disk.
type Size struct {
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// Thing is something that is on the machine, or has to be.
type Thing struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"` // path, process or id: no other of its kind has it
	Of     Ref    `json:"of"`
	Live   bool   `json:"-"` // more than a name: something is mounted there
	Shared bool   `json:"-"` // it lies where others than this crid may put such things, too
	Fault  *Fault `json:"-"` // what is wrong with it, whoever owns it
}

// Fault is what a room itself finds wrong with a thing.
type Fault struct {
	Problem Problem
	Why     string
	Remedy  string // by hand; empty: repairing mends it
}

// Owner is an object that crid knows.
type Owner struct {
	Ref
	Name, Namespace string // of a container, those of its pod with its own name behind it
	Pod             string // of a container: its pod's id
	State           string
	Settled         bool    // nothing is being done to it, so that what it needs must be there
	Needs           []Thing // has no effect unless it is settled
	File            string  // its record
	Fault           *Fault  // of the record: it cannot be read, or says that something was not finished
}

// Inventory is what was listed, in this order: what crid knew, what was on the machine, what crid knew then. An object is
// known before it has anything and until it has nothing any more: what neither list knows has no owner, unless it has lived
// and died in between, so that a second inventory has to confirm it.
type Inventory struct {
	Before []Owner
	Things []Thing
	After  []Owner
}

// Problem is what is wrong.
type Problem string

// The problems.
const (
	Orphaned   Problem = "orphaned"   // nobody owns it
	Missing    Problem = "missing"    // it has to be there and is not
	Unreadable Problem = "unreadable" // a record
	Unfinished Problem = "unfinished" // crid ended amid its work and has not taken it up again
	Damaged    Problem = "damaged"    // it is not what it was
	Unknown    Problem = "unknown"    // crid does not make such things
)

// Finding is one thing that is wrong.
type Finding struct {
	Problem Problem `json:"problem"`
	Thing
	Owner   Description `json:"owner"`
	Why     string      `json:"why,omitempty"`
	Remedy  string      `json:"remedy,omitempty"` // what to do by hand; empty: --repair does it
	Size    *Size       `json:"size,omitempty"`
	Outcome string      `json:"outcome,omitempty"` // of repairing: Mended, or why it was not
}

// Mended is the outcome of what is gone after repairing, or is there again.
const Mended = "mended"

// Description tells a human whose a thing is.
type Description struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	State     string `json:"state,omitempty"`
}

// key is what makes two findings the same.
type key struct {
	problem Problem
	kind    Kind
	name    string
}

func (f Finding) key() key { return key{f.Problem, f.Kind, f.Name} }

// Compare finds what is wrong.
func Compare(inv Inventory) []Finding {
	owners, then := byRef(inv.After), byRef(inv.Before)
	for ref, o := range then {
		if _, still := owners[ref]; !still {
			o.Settled = false
			owners[ref] = o
		}
	}
	var found []Finding
	there := map[key]Thing{}
	for _, t := range inv.Things {
		there[key{kind: t.Kind, name: t.Name}] = t
		o, known := owners[t.Of]
		switch {
		case t.Fault != nil:
			found = append(found, finding(t, o, t.Fault))
		case t.Of.Kind != Nobody && !known:
			found = append(found, finding(t, o, &Fault{Problem: Orphaned}))
		}
	}
	for ref, o := range owners {
		if o.Fault != nil {
			found = append(found, finding(Thing{Kind: Record, Name: o.File, Of: ref}, o, o.Fault))
		}
		before, was := then[ref]
		if !o.Settled || !was || !before.Settled || before.State != o.State {
			continue
		}
		for _, need := range o.Needs {
			if t, ok := there[key{kind: need.Kind, name: need.Name}]; !ok || need.Live && !t.Live {
				fault := Fault{Problem: Missing}
				if need.Fault != nil {
					fault.Why, fault.Remedy = need.Fault.Why, need.Fault.Remedy
				}
				need.Of, need.Fault = ref, nil
				found = append(found, finding(need, o, &fault))
			}
		}
	}
	slices.SortFunc(found, order)
	return found
}

func byRef(list []Owner) map[Ref]Owner {
	all := make(map[Ref]Owner, len(list))
	for _, o := range list {
		all[o.Ref] = o
	}
	return all
}

func finding(t Thing, o Owner, f *Fault) Finding {
	return Finding{
		Problem: f.Problem, Thing: t, Why: f.Why, Remedy: f.Remedy,
		Owner: Description{Name: o.Name, Namespace: o.Namespace, Pod: o.Pod, State: o.State},
	}
}

// order puts what belongs to one object together.
func order(a, b Finding) int {
	return cmp.Or(cmp.Compare(a.Of.Kind, b.Of.Kind), cmp.Compare(a.Of.ID, b.Of.ID), cmp.Compare(a.Problem, b.Problem),
		cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// Confirm keeps of the second findings those that were among the first.
func Confirm(first, second []Finding) []Finding {
	seen := map[key]bool{}
	for _, f := range first {
		seen[f.key()] = true
	}
	return slices.DeleteFunc(slices.Clone(second), func(f Finding) bool { return !seen[f.key()] })
}

// Orphans answers, sorted, the ids of the objects of a kind that have orphaned things and are known to be of this crid:
// by one at least that lies where no other puts any. all: also those of which that is not known.
func Orphans(findings []Finding, kind OwnerKind, all bool) []string {
	var ids []string
	for _, f := range findings {
		if f.Problem == Orphaned && f.Of.Kind == kind && (all || !f.Shared) {
			ids = append(ids, f.Of.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Own drops what may be another's as mayBe says: of shared things those whose object has nothing where this crid alone puts
// things.
func Own(findings []Finding, mayBe func(Finding) bool) []Finding {
	ours := map[Ref]bool{}
	for _, f := range findings {
		if f.Problem == Orphaned && !f.Shared {
			ours[f.Of] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool {
		return f.Problem == Orphaned && f.Shared && !ours[f.Of] && mayBe(f)
	})
}

// Settle gives each finding its outcome: mended, unless it is among those that are left. why tells why, by the
// object, the kind or the name of the thing.
func Settle(findings, left []Finding, why func(Finding) string) []Finding {
	remain := map[key]bool{}
	for _, f := range left {
		remain[f.key()] = true
	}
	out := slices.Clone(findings)
	for i, f := range out {
		switch {
		case !remain[f.key()]:
			out[i].Outcome = Mended
		case f.Remedy != "":
			out[i].Outcome = "left to be done by hand"
		default:
			out[i].Outcome = cmp.Or(why(f), "not mended")
		}
	}
	return out
}
