package state

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestAViewTouchesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "records")
	v := View[string](dir, 1)
	for e, err := range v.All() {
		t.Errorf("an absent directory has %v, %v", e, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("it made the directory")
	}
	d, err := Open[string](dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put("a", "one"); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, ".tmp-1")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for e, err := range v.All() {
		if e.ID != "a" || e.Record != "one" || err != nil {
			t.Errorf("got %v, %v", e, err)
		}
	}
	ids, strays, err := v.Files()
	if !slices.Equal(ids, []string{"a"}) || !slices.Equal(strays, []string{stray}) || err != nil {
		t.Errorf("files: %v, %v, %v", ids, strays, err)
	}
	under := filepath.Join(dir, ".tmp-2")
	if err := os.WriteFile(under, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.writing.Store(".tmp-2", nil) // as a Put that a slow disk holds up
	if _, strays, err := d.Files(); !slices.Equal(strays, []string{stray}) || err != nil {
		t.Errorf("amid a Put: %v, %v", strays, err)
	}
	if !IsUnfinished(stray) || IsUnfinished(v.Path("a")) {
		t.Error("which is unfinished?")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
