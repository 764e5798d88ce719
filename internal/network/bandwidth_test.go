package network

import (
	"testing"

	"github.com/crid/crid/internal/errdef"
)

func TestBandwidth(t *testing.T) {
	valid := map[string]int64{
		"10M": 10e6, "1Gi": 1 << 30, "1k": 1000, "1000": 1000, "1P": 1e15, "1.5M": 1.5e6, "1e6": 1e6, "2E3": 2000,
		"1e+3": 1000, "2500000m": 2500, "+5k": 5000, ".5M": 500000, "5.k": 5000, "1000.5": 1001, "512Ki": 512 << 10,
		"1Ti": 1 << 40, "0.0000000000000000000001E": 0, "1000000000u": 1000, "1000000000000n": 1000, "100e-1k": 0,
	}
	for value, want := range valid {
		ingress, egress, err := Bandwidth(map[string]string{"kubernetes.io/ingress-bandwidth": value})
		if want == 0 {
			wantKind(t, err, errdef.Invalid, value)
			continue
		}
		if err != nil || ingress != want || egress != 0 {
			t.Errorf("%s: %d, %d, %v; want %d", value, ingress, egress, err, want)
		}
	}
	for _, value := range []string{
		"", "fast", "10 M", " 10M", "-1M", "0", "999", "999m", "1.1P", "2P", "1E", "1Pi", "1Ei", "10K", "10MB", "1/3", "0x1000",
		"1e", "e5", ".", "+", "1e99", "1e-99", "1e999999999", "1_000_000", "Inf", "NaN", "99999999999999999999999999",
	} {
		_, _, err := Bandwidth(map[string]string{"kubernetes.io/egress-bandwidth": value})
		wantKind(t, err, errdef.Invalid, "kubernetes.io/egress-bandwidth", `"`+value+`"`)
	}
	ingress, egress, err := Bandwidth(map[string]string{"kubernetes.io/egress-bandwidth": "2k", "other": "x"})
	if ingress != 0 || egress != 2000 || err != nil {
		t.Errorf("%d, %d, %v", ingress, egress, err)
	}
}

func TestBurst(t *testing.T) {
	for rate, want := range map[int64]int64{0: 0, 1000: 8 << 20, 1e9: 1e8, maxRate: 2047 * 8 << 20} {
		if got := burst(rate); got != want {
			t.Errorf("burst(%d) = %d; want %d", rate, got, want)
		}
	}
}
