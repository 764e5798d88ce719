package storage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/crid/crid/internal/errdef"
)

// An image has as many layers as an overlay can have, however they came into the store.
func TestLayersOnOneAnother(t *testing.T) {
	s := newWorld(t).open(t)
	parent := ""
	put := func(b *boundedStore, id string) error {
		_, _, err := b.PutLayer(id, parent, nil, "", false, nil, bytes.NewReader(packed(t, file(id, ""))))
		if err == nil {
			parent = id
			t.Cleanup(func() { check(t, s.store.DeleteLayer(id)) }) // the topmost first
		}
		return err
	}
	for i, id := range []string{strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)} {
		b := bounded(s.store) // a pull of its own
		b.most = 2
		if err := put(b, id); (err == nil) != (i < 2) || err != nil && !errors.Is(err, errdef.Invalid) {
			t.Errorf("layer %d: %v", i+1, err)
		}
	}
}

// FuzzBounds reads any bytes as a layer: it is handed on as it is, all of it unless it breaks a bound.
func FuzzBounds(f *testing.F) {
	f.Add(packed(f, file("a", "b"), file("c", "")), 7)
	f.Add(sparse(), 512)
	f.Add(packed(f, entryOf{tar.Header{Name: "a", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"CRID.a": "b"}}, ""}, special(tar.TypeLink, "l", "a")), 1)
	f.Add(append(packed(f, file("a", "b")), "behind the end"...), 10240)
	f.Add([]byte("no archive"), 3)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		b := newBounds(iotest.DataErrReader(bytes.NewReader(raw)))
		defer b.close()
		var got bytes.Buffer
		_, err := io.CopyBuffer(&got, struct{ io.Reader }{b}, make([]byte, 1+max(step, -step-1)%(64<<10)))
		if err == nil && !bytes.Equal(got.Bytes(), raw) || !bytes.HasPrefix(raw, got.Bytes()) {
			t.Errorf("%q was handed on as %q", raw, got.Bytes())
		}
		if (err != nil) != (b.fault != nil) {
			t.Errorf("error %v, fault %v", err, b.fault)
		}
	})
}

// BenchmarkBounds is what looking at a layer costs, of files of 16 KiB.
func BenchmarkBounds(b *testing.B) {
	var entries []entryOf
	content := string(bytes.Repeat([]byte("x"), 16<<10))
	for range 1000 {
		entries = append(entries, file("name", content))
	}
	raw := packed(b, entries...)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		bounds := newBounds(bytes.NewReader(raw))
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{bounds}, make([]byte, 32<<10)); err != nil {
			b.Fatal(err)
		}
		bounds.close()
	}
}
