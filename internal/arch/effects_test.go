package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// effects are the calls that change the host or the disk, by what the type checker calls them. Opening a file that is
// made by it is one as well (see makesFile). None is a signal, since who lives is looked at and never remembered, nor what
// ends with crid: what belongs to a thread, or to a descriptor that nobody else has, like a mount before it has its place.
var effects = []string{
	"os.Mkdir", "os.MkdirAll", "os.MkdirTemp", "os.Remove", "os.RemoveAll", "os.Rename", "os.Symlink", "os.Link", "os.WriteFile",
	"os.Create", "os.CreateTemp", "os.CopyFS", "os.Chmod", "os.Chown", "os.Lchown", "os.Chtimes", "os.Truncate", "os.StartProcess",
	"(*os.File).Write", "(*os.File).WriteString", "(*os.File).WriteAt", "(*os.File).Truncate", "(*os.File).Chmod", "(*os.File).Chown",
	"(*os/exec.Cmd).Start", "(*os/exec.Cmd).Run", "(*os/exec.Cmd).Output", "(*os/exec.Cmd).CombinedOutput",
	"golang.org/x/sys/unix.Mount", "golang.org/x/sys/unix.Unmount", "golang.org/x/sys/unix.MoveMount",
	"golang.org/x/sys/unix.Chmod", "golang.org/x/sys/unix.Chown", "golang.org/x/sys/unix.Lchown", "golang.org/x/sys/unix.Write",
	"golang.org/x/sys/unix.Rmdir", "golang.org/x/sys/unix.Mkdir", "golang.org/x/sys/unix.Mkdirat", "golang.org/x/sys/unix.Mknod", "golang.org/x/sys/unix.Mknodat",
	"golang.org/x/sys/unix.Rename", "golang.org/x/sys/unix.Renameat", "golang.org/x/sys/unix.Renameat2",
	"golang.org/x/sys/unix.Unlink", "golang.org/x/sys/unix.Unlinkat", "golang.org/x/sys/unix.Symlink", "golang.org/x/sys/unix.Symlinkat",
	"golang.org/x/sys/unix.Link", "golang.org/x/sys/unix.Linkat", "golang.org/x/sys/unix.Lsetxattr", "golang.org/x/sys/unix.Setxattr",
	"golang.org/x/sys/unix.Fsetxattr", "golang.org/x/sys/unix.Fchown", "golang.org/x/sys/unix.Fchownat",
	"golang.org/x/sys/unix.Fchmodat", "golang.org/x/sys/unix.Ftruncate",
	"github.com/opencontainers/selinux/go-selinux.Chcon",
	"github.com/cyphar/filepath-securejoin/pathrs-lite.MkdirAll", "github.com/cyphar/filepath-securejoin/pathrs-lite.MkdirAllHandle",
	"go.podman.io/image/v5/copy.Image", "go.podman.io/storage/drivers/copy.DirCopy",
	"net.ListenUnix",
}

// mutators are the methods of containers/storage's Store that change it, of netlink's Handle that change a network, and of
// libcni that have plugins change one.
var mutators = map[string][]string{
	"go.podman.io/storage.Store": {
		"PutLayer", "CreateLayer", "CreateImage", "CreateContainer", "Delete", "DeleteLayer", "DeleteImage", "DeleteContainer", "Wipe",
		"SetNames", "AddNames", "RemoveNames", "SetImageBigData", "SetLayerBigData", "SetContainerBigData", "SetMetadata", "Repair",
		"ApplyDiff", "Mount", "Unmount", "MountImage", "UnmountImage", "GarbageCollect",
	},
	"*github.com/vishvananda/netlink.Handle":               {"LinkSetUp", "LinkSetDown", "LinkAdd", "LinkDel", "AddrAdd", "AddrDel", "RouteAdd", "RouteDel"},
	"*github.com/containernetworking/cni/libcni.CNIConfig": {"AddNetworkList", "DelNetworkList", "GCNetworkList"},
}

// isEffect tells of a function whether a call of it changes something.
func isEffect(f *types.Func) bool {
	if slices.Contains(effects, f.FullName()) {
		return true
	}
	recv := f.Signature().Recv()
	return recv != nil && slices.Contains(mutators[recv.Type().String()], f.Name())
}

// Why side effects need no fail point of their own.
const (
	asksOnly = "it asks, and changes nothing"
	atTheEnd = "crid ends: what it leaves, the next start finds and takes as it is, as after a crash"
	onTrial  = "a trial of what the kernel can do, in a place of its own, which is cleared before"
	pointed  = "whoever calls it hits a point behind it"
	unseen   = "nobody sees what it makes before it is complete, and who makes it again makes all of it"
	again    = "whoever comes next does it again"
)

