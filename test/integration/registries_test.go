package integration

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/bcrypt"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// vouched is a certificate for the loopback, with its key, as files. It vouches for itself.
type vouched struct {
	cert, key string
	server    *httptest.Server // whose it is
}

func newVouched(t *testing.T) vouched {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	i := vouched{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), server}
	for file, block := range map[string]*pem.Block{i.cert: {Type: "CERTIFICATE", Bytes: server.Certificate().Raw}, i.key: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// token signs what lets somebody pull a repository.
func (i vouched) token(t *testing.T, repository string) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("x5c", []string{base64.StdEncoding.EncodeToString(i.server.Certificate().Raw)}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.server.TLS.Certificates[0].PrivateKey}, options)
	if err != nil {
		t.Error(err)
		return ""
	}
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": "test", "sub": "me", "aud": []string{"registry"}, "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 300,
		"access": []map[string]any{{"type": "repository", "name": repository, "actions": []string{"pull"}}},
	})
	if err != nil {
		t.Error(err)
		return ""
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		t.Error(err)
		return ""
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Error(err)
	}
	return compact
}

// askFor makes a registry ask for the password of user "me".
func askFor(t *testing.T, password string) (env []string) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("me:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"REGISTRY_AUTH_HTPASSWD_REALM=test", "REGISTRY_AUTH_HTPASSWD_PATH=" + file}
}

// The registry that everybody runs, over TLS with a certificate that a directory vouches for, asks for a password or for
// a token, and gets either; who has a wrong one gets no image, stored or not.
func TestRegistriesThatAsk(t *testing.T) {
	who := newVouched(t)
	repository, _, _ := strings.Cut(images.Busybox, ":")
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "good" {
			http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": who.token(t, repository)})
	}))
	t.Cleanup(tokens.Close)
	tls := []string{"REGISTRY_HTTP_TLS_CERTIFICATE=" + who.cert, "REGISTRY_HTTP_TLS_KEY=" + who.key}
	hosts := map[string]string{
		"password": harness.Serve(t, harness.Images(), append(tls, askFor(t, "good")...)...),
		"token": harness.Serve(t, harness.Images(), append(tls, "REGISTRY_AUTH_TOKEN_REALM="+tokens.URL, "REGISTRY_AUTH_TOKEN_SERVICE=registry",
			"REGISTRY_AUTH_TOKEN_ISSUER=test", "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE="+who.cert)...),
	}
	c := harness.Start(t)
	for what, host := range hosts {
		t.Run(what, func(t *testing.T) {
			pull := func(password string) error {
				auth := &runtime.AuthConfig{Username: "me", Password: password}
				_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: host + "/" + images.Busybox}, auth, nil)
				return err
			}
			if err := pull("good"); err == nil || !strings.Contains(err.Error(), "certificate is not trusted") {
				t.Errorf("before its certificate is known: %v", err)
			}
			cert, err := os.ReadFile(who.cert)
			if err != nil {
				t.Fatal(err)
			}
			hostFile(t, c, "certs.d/"+host+"/ca.crt", string(cert))
			for range 2 { // the second time the image is stored
				if err := pull("bad"); err == nil || !strings.Contains(err.Error(), "denies access") {
					t.Errorf("a wrong password: %v", err)
				}
				if err := pull("good"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
