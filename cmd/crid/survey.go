package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/fsck"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
)

// survey lists what crid knows and what is on the machine. It changes nothing, and serves a crid that runs as well as
// somebody who only looks at what one has left.
type survey struct {
	places   places
	host     fact.Host
	cgroups  cgroup.Driver
	parent   string // the default cgroup parent
	pins     *ns.Pinner
	network  *network.CNI
	monitors *monitor.Launcher
	files    *sandbox.HostFiles
	images   *storage.Images // nil: there is no store
	records  records
	known    func() (known, error)
	idle     func() bool // what lies in the trash is not about to be deleted
}

// idForm is the ids that crid gives, to pods, to containers and to a pod's pause.
var idForm = regexp.MustCompile(`^[0-9a-f]{64}(-pause)?$`)

// idWithin finds such an id in a name.
var idWithin = regexp.MustCompile(`[0-9a-f]{64}`)

// ownRootfs knows of the root filesystems only those whose names are ids of crid's: what else lies there is nobody's to
// remove.
type ownRootfs struct{ *storage.Rootfs }

func (r ownRootfs) List() ([]string, error) {
	ids, err := r.Rootfs.List()
	return slices.DeleteFunc(ids, func(id string) bool { return !idForm.MatchString(id) }), err
}

// evidence is what is found along the way and says more of things than what they are.
type evidence struct {
	podArgs  map[string]map[string]string // CNI arguments by id
	foreign  map[string]bool              // containers whose monitor is another crid's
	adjacent []string                     // cgroups that crid's pods are in or beside
	others   bool                         // another crid runs here
}

// inventory lists everything, in the order that makes the comparison safe beside a crid that works. After an error what
// could be listed is there: nothing is an orphan because of it, but things may seem to be missing.
func (s *survey) inventory(ctx context.Context, contents bool) (fsck.Inventory, evidence, error) {
	var inv fsck.Inventory
	before, err := s.known()
	if err != nil {
		return inv, evidence{}, err
	}
	inv.Before = s.owners(before)
	ev := evidence{podArgs: map[string]map[string]string{}, foreign: map[string]bool{}, adjacent: s.beside(before), others: othersRun()}
	for _, list := range []func() ([]fsck.Thing, error){
		s.rootfsThings, s.podThings, s.strayMounts,
		func() ([]fsck.Thing, error) { return s.cgroupThings(ctx) },
		func() ([]fsck.Thing, error) { return s.recordThings(before) },
		func() ([]fsck.Thing, error) { return s.monitorThings(before, ev) },
		func() ([]fsck.Thing, error) { return s.networkThings(before, ev) },
		func() ([]fsck.Thing, error) { return s.logThings(before) },
		func() ([]fsck.Thing, error) { return s.imageThings(ctx, contents) },
	} {
		things, listed := list()
		inv.Things = append(inv.Things, things...)
		err = errors.Join(err, listed)
	}
	after, again := s.known()
	if again != nil {
		return fsck.Inventory{}, ev, again
	}
	inv.After = s.owners(after)
	return inv, ev, err
}

