package main

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fsck"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/state"
)

// records are the files of what crid keeps.
type records struct {
	pods       *state.Dir[sandbox.Record]
	containers *state.Dir[container.Record]
	tombstones *state.Dir[sandbox.Tombstone]
}

// unsaved says which records a disk has refused.
func (r records) unsaved() []error {
	return slices.Concat(r.pods.Unsaved(), r.containers.Unsaved(), r.tombstones.Unsaved())
}

// viewRecords reads the records and touches nothing.
func (p places) viewRecords() records {
	return records{
		pods:       state.View[sandbox.Record](p.records("pods"), sandbox.RecordVersion).Named(idForm),
		containers: state.View[container.Record](p.records("containers"), container.RecordVersion).Named(idForm),
		tombstones: state.View[sandbox.Tombstone](p.records("tombstones"), sandbox.TombstoneVersion).Named(idForm),
	}
}

// known is what crid knows at one moment.
type known struct {
	pods       []sandbox.Standing
	containers []container.Standing
	tombstones []sandbox.Tombstone
}

// onDisk is what the records say where no crid runs.
func (r records) onDisk() (known, error) {
	var k known
	var failed error
	for e, err := range r.pods.All() {
		if e.ID == "" {
			failed = errors.Join(failed, err)
			continue
		}
		k.pods = append(k.pods, sandbox.Standing{ID: e.ID, Record: e.Record, Broken: err})
	}
	for e, err := range r.containers.All() {
		if e.ID == "" {
			failed = errors.Join(failed, err)
			continue
		}
		k.containers = append(k.containers, container.Standing{ID: e.ID, Record: e.Record, Broken: err})
	}
	for e, err := range r.tombstones.All() {
		switch {
		case e.ID == "":
			failed = errors.Join(failed, err)
		case err == nil:
			k.tombstones = append(k.tombstones, e.Record)
		}
	}
	return k, failed
}

// newerRemedy is what to do about a record that another crid wrote.
const newerRemedy = "another version of crid wrote it: start that one, or remove the file by hand"

func unreadable(err error) *fsck.Fault {
	f := &fsck.Fault{Problem: fsck.Unreadable, Why: err.Error()}
	if errors.Is(err, errdef.Unsupported) {
		f.Remedy = newerRemedy
	}
	return f
}

// owners makes of what crid knows what is compared.
func (s *survey) owners(k known) []fsck.Owner {
	var all []fsck.Owner
	podOf := map[string]sandbox.Key{}
	for _, p := range k.pods {
		podOf[p.ID] = p.Record.Key
		all = append(all, s.podOwner(p))
	}
	for _, t := range k.tombstones {
		if _, isPod := podOf[t.Request.ID]; !isPod {
			all = append(all, fsck.Owner{Ref: fsck.Ref{Kind: fsck.Pod, ID: t.Request.ID},
				Name: t.Key.Name, Namespace: t.Key.Namespace, State: "stopped, its network waits to be detached"})
		}
	}
	volumes := map[string]bool{}
	running := s.monitorsNow()
	for _, c := range k.containers {
		o := s.containerOwner(c, running)
		if pod := podOf[o.Pod]; pod.Name != "" {
			o.Name, o.Namespace = pod.Name+"/"+o.Name, pod.Namespace
		}
		all = append(all, o)
		for _, image := range c.Record.VolumeIDs() {
			volumes[image] = true
		}
	}
	for image := range volumes {
		all = append(all, fsck.Owner{Ref: fsck.Ref{Kind: fsck.Volume, ID: image}})
	}
	return all
}

