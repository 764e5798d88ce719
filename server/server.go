// Package server speaks the CRI: it validates a request, calls one room and shapes the answer. It keeps no
// state of pods, containers or images, and does not know how any of them is made.
package server

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/stats"

	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/step"
)

// Events is where the rooms tell what happened; a reader that falls behind gets an error and must begin anew.
type Events interface {
	Subscribe(ctx context.Context) iter.Seq2[event.Event, error]
}

// Facts is what does not change while crid runs.
type Facts struct {
	Version  string         // of crid
	Handlers []fact.Handler // found at start, the default first
	Systemd  bool           // systemd makes the cgroups
}

// knows tells whether a pod may ask for the handler name.
func (f Facts) knows(name string) bool {
	return slices.ContainsFunc(f.Handlers, func(h fact.Handler) bool { return h.Name == name })
}

// userns tells whether pods of the handler can have a user namespace of their own.
func (f Facts) userns(name string) bool {
	return slices.ContainsFunc(f.Handlers, func(h fact.Handler) bool { return h.Name == name && h.UserNamespaces })
}

// names lists the handlers for an error message.
func (f Facts) names() string {
	var names []string
	for _, h := range f.Handlers {
		names = append(names, h.Name)
	}
	return strings.Join(names, ", ")
}

// Deps is what the server is built of. All fields are required but Steps and Calls.
type Deps struct {
	Facts      Facts
	Pods       Pods
	Containers Containers
	Images     Images
	Rootfs     Rootfs
	Events     Events
	Stats      Stats
	Streams    Streams
	Network    func() fact.Condition // never waits
	Info       func() map[string]any // for Status verbose: what an operator may want to know, as JSON values
	Admin      Admin                 // what crid's own commands ask for
	Steps      step.Watch            // told of every call; nil = nobody
	Calls      stats.Handler         // sees every call; nil = nobody
	Log        *slog.Logger
}

// Server answers the CRI's two services.
type Server struct {
	facts      Facts
	pods       Pods
	containers Containers
	images     Images
	rootfs     Rootfs
	events     Events
	stats      Stats
	streams    Streams
	network    func() fact.Condition
	info       func() map[string]any
	log        *slog.Logger
	gate       gate
	admin      Admin
	end
}

// end is what there is to the end of a server.
type end struct {
	ending     chan struct{} // closed when streams must end
	endStreams func()        // closes ending, once
	grace      time.Duration // what running calls have at the end; stopGrace
}

// New joins the rooms to a server. It does no I/O.
func New(d Deps) *Server {
	ending := make(chan struct{})
	return &Server{
		facts:      d.Facts,
		pods:       d.Pods,
		containers: d.Containers,
		images:     d.Images,
		rootfs:     d.Rootfs,
		events:     d.Events,
		stats:      d.Stats,
		streams:    d.Streams,
		network:    d.Network,
		info:       d.Info,
		log:        d.Log,
		gate:       gate{log: d.Log, steps: d.Steps, calls: d.Calls},
		admin:      d.Admin,
		end:        end{ending: ending, endStreams: sync.OnceFunc(func() { close(ending) }), grace: stopGrace},
	}
}
