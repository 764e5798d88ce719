package storage

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/sigstore"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// in is a file of the world's own.
func (w *world) in(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(w.in(name)), 0o700))
	check(t, os.WriteFile(w.in(name), data, 0o600))
	return w.in(name)
}

// signedBy is a policy that wants each image signed by keys.
func signedBy(kind, keys string) []byte {
	more := ""
	if kind == "signedBy" {
		more = `,"keyType":"GPGKeys"`
	}
	return fmt.Appendf(nil, `{"default":[{"type":%q,"keyPath":%q,"signedIdentity":{"type":"matchRepository"}%s}]}`, kind, keys, more)
}

func named(t *testing.T, ref string) reference.Named {
	t.Helper()
	name, err := reference.ParseNormalizedNamed(ref)
	check(t, err)
	return name
}

// cosign signs what from names under the name to, with a key of its own, whose public half it returns the file of. The
// signature lies beside the image in the registry.
func (w *world) cosign(t *testing.T, from, to string) (pub string) {
	t.Helper()
	keys, err := sigstore.GenerateKeyPair(nil)
	check(t, err)
	pub = w.write(t, "cosign.pub", keys.PublicKey)
	private := w.write(t, "cosign.key", keys.PrivateKey)
	w.write(t, "registries.d/test.yaml", []byte("default-docker:\n  use-sigstore-attachments: true\n"))
	signer := &Images{cfg: w.ImagesConfig, root: t.TempDir()}
	sys := signer.systemContext(Auth{})
	all, err := acceptAll()
	check(t, err)
	src, err := docker.NewReference(named(t, from))
	check(t, err)
	dst, err := docker.NewReference(named(t, to))
	check(t, err)
	_, err = copy.Image(t.Context(), all, dst, src, &copy.Options{
		SourceCtx: sys, DestinationCtx: sys, SignBySigstorePrivateKeyFile: private, SignSigstorePrivateKeyPassphrase: []byte{},
	})
	check(t, errors.Join(err, all.Destroy()))
	return pub
}

// gpg signs the manifest of that digest as ref, with a key of its own, whose public half it returns the file of. The
// signature lies in a directory that registries.d names.
func (w *world) gpg(t *testing.T, ref, of string) (pub string) {
	t.Helper()
	who, err := openpgp.NewEntity("test", "", "test@example.com", nil)
	check(t, err)
	var public bytes.Buffer
	armored, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	check(t, err)
	check(t, errors.Join(who.Serialize(armored), armored.Close()))
	payload := fmt.Sprintf(`{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":%q},"identity":{"docker-reference":%q}},"optional":{}}`, of, ref)
	var signed bytes.Buffer
	out, err := openpgp.Sign(&signed, who, nil, nil)
	check(t, err)
	_, err = out.Write([]byte(payload))
	check(t, errors.Join(err, out.Close()))
	w.write(t, "registries.d/test.yaml", fmt.Appendf(nil, "default-docker:\n  lookaside: file://%s\n", w.in("lookaside")))
	d := digest.Digest(of)
	w.write(t, fmt.Sprintf("lookaside/%s@%s=%s/signature-1", reference.Path(named(t, ref)), d.Algorithm(), d.Encoded()), signed.Bytes())
	return w.write(t, "gpg.pub", public.Bytes())
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, errdef.SignatureInvalid) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") {
		t.Errorf("not refused for its signature: %v", err)
	}
}

