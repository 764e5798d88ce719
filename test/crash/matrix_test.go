package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/test/harness"
)

const (
	// deathLimit is how long crid may take to come to a point that it passes behind its answer.
	deathLimit = 3 * time.Second
	// quiet is how long no point is hit before a trace counts as complete.
	quiet = 400 * time.Millisecond
	// atOnce bounds the repetition of a call after a crash: nothing of before may hold it up.
	atOnce = 3 * time.Second
	// unasked is which of the cases without an answer are played without the repetition of the call: each third.
	unasked = 3
)

// scenario is one call that changes something. set makes what the call is about, for each case anew.
type scenario struct {
	name    string
	options []harness.Option
	before  func(t *testing.T) // before crid is started for the first time; nil = nothing
	set     func(t *testing.T, c *harness.Crid) act
	cases   func(trace []string) []point // picks what is played; nil = occurrences
}

// act is one case: a call and what has to be true.
type act struct {
	call    func() error
	between func() // after the crash, whatever became of the call; nil = nothing
	after   func() // once the call, or its repetition, has succeeded
	insist  bool   // nobody but who repeats the call finishes it
}

// point is one occurrence of a fail point during a call.
type point struct {
	name string
	nth  int
}

func (p point) String() string { return fmt.Sprintf("%s, hit %d", p.name, p.nth) }

// stage is a crid on which the cases of one scenario are played.
type stage struct {
	*harness.Crid
	t       *testing.T
	set     func(t *testing.T, c *harness.Crid) act
	control string
	at      point // the case being played
	cut     int   // how many calls had no answer
}

// allScenarios are all that the matrix is made of.
var allScenarios = slices.Concat(podScenarios, containerScenarios, processScenarios, imageScenarios, mendScenarios, startScenarios)

// behind are the points that a case need not come to, and why: there is less to do than there was when they were traced,
// by what has happened meanwhile.
var behind = map[string]string{
	"cgroup/kill/frozen": "what has ended by then is not frozen",
	"cgroup/kill/struck": "a process that was asked to end may have ended before it is struck",
	"cgroup/kill/thawed": "what has ended by then was not frozen",
	"storage/pull/named": "an image that is mended may have its name still",
}

// elsewhere are the points that no crid comes to on a machine of these tests, and why.
var elsewhere = map[string]string{
	"cgroup/enter/scope-started":   "there is no systemd to make a scope",
	"cgroup/remove/unit-forgotten": "there is no systemd to forget a unit",
}

func TestCrashAnywhere(t *testing.T) {
	hit, played := map[string]bool{}, 0
	for _, s := range allScenarios {
		t.Run(s.name, func(t *testing.T) {
			for _, name := range s.play(t) {
				hit[name] = true
			}
			played++
		})
	}
	if played < len(allScenarios) {
		return // some were left out on purpose, or failed
	}
	for _, name := range points(t) {
		if !hit[name] && elsewhere[name] == "" {
			t.Errorf("no scenario dies at the fail point %q: add one, or remove the point", name)
		}
	}
}

// play crashes crid at every point of the scenario and returns the names of the points at which it died.
func (s scenario) play(t *testing.T) []string {
	control := filepath.Join(t.TempDir(), "control")
	program := harness.Program(harness.Binary("crid-failpoint"), failpoint.Control+"="+control)
	if s.before != nil {
		s.before(t)
	}
	g := &stage{t: t, set: s.set, control: control}
	g.Crid = harness.Start(t, append(s.options, program, harness.Quiet())...)
	defer func() {
		if t.Failed() {
			t.Logf("the last case was a crash at %v", g.at)
		}
	}()
	trace := g.trace()
	began := time.Now()
	if s.cases == nil {
		s.cases = occurrences
	}
	cases := s.cases(trace)
	var died []string
	for _, g.at = range cases {
		if g.crash() {
			died = append(died, g.at.name)
		}
		if t.Failed() {
			break
		}
	}
	for _, found := range g.fsck() {
		t.Errorf("crid fsck has found %s", found)
	}
	t.Logf("%d hits, %d cases, %d deaths in %v", len(trace), len(cases), len(died), time.Since(began).Round(time.Millisecond))
	return died
}

// few is how many hits of a point are each a case.
const few = 4

// occurrences picks the cases of a trace: each hit of each point. Of a point that is hit more often, the first, the last
// and one in the middle: what lies between repeats one step for another hierarchy or file.
func occurrences(trace []string) []point {
	count := map[string]int{}
	for _, name := range trace {
		count[name]++
	}
	seen := map[string]int{}
	var cases []point
	for _, name := range trace {
		seen[name]++
		if n := seen[name]; count[name] <= few || n == 1 || n == (count[name]+1)/2 || n == count[name] {
			cases = append(cases, point{name, n})
		}
	}
	return cases
}

