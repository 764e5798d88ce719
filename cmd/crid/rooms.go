package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/fsck"
	"github.com/crid/crid/internal/host"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/pause"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
)

// keptEvents is how many events a slow reader may fall behind.
const keptEvents = 4096

// rooms is everything that the server stands on.
type rooms struct {
	cfg  places
	host fact.Host
	observers

	cgroups    cgroups
	programs   programs
	additions  additions
	events     *event.Bus[event.Event]
	images     *storage.Images
	rootfs     *storage.Rootfs
	network    *network.CNI
	containers *container.Manager
	pods       *sandbox.Manager
	survey     *survey // of what is there, beside what the rooms know

	told
	closers []closer
}

// told is what Status tells of the start.
type told struct {
	warnings []string
	found    atomic.Pointer[[]fsck.Finding] // what was missing, or no crid's, once it was looked for
}

// warn tells the operator, by the log and by Status, what is not as it should be since the start.
func (r *rooms) warn(warning string) {
	r.warnings = append(r.warnings, warning)
	r.log.Warn(warning)
}

// closer ends one room.
type closer struct {
	name string
	end  func(ctx context.Context) error
}

// lastWord is what each room has even when the others took all the time: records are synced in it.
const lastWord = 100 * time.Millisecond

// within ends the room, or gives up on it with ctx: a layer that is being unpacked, say, cannot be interrupted.
func (c closer) within(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- c.end(ctx) }() // ends with the room, or with the process
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(lastWord):
		return ctx.Err()
	}
}

// openRooms builds all rooms, in the order in which they stand on each other. After an error nothing is left
// open.
func openRooms(ctx context.Context, cfg config.Config, log *slog.Logger) (*rooms, error) {
	r := &rooms{cfg: places{cfg}, survey: &survey{places: places{cfg}}, observers: observers{log: log, began: time.Now()}, events: event.New[event.Event](keptEvents)}
	for _, open := range []func(context.Context) error{
		r.openObservers, r.openHost, r.openAdditions, r.openImages, r.openNetwork, r.openContainers, r.openPods, r.openSurvey,
	} {
		if err := open(ctx); err != nil {
			return nil, errors.Join(err, r.close(ctx))
		}
	}
	return r, nil
}

// onClose remembers how a room ends; the last opened ends first.
func (r *rooms) onClose(name string, end func(ctx context.Context) error) {
	r.closers = append(r.closers, closer{name, end})
}

// close ends all rooms. Pods and containers stay. What does not end in time, as where a disk hangs, is named in the log and left to
// the end of the process, which is no failure: crid was told to end, and a kill would leave the same.
func (r *rooms) close(ctx context.Context) error {
	var errs []error
	for len(r.closers) > 0 {
		last := r.closers[len(r.closers)-1]
		r.closers = r.closers[:len(r.closers)-1]
		err := last.within(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			r.log.Warn("crid ends without what does not; the next start mends what that left", "room", last.name, "err", err)
		case err != nil:
			errs = append(errs, fmt.Errorf("close %s: %w", last.name, err))
		}
	}
	return errors.Join(errs...)
}

// openHost learns what the machine and the programs on it can do.
func (r *rooms) openHost(ctx context.Context) error {
	var err error
	if r.host, err = host.Probe(); err != nil {
		return err
	}
	if err := r.openCgroups(); err != nil {
		return err
	}
	if r.programs, err = findPrograms(ctx, r.cfg.Config, oci.Config{Cgroups: r.cgroups.Tree, Steps: r.steps()}); err != nil {
		return err
	}
	r.warnings = append(r.warnings, r.programs.warnings...)
	return nil
}

