package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/fsck"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
)

// confirmAfter is how long something must be wrong to be told of. What crid does it knows by itself; this is for its
// clients, who rename a log before they have it reopened.
const confirmAfter = time.Second

// fsckReport is what `crid fsck` has found, by itself or by asking the crid that runs.
type fsckReport struct {
	Findings  []fsck.Finding `json:"findings"`
	By        string         `json:"by"` // who looked: the crid that runs, or fsck itself
	Repaired  bool           `json:"repaired"`
	Unchecked string         `json:"unchecked,omitempty"` // what could not be listed; the findings are of the rest
}

// fsckRequest is what may be asked of fsck.
type fsckRequest struct {
	Repair   bool `json:"repair"`
	Contents bool `json:"contents"` // read all layers
}

// check finds what is wrong. A finding counts when it is found a second time. Beside an error it answers what is certain
// nevertheless: what could not be listed is not missing for that.
func (s *survey) check(ctx context.Context, contents bool) ([]fsck.Finding, error) {
	first, err := s.look(ctx, contents)
	if len(first) == 0 {
		return nil, err
	}
	timer := time.NewTimer(confirmAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	second, again := s.look(ctx, contents)
	found := fsck.Confirm(first, second)
	if err = cmp.Or(again, err); err != nil {
		found = slices.DeleteFunc(found, func(f fsck.Finding) bool { return f.Problem == fsck.Missing })
	}
	for i := range found {
		s.measure(ctx, &found[i])
	}
	return found, err
}

// look finds what seems wrong at this moment. After an error the orphans that it answers are orphans nevertheless.
func (s *survey) look(ctx context.Context, contents bool) ([]fsck.Finding, error) {
	inv, ev, err := s.inventory(ctx, contents)
	found := fsck.Own(fsck.Compare(inv), func(f fsck.Finding) bool { return s.anothers(f, ev) })
	for i, f := range found {
		if f.Of.Kind != fsck.Nobody && f.Owner == (fsck.Description{}) {
			found[i].Owner = s.describe(f.Of, ev)
		}
	}
	return found, err
}

// anothers tells whether a thing in a place that others use may be another's, when nothing else of its object is found.
func (s *survey) anothers(f fsck.Finding, ev evidence) bool {
	if ev.others || ev.foreign[f.Of.ID] {
		return true
	}
	if f.Kind != fsck.Cgroup {
		return false
	}
	pids, err := s.cgroups.Pids(f.Name)
	near := slices.ContainsFunc(ev.adjacent, func(parent string) bool { return strings.HasPrefix(f.Name, parent+"/") })
	return err != nil || !near || slices.Contains(pids, 0) // 0 is a process of another PID namespace
}

// describe finds the names of what has no record in what was written for others to read.
func (s *survey) describe(ref fsck.Ref, ev evidence) fsck.Description {
	if ref.Kind == fsck.Pod {
		args := ev.podArgs[ref.ID]
		return fsck.Description{Name: args["K8S_POD_NAME"], Namespace: args["K8S_POD_NAMESPACE"]}
	}
	var bundle struct {
		Annotations map[string]string `json:"annotations"`
	}
	raw, err := os.ReadFile(filepath.Join(s.places.monitors(), ref.ID, "config.json"))
	if err != nil || json.Unmarshal(raw, &bundle) != nil {
		return fsck.Description{}
	}
	a := bundle.Annotations
	name := strings.TrimSuffix(a[spec.AnnotationSandboxName]+"/"+a[spec.AnnotationContainerName], "/")
	return fsck.Description{Name: name, Namespace: a[spec.AnnotationSandboxNamespace], Pod: a[spec.AnnotationSandboxID]}
}

// measure adds what a finding takes, as far as that can be told.
func (s *survey) measure(ctx context.Context, f *fsck.Finding) {
	path := f.Name
	switch f.Kind {
	case fsck.Cgroup:
		if pids, err := s.cgroups.Pids(f.Name); err == nil && f.Problem == fsck.Orphaned {
			f.Why = fmt.Sprintf("%d processes", len(pids))
		}
		return
	case fsck.Layer:
		if s.images != nil {
			path = filepath.Join(s.images.Dir(), "overlay", f.Name)
		}
	case fsck.Mount, fsck.Namespace, fsck.Process, fsck.Image, fsck.StoreLease, fsck.Unit:
		return
	}
	if u, err := storage.Measure(ctx, path); err == nil && u.Inodes > 0 {
		f.Size = &fsck.Size{Bytes: u.Bytes, Inodes: u.Inodes}
	}
}

// collectRemains removes, at the start, what is certain to be this crid's and nobody's any more, and remembers what it
// finds besides.
func (r *rooms) collectRemains(ctx context.Context) []error {
	quick := *r.survey
	quick.images = nil // has a collector of its own
	found, err := quick.look(ctx, false)
	failed := r.collectOrphans(ctx, found, false)
	if err == nil && slices.ContainsFunc(found, isOdd) {
		found, err = quick.check(ctx, false)
		odd := slices.DeleteFunc(found, func(f fsck.Finding) bool { return !isOdd(f) })
		for _, f := range odd {
			r.log.Warn(warningOf(f))
		}
		r.found.Store(&odd)
	}
	if err != nil {
		failed = append(failed, err)
	}
	return failed
}

// isOdd tells what nobody else tells of: a pod or container lacks something, or there is what no crid makes.
func isOdd(f fsck.Finding) bool { return f.Problem == fsck.Missing || f.Problem == fsck.Unknown }

func warningOf(f fsck.Finding) string {
	whose := ""
	if f.Of.ID != "" {
		whose = fmt.Sprintf(" of %s %s", f.Of.Kind, f.Of.ID)
	}
	return strings.TrimSuffix(fmt.Sprintf("%s %s%s: %s: %s", f.Problem, f.Kind, whose, f.Name, f.Remedy), ": ")
}

// foundWarnings is what the start has found, without what was of pods and containers that were removed since. It never
// waits.
func (r *rooms) foundWarnings() []string {
	found := r.found.Load()
	if found == nil {
		return nil
	}
	var all []string
	for _, f := range *found {
		var gone error
		switch f.Of.Kind {
		case fsck.Pod:
			_, gone = r.pods.Get(f.Of.ID)
		case fsck.Container:
			_, gone = r.containers.Get(f.Of.ID)
		}
		if gone == nil {
			all = append(all, warningOf(f))
		}
	}
	return all
}

// collectOrphans removes objects that nobody knows. Both rooms look again whether they are unknown.
func (r *rooms) collectOrphans(ctx context.Context, found []fsck.Finding, all bool) []error {
	list := func(kind fsck.OwnerKind) func() ([]string, error) {
		return func() ([]string, error) { return fsck.Orphans(found, kind, all), nil }
	}
	return append(r.containers.Collect(ctx, list(fsck.Container)), r.pods.Collect(ctx, list(fsck.Pod))...)
}

// fsck checks, and repairs when it is asked to, beside everything else that the rooms do.
func (r *rooms) fsck(ctx context.Context, ask fsckRequest) (fsckReport, error) {
	report := fsckReport{By: fmt.Sprintf("crid, process %d", os.Getpid()), Repaired: ask.Repair}
	found, err := r.survey.check(ctx, ask.Contents)
	if len(found) == 0 || !ask.Repair {
		report.Findings = found
		return report.without(ctx, err)
	}
	done := r.mend(ctx, found)
	left, again := r.survey.look(ctx, ask.Contents)
	report.Findings = done.settle(found, left)
	return report.without(ctx, cmp.Or(again, err))
}

// without is the report where err kept something from being looked at. Of one that was given up nothing counts.
func (r fsckReport) without(ctx context.Context, err error) (fsckReport, error) {
	if ctx.Err() != nil {
		return fsckReport{}, context.Cause(ctx)
	}
	if err != nil {
		r.Unchecked = err.Error()
	}
	return r, nil
}

// repairs is what came of repairing, beside what can be seen afterwards.
type repairs struct {
	failed  []error
	waiting map[string]bool // pods whose network could not be detached: crid goes on trying, and owns what is left
}

// settle gives the findings their outcomes by what is left.
func (r repairs) settle(found, left []fsck.Finding) []fsck.Finding {
	for _, f := range found {
		if r.waiting[f.Of.ID] && f.Kind == fsck.Attachment {
			left = append(left, f)
		}
	}
	return fsck.Settle(found, left, r.because)
}

// because finds among the errors the one that speaks of a finding.
func (r repairs) because(f fsck.Finding) string {
	for _, err := range r.failed {
		text := err.Error()
		if strings.Contains(text, f.Name) || f.Of.ID != "" && strings.Contains(text, f.Of.ID) {
			return text
		}
	}
	return ""
}

// mend does what repairs the findings, through the rooms whose things they are. Each looks again before it acts.
func (r *rooms) mend(ctx context.Context, found []fsck.Finding) repairs {
	done := repairs{failed: r.collectOrphans(ctx, found, true), waiting: map[string]bool{}}
	for _, f := range found {
		if f.Remedy != "" {
			continue
		}
		r.log.Info("repairing", "problem", f.Problem, "kind", f.Kind, "name", f.Name, "of", f.Of.ID)
		if err := r.mendOne(ctx, f); err != nil {
			done.failed = append(done.failed, fmt.Errorf("%s: %w", f.Name, err))
		}
		failpoint.Hit("crid/mend/mended")
	}
	for _, t := range r.pods.Tombstones() {
		done.waiting[t.Request.ID] = true
		done.failed = append(done.failed, fmt.Errorf("pod %s: its network is not detached yet, crid tries again: %s", t.Request.ID, t.Error))
	}
	return done
}

// mendOne repairs what is not done with its object.
func (r *rooms) mendOne(ctx context.Context, f fsck.Finding) error {
	switch f.Kind {
	case fsck.Trash:
		return r.rootfs.EmptyTrash(ctx)
	case fsck.Record:
		return r.mendRecord(ctx, f)
	case fsck.Process:
		return r.endMonitor(ctx, f.Name)
	case fsck.Lease:
		return r.network.Release(ctx, network.Lease{Path: f.Name, ID: f.Of.ID})
	case fsck.Attachment:
		return r.network.Forget(f.Name)
	case fsck.Log:
		return r.containers.ReopenMissingLog(ctx, f.Of.ID)
	case fsck.Layer, fsck.Image, fsck.StoreLease:
		kinds := map[fsck.Kind]storage.FaultKind{
			fsck.Layer: storage.LayerUnused, fsck.Image: storage.ImageDamaged, fsck.StoreLease: storage.LeaseUnneeded}
		return r.images.Mend(ctx, storage.Fault{ID: f.Name, Kind: kinds[f.Kind]})
	}
	return nil
}

func (r *rooms) mendRecord(ctx context.Context, f fsck.Finding) error {
	tombstones := filepath.Dir(f.Name) == r.cfg.records("tombstones")
	switch {
	case f.Problem == fsck.Orphaned && f.Of.Kind == fsck.Nobody && state.IsUnfinished(f.Name):
		return os.Remove(f.Name)
	case f.Problem == fsck.Unreadable && tombstones:
		return r.survey.records.tombstones.Delete(f.Of.ID)
	case f.Problem == fsck.Missing && f.Of.Kind == fsck.Pod:
		return r.pods.Rewrite(f.Of.ID)
	case f.Problem == fsck.Missing:
		return r.containers.Rewrite(f.Of.ID)
	case f.Problem == fsck.Orphaned:
		return nil // collected
	case f.Of.Kind == fsck.Pod: // crid may know what the record said
		return errors.Join(r.pods.Rewrite(f.Of.ID), r.pods.Finish(ctx, f.Of.ID))
	}
	return errors.Join(r.containers.Rewrite(f.Of.ID), r.containers.RemoveUnreadable(ctx, f.Of.ID))
}

// endMonitor ends the process that a finding names, if it is still the same.
func (r *rooms) endMonitor(ctx context.Context, name string) error {
	running, err := r.survey.monitors.Running()
	for _, m := range running {
		if processName(m) == name {
			err = errors.Join(err, r.survey.monitors.End(ctx, m))
		}
	}
	return err
}
