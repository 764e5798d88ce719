package arch

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// parserName is how functions are named that make sense of text.
var parserName = regexp.MustCompile(`^(parse|decode)([A-Z]|$)`)

// parserCall is what functions call that make sense of text or bytes.
var parserCall = regexp.MustCompile(`^(json|toml|protojson)\.(Unmarshal|NewDecoder|DecodeFile|UnmarshalOptions)$|^fmt\.Sscan|^bufio\.NewScanner$|^tar\.NewReader$|^strconv\.(Atoi|Parse)`)

// fuzzed says of each parser which target feeds it: one of its own package, or of the directory that is named before it. A
// reason, which begins with a dash, excuses one.
var fuzzed = map[string]string{
	"cmd/crid.asJSON":                     "- crid's own configuration, in another form",
	"cmd/crid.askFsck":                    "- what crid says to itself",
	"cmd/crid.describe":                   "- a bundle that crid has written",
	"cmd/crid.findManager":                "- a number of systemd's",
	"cmd/crid.gone":                       "- the number in crid's own lock",
	"internal/cgroup.blocksV1":            "FuzzFiles",
	"internal/cgroup.blocksV2":            "FuzzFiles",
	"internal/cgroup.counter":             "FuzzFiles",
	"internal/cgroup.numbers":             "FuzzFiles",
	"internal/cgroup.parseNumber":         "FuzzFiles",
	"internal/cgroup.pressure":            "FuzzFiles",
	"internal/cgroup.table":               "FuzzFiles",
	"internal/cgroup.threaded":            "- what the kernel says of a thread",
	"internal/config.observed":            "FuzzLoad",
	"internal/config.read":                "FuzzLoad",
	"internal/container.UnmarshalJSON":    "FuzzLoad",
	"internal/container.checkRules":       "FuzzSeccompProfile",
	"internal/container.decodeConfig":     "FuzzLoad",
	"internal/container.execTemplate":     "- a bundle that crid has written",
	"internal/container.keyOf":            "- a bundle that crid has written: one that cannot be read names nobody",
	"internal/container.parseProcess":     "FuzzParseProcess",
	"internal/hooks.parse":                "FuzzParse",
	"internal/host.capabilities":          "FuzzDecide",
	"internal/host.decide":                "FuzzDecide",
	"internal/host.pageSizes":             "- names of directories of the kernel",
	"internal/monitor.Running":            "- names of directories of /proc",
	"internal/monitor.created":            "FuzzCreated",
	"internal/monitor.notes":              "- what crid has written itself: a note that cannot be read is none",
	"internal/monitor.parseStat":          "FuzzStat",
	"internal/monitor.readPid":            "- the number that conmon writes",
	"internal/monitor.recorded":           "FuzzExitRecord",
	"internal/network.completeList":       "FuzzConflist",
	"internal/network.lastWords":          "FuzzLastWords",
	"internal/network.leaseDirs":          "FuzzLeases",
	"internal/network.parseCounters":      "FuzzCounters",
	"internal/network.parseFile":          "FuzzConflist",
	"internal/network.parseLease":         "FuzzLeases",
	"internal/network.quantity":           "FuzzBandwidth",
	"internal/network.readMemory":         "FuzzRecall",
	"internal/network.recall":             "FuzzRecall",
	"internal/ns.hostRange":               "FuzzHostRange",
	"internal/oci.Explain":                "FuzzExplain",
	"internal/oci.State":                  "- the runtime's word for a container's state",
	"internal/oci.descendants":            "- numbers of /proc",
	"internal/oci.held":                   "- names of directories of /proc",
	"internal/oci.parseFeatures":          "FuzzProbe",
	"internal/oci.parseStatField":         "FuzzProc",
	"internal/oci.parseVersion":           "FuzzProbe",
	"internal/oci/spec.parseCapabilities": "FuzzBuild",
	"internal/oci/spec.parseID":           "FuzzResolveUser",
	"internal/oci/spec.parsePlaces":       "FuzzBuild",
	"internal/oci/spec.parseRealTime":     "FuzzSignal",
	"internal/oci/spec.parseSignal":       "FuzzSignal",
	"internal/oci/spec.parseVersion":      "FuzzBuild",
	"internal/sandbox.UnmarshalJSON":      "FuzzLoad",
	"internal/state.read":                 "FuzzRecord",
	"internal/stats.openFiles":            "FuzzLimits",
	"internal/storage.decode":             "FuzzArchive",
	"internal/storage.diffIDsOf":          "FuzzArchive",
	"internal/storage.examine":            "FuzzManifest",
	"internal/storage.inspect":            "FuzzBounds",
	"internal/storage.listMembers":        "FuzzArchive",
	"internal/storage.markOpen":           "- crid's own mark: one that cannot be read means the same as an old one",
	"internal/storage.parseList":          "FuzzLists",
	"internal/storage.parseConfig":        "FuzzConfig",
	"internal/storage.parseLinked":        "FuzzArchive",
	"internal/storage.parsePulled":        "FuzzArchive",
	"internal/storage.parseHosts":         "FuzzHosts",
	"internal/storage.parseOutline":       "FuzzManifest",
	"internal/storage.readPlace":          "- crid's own record: one that cannot be read is written anew",
	"internal/storage.run":                "FuzzSplit",
	"internal/storage.parseSizes":         "FuzzSizes",
	"internal/stream.readSizes":           "FuzzSizes",
	"internal/stream.take":                "FuzzPairs",
}

// TestEveryParserIsFuzzed finds parsers by their names and by what they call.
func TestEveryParserIsFuzzed(t *testing.T) {
	parsers, targets := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		dir := filepath.Dir(s.path)
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			switch test := strings.HasSuffix(s.path, "_test.go"); {
			case !ok:
			case test && strings.HasPrefix(f.Name.Name, "Fuzz"):
				targets[dir+" "+f.Name.Name] = true
			case !test && !strings.HasPrefix(dir, "test") && parses(f):
				parsers[dir+"."+f.Name.Name] = true
			}
		}
	}
	for p := range parsers {
		by, known := fuzzed[p]
		if !known {
			t.Errorf("no Fuzz target feeds %s: write one, or say in this test why none is needed", p)
		}
		target := by
		if !strings.Contains(by, " ") {
			target = p[:strings.LastIndex(p, ".")] + " " + by
		}
		if known && !strings.HasPrefix(by, "- ") && !targets[target] {
			t.Errorf("%s: there is no %s", p, target)
		}
	}
	for p := range fuzzed {
		if !parsers[p] {
			t.Errorf("%s is no parser any more", p)
		}
	}
}

// parses tells whether a function is named or behaves like a parser.
func parses(f *ast.FuncDecl) bool {
	found := parserName.MatchString(f.Name.Name)
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if of, ok := s.X.(*ast.Ident); ok && parserCall.MatchString(of.Name+"."+s.Sel.Name) {
				found = true
			}
		}
		return true
	})
	return found
}
