package spec

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/bundle"
	"github.com/crid/crid/test/isolate"
)

func TestMain(m *testing.M) { isolate.Tests(m.Run) }

// trial is one container: what is asked for, a script that it runs, and what the script has to print.
type trial struct {
	name   string
	edit   func(*testing.T, *Input)
	script string
	want   string
}

// credentials prints what the kernel says of the container's first process, in a fixed order.
const credentials = `
grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/$$/status | tr -s '\t ' '  '
`

// report adds its rank for the OOM killer and its working directory.
const report = credentials + `
echo oom $(cat /proc/$$/oom_score_adj)
echo cwd $(pwd)
`

// The default capabilities as the kernel prints them.
const (
	defaultMask = "00000000a80425fb"
	noMask      = "0000000000000000"
)

func processTrials() []trial {
	return []trial{
		{
			name: "plain",
			edit: func(_ *testing.T, in *Input) {
				in.Config.Linux.Resources.OomScoreAdj = 500
				in.Config.WorkingDir = "/made/by/runtime"
			},
			script: report,
			want: "Uid: 0 0 0 0\nGid: 0 0 0 0\nGroups: 0 \nCapInh: " + noMask + "\nCapPrm: " + defaultMask + "\nCapEff: " +
				defaultMask + "\nCapBnd: " + defaultMask + "\nCapAmb: " + noMask + "\nNoNewPrivs: 0\nSeccomp: 0\noom 500\ncwd /made/by/runtime\n",
		},
		{
			name: "locked",
			edit: func(_ *testing.T, in *Input) {
				in.User = User{UID: 1000, GID: 1001, Additional: []uint32{1001, 2000}}
				sc := security(in)
				sc.NoNewPrivs, sc.ReadonlyRootfs, sc.MaskedPaths = true, true, []string{"/bin/secret"}
				sc.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
				in.Seccomp = forbid("chmod", "fchmodat")
			},
			script: report + "touch /x\nchmod 700 /tmp\ncat /bin/secret\ntouch /proc/sys/kernel/domainname\n",
			want: "Uid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\nGroups: 1001 2000 \nCapInh: " + noMask + "\nCapPrm: " +
				noMask + "\nCapEff: " + noMask + "\nCapBnd: " + noMask + "\nCapAmb: " + noMask +
				"\nNoNewPrivs: 1\nSeccomp: 2\noom 0\ncwd /\n" +
				"touch: /x: Read-only file system\nchmod: /tmp: Function not implemented\n" +
				"touch: /proc/sys/kernel/domainname: Read-only file system\n",
		},
		{
			name: "environment",
			edit: func(_ *testing.T, in *Input) {
				in.Config.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("b c")}, {Key: "UTF8", Value: []byte("\u20ac")}}
			},
			script: "tr '\\0' '\\n' < /proc/$$/environ\nulimit -n\n",
			want: "PATH=" + defaultPath + "\nHOSTNAME=web-0\nA=b c\nUTF8=\u20ac\nHOME=/root\n" +
				ownOpenFiles() + "\n",
		},
	}
}

func hostTrials() []trial {
	return []trial{
		{
			name:   "mounts",
			edit:   editRealMounts,
			script: "touch /x /vol/x /ro/x /ro/sub/x /rw/x /etc/hosts /dev/shm/x\nls /vol /ro/sub /rw\nhead -1 /etc/hosts\n",
			want: "touch: /x: Read-only file system\ntouch: /ro/x: Read-only file system\ntouch: /etc/hosts: Read-only file system\n" +
				"/ro/sub:\nx\n\n/rw:\nx\n\n/vol:\nx\n127.0.0.1 localhost\n",
		},
		{
			name: "recursive read-only",
			edit: func(t *testing.T, in *Input) {
				editRealMounts(t, in)
				in.Handler.RecursiveReadOnly = true
				for _, m := range in.Config.Mounts {
					m.RecursiveReadOnly = m.Readonly
				}
			},
			script: "touch /ro/sub/x /rw/x\n",
			want:   "touch: /ro/sub/x: Read-only file system\n",
		},
		{
			name: "privileged",
			edit: func(_ *testing.T, in *Input) {
				editPrivileged(in)
				in.Devices = []Device{{LinuxDevice: specs.LinuxDevice{Path: "/dev/extra", Type: "c", Major: 1, Minor: 5}}}
			},
			script: "grep -c '^Seccomp:.0' /proc/$$/status\nhead -c 2 /dev/extra | wc -c\n" +
				"grep -cE ' /sys/fs/cgroup ro,| /sys ro,' /proc/self/mountinfo\n",
			want: "1\n2\n0\n",
		},
		{
			name: "device",
			edit: func(_ *testing.T, in *Input) {
				security(in).Capabilities = &runtime.Capability{AddCapabilities: []string{"SYSLOG"}}
				in.Devices = []Device{{Access: "r", LinuxDevice: specs.LinuxDevice{Path: "/dev/log", Type: "c", Major: 1, Minor: 11}}}
			},
			script: "head -c 0 /dev/log && echo read\n(echo > /dev/log) 2>/dev/null || echo not written\n",
			want:   "read\nnot written\n",
		},
		{
			name: "limits",
			edit: func(_ *testing.T, in *Input) {
				editResources(in)
				in.Config.Linux.Resources.Unified = nil // of v2 alone
			},
			script: "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max\n",
			want:   "67108864\n",
		},
	}
}

