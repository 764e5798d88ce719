package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// mountsPause is how long crid lets mounts come and go before it looks what they changed, in a crowd of pods the more of them.
const mountsPause = 500 * time.Millisecond

// watchMounts looks again at the additional stores of images and of layers when something was mounted or unmounted: their disks
// come and go. While nothing is, it costs nothing. It returns when ctx ends.
func (s *Images) watchMounts(ctx context.Context, lists *fsnotify.Watcher) error {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer mounts.Close()
	ended, end, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer ended.Close()
	defer end.Close()
	defer context.AfterFunc(ctx, func() { _ = end.Close() })()
	fds := []unix.PollFd{{Fd: int32(mounts.Fd()), Events: unix.POLLPRI}, {Fd: int32(ended.Fd()), Events: unix.POLLIN}}
	for {
		s.problems.set("index", s.lookAgain(lists))
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch mounts: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(mountsPause):
		}
	}
}

// lookAgain reads the index again if an additional store has changed, or one of layers may have come that images are damaged without.
func (s *Images) lookAgain(lists *fsnotify.Watcher) error {
	for _, f := range s.catalog.shelves { // a watch is on what was there when it began
		_ = lists.Remove(filepath.Dir(f.listPath()))
		_ = lists.Add(filepath.Dir(f.listPath()))
	}
	if len(s.cfg.LayerStores) > 0 && len(s.index.Load().damaged) > 0 {
		return s.refresh()
	}
	return s.refreshIfChanged()
}
