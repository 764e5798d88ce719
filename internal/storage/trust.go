package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
)

func (s *Images) policyPath() string { return hostFile(s.cfg.PolicyPath, "policy.json") }

// policyFor is the file with the policy that holds for a namespace: its own, else the host's; empty when there is none.
func (s *Images) policyFor(namespace string) (string, error) {
	if s.cfg.PolicyDir == "" || namespace == "" {
		return s.policyPath(), nil
	}
	file, err := perNamespace(s.cfg.PolicyDir, namespace, ".json")
	if err != nil {
		return "", err
	}
	switch _, err := os.Stat(file); {
	case err == nil:
		return file, nil
	case errors.Is(err, fs.ErrNotExist):
		return s.policyPath(), nil
	default: // were it the host's instead, one who fills a disk could choose
		return "", fmt.Errorf("look for the signature policy of namespace %s: %w", namespace, err)
	}
}

// loadPolicy reads a signature policy; without any, everything is accepted.
func loadPolicy(path string) (*signature.PolicyContext, error) {
	if path == "" {
		return acceptAll()
	}
	policy, err := signature.NewPolicyFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read signature policy %s: it is configured but does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	return policyContext(policy)
}

// acceptAll is the policy for what was checked before.
func acceptAll() (*signature.PolicyContext, error) {
	return policyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
}

func policyContext(policy *signature.Policy) (*signature.PolicyContext, error) {
	ctx, err := signature.NewPolicyContext(policy)
	if err != nil {
		return nil, fmt.Errorf("use signature policy: %w", err)
	}
	return ctx, nil
}

// keepsSignatures tells whether pulls keep signatures: only where one of the host's policies may ask for them later, since to look
// for them costs requests. A policy that cannot be read may ask.
func (s *Images) keepsSignatures() (bool, error) {
	files := []string{s.policyPath()}
	if s.cfg.PolicyDir != "" {
		names, err := entryNames(s.cfg.PolicyDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for signature policies: %w", err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".json") {
				files = append(files, filepath.Join(s.cfg.PolicyDir, name))
			}
		}
	}
	return slices.ContainsFunc(files, func(file string) bool {
		if file == "" {
			return false
		}
		policy, err := signature.NewPolicyFromFile(file)
		return err != nil || asksForSignatures(policy)
	}), nil
}

// asksForSignatures tells whether a policy can be met by signatures.
func asksForSignatures(policy *signature.Policy) bool {
	lists := []signature.PolicyRequirements{policy.Default}
	for _, scopes := range policy.Transports {
		lists = slices.AppendSeq(lists, maps.Values(scopes))
	}
	accept, reject := reflect.TypeOf(signature.NewPRInsecureAcceptAnything()), reflect.TypeOf(signature.NewPRReject())
	return slices.ContainsFunc(slices.Concat(lists...), func(r signature.PolicyRequirement) bool {
		return reflect.TypeOf(r) != accept && reflect.TypeOf(r) != reject
	})
}

// Use is what an image is wanted for.
type Use struct {
	ImageID   string
	Name      string // by which it was asked for; may be empty
	Namespace string // of the pod
}

// Permit asks the signature policy of today whether the image may be used, of which the pull asked that of its day. It asks no
// registry: signatures are those that were there at the last pull. SignatureInvalid when it may not.
func (s *Images) Permit(ctx context.Context, u Use) error {
	file, err := s.policyFor(u.Namespace)
	if err != nil || file == "" {
		return err
	}
	e, ok := s.index.Load().byID[u.ImageID]
	if !ok {
		return fmt.Errorf("image %s: %w", u.ImageID, errdef.NotFound)
	}
	policy, err := loadPolicy(file)
	if err != nil {
		return err
	}
	defer policy.Destroy() // it has nothing to lose
	var refs []types.ImageReference
	if e.shelf == "" {
		if refs, err = s.archivesOf(u.ImageID); err != nil {
			return fmt.Errorf("image %s: find out where it is from: %w", u.ImageID, err)
		}
	}
	var failed error
	for _, ref := range append(s.references(e.image, u.Name), refs...) {
		if ok, _ := policy.IsRunningImageAllowed(ctx, unsigned{ref}); ok {
			return nil
		}
		err := error(signature.PolicyRequirementError(fmt.Sprintf("crid reads no signatures in the additional store %s", e.shelf)))
		if e.shelf == "" {
			err = s.permitSigned(ctx, policy, u.ImageID, ref)
		}
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, err)
	}
	if isSignature(failed) {
		return fmt.Errorf("%w: image %s: policy %s does not let it be used (signatures are looked for when it is pulled: pull it again if it has been signed since, or the policy changed): %w",
			errdef.SignatureInvalid, u.ImageID, file, failed)
	}
	return fmt.Errorf("image %s: check its signatures: %w", u.ImageID, failed)
}

// references are what the policy is asked about: the image under the name that a user gave, if it was pulled from that repository,
// else under each that it has. Its contents are the same under all.
func (s *Images) references(img Image, name string) []types.ImageReference {
	var asked, all []types.ImageReference
	add := func(to *[]types.ImageReference, named reference.Named) {
		if ref, err := docker.NewReference(named); err == nil {
			*to = append(*to, ref)
		}
	}
	names, _ := s.names(name) // what is no name is an id
	for _, named := range names {
		if slices.Contains(repositories(&img), named.Name()) {
			add(&asked, named)
		}
	}
	if len(asked) > 0 {
		return asked
	}
	for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			add(&all, named)
		}
	}
	if len(all) == 0 {
		if ref, err := istorage.Transport.NewStoreReference(s.store, nil, img.ID); err == nil {
			all = append(all, ref)
		}
	}
	return all
}

// permitSigned asks the policy about the image with the signatures that are stored. An image may have been pulled by
// several manifests; one that is allowed is enough, since the image is the same.
func (s *Images) permitSigned(ctx context.Context, policy *signature.PolicyContext, id string, as types.ImageReference) (err error) {
	stored, err := istorage.Transport.NewStoreReference(toldStore{s.store}, nil, id)
	if err != nil {
		return err
	}
	src, err := stored.NewImageSource(ctx, s.systemContext(Auth{}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	img, err := s.store.Image(id)
	if err != nil {
		return err
	}
	manifests, err := signedManifests(img)
	if err != nil {
		return err
	}
	instances := []*digest.Digest{nil} // what other tools have stored
	for _, d := range manifests {
		instances = append(instances, &d)
	}
	var failed error
	for _, instance := range instances {
		ok, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstanceWithReference(image.UnparsedInstance(src, instance), as))
		if ok {
			return nil
		}
		failed = err // of the manifest that crid has signatures of, if any
	}
	return failed
}

// unsigned is an image of which nothing is known but its name: enough for a policy that asks for no signatures.
type unsigned struct{ ref types.ImageReference }

var errUnsigned = errors.New("its signatures are not read yet")

func (u unsigned) Reference() types.ImageReference                  { return u.ref }
func (u unsigned) Manifest(context.Context) ([]byte, string, error) { return nil, "", errUnsigned }
func (u unsigned) Signatures(context.Context) ([][]byte, error)     { return nil, errUnsigned }
