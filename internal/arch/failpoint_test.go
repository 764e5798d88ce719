package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// pointName is what a fail point is called: its room, what is done there, and what has just been done.
var pointName = regexp.MustCompile(`^[a-z]+(/[a-z]+(-[a-z]+)*){2}$`)

// TestFailPoints holds the names of fail points to what test/crash reads them for: each is one place in the code, and
// begins with that place's room.
func TestFailPoints(t *testing.T) {
	at := map[string]string{}
	for _, s := range sources(t) {
		path := filepath.ToSlash(s.path)
		if strings.HasPrefix(path, "internal/failpoint/") || strings.HasSuffix(path, "_test.go") {
			continue
		}
		names, wrong := s.failPoints()
		for _, complaint := range wrong {
			t.Errorf("%s: %s", path, complaint)
		}
		for _, name := range names {
			room := filepath.Base(filepath.Dir(path))
			switch {
			case !pointName.MatchString(name) || !strings.HasPrefix(name, room+"/"):
				t.Errorf("%s: fail point %q is not named %s/VERB/WHAT-WAS-DONE", path, name, room)
			case at[name] != "":
				t.Errorf("%s: fail point %q is in %s as well", path, name, at[name])
			}
			at[name] = path
		}
	}
	if len(at) < 50 {
		t.Errorf("only %d fail points were found", len(at))
	}
}

// failPoints returns the names that the file gives to failpoint.Hit, and what is wrong with how it does.
func (s source) failPoints() (names, wrong []string) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		fun, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := fun.X.(*ast.Ident); !ok || x.Name != "failpoint" {
			return true
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			wrong = append(wrong, "the name of a fail point is no literal")
			return true
		}
		name, err := strconv.Unquote(lit.Value)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		names = append(names, name)
		return true
	})
	return names, wrong
}

func TestFailPointsFindsWhatIsWrong(t *testing.T) {
	fset := token.NewFileSet()
	src := "package p\nfunc f(x string) { failpoint.Hit(\"a/b/c\"); failpoint.Hit(x) }\n"
	file, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	names, wrong := source{"p.go", fset, file}.failPoints()
	if len(names) != 1 || names[0] != "a/b/c" || len(wrong) != 1 {
		t.Errorf("found %q and complains of %q", names, wrong)
	}
}
