package lsm

import (
	"errors"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// FuzzOptions reads any strings as SELinux options: they are refused by their field, or the labels have four parts and the
// options where they belong; and all that is reserved can be released.
func FuzzOptions(f *testing.F) {
	for _, o := range [][4]string{
		{"", "", "", ""}, {"u", "r", "own_t", "s0:c1,c2"}, {"", "", "", "s0-s15:c0.c1023"}, {"a:b", "", "", ""}, {"", "", "own_t\n", ""},
		{"", "", "container_t", "s0:c1,c1"}, {"", "", "", "SystemLow"}, {"", "", "", "s0\n"}, {"", "", "spc_t", "s99999"}, {"\xff", "\u2028", "t", ":"},
	} {
		f.Add(o[0], o[1], o[2], o[3])
	}
	f.Fuzz(func(t *testing.T, user, role, kind, level string) {
		m, s := withPolicy()
		o := &runtime.SELinuxOption{User: user, Role: role, Type: kind, Level: level}
		pod, err := m.Reserve(o)
		if err == nil {
			wantParts(t, pod, o)
			_, err = m.SELinux(pod, &runtime.LinuxContainerSecurityContext{SelinuxOptions: o, Privileged: true})
			m.Release(pod)
		}
		if err != nil && (!errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "selinux_options")) {
			t.Errorf("%v: %v", o, err)
		}
		if len(s.taken) > 0 || len(m.pods) > 0 {
			t.Errorf("%v: still reserved: %v, %v", o, s.taken, m.pods)
		}
	})
}

// wantParts checks a pod's labels against what was asked for.
func wantParts(t *testing.T, l fact.Labels, o *runtime.SELinuxOption) {
	t.Helper()
	process, file := strings.SplitN(l.Process, ":", 4), strings.SplitN(l.Mount, ":", 4)
	if len(process) != 4 || len(file) != 4 {
		t.Fatalf("labels %v", l)
	}
	for i, want := range []string{o.GetUser(), o.GetRole(), o.GetType(), o.GetLevel()} {
		if want != "" && process[i] != want {
			t.Errorf("%v: label %s", o, l.Process)
		}
	}
	if process[0] != file[0] || process[3] != file[3] || strings.ContainsAny(l.Process+l.Mount, " \n\x00") {
		t.Errorf("%v: labels %v", o, l)
	}
}