// unpointed are functions in which side effects may follow each other without a fail point, by "file:name" or
// "file:Type.name" relative to the module's root, and why. For those who call them they do nothing.
var unpointed = map[string]string{
	"cmd/crid/image_archive.go:client.saveFile":          "a command's own file, which its user sees; crid has no part in it",
	"cmd/crid/mounts.go:dropPrivate":                     atTheEnd,
	"internal/cgroup/kill.go:Tree.strike":                "signals, and cgroup.kill, which is one",
	"internal/cgroup/kill.go:killAll":                    again + ": it is for what is to die",
	"internal/cgroup/make.go:handDown":                   again,
	"internal/lsm/apparmor.go:parser.Load":               again + ": each create looks whether the profile is loaded",
	"internal/lsm/selinux.go:policy.Relabel":             again + ": each start does; no machine of the tests has SELinux",
	"internal/monitor/attach.go:Process.resize":          "nobody remembers the size of a terminal",
	"internal/monitor/interrupted.go:openNew":            again + ": each reopening does",
	"internal/monitor/interrupted.go:Process.abandon":    again + ": what it leaves, the next reopening or look at the logs takes away",
	"internal/monitor/logwatch.go:logWatch.settle":       again + ": the next look does, and reconcile has its points",
	"internal/monitor/lostlog.go:Launcher.note":          again + ": the next look does, and a torn note is none",
	"internal/state/reserve.go:reserve.giveFor":          again + ": each start fills the reserve anew",
	"internal/monitor/logwatch.go:endLine":               "nobody remembers it: it is done anew at a log that a full disk stops",
	"internal/network/gc.go:CNI.gcVerb":                  "libcni calls plugins, and each call has points of its own",
	"internal/oci/oci.go:Runtime.sweep":                  again + ": it is for a runtime that was killed amid its delete",
	"internal/storage/image_lease.go:Images.dropLayers":  again + ": the collector's next round does",
	"internal/storage/layer_files.go:layerFiles.add":     unseen,
	"internal/storage/layer_files.go:layerFiles.dir":     unseen,
	"internal/storage/layer_files.go:layerFiles.link":    unseen,
	"internal/storage/layer_files.go:layerFiles.regular": unseen,
	"internal/storage/layer_files.go:layerFiles.special": unseen,
	"internal/storage/layer_files.go:writeAll":           unseen,
	"internal/storage/lazy.go:linking.ApplyDiff":         unseen,
	"internal/storage/lazy.go:servedLayer.PutAs":         "the layer is whole before; without the note its layer store is not told when it goes",
	"internal/storage/place.go:writeSynced":              unseen + ": it has its name when all of it is on the disk",
	"internal/storage/volume.go:mkdirFor":                unseen,
	"internal/ns/sysctl.go:writeSysctls":                 unseen,
	"internal/oci/probe.go:Runtime.ask":                  asksOnly,
	"internal/pause/pause.go:lay":                        unseen,
	"internal/sandbox/podfiles.go:makeShm":               unseen,
	"internal/storage/idmap.go:Rootfs.ProbeMapped":       onTrial,
	"internal/storage/image_check.go:Images.dropLayer":   "one call of containers/storage, the last of a repair",
	"internal/storage/images.go:Images.shutdown":         atTheEnd,
	"internal/storage/overlay.go:copyAttributes":         unseen,
	"internal/storage/overlay.go:mountByConfig":          pointed,
	"internal/storage/overlay.go:mountByOptions":         pointed,
	"internal/storage/overlay.go:Rootfs.tryMounter":      onTrial,
	"internal/storage/rootfs.go:Rootfs.shut":             atTheEnd,
	"internal/storage/spare.go:spare.give":               again + ": the spare files are made anew behind it and by each start",
}

// TestSideEffectsHaveFailPoints demands a fail point between any two side effects: test/crash kills crid at each, and a
// step that is not marked is one that nobody has tried to die behind.
func TestSideEffectsHaveFailPoints(t *testing.T) {
	used := map[string]bool{}
	rooms := loadRooms(t)
	if len(rooms) < 20 {
		t.Fatalf("found only %d rooms", len(rooms))
	}
	for _, r := range rooms {
		for _, g := range r.check() {
			if unpointed[g.function] == "" {
				t.Errorf("%s, %s: put a failpoint.Hit there", g.function, g.text)
			}
		}
		maps.Copy(used, r.spare)
	}
	for function := range unpointed {
		if !used[function] {
			t.Errorf("exception %s is no longer needed: delete it", function)
		}
	}
}

// TestEffectsExist holds the names of side effects to the libraries'.
func TestEffectsExist(t *testing.T) {
	imports := importsOf(token.NewFileSet(), listPackages(t))
	method := regexp.MustCompile(`^\(?\*?([^)]+?)\)?\.(\w+)$`)
	exists := func(of, name string) {
		if dot := strings.LastIndex(of, "."); !strings.Contains(of[strings.LastIndex(of, "/")+1:], ".") {
			if p, err := imports.Import(of); err != nil || p.Scope().Lookup(name) == nil {
				t.Errorf("there is no function %s in %s: %v", name, of, err)
			}
		} else if p, err := imports.Import(of[:dot]); err != nil {
			t.Error(err)
		} else if f, _, _ := types.LookupFieldOrMethod(p.Scope().Lookup(of[dot+1:]).Type(), true, p, name); f == nil {
			t.Errorf("%s has no method %s", of, name)
		}
	}
	for _, effect := range effects {
		parts := method.FindStringSubmatch(effect)
		exists(parts[1], parts[2])
	}
	for of, names := range mutators {
		for _, name := range names {
			exists(strings.TrimPrefix(of, "*"), name)
		}
	}
}

