package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

func TestReferences(t *testing.T) {
	other := "sha256:" + strings.Repeat("e", 64)
	for what, tc := range map[string]struct{ names, tags, digests []string }{
		"pulled by tag":        {[]string{"a.b/c:1", "a.b/c@" + other}, []string{"a.b/c:1"}, []string{"a.b/c@" + other}},
		"pulled by digest":     {[]string{"a.b/c@" + other}, nil, []string{"a.b/c@" + other}},
		"tagged by other tool": {[]string{"a.b/c:1"}, []string{"a.b/c:1"}, []string{"a.b/c@" + dig}},
		"name alone":           {[]string{"busybox"}, []string{"docker.io/library/busybox:latest"}, []string{"docker.io/library/busybox@" + dig}},
		"tag and digest":       {[]string{"a.b/c:1@" + other}, nil, []string{"a.b/c@" + other}},
		"no reference":         {[]string{"NO NAME"}, nil, nil},
		"two registries": {
			[]string{"z/y:2", "a.b/c:1", "a.b/c@" + other}, []string{"a.b/c:1", "docker.io/z/y:2"},
			[]string{"a.b/c@" + other, "docker.io/z/y@" + dig},
		},
	} {
		tags, digests := references(&cstorage.Image{Names: tc.names, Digest: digest.Digest(dig)})
		if !slices.Equal(tags, tc.tags) || !slices.Equal(digests, tc.digests) {
			t.Errorf("%s: tags %v, digests %v", what, tags, digests)
		}
	}
}

func TestPinnedNames(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "registries.conf")
	check(t, os.WriteFile(conf, []byte("unqualified-search-registries = [\"docker.io\", \"search.example\"]\n[aliases]\n\"app\" = \"alias.example/deep/app\"\n"), 0o600))
	img := Image{
		ID:          strings.Repeat("a", 64),
		RepoTags:    []string{"docker.io/library/pause:3", "search.example/tool:1", "alias.example/deep/app:2", "registry.k8s.io/coredns/coredns:v1.12.0"},
		RepoDigests: []string{"a.b/c@" + dig},
	}
	for name, want := range map[string]bool{
		"pause:3": true, "docker.io/library/pause:3": true, "pause": false, "pause:33": false, "a.b/c@" + dig: true, "a.b/c:7@" + dig: true,
		"a.b/c": false, img.ID: true, "sha256:" + img.ID: true, img.ID[:12]: false, "": false, "PAUSE": false,
		"tool:1": true, "app:2": true, "app:3": false, // as a pull finds short names
		"registry.k8s.io/*": true, "registry.k8s.io/core*": true, "registry.k8s.io/*:v1.12.0": true, "registry.k8s.io/coredns/coredns:*": true,
		"*coredns*": true, "*:v1.12.0": true, "*": true, "pause*": true, "library/pause*": false, "docker.io/*": true, "a.b/*@sha256:*": true,
		"registry_k8s.io/*": false, "registry.k8s.io*v2": false, "coredns*": false, "*.k8s.io": false, "[rx]*": false,
	} {
		s := &Images{cfg: ImagesConfig{Sources: Sources{RegistriesConf: conf, RegistriesConfDir: t.TempDir()}, Pinned: []string{"other:1", name}}}
		if s.pins().have(&img) != want {
			t.Errorf("pinned by %q: %v, want %v", name, !want, want)
		}
	}
}

func TestByPrefix(t *testing.T) {
	s := &Images{}
	s.index.Store(syntheticIndex("aa11", "aa12", "bb00"))
	for prefix, want := range map[string]error{
		"aa11": nil, "b": nil, "aa1": errdef.Invalid, "aa2": errdef.NotFound, "c": errdef.NotFound, "sha256:bb": nil,
	} {
		img, err := s.Resolve(t.Context(), prefix)
		if !errors.Is(err, want) || err == nil && !strings.HasPrefix(img.ID, strings.TrimPrefix(prefix, "sha256:")) {
			t.Errorf("%s: %v, %v; want %v", prefix, img.ID, err, want)
		}
	}
}

