// Package critest runs the conformance suite of kubernetes-sigs/cri-tools against a crid of its own. It brings
// neither the suite nor its images: $CRITEST or PATH holds the one, $CRITEST_IMAGES the other.
package critest

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

var (
	enabled = flag.Bool("critest", false, "run the suite: it takes minutes and needs a critest")
	handler = flag.String("handler", "", "runtime handler to make the default")
	focus   = flag.String("focus", "", "run only the specs that match this regular expression")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !*enabled {
		fmt.Println("critest is left out: run it with `make critest`")
		return
	}
	harness.Main(m)
}

// hosts are the registries that the suite pulls from. $CRITEST_IMAGES is the data directory of a distribution
// registry whose repositories begin with these names.
var hosts = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "public.ecr.aws"}

func TestConformance(t *testing.T) {
	suite := os.Getenv("CRITEST")
	if suite == "" {
		var err error
		if suite, err = exec.LookPath("critest"); err != nil {
			t.Fatal("no critest: build it from kubernetes-sigs/cri-tools and name it in $CRITEST, or put it in PATH")
		}
	}
	var options []harness.Option
	if data := os.Getenv("CRITEST_IMAGES"); data != "" {
		options = append(options, harness.Registry(harness.Serve(t, data)), harness.Mirrors(hosts...))
	}
	c := harness.Start(t, append(options, harness.Runtime(*handler), harness.Quiet())...)
	report := filepath.Join(isolate.Scratch(), "critest.json")
	args := []string{
		"-runtime-endpoint", "unix://" + c.Socket, "-ginkgo.no-color", "-ginkgo.json-report", report,
		"-ginkgo.skip", strings.Join(skipped(t), "|"),
	}
	if *focus != "" {
		args = append(args, "-ginkgo.focus", *focus)
	}
	cmd := exec.CommandContext(t.Context(), suite, append(args, strings.Fields(os.Getenv("CRITEST_ARGS"))...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Error("critest:", err)
	}
	if keep := os.Getenv("CRITEST_REPORT"); keep != "" {
		raw, err := os.ReadFile(report)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keep, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// skipped reads skip.txt: a regular expression a line, and after " # " the reason, which is not optional.
func skipped(t *testing.T) []string {
	t.Helper()
	f, err := os.Open("skip.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var specs []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		spec, reason, ok := strings.Cut(lines.Text(), " # ")
		if !ok || reason == "" {
			t.Fatalf("skip.txt: %q gives no reason", lines.Text())
		}
		specs = append(specs, spec)
	}
	return specs
}
