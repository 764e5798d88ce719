package integration

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/crid/crid/test/harness"
)

// stuckVolume is a filesystem with nothing but a root directory, of which every look hangs when it is told to, as on a
// dead NFS server: who looks waits in the kernel, and no signal helps.
type stuckVolume struct {
	Dir   string
	stuck atomic.Bool
	asked chan struct{} // holds a token once somebody hangs
	abort func()        // everybody who hangs gets an error; may be repeated
}

func mountStuckVolume(t *testing.T) *stuckVolume {
	t.Helper()
	v := &stuckVolume{Dir: t.TempDir(), asked: make(chan struct{}, 1)}
	v.abort = harness.MountFuse(t, v.Dir, syscall.S_IFDIR, v.answer)
	return v
}

func (v *stuckVolume) answer(code uint32, _ []byte) (body []byte, errno syscall.Errno, answered bool) {
	if v.stuck.Load() {
		select {
		case v.asked <- struct{}{}:
		default:
		}
		return nil, 0, false
	}
	switch code {
	case harness.FuseGetattr:
		return harness.FuseAttributes(syscall.S_IFDIR|0o755, 0), 0, true
	case harness.FuseLookup:
		return nil, syscall.ENOENT, true
	}
	return nil, syscall.ENOSYS, true
}

func TestAStuckVolumeIsStuck(t *testing.T) {
	v := mountStuckVolume(t)
	if info, err := os.Stat(v.Dir); err != nil || !info.IsDir() {
		t.Fatal(info, err)
	}
	v.stuck.Store(true)
	looked := make(chan error, 1)
	go func() { // ends when the volume is aborted
		_, err := os.Stat(v.Dir)
		looked <- err
	}()
	<-v.asked
	select {
	case err := <-looked:
		t.Fatal("a look at the volume came back:", err)
	default:
	}
	v.abort()
	if err := <-looked; err == nil {
		t.Error("a look at an aborted volume succeeded")
	}
}