// of picks the cases at points whose names begin in one of the ways: the others are played by another scenario.
func of(prefixes ...string) func([]string) []point {
	return func(trace []string) []point {
		return slices.DeleteFunc(occurrences(trace), func(p point) bool {
			return !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(p.name, prefix) })
		})
	}
}

// order tells crid what to do at its fail points; "" is nothing.
func (g *stage) order(text string) {
	g.t.Helper()
	temp := g.control + ".new"
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(temp, g.control); err != nil {
		g.t.Fatal(err)
	}
}

// trace plays the scenario without a crash and returns the points that were hit, in order, those behind the answer too.
func (g *stage) trace() []string {
	g.t.Helper()
	file := g.control + ".trace"
	var a act
	for _, order := range []string{"", "trace " + file} { // the first time, things are made that stay
		g.RemoveAll()
		a = g.set(g.t, g.Crid)
		g.order(order)
		if err := a.call(); err != nil {
			g.t.Fatal("without a crash:", err)
		}
	}
	var raw []byte
	for size := -1; size != len(raw); {
		size = len(raw)
		<-time.After(quiet)
		var err error
		if raw, err = os.ReadFile(file); err != nil {
			g.t.Fatal(err)
		}
	}
	g.order("")
	a.after()
	g.RemoveAll()
	return strings.Fields(string(raw))
}

// crash plays one case and tells whether crid died.
func (g *stage) crash() (died bool) {
	g.t.Helper()
	before := g.Mark()
	a := g.set(g.t, g.Crid)
	ready, listed := g.Mark(), g.listed()
	g.order(fmt.Sprintf("kill %s %d", g.at.name, g.at.nth))
	err := a.call()
	select {
	case <-g.Exited():
		died = true
	case <-time.After(deathLimit):
		if err != nil {
			g.t.Errorf("crid lives, and the call answered %v", err)
		}
		if behind[g.at.name] == "" && g.at.nth == 1 { // how often it comes there may depend on who has ended by then
			g.t.Errorf("crid did not come to %v", g.at)
		}
	}
	g.order("")
	g.Crash()
	if a.between != nil {
		a.between()
	}
	if err != nil {
		g.cut++
	}
	switch {
	case err == nil:
		a.after()
	case g.cut%unasked == 0 && !a.insist:
		g.abandoned(ready, listed)
	case g.repeat(a.call):
		a.after()
	}
	g.RemoveAll()
	for _, left := range g.LeftSince(before) {
		g.t.Errorf("left behind: %s", left)
	}
	return died
}

// repeat makes the call again and tells whether it succeeded.
func (g *stage) repeat(call func() error) bool {
	g.t.Helper()
	began := time.Now()
	if err := call(); err != nil {
		g.t.Errorf("the call, repeated after the crash: %v", err)
		return false
	}
	if took := time.Since(began); took > atOnce {
		g.t.Errorf("the call, repeated after the crash, took %v", took)
	}
	return true
}

// abandoned looks at what has become of a call that had no answer and is not repeated: what it was to make is listed,
// so that a client can remove it, or there is nothing of it.
func (g *stage) abandoned(ready harness.Mark, before []string) {
	g.t.Helper()
	now := g.listed()
	if slices.ContainsFunc(now, func(id string) bool { return !slices.Contains(before, id) }) {
		return
	}
	for _, left := range g.LeftSince(ready, func(thing string) bool { return belongs(thing, now) }) {
		g.t.Errorf("of a call without an answer, nothing is listed, and there is %s", left)
	}
}

// belongs tells whether a thing is of one of the pods and containers: it is named after it, or a process in its cgroup.
func belongs(thing string, ids []string) bool {
	var pid int
	if n, _ := fmt.Sscanf(thing, "process %d", &pid); n == 1 {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // none when it is gone
		thing = string(groups)
	}
	return slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(thing, id) })
}

// listed are the ids of all pods and containers.
func (g *stage) listed() []string {
	g.t.Helper()
	pods, err := g.Runtime.ListPodSandbox(g.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	containers, err := g.Runtime.ListContainers(g.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	var ids []string
	for _, pod := range pods {
		ids = append(ids, pod.Id)
	}
	for _, ctr := range containers {
		ids = append(ids, ctr.Id)
	}
	return ids
}

// fsck lets the crid that runs look for what is orphaned, missing or damaged.
func (g *stage) fsck() []string {
	g.t.Helper()
	found, err := fsck(g.Crid)
	if err != nil {
		g.t.Error(err)
	}
	return found
}