// An image that is signed by the key of the policy is pulled and may be used, and nothing else is; what is unsigned under
// one name is not taken for what is signed under another.
func TestSignatures(t *testing.T) {
	for kind, sign := range map[string]func(w *world, t *testing.T, host, digest string) string{
		"sigstoreSigned": func(w *world, t *testing.T, host, _ string) string {
			return w.cosign(t, host+"/plain:1", host+"/signed:1")
		},
		"signedBy": func(w *world, t *testing.T, host, digest string) string { return w.gpg(t, host+"/signed:1", digest) },
	} {
		t.Run(kind, func(t *testing.T) {
			r := newRegistry(t)
			w := newWorld(t, r)
			d := r.push(t, "signed:1", simple(t, "a"))
			r.push(t, "plain:1", simple(t, "a"))
			r.push(t, "other:1", simple(t, "b"))
			w.PolicyPath = w.write(t, "policy.json", signedBy(kind, sign(w, t, r.host, d)))
			s := w.open(t)
			for range 2 {
				img := pull(t, s, r.host+"/signed:1")
				for _, repo := range []string{"plain:1", "other:1"} { // one of which is stored by another name
					_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + repo})
					wantRefused(t, err)
				}
				for _, name := range []string{"", img.ID, r.host + "/signed:1", r.host + "/signed:moved", r.host + "/signed@" + d, r.host + "/unknown"} {
					check(t, s.Permit(t.Context(), Use{ImageID: img.ID, Name: name}))
				}
			}
		})
	}
}

// What may be used is asked of the policy of the day and of the namespace, without a registry.
func TestPermitFollowsThePolicy(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", simple(t, "a"))
	r.push(t, "unsigned:1", simple(t, "b"))
	key := w.cosign(t, r.host+"/plain:1", r.host+"/signed:1")
	stranger := w.gpg(t, r.host+"/signed:1", dig)
	w.write(t, "registries.d/test.yaml", []byte("default-docker:\n  use-sigstore-attachments: true\n"))
	strict := signedBy("sigstoreSigned", key)
	w.PolicyPath = w.write(t, "policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	s := w.open(t)
	before := pull(t, s, r.host+"/signed:1") // nobody asks for signatures: none are kept
	unsigned := pull(t, s, r.host+"/unsigned:1")
	w.write(t, "policies/strict.json", strict)
	w.write(t, "policies/closed.json", []byte(`{"default":[{"type":"reject"}]}`))
	w.write(t, "policies/broken.json", []byte(`{"default":`))
	w.write(t, "policies/stranger.json", signedBy("signedBy", stranger))
	permit := func(img Image, namespace string) error {
		return s.Permit(t.Context(), Use{ImageID: img.ID, Namespace: namespace})
	}
	check(t, permit(before, ""))
	check(t, permit(before, "unheard-of"))
	wantRefused(t, permit(before, "strict"))
	img := pull(t, s, r.host+"/signed:1") // now they are, though the image is stored
	r.set(func(r *fakeRegistry) { r.refuse = func(*http.Request) int { return http.StatusServiceUnavailable } })
	for range 2 { // the second time after a restart
		check(t, permit(img, "strict"))
		wantRefused(t, permit(img, "closed"))
		wantRefused(t, permit(img, "stranger"))
		wantRefused(t, permit(unsigned, "strict"))
		check(t, permit(unsigned, "free"))
		if err := permit(img, "broken"); err == nil || !strings.Contains(err.Error(), "broken.json") {
			t.Errorf("a policy that cannot be read: %v", err)
		}
		if err := permit(img, "../strict"); !errors.Is(err, errdef.Invalid) {
			t.Errorf("a namespace that is no name: %v", err)
		}
		check(t, s.Close())
		s = w.open(t)
	}
	w.write(t, "policy.json", strict)
	check(t, permit(img, ""))
	wantRefused(t, permit(unsigned, ""))
	w.write(t, "cosign.pub", []byte("no key"))
	if err := permit(img, ""); err == nil {
		t.Error("permitted by a key that cannot be read")
	}
}

// A namespace's policy rules its pulls.
func TestPullFollowsTheNamespacesPolicy(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	w.write(t, "policies/closed.json", []byte(`{"default":[{"type":"reject"}]}`))
	s := w.open(t)
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Namespace: "closed"})
	wantRefused(t, err)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Namespace: "open"}); err != nil {
		t.Error(err)
	}
}

