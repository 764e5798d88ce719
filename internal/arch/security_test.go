package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testNames are the tests of the tree by the directories of their packages.
func testNames(t *testing.T) map[string]map[string]bool {
	t.Helper()
	names := map[string]map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				if names[dir] == nil {
					names[dir] = map[string]bool{}
				}
				names[dir][f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// inCode finds what is written as code in a line of Markdown.
var inCode = regexp.MustCompile("`([^`]+)`")

// TestSecurityNamesRealTests holds docs/security.md to the tests that it names: `dir` `TestX`, or `TestX` alone for
// test/integration. Every replay of a vulnerability has its row.
func TestSecurityNamesRealTests(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, named := testNames(t), 0
	for n, line := range strings.Split(string(raw), "\n") {
		dir := "test/integration"
		for _, code := range inCode.FindAllStringSubmatch(line, -1) {
			switch word := code[1]; {
			case tests[word] != nil:
				dir = word
			case strings.HasPrefix(word, "Test"):
				if named++; !tests[dir][word] {
					t.Errorf("docs/security.md:%d: there is no %s in %s", n+1, word, dir)
				}
			}
		}
	}
	if named < 50 {
		t.Errorf("found only %d tests in docs/security.md", named)
	}
	for dir, names := range tests {
		for name := range names {
			if strings.HasPrefix(name, "TestCVE_") && !strings.Contains(string(raw), name) {
				t.Errorf("%s %s has no row in docs/security.md", dir, name)
			}
		}
	}
}

// fixed are the first versions of modules without a vulnerability that docs/security.md speaks of.
var fixed = map[string]string{
	"github.com/containernetworking/cni":    "v0.8.1",  // CVE-2021-20206
	"github.com/moby/spdystream":            "v0.5.1",  // CVE-2026-35469
	"github.com/opencontainers/selinux":     "v1.13.0", // CVE-2025-52881
	"github.com/ulikunitz/xz":               "v0.5.15", // CVE-2021-29482, CVE-2025-58058
	"github.com/vbatts/tar-split":           "v0.10.2", // CVE-2017-14992
	"github.com/go-jose/go-jose/v4":         "v4.1.4",  // CVE-2026-34986
	"github.com/sirupsen/logrus":            "v1.9.3",  // CVE-2025-65637
	"go.podman.io/image/v5":                 "v5.41.2", // Podman 6.1.2: CVE-2025-11395, CVE-2026-79699, CVE-2026-79705
	"go.podman.io/storage":                  "v1.64.1", // the same
	"golang.org/x/net":                      "v0.56.0", // CVE-2023-44487 and later ones of HTTP/2
	"google.golang.org/grpc":                "v1.82.1", // CVE-2026-33186 and later ones
	"google.golang.org/protobuf":            "v1.33.0", // CVE-2024-24786
	"github.com/docker/distribution":        "v2.8.0",  // type confusion of manifests, as CVE-2021-41190
	"github.com/sigstore/sigstore":          "v1.10.4", // CVE-2026-24137
	"github.com/klauspost/compress":         "v1.18.7",
	"github.com/cyphar/filepath-securejoin": "v0.2.4",
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc": "v0.46.0", // CVE-2023-47108: labels without end
}

func TestLibrariesHaveTheirFixes(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Path}} {{.Version}}", "all")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	found := 0
	for line := range strings.Lines(string(out)) {
		path, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		if least := fixed[path]; least != "" {
			if found++; slices.Compare(numbers(t, version), numbers(t, least)) < 0 {
				t.Errorf("%s %s: %s is the first without known vulnerabilities", path, version, least)
			}
		}
	}
	if found != len(fixed) {
		t.Errorf("only %d of %d modules are used: mend the table", found, len(fixed))
	}
}

// TestLibrariesThatAreNotBuiltIn looks for those that docs/security.md says crid lacks.
func TestLibrariesThatAreNotBuiltIn(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags=containers_image_openpgp,exclude_graphdriver_btrfs", "./cmd/crid")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "go.podman.io/image/v5/signature") {
		t.Fatalf("go list: %v", err)
	}
	for _, library := range []string{"github.com/proglottis/gpgme"} {
		if strings.Contains(string(out), library) {
			t.Errorf("crid is built with %s", library)
		}
	}
}

// numbers are the parts of a released version, v1.2.3 or v1.2.3+incompatible.
func numbers(t *testing.T, version string) []int {
	t.Helper()
	plain, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	var parts []int
	for part := range strings.SplitSeq(plain, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			t.Fatalf("version %s is no release: %v", version, err)
		}
		parts = append(parts, n)
	}
	return parts
}
