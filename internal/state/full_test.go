package state

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// block makes the record of id impossible to store until the function that it returns is called.
func block(t *testing.T, dir, id string) (unblock func()) {
	t.Helper()
	path := filepath.Join(dir, id+suffix)
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsKeptIsStoredOnceTheDiskTakesIt(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := open(t, dir)
		defer d.Close()
		unblock := block(t, dir, "a")
		for n := range 2 {
			if err := d.Keep("a", rec{N: n}); err == nil {
				t.Fatal("Keep over a directory succeeded")
			}
		}
		<-time.After(10 * retryDelay)
		if left := d.Unsaved(); len(left) != 1 || !strings.Contains(left[0].Error(), "record a is not on disk since") {
			t.Errorf("unsaved: %v", left)
		}
		unblock()
		<-time.After(2 * retryDelay)
		if recs, bad := all(t, d); recs["a"].N != 1 || len(bad) != 0 || len(d.Unsaved()) != 0 {
			t.Errorf("records %v, errors %v, unsaved %v", recs, bad, d.Unsaved())
		}
	})
}

func TestNothingOlderFollowsWhatIsNewer(t *testing.T) {
	for name, newer := range map[string]func(d *Dir[rec]) error{
		"put":    func(d *Dir[rec]) error { return d.Put("a", rec{N: 2}) },
		"delete": func(d *Dir[rec]) error { return d.Delete("a") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				d := open(t, dir)
				defer d.Close()
				unblock := block(t, dir, "a")
				if err := d.Keep("a", rec{N: 1}); err == nil {
					t.Fatal("Keep over a directory succeeded")
				}
				unblock()
				if err := newer(d); err != nil {
					t.Fatal(err)
				}
				<-time.After(10 * retryDelay)
				if recs, _ := all(t, d); recs["a"].N == 1 {
					t.Error("the older record is back")
				}
			})
		})
	}
}

func TestAFailedPutLeavesWhatWasKept(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	unblock := block(t, dir, "a")
	if d.Keep("a", rec{N: 1}) == nil || d.Put("a", rec{N: 2}) == nil {
		t.Fatal("stored over a directory")
	}
	unblock()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if recs, _ := all(t, d); recs["a"].N != 1 {
		t.Errorf("records %v after Close; want what was kept", recs)
	}
}

// TestTheReserveReplacesRecords overwrites records by the reserve alone, which stays what it is as long as they do not
// outgrow their blocks.
func TestTheReserveReplacesRecords(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for n, name := range []string{"", strings.Repeat("x", 800), "y", strings.Repeat("z", 3000), strings.Repeat("w", reserveSize)} {
		if err := d.Put("a", rec{}); err != nil {
			t.Fatal(err)
		}
		raw, err := d.encode("a", rec{N: n, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		err = d.spare.replace(d.Path("a"), raw)
		if fits := len(name) < reserveSize; (err == nil) != fits {
			t.Errorf("replace by %d bytes: %v", len(raw), err)
		} else if recs, bad := all(t, d); fits && (recs["a"] != rec{N: n, Name: name}) || len(bad) != 0 {
			t.Errorf("records %v, errors %v", recs, bad)
		}
		if reserve, err := os.ReadFile(d.spare.path); err != nil || len(reserve) < reserveSize {
			t.Errorf("the reserve has %d bytes: %v", len(reserve), err)
		}
	}
	if err := d.spare.replace(d.Path("b"), []byte("{}")); err == nil {
		t.Error("a record that was not there has been replaced")
	}
	if _, strays, err := d.Files(); err != nil || len(strays) != 0 {
		t.Errorf("strays %v, %v", strays, err)
	}
	if raw, err := os.ReadFile(d.Path("a")); err != nil || bytes.Contains(raw, []byte{0}) {
		t.Errorf("the record holds what is no text: %v", err)
	}
}
