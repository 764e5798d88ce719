package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/cpu"

	"github.com/crid/crid/internal/errdef"
)

// outline is what crid keeps in mind of a manifest.
type outline struct {
	Config struct {
		MediaType string        `json:"mediaType"`
		Digest    digest.Digest `json:"digest"`
		Size      int64         `json:"size"`
	} `json:"config"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// parseOutline answers an empty one for what has other fields by these names, as a manifest of Docker's schema 1.
func parseOutline(raw []byte) (o outline) {
	if json.Unmarshal(raw, &o) != nil {
		return outline{}
	}
	return o
}

// examine looks at the manifest for this platform: it refuses what crid does not take, and tells an artifact from an image.
func (r *remoteImage) examine(ctx context.Context, d download) error {
	chosen, err := r.instance(ctx, d)
	if err != nil {
		return err
	}
	raw, kind, err := chosen.Manifest(ctx)
	if err != nil {
		return err
	}
	r.outline = parseOutline(raw)
	r.artifact, err = examine(raw, kind)
	return err
}

// examine is pure; nil: an image.
func examine(raw []byte, kind string) (*artifact, error) {
	kind = manifest.NormalizedMIMEType(kind)
	switch kind {
	case manifest.DockerV2Schema1MediaType, manifest.DockerV2Schema1SignedMediaType:
		return nil, fmt.Errorf("the image has a manifest of Docker's schema 1, which nothing has made since 2017 (push it again with a tool of today): %w", errdef.Unsupported)
	case imgspec.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	default:
		return nil, fmt.Errorf("a manifest of type %s is none of an image: %w", kind, errdef.Unsupported)
	}
	var m imgspec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("parse manifest: %w: %w", err, errdef.Invalid)
	}
	if o := parseOutline(raw); kind == imgspec.MediaTypeImageManifest && o.isArtifact() {
		return newArtifact(raw, &m)
	}
	for _, l := range m.Layers {
		if isForeign(l.MediaType) {
			return nil, fmt.Errorf("layer %s is foreign (%s): its licence lets no registry hand it on, as those of Windows: %w", l.Digest, l.MediaType, errdef.Unsupported)
		}
	}
	return nil, nil
}

func isForeign(mediaType string) bool {
	return strings.Contains(mediaType, ".foreign.") || strings.Contains(mediaType, ".nondistributable.")
}

// isArtifact tells whether the manifest is of no image: what stands for the configuration is none.
func (o *outline) isArtifact() bool {
	switch o.Config.MediaType {
	case imgspec.MediaTypeImageConfig, manifest.DockerV2Schema2ConfigMediaType, "":
		return false
	}
	return true
}

// artifactKind is what the artifact says it is.
func (o *outline) artifactKind() string {
	if !o.isArtifact() {
		return ""
	}
	if o.ArtifactType != "" {
		return o.ArtifactType
	}
	return o.Config.MediaType
}

// chooseInstance finds the entry for this platform, and notes its variant in sys, by which whoever chooses again finds
// the same. The library knows the variants of ARM; of amd64 those that this processor has are tried when there is none
// without.
func chooseInstance(list manifest.List, sys *types.SystemContext) (digest.Digest, error) {
	chosen, err := list.ChooseInstance(sys)
	for _, variant := range amd64Variants() {
		if err == nil || sys.VariantChoice != "" {
			break
		}
		with := *sys
		with.VariantChoice = variant
		if found, other := list.ChooseInstance(&with); other == nil {
			chosen, err = found, nil
			sys.VariantChoice = variant
		}
	}
	if err != nil {
		return "", fmt.Errorf("choose platform: %w", err)
	}
	return chosen, nil
}

// amd64Variants are the levels of the instruction set that this processor has, the highest first; none elsewhere.
func amd64Variants() []string {
	x := &cpu.X86
	switch {
	case !x.HasSSE2:
		return nil
	case !x.HasSSE3 || !x.HasSSSE3 || !x.HasSSE41 || !x.HasSSE42 || !x.HasPOPCNT || !x.HasCX16:
		return []string{"v1"}
	case !x.HasAVX2 || !x.HasBMI1 || !x.HasBMI2 || !x.HasFMA || !x.HasOSXSAVE:
		return []string{"v2", "v1"}
	case !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512CD || !x.HasAVX512DQ || !x.HasAVX512VL:
		return []string{"v3", "v2", "v1"}
	}
	return []string{"v4", "v3", "v2", "v1"}
}