// The same image from where it is not signed does not lose the signatures that it has, nor does one with another manifest.
func TestSignaturesAddUp(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	img := simple(t, "a")
	r.push(t, "plain:1", img)
	key := w.cosign(t, r.host+"/plain:1", r.host+"/signed:1")
	r.push(t, "bare:1", img)
	r.push(t, "oci:1", asOCI(img))
	w.write(t, "policies/strict.json", signedBy("sigstoreSigned", key))
	s := w.open(t)
	got := pull(t, s, r.host+"/signed:1")
	for _, repo := range []string{"bare:1", "oci:1", "signed:1"} {
		if again := pull(t, s, r.host+"/"+repo); again.ID != got.ID {
			t.Fatalf("%s is %s, not %s", repo, again.ID, got.ID)
		}
		check(t, s.Permit(t.Context(), Use{ImageID: got.ID, Namespace: "strict"}))
	}
	stored, err := s.store.Image(got.ID)
	check(t, err)
	manifests, err := signedManifests(stored)
	check(t, err)
	if len(manifests) != 1 {
		t.Errorf("signatures are kept of %v", manifests)
	}
}

// What lies in a store that is only read, without its signatures, gets them in crid's own; and a write that a crash has cut off is
// mended by the next pull.
func TestSignaturesOfWhatIsOnAShelf(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", simple(t, "a"))
	key := w.cosign(t, r.host+"/plain:1", r.host+"/signed:1")
	w.Shelves = []string{newShelf(t, r, "signed:1")}
	w.write(t, "policies/strict.json", signedBy("sigstoreSigned", key))
	s := w.open(t)
	id := resolve(t, s, r.host+"/signed:1").ID
	use := Use{ImageID: id, Namespace: "strict"}
	wantRefused(t, s.Permit(t.Context(), use))
	for range 2 {
		if img := pull(t, s, r.host+"/signed:1"); img.ID != id || img.Store != "" {
			t.Errorf("pulled %+v", img)
		}
		check(t, s.Permit(t.Context(), use))
	}
	img, err := s.store.Image(id)
	check(t, err)
	manifests, err := signedManifests(img)
	check(t, err)
	sig := signatures{of: manifests[0]}
	data, err := s.store.ImageBigData(id, sig.key())
	check(t, err)
	check(t, s.store.SetImageBigData(id, sig.key(), append([]byte("more"), data...), nil))
	check(t, s.Permit(t.Context(), use)) // what is in front is not told of
	check(t, s.store.SetImageBigData(id, sig.key(), data[1:], nil))
	if err := s.Permit(t.Context(), use); err == nil {
		t.Error("permitted by what cannot be read")
	}
	pull(t, s, r.host+"/signed:1")
	check(t, s.Permit(t.Context(), use))
}

// dying is a store that dies before its n-th write.
type dying struct {
	cstorage.Store
	left int
}

var errDead = errors.New("crid died")

func (d *dying) write(do func() error) error {
	if d.left--; d.left < 0 {
		return errDead
	}
	return do()
}

func (d *dying) CreateImage(id string, names []string, layer, metadata string, o *cstorage.ImageOptions) (img *cstorage.Image, err error) {
	return img, errors.Join(d.write(func() (failed error) { img, failed = d.Store.CreateImage(id, names, layer, metadata, o); return failed }))
}

func (d *dying) SetImageBigData(id, key string, data []byte, of func([]byte) (digest.Digest, error)) error {
	return d.write(func() error { return d.Store.SetImageBigData(id, key, data, of) })
}

func (d *dying) SetMetadata(id, metadata string) error {
	return d.write(func() error { return d.Store.SetMetadata(id, metadata) })
}

func (d *dying) AddNames(id string, names []string) error {
	return d.write(func() error { return d.Store.AddNames(id, names) })
}

func (d *dying) DeleteImage(id string, commit bool) (layers []string, err error) {
	return layers, d.write(func() (failed error) { layers, failed = d.Store.DeleteImage(id, commit); return failed })
}

// still is a store behind which nothing goes on, so that a test may put another one under it.
func (w *world) still(t *testing.T) *Images {
	t.Helper()
	check(t, w.open(t).Close())
	s, err := ViewImages(w.ImagesConfig)
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	s.pulls.init(s.cfg.Pulls)
	check(t, s.refresh())
	return s
}

