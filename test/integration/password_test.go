package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
)

// secrets are the forms of a password that nobody else may see.
func secrets(password string) [][]byte {
	encoded := base64.StdEncoding.EncodeToString([]byte("me:" + password))
	return [][]byte{[]byte(password), []byte(encoded)}
}

func shows(raw []byte, password string) bool {
	return slices.ContainsFunc(secrets(password), func(secret []byte) bool { return bytes.Contains(raw, secret) })
}

// wantNowhere looks for the password in what all processes were started with, but the test itself, and what crid has written.
func wantNowhere(t *testing.T, c *harness.Crid, password string) {
	t.Helper()
	var files []string
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) < 6 { // the test, the registry and crid
		t.Fatalf("looked at %v", files)
	}
	for _, dir := range []string{c.Root(), c.RunRoot} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && e.Type().IsRegular() && !strings.Contains(path, "/storage/overlay/") {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range files {
		if raw, err := os.ReadFile(file); err == nil && shows(raw, password) { // what is gone shows nothing
			t.Errorf("the password is in %s", file)
		}
	}
	status, err := c.Runtime.Status(c.Context(), true)
	if err != nil || shows([]byte(status.String()), password) || shows([]byte(c.Log()), password) {
		t.Errorf("the password is in crid's log or status; %v", err)
	}
}

func TestAPasswordByHand(t *testing.T) {
	password := rand.Text() + ":" + rand.Text()
	s := stall(t, harness.Serve(t, harness.Images(), askFor(t, password)...))
	c := harness.Start(t, harness.Registry(s.address))
	ref := large(t, c, s)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := file("pair", "me:"+password+"\n")
	auths := file("auth.json", `{"auths":{"`+s.address+`":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("me:"+password))+`"}}}`)
	wrong := rand.Text()
	for _, refused := range []struct {
		stdin string
		args  []string
	}{{"", nil}, {wrong, []string{"--username", "me", "--password-stdin"}}, {"you:" + password, []string{"--creds", "-"}}} {
		a := byHand(t, c, []byte(refused.stdin), append([]string{"pull", ref}, refused.args...)...)
		if a.code != 1 || !strings.Contains(a.err, "denies access") || shows([]byte(a.err), password) || shows([]byte(a.err), wrong) {
			t.Errorf("%v: %+v", refused, a)
		}
	}
	wantNowhere(t, c, wrong)

	w := newTerminal(t, 100, 24)
	wait := w.run(t, c, "pull", "--username", "me", ref)
	w.await(t, "Password for me: ")
	eventually(t, "a terminal that shows nothing", func() bool { return w.modesNow(t).Lflag&unix.ECHO == 0 })
	w.types(t, password+"\n")
	w.await(t, "1 of 2 layers")
	wantNowhere(t, c, password)
	s.release()
	if code := wait(); code != 0 || shows([]byte(w.String()), password) {
		t.Errorf("exit code %d\n%s", code, w.String())
	}
	for _, given := range []struct {
		stdin string
		args  []string
	}{
		{password + "\n", []string{"--username", "me", "--password-stdin"}},
		{"me:" + password, []string{"--creds", "-"}},
		{"", []string{"--creds", pair}},
		{"", []string{"--authfile", auths}},
	} {
		if a := byHand(t, c, []byte(given.stdin), append([]string{"pull", ref}, given.args...)...); a.code != 0 || shows([]byte(a.out+a.err), password) {
			t.Errorf("%v: %+v", given.args, a)
		}
		if a := byHand(t, c, nil, "pull", ref); a.code != 1 { // what was given once is kept nowhere
			t.Errorf("without a password after %v: %+v", given.args, a)
		}
		well(t, c, "rm", ref)
	}
	wantNowhere(t, c, password)
}

func TestAnInterruptAtThePasswordRestoresTheTerminal(t *testing.T) {
	c := harness.Start(t)
	w := newTerminal(t, 100, 24)
	wait := w.run(t, c, "pull", "--username", "me", "example.com/a:1")
	eventually(t, "a terminal that shows nothing", func() bool { return w.modesNow(t).Lflag&unix.ECHO == 0 })
	w.types(t, "\x03")
	if code := wait(); code != 130 {
		t.Errorf("exit code %d\n%s", code, w.String())
	}
}
