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
		{credentials{passwordStdin: true}, "pass", "--username"},
		{credentials{username: "me"}, "pass:word", "--password-stdin"},
		{credentials{authfile: filepath.Join(dir, "absent")}, "", "no such file"},
		{credentials{authfile: fileOf(t, filepath.Join(dir, "empty"), "{}")}, "", "no credentials for registry.example.com"},
		{credentials{authfile: pair}, "", "read credentials"},
	} {
		auth, err := c.from.read(t.Context(), keyboard{strings.NewReader(c.stdin), io.Discard}, "registry.example.com/app:1")
		switch {
		case c.want == "" && (err != nil || auth.GetUsername() != "me" || auth.GetPassword() != "pass:word"):
			t.Errorf("%+v: %v, %v", c.from, auth, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")):
			t.Errorf("%+v: %v, want %q", c.from, err, c.want)
		}
	}
	if auth, err := (&credentials{}).read(t.Context(), keyboard{}, "x"); auth != nil || err != nil {
		t.Errorf("without any: %v, %v", auth, err)
	}
}

func layersAt(states ...string) *admin.Progress {
	var all []*admin.LayerProgress
	for i, state := range states {
		all = append(all, &admin.LayerProgress{Digest: "sha256:" + strings.Repeat(string(rune('a'+i)), 64), Done: 1 << 20, Total: 4 << 20, State: state})
	}
	return &admin.Progress{Layers: all}
}

// window is a terminal of this size.
func window(out io.Writer, columns, rows int) *bars {
	return &bars{out: out, size: func() (int, int) { return columns, rows }}
}

func TestALineForEachLayerThatIsDone(t *testing.T) {
	var out bytes.Buffer
	b := newBars(&out, false)
	for _, states := range [][]string{{"waiting", "pulling"}, {"pulling", "stored"}, {"pulled", "stored"}, {"stored", "stored"}, {"stored", "stored"}} {
		b.draw(layersAt(states...))
	}
	b.draw(nil)
	b.sending(1, 2) // which is no line
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
	b := window(&out, 80, 10)
	b.draw(layersAt("pulling", "reused"))
	first := out.String()
	if strings.Count(first, "\n") != 3 || !strings.Contains(first, "[=======                       ] 1 MiB of 4 MiB pulling") || !strings.Contains(first, "1 of 2 layers") {
		t.Errorf("got\n%s", first)
	}
	out.Reset()
	b.draw(layersAt("stored", "reused"))
	if !strings.HasPrefix(out.String(), "\x1b[3A\r\x1b[J") || !strings.Contains(out.String(), "2 of 2 layers") {
		t.Errorf("then\n%q", out.String())
	}
	out.Reset()
	many := slices.Repeat([]string{"stored", "pulling"}, 50)
	window(&out, 80, 10).draw(layersAt(many...))
	if lines := strings.Count(out.String(), "\n"); lines > 9 || strings.Contains(out.String(), " stored") {
		t.Errorf("%d lines on a terminal of 10:\n%s", lines, out.String())
	}
	out.Reset()
	window(&out, 80, 10).draw(&admin.Progress{Image: "\x1b[2J", Layers: []*admin.LayerProgress{{Digest: "none\x1b[2J", Done: -5, Total: -1, State: "odd\x1b"}, {Done: 9, Total: 3, State: "pulling"}}})
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("a hostile crid draws %q", out.String())
	}
}

func TestBarsFitTheWindow(t *testing.T) {
	var out bytes.Buffer
	columns := 80
	b := &bars{out: &out, size: func() (int, int) { return columns, 10 }, words: map[string]string{"pulling": "loading"}}
	b.draw(layersAt("pulling", "waiting"))
	if !strings.Contains(out.String(), " loading\n") {
		t.Errorf("in words of its own\n%s", out.String())
	}
	out.Reset()
	columns = 40 // each of the two bars takes two lines now
	b.draw(layersAt("pulling", "waiting"))
	if !strings.HasPrefix(out.String(), "\x1b[5A\r\x1b[J") {
		t.Errorf("after the window became narrow\n%q", out.String())
	}
	for line := range strings.Lines(strings.TrimPrefix(out.String(), "\x1b[5A\r\x1b[J")) {
		if len(line) > columns {
			t.Errorf("%q is %d characters long", line, len(line))
		}
	}
	out.Reset()
	columns = 1
	b.draw(layersAt("stored", "stored"))
	columns = 80
	out.Reset()
	b.draw(layersAt("stored", "stored"))
	if !strings.HasPrefix(out.String(), "\x1b[3A\r\x1b[J") {
		t.Errorf("after the window became wide\n%q", out.String())
	}
}

func TestEachImageOfAnArchiveHasItsBars(t *testing.T) {
	var out bytes.Buffer
	b := window(&out, 80, 10)
	b.sending(1<<20, 4<<20)
	b.sending(2<<20, 4<<20) // too soon to be drawn
	b.sending(4<<20, 4<<20)
	if got := out.String(); strings.Count(got, "sent") != 2 || !strings.Contains(got, "\x1b[1A\r\x1b[Jarchive       [==============================] 4 MiB of 4 MiB sent\n") {
		t.Errorf("sent:\n%q", got)
	}
	for _, image := range []string{"a:1", "b:1"} {
		out.Reset()
		p := layersAt("pulling")
		p.Image = image
		b.draw(p)
		if !strings.HasPrefix(out.String(), image+"\nbbb") && !strings.HasPrefix(out.String(), image+"\naaa") {
			t.Errorf("of another image:\n%q", out.String())
		}
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
	archive, err := openArchive(nil, dir, func(int64, int64) {})
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
	if _, err := openArchive(nil, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "DIRECTORY/*") {
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