// beside are the cgroup parents of pods, and what they are in: an orphan's pod was there.
func (s *survey) beside(k known) []string {
	all := []string{s.parent}
	for _, p := range k.pods {
		if parent := p.Record.CgroupParent; parent != "" {
			all = append(all, parent)
			if above := filepath.Dir(parent); above != "/" && above != "." {
				all = append(all, above)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// recordThings are the records, and what else lies among them. A record that became unreadable while crid knows what it
// said has a fault here. Otherwise its owner has, or it is nobody's.
func (s *survey) recordThings(k known) ([]fsck.Thing, error) {
	whole := map[string]bool{} // for crid
	for _, p := range k.pods {
		whole[s.records.pods.Path(p.ID)] = p.Broken == nil
	}
	for _, c := range k.containers {
		whole[s.records.containers.Path(c.ID)] = c.Broken == nil
	}
	pods, podErr := recordsIn(s.records.pods, fsck.Pod)
	containers, containerErr := recordsIn(s.records.containers, fsck.Container)
	tombstones, tombstoneErr := recordsIn(s.records.tombstones, fsck.Pod)
	all := slices.Concat(pods, containers)
	for i, t := range all {
		if t.Of.Kind != fsck.Nobody && !whole[t.Name] {
			all[i].Fault = nil
		}
	}
	return append(all, tombstones...), errors.Join(podErr, containerErr, tombstoneErr)
}

func recordsIn[T any](d *state.Dir[T], kind fsck.OwnerKind) ([]fsck.Thing, error) {
	ids, strays, err := d.Files()
	if err != nil {
		return nil, err
	}
	faults := map[string]*fsck.Fault{}
	for e, err := range d.All() {
		if err != nil {
			faults[e.ID] = unreadable(err)
		}
	}
	var all []fsck.Thing
	for _, id := range ids {
		all = append(all, fsck.Thing{Kind: fsck.Record, Name: d.Path(id), Of: fsck.Ref{Kind: kind, ID: id}, Fault: faults[id]})
	}
	for _, path := range strays {
		fault := &fsck.Fault{Problem: fsck.Unknown, Why: "it is no record", Remedy: "crid makes no such file: remove it if nobody else needs it"}
		if state.IsUnfinished(path) {
			fault = &fsck.Fault{Problem: fsck.Orphaned, Why: "a record whose writing was cut short"}
		}
		all = append(all, fsck.Thing{Kind: fsck.Record, Name: path, Fault: fault})
	}
	return all, nil
}

func (s *survey) rootfsThings() ([]fsck.Thing, error) {
	entries, err := s.places.rootfs("").Survey()
	if err != nil {
		return nil, err
	}
	var all []fsck.Thing
	idle := s.idle()
	for _, e := range entries {
		t := fsck.Thing{Kind: fsck.Rootfs, Name: e.Path, Of: fsck.Ref{Kind: fsck.Container, ID: e.ID}}
		switch {
		case e.Trash && !idle:
			continue
		case e.Trash:
			t.Kind, t.Of = fsck.Trash, fsck.Ref{}
			t.Fault = &fsck.Fault{Problem: fsck.Orphaned, Why: "removed and not deleted"}
		case e.Mount:
			t.Kind, t.Live = fsck.Mount, isMounted(e.Path)
		}
		if e.Image {
			t.Of.Kind = fsck.Volume
		}
		all = append(all, named(t))
	}
	return all, nil
}

// named takes a thing from its owner whose name is no id of crid's: crid has not made it, and removes nothing of the kind.
func named(t fsck.Thing) fsck.Thing {
	if t.Of.Kind != fsck.Nobody && !idForm.MatchString(t.Of.ID) {
		t.Of = fsck.Ref{}
		t.Fault = &fsck.Fault{Problem: fsck.Unknown, Why: "its name has no id of crid's", Remedy: "crid makes no such thing: remove it if nobody else needs it"}
	}
	return t
}

func isMounted(path string) bool {
	mounted, err := mountinfo.Mounted(path)
	return err == nil && mounted
}

// podThings are pods' files, what is mounted for them, and the pins of their namespaces.
func (s *survey) podThings() ([]fsck.Thing, error) {
	ids, err := s.files.List()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []fsck.Thing
	for _, id := range ids {
		of, paths := fsck.Ref{Kind: fsck.Pod, ID: id}, s.files.Paths(id)
		all = append(all, named(fsck.Thing{Kind: fsck.PodFiles, Name: paths.Dir, Of: of}))
		if isMounted(paths.Dir) {
			all = append(all, named(fsck.Thing{Kind: fsck.Mount, Name: paths.Dir, Of: of, Live: true}))
		}
	}
	pins, err := s.pins.Survey()
	for _, p := range pins {
		if !p.Shared || idForm.MatchString(p.ID) {
			all = append(all, fsck.Thing{Kind: fsck.Namespace, Name: p.Path, Of: fsck.Ref{Kind: fsck.Pod, ID: p.ID}, Live: p.Bound, Shared: p.Shared})
		}
	}
	return all, err
}

// cgroupThings are cgroups, and the scopes of systemd that have lost theirs and stay, as those do that have failed.
func (s *survey) cgroupThings(ctx context.Context) ([]fsck.Thing, error) {
	scopes, scopesErr := s.cgroups.Scopes(ctx, idForm.MatchString)
	leaves, err := s.cgroups.Survey(idForm.MatchString)
	var all []fsck.Thing
	for path, id := range leaves {
		delete(scopes, filepath.Base(path))
		all = append(all, fsck.Thing{Kind: fsck.Cgroup, Name: path, Of: fsck.Ref{Kind: fsck.Container, ID: id}, Shared: true})
	}
	for name, id := range scopes {
		all = append(all, fsck.Thing{Kind: fsck.Unit, Name: name, Of: fsck.Ref{Kind: fsck.Container, ID: id}, Shared: true})
	}
	return all, errors.Join(scopesErr, err)
}

// monitorThings are the files of monitors, and their processes.
func (s *survey) monitorThings(k known, ev evidence) ([]fsck.Thing, error) {
	files, err := s.monitors.Files()
	if err != nil {
		return nil, err
	}
	var all []fsck.Thing
	for path, id := range files {
		all = append(all, named(fsck.Thing{Kind: fsck.Monitor, Name: path, Of: fsck.Ref{Kind: fsck.Container, ID: id}}))
	}
	running, err := s.monitors.Running()
	if err != nil {
		return nil, err
	}
	byID := map[string]container.Standing{}
	for _, c := range k.containers {
		byID[c.ID] = c
	}
	for _, r := range running {
		if !r.Ours {
			ev.foreign[r.ID] = true
			continue
		}
		t := fsck.Thing{Kind: fsck.Process, Name: processName(r), Of: fsck.Ref{Kind: fsck.Container, ID: r.ID}}
		c, found := byID[r.ID]
		living := c.Record.State == container.Created || c.Record.State == container.Running
		if found && living && !c.Busy && c.Broken == nil && c.Record.Monitor.MonitorPID != r.PID {
			t.Fault = &fsck.Fault{Problem: fsck.Orphaned, Why: fmt.Sprintf("the container's monitor is process %d", c.Record.Monitor.MonitorPID)}
		}
		all = append(all, t)
	}
	return all, nil
}

func processName(r monitor.Running) string {
	return fmt.Sprintf("process %d (monitor, started at tick %d)", r.PID, r.Start)
}

// networkThings are what libcni remembers, and the addresses given away.
func (s *survey) networkThings(k known, ev evidence) ([]fsck.Thing, error) {
	memories, err := s.network.Memories()
	if err != nil {
		return nil, err
	}
	var all []fsck.Thing
	conflists := map[string]bool{}
	for _, m := range memories {
		t := fsck.Thing{Kind: fsck.Attachment, Name: m.Path, Of: fsck.Ref{Kind: fsck.Pod, ID: m.ID}}
		if m.Err != nil {
			// While its pod is known the file may just be being written, and what undoing needs is in the record.
			t.Of.ID = idWithin.FindString(filepath.Base(m.Path))
		}
		if m.Err != nil && t.Of.ID == "" {
			t.Of, t.Fault = fsck.Ref{}, &fsck.Fault{Problem: fsck.Unreadable, Why: m.Err.Error()}
		}
		ev.podArgs[m.ID] = m.Args
		conflists[string(m.Conflist)] = true
		all = append(all, named(t))
	}
	for _, p := range k.pods {
		if p.Record.Network != nil {
			conflists[string(p.Record.Network.Conflist)] = true
		}
	}
	for _, t := range k.tombstones {
		conflists[string(t.Request.Conflist)] = true
	}
	var lists []json.RawMessage
	for list := range conflists {
		lists = append(lists, json.RawMessage(list))
	}
	leases, err := s.network.Leases(lists...)
	for _, l := range leases {
		if idForm.MatchString(l.ID) { // else it was given to another program's container
			all = append(all, fsck.Thing{Kind: fsck.Lease, Name: l.Path, Of: fsck.Ref{Kind: fsck.Pod, ID: l.ID}, Shared: true})
		}
	}
	return all, err
}

// logThings are the logs of containers that run. One that was renamed is there: whoever rotates it has not had it
// reopened yet.
func (s *survey) logThings(k known) ([]fsck.Thing, error) {
	var all []fsck.Thing
	for _, c := range k.containers {
		path := c.Record.LogPath
		if path == "" || c.Record.State != container.Running {
			continue
		}
		_, err := os.Stat(path)
		if err == nil || !monitor.HoldsDeleted(c.Record.Monitor.MonitorPID, filepath.Base(path)) {
			all = append(all, fsck.Thing{Kind: fsck.Log, Name: path, Of: fsck.Ref{Kind: fsck.Container, ID: c.ID}})
		}
	}
	return all, nil
}

func (s *survey) imageThings(ctx context.Context, contents bool) ([]fsck.Thing, error) {
	if s.images == nil {
		return nil, nil
	}
	faults, err := s.images.Check(ctx, contents)
	var all []fsck.Thing
	for _, f := range faults {
		why := f.Err.Error()
		if len(f.Names) > 0 {
			why = strings.Join(f.Names, ", ") + ": " + why
		}
		t := fsck.Thing{Kind: fsck.Layer, Name: f.ID, Fault: &fsck.Fault{Problem: fsck.Damaged, Why: why}}
		switch f.Kind {
		case storage.LayerUnused:
			t.Fault.Problem, t.Fault.Why = fsck.Orphaned, "no image has it"
		case storage.LayerDamaged:
			t.Fault.Remedy = "no image has it: it goes within an hour or two while crid runs"
		case storage.ImageDamaged:
			t.Kind = fsck.Image
		case storage.LeaseUnneeded:
			t.Kind, t.Fault.Problem = fsck.StoreLease, fsck.Orphaned
		case storage.NotOurs:
			t.Kind, t.Fault.Remedy = fsck.Image, "another tool made this container in the image store: ask that one"
		}
		all = append(all, t)
	}
	return all, err
}

// strayMounts are mounts below crid's directories that are neither crid's nor such as an administrator makes there, of a
// disk for one of the directories.
func (s *survey) strayMounts() ([]fsck.Thing, error) {
	cfg := s.places
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	ours := []string{cfg.rootfs("").MountDir, cfg.podFiles(), cfg.pins(), cfg.Network.NetnsDir, filepath.Join(cfg.Root, "storage"), cfg.images().Store}
	var all []fsck.Thing
	for _, m := range infos {
		for _, root := range []string{cfg.Root, cfg.Runroot} {
			rel, err := filepath.Rel(resolved(root), m.Mountpoint)
			if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") || root == cfg.Root && !strings.Contains(rel, "/") {
				continue
			}
			mine := slices.ContainsFunc(ours, func(dir string) bool {
				return dir != "" && (m.Mountpoint == resolved(dir) || strings.HasPrefix(m.Mountpoint, resolved(dir)+"/"))
			})
			if !mine {
				all = append(all, fsck.Thing{Kind: fsck.Mount, Name: m.Mountpoint, Live: true, Fault: &fsck.Fault{
					Problem: fsck.Unknown, Why: m.FSType + " of " + m.Source, Remedy: "crid mounts nothing there: unmount it if nobody else needs it"}})
			}
		}
	}
	return all, nil
}

// resolved is the path as the kernel names it, as far as it exists.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// othersRun tells whether another crid than this process serves here: what lies in places that both use may be its own.
func othersRun() bool {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return true // who cannot look is careful
	}
	own := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, exe := range exes {
		name, err := os.Readlink(exe)
		if err != nil || filepath.Base(strings.TrimSuffix(name, " (deleted)")) != "crid" || strings.HasPrefix(exe, own) {
			continue
		}
		fds, err := filepath.Glob(filepath.Dir(exe) + "/fd/*")
		if err != nil {
			return true
		}
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && filepath.Base(to) == "lock" {
				return true
			}
		}
	}
	return false
}
