package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// accounts are those of an image with the users root, web and a few broken ones.
func accounts() Accounts {
	return Accounts{
		Passwd: []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n" +
			"nohome:x:1002:1002:::\nbroken:x:-5:0::/:\nhuge:x:1:99999999999999999999::/:\n"),
		Group: []byte("root:x:0:root\nweb:x:1000:\nextra:x:50000:web,other\ndisk:x:6:web\nbad:x:-1:nohome\n"),
	}
}

// runAs is a container of the image web:1 with a security context.
func runAs(sc *runtime.LinuxContainerSecurityContext) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{Image: &runtime.ImageSpec{Image: "web:1"}, Linux: &runtime.LinuxContainerConfig{SecurityContext: sc}}
}

func id(v int64) *runtime.Int64Value { return &runtime.Int64Value{Value: v} }

func TestResolveUser(t *testing.T) {
	type sc = runtime.LinuxContainerSecurityContext
	strict := runtime.SupplementalGroupsPolicy_Strict
	for _, tc := range []struct {
		name  string
		sc    *sc
		image string
		want  User
	}{
		{"nothing", nil, "", User{Additional: []uint32{0}, Home: "/root"}},
		{"image uid without account", nil, "4711", User{UID: 4711, Additional: []uint32{0}, Home: "/"}},
		{"image name", nil, "web", User{UID: 1000, GID: 1000, Additional: []uint32{6, 1000, 50000}, Home: "/home/web"}},
		{"image uid with account", nil, "1000", User{UID: 1000, GID: 1000, Additional: []uint32{6, 1000, 50000}, Home: "/home/web"}},
		{"image name and group", nil, "web:extra", User{UID: 1000, GID: 50000, Additional: []uint32{6, 50000}, Home: "/home/web"}},
		{"image uid and gid", nil, "7:8", User{UID: 7, GID: 8, Additional: []uint32{8}, Home: "/"}},
		{"image group alone", nil, ":8", User{GID: 8, Additional: []uint32{0, 8}, Home: "/root"}},
		{"CRI uid beats the image's user and group", &sc{RunAsUser: id(1001)}, "web:extra", User{UID: 1001, Additional: []uint32{0}, Home: "/"}},
		{"CRI uid 0 beats the image", &sc{RunAsUser: id(0)}, "web", User{Additional: []uint32{0}, Home: "/root"}},
		{"CRI name", &sc{RunAsUsername: "web"}, "", User{UID: 1000, GID: 1000, Additional: []uint32{6, 1000, 50000}, Home: "/home/web"}},
		{"CRI uid and gid", &sc{RunAsUser: id(1001), RunAsGroup: id(1002)}, "", User{UID: 1001, GID: 1002, Additional: []uint32{1002}, Home: "/"}},
		{"merge", &sc{SupplementalGroups: []int64{1234, 1234}}, "1000", User{UID: 1000, GID: 1000, Additional: []uint32{6, 1000, 1234, 50000}, Home: "/home/web"}},
		{"strict", &sc{SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: strict}, "1000", User{UID: 1000, GID: 1000, Additional: []uint32{1000, 1234}, Home: "/home/web"}},
		{"no home", &sc{SupplementalGroupsPolicy: strict}, "nohome", User{UID: 1002, GID: 1002, Additional: []uint32{1002}, Home: "/"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ResolveUser(accounts(), runAs(tc.sc), tc.image)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// What the kubelet is told of an image's user is what its container runs as: +5 is a name, which may be root's.
func TestImageUser(t *testing.T) {
	for _, c := range []struct {
		user, name string
		uid        int64 // -1 = none
	}{
		{"", "", -1}, {"1002", "", 1002}, {"0", "", 0}, {"00", "", 0}, {"1003:1004", "", 1003}, {"www-data", "www-data", -1},
		{"www-data:1004", "www-data", -1}, {":5", "", -1}, {"+5", "+5", -1}, {"-5", "-5", -1}, {"0x5", "0x5", -1},
		{"2147483647", "", maxID}, {"2147483648", "2147483648", -1}, {"99999999999999999999:0", "99999999999999999999", -1},
	} {
		uid, name := ImageUser(c.user)
		got := int64(-1)
		if uid != nil {
			got = *uid
		}
		if got != c.uid || name != c.name {
			t.Errorf("%q: got %d, %q", c.user, got, name)
		}
	}
}

// A file of a million groups costs what the kernel allows of them, and no more.
func TestGroupsWithoutEnd(t *testing.T) {
	var same, other strings.Builder
	for i := range 1 << 17 {
		same.WriteString("g:x:7:web\n")
		fmt.Fprintf(&other, "g:x:%d:web\n", i)
	}
	a := accounts()
	a.Group = []byte(same.String())
	if u, err := ResolveUser(a, nil, "web"); err != nil || !slices.Equal(u.Additional, []uint32{7, 1000}) {
		t.Errorf("one group again and again: %v, %v", u.Additional, err)
	}
	a.Group = []byte(other.String())
	_, err := ResolveUser(a, nil, "web")
	refused(t, err, errdef.Invalid, "Linux allows 65536")
}

func TestResolveUserWithoutFiles(t *testing.T) {
	got, err := ResolveUser(Accounts{}, nil, "1:2")
	if d := cmp.Diff(User{UID: 1, GID: 2, Additional: []uint32{2}, Home: "/"}, got); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}

func TestResolveUserRefuses(t *testing.T) {
	type sc = runtime.LinuxContainerSecurityContext
	for _, tc := range []struct {
		name  string
		sc    *sc
		image string
		kind  error
		words string
	}{
		{"unknown name", nil, "ghost", errdef.Invalid, `image web:1: User: user "ghost"`},
		{"unknown group", nil, "web:ghosts", errdef.Invalid, `image web:1: User: group "ghosts"`},
		{"unknown CRI name", &sc{RunAsUsername: "ghost"}, "web", errdef.Invalid, `linux.security_context.run_as_username: user "ghost"`},
		{"negative uid", nil, "-1", errdef.Invalid, `user "-1"`},
		{"uid beyond range", nil, "4294967296", errdef.Invalid, "4294967296"},
		{"gid beyond range", nil, "7:99999999999999999999", errdef.Invalid, "99999999999999999999"},
		{"account with a negative uid", nil, "broken", errdef.Invalid, `"broken"`},
		{"account with a huge gid", nil, "huge", errdef.Invalid, `"huge"`},
		{"member of a group with a negative gid", nil, "nohome", errdef.Invalid, `"bad"`},
		{"group without user", &sc{RunAsGroup: id(5)}, "web", errdef.Invalid, "run_as_group needs"},
		{"uid and name", &sc{RunAsUser: id(5), RunAsUsername: "web"}, "", errdef.Invalid, "exclude each other"},
		{"negative CRI uid", &sc{RunAsUser: id(-5)}, "", errdef.Invalid, "run_as_user: -5"},
		{"CRI gid beyond range", &sc{RunAsUser: id(5), RunAsGroup: id(1 << 31)}, "", errdef.Invalid, "run_as_group: 2147483648"},
		{"supplemental group beyond range", &sc{SupplementalGroups: []int64{1, -2}}, "", errdef.Invalid, "supplemental_groups[1]"},
		{"unknown policy", &sc{SupplementalGroupsPolicy: 9}, "", errdef.Invalid, "supplemental_groups_policy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ResolveUser(accounts(), runAs(tc.sc), tc.image)
			refused(t, err, tc.kind, tc.words)
		})
	}
	long := Accounts{Passwd: []byte("x:" + strings.Repeat("y", 1<<20) + ":1:1::/:\n")}
	_, err := ResolveUser(long, nil, "x")
	refused(t, err, errdef.Invalid, "/etc/passwd")
}

func FuzzResolveUser(f *testing.F) {
	a := accounts()
	for _, u := range []string{"", "web", "1000:extra", ":", "-1", "broken", "nohome:0"} {
		f.Add(a.Passwd, a.Group, u)
	}
	f.Fuzz(func(t *testing.T, passwd, group []byte, imageUser string) {
		u, err := ResolveUser(Accounts{Passwd: passwd, Group: group}, nil, imageUser)
		if err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		if u.UID > maxID || u.GID > maxID || !slices.IsSorted(u.Additional) || !slices.Contains(u.Additional, u.GID) {
			t.Errorf("user %+v", u)
		}
		if !strings.HasPrefix(u.Home, "/") {
			t.Errorf("home %q", u.Home)
		}
	})
}
