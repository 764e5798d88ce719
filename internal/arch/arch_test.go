// Package arch tests the rules of the house: who may import whom, how large things may grow, how packages
// introduce themselves. It knows the code only as text and syntax.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/crid/crid"
	root   = "../.."
)

// rooms says which of crid's own packages a package may import: docs/HACKING.md draws the picture. Packages
// that are not named may import anyImporter. "*" is everything.
var rooms = map[string][]string{
	"cmd/crid":  {"*"},
	"cmd/pause": {"internal/asm"},
	"server": {
		"internal/sandbox", "internal/container", "internal/storage", "internal/stats", "internal/stream",
		"internal/event", "internal/oci/spec", "internal/admin",
	},
	"internal/sandbox": {
		"internal/container", "internal/network", "internal/ns", "internal/cgroup", "internal/oci/spec",
		"internal/state", "internal/event",
	},
	"internal/container": {
		"internal/oci", "internal/oci/spec", "internal/monitor", "internal/storage", "internal/cgroup",
		"internal/state", "internal/event", "internal/launch",
	},
	"internal/launch": {"internal/asm"},
	"internal/stats":  {"internal/cgroup"},
}

// alone may import nothing of crid's.
var alone = []string{"internal/config", "internal/fact", "internal/errdef", "internal/turn", "internal/step", "internal/failpoint"}

// anyImporter may be imported by every room but those that stand alone.
var anyImporter = []string{"internal/errdef", "internal/fact", "internal/turn", "internal/step", "internal/failpoint"}

func TestRoomsImportOnlyTheirNeighbours(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "./cmd/...", "./server/...", "./internal/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 10 {
		t.Fatalf("go list found only %d packages", len(lines))
	}
	for _, line := range lines {
		path, imports, _ := strings.Cut(line, ":")
		importer := strings.TrimPrefix(path, module+"/")
		for _, imp := range strings.Fields(imports) {
			imported, ours := strings.CutPrefix(imp, module+"/")
			if ours && !mayImport(importer, imported) {
				t.Errorf("%s imports %s: the house rules do not allow it (docs/HACKING.md, Rooms)", importer, imported)
			}
		}
	}
}

func mayImport(importer, imported string) bool {
	if slices.Contains(alone, importer) {
		return false
	}
	if imported == "internal/config" {
		return importer == "cmd/crid"
	}
	allowed := rooms[importer]
	return slices.Contains(allowed, "*") || slices.Contains(allowed, imported) || slices.Contains(anyImporter, imported)
}

func TestMayImport(t *testing.T) {
	for _, c := range []struct {
		importer, imported string
		want               bool
	}{
		{"server", "internal/sandbox", true},
		{"server", "internal/network", false},
		{"internal/ns", "internal/fact", true},
		{"internal/ns", "internal/cgroup", false},
		{"internal/ns", "internal/failpoint", true},
		{"internal/failpoint", "internal/fact", false},
		{"internal/container", "internal/sandbox", false},
		{"internal/fact", "internal/errdef", false},
		{"internal/config", "internal/errdef", false},
		{"internal/sandbox", "internal/config", false},
		{"cmd/crid", "internal/config", true},
	} {
		if got := mayImport(c.importer, c.imported); got != c.want {
			t.Errorf("mayImport(%s, %s) = %v", c.importer, c.imported, got)
		}
	}
}

// The limits of docs/STYLE.md.
const (
	maxFunc      = 60 // lines of a function, comments and all
	maxParams    = 5
	maxFile      = 500
	maxFields    = 15
	maxInterface = 5
)

// exceptions are sizes that a reason excuses, by "file:name" relative to the module's root.
var exceptions = map[string]string{
	"internal/stream/session.go:ExecInContainer": "remotecommand.Executor has these parameters",
	"internal/stream/session.go:AttachContainer": "remotecommand.Attacher has these parameters",
	"internal/storage/layer_bounds.go:PutLayer":  "the Store of containers/storage has these parameters",
}

// source is one parsed file of ours.
type source struct {
	path string // relative to the module's root
	fset *token.FileSet
	file *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		all = append(all, source{rel, fset, file})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found only %d files", len(all))
	}
	return all
}

func (s source) lines(n ast.Node) int {
	return s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
}

func TestSizes(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		for name, complaint := range s.oversized() {
			key := filepath.ToSlash(s.path) + ":" + name
			if exceptions[key] != "" {
				used[key] = true
				continue
			}
			t.Errorf("%s %s: split it, or name the type that is missing (docs/STYLE.md)", key, complaint)
		}
	}
	for key := range exceptions {
		if !used[key] {
			t.Errorf("exception %s is no longer needed: delete it", key)
		}
	}
}