// TestRuntimes shows that the runtimes at hand accept what Build makes, and do what it says.
func TestRuntimes(t *testing.T) {
	isolate.NeedRoot(t, "it runs containers")
	host := realHost(t)
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			binary, err := exec.LookPath(name)
			if err != nil {
				isolate.Lacking(t, name)
			}
			for _, tr := range slices.Concat(processTrials(), hostTrials()) {
				t.Run(tr.name, func(t *testing.T) { try(t, tr, binary, host) })
			}
			t.Run("pause", func(t *testing.T) { testPause(t, binary, host) })
			t.Run("propagation", func(t *testing.T) { testPropagation(t, binary, host) })
		})
	}
}

func try(t *testing.T, tr trial, binary string, host fact.Host) {
	in := realInput(t, host)
	tr.edit(t, &in)
	in.Config.Command = []string{"/bin/sh", "-c", "exec 2>&1\n" + tr.script}
	if err := ValidateContainer(in.Config, in.Pod.Config); err != nil {
		t.Fatal(err)
	}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, binary, s); got != tr.want {
		t.Errorf("the container printed\n%s\nwant\n%s", got, tr.want)
	}
}

func testPause(t *testing.T, binary string, host fact.Host) {
	in := realInput(t, host)
	script := "#!/bin/sh\nexec 2>&1\n" + credentials + "touch /x\necho pid $$\nls /sys\n"
	if err := os.WriteFile(filepath.Join(in.Rootfs, "pause"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := BuildPause(in)
	if err != nil {
		t.Fatal(err)
	}
	ids := " 65535 65535 65535 65535\n"
	want := "Uid:" + ids + "Gid:" + ids + "Groups: 65535 \nCapInh: " + noMask + "\nCapPrm: " + noMask + "\nCapEff: " + noMask +
		"\nCapBnd: " + noMask + "\nCapAmb: " + noMask + "\nNoNewPrivs: 1\nSeccomp: 0\ntouch: /x: Read-only file system\npid 1\n"
	if got := run(t, binary, s); got != want {
		t.Errorf("the pause printed\n%s\nwant\n%s", got, want)
	}
	left, err := os.ReadDir(filepath.Join(in.Rootfs, "dev"))
	if err != nil || len(left) != 0 {
		t.Errorf("the runtime left %v in the shared root's /dev (%v)", left, err)
	}
}

// testPropagation has a container mount something under a shared, a slave and a private mount: only what is under
// the shared one appears outside.
func testPropagation(t *testing.T, binary string, host fact.Host) {
	in := realInput(t, host)
	editPrivileged(&in)
	source := t.TempDir()
	if err := errors.Join(unix.Mount("tmpfs", source, "tmpfs", 0, ""), unix.Mount("", source, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(source, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	script := "exec 2>&1\n"
	for _, mode := range []runtime.MountPropagation{0, 1, 2} {
		dir := filepath.Join(source, mode.String())
		if err := os.MkdirAll(filepath.Join(dir, "in"), 0o755); err != nil {
			t.Fatal(err)
		}
		m := &runtime.Mount{ContainerPath: "/" + mode.String(), HostPath: dir, Propagation: mode}
		in.Config.Mounts = append(in.Config.Mounts, m)
		in.Mounts = append(in.Mounts, Mount{Mount: m, Source: dir})
		script += "mount -t tmpfs made /" + mode.String() + "/in\n"
	}
	in.Config.Command = []string{"/bin/sh", "-c", script}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, binary, s); got != "" {
		t.Fatalf("the container printed %s", got)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for mode, name := range runtime.MountPropagation_name {
		want := mode == int32(runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL)
		if got := bytes.Contains(mounts, []byte(filepath.Join(source, name, "in")+" ")); got != want {
			t.Errorf("%s: a mount made in the container is seen outside: %t, want %t", name, got, want)
		}
	}
}

// run runs s to its end and answers what it printed.
func run(t *testing.T, binary string, s *specs.Spec) string {
	t.Helper()
	bundle, id := t.TempDir(), "crid-test-"+strconv.Itoa(os.Getpid())
	config, err := Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--root", t.TempDir(), "run", "--bundle", bundle, id)
	cmd.WaitDelay = time.Second
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if problems.Len() > 0 {
		t.Fatalf("%s: %s\n%s", binary, problems.String(), config)
	}
	return out.String()
}

// realHost looks at this machine as far as Build asks.
func realHost(t *testing.T) fact.Host {
	t.Helper()
	host := fact.Host{Cgroup: fact.CgroupV2, Controllers: []string{"cpu", "cpuset", "memory"}}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		host.Cgroup = fact.CgroupHybrid
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, mask, _ := strings.Cut(string(status), "CapEff:\t")
	caps, err := strconv.ParseUint(mask[:16], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	host.Capabilities = caps
	host.RaiseLimits = caps&(1<<unix.CAP_SYS_RESOURCE) != 0
	return host
}

// realInput is an example on a root filesystem of this machine's busybox, in the test's own namespaces.
func realInput(t *testing.T, host fact.Host) Input {
	t.Helper()
	t.Cleanup(func() { wantNoCgroups(t) })
	dir := t.TempDir()
	in := example()
	in.Host, in.Rootfs, in.Cgroup = host, makeRootfs(t), isolate.CgroupParent()+"/crid-c0ffee"
	in.Config.Linux.Resources.MemoryLimitInBytes = 128 << 20
	in.Pod.NetNS, in.Pod.IPCNS, in.Pod.UTSNS, in.Pod.Shm = "", "", "", t.TempDir()
	for name, file := range map[string]*string{
		"hostname": &in.Pod.HostnameFile, "resolv.conf": &in.Pod.ResolvConf, "hosts": &in.Pod.Hosts,
	} {
		*file = filepath.Join(dir, name)
		if err := os.WriteFile(*file, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

func editRealMounts(t *testing.T, in *Input) {
	dir := filepath.Dir(in.Pod.Hosts)
	sub := filepath.Join(dir, "ro", "sub")
	for _, d := range []string{sub, filepath.Join(dir, "rw"), filepath.Join(dir, "vol")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(sub, 0); err != nil {
			t.Error(err)
		}
	})
	for name, readonly := range map[string]bool{"ro": true, "rw": false} {
		m := &runtime.Mount{ContainerPath: "/" + name, HostPath: filepath.Join(dir, name), Readonly: readonly}
		in.Config.Mounts = append(in.Config.Mounts, m)
		in.Mounts = append(in.Mounts, Mount{Mount: m, Source: m.HostPath})
	}
	in.Volumes = []Volume{{Source: filepath.Join(dir, "vol"), Destination: "/vol"}}
	security(in).ReadonlyRootfs = true
}

// makeRootfs is bundle's root filesystem with mount points, and a program to be masked.
func makeRootfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	err := errors.Join(os.Chmod(root, 0o755), bundle.Rootfs(root))
	for _, d := range []string{"etc", "ro", "rw", "vol"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(root, d), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "bin", "busybox"), filepath.Join(root, "bin", "secret")); err != nil {
		t.Fatal(err)
	}
	return root
}

// wantNoCgroups checks that the runtime has removed the container's cgroups.
func wantNoCgroups(t *testing.T) {
	t.Helper()
	if left, err := isolate.Cgroups(isolate.CgroupParent()); err != nil || len(left) > 0 {
		t.Errorf("left behind: cgroups %q, %v", left, err)
	}
}

// forbid is a profile that lets everything pass but the named calls, which answer ENOSYS.
func forbid(calls ...string) *specs.LinuxSeccomp {
	enosys := uint(unix.ENOSYS)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: calls, Action: specs.ActErrno, ErrnoRet: &enosys}},
	}
}

// ownOpenFiles is what `ulimit -n` has to print in a container that got no limits of its own. The Go runtime
// raises the soft limit of a test to the hard one, and gives the old one back to what it starts.
func ownOpenFiles() string {
	out, err := exec.Command("sh", "-c", "ulimit -n").Output()
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(out))
}