func (r *rooms) openImages(ctx context.Context) error {
	var err error
	cfg := r.cfg.images()
	cfg.BootID, cfg.Steps = r.host.BootID, r.steps()
	r.images, err = storage.OpenImages(cfg)
	if err != nil {
		return err
	}
	r.onClose("images", func(context.Context) error { return r.images.Close() })
	rootfs := r.cfg.rootfs(r.additions.security.FileLabel())
	rootfs.ImageStore = r.images.Dir()
	r.rootfs, err = storage.OpenRootfs(rootfs, r.images)
	if err != nil {
		return err
	}
	r.onClose("root filesystems", func(context.Context) error { return r.rootfs.Close() })
	if err := r.probeUserns(ctx); err != nil {
		return err
	}
	r.programs.tell(r.log) // all that is known of them by now
	return nil
}

func (r *rooms) openNetwork(ctx context.Context) error {
	cfg := r.cfg.network()
	cfg.Steps = r.steps()
	r.network = network.New(cfg)
	// Signals end ctx while calls still run; the network is followed until the rooms close.
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.onClose("network", func(context.Context) error { cancel(); return nil })
	return r.network.Watch(watch)
}

func (r *rooms) openContainers(context.Context) error {
	records, err := openRecords[container.Record](r, "containers", container.RecordVersion)
	if err != nil {
		return err
	}
	for _, dir := range []string{r.cfg.monitors(), r.cfg.exits()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		failpoint.Hit("crid/open/dir-made")
	}
	launcher := monitor.New(monitor.Config{
		Path: r.programs.conmon, Dir: r.cfg.monitors(), ExitDir: r.cfg.exits(), Explain: oci.Explain, Steps: r.steps(),
	}, r.cgroups)
	r.survey.monitors, r.survey.records.containers = launcher, records
	r.onClose("monitors", func(context.Context) error { return launcher.Close() })
	pauseRoot := filepath.Join(r.cfg.Root, "pause")
	err = pause.Install(pauseRoot)
	if err == nil {
		err = r.additions.security.Relabel(pauseRoot, r.additions.security.FileLabel())
	}
	if err != nil {
		r.warnings = append(r.warnings, fmt.Sprintf("pods that share their PID namespace cannot run: %v", err))
	}
	volumes, err := storage.OpenImageMounts(r.rootfs)
	if err != nil {
		return err
	}
	r.containers = container.New(container.Deps{
		Handlers: r.programs.handlers,
		Monitors: monitors{launcher},
		Rootfs:   ownRootfs{r.rootfs},
		Mapper:   r.rootfs,
		Images:   r.images,
		Volumes:  volumes,
		Cgroups:  r.cgroups,
		Limits:   r.cgroups,
		Records:  records,
		Events:   r.events,
		Host:     r.host,
		Steps:    r.steps(),
		Log:      r.log,
		Options: container.Options{
			ImageVolumes: r.cfg.Images.ImageVolumes,
			SeccompDir:   r.cfg.SeccompDir,
			Roots:        []string{r.cfg.Root, r.cfg.Runroot},
			PauseRoot:    pauseRoot,
			Cgroups:      r.cgroups.Names,
		},
		Additions: container.Additions{Devices: r.additions.devices, Hooks: r.additions.hooks, Security: r.additions.security},
	})
	r.onClose("containers", r.containers.Close)
	r.images.SetUsers(r.containers.ImageUsers)
	return nil
}

func (r *rooms) openPods(context.Context) error {
	records, err := openRecords[sandbox.Record](r, "pods", sandbox.RecordVersion)
	if err != nil {
		return err
	}
	tombstones, err := openRecords[sandbox.Tombstone](r, "tombstones", sandbox.TombstoneVersion)
	if err != nil {
		return err
	}
	files := r.cfg.podFiles()
	if err := makePrivate(files); err != nil {
		return err
	}
	r.onClose("pods' files", func(context.Context) error { return dropPrivate(files) })
	r.onClose("namespaces", func(context.Context) error { return dropPrivate(r.cfg.pins()) }) // made private at the first pin
	podFiles := sandbox.NewFiles(sandbox.FilesConfig{Dir: files, Etc: "/etc"})
	r.survey.files, r.survey.records.pods, r.survey.records.tombstones = podFiles, records, tombstones
	own, err := r.claimCgroupParent()
	if err != nil {
		return err
	}
	r.pods = sandbox.New(sandbox.Deps{
		Config: sandbox.Config{
			BootID:       r.host.BootID,
			Sysctls:      pairs(r.cfg.DefaultSysctls),
			CgroupParent: r.cgroups.parent,
			OwnParent:    own,
			Cgroups:      r.cgroups.Names,
		},
		Records:    records,
		Tombstones: tombstones,
		Namespaces: r.cfg.pinner(),
		Network:    r.network,
		Cgroups:    r.cgroups,
		Containers: r.containers,
		Files:      podFiles,
		Labels:     r.additions.security,
		Events:     r.events,
		Steps:      r.steps(),
		Log:        r.log,
	})
	r.onClose("pods", r.pods.Close)
	r.containers.OnPauseExit(r.pods.PauseExited)
	return nil
}

