// Package storage keeps images (containers/image fetches, containers/storage holds the layers) and the root
// filesystems made of them (overlays that crid mounts itself). It does not know pods or runtimes.
package storage

import (
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one stored image. The value is shared and never edited.
type Image struct {
	ID          string // config digest (of an artifact: manifest digest) in hex without its algorithm: the one id of the image everywhere in crid
	RepoTags    []string
	RepoDigests []string
	Size        uint64 // bytes of its layers, uncompressed, and of its configuration; never 0
	Pinned      bool
	Config      imgspec.ImageConfig
	Labels      map[string]string
	Annotations map[string]string // of its manifest for this platform

	ArtifactType string // what it is instead of an image that can be run; empty = an image
	Store        string // the additional store that it lies in, where nobody removes it; empty = crid's own
}

// Auth is the credentials of one pull. Never logged, never stored.
type Auth struct {
	Server             string // the registry that they are for; empty = the image's
	Username, Password string
	IdentityToken      string
	RegistryToken      string
}

// Usage is what a filesystem holds of crid's, in bytes and inodes.
type Usage struct {
	Mountpoint string // a directory on the filesystem, as an operator knows it
	Bytes      uint64
	Inodes     uint64
	At         time.Time // when it was so
}
