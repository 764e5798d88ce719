package storage

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	encryption "github.com/containers/ocicrypt/config"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"

	"github.com/crid/crid/internal/errdef"
)

// encrypt copies an image within a registry and encrypts all its layers for a new key, whose private half it returns.
func (w *world) encrypt(t *testing.T, from, to string) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	check(t, err)
	crypto, err := encryption.EncryptWithJwe([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})})
	check(t, err)
	sys := (&Images{cfg: w.ImagesConfig, root: t.TempDir()}).systemContext(Auth{})
	all, err := acceptAll()
	check(t, err)
	src, err := docker.NewReference(named(t, from))
	check(t, err)
	dst, err := docker.NewReference(named(t, to))
	check(t, err)
	_, err = copy.Image(t.Context(), all, dst, src, &copy.Options{SourceCtx: sys, DestinationCtx: sys, OciEncryptConfig: crypto.EncryptConfig, OciEncryptLayers: &[]int{}})
	check(t, errors.Join(err, all.Destroy()))
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// An encrypted image needs one of the node's keys, which count from the next pull on; its signatures are those of what was pulled.
func TestEncryptedImages(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", asOCI(picture(t, "a", layer(t, false, "file", "secret content"), layer(t, true, "other", "more"))))
	key := w.encrypt(t, r.host+"/plain:1", r.host+"/encrypted:1")
	other := w.encrypt(t, r.host+"/plain:1", r.host+"/other:1")
	signer := w.cosign(t, r.host+"/encrypted:1", r.host+"/signed:1")
	w.write(t, "policies/strict.json", signedBy("sigstoreSigned", signer))
	s := w.open(t)
	fails := func(want string) {
		t.Helper()
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/encrypted:1"})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("got %v, want %s", err, want)
		}
		if len(list(t, s)) > 0 {
			t.Errorf("left %v", list(t, s))
		}
	}
	fails("there is no key in " + w.DecryptionKeys)
	w.write(t, "keys/other.pem", other)
	fails("decrypt")
	file := w.write(t, "keys/broken.pem", []byte("PRIVATE but no key"))
	fails(file)
	check(t, os.Remove(file))
	w.write(t, "keys/own.pem", key)
	for _, repo := range []string{"encrypted", "signed"} {
		img := pull(t, s, r.host+"/"+repo+":1")
		layers, err := s.Layers(t.Context(), img.ID)
		check(t, err)
		if content, err := os.ReadFile(filepath.Join(layers[1], "file")); err != nil || string(content) != "secret content" {
			t.Errorf("%s has %q, %v", repo, content, err)
		}
		if again := pull(t, s, r.host+"/"+repo+":1"); again.ID != img.ID {
			t.Errorf("%s is %s, and pulled again %s", repo, img.ID, again.ID)
		}
		if err := s.Permit(t.Context(), Use{ImageID: img.ID, Namespace: "strict"}); (err == nil) != (repo == "signed") {
			t.Errorf("%s under the policy: %v", repo, err)
		}
	}
	check(t, s.Remove(t.Context(), resolve(t, s, r.host+"/signed:1").ID))
	img := pull(t, s, r.host+"/signed:1")
	check(t, s.Permit(t.Context(), Use{ImageID: img.ID, Namespace: "strict"}))
	w.DecryptionKeys = ""
	check(t, s.Close())
	check(t, os.RemoveAll(filepath.Join(w.dir, "keys")))
	s = w.open(t)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/other:1"}); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "decryption_keys_path") {
		t.Errorf("without a directory: %v", err)
	}
}
