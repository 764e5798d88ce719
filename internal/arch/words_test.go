package arch

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// forbidden are words that no message may have. A client that repeats a call joins what is under way, or is told what
// it meets and what to do: names are not reserved.
var forbidden = []string{"reserved"}

func TestForbiddenWords(t *testing.T) {
	texts := 0
	for _, s := range sources(t) {
		path := filepath.ToSlash(s.path)
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "test/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			texts++
			for _, word := range forbidden {
				if strings.Contains(strings.ToLower(lit.Value), word) {
					t.Errorf("%s: %s says %q", path, lit.Value, word)
				}
			}
			return true
		})
	}
	if texts < 1000 {
		t.Errorf("only %d texts were looked at", texts)
	}
}