func (s *survey) podOwner(p sandbox.Standing) fsck.Owner {
	rec := p.Record
	o := fsck.Owner{
		Ref: fsck.Ref{Kind: fsck.Pod, ID: p.ID}, Name: rec.Key.Name, Namespace: rec.Key.Namespace,
		State: string(rec.State), Settled: !p.Busy && p.Broken == nil, File: s.records.pods.Path(p.ID),
	}
	switch {
	case p.Busy:
	case p.Broken != nil:
		o.Fault = unreadable(p.Broken)
	case rec.State == sandbox.Creating || rec.Erasing:
		o.Fault = &fsck.Fault{Problem: fsck.Unfinished, Why: "it was being made or removed when crid ended or failed: " + rec.Message}
	}
	o.Needs = append(o.Needs, s.recordNeed(o.File))
	if rec.State != sandbox.Ready || rec.BootID != s.host.BootID || p.Broken != nil {
		return o
	}
	fault := &fsck.Fault{Remedy: "remove the pod with `crictl rmp -f " + p.ID + "`: its owner makes it again"}
	own := sandbox.Own(rec.Config.PodSandboxConfig)
	set := s.pins.Paths(p.ID, own)
	for _, path := range []string{set.Net, set.IPC, set.UTS, set.User} {
		if path != "" {
			o.Needs = append(o.Needs, fsck.Thing{Kind: fsck.Namespace, Name: path, Live: true, Fault: fault})
		}
	}
	files := s.files.Paths(p.ID)
	o.Needs = append(o.Needs, fsck.Thing{Kind: fsck.PodFiles, Name: files.Dir, Fault: fault},
		fsck.Thing{Kind: fsck.Mount, Name: files.Dir, Live: true, Fault: fault})
	return o
}

// recordNeed is the record itself, which a crid that runs writes again.
func (s *survey) recordNeed(path string) fsck.Thing { return fsck.Thing{Kind: fsck.Record, Name: path} }

// monitorsNow are the monitors that live, by process and start time.
func (s *survey) monitorsNow() map[[2]uint64]bool {
	alive := map[[2]uint64]bool{}
	list, err := s.monitors.Running()
	if err != nil {
		return alive // the listing of things fails with the same
	}
	for _, r := range list {
		alive[[2]uint64{uint64(r.PID), r.Start}] = true
	}
	return alive
}

func monitorOf(ref monitor.Ref) [2]uint64 { return [2]uint64{uint64(ref.MonitorPID), ref.MonitorStart} }

func (s *survey) containerOwner(c container.Standing, running map[[2]uint64]bool) fsck.Owner {
	rec := c.Record
	o := fsck.Owner{
		Ref: fsck.Ref{Kind: fsck.Container, ID: c.ID}, Name: rec.Key.Name, Pod: rec.Key.PodID,
		State: string(rec.State), Settled: !c.Busy && c.Broken == nil, File: s.records.containers.Path(c.ID),
	}
	if rec.Pause {
		o.Name = "pause"
	}
	switch {
	case c.Busy:
	case c.Broken != nil:
		o.Fault = unreadable(c.Broken)
	case rec.State == container.Creating:
		o.Fault = &fsck.Fault{Problem: fsck.Unfinished, Why: "it was being made when crid ended"}
	}
	o.Needs = append(o.Needs, s.recordNeed(o.File))
	alive := rec.BootID == s.host.BootID && (rec.State == container.Created || rec.State == container.Running) && running[monitorOf(rec.Monitor)]
	if c.Broken != nil || !alive {
		return o
	}
	fault := &fsck.Fault{Remedy: "remove the container with `crictl rm -f " + c.ID + "`: its owner makes it again"}
	for _, need := range []fsck.Thing{
		{Kind: fsck.Monitor, Name: filepath.Join(s.places.monitors(), c.ID)},
		{Kind: fsck.Cgroup, Name: rec.Cgroup},
		{Kind: fsck.Cgroup, Name: rec.MonitorCgroup},
		{Kind: fsck.Rootfs, Name: filepath.Join(s.places.rootfs("").Dir, c.ID)},
		{Kind: fsck.Mount, Name: s.places.rootfs("").Target(c.ID), Live: true},
	} {
		if rec.Pause && (need.Kind == fsck.Rootfs || need.Kind == fsck.Mount) {
			continue // it has crid's own
		}
		need.Fault = fault
		o.Needs = append(o.Needs, need)
	}
	if rec.LogPath != "" && rec.State == container.Running {
		o.Needs = append(o.Needs, fsck.Thing{Kind: fsck.Log, Name: rec.LogPath})
	}
	return o
}