// oversized maps the name of each thing in the file that breaks a limit to what is wrong with it.
func (s source) oversized() map[string]string {
	found := map[string]string{}
	if s.fset.File(s.file.Pos()).LineCount() > maxFile {
		found["file"] = "is longer than 500 lines"
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if s.lines(n)-s.tableLines(n) > maxFunc {
				found[n.Name.Name] = "is longer than 60 lines"
			}
			if n.Type.Params.NumFields() > maxParams {
				found[n.Name.Name] = "has more than 5 parameters"
			}
		case *ast.TypeSpec:
			switch typ := n.Type.(type) {
			case *ast.StructType:
				if typ.Fields.NumFields() > maxFields {
					found[n.Name.Name] = "has more than 15 fields"
				}
			case *ast.InterfaceType:
				if typ.Methods.NumFields() > maxInterface {
					found[n.Name.Name] = "has more than 5 methods"
				}
			}
		}
		return true
	})
	return found
}

// tableLines counts the lines of a test's tables: their rows are data, not steps.
func (s source) tableLines(f *ast.FuncDecl) int {
	if !strings.HasSuffix(s.path, "_test.go") {
		return 0
	}
	lines := 0
	ast.Inspect(f, func(n ast.Node) bool {
		table, ok := n.(*ast.CompositeLit)
		if ok {
			lines += s.lines(table) - 1
		}
		return !ok
	})
	return lines
}

func TestOversizedFindsWhatIsTooLarge(t *testing.T) {
	fset := token.NewFileSet()
	src := "package p\nfunc long() {" + strings.Repeat("\n", 60) + "}\nfunc wide(a, b, c, d, e, f int) {}\n" +
		"type many struct { a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p int }\n" +
		"type broad interface { a(); b(); c(); d(); e(); f() }\nfunc fine(a, b, c, d, e int) {}\n"
	file, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := source{"p.go", fset, file}.oversized()
	for _, name := range []string{"long", "wide", "many", "broad"} {
		if found[name] == "" {
			t.Errorf("%s was not found", name)
		}
	}
	if len(found) != 4 {
		t.Errorf("found %v", found)
	}
}

func TestPackagesIntroduceThemselves(t *testing.T) {
	said := map[string]bool{}
	for _, s := range sources(t) {
		dir := filepath.Dir(s.path)
		said[dir] = said[dir] || s.file.Doc != nil && len(s.file.Doc.Text()) > 60
	}
	for dir, ok := range said {
		if !ok {
			t.Errorf("%s has no package comment that says what it is for and what it must not know", dir)
		}
	}
}

func TestShapeOfFunctions(t *testing.T) {
	for _, s := range sources(t) {
		for _, complaint := range s.misshapen() {
			t.Errorf("%s: %s (docs/STYLE.md)", s.path, complaint)
		}
	}
}

// misshapen finds init functions, naked returns of named results, sleeps and undone work.
func (s source) misshapen() []string {
	var found []string
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "init" && f.Recv == nil {
			found = append(found, "func init")
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Body != nil && hasResults(n.Type) && nakedReturn(n.Body) {
				found = append(found, n.Name.Name+" has a naked return")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && n.Sel.Name == "Sleep" {
				found = append(found, "time.Sleep: wait for a pidfd, a channel or inotify")
			}
		}
		return true
	})
	for _, group := range s.file.Comments {
		if text := group.Text(); strings.Contains(text, "TO"+"DO") || strings.Contains(text, "FIX"+"ME") {
			found = append(found, "a comment leaves work undone: "+strings.SplitN(text, "\n", 2)[0])
		}
	}
	return found
}

func hasResults(f *ast.FuncType) bool { return f.Results != nil && f.Results.NumFields() > 0 }

func nakedReturn(body *ast.BlockStmt) bool {
	naked := false
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.ReturnStmt:
			naked = naked || len(n.Results) == 0
		}
		return true
	})
	return naked
}

func TestMisshapenFindsWhatIsWrong(t *testing.T) {
	fset := token.NewFileSet()
	src := "package p\nimport \"time\"\nfunc init() {}\nfunc naked() (a int) { return }\n" +
		"func sleeps() { time.Sleep(1) }\n// TO" + "DO: later\nfunc fine() { return }\n"
	file, err := parser.ParseFile(fset, "p.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	if found := (source{"p.go", fset, file}).misshapen(); len(found) != 4 {
		t.Errorf("found %q", found)
	}
}

// codes is the one file that may speak of gRPC status codes.
const codes = "server/errors.go"

func TestGRPCCodesInOneFile(t *testing.T) {
	for _, s := range sources(t) {
		path := filepath.ToSlash(s.path)
		if path == codes || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "test/") {
			continue
		}
		for _, imp := range s.file.Imports {
			if imp.Path.Value == `"google.golang.org/grpc/codes"` || imp.Path.Value == `"google.golang.org/grpc/status"` {
				t.Errorf("%s imports %s: codes belong in %s alone", path, imp.Path.Value, codes)
			}
		}
	}
}
