package state

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// FuzzRecord reads any bytes as a record's file: it is told by its name what it is, or is a record that can be written
// and read again as it was.
func FuzzRecord(f *testing.F) {
	for _, s := range []string{
		"", "{}", "null", `{"version":1}`, `{"version":1,"record":{}}`, `{"version":1,"record":null}`, `{"version":2,"record":{}}`,
		`{"version":1,"record":{"Name":"a","At":"2026-01-02T03:04:05Z","Deep":{"a":{"b":1}}}} x`, `{"version":1,"record":{"At":"never"}}`,
		`{"version":"1","record":[]}`, `{"record":{"Name":"\ud800"},"version":1,"version":1}`,
	} {
		f.Add([]byte(s))
	}
	type deep struct {
		Name string
		At   time.Time
		Deep map[string]map[string]int
		List []*int
	}
	dir := f.TempDir()
	d, err := Open[deep](dir, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, "a.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		for e, err := range d.All() {
			if err != nil {
				if e.ID != "a" || !strings.Contains(err.Error(), "a.json") || !reflect.ValueOf(e.Record).IsZero() {
					t.Errorf("%+v: %v", e, err)
				}
				continue
			}
			if err := d.Put("a", e.Record); err != nil {
				t.Errorf("%+v was read and cannot be written: %v", e.Record, err)
			}
			if again, err := d.read("a"); err != nil || !reflect.DeepEqual(again, e.Record) {
				t.Errorf("%+v became %+v, %v", e.Record, again, err)
			}
		}
	})
}
