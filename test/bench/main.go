// Command bench measures CRI endpoints side by side: each call for one pod at a time, many pods at once, lists
// and memory with many pods held; or what lists and figures cost the server; or calls beside trouble and without; or how
// soon crid serves again; or what many images cost it. Rounds are interleaved, so that what slows the machine slows all of them. It
// speaks the CRI only and knows nothing of what serves it.
//
// Without -endpoint it starts a crid of its own in an isolated place, and beside it a containerd when
// -containerd names one, both with the same runtime binary and the same CNI network.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
	"github.com/crid/crid/test/stuck"
)

type flags struct {
	endpoints  list
	match      list
	image      string
	containerd string
	runtime    string
	counts
	trouble bool
	restart bool
	stats   bool
	idle    time.Duration
	events  bool
	pulling bool
}

// counts are how many there are of what.
type counts struct {
	rounds, many, atOnce, held, images int
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	stuck.Play()
	var f flags
	flag.Var(&f.endpoints, "endpoint", "name=/path/of/socket of a CRI server that runs already; may be repeated")
	flag.Var(&f.match, "match", "name=word,word: its processes, for memory: those whose command line holds a word; may be repeated")
	flag.StringVar(&f.image, "image", "", "image to run, with a sleep in it; needed with -endpoint")
	flag.StringVar(&f.containerd, "containerd", "", "path of a containerd to measure beside crid")
	flag.StringVar(&f.runtime, "runtime", "runc", "runtime handler of the crid that is started")
	flag.IntVar(&f.rounds, "rounds", 30, "pods one at a time, for each endpoint")
	flag.IntVar(&f.many, "many", 20, "pods to start at once")
	flag.IntVar(&f.atOnce, "at-once", 10, "how many of them at a time")
	flag.IntVar(&f.held, "held", 60, "pods held while lists and memory are measured")
	flag.BoolVar(&f.trouble, "trouble", false, "measure beside trouble and without instead: a runtime, a plugin and a volume that hang")
	flag.BoolVar(&f.restart, "restart", false, "measure instead how soon crid serves again with -held pods, -rounds times")
	flag.BoolVar(&f.stats, "stats", false, "measure only lists and figures with the pods held, and what the server does when nobody asks")
	flag.DurationVar(&f.idle, "idle", time.Minute, "how long nobody asks")
	flag.BoolVar(&f.events, "events", false, "measure instead how soon a container's end is told, -rounds times beside -held pods")
	flag.BoolVar(&f.pulling, "pull", false, "measure instead how long pulls of large images take, -rounds times each, beside skopeo too if it is in PATH")
	flag.IntVar(&f.images, "images", 0, "measure instead a crid with so many images of 4 layers each: its start, -rounds times, memory and lists")
	flag.Parse()
	if len(f.endpoints) > 0 {
		if err := f.given(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	isolate.Run(func() int {
		if err := f.own(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

// given measures the endpoints of the flags.
func (f flags) given() error {
	if f.image == "" {
		return errors.New("-endpoint needs -image")
	}
	words := map[string][]string{}
	for _, m := range f.match {
		name, list, _ := strings.Cut(m, "=")
		words[name] = strings.Split(list, ",")
	}
	var all []*endpoint
	for _, e := range f.endpoints {
		name, socket, ok := strings.Cut(e, "=")
		if !ok {
			return fmt.Errorf("-endpoint %q: want name=/path/of/socket", e)
		}
		ep, err := dial(name, strings.TrimPrefix(socket, "unix://"), words[name])
		if err != nil {
			return err
		}
		all = append(all, ep)
	}
	return f.measure(context.Background(), all)
}

// conflist is the network that crid and its peer share: the standard bridge and portmap, IPv4.
func conflist(name, subnet string, more ...string) string {
	plugins := append([]string{
		fmt.Sprintf(`{"type": "bridge", "bridge": "%s0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}`,
			name, filepath.Join(isolate.Scratch(), name+"-leases"), subnet),
		`{"type": "portmap", "capabilities": {"portMappings": true}}`,
	}, more...)
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [%s]}`, name, strings.Join(plugins, ", "))
}

// own starts what is measured.
func (f flags) own() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	registry, err := node.Registry(ctx, program("registry"), filepath.Join(isolate.Scratch(), "registry"))
	if err != nil {
		return err
	}
	if err := (images.Builder{Web: program("web")}).Push(ctx, registry); err != nil {
		return err
	}
	f.image = registry + "/" + images.Busybox
	if f.trouble {
		return f.besides(ctx, registry)
	}
	n, err := f.start(ctx, node.Options{Name: "bench", Registry: registry, Conflist: conflist("bench", "10.87.0.0/16")})
	if err != nil {
		return err
	}
	if f.restart {
		return errors.Join(f.restarting(ctx, n), n.Stop())
	}
	if f.images > 0 {
		return errors.Join(f.withMany(ctx, n, registry), n.Stop())
	}
	all, err := f.dialBoth(ctx, "", n, registry, "")
	if err != nil {
		return err
	}
	if f.pulling {
		return errors.Join(f.pulls(ctx, all, registry), n.Stop())
	}
	return errors.Join(f.measure(ctx, all), n.Stop())
}

// program is one of those that are built beside this one.
func program(name string) string { return filepath.Join(filepath.Dir(os.Args[0]), name) }

// start starts a crid.
func (f flags) start(ctx context.Context, o node.Options) (*node.Node, error) {
	log, err := os.Create(filepath.Join(isolate.Scratch(), o.Name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	o.Binary, o.Runtime, o.Output, o.Quiet = program("crid"), f.runtime, log, true
	return node.Start(ctx, o)
}

// dialBoth are that of a crid and, where one is asked for, that of a containerd beside it, which is started.
func (f flags) dialBoth(ctx context.Context, suffix string, n *node.Node, registry, more string) ([]*endpoint, error) {
	ep, err := dial("crid"+suffix, n.Socket, []string{"bin/crid", "conmon"})
	if err != nil || f.containerd == "" {
		return []*endpoint{ep}, err
	}
	peer, err := startContainerd(ctx, f.containerd, n, registry, more)
	if err != nil {
		return nil, err
	}
	peer.name += suffix
	return []*endpoint{ep, peer}, nil
}
