package oci

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// FuzzProbe reads any text as what a runtime prints about itself.
func FuzzProbe(f *testing.F) {
	f.Add("crun version 1.8.1\ncommit: x\nspec: 1.0.0\n", []byte(`{"ociVersionMax":"1.0.2","mountOptions":["rro"],"linux":{"namespaces":["user"]}}`))
	f.Add("runc version 1.1.5+ds1\n", []byte(`{"ociVersionMax":1}`))
	f.Add(" version ", []byte("null"))
	f.Add("runsc version release-20240101.0\nspec: \n", []byte(`{"linux":null,"mountOptions":null}`))
	f.Fuzz(func(t *testing.T, printed string, said []byte) {
		if v, err := parseVersion(printed); err == nil {
			_, _ = v.known(), v.String()
			if v.program == "" {
				t.Errorf("%q is a version of nothing", printed)
			}
		}
		if can, err := parseFeatures(said); err == nil && can.spec == "" {
			t.Errorf("%q says no version", said)
		}
	})
}

// FuzzExplain reads any text as what a runtime wrote when it failed.
func FuzzExplain(f *testing.F) {
	for _, s := range []string{
		`{"level":"error","msg":"runc create failed: unable to start container process: x"}`, "a\nb\nc\nd\ne\n", "", "\n \n",
		`{"level":"info","msg":"fine"}` + "\nplain", `{"level":"fatal"}`, `{"level":1}`, "\xff\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, written string) {
		said := Explain(written)
		if said != strings.TrimSpace(said) {
			t.Errorf("%q is explained by %q", written, said)
		}
	})
}

// FuzzProc reads any bytes as files of /proc, in which a process chooses its own name.
func FuzzProc(f *testing.F) {
	for _, file := range []string{"stat", "limits"} {
		raw, err := os.ReadFile("/proc/self/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, uint64(7))
	}
	f.Add([]byte("\n"+markLine+" 7"), uint64(7))
	f.Add([]byte(") 1 2"), uint64(0))
	f.Fuzz(func(t *testing.T, raw []byte, mark uint64) {
		markedLimits(raw, mark)
		parent := parseStatField(raw, parentField)
		if again := parseStatField(append([]byte("1 (x) Z 9 9 ) "), raw...), parentField); bytes.ContainsRune(raw, ')') && parent != again {
			t.Errorf("parent %d became %d", parent, again)
		}
	})
}
