package container

import (
	"cmp"
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crid/crid/internal/oci/spec"
)

// lookUpShared finds what would reach the host through the request's BIDIRECTIONAL mounts although nobody asked for it:
// a mount below a shared one appears wherever that is shared, and stays there when the container is gone.
func (c *Container) lookUpShared(_ context.Context, in *spec.Input) error {
	if !slices.ContainsFunc(in.Mounts, spec.Mount.Shared) {
		return nil
	}
	v := viewOf(in.Rootfs, in.Mounts)
	for _, dest := range spec.Unasked(*in) {
		if i := v.holder(v.follow(dest)); i >= 0 && in.Mounts[i].Shared() {
			in.Mounts[i].Holds = append(in.Mounts[i].Holds, dest)
		}
	}
	return nil
}

// view is a root filesystem as a container will see it, with the mounts of its request.
type view struct {
	root    string
	places  []string // by mount: its place in the container, links followed; empty = not there yet
	sources []string
}

// viewOf places the mounts as a runtime does, the shallow ones first.
func viewOf(root string, mounts []spec.Mount) view {
	v := view{root: root, places: make([]string, len(mounts))}
	order := make([]int, len(mounts))
	for i, m := range mounts {
		order[i] = i
		v.sources = append(v.sources, m.Source)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(depth(mounts[a].GetContainerPath()), depth(mounts[b].GetContainerPath()))
	})
	for _, i := range order {
		v.places[i] = v.follow(mounts[i].GetContainerPath())
	}
	return v
}

func depth(p string) int { return strings.Count(path.Join("/", p), "/") }

// holder is the mount in which a place lies, the innermost; -1 = the root filesystem.
func (v view) holder(place string) int {
	found := -1
	for i, p := range v.places {
		if p != "" && within(place, p) && (found < 0 || len(p) >= len(v.places[found])) {
			found = i
		}
	}
	return found
}

// follow is where p leads in the container. What is not there leads nowhere else.
func (v view) follow(p string) string {
	at, left := "/", strings.Split(p, "/")
	for links := 0; len(left) > 0; {
		part := left[0]
		left = left[1:]
		next := path.Join(at, part)
		to, err := os.Readlink(v.onHost(next))
		if part == ".." || err != nil || links == maxLinks {
			at = next
			continue
		}
		links++
		if path.IsAbs(to) {
			at = "/"
		}
		left = slices.Concat(strings.Split(to, "/"), left)
	}
	return at
}

// onHost is the host's name of a place.
func (v view) onHost(place string) string {
	if i := v.holder(place); i >= 0 {
		return filepath.Join(v.sources[i], strings.TrimPrefix(place, v.places[i]))
	}
	return filepath.Join(v.root, place)
}
