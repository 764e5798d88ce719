package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSurveySeesAllThatIsNotCridsOwn(t *testing.T) {
	base := t.TempDir()
	cfg := RootfsConfig{Dir: filepath.Join(base, "rootfs"), MountDir: filepath.Join(base, "mounts")}
	if all, err := cfg.Survey(); err != nil || len(all) > 0 {
		t.Errorf("of nothing: %v, %v", all, err)
	}
	for _, dir := range []string{"rootfs/a/upper", "rootfs/.empty", "rootfs/.trash/1", "mounts/a/root", "mounts/b/mapped/0", "mounts/.probe/mapped", "mounts/.images/i"} {
		must(t, os.MkdirAll(filepath.Join(base, dir), 0o700))
	}
	all, err := cfg.Survey()
	must(t, err)
	want := []Entry{
		{Path: "rootfs/a", ID: "a"},
		{Path: "rootfs/.trash/1", Trash: true},
		{Path: "mounts/a/root", ID: "a", Mount: true},
		{Path: "mounts/b/root", ID: "b", Mount: true},
		{Path: "mounts/.images/i", ID: "i", Mount: true, Image: true},
	}
	for i := range all {
		all[i].Path = strings.TrimPrefix(all[i].Path, base+"/")
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(b.Path, a.Path) })
	slices.SortFunc(want, func(a, b Entry) int { return strings.Compare(b.Path, a.Path) })
	if !slices.Equal(all, want) {
		t.Errorf("got %v", all)
	}
}

func TestTrashIsIdleOnlyWhenNothingIsOnItsWay(t *testing.T) {
	dir, tree := t.TempDir(), t.TempDir()
	var p problems
	trash := openTrash(dir, &p)
	defer trash.close()
	must(t, trash.ask(t.Context()))
	if !trash.idle() {
		t.Error("an empty one is not idle")
	}
	for i := range 200 {
		from := filepath.Join(tree, "x")
		must(t, os.MkdirAll(filepath.Join(from, "a/b"), 0o700))
		must(t, trash.put(from))
		names, err := entryNames(dir) // first what is there, as whoever asks does
		must(t, err)
		if len(names) > 0 && trash.idle() {
			if left, err := entryNames(dir); err != nil || len(left) > 0 {
				t.Fatalf("round %d: idle with %v, %v", i, left, err)
			}
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, "planted"), 0o700))
	must(t, trash.ask(t.Context()))
	wantAbsent(t, filepath.Join(dir, "planted"))
	trash.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := trash.ask(ctx); !errors.Is(err, errClosed) {
		t.Errorf("asked when it is closed: %v", err)
	}
}
