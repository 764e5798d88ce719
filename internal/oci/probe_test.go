package oci

import (
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVersions(t *testing.T) {
	for _, test := range []struct {
		out  string
		want version
		can  abilities
	}{
		{"crun version 1.8.1\ncommit: f8a\nspec: 1.0.0\n+SYSTEMD\n", version{"crun", "1.8.1", [3]int{1, 8, 1}, "1.0.0"}, abilities{"1.0.0", true, true}},
		{"crun version 1.9\nspec: 1.0.0\n", version{"crun", "1.9", [3]int{1, 9}, "1.0.0"}, abilities{"1.0.0", true, true}},
		{"crun version 1.14.3-dirty\nspec: 1.0.0\n", version{"crun", "1.14.3-dirty", [3]int{1, 14, 3}, "1.0.0"}, abilities{"1.0.0", true, true}},
		{"crun version 0.17\nspec: 1.0.0\n", version{"crun", "0.17", [3]int{0, 17}, "1.0.0"}, abilities{"1.0.0", false, false}},
		{"runc version 1.1.5+ds1\ncommit: 1\nspec: 1.0.2-dev\ngo: go1.19.8\n", version{"runc", "1.1.5+ds1", [3]int{1, 1, 5}, "1.0.2-dev"}, abilities{"1.0.2-dev", false, false}},
		{"runsc version release-20240101.0\nspec: 1.1.0-rc.1\n", version{"runsc", "20240101.0", [3]int{20240101}, "1.1.0-rc.1"}, abilities{"1.1.0-rc.1", false, false}},
		{"kata version unknown\n", version{"kata", "unknown", [3]int{}, "1.0.0"}, abilities{"1.0.0", false, false}},
	} {
		got, err := parseVersion(test.out)
		if err != nil || got != test.want {
			t.Errorf("%q: got %+v, %v; want %+v", test.out, got, err, test.want)
		}
		if can := got.known(); can != test.can {
			t.Errorf("%q: can %+v, want %+v", test.out, can, test.can)
		}
	}
	if _, err := parseVersion("Usage: cat [FILE]\n"); err == nil {
		t.Error("a program that is no runtime was taken for one")
	}
}

func TestFeatures(t *testing.T) {
	for _, test := range []struct {
		out  string
		want abilities
	}{
		{`{"ociVersionMax":"1.0.2-dev","mountOptions":["ro","rro"]}`, abilities{"1.0.2-dev", true, false}},
		{`{"ociVersionMax":"1.2.0","mountOptions":["ro"],"linux":{"namespaces":["mount","user"]}}`, abilities{"1.2.0", false, true}},
	} {
		if got, err := parseFeatures([]byte(test.out)); err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v", test.out, got, err)
		}
	}
	for _, bad := range []string{"", "{}", "unknown command features"} {
		if got, err := parseFeatures([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v without an error", bad, got)
		}
	}
}

func TestARuntimeWithoutFeaturesIsKnownByItsVersion(t *testing.T) {
	h, err := fake(t, "crun").Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != "crun 1.8.1" || h.SpecVersion != "1.0.0" || !h.UserNamespaces || !h.FlatBinds || h.Name != "crun" {
		t.Errorf("got %+v", h)
	}
}

func TestWhatIsNoRuntimeIsRefused(t *testing.T) {
	if h, err := fake(t, "refuse").Probe(t.Context()); err == nil {
		t.Errorf("got %+v without an error", h)
	}
}

func TestProbeOfTheInstalledRuntimes(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Logf("left out: %v", err)
			continue
		}
		h, err := New(Config{Name: name, Path: path, Root: "/no/root"}).Probe(t.Context())
		if err != nil || h.Version == "" || h.SpecVersion == "" || !h.RecursiveReadOnly || !h.UserNamespaces || h.FlatBinds != (name == "crun") {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

// The installed runtimes are offered with recursive read-only mounts, since this kernel makes them.
func TestReadOnlyIsTried(t *testing.T) {
	var before, after unix.Statfs_t
	if err := unix.Statfs("/", &before); err != nil {
		t.Fatal(err)
	}
	if err := tryReadOnly(); err != nil {
		t.Error(err)
	}
	if err := unix.Statfs("/", &after); err != nil || after.Flags != before.Flags {
		t.Errorf("flags of / %#x, before the trial %#x; %v", after.Flags, before.Flags, err)
	}
	if err := makeReadOnly(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no mount at all became read-only: %v", err)
	}
}
