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
	atOnce = 10 * time.Second
)

// scenario is one call that changes something. set makes what the call is about, for each case anew.
type scenario struct {
	name    string
	options []harness.Option
	set     func(t *testing.T, c *harness.Crid) act
}

// act is one case: a call and what has to be true.
type act struct {
	call    func() error
	between func() // after the crash, whatever became of the call; nil = nothing
	after   func() // once the call, or its repetition, has succeeded
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
}

func TestCrashAnywhere(t *testing.T) {
	hit, played := map[string]bool{}, 0
	for _, s := range slices.Concat(podScenarios, containerScenarios, processScenarios, imageScenarios) {
		t.Run(s.name, func(t *testing.T) {
			for _, name := range s.play(t) {
				hit[name] = true
			}
			played++
		})
	}
	if played < len(podScenarios)+len(containerScenarios)+len(processScenarios)+len(imageScenarios) {
		return // some were left out on purpose, or failed
	}
	for _, name := range points(t) {
		if !hit[name] {
			t.Errorf("no scenario dies at the fail point %q: add one, or remove the point", name)
		}
	}
}

// play crashes crid at every point of the scenario and returns the names of the points at which it died.
func (s scenario) play(t *testing.T) []string {
	control := filepath.Join(t.TempDir(), "control")
	program := harness.Program(harness.Binary("crid-failpoint"), failpoint.Control+"="+control)
	g := &stage{t: t, set: s.set, control: control}
	g.Crid = harness.Start(t, append(s.options, program, harness.Quiet())...)
	defer func() {
		if t.Failed() {
			t.Logf("the last case was a crash at %v", g.at)
		}
	}()
	trace := g.trace()
	began := time.Now()
	cases := occurrences(trace)
	var died []string
	for _, g.at = range cases {
		if g.crash() {
			died = append(died, g.at.name)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d hits, %d cases, %d deaths in %v", len(trace), len(cases), len(died), time.Since(began).Round(time.Millisecond))
	return died
}

// few is how many hits of a point are each a case.
const few = 4

// occurrences picks the cases of a trace: each hit of each point. Of a point that is hit more often, the first and the
// last: what lies between repeats one step for another hierarchy or file.
func occurrences(trace []string) []point {
	count := map[string]int{}
	for _, name := range trace {
		count[name]++
	}
	seen := map[string]int{}
	var cases []point
	for _, name := range trace {
		seen[name]++
		if n := seen[name]; count[name] <= few || n == 1 || n == count[name] {
			cases = append(cases, point{name, n})
		}
	}
	return cases
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

// crash plays one case and tells whether crid died. It may come to points behind its answer less often than it did when
// they were counted: what it does there may be done for several at once, or for what was before.
func (g *stage) crash() (died bool) {
	g.t.Helper()
	before := g.Mark()
	a := g.set(g.t, g.Crid)
	g.order(fmt.Sprintf("kill %s %d", g.at.name, g.at.nth))
	err := a.call()
	select {
	case <-g.Exited():
		died = true
	case <-time.After(deathLimit):
		if err != nil {
			g.t.Errorf("crid lives, and the call answered %v", err)
		}
		g.t.Logf("crid did not come to %v", g.at)
	}
	g.order("")
	g.Crash()
	if a.between != nil {
		a.between()
	}
	if err != nil {
		began := time.Now()
		if err := a.call(); err != nil {
			g.t.Errorf("the call, repeated after the crash: %v", err)
			return died
		}
		if took := time.Since(began); took > atOnce {
			g.t.Errorf("the call, repeated after the crash, took %v", took)
		}
	}
	a.after()
	g.RemoveAll()
	for _, left := range g.LeftSince(before) {
		g.t.Errorf("left behind: %s", left)
	}
	return died
}
