package state

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/crid/crid/internal/errdef"
)

type rec struct {
	Name string
	N    int
}

func open(t *testing.T, dir string) *Dir[rec] {
	t.Helper()
	d, err := Open[rec](dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func all(t *testing.T, d *Dir[rec]) (map[string]rec, map[string]error) {
	t.Helper()
	recs, bad := map[string]rec{}, map[string]error{}
	for e, err := range d.All() {
		if err != nil {
			bad[e.ID] = err
			continue
		}
		recs[e.ID] = e.Record
	}
	return recs, bad
}

func TestRecordsSurviveTheirWriter(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for _, put := range []rec{{"a", 1}, {"a", 2}, {"b", 3}} {
		if err := d.Put(put.Name, put); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.Delete("b"), d.Delete("b"), d.Delete("never")); err != nil {
		t.Fatal(err)
	}
	recs, bad := all(t, open(t, dir))
	if len(bad) != 0 || len(recs) != 1 || recs["a"].N != 2 {
		t.Errorf("records %v, errors %v", recs, bad)
	}
	info, err := os.Stat(filepath.Join(dir, "a.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestABadRecordHurtsItselfOnly(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := d.Put("good", rec{Name: "good"}); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty.json": "", "torn.json": `{"version":1,"reco`, "shape.json": `{"version":1,"record":{"N":"x"}}`,
		"newer.json": `{"version":2,"record":{}}`, "stranger": "x", ".tmp-123": "half",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recs, bad := all(t, open(t, dir))
	if len(recs) != 1 || recs["good"].Name != "good" {
		t.Errorf("records %v", recs)
	}
	for _, id := range []string{"empty", "torn", "shape", "newer"} {
		if bad[id] == nil || !strings.Contains(bad[id].Error(), id+".json") {
			t.Errorf("record %s: error %v does not name its file", id, bad[id])
		}
	}
	if len(bad) != 4 || !errors.Is(bad["newer"], errdef.Unsupported) {
		t.Errorf("errors %v", bad)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-123")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished record is still there: %v", err)
	}
}

func TestACopyOfARecordIsNone(t *testing.T) {
	dir := t.TempDir()
	form := regexp.MustCompile("^[0-9a-f]{4}(-pause)?$")
	named := func() *Dir[rec] { return open(t, dir).Named(form) }
	d := named()
	if err := d.Put("abcd", rec{Name: "good"}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(d.Path("abcd"))
	if err != nil {
		t.Fatal(err)
	}
	copies := []string{"abcd.bak.json", "abcd-copy.json", "notes.json"}
	for _, name := range copies {
		if err := os.WriteFile(filepath.Join(dir, name), whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recs, bad := all(t, named())
	if len(recs) != 1 || recs["abcd"].Name != "good" || len(bad) > 0 {
		t.Errorf("records %v, errors %v", recs, bad)
	}
	ids, strays, err := named().Files()
	if err != nil || len(ids) != 1 || len(strays) != len(copies) {
		t.Errorf("ids %q, strays %q, %v", ids, strays, err)
	}
	if err := d.Put("abcd.bak", rec{}); !errors.Is(err, errdef.Invalid) {
		t.Errorf("a record of no id: %v", err)
	}
}

// What a power cut can make of a record that was being written: a part of it, or NULs where its blocks were not written.
func TestATornRecordIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := d.Put("torn", rec{Name: "torn", N: 12}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "torn.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole = bytes.TrimRight(whole, " ") // without them it would be whole too
	torn := []string{"null", "{}", `{"version":1}`, `{"version":1,"record":null}`, string(whole) + "\x00", string(whole) + string(whole)}
	for n := range whole {
		torn = append(torn, string(whole[:n]), string(whole[:n])+strings.Repeat("\x00", len(whole)-n),
			strings.Repeat("\x00", n+1)+string(whole[n+1:]))
	}
	for _, content := range torn {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if recs, bad := all(t, open(t, dir)); len(recs) != 0 || bad["torn"] == nil || !strings.Contains(bad["torn"].Error(), path) {
			t.Errorf("%q: records %v, errors %v", content, recs, bad)
		}
	}
}

func TestIdsAreFileNames(t *testing.T) {
	d := open(t, t.TempDir())
	for _, id := range []string{"", ".", "..", "../x", "a/b", "a\x00b", strings.Repeat("a", 200)} {
		if err := d.Put(id, rec{}); !errors.Is(err, errdef.Invalid) {
			t.Errorf("Put(%q): %v; want Invalid", id, err)
		}
		if err := d.Delete(id); !errors.Is(err, errdef.Invalid) {
			t.Errorf("Delete(%q): %v; want Invalid", id, err)
		}
	}
}

func TestConcurrentPutsLeaveWholeRecords(t *testing.T) {
	d := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			if err := d.Put("one", rec{N: i, Name: strings.Repeat("x", i*100)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	recs, bad := all(t, d)
	if len(bad) != 0 || len(recs["one"].Name) != recs["one"].N*100 {
		t.Errorf("records %v, errors %v", recs, bad)
	}
}

func TestAFailedPutLeavesTheOldRecord(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := d.Put("a", rec{N: 1}); err != nil {
		t.Fatal(err)
	}
	// A directory where the record's file belongs: the rename fails, after the temporary file was written.
	if err := os.MkdirAll(filepath.Join(dir, "b.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Put("b", rec{N: 2}); err == nil {
		t.Error("Put over a directory succeeded")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSyncsAreBatched(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, err := Open[rec](dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := d.Put("a", rec{}); err != nil {
				t.Fatal(err)
			}
		}
		first := d.flush.pending
		if first == nil {
			t.Fatal("no sync is due after a Put")
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal("Close cannot be repeated:", err)
		}
		if d.flush.pending != nil {
			t.Error("a sync is still due after Close")
		}
	})
}
