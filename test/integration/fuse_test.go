package integration

import (
	"os"
	"testing"

	"github.com/crid/crid/test/stuck"
)

// mountStuckVolume mounts a volume that a test can let hang.
func mountStuckVolume(t *testing.T) *stuck.Volume {
	t.Helper()
	v, err := stuck.MountVolume(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.Abort()
		v.Wait()
	})
	return v
}

func TestAStuckVolumeIsStuck(t *testing.T) {
	v := mountStuckVolume(t)
	if info, err := os.Stat(v.Dir); err != nil || !info.IsDir() {
		t.Fatal(info, err)
	}
	v.Stick()
	looked := make(chan error, 1)
	go func() { // ends when the volume is aborted
		_, err := os.Stat(v.Dir)
		looked <- err
	}()
	<-v.Asked
	select {
	case err := <-looked:
		t.Fatal("a look at the volume came back:", err)
	default:
	}
	v.Abort()
	if err := <-looked; err == nil {
		t.Error("a look at an aborted volume succeeded")
	}
}