// listed is what `go list -export` tells of a package.
type listed struct {
	Dir, ImportPath, Export string
	GoFiles                 []string
}

// loadRooms type-checks crid's own packages.
func loadRooms(t *testing.T) []*room {
	t.Helper()
	packages, fset := listPackages(t), token.NewFileSet()
	imports := importsOf(fset, packages)
	var rooms []*room
	for _, path := range slices.Sorted(maps.Keys(packages)) {
		if rel, ours := strings.CutPrefix(path, module+"/"); ours && rel != "internal/failpoint" {
			rooms = append(rooms, loadRoom(t, fset, imports, rel, packages[path]))
		}
	}
	return rooms
}

// importsOf imports packages by what the compiler has exported of them.
func importsOf(fset *token.FileSet, packages map[string]listed) types.Importer {
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(packages[path].Export) })
}

// listPackages lists crid's own packages and all that they import.
func listPackages(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-json=Dir,ImportPath,Export,GoFiles", "./cmd/crid", "./server", "./internal/...")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
	return packages
}

func loadRoom(t *testing.T, fset *token.FileSet, imports types.Importer, dir string, p listed) *room {
	t.Helper()
	var files []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return newRoom(t, fset, imports, dir, files)
}

func newRoom(t *testing.T, fset *token.FileSet, imports types.Importer, dir string, files []*ast.File) *room {
	t.Helper()
	r := &room{dir: dir, fset: fset, files: files, info: &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
	}}
	check := types.Config{Importer: imports}
	if _, err := check.Check(dir, fset, files, r.info); err != nil {
		t.Fatal(fmt.Errorf("check %s: %w", dir, err))
	}
	return r
}

// TestCheckFindsGaps plays functions with a gap, whose names begin so, and others without.
func TestCheckFindsGaps(t *testing.T) {
	const src = `package p
import ("errors"; "os"; "github.com/crid/crid/internal/failpoint")
func GapAtEnd() error { return os.Remove("a") }
func FineAtEnd() error { err := os.Remove("a"); failpoint.Hit("x"); return err }
func GapBetween() { os.Remove("a"); os.Remove("b"); failpoint.Hit("x") }
func GapInArguments() { errors.Join(os.Remove("a"), os.Remove("b")); failpoint.Hit("x") }
func GapInLoop(all []string) { for _, a := range all { os.Remove(a) }; failpoint.Hit("x") }
func FineInLoop(all []string) { for _, a := range all { os.Remove(a); failpoint.Hit("x") } }
func GapOnOneWay(is bool) { os.Remove("a"); if is { failpoint.Hit("x") } }
func GapAmongCases(n int) { switch n { case 1: os.Remove("a"); default: failpoint.Hit("x") } }
func GapBehindSuccess() { err := os.Remove("a"); if err == nil { err = os.Remove("b") }; failpoint.Hit("x") }
func GapInDefer() { defer os.Remove("a"); failpoint.Hit("x") }
func FineInDefer() { defer failpoint.Hit("x"); os.Remove("a") }
func GapInLiteral() { f := func() { os.Remove("a"); os.Remove("b") }; f(); failpoint.Hit("x") }
func GapInGoroutine() { go func() { os.Remove("a") }() }
func FineWhenItFailed() error {
	if err := os.Mkdir("a", 0); err != nil { return errors.Join(err, os.Remove("b")) }
	failpoint.Hit("x")
	return nil
}
func FineInHelper() { helper("a"); failpoint.Hit("x") }
func GapBehindHelper() { helper("a"); helper("b"); failpoint.Hit("x") }
func GapBeforeHelper() { os.Remove("a"); closed("b") }
func GapByWay() { passed(); passed() }
func FineThatMakesNone() { os.OpenFile("a", os.O_WRONLY, 0) }
func GapThatMakes() { os.OpenFile("a", os.O_WRONLY|os.O_CREATE, 0) }
func helper(a string) { os.Remove(a) }
func closed(a string) { os.Remove(a); failpoint.Hit("x") }
func passed() { inner() }
func inner() { os.Remove("a") }
`
	packages, fset := listPackages(t), token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, g := range newRoom(t, fset, importsOf(fset, packages), "p", []*ast.File{file}).check() {
		found[strings.TrimPrefix(g.function, "p/p.go:")] = true
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && found[f.Name.Name] != strings.HasPrefix(f.Name.Name, "Gap") {
			t.Errorf("%s: found %v", f.Name.Name, found[f.Name.Name])
		}
	}
}