// Whatever write of a pull is its last: what is stored by the name of what is signed may be used, and what could be used still can.
// The next pull brings all of it.
func TestPullsThatDieAmidSignatures(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	img, p := simple(t, "a"), parcel(t, "application/vnd.example.a", "f", "content")
	r.push(t, "bare:1", img)
	r.put(t, "parcel:1", p)
	for what, c := range map[string]struct{ repo, digest, before string }{
		"an image":                   {"oci", r.push(t, "oci:1", asOCI(img)), ""},
		"another manifest of one":    {"oci", r.push(t, "oci:1", asOCI(img)), "bare:1"},
		"what is stored":             {"oci", r.push(t, "oci:1", asOCI(img)), "oci:1"},
		"an artifact":                {"parcel", digest.FromBytes(p.raw).String(), ""},
		"an artifact that is stored": {"parcel", digest.FromBytes(p.raw).String(), "parcel:1"},
	} {
		t.Run(what, func(t *testing.T) {
			w.write(t, "policies/strict.json", signedBy("signedBy", w.gpg(t, r.host+"/"+c.repo+":1", c.digest)))
			more := fmt.Sprintf("lookaside/%s@sha256=%s/signature-2", c.repo, strings.TrimPrefix(c.digest, "sha256:"))
			name := r.host + "/" + c.repo + "@" + c.digest
			s := w.still(t)
			store := s.store
			for n := 0; ; n++ {
				if c.before != "" {
					pull(t, s, r.host+"/"+c.before)
				}
				w.write(t, more, []byte("\x88 another, of nobody's"))
				s.store = &dying{store, n}
				got, died := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + c.repo + ":1"})
				s.store = store
				check(t, s.reexamine())
				if img, err := s.Resolve(t.Context(), name); err == nil {
					if err := s.Permit(t.Context(), Use{ImageID: img.ID, Name: name, Namespace: "strict"}); err != nil {
						t.Errorf("after %d writes: %v", n, err)
					}
				} else if died == nil || strings.HasPrefix(c.before, c.repo) {
					t.Errorf("after %d writes: %v", n, err)
				}
				if died == nil { // it came to its end
					if stored, err := s.store.Image(got.ID); err != nil || !strings.Contains(stored.Metadata, ",22]") && !strings.Contains(stored.Metadata, "[22,") {
						t.Errorf("the signature that came later is not kept: %+v, %v", stored, err)
					}
					check(t, errors.Join(s.Remove(t.Context(), name), os.Remove(w.in(more))))
					break
				}
				pull(t, s, r.host+"/"+c.repo+":1")
				check(t, s.Permit(t.Context(), Use{ImageID: resolve(t, s, name).ID, Name: name, Namespace: "strict"}))
				check(t, s.Remove(t.Context(), name))
				check(t, os.Remove(w.in(more)))
			}
		})
	}
}

// By the digest of a list, another tool may have stored the image for another platform: it is not taken for what the list has here.
func TestAnotherPlatformsImageByTheSameName(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "other:1", simple(t, "other"))
	other := pull(t, s, r.host+"/other:1")
	own := simple(t, "own")
	list := r.push(t, "list:1", indexOf(t, types.OCIImageIndex, own))
	check(t, s.store.AddNames(other.ID, []string{r.host + "/list@" + list}))
	check(t, s.refresh())
	if got := pull(t, s, r.host+"/list:1"); got.ID != idOf(t, own) || resolve(t, s, r.host+"/list@"+list).ID != got.ID {
		t.Errorf("pulled %+v", got)
	}
}

func TestWhoAsksForSignatures(t *testing.T) {
	for policy, want := range map[string]bool{
		`{"default":[{"type":"insecureAcceptAnything"}]}`:                                                                                false,
		`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[{"type":"insecureAcceptAnything"}]}}}`:                      false,
		`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}}}`: true,
	} {
		parsed, err := signature.NewPolicyFromBytes([]byte(policy))
		check(t, err)
		if got := asksForSignatures(parsed); got != want {
			t.Errorf("%s: %v", policy, got)
		}
	}
}