// openSurvey lets the rooms tell what they know to whoever looks at what is there.
func (r *rooms) openSurvey(context.Context) error {
	s := r.survey
	s.host, s.cgroups, s.parent, s.pins, s.network, s.images, s.idle = r.host, r.cgroups.Driver, r.cgroups.parent, r.cfg.pinner(), r.network, r.images, r.rootfs.Idle
	s.known = func() (known, error) {
		return known{pods: r.pods.Standings(), containers: r.containers.Standings(), tombstones: r.pods.Tombstones()}, nil
	}
	return nil
}

// openRecords opens the records of one kind below root.
func openRecords[T any](r *rooms, kind string, version int) (*state.Dir[T], error) {
	records, err := state.Open[T](r.cfg.records(kind), version)
	if err != nil {
		return nil, fmt.Errorf("open records of %s: %w", kind, err)
	}
	r.onClose("records of "+kind, func(context.Context) error { return records.Close() })
	return records.Named(idForm), nil
}

// claimCgroupParent tells whether the default cgroup parent is crid's to remove: it is unless it was there
// before crid first came, or is a slice. A note in runroot keeps that over restarts; a reboot takes both away.
func (r *rooms) claimCgroupParent() (own bool, err error) {
	if r.cgroups.Systemd {
		return false, nil
	}
	note := filepath.Join(r.cfg.Runroot, "cgroup-parent")
	said, err := os.ReadFile(note)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read note: %w", err)
	}
	if string(said) == r.cgroups.parent {
		return true, nil
	}
	there, err := r.cgroups.Exists(r.cgroups.parent)
	if err != nil || there {
		return false, err
	}
	if err := os.WriteFile(note, []byte(r.cgroups.parent), 0o600); err != nil {
		return false, fmt.Errorf("write note: %w", err)
	}
	failpoint.Hit("crid/open/parent-noted")
	return true, nil
}

// load takes up what an earlier crid left. It fails for no single object.
func (r *rooms) load(ctx context.Context) {
	for _, err := range append(r.containers.Load(ctx), r.pods.Load(ctx)...) {
		r.log.Warn("taking up what was there", "err", err)
	}
	for _, warning := range append(r.images.Warnings(), r.rootfs.Warnings()...) {
		r.log.Warn(warning)
	}
}

// collect removes what nobody has any more, behind everything else, and goes on to do so for the network until ctx ends.
func (r *rooms) collect(ctx context.Context) {
	for _, err := range r.collectRemains(ctx) {
		r.log.Warn("collecting what is nobody's; the next start tries again", "err", err)
	}
	rhythm := r.cfg.gcRhythm()
	r.network.KeepCollecting(ctx, rhythm, r.pods.Attachments, func(err error) {
		r.log.Warn("network attachments that no pod has may be left until the next collection", "err", err, "in", rhythm.Period)
	})
}

// pairs splits "name=value" entries, whose form was validated.
func pairs(entries []string) map[string]string {
	out := make(map[string]string, len(entries))
	for _, entry := range entries {
		name, value, _ := strings.Cut(entry, "=")
		out[name] = value
	}
	return out
}