// syntheticIndex is an index of images whose ids begin with the given words, each tagged example.com/WORD:1.
func syntheticIndex(words ...string) *index {
	x := &index{byID: map[string]*entry{}, byName: map[string]string{}}
	for _, w := range words {
		id := w + strings.Repeat("0", 64-len(w))
		name := "example.com/" + w
		x.add(&cstorage.Image{ID: id, Names: []string{name + ":1", name + "@" + dig}}, facts{}, pins{})
	}
	return x
}

func TestStatusOf(t *testing.T) {
	for want, err := range map[int]error{
		http.StatusTooManyRequests: docker.ErrTooManyRequests,
		http.StatusUnauthorized:    docker.ErrUnauthorizedForCredentials{Err: errors.New("no")},
		http.StatusNotFound:        errcode.Error{Code: v2.ErrorCodeManifestUnknown},
		http.StatusForbidden:       errcode.Error{Code: errcode.ErrorCodeDenied},
		http.StatusBadGateway:      docker.UnexpectedHTTPStatusError{StatusCode: http.StatusBadGateway},
		0:                          errcode.Error{Code: errcode.ErrorCodeUnknown},
	} {
		wrapped := fmt.Errorf("one: %w", errors.Join(errors.New("two"), fmt.Errorf("three: %w", err)))
		if got := statusOf(wrapped); got != want {
			t.Errorf("%v: status %d, want %d", err, got, want)
		}
	}
	if err := pullError(t.Context(), "a", syscall.ENOSPC); !errors.Is(err, errdef.Exhausted) {
		t.Errorf("a full disk is %v", err)
	}
}

func BenchmarkResolve(b *testing.B) {
	var words []string
	for i := range 500 {
		words = append(words, fmt.Sprintf("%04x", i))
	}
	s := &Images{}
	s.index.Store(syntheticIndex(words...))
	for what, ref := range map[string]string{
		"id":   words[7] + strings.Repeat("0", 60),
		"name": "example.com/" + words[7] + ":1",
	} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Resolve(b.Context(), ref); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if all, err := s.List(b.Context()); err != nil || len(all) != 500 {
				b.Fatal(len(all), err)
			}
		}
	})
}

// A system's error is the registry's fault only where the network brought it.
func TestWhoseErrorItIs(t *testing.T) {
	reset := os.NewSyscallError("read", syscall.ECONNRESET)
	lost := &net.OpError{Op: "read", Net: "tcp", Err: reset}
	for _, c := range []struct {
		err      error
		registry bool
	}{
		{lost, true},
		{&net.DNSError{Err: "no such host", Name: "r.example", IsNotFound: true}, true},
		{&url.Error{Op: "Get", URL: "https://r.example/v2/", Err: fmt.Errorf("a: %w", lost)}, true},
		{&url.Error{Op: "Get", URL: "https://r.example/v2/", Err: io.EOF}, true},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(40)}, true},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), true}, // of a request
		{fmt.Errorf("fetch blob: %w", io.ErrUnexpectedEOF), true},
		{errors.Join(errors.New("a"), silence{"r.example", time.Second}), true},
		{syscall.EIO, false},
		{syscall.ETIMEDOUT, false}, // of a disk behind a network
		{syscall.ECONNRESET, false},
		{fmt.Errorf("sync: %w", syscall.EAGAIN), false},
		{os.NewSyscallError("fsync", syscall.ETIMEDOUT), false},
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ETIMEDOUT}, false},
		{&os.LinkError{Op: "rename", Old: "/x", New: "/y", Err: syscall.EINTR}, false},
		{unpackError{"sha256:x", io.ErrUnexpectedEOF}, false},
		{&url.Error{Op: "Get", URL: "https://r.example/v2/", Err: &fs.PathError{Op: "open", Path: "/cert", Err: syscall.EACCES}}, false},
		{errors.Join(&url.Error{Op: "Get", URL: "https://r.example/v2/", Err: context.Canceled}, syscall.EIO), false}, // the disk ended it
		{errors.New("else"), false},
	} {
		if got := errors.Is(pullError(t.Context(), "a", c.err), errdef.RegistryUnavailable); got != c.registry {
			t.Errorf("%v (%T): of the registry: %v", c.err, c.err, got)
		}
	}
}
