package main

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/crid/crid/internal/admin"
)

func fileOf(t *testing.T, path, content string) string {
	t.Helper()
	return write(t, path, content, 0o600)
}

func TestCredentialsAreReadFromFilesAlone(t *testing.T) {
	dir := t.TempDir()
	pair := fileOf(t, filepath.Join(dir, "pair"), "me:pass:word\n")
	encoded := base64.StdEncoding.EncodeToString([]byte("me:pass:word"))
	auths := fileOf(t, filepath.Join(dir, "auth.json"), `{"auths":{"registry.example.com":{"auth":"`+encoded+`"}}}`)
	for _, c := range []struct {
		from  credentials
		stdin string
		want  string // what an error says; empty: there is none
	}{
		{credentials{creds: pair}, "", ""},
		{credentials{creds: "-"}, "me:pass:word", ""},
		{credentials{username: "me", passwordStdin: true}, "pass:word\r\n", ""},
		{credentials{authfile: auths}, "", ""},
		{credentials{creds: "me:hunter2"}, "", "--creds names a file"},
		{credentials{creds: filepath.Join(dir, "absent")}, "", "no such file"},
		{credentials{creds: "-"}, "nothing", "USER:PASSWORD"},
		{credentials{creds: "-"}, "", "one line"},
		{credentials{creds: "-"}, "a:b\nc:d", "one line"},
		{credentials{authfile: filepath.Join(dir, "absent")}, "", "no such file"},
		{credentials{authfile: fileOf(t, filepath.Join(dir, "empty"), "{}")}, "", "no credentials for registry.example.com"},
		{credentials{authfile: pair}, "", "read credentials"},
	} {
		auth, err := c.from.read(strings.NewReader(c.stdin), "registry.example.com/app:1")
		switch {
		case c.want == "" && (err != nil || auth.GetUsername() != "me" || auth.GetPassword() != "pass:word"):
			t.Errorf("%+v: %v, %v", c.from, auth, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")):
			t.Errorf("%+v: %v, want %q", c.from, err, c.want)
		}
	}
	if auth, err := (&credentials{}).read(nil, "x"); auth != nil || err != nil {
		t.Errorf("without any: %v, %v", auth, err)
	}
}

func layersAt(states ...string) []*admin.LayerProgress {
	var all []*admin.LayerProgress
	for i, state := range states {
		all = append(all, &admin.LayerProgress{Digest: "sha256:" + strings.Repeat(string(rune('a'+i)), 64), Done: 1 << 20, Total: 4 << 20, State: state})
	}
	return all
}

func TestALineForEachLayerThatIsDone(t *testing.T) {
	var out bytes.Buffer
	b := newBars(&out, false)
	for _, states := range [][]string{{"waiting", "pulling"}, {"pulling", "stored"}, {"pulled", "stored"}, {"stored", "stored"}, {"stored", "stored"}} {
		b.draw(layersAt(states...))
	}
	b.draw(nil)
	if want := "layer 2 of 2  bbbbbbbbbbbbb  4 MiB  stored\nlayer 1 of 2  aaaaaaaaaaaaa  4 MiB  stored\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	newBars(&out, true).draw(layersAt("stored"))
	if out.Len() > 0 {
		t.Errorf("quiet says %q", out.String())
	}
}

func TestBarsAreDrawnOver(t *testing.T) {
	var out bytes.Buffer
	b := &bars{out: &out, rows: 10}
	b.draw(layersAt("pulling", "reused"))
	first := out.String()
	if strings.Count(first, "\n") != 3 || !strings.Contains(first, "[=======                       ] 1 MiB of 4 MiB pulling") || !strings.Contains(first, "1 of 2 layers") {
		t.Errorf("got\n%s", first)
	}
	out.Reset()
	b.draw(layersAt("stored", "reused"))
	if !strings.HasPrefix(out.String(), "\x1b[3A\x1b[J") || !strings.Contains(out.String(), "2 of 2 layers") {
		t.Errorf("then\n%q", out.String())
	}
	out.Reset()
	many := slices.Repeat([]string{"stored", "pulling"}, 50)
	(&bars{out: &out, rows: 10}).draw(layersAt(many...))
	if lines := strings.Count(out.String(), "\n"); lines > 9 || strings.Contains(out.String(), " stored") {
		t.Errorf("%d lines on a terminal of 10:\n%s", lines, out.String())
	}
	out.Reset()
	(&bars{out: &out, rows: 10}).draw([]*admin.LayerProgress{{Digest: "none\x1b[2J", Done: -5, Total: -1, State: "odd\x1b"}, {Done: 9, Total: 3, State: "pulling"}})
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("a hostile crid draws %q", out.String())
	}
}

func TestALayoutIsPackedWithoutWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	fileOf(t, filepath.Join(dir, "index.json"), "{}")
	fileOf(t, filepath.Join(dir, "blobs/sha256/x"), "content")
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "blobs/sha256/y")); err != nil {
		t.Fatal(err)
	}
	archive, err := openArchive(nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(content)
	}
	if len(got) != 2 || got["blobs/sha256/x"] != "content" || got["index.json"] != "{}" {
		t.Errorf("packed %v", got)
	}
	if err := archive.Close(); err != nil {
		t.Error(err)
	}
	if _, err := openArchive(nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "DIRECTORY/*") {
		t.Errorf("a directory of something else: %v", err)
	}
}

func TestAnArchiveThatBreaksOffIsNotWhole(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("some"), iotest.ErrReader(io.ErrUnexpectedEOF))
	var sent int
	err := sendAll(broken, func(p []byte) error { sent += len(p); return nil })
	if !errors.Is(err, io.ErrUnexpectedEOF) || sent != 4 {
		t.Errorf("%d bytes were sent, then %v", sent, err)
	}
}
